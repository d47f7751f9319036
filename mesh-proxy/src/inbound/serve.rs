//! The path of one stream from another node: check, connect, answer, copy, count.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use mesh_api::model::{TunnelOpen, tunnel_open::Kind};
use mesh_core::{Tables, WorkloadEntry, scope::InboundLimits};
use mesh_net::{
    connect::{ConnectOptions, connect},
    copy::{CopyError, CopyOptions, Side, copy_bidirectional},
};
use mesh_tunnel::{Acceptor, Incoming};
use node_rt::{Drain, Stage};
use tokio::net::TcpStream;

use super::{
    check::{Admission, Denied, Owner, check},
    counts::{Counts, Followed, Moved, parties},
    limits::{self, Places},
};
use crate::{
    telemetry::{
        AccessLog, Flags, Telemetry, Tracer,
        access_log::Entry,
        local::{Held, Parties},
        tap::{About, Counts as Counting, Tapped, Traces},
        trace::Reporter,
    },
    udp::{Udp, owner},
};

/// Bounds and waits of the inbound path.
#[derive(Debug, Clone)]
pub struct InboundConfig {
    /// Time that a pod gets to accept.
    pub connect_timeout: Duration,
    /// Time that the tables get to learn of a pod that has just started, before its first stream is refused.
    pub grace: Duration,
    /// Streams of one peer that one worker serves at a time.
    pub per_peer: usize,
    /// A stream on which nothing moves is closed after this; none = never.
    pub idle: Option<Duration>,
    /// Mark of our own sockets, so that capture leaves them alone.
    pub mark: Option<u32>,
    /// Ports on which this proxy listens.
    pub own_ports: Vec<u16>,
    /// Requests are counted: HTTP that comes in is read as it goes by.
    pub requests: bool,
}

impl Default for InboundConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            grace: Duration::from_millis(500),
            per_peer: 8192,
            idle: Some(Duration::from_secs(3600)),
            mark: None,
            own_ports: vec![15000, 15001, 15006, 15008, 15020, 15021, 15080],
            requests: true,
        }
    }
}

/// What all workers of the inbound path share.
pub struct Inbound {
    config: InboundConfig,
    node: Arc<str>,
    tables: Arc<ArcSwap<Tables>>,
    telemetry: Arc<Telemetry>,
    access_log: AccessLog,
    counts: Counts,
    places: Places,
    /// Where a pod's address is found when that is not the address itself: pods of a test that live on loopback.
    pub translate: Option<Translate>,
    /// Datagrams; none = refused.
    pub udp: Option<Arc<Udp>>,
    /// Traces; none = there is no collector.
    pub tracer: Option<Arc<Tracer>>,
}

/// Says where to connect for an endpoint.
pub type Translate = Arc<dyn Fn(SocketAddr) -> SocketAddr + Send + Sync>;

/// One worker's part.
struct Worker {
    shared: Arc<Inbound>,
    connect: ConnectOptions,
    telemetry: Followed,
    peers: RefCell<HashMap<Arc<str>, usize>>,
    drain: Drain,
}

/// How often a refusal that newer tables may lift is looked at again.
const GRACE_STEP: Duration = Duration::from_millis(25);

impl Inbound {
    /// Registers the counters.
    pub fn new(
        config: InboundConfig,
        node: Arc<str>,
        tables: Arc<ArcSwap<Tables>>,
        telemetry: Arc<Telemetry>,
        access_log: AccessLog,
        registry: &prometheus::Registry,
    ) -> Result<Self, prometheus::Error> {
        let counts = Counts::new(registry)?;
        Ok(Self {
            config,
            node,
            tables,
            telemetry,
            access_log,
            counts,
            places: Places::default(),
            translate: None,
            udp: None,
            tracer: None,
        })
    }

    /// Serves the streams of one worker's acceptor until the tunnel closes or the drain cancels. To be run inside a
    /// `LocalSet`, on the worker whose handle was given to the tunnel in the acceptor's place.
    pub async fn run(self: Arc<Self>, mut acceptor: Acceptor, drain: Drain) {
        let connect = ConnectOptions {
            mark: self.config.mark,
            timeout: Some(self.config.connect_timeout),
            ..ConnectOptions::default()
        };
        let worker = Rc::new(Worker {
            connect,
            telemetry: Followed::new(self.telemetry.clone()),
            peers: RefCell::default(),
            drain,
            shared: self,
        });
        let local = worker.telemetry.local.clone();
        let flushing = std::pin::pin!(local.keep_flushed());
        let serving = async {
            while let Some(incoming) = acceptor.accept().await {
                tokio::task::spawn_local(worker.clone().serve(incoming));
            }
        };
        tokio::select! {
            () = serving => {}
            never = flushing => match never {},
        }
    }
}

