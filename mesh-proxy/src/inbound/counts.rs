//! What the inbound path counts.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_core::Tables;
use mesh_net::copy::Observe;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::check::{Admission, Denied};
use crate::telemetry::{
    Telemetry,
    local::{Connections, Held, Local, Parties},
    rules::RuleTable,
};

/// Counters of the process.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    pub(crate) open: IntGauge,
    pub(crate) accepted: IntCounter,
    refused: IntCounterVec,
}

impl Counts {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let open = IntGauge::new(
            "selvage_inbound_connections",
            "Connections to pods that came through the tunnel.",
        )?;
        let accepted = IntCounter::new(
            "selvage_inbound_accepted_total",
            "Streams of other nodes that were connected to a pod.",
        )?;
        let refused = IntCounterVec::new(
            Opts::new(
                "selvage_inbound_refused_total",
                "Streams of other nodes that this node refused, by reason.",
            ),
            &["reason"],
        )?;
        registry.register(Box::new(open.clone()))?;
        registry.register(Box::new(accepted.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        Ok(Self { open, accepted, refused })
    }

    pub(crate) fn refused(&self, denied: Denied) {
        self.refused.with_label_values(&[denied.as_str()]).inc();
    }
}

/// How long entries of tables that are no longer in force may be kept by the series that were resolved with them.
const OLD: Duration = Duration::from_secs(10);

/// One worker's counters of the Istio series, as the newest tables want them.
pub(crate) struct Followed {
    pub(crate) local: Rc<Local>,
    tables: RefCell<Option<Arc<Tables>>>,
    forgot: Cell<Instant>,
}

impl Followed {
    pub(crate) fn new(telemetry: Arc<Telemetry>) -> Self {
        let local = Rc::new(Local::of_owner(telemetry));
        Self { local, tables: RefCell::default(), forgot: Cell::new(Instant::now()) }
    }

    /// Takes over what newer tables say about metrics, log and traces.
    pub(crate) fn follow(&self, tables: &Arc<Tables>) {
        let mut mine = self.tables.borrow_mut();
        if mine.as_ref().is_some_and(|m| Arc::ptr_eq(m, tables)) {
            return;
        }
        if !mine.as_ref().is_some_and(|m| m.same_telemetry(tables)) {
            self.local.rule(RuleTable::of(tables));
        } else if self.forgot.get().elapsed() >= OLD {
            self.local.forget();
            self.forgot.set(Instant::now());
        }
        *mine = Some(Arc::clone(tables));
    }
}

/// Who is on both sides of a stream. A service that the tables do not know makes no series of its own.
pub(crate) fn parties(tables: &Tables, host: &str, admission: &Admission) -> Parties {
    // All clusters of a service have its names.
    let cluster = tables.service(host).and_then(|service| service.clusters().next());
    Parties {
        source: admission.source.as_ref().map(Held::new),
        cluster: cluster.map(Held::new),
        destination: admission.destination.as_ref().map(Held::new),
    }
}

/// Adds to the series while bytes move, and remembers the sums for the access log.
#[derive(Default)]
pub(crate) struct Moved {
    pub(crate) series: Option<Rc<Connections>>,
    pub(crate) received: Cell<u64>,
    pub(crate) sent: Cell<u64>,
}

impl Observe for Moved {
    fn a_to_b(&self, bytes: u64) {
        self.received.set(self.received.get() + bytes);
        if let Some(series) = &self.series {
            series.received(bytes);
        }
    }

    fn b_to_a(&self, bytes: u64) {
        self.sent.set(self.sent.get() + bytes);
        if let Some(series) = &self.series {
            series.sent(bytes);
        }
    }
}
