//! Settings of the gateway mode.

use std::collections::BTreeMap;

use mesh_api::model;
use serde::{Deserialize, Serialize};

/// Settings of the gateway mode; it is on when the block is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct GatewayConfig {
    /// What selectors of Gateways are compared with, such as `istio: ingressgateway`.
    pub labels: BTreeMap<String, String>,
    /// Namespace of the gateway: `exportTo` and `sourceNamespace` of rules look at it (default `istio-system`).
    pub namespace: String,
    /// Ports to listen on instead of those that Gateways name, such as `80: 8080`.
    pub ports: BTreeMap<u16, u16>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self { labels: BTreeMap::new(), namespace: "istio-system".to_owned(), ports: BTreeMap::new() }
    }
}

impl GatewayConfig {
    /// Whether a Gateway is this gateway's.
    pub(crate) fn selected(&self, gateway: &model::Gateway) -> bool {
        gateway.selector.iter().all(|(k, v)| self.labels.get(k) == Some(v))
    }

    /// What metrics call the gateway.
    pub(crate) fn name(&self) -> String {
        let named = ["app", "istio"].iter().find_map(|key| self.labels.get(*key));
        named.cloned().unwrap_or_else(|| "gateway".to_owned())
    }

    /// What is wrong with the settings: field and reason.
    pub fn validate(&self) -> Vec<(&'static str, String)> {
        let mut wrong = Vec::new();
        if self.labels.is_empty() {
            wrong.push(("labels", "no labels: only Gateways without selector would be served".to_owned()));
        }
        if self.namespace.is_empty() {
            wrong.push(("namespace", "is empty".to_owned()));
        }
        if self.ports.iter().any(|(from, to)| *from == 0 || *to == 0) {
            wrong.push(("ports", "0 is not a port".to_owned()));
        }
        wrong
    }
}
