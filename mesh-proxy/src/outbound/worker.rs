//! One data worker: a thread with its own listeners, its own pools and its own caches.
//!
//! Workers share the tables (an atomic pointer), the limits of clusters and the metrics; nothing that a request
//! would have to lock.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use mesh_core::{Cluster, Dice, DiceKind, Place, ServiceEntry, Tables};
use mesh_net::listen::{AcceptErrors, accept};
use node_rt::{Drain, DrainGuard};
use tokio::net::TcpListener;

use super::{
    cluster::{ClusterState, LimitTable},
    config::OutboundConfig,
    connection,
    connector::{Connector, TunnelOpener},
    external::Externals,
    forward_proxy,
    names::{Names, SystemNames},
    tls::TlsConfigs,
    watch::Watches,
};
use crate::{
    gateway::{self, Gateway},
    telemetry::{AccessLog, Telemetry, Tracer, local::Local, rules::RuleTable},
    udp::Udp,
};

/// What all workers share.
pub struct Shared {
    /// Settings.
    pub config: OutboundConfig,
    /// This node's name.
    pub node: Arc<str>,
    /// The tables; swapped by discovery.
    pub tables: Arc<ArcSwap<Tables>>,
    /// Streams to other nodes; none = only endpoints that can be reached directly.
    pub tunnel: Option<Arc<dyn TunnelOpener>>,
    /// Metric families.
    pub telemetry: Arc<Telemetry>,
    /// Access log.
    pub access_log: AccessLog,
    /// Traces; none = there is no collector.
    pub tracer: Option<Arc<Tracer>>,
    /// The ingress gateway that this proxy is besides; none = it is none.
    pub gateway: Option<Arc<Gateway>>,
    /// Fixes every random choice, for tests.
    pub dice: Option<Arc<dyn Fn(DiceKind) -> f64 + Send + Sync>>,
    /// Accept errors of all workers.
    pub accept_errors: AcceptErrors,
    /// Datagrams; none = not served.
    pub udp: Option<Arc<Udp>>,
    /// Addresses of names outside the mesh.
    pub names: Arc<dyn Names>,
    /// TLS towards endpoints.
    pub tls: TlsConfigs,
    limits: Arc<LimitTable>,
}

impl Shared {
    /// What all workers share. The remaining fields are public: set them before the workers start.
    pub fn new(
        config: OutboundConfig,
        node: Arc<str>,
        tables: Arc<ArcSwap<Tables>>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        Self {
            config,
            node,
            tables,
            tunnel: None,
            telemetry,
            access_log: AccessLog::off(),
            tracer: None,
            gateway: None,
            dice: None,
            accept_errors: AcceptErrors::default(),
            udp: None,
            names: Arc::new(SystemNames),
            tls: TlsConfigs::default(),
            limits: Arc::default(),
        }
    }
}

impl Shared {
    /// What workers know together of clusters, such as endpoints that are unwell.
    pub(crate) fn limits(&self) -> Arc<LimitTable> {
        Arc::clone(&self.limits)
    }
}

/// The listeners of one worker.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Captured connections.
    pub captured: Vec<TcpListener>,
    /// Captured connections whose destination is the listener's own address and port, as if dialled there (a gateway
    /// port, or a test).
    pub fixed: Vec<(TcpListener, SocketAddr)>,
    /// HTTP CONNECT, absolute-form and SOCKS5 on loopback.
    pub proxy: Vec<TcpListener>,
    /// Captured datagrams.
    pub udp: Vec<std::net::UdpSocket>,
}

/// One data worker. To be run inside a `LocalSet` on a current-thread runtime.
#[derive(Debug)]
pub struct Worker;

impl Worker {
    /// Serves until the drain says stop, then lets connections finish.
    pub async fn run(shared: Arc<Shared>, listeners: Listeners, drain: Drain) {
        let worker = Rc::new(WorkerState::new(shared));
        for listener in listeners.captured {
            tokio::task::spawn_local(accept_loop(
                Rc::clone(&worker),
                listener,
                drain.clone(),
                Entry::Captured,
            ));
        }
        for (listener, to) in listeners.fixed {
            tokio::task::spawn_local(accept_loop(
                Rc::clone(&worker),
                listener,
                drain.clone(),
                Entry::Fixed(to),
            ));
        }
        for listener in listeners.proxy {
            tokio::task::spawn_local(accept_loop(Rc::clone(&worker), listener, drain.clone(), Entry::Proxy));
        }
        if let Some(gateway) = worker.shared.gateway.clone() {
            tokio::task::spawn_local(gateway::run(Rc::clone(&worker), gateway, drain.clone()));
        }
        if let Some(udp) = worker.shared.udp.clone().filter(|_| !listeners.udp.is_empty()) {
            tokio::task::spawn_local(crate::udp::serve(
                Rc::clone(&worker),
                udp,
                listeners.udp,
                drain.clone(),
            ));
        }
        let every = worker.shared.config.sweep();
        let mut sweep = tokio::time::interval(every);
        let mut departures = worker.connector.departures();
        let flushing = worker.telemetry.keep_flushed();
        tokio::pin!(flushing);
        sweep.tick().await;
        loop {
            tokio::select! {
                _ = sweep.tick() => worker.sweep(every),
                // The process that leaves waits for the connections that are pooled here.
                () = departures.next() => worker.clusters.borrow().values().for_each(|c| c.close_left()),
                never = &mut flushing => match never {},
                () = drain.stop_accepting() => break,
            }
        }
        worker.watches.close();
        worker.clusters.borrow().values().for_each(|c| c.close_idle());
        // What is left ends by itself; the drain cancels this future when time is over.
        match flushing.await {}
    }
}

