//! Settings of the whole mesh.

use std::sync::Arc;

use mesh_api::model;

use crate::{policy::PolicyDefaults, retry::RetryPolicy};

/// Mesh-wide settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshSettings {
    /// `cluster.local`
    pub cluster_domain: String,
    /// Trust domain of identities.
    pub trust_domain: String,
    /// Hosts that nobody knows are not reached (502).
    pub registry_only: bool,
    /// For rules that say nothing about retries.
    pub default_retry: RetryPolicy,
    /// For what DestinationRules leave open.
    pub defaults: PolicyDefaults,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            registry_only: false,
            default_retry: RetryPolicy::default(),
            defaults: PolicyDefaults::default(),
        }
    }
}

impl MeshSettings {
    pub(super) fn compile(m: &model::MeshConfig) -> Self {
        let default = MeshSettings::default();
        let text = |s: &str, d: String| if s.is_empty() { d } else { s.to_owned() };
        MeshSettings {
            cluster_domain: text(&m.cluster_domain, default.cluster_domain),
            trust_domain: text(&m.trust_domain, default.trust_domain),
            registry_only: m.outbound() == model::mesh_config::OutboundMode::RegistryOnly,
            default_retry: m.default_retry.as_ref().map(RetryPolicy::compile).unwrap_or_default(),
            defaults: PolicyDefaults::compile(m),
        }
    }
}

impl super::Work {
    pub(super) fn set_mesh(&mut self, new: MeshSettings) {
        if self.tables.mesh.defaults != new.defaults {
            // They are a part of every cluster.
            self.touched.extend(self.tables.services.iter().map(|(host, _)| host.clone()));
        }
        self.tables.mesh = Arc::new(new);
    }
}
