//! Settings of the whole mesh.

use mesh_api::model;

use crate::retry::RetryPolicy;

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
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            registry_only: false,
            default_retry: RetryPolicy::default(),
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
        }
    }
}