/// How a connection came in.
#[derive(Debug, Clone, Copy)]
enum Entry {
    Captured,
    Fixed(SocketAddr),
    Proxy,
}

async fn accept_loop(worker: Rc<WorkerState>, listener: TcpListener, drain: Drain, entry: Entry) {
    // The drain waits for this loop too: what it accepts in its last moment is work that it has not counted yet.
    let _accepting = drain.guard();
    let stop = drain.stop_accepting();
    tokio::pin!(stop);
    loop {
        let (stream, peer) = tokio::select! {
            accepted = accept(&listener, &worker.shared.accept_errors) => accepted,
            () = &mut stop => return,
        };
        let Some(ticket) = Ticket::take(&worker, &drain) else { continue };
        let worker = Rc::clone(&worker);
        match entry {
            Entry::Captured => {
                tokio::task::spawn_local(connection::captured(worker, stream, peer, ticket));
            }
            Entry::Fixed(to) => {
                tokio::task::spawn_local(connection::fixed(worker, stream, peer, to, ticket));
            }
            Entry::Proxy => {
                tokio::task::spawn_local(forward_proxy::serve(worker, stream, peer, ticket));
            }
        }
    }
}

/// Held by a connection as long as it lives, whatever it becomes: it counts as open, and the drain waits for it.
pub(crate) struct Ticket {
    _open: Open,
    _guard: DrainGuard,
}

impl Ticket {
    /// None: the worker has as many connections as it may; counted.
    pub(crate) fn take(worker: &Rc<WorkerState>, drain: &Drain) -> Option<Self> {
        if worker.open.get() >= worker.shared.config.max_connections {
            worker.shared.telemetry.edges.refused_connections.inc();
            return None;
        }
        Some(Self { _open: Open::new(worker), _guard: drain.guard() })
    }
}

/// Counts one open connection of a worker.
struct Open(Rc<WorkerState>);

impl Open {
    fn new(worker: &Rc<WorkerState>) -> Self {
        worker.open.set(worker.open.get() + 1);
        Self(Rc::clone(worker))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

/// A worker's own state.
pub(crate) struct WorkerState {
    pub(crate) shared: Arc<Shared>,
    pub(crate) telemetry: Local,
    pub(crate) connector: Connector,
    pub(crate) watches: Watches,
    pub(crate) externals: Externals,
    tables: RefCell<Rc<Snapshot>>,
    /// Where this node is.
    here: RefCell<Arc<Place>>,
    /// The tables at the last sweep.
    swept: RefCell<Rc<Snapshot>>,
    clusters: RefCell<ClusterMap>,
    open: Cell<usize>,
    /// Copies of requests under way.
    pub(crate) mirrors: Cell<u32>,
    random: Cell<u64>,
}

/// The tables as one worker holds them: the counter that threads share is touched once for each swap, not for each
/// request.
pub(crate) struct Snapshot(Arc<Tables>);

impl std::ops::Deref for Snapshot {
    type Target = Tables;
    fn deref(&self) -> &Tables {
        &self.0
    }
}

type ClusterMap = HashMap<u64, Rc<ClusterState>, BuildHasherDefault<IdHasher>>;

/// Cluster ids are hashes already.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*b);
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }
}

