//! Configuration from the controller: one delta stream over mTLS for all types.
//!
//! A change is checked and applied (requests see it at once), written to the store, then acknowledged. A resource
//! that cannot be used is refused with its reason, alone: the others of the same answer are in force, and of the
//! refused one the last good version stays. When the stream ends, nothing happens to what is known; the next stream
//! says which versions are here, and gets only what differs.

mod session;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_api::{Resource, ResourceType};
use mesh_core::Change;
use mesh_net::tls::{Expect, NodeTls};
use node_rt::ReadyGuard;
use tokio::sync::watch;

use crate::{
    controller::{self, ALPN},
    identity::keeper::{Backoff, Doubts},
    shared::Shared,
    store::{Loaded, Store, Stored},
    tunnel_glue::Reach,
};
use session::Session;

/// A stream that lived this long was a good one: the next attempt comes soon.
const STABLE: Duration = Duration::from_secs(10);

/// What a controller says that stops.
const STOPPING: &str = "controller is stopping";

/// Longest pause before the next controller is asked after that: nodes do not all come at once.
const HANDOVER: Duration = Duration::from_secs(1);

/// Stored resources that are decoded at a time.
const RESTORE_PART: usize = 256;

/// Versions of the resources that are in force, by type and name.
pub(crate) type Versions = BTreeMap<ResourceType, BTreeMap<String, String>>;

/// What discovery says about itself.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) connected: prometheus::IntGauge,
    pub(crate) last_update: prometheus::IntGauge,
    pub(crate) responses: prometheus::IntCounter,
    pub(crate) failures: prometheus::IntCounter,
    pub(crate) handovers: prometheus::IntCounter,
    pub(crate) refused: prometheus::IntCounterVec,
    pub(crate) resources: prometheus::IntGaugeVec,
    pub(crate) clock_ahead: prometheus::IntGauge,
}

impl Metrics {
    fn new(registry: &prometheus::Registry) -> Result<Self, prometheus::Error> {
        use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};
        let m = Self {
            connected: IntGauge::new(
                "selvage_discovery_connected",
                "1 while the controller's stream is open",
            )?,
            last_update: IntGauge::new(
                "selvage_discovery_last_update_seconds",
                "Last answer of the controller, seconds since 1970",
            )?,
            responses: IntCounter::new("selvage_discovery_responses_total", "Answers of the controller")?,
            failures: IntCounter::new(
                "selvage_discovery_failures_total",
                "Streams that failed or did not open",
            )?,
            handovers: IntCounter::new(
                "selvage_discovery_handovers_total",
                "Streams that ended because their controller stopped and sent this node to another one",
            )?,
            refused: IntCounterVec::new(
                Opts::new("selvage_discovery_refused_total", "Resources that were refused"),
                &["type"],
            )?,
            clock_ahead: IntGauge::new(
                "selvage_clock_ahead_seconds",
                "How far this node's clock is ahead of the controller's, as of the last report",
            )?,
            resources: IntGaugeVec::new(
                Opts::new("selvage_discovery_resources", "Resources in force"),
                &["type"],
            )?,
        };
        registry.register(Box::new(m.clock_ahead.clone()))?;
        registry.register(Box::new(m.connected.clone()))?;
        registry.register(Box::new(m.handovers.clone()))?;
        registry.register(Box::new(m.last_update.clone()))?;
        registry.register(Box::new(m.responses.clone()))?;
        registry.register(Box::new(m.failures.clone()))?;
        registry.register(Box::new(m.refused.clone()))?;
        registry.register(Box::new(m.resources.clone()))?;
        Ok(m)
    }
}

/// Follows the controller.
pub struct Discovery {
    shared: Arc<Shared>,
    store: Store,
    versions: Versions,
    metrics: Metrics,
    /// A whole snapshot is here.
    complete: bool,
    ready: Option<ReadyGuard>,
    doubts: Doubts,
}

impl std::fmt::Debug for Discovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Discovery").field("complete", &self.complete).finish_non_exhaustive()
    }
}

impl Discovery {
    /// Puts the stored snapshot in force. `ready` is released when a whole snapshot is here, from disk or controller.
    pub fn new(
        shared: Arc<Shared>,
        store: Store,
        loaded: Loaded,
        ready: ReadyGuard,
    ) -> Result<Self, prometheus::Error> {
        let metrics = Metrics::new(&shared.metrics)?;
        let mut this = Self {
            shared,
            store,
            versions: Versions::new(),
            metrics,
            complete: false,
            ready: Some(ready),
            doubts: Doubts::default(),
        };
        this.restore(loaded);
        Ok(this)
    }

