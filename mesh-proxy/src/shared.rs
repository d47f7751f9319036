//! What every part of the proxy reads: the current tables, and who this node is.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use mesh_core::{Applied, Change, Tables, balance::EndpointId};
use tokio::sync::watch;

use crate::{config::Config, outbound::LimitTable};

/// Read by all, built once by [`crate::app`]. Only discovery changes the tables.
#[derive(Debug)]
pub struct Shared {
    /// The current snapshot. Load it once for a request, and decide everything about that request from it.
    pub tables: Arc<ArcSwap<Tables>>,
    /// This node's name.
    pub node: Arc<str>,
    /// The configuration that the process started with.
    pub config: Arc<Config>,
    /// Where metrics are registered.
    pub metrics: prometheus::Registry,
    /// The metrics of traffic, which are too many to be gathered; there once the data side has started.
    pub traffic: OnceLock<Arc<crate::telemetry::Telemetry>>,
    updates: watch::Sender<Updates>,
    /// [`Updates::vips`] that the capture rules follow; none = they follow nothing.
    captured: watch::Sender<Option<u64>>,
    /// What workers know of the health of endpoints.
    health: OnceLock<Arc<LimitTable>>,
    /// Held while a new snapshot is made: changes never get lost between two writers.
    writer: Mutex<()>,
}

/// How often parts of the snapshot have changed. Compare with what was seen before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Updates {
    /// Snapshots.
    pub snapshots: u64,
    /// Sets of captured addresses.
    pub vips: u64,
    /// Sets of nodes.
    pub nodes: u64,
    /// Sets of workloads.
    pub workloads: u64,
}

impl Shared {
    /// A context with empty tables.
    pub fn new(config: Arc<Config>, metrics: prometheus::Registry) -> Arc<Self> {
        Arc::new(Self {
            tables: Arc::new(ArcSwap::from_pointee(Tables::of_node(&config.node, config.dns.pod_range))),
            node: config.node.as_str().into(),
            config,
            metrics,
            traffic: OnceLock::new(),
            updates: watch::Sender::new(Updates::default()),
            captured: watch::Sender::new(None),
            health: OnceLock::new(),
            writer: Mutex::new(()),
        })
    }

    /// The domain of the cluster, as the current snapshot says.
    pub fn cluster_domain(&self) -> String {
        self.tables.load().mesh().cluster_domain.clone()
    }

    /// Waits for changes: `changed().await`, then `borrow_and_update()`. Changes that come in a row are seen as one.
    pub fn updates(&self) -> watch::Receiver<Updates> {
        self.updates.subscribe()
    }

    /// Says who knows the health of endpoints, once.
    pub(crate) fn know_health(&self, health: Arc<LimitTable>) {
        self.health.set(health).ok();
    }

    /// Endpoints of a cluster that are avoided or ejected now, and for how long.
    pub(crate) fn unwell(&self, cluster: u64) -> HashMap<EndpointId, Duration> {
        self.health.get().map(|h| h.unwell(cluster, Instant::now())).unwrap_or_default()
    }

    /// How often the set of captured addresses has changed.
    pub(crate) fn vips(&self) -> u64 {
        self.updates.borrow().vips
    }

    /// Says which set of addresses the capture rules hold now; none = nobody needs to wait for them.
    pub(crate) fn set_captured(&self, vips: Option<u64>) {
        self.captured.send_replace(vips);
    }

    /// Waits until the addresses of the current snapshot are captured, at most for `limit`.
    ///
    /// A connection whose first packet passes before its address is captured never gets there: the kernel decides on a
    /// translation once for a connection, and the client's repeated packets belong to the same one.
    pub(crate) async fn captured(&self, limit: Duration) {
        let wanted = self.vips();
        let behind = |captured: &Option<u64>| captured.is_some_and(|c| c < wanted);
        if !behind(&self.captured.borrow()) {
            return;
        }
        let mut captured = self.captured.subscribe();
        let waited = tokio::time::timeout(limit, captured.wait_for(|c| !behind(c))).await;
        if waited.is_err() {
            tracing::debug!("an address is given out before it is captured");
        }
    }

    /// Makes changes; requests see the old snapshot or the new one, never half.
    pub fn apply(&self, changes: Vec<Change>) -> Applied {
        let _writing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let (tables, applied) = self.tables.load_full().apply(changes);
        self.tables.store(Arc::new(tables));
        self.updates.send_modify(|u| {
            u.snapshots += 1;
            u.vips += u64::from(applied.vips_changed);
            u.nodes += u64::from(applied.nodes_changed);
            u.workloads += u64::from(applied.workloads_changed);
        });
        applied
    }
}

#[cfg(test)]
mod tests;