impl WorkerState {
    fn new(shared: Arc<Shared>) -> Self {
        let connector = Connector::new(
            Arc::clone(&shared.node),
            shared.config.mark,
            shared.config.own_ports.clone(),
            shared.tunnel.clone(),
        );
        let tables = Rc::new(Snapshot(shared.tables.load_full()));
        let telemetry = Local::of_callers(Arc::clone(&shared.telemetry), Arc::clone(&shared.node));
        telemetry.rule(RuleTable::of(&tables));
        shared.access_log.asked_for(telemetry.asks_for(&shared.access_log));
        Self {
            telemetry,
            connector,
            watches: Watches::default(),
            externals: Externals::default(),
            swept: RefCell::new(Rc::clone(&tables)),
            here: RefCell::new(Arc::new(tables.node(&shared.node).map(|n| Place::of(n)).unwrap_or_default())),
            tables: RefCell::new(tables),
            clusters: RefCell::default(),
            open: Cell::new(0),
            mirrors: Cell::new(0),
            random: Cell::new(rand::random()),
            shared,
        }
    }

    /// The tables as of now. The worker keeps one reference and hands out cheap ones.
    pub(crate) fn tables(&self) -> Rc<Snapshot> {
        let mut mine = self.tables.borrow_mut();
        let current = self.shared.tables.load();
        if !Arc::ptr_eq(&current, &mine.0) {
            let new = Rc::new(Snapshot(Arc::clone(&current)));
            if !new.same_telemetry(&mine) {
                self.telemetry.rule(RuleTable::of(&new));
                self.shared.access_log.asked_for(self.telemetry.asks_for(&self.shared.access_log));
            }
            *mine = new;
            self.look_around(&mine);
        }
        Rc::clone(&mine)
    }

    /// Balancers prefer what is near: they learn where this is.
    fn look_around(&self, tables: &Tables) {
        let here = tables.node(&self.shared.node).map(|n| Place::of(n)).unwrap_or_default();
        if **self.here.borrow() == here {
            return;
        }
        let here = Arc::new(here);
        *self.here.borrow_mut() = Arc::clone(&here);
        self.clusters.borrow().values().for_each(|c| c.moved(&here));
    }

    /// This worker's state of a cluster.
    pub(crate) fn cluster(&self, cluster: &Arc<Cluster>) -> Rc<ClusterState> {
        let mut all = self.clusters.borrow_mut();
        let old = all.get(&cluster.id);
        if let Some(state) = old
            && state.cluster.is(cluster)
        {
            return Rc::clone(state);
        }
        let limits = old.map_or_else(|| self.shared.limits.get(cluster.id), |o| Arc::clone(&o.limits));
        let here = Arc::clone(&self.here.borrow());
        let new = Rc::new(ClusterState::new(cluster, old.map(|o| &**o), limits, &here));
        all.insert(cluster.id, Rc::clone(&new));
        new
    }

    pub(crate) fn trust_domain(&self) -> Arc<str> {
        self.tables().mesh().trust_domain.as_str().into()
    }

    /// A number in `[0, 1)`.
    pub(crate) fn roll(&self) -> f64 {
        // splitmix64: two multiplications, no lock, no system call.
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
        let fraction = (z >> 11) as f64;
        fraction / 9_007_199_254_740_992.0
    }

    /// Where chance comes from.
    pub(crate) const fn dice(&self) -> WorkerDice<'_> {
        WorkerDice(self)
    }

    /// Closes and forgets what nobody uses; the last time was so long ago.
    fn sweep(&self, ago: Duration) {
        self.watches.look(ago);
        let edges = &self.shared.telemetry.edges;
        edges.accept_errors.inc_by(self.shared.accept_errors.connection.swap(0, Ordering::Relaxed));
        edges.accept_pauses.inc_by(self.shared.accept_errors.resource.swap(0, Ordering::Relaxed));
        edges.log_lines_dropped.set(i64::try_from(self.shared.access_log.dropped()).unwrap_or(i64::MAX));
        let now = Instant::now();
        let tables = self.tables();
        // Cached series hold entries of the tables they were made from; old tables are not to live on in them.
        if !Rc::ptr_eq(&tables, &self.swept.replace(Rc::clone(&tables))) {
            self.telemetry.forget();
        }
        let mut all = self.clusters.borrow_mut();
        // A cluster that the tables no longer hold and no call uses is known only to this map.
        all.retain(|_, c| {
            let listed = |s: &Arc<ServiceEntry>| s.clusters().any(|known| known.id == c.cluster.id);
            let known = Rc::strong_count(c) > 1
                || tables.service(&c.cluster.key.host).is_some_and(listed)
                || self.externals.knows(&c.cluster);
            if !known {
                c.close_idle();
            }
            known
        });
        all.values().for_each(|c| c.sweep(now));
        drop(all);
        self.externals.sweep(now);
    }
}

/// A worker's source of chance.
pub(crate) struct WorkerDice<'w>(&'w WorkerState);

impl Dice for WorkerDice<'_> {
    fn roll(&mut self, what: DiceKind) -> f64 {
        match &self.0.shared.dice {
            Some(fixed) => fixed(what),
            None => self.0.roll(),
        }
    }
}