    fn restore(&mut self, loaded: Loaded) {
        let count = loaded.resources.len();
        let mut stored = loaded.resources.into_iter().peekable();
        // A part at a time: what a part was decoded to is dropped before the next one is.
        while stored.peek().is_some() {
            let part = stored.by_ref().take(RESTORE_PART);
            let changes = part.filter_map(|s| self.restored(s)).collect();
            for r in self.shared.apply(changes).rejected {
                self.not_restored(r.kind, &r.name, &r.reason);
            }
        }
        self.count();
        if count > 0 {
            tracing::info!(resources = count, complete = loaded.complete, "snapshot loaded");
            mesh_net::memory::release_unused();
        }
        if loaded.complete {
            self.on_complete();
        }
    }

    fn restored(&mut self, stored: Stored) -> Option<Change> {
        let Stored { kind, name, version, value } = stored;
        match Resource::decode(kind, &name, &value) {
            Ok(resource) => {
                self.versions.entry(kind).or_default().insert(name, version);
                Some(Change::Set(resource))
            }
            Err(error) => {
                self.not_restored(kind, &name, &error.to_string());
                None
            }
        }
    }

    /// Written by another version of this program, perhaps: the controller sends it again.
    fn not_restored(&mut self, kind: ResourceType, name: &str, reason: &str) {
        tracing::warn!(kind = kind.as_str(), name, reason, "stored resource is refused");
        if let Some(versions) = self.versions.get_mut(&kind) {
            versions.remove(name);
        }
    }

    fn on_complete(&mut self) {
        self.complete = true;
        if let Some(ready) = self.ready.take() {
            ready.ready();
        }
    }

    fn count(&self) {
        for kind in ResourceType::ALL {
            let n = self.versions.get(&kind).map_or(0, BTreeMap::len);
            self.metrics
                .resources
                .with_label_values(&[kind.as_str()])
                .set(i64::try_from(n).unwrap_or(i64::MAX));
        }
    }

    /// Tells somebody when a controller does not take this node's certificate.
    pub(crate) fn with_doubts(mut self, doubts: Doubts) -> Self {
        self.doubts = doubts;
        self
    }

    /// What the end of a stream means for the certificate; `true` when the controller just makes way for another one.
    fn judge(&self, error: &(dyn std::error::Error + 'static)) -> bool {
        use tonic::Code;
        let status = error.downcast_ref::<tonic::Status>();
        match status.map(tonic::Status::code) {
            Some(Code::PermissionDenied | Code::Unauthenticated) => self.doubts.refused(),
            // It answered: whatever is wrong is not the certificate.
            Some(Code::FailedPrecondition | Code::ResourceExhausted | Code::Aborted) => {}
            Some(Code::Unavailable) if status.is_some_and(|s| s.message().starts_with(STOPPING)) => {
                return true;
            }
            _ if controller::is_of_unknown_ca(error) => self.doubts.refused(),
            _ => self.doubts.unreachable(),
        }
        false
    }

    /// Runs for as long as the process does. `addresses` are those at which other nodes reach this one.
    pub async fn run(
        mut self,
        controllers: Vec<String>,
        mut tls: watch::Receiver<Option<NodeTls>>,
        mut addresses: watch::Receiver<Reach>,
    ) {
        if controllers.is_empty() {
            tracing::warn!("no controller is configured: serving from the snapshot only");
            return std::future::pending().await;
        }
        let mut backoff = Backoff::new();
        for address in controllers.iter().cycle() {
            let Ok(identity) = tls.wait_for(Option::is_some).await.map(|t| t.clone()) else { return };
            let Some(identity) = identity else { continue };
            let started = tokio::time::Instant::now();
            let result = self.follow(address, &identity, &mut addresses).await;
            self.metrics.connected.set(0);
            if result.as_ref().is_err_and(|error| self.judge(&**error)) {
                self.metrics.handovers.inc();
                let pause = HANDOVER.mul_f64(rand::random_range(0.1..1.0));
                tracing::info!(controller = address, next_in = ?pause, "the controller stops: on to another one");
                tokio::time::sleep(pause).await;
                continue;
            }
            self.metrics.failures.inc();
            if started.elapsed() > STABLE {
                backoff.reset();
            }
            let pause = backoff.next();
            if let Err(error) = result {
                tracing::warn!(error = %crate::chain(&*error), controller = address, retry_in = ?pause, "no configuration stream");
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn follow(
        &mut self,
        address: &str,
        identity: &NodeTls,
        addresses: &mut watch::Receiver<Reach>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let tls = identity.client_config(Expect::Controller, ALPN)?;
        let channel = controller::connect(address, tls).await?;
        let mut session = Session::open(channel, &self.shared.node, &self.versions).await?;
        self.metrics.connected.set(1);
        tracing::info!(controller = address, "configuration stream is open");
        session.run(self, addresses).await
    }
}