impl Worker {
    async fn serve(self: Rc<Self>, incoming: Incoming) {
        let began = Instant::now();
        let start = self.shared.access_log.enabled().then(SystemTime::now);
        let log = Line { began, start };

        // 1. Bounds, then: may this peer reach that, in the name of that source?
        let Some(_share) = Share::take(&self, incoming.peer()) else {
            return self.refuse(incoming, Denied::Overloaded, &log).await;
        };
        let admission = match self.admit(&incoming).await {
            Ok(admission) => admission,
            Err(denied) => return self.refuse(incoming, denied, &log).await,
        };

        // 2. Connect to the pod; what can fail is behind us before the opener hears OK.
        let address = self.shared.translate.as_ref().map_or(admission.endpoint, |t| t(admission.endpoint));
        if incoming.open().kind == i32::from(Kind::Udp) {
            return self.datagrams(incoming, admission, address, &log).await;
        }
        let limits = limits::of(&self.shared.tables.load(), &admission).unwrap_or_default();
        let Ok(_place) = self.shared.places.take(admission.endpoint, limits.max_connections) else {
            return self.refuse(incoming, Denied::Overloaded, &log).await;
        };
        let connecting =
            ConnectOptions { timeout: limits.connect_timeout.or(self.connect.timeout), ..self.connect };
        let pod = match connect(address, &connecting).await {
            Ok(pod) => pod,
            Err(e) => return self.refuse(incoming, connect_failure(&e), &log).await,
        };

        // 3. Answer and copy.
        self.carry(incoming, admission, (pod, &limits), &log).await;
    }

    /// As a connection, but there is nothing to connect to: the pod's answer, or its silence, is the client's.
    async fn datagrams(&self, incoming: Incoming, admission: Admission, to: SocketAddr, log: &Line) {
        let Some(udp) = &self.shared.udp else { return self.refuse(incoming, Denied::BadKind, log).await };
        let pod = match owner::connect(to, self.shared.config.mark).await {
            Ok(pod) => pod,
            Err(e) => return self.refuse(incoming, connect_failure(&e), log).await,
        };
        let open = self.shared.access_log.enabled().then(|| incoming.open().clone());
        let Ok(stream) = incoming.accept().await else { return };
        self.shared.counts.accepted.inc();
        let carried = owner::Carried::default();
        let ended = owner::carry(stream, pod, &udp.counts, &carried, owner::IDLE).await;
        if let Some(open) = &open {
            let moved = Moved { received: carried.received, sent: carried.sent, ..Moved::default() };
            let details = if ended.is_err() { "upstream_reset" } else { "" };
            let end = End { admission: Some(&admission), flags: Flags::NONE, details, moved: &moved };
            log.write(self, open, &end);
        }
    }

    /// Checks against the newest tables, again for a moment when newer ones may say otherwise.
    async fn admit(&self, incoming: &Incoming) -> Result<Admission, Denied> {
        if self.drain.stage() >= Stage::StopAccepting {
            return Err(Denied::Draining);
        }
        let owner = Owner { node: &self.shared.node, own_ports: &self.shared.config.own_ports };
        let deadline = Instant::now() + self.shared.config.grace;
        let mut seen: Option<Arc<Tables>> = None;
        loop {
            let tables = self.shared.tables.load_full();
            if !seen.as_ref().is_some_and(|s| Arc::ptr_eq(s, &tables)) {
                match check(&tables, owner, incoming.peer(), incoming.open()) {
                    Err(denied) if denied.may_change() && Instant::now() < deadline => {}
                    decided => return decided,
                }
                seen = Some(tables);
            } else if Instant::now() >= deadline {
                return check(&tables, owner, incoming.peer(), incoming.open());
            }
            tokio::time::sleep(GRACE_STEP).await;
        }
    }

    async fn refuse(&self, incoming: Incoming, denied: Denied, log: &Line) {
        self.shared.counts.refused(denied);
        tracing::debug!(peer = %incoming.peer(), address = %incoming.open().address, reason = denied.as_str(), "refused");
        let flags = match denied {
            Denied::ConnectRefused | Denied::ConnectTimeout => Flags::CONNECT_FAILURE,
            Denied::Overloaded => Flags::OVERFLOW,
            _ => Flags::REFUSED_BY_OWNER,
        };
        let end = End { admission: None, flags, details: denied.as_str(), moved: &Moved::default() };
        log.write(self, incoming.open(), &end);
        // The opener may be gone already; then nobody waits for the answer.
        let _gone = incoming.refuse(denied.refusal(), denied.as_str()).await;
    }

