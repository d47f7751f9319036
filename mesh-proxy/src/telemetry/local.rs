//! A worker's cache of resolved series: a request looks up a few pointers and formats no label.
//!
//! Keys are the addresses of the table entries involved. Each cached entry holds those entries, so an address is
//! not reused while it is a key. A cache that is full is emptied: what is still in use comes back at its next call.
//!
//! A call between two pods of one node is seen by that node alone: it is counted on both sides at once.

mod view;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    convert::Infallible,
    ops::Deref,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use mesh_core::{Cluster, WorkloadEntry};
use prometheus::local::{LocalHistogram, LocalIntCounter};

use super::{
    access_log::{AccessLog, Entry},
    flags::Flags,
    istio::{REQUEST_METRICS, RequestProtocol, RequestSeries, TcpSeries, Telemetry},
    rules::{MetricRules, RuleTable, TraceRules},
};
use view::{Labels, View};

/// Most series that one worker keeps at hand.
const CAPACITY: usize = 4096;

/// An entry of the tables, held by one worker. Its copies count on this thread only: the counter inside the `Arc` is
/// shared by all threads, and touching it for each request costs more than what a request looks up.
#[derive(Debug)]
pub(crate) struct Held<T>(Arc<T>);

impl<T> Held<T> {
    pub(crate) fn new(entry: &Arc<T>) -> Rc<Self> {
        Rc::new(Self(Arc::clone(entry)))
    }

    /// The entry.
    pub(crate) fn get(&self) -> &T {
        &self.0
    }

    /// Whether this holds that very entry.
    pub(crate) fn is(&self, entry: &Arc<T>) -> bool {
        Arc::ptr_eq(&self.0, entry)
    }
}

impl<T> Deref for Held<T> {
    type Target = Arc<T>;
    fn deref(&self) -> &Arc<T> {
        &self.0
    }
}

/// The two sides of a call as table entries.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parties {
    /// Who called.
    pub(crate) source: Option<Rc<Held<WorkloadEntry>>>,
    /// The destination; none = passthrough.
    pub(crate) cluster: Option<Rc<Held<Cluster>>>,
    /// The endpoint that was chosen.
    pub(crate) destination: Option<Rc<Held<WorkloadEntry>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct PartyKey(usize, usize, usize);

impl Parties {
    fn key(&self) -> PartyKey {
        fn address<T>(held: Option<&Rc<Held<T>>>) -> usize {
            held.map_or(0, |h| Arc::as_ptr(h) as usize)
        }
        PartyKey(
            address(self.source.as_ref()),
            address(self.cluster.as_ref()),
            address(self.destination.as_ref()),
        )
    }
}

/// How a request ended, as far as labels go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RequestEnd {
    pub(crate) protocol: RequestProtocol,
    pub(crate) flags: Flags,
    pub(crate) code: u16,
    pub(crate) grpc_status: Option<u16>,
}

struct Cached<T> {
    series: Rc<T>,
    /// Keeps the key's addresses taken.
    _parties: Parties,
}

/// What holds for the traces of one workload.
struct Traced {
    rules: Rc<TraceRules>,
    /// Keeps the key's address taken.
    _workload: Option<Rc<Held<WorkloadEntry>>>,
}

/// What a worker counts of one kind of request, until it is added to what all workers count.
pub(crate) struct LocalRequests {
    own: LocalSet,
    /// The other side's, when that is this node too.
    beside: Option<LocalSet>,
    dirty: Cell<bool>,
}

struct LocalSet {
    total: LocalIntCounter,
    duration_ms: LocalHistogram,
    request_bytes: LocalHistogram,
    response_bytes: LocalHistogram,
}

impl LocalSet {
    fn new(shared: &RequestSeries) -> Self {
        Self {
            total: shared.total.local(),
            duration_ms: shared.duration_ms.local(),
            request_bytes: shared.request_bytes.local(),
            response_bytes: shared.response_bytes.local(),
        }
    }

    fn count(&self, measured: Measured) {
        self.total.inc();
        self.duration_ms.observe(measured.elapsed.as_secs_f64() * 1000.0);
        #[allow(clippy::cast_precision_loss, reason = "a histogram bucket does not need the last bit")]
        {
            self.request_bytes.observe(measured.received as f64);
            self.response_bytes.observe(measured.sent as f64);
        }
    }

    fn flush(&self) {
        self.total.flush();
        self.duration_ms.flush();
        self.request_bytes.flush();
        self.response_bytes.flush();
    }
}

