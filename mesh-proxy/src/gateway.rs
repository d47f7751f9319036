//! Ingress gateway: listeners that Gateway resources ask for, before the same HTTP and byte paths that the mesh uses.
//!
//! ```text
//! tables ─► mesh_core::gateway::listener: which ports, which servers ─► listen: bind and unbind by difference, in each worker
//!   connection ─► HTTP: Host ► rules        TLS: SNI ► server ─┬─► terminated: tls ► HTTP or bytes
//!                                                              └─► passed through: SNI ► rules ► bytes
//! ```

pub mod config;
mod listen;
mod serve;
mod tls;

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::{Tables, WorkloadEntry};

pub use config::GatewayConfig;
pub(crate) use listen::run;
pub(crate) use serve::Binding;
use tls::ServerConfigs;

/// What all workers of a gateway share.
#[derive(Debug)]
pub struct Gateway {
    /// Settings.
    pub config: GatewayConfig,
    /// The gateway as its own metrics name it.
    pub(crate) workload: Arc<WorkloadEntry>,
    pub(crate) tls: ServerConfigs,
}

impl Gateway {
    /// A gateway with these settings; `identity` is for `ISTIO_MUTUAL`.
    pub fn new(config: GatewayConfig, identity: Option<crate::outbound::tls::Identity>) -> Self {
        let name = config.name();
        let workload = WorkloadEntry {
            address: std::net::Ipv4Addr::UNSPECIFIED.into(),
            node: "".into(),
            namespace: config.namespace.as_str().into(),
            name: name.as_str().into(),
            owner: name.as_str().into(),
            service_account: "".into(),
            labels: config.labels.clone(),
            host_network: true,
        };
        Self { config, workload: Arc::new(workload), tls: ServerConfigs::new(identity) }
    }

    /// Labels of the gateway.
    pub(crate) fn labels(&self) -> &BTreeMap<String, String> {
        &self.config.labels
    }

    /// Whether two snapshots give the gateway the same listeners.
    fn same(old: &Tables, new: &Tables) -> bool {
        old.same_gateways(new)
    }
}
