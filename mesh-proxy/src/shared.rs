//! What every part of the proxy reads: the current tables, and who this node is.

use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh_core::Tables;

use crate::config::Config;

/// Read by all, built once by [`crate::app`]. Only discovery writes the tables.
#[derive(Debug)]
pub struct Shared {
    /// The current snapshot. Load it once for a request, and decide everything about that request from it.
    pub tables: ArcSwap<Tables>,
    /// This node's name.
    pub node: Arc<str>,
    /// The configuration that the process started with.
    pub config: Arc<Config>,
    /// Where metrics are registered.
    pub metrics: prometheus::Registry,
}

impl Shared {
    /// A context with empty tables.
    pub fn new(config: Arc<Config>, metrics: prometheus::Registry) -> Arc<Self> {
        Arc::new(Self {
            tables: ArcSwap::from_pointee(Tables::new()),
            node: config.node.as_str().into(),
            config,
            metrics,
        })
    }

    /// The domain of the cluster, as the current snapshot says.
    pub fn cluster_domain(&self) -> String {
        self.tables.load().mesh().cluster_domain.clone()
    }
}