impl LocalRequests {
    fn flush(&self) {
        self.dirty.set(false);
        self.own.flush();
        if let Some(beside) = &self.beside {
            beside.flush();
        }
    }
}

/// The counters of a connection: of this side, and of the other when that is this node too.
#[derive(Debug)]
pub(crate) struct Connections {
    own: TcpSeries,
    beside: Option<TcpSeries>,
}

impl Connections {
    fn each(&self, count: impl Fn(&TcpSeries)) {
        count(&self.own);
        if let Some(beside) = &self.beside {
            count(beside);
        }
    }

    pub(crate) fn opened(&self) {
        self.each(|s| s.opened.inc());
    }

    pub(crate) fn closed(&self) {
        self.each(|s| s.closed.inc());
    }

    /// Bytes of the caller.
    pub(crate) fn received(&self, bytes: u64) {
        self.each(|s| s.received.inc_by(bytes));
    }

    /// Bytes to the caller.
    pub(crate) fn sent(&self, bytes: u64) {
        self.each(|s| s.sent.inc_by(bytes));
    }
}

/// Sizes and time of a request that ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) elapsed: Duration,
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

/// One worker's view of the metrics. What it counts becomes visible when it is flushed.
pub(crate) struct Local {
    shared: Arc<Telemetry>,
    view: View,
    requests: RefCell<HashMap<(PartyKey, RequestEnd), Cached<LocalRequests>>>,
    tcp: RefCell<HashMap<(PartyKey, Flags), Cached<Connections>>>,
    dirty: RefCell<Vec<Rc<LocalRequests>>>,
    /// Telemetry resources; none = there are none.
    rules: RefCell<Option<RuleTable>>,
    /// What they say about the traces of a workload, by its address.
    traces: RefCell<HashMap<usize, Traced>>,
    /// Something waits to be flushed.
    pub(crate) changed: tokio::sync::Notify,
}

/// How long what a worker counts may stay unseen.
const FLUSH: Duration = Duration::from_millis(250);

impl Local {
    /// The callers' side of calls from a node.
    pub(crate) fn of_callers(shared: Arc<Telemetry>, node: Arc<str>) -> Self {
        Self::new(shared, View::Caller(node))
    }

    /// The owner's side of calls to a node.
    pub(crate) fn of_owner(shared: Arc<Telemetry>) -> Self {
        Self::new(shared, View::Owner)
    }

    fn new(shared: Arc<Telemetry>, view: View) -> Self {
        Self {
            shared,
            view,
            requests: RefCell::default(),
            tcp: RefCell::default(),
            dirty: RefCell::default(),
            rules: RefCell::default(),
            traces: RefCell::default(),
            changed: tokio::sync::Notify::new(),
        }
    }

    /// Counts a request that ended like this. Not counted only if the metrics library refuses the labels.
    pub(crate) fn request(
        &self,
        parties: &Parties,
        end: RequestEnd,
        measured: Measured,
        trust_domain: impl FnOnce() -> Arc<str>,
    ) {
        let Some(series) = self.requests_of(parties, end, trust_domain) else { return };
        series.own.count(measured);
        if let Some(beside) = &series.beside {
            beside.count(measured);
        }
        if !series.dirty.replace(true) {
            let mut dirty = self.dirty.borrow_mut();
            dirty.push(series);
            if dirty.len() == 1 {
                self.changed.notify_one();
            }
        }
    }

    /// Adds what was counted here to what everybody sees.
    pub(crate) fn flush(&self) {
        for series in self.dirty.borrow_mut().drain(..) {
            series.flush();
        }
    }

    /// Makes visible what was counted, soon after it was. Sleeps while nothing happens.
    pub(crate) async fn keep_flushed(&self) -> Infallible {
        loop {
            self.changed.notified().await;
            tokio::time::sleep(FLUSH).await;
            self.flush();
        }
    }

    /// Forgets which series belong to which entries; calls that come find theirs again.
    pub(crate) fn forget(&self) {
        self.flush();
        self.requests.borrow_mut().clear();
        self.tcp.borrow_mut().clear();
        self.traces.borrow_mut().clear();
    }

    /// Follows other Telemetry resources.
    pub(crate) fn rule(&self, rules: Option<RuleTable>) {
        *self.rules.borrow_mut() = rules;
        self.forget();
    }

    /// Whether Telemetry resources ask for this log, which may be off by default.
    pub(crate) fn asks_for(&self, log: &AccessLog) -> bool {
        self.rules.borrow().as_ref().is_some_and(|rules| rules.asks_for_log(log.provider()))
    }