    async fn carry(
        &self,
        incoming: Incoming,
        admission: Admission,
        (mut pod, limits): (TcpStream, &InboundLimits),
        log: &Line,
    ) {
        let tables = self.shared.tables.load_full();
        self.telemetry.follow(&tables);
        let parties = parties(&tables, &incoming.open().host, &admission);
        let trust_domain: Arc<str> = tables.mesh().trust_domain.as_str().into();
        let series = self.telemetry.local.tcp(&parties, Flags::NONE, || trust_domain.clone());
        let open = self.shared.access_log.enabled().then(|| incoming.open().clone());
        let about = self.about(incoming.open(), parties, trust_domain);
        drop(tables);
        let Ok(mut stream) = incoming.accept().await else { return };
        self.shared.counts.accepted.inc();
        self.shared.counts.open.inc();
        if let Some(series) = &series {
            series.opened();
        }
        let moved = Moved { series, ..Moved::default() };
        let idle = limits.idle_timeout.map_or(self.shared.config.idle, |t| Some(t).filter(|t| !t.is_zero()));
        let options = CopyOptions { idle, ..CopyOptions::default() };
        let _in_flight = self.drain.guard();
        let result = match about {
            None => {
                let copy = copy_bidirectional(&mut stream, &mut pod, options, &moved);
                limits::within(limits.max_duration, copy).await
            }
            Some(about) => {
                let mut pod = Box::new(Tapped::new(&mut pod, about));
                let copy = copy_bidirectional(&mut stream, &mut *pod, options, &moved);
                Box::pin(limits::within(limits.max_duration, copy)).await
            }
        };
        if result.is_err() {
            // Both ends learn that this was no clean end: the stream by being dropped, the pod by a reset.
            let _already_closed = pod.set_zero_linger();
        }
        self.shared.counts.open.dec();
        if let Some(series) = &moved.series {
            series.closed();
        }
        if let Some(open) = &open {
            let (flags, details) = ending(&result);
            let end = End { admission: Some(&admission), flags, details, moved: &moved };
            log.write(self, open, &end);
        }
    }

    /// What is said of the requests of a stream; none: it is not looked at.
    fn about(&self, open: &TunnelOpen, parties: Parties, trust_domain: Arc<str>) -> Option<About> {
        if open.kind != i32::from(Kind::Http) {
            return None;
        }
        let local = &self.telemetry.local;
        let counted = self.shared.config.requests && local.counts_requests(&parties);
        let traces = self.traced(open, parties.destination.as_ref());
        if !counted && traces.is_none() {
            return None;
        }
        let counts = counted.then(|| Counting { local: local.clone(), parties, trust_domain });
        Some(About { traces, counts })
    }

    /// What server spans of a stream are about; none: it has none.
    fn traced(&self, open: &TunnelOpen, destination: Option<&Rc<Held<WorkloadEntry>>>) -> Option<Traces> {
        let tracer = self.shared.tracer.as_ref()?;
        let rules = self.telemetry.local.traces(destination, &tracer.config().provider);
        rules.reports.then(|| Traces {
            tracer: tracer.clone(),
            rules,
            reporter: Reporter::of(destination.map(|d| d.get())),
            service: (open.host.clone(), open.port),
            node: self.shared.node.clone(),
            client: open.source.as_ref().map(|s| s.address.clone()).unwrap_or_default(),
        })
    }
}

fn connect_failure(error: &io::Error) -> Denied {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Denied::ConnectTimeout
        }
        _ => Denied::ConnectRefused,
    }
}

fn ending<T>(result: &Result<T, CopyError>) -> (Flags, &'static str) {
    match result {
        Ok(_) => (Flags::NONE, ""),
        Err(CopyError::Read(Side::A, _) | CopyError::Write(Side::A, _)) => {
            (Flags::CLIENT_CLOSED, "downstream_reset")
        }
        Err(CopyError::Read(Side::B, _) | CopyError::Write(Side::B, _)) => {
            (Flags::UPSTREAM_RESET, "upstream_reset")
        }
        Err(CopyError::Idle) => (Flags::UPSTREAM_TIMEOUT, "idle_timeout"),
    }
}

/// One of a peer's streams on this worker.
struct Share {
    worker: Rc<Worker>,
    peer: Arc<str>,
}

impl Share {
    fn take(worker: &Rc<Worker>, peer: &Arc<str>) -> Option<Self> {
        let mut peers = worker.peers.borrow_mut();
        let count = peers.entry(peer.clone()).or_insert(0);
        if *count >= worker.shared.config.per_peer {
            return None;
        }
        *count += 1;
        Some(Self { worker: worker.clone(), peer: peer.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut peers = self.worker.peers.borrow_mut();
        if let Some(count) = peers.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

/// How a stream ended.
struct End<'a> {
    admission: Option<&'a Admission>,
    flags: Flags,
    details: &'static str,
    moved: &'a Moved,
}

/// When a stream began, for its line in the access log.
struct Line {
    began: Instant,
    start: Option<SystemTime>,
}

impl Line {
    fn write(&self, worker: &Worker, open: &TunnelOpen, end: &End<'_>) {
        let log = &worker.shared.access_log;
        if !log.enabled() || !log.wants(rand::random(), 0, end.flags) {
            return;
        }
        let source = open.source.as_ref().and_then(|s| s.address.parse().ok());
        let entry = Entry {
            start: self.start,
            flags: end.flags,
            details: end.details,
            received: end.moved.received.get(),
            sent: end.moved.sent.get(),
            duration: self.began.elapsed(),
            upstream: end.admission.map(|a| a.endpoint),
            cluster: format!("inbound|{}||{}", open.port, open.host),
            client: source.map(|ip| SocketAddr::new(ip, 0)),
            ..Entry::default()
        };
        worker.telemetry.follow(&worker.shared.tables.load_full());
        let destination = end.admission.and_then(|a| a.destination.as_deref());
        if worker.telemetry.local.logs(destination, log, &entry) {
            log.write(&entry);
        }
    }
}
