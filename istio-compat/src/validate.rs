//! What admission refuses, with the field and the reason: the verdict of Istio's own validation.

use crate::{parse::Finding, types::Resource};

/// The verdict on one resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Reasons to refuse it.
    pub errors: Vec<Finding>,
    /// Accepted, but likely not what the user means.
    pub warnings: Vec<Finding>,
}

impl Verdict {
    /// Whether the resource is accepted.
    pub fn is_valid(&self) -> bool {
        self.errors.is_empty()
    }
}

/// Validates one resource.
pub fn validate(resource: &Resource) -> Verdict {
    match resource {
        Resource::VirtualService(_) | Resource::DestinationRule(_) => Verdict::default(),
    }
}