    /// Whether a caller's call is logged, as Telemetry resources say.
    pub(crate) fn logs(&self, source: Option<&WorkloadEntry>, log: &AccessLog, entry: &Entry) -> bool {
        match &*self.rules.borrow() {
            None => log.by_default(),
            Some(rules) => rules.logs(source, self.view.side(), (log, entry)),
        }
    }

    /// What holds for the traces of a caller, for the collector of that name.
    pub(crate) fn traces(&self, source: Option<&Rc<Held<WorkloadEntry>>>, provider: &str) -> Rc<TraceRules> {
        let key = source.map_or(0, |s| Arc::as_ptr(s) as usize);
        let mut cache = self.traces.borrow_mut();
        if let Some(hit) = cache.get(&key) {
            return Rc::clone(&hit.rules);
        }
        let rules = match &*self.rules.borrow() {
            None => TraceRules::default(),
            Some(rules) => rules.traces(source.map(|s| s.get()), self.view.side(), provider),
        };
        let rules = Rc::new(rules);
        if cache.len() >= CAPACITY {
            cache.clear();
        }
        cache.insert(key, Traced { rules: Rc::clone(&rules), _workload: source.cloned() });
        rules
    }

    /// What holds for the traces of a pod of this node that one of its neighbours calls, for the collector of that name.
    pub(crate) fn traces_beside(&self, destination: &WorkloadEntry, provider: &str) -> TraceRules {
        let rules = self.rules.borrow();
        let of = |rules: &RuleTable| rules.traces(Some(destination), View::Beside.side(), provider);
        rules.as_ref().map(of).unwrap_or_default()
    }

    fn metric_rules(&self, parties: &Parties) -> MetricRules {
        self.rules_of(&self.view, parties)
    }

    fn rules_of(&self, view: &View, parties: &Parties) -> MetricRules {
        let rules = self.rules.borrow();
        rules.as_ref().map(|rules| rules.metrics(view.workload(parties), view.side())).unwrap_or_default()
    }

    /// Whether requests of these are counted at all.
    pub(crate) fn counts_requests(&self, parties: &Parties) -> bool {
        let rules = self.metric_rules(parties);
        REQUEST_METRICS.iter().any(|metric| !rules.disables(metric))
    }

    fn requests_of(
        &self,
        parties: &Parties,
        end: RequestEnd,
        trust_domain: impl FnOnce() -> Arc<str>,
    ) -> Option<Rc<LocalRequests>> {
        let key = (parties.key(), end);
        let mut cache = self.requests.borrow_mut();
        if let Some(hit) = cache.get(&key) {
            return Some(Rc::clone(&hit.series));
        }
        let labels = Labels::of(parties, &trust_domain(), self.shared.cluster());
        let own = self.shared.request_series_by(&labels.call(&self.view), end, &self.metric_rules(parties));
        let beside = self.view.beside(parties, end.flags).and_then(|(view, flags)| {
            let (rules, end) = (self.rules_of(&view, parties), RequestEnd { flags, ..end });
            self.shared.request_series_by(&labels.call(&view), end, &rules).ok()
        });
        let series = Rc::new(LocalRequests {
            own: LocalSet::new(&own.ok()?),
            beside: beside.as_ref().map(LocalSet::new),
            dirty: Cell::new(false),
        });
        if cache.len() >= CAPACITY {
            cache.clear();
        }
        cache.insert(key, Cached { series: Rc::clone(&series), _parties: parties.clone() });
        Some(series)
    }

    /// The counters for a connection.
    pub(crate) fn tcp(
        &self,
        parties: &Parties,
        flags: Flags,
        trust_domain: impl FnOnce() -> Arc<str>,
    ) -> Option<Rc<Connections>> {
        let key = (parties.key(), flags);
        let mut cache = self.tcp.borrow_mut();
        if let Some(hit) = cache.get(&key) {
            return Some(Rc::clone(&hit.series));
        }
        let labels = Labels::of(parties, &trust_domain(), self.shared.cluster());
        let own = self.shared.tcp_series_by(&labels.call(&self.view), flags, &self.metric_rules(parties));
        let beside = self.view.beside(parties, flags).and_then(|(view, flags)| {
            let rules = self.rules_of(&view, parties);
            self.shared.tcp_series_by(&labels.call(&view), flags, &rules).ok()
        });
        let series = Rc::new(Connections { own: own.ok()?, beside });
        if cache.len() >= CAPACITY {
            cache.clear();
        }
        cache.insert(key, Cached { series: Rc::clone(&series), _parties: parties.clone() });
        Some(series)
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.flush();
    }
}
