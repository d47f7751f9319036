//! What the inbound path counts.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};

use mesh_core::Tables;
use mesh_net::copy::Observe;
use mesh_tunnel::Incoming;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::{
    check::{Admission, Denied},
    rules::Rules,
};
use crate::telemetry::{Call, Destination, Flags, Peer, Reporter, Security, TcpSeries, Telemetry};

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

/// Series that one worker keeps; a full cache starts again.
const CACHED: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    source: Option<usize>,
    destination: Option<usize>,
    host: Box<str>,
    flags: Flags,
}

/// One worker's cache of resolved series. The entries of a key stay alive with it, so an address names one workload.
pub(crate) struct SeriesCache {
    telemetry: Arc<Telemetry>,
    entries: RefCell<HashMap<Key, (Rc<TcpSeries>, Admission)>>,
}

impl SeriesCache {
    pub(crate) fn new(telemetry: Arc<Telemetry>) -> Self {
        Self { telemetry, entries: RefCell::default() }
    }

    /// Forgets which series belong to whom; streams that come find theirs again.
    pub(crate) fn forget(&self) {
        self.entries.borrow_mut().clear();
    }

    /// The counters of a stream. None only if the metrics library refuses the labels.
    pub(crate) fn get(
        &self,
        tables: &Tables,
        incoming: &Incoming,
        admission: &Admission,
        rules: &Rules,
    ) -> Option<Rc<TcpSeries>> {
        let flags = Flags::NONE;
        let host = incoming.open().host.as_str();
        let service = tables.service(host);
        let address = |w: &Arc<mesh_core::WorkloadEntry>| Arc::as_ptr(w) as usize;
        let key = Key {
            source: admission.source.as_ref().map(address),
            destination: admission.destination.as_ref().map(address),
            // A name that the tables do not know makes no series of its own.
            host: service.map_or("", |s| &s.host).into(),
            flags,
        };
        if let Some((series, _)) = self.entries.borrow().get(&key) {
            return Some(series.clone());
        }
        let (trust, cluster) = (&tables.mesh().trust_domain, self.telemetry.cluster());
        let peer = |w: &Option<Arc<mesh_core::WorkloadEntry>>| {
            w.as_ref().map_or_else(Peer::unknown, |w| Peer::of(w, trust, cluster))
        };
        let (source, destination) = (peer(&admission.source), peer(&admission.destination));
        let service = service.map_or_else(Destination::passthrough, |s| Destination::of(s));
        let call = Call {
            reporter: Reporter::Destination,
            source: &source,
            destination: &destination,
            service: &service,
            security: Security::MutualTls,
        };
        let rules = rules.metrics(admission.destination.as_deref());
        let series = Rc::new(self.telemetry.tcp_series_by(&call, flags, &rules).ok()?);
        let mut entries = self.entries.borrow_mut();
        if entries.len() >= CACHED {
            entries.clear();
        }
        entries.insert(key, (series.clone(), admission.clone()));
        Some(series)
    }
}

/// Adds to the series while bytes move, and remembers the sums for the access log.
#[derive(Default)]
pub(crate) struct Moved {
    pub(crate) series: Option<Rc<TcpSeries>>,
    pub(crate) received: Cell<u64>,
    pub(crate) sent: Cell<u64>,
}

impl Observe for Moved {
    fn a_to_b(&self, bytes: u64) {
        self.received.set(self.received.get() + bytes);
        if let Some(series) = &self.series {
            series.received.inc_by(bytes);
        }
    }

    fn b_to_a(&self, bytes: u64) {
        self.sent.set(self.sent.get() + bytes);
        if let Some(series) = &self.series {
            series.sent.inc_by(bytes);
        }
    }
}
