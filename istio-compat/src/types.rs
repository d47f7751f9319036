//! Istio's networking resources, field by field. Nothing is resolved or defaulted here: a value says exactly what the
//! user wrote, so that validation can name it and nothing is lost.

mod common;
mod destination_rule;
mod http_actions;
mod load_balancer;
mod virtual_service;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use common::*;
pub use destination_rule::*;
pub use http_actions::*;
pub use load_balancer::*;
pub use virtual_service::*;

/// API versions of the networking group that are served, storage version first.
pub const NETWORKING_VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha3"];
/// The API group of VirtualService and DestinationRule.
pub const NETWORKING_GROUP: &str = "networking.istio.io";

/// The parts of object metadata that decide anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Object name.
    pub name: String,
    /// Namespace; `default` when the object has none.
    pub namespace: String,
    /// RFC 3339 in UTC, as the API server writes it; orders rules that compete for a host. Empty sorts first.
    pub creation_timestamp: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Generation, for status.
    pub generation: i64,
}

impl Meta {
    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The order in which Istio considers objects: oldest first, ties by name, then namespace.
    pub fn age_order(&self) -> (&str, &str, &str) {
        (&self.creation_timestamp, &self.name, &self.namespace)
    }
}

/// An object: metadata and spec.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Object<S> {
    /// Metadata.
    pub meta: Meta,
    /// What the user asks for.
    pub spec: S,
}

/// A VirtualService object.
pub type VirtualService = Object<VirtualServiceSpec>;
/// A DestinationRule object.
pub type DestinationRule = Object<DestinationRuleSpec>;

/// Any resource that this crate understands.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "one per applied object, moved once into the index")]
pub enum Resource {
    /// Routing of requests and connections.
    VirtualService(VirtualService),
    /// Policy towards a destination.
    DestinationRule(DestinationRule),
}

impl Resource {
    /// The object's kind as Kubernetes spells it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::VirtualService(_) => "VirtualService",
            Self::DestinationRule(_) => "DestinationRule",
        }
    }

    /// The object's metadata.
    pub const fn meta(&self) -> &Meta {
        match self {
            Self::VirtualService(o) => &o.meta,
            Self::DestinationRule(o) => &o.meta,
        }
    }
}
