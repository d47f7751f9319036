//! What admission refuses, with the field and the reason: the verdict of Istio's own validation. Names and values are
//! checked here as far as one object tells; what other objects say is for analysis.

mod destination_rule;
mod http;
mod load_balancer;
mod reach;
mod text;
mod virtual_service;

use crate::{
    parse::Finding,
    types::{Duration, Resource},
};

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

    fn error(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.errors.push(Finding::new(path, message));
    }

    fn warn(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.warnings.push(Finding::new(path, message));
    }

    /// Adds what a check of one value says against it.
    fn check(&mut self, path: &str, result: Result<(), String>) {
        if let Err(message) = result {
            self.error(path, message);
        }
    }

    fn duration(&mut self, path: &str, duration: Option<&Duration>) {
        if let Some(duration) = duration {
            self.check(path, text::duration(&duration.0));
        }
    }

    fn export_to(&mut self, export_to: &[String], namespace: &str, chosen_workloads: bool) {
        let mut seen: Vec<&str> = Vec::new();
        for (i, entry) in export_to.iter().enumerate() {
            let path = format!("spec.exportTo[{i}]");
            let key = if entry == "." { namespace } else { entry.as_str() };
            if seen.contains(&key) {
                self.error(path, format!("{entry:?} is there twice"));
                continue;
            }
            seen.push(key);
            match entry.as_str() {
                "." | "*" => {}
                "~" => self.error(path, "`~` (nobody) is for ServiceEntries only"),
                name => self.check(&path, text::dns_label(name, "namespace")),
            }
        }
        if seen.contains(&"*") && export_to.len() > 1 {
            self.error("spec.exportTo", "`*` stands alone: it exports to everybody already");
        }
        if chosen_workloads && seen.iter().any(|n| *n != namespace) {
            self.error("spec.exportTo", "a rule with a workloadSelector is for its own namespace only");
        }
    }
}

/// Annotations with a meaning that users must not ask for here.
const RESERVED_ANNOTATIONS: [&str; 4] = [
    "istio.io/dry-run",
    "internal.istio.io/webhook-always-reject",
    "internal.istio.io/parent-namespace",
    "internal.istio.io/parents",
];

/// Validates one resource.
pub fn validate(resource: &Resource) -> Verdict {
    let mut verdict = Verdict::default();
    for name in RESERVED_ANNOTATIONS {
        if resource.meta().annotations.contains_key(name) {
            verdict.error(format!("metadata.annotations[{name:?}]"), "must not be set on this kind");
        }
    }
    match resource {
        Resource::VirtualService(object) => virtual_service::check(object, &mut verdict),
        Resource::DestinationRule(object) => destination_rule::check(object, &mut verdict),
    }
    verdict
}

#[cfg(test)]
mod tests;
