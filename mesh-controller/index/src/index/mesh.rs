//! Settings of the whole mesh: our own options, and over them Istio's MeshConfig where there is one.

use istio_compat::mesh_config;
use mesh_api::model::{self, mesh_config::OutboundMode};
use serde_json::Value;

use super::Index;
use crate::{
    finding::Finding,
    object::{Name, ObjectKey},
};

impl Index {
    /// Whether a ConfigMap is the one with Istio's settings.
    pub(super) fn is_mesh_config(&self, name: &Name) -> bool {
        *name.name == *mesh_config::CONFIG_MAP && *name.namespace == *self.options.root_namespace
    }

    /// Takes over what Istio's settings say; `None` when they are gone. What is wrong with them is kept as findings. Says
    /// whether anything changed.
    pub(super) fn put_mesh_config(&mut self, key: &ObjectKey, object: Option<&Value>) -> bool {
        let pointer = format!("/data/{}", mesh_config::KEY);
        let text = object.and_then(|o| o.pointer(&pointer)).and_then(Value::as_str);
        let read = text.map(mesh_config::read).unwrap_or_default();
        let errors = read.errors.into_iter().map(|f| Finding::error(key, f.path, f.message));
        let warnings = read.warnings.into_iter().map(|f| Finding::warning(key, f.path, f.message));
        let findings: Vec<_> = errors.chain(warnings).collect();
        if findings.is_empty() {
            self.findings.remove(key);
        } else {
            self.findings.insert(key.clone(), findings);
        }
        let mut changed = false;
        if self.mesh != read.settings.model {
            changed = true;
            self.mesh = read.settings.model;
            self.touched.mesh = true;
        }
        if self.context.exports != read.settings.exports {
            changed = true;
            self.context.exports = read.settings.exports;
            // Anybody may now be seen by others than before.
            let hosts: Vec<_> = self.external.hosts().cloned().collect();
            for host in hosts {
                self.settle_external(&host);
            }
            self.touch_all();
        }
        changed
    }

    pub(super) fn compile_mesh(&self) -> model::MeshConfig {
        let outbound = match self.mesh.outbound() {
            OutboundMode::OutboundUnspecified => self.options.outbound,
            said => said,
        };
        model::MeshConfig {
            cluster_domain: self.options.cluster_domain.clone(),
            trust_domain: self.options.trust_domain.clone(),
            outbound: outbound.into(),
            ..self.mesh.clone()
        }
    }
}
