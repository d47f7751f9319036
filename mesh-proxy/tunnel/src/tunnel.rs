//! The tunnel's handle: opens streams to nodes by name, swaps the view of peers, drains, closes.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId, Swarm, connection_limits, identify, ping, relay,
    swarm::{self, ConnectionId},
};
use prometheus::Registry;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    accept::{Acceptor, Incoming},
    behaviour::Streams,
    config::{Limits, Timeouts, TunnelConfig},
    driver::{self, Behaviour, Command, Driver},
    error::StartError,
    exec::{Executors, Placement, Worker},
    kernel::Kernel,
    metrics::Metrics,
    nat::{
        self, NatReport,
        knowledge::{Knowledge, PeerKnowledge},
    },
    numbers::Numbers,
    path::Networks,
    peers::{Known, Peer, View},
    stream::{Direction, StreamGuard},
    table::{Conn, Spread, Table},
    transport,
};

/// What the handle, the swarm's behaviour and every connection share.
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) metrics: Metrics,
    pub(crate) table: Table,
    pub(crate) kernel: Kernel,
    pub(crate) placement: Arc<Placement>,
    pub(crate) streams: AtomicUsize,
    pub(crate) closed: CancellationToken,
    view: RwLock<Arc<View>>,
    networks: RwLock<Arc<Networks>>,
    /// Of nodes, for pools.
    pub(crate) generations: Numbers<Arc<str>>,
    /// Of remote ends of TCP sockets.
    pub(crate) lives: Arc<Numbers<SocketAddr>>,
    /// Dials that both sides make at once, to open their NATs.
    punches: Mutex<HashSet<ConnectionId>>,
    commands: mpsc::WeakSender<Command>,
    /// This node serves circuits.
    pub(crate) relay: AtomicBool,
    /// Ports of outgoing TCP connections.
    pub(crate) locals: Arc<nat::Locals>,
    /// What is known of NATs.
    pub(crate) knowledge: Knowledge,
    own: PeerId,
    draining: AtomicBool,
    /// The NAT traversal looks at the view and at this node's role when this is told.
    pub(crate) nudge: Notify,
    /// Processes of peers that have said that they leave.
    pub(crate) departures: watch::Sender<u64>,
    keeps_ports: AtomicBool,
    queues: Vec<mpsc::Sender<Incoming>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("own", &self.own)
            .field("streams", &self.streams)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether what the router has opened is left open at the end.
    pub(crate) fn keeps_ports(&self) -> bool {
        self.keeps_ports.load(Ordering::Relaxed)
    }

    /// The accept queue of a worker.
    pub(crate) fn queue(&self, worker: Option<Worker>) -> &mpsc::Sender<Incoming> {
        &self.queues[worker.unwrap_or(0).min(self.queues.len() - 1)]
    }

    /// Counts one more stream, or names the limit that it would break.
    pub(crate) fn admit(
        self: &Arc<Self>,
        conn: &Arc<Conn>,
        direction: Direction,
    ) -> Result<StreamGuard, &'static str> {
        let (load, gauge) = match direction {
            Direction::Outbound => (&conn.load.outbound, &self.metrics.streams_out),
            Direction::Inbound => (&conn.load.inbound, &self.metrics.streams_in),
        };
        if self.streams.fetch_add(1, Ordering::Relaxed) >= self.limits.streams {
            self.streams.fetch_sub(1, Ordering::Relaxed);
            return Err("streams");
        }
        if load.fetch_add(1, Ordering::Relaxed) >= self.limits.streams_per_peer {
            load.fetch_sub(1, Ordering::Relaxed);
            self.streams.fetch_sub(1, Ordering::Relaxed);
            return Err("streams_per_peer");
        }
        conn.streams.fetch_add(1, Ordering::Relaxed);
        gauge.inc();
        Ok(StreamGuard { shared: self.clone(), conn: conn.clone(), direction })
    }

    pub(crate) fn networks(&self) -> Arc<Networks> {
        self.networks.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the networks of this host; tells what `change` tells.
    pub(crate) fn change_networks(&self, change: impl FnOnce(&mut Networks) -> bool) -> bool {
        let mut slot = self.networks.write().unwrap_or_else(PoisonError::into_inner);
        let mut networks = (**slot).clone();
        let changed = change(&mut networks);
        *slot = Arc::new(networks);
        changed
    }

    /// The connection that this dial gives, if any, goes through a hole that both sides punch.
    pub(crate) fn expect_punched(&self, dial: ConnectionId) {
        self.punches.lock().unwrap_or_else(PoisonError::into_inner).insert(dial);
    }

    /// Whether a connection was expected so; it is asked once, when the dial has ended.
    pub(crate) fn take_punched(&self, dial: ConnectionId) -> bool {
        self.punches.lock().unwrap_or_else(PoisonError::into_inner).remove(&dial)
    }

    /// Has the driver dial a peer anew, at addresses that nobody knew before.
    pub(crate) fn moved(&self, peer: PeerId) {
        self.table.forgive(peer);
        if let Some(commands) = self.commands.upgrade() {
            // A full queue means that the driver is busy dialling; the next dial takes the new addresses anyway.
            let _ = commands.try_send(Command::Moved(vec![peer]));
        }
    }

    /// The same for all peers: this host is elsewhere.
    pub(crate) fn all_moved(&self) {
        let peers: Vec<PeerId> = self.table.survey().iter().map(|s| s.peer).collect();
        peers.iter().for_each(|peer| self.table.forgive(*peer));
        if let Some(commands) = self.commands.upgrade() {
            // As above.
            let _ = commands.try_send(Command::Moved(peers));
        }
    }

    /// Has the driver dial a peer whose connections are in use and silent: who asks for it next meets what came of it.
    pub(crate) fn dial_silent(&self, peer: PeerId) {
        let now = Instant::now();
        if let Some(commands) = self.commands.upgrade()
            && self.table.is_silent(peer, now)
            && commands.try_send(Command::Dial(peer)).is_err()
        {
            // The driver is busy; whoever asks for the peer starts a dial again.
            self.table.dialled(peer, Ok(()), now, |_| Duration::ZERO);
        }
    }

    /// Has the driver close a connection.
    pub(crate) fn close_connection(&self, id: ConnectionId) {
        if let Some(commands) = self.commands.upgrade() {
            // A full queue means that the driver is busy; upkeep comes back to a silent connection.
            let _ = commands.try_send(Command::CloseConnection(id));
        }
    }

    pub(crate) fn spread(&self) -> Spread {
        let max_connections = self.limits.connections_per_peer.min(self.placement.workers());
        Spread { max_connections, at_streams: self.limits.spread_at }
    }
}

/// Handle of a running tunnel. Clones are cheap; the tunnel ends with [`Tunnel::close`] or when all are dropped.
#[derive(Debug, Clone)]
pub struct Tunnel {
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::Sender<Command>,
    addresses: watch::Receiver<Vec<String>>,
    nat: watch::Receiver<NatReport>,
}

/// Commands that wait for the driver.
const COMMAND_QUEUE: usize = 1024;
/// Time that listeners get to say their addresses.
const LISTEN_WAIT: Duration = Duration::from_millis(500);

impl Tunnel {
    /// Starts the swarm and listens. There is one acceptor for each worker, at least one.
    pub async fn start(
        config: TunnelConfig,
        executors: Executors,
        registry: &Registry,
    ) -> Result<(Self, Vec<Acceptor>), StartError> {
        let own = config.key.keypair().public().to_peer_id();
        let closed = CancellationToken::new();
        let (queues, acceptors) = (0..executors.acceptors())
            .map(|_| mpsc::channel(config.limits.accept_queue.max(1)))
            .map(|(sender, receiver)| (sender, Acceptor::new(receiver, closed.clone())))
            .unzip();
        let placement = Arc::new(Placement::new(executors));
        let metrics = Metrics::new(registry).map_err(StartError::Metrics)?;
        let (command_sender, command_receiver) = mpsc::channel(COMMAND_QUEUE);
        let shared = Arc::new(Shared {
            table: Table::new(metrics.path_changes.clone()),
            kernel: Kernel::default(),
            metrics,
            placement: placement.clone(),
            streams: AtomicUsize::new(0),
            closed,
            view: RwLock::default(),
            networks: RwLock::default(),
            generations: Numbers::default(),
            lives: Arc::default(),
            punches: Mutex::default(),
            commands: command_sender.downgrade(),
            relay: AtomicBool::new(config.nat.relay.enabled),
            locals: Arc::default(),
            knowledge: Knowledge::new(&config.nat.node),
            own,
            draining: AtomicBool::new(false),
            nudge: Notify::new(),
            departures: watch::Sender::new(0),
            keeps_ports: AtomicBool::new(false),
            queues,
            limits: config.limits.clone(),
            timeouts: config.timeouts.clone(),
        });
        let (circuits, client) = relay::client::new(own);
        let transport = transport::build(&config, circuits, &shared)?;
        let swarm_config = swarm::Config::with_executor({
            let placement = placement.clone();
            move |task| placement.spawn(task)
        })
        .with_idle_connection_timeout(config.timeouts.idle)
        .with_max_negotiating_inbound_streams(config.limits.negotiating)
        .with_substream_upgrade_protocol_override(libp2p::core::upgrade::Version::V1Lazy);
        let mut swarm = Swarm::new(transport, behaviour(&config, shared.clone(), client), own, swarm_config);
        let mut listeners = Vec::new();
        for text in &config.listen {
            let address: Multiaddr = text
                .parse()
                .map_err(|e| StartError::Address { address: text.clone(), reason: format!("{e}") })?;
            let listener = swarm
                .listen_on(address.clone())
                .map_err(|e| StartError::Listen { address: text.clone(), reason: e.to_string() })?;
            listeners.push((listener, address));
        }
        let nat_metrics = nat::Metrics::new(registry).map_err(StartError::Metrics)?;
        let secret = config.key.port_secret().map_err(|e| StartError::Certificate(e.to_string()))?;
        let mut engine = nat::Engine::new(shared.clone(), own, config.nat.clone(), (nat_metrics, secret));
        let report = engine.report();
        let addresses = driver::listening(&mut swarm, listeners.len(), LISTEN_WAIT, &mut engine).await;
        let (address_sender, address_receiver) = watch::channel(addresses);
        let driver =
            Driver::new(swarm, shared.clone(), command_receiver, (listeners, address_sender), engine);
        placement.control().spawn(driver.run());
        let tunnel = Self { shared, commands: command_sender, addresses: address_receiver, nat: report };
        Ok((tunnel, acceptors))
    }

    /// This node's base58 peer id.
    pub fn peer_id(&self) -> String {
        self.shared.own.to_base58()
    }

    /// Addresses that the tunnel listens on, loopback ones included, as they come and go.
    pub fn addresses(&self) -> watch::Receiver<Vec<String>> {
        self.addresses.clone()
    }

    /// How this node is reached, for the controller, as it changes.
    pub fn nat(&self) -> watch::Receiver<NatReport> {
        self.nat.clone()
    }

    /// Serves circuits for others, or stops serving new ones.
    pub fn set_relay(&self, on: bool) {
        self.shared.relay.store(on, Ordering::Relaxed);
        self.shared.nudge.notify_one();
    }

    /// What is known about reaching a node; none: it is in no view.
    pub fn knowledge(&self, node: &str) -> Option<PeerKnowledge> {
        let known = self.shared.view().node(node).map(|k| k.id)?;
        Some(self.shared.knowledge.peer(&known))
    }

    /// Replaces the view of peers. Peers that are not in it any more are cut, streams and all.
    pub async fn set_peers(&self, peers: &[Peer]) {
        let (view, refused) = self.shared.view().next(peers, &self.shared.own);
        for (node, reason) in refused {
            tracing::warn!(%node, %reason, "peer is left out of the view");
        }
        let view = Arc::new(view);
        let old = {
            let mut slot = self.shared.view.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *slot, view.clone())
        };
        self.shared.nudge.notify_one();
        let mut moved = Vec::new();
        for (peer, known) in view.iter() {
            let is_known = |before: &Arc<Known>| Arc::ptr_eq(before, known) || before.same_places(known);
            if !old.peer(peer).is_some_and(is_known) {
                self.shared.table.forgive(*peer);
                moved.push(*peer);
            }
        }
        let cut = self.shared.table.remove_unwanted(|peer| view.peer(peer).is_some());
        if !cut.is_empty() {
            let _ = self.commands.send(Command::Cut(cut)).await;
        }
        if !moved.is_empty() {
            let _ = self.commands.send(Command::Moved(moved)).await;
        }
    }

    /// Refuses new streams from now on and stops listening, so that a successor on the same port gets the peers'
    /// next connections. Streams that are open go on.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        self.shared.say_goodbye();
        // A full queue means that the driver is busy dialling: it then goes on listening, and refusals do the rest.
        let _ = self.commands.try_send(Command::StopListening);
    }

    /// Listens on one more address: one that another process of this node has just left.
    pub async fn listen(&self, address: &str) -> Result<(), StartError> {
        let bad = |reason| StartError::Address { address: address.to_owned(), reason };
        let parsed: Multiaddr = address.parse().map_err(|e| bad(format!("{e}")))?;
        let refused = |reason| StartError::Listen { address: address.to_owned(), reason };
        let (done, answer) = oneshot::channel();
        let closed = || refused("the tunnel is closed".to_owned());
        self.commands.send(Command::Listen(parsed, done)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?.map_err(refused)
    }

    /// Leaves open at the end what the router has opened: another process of this node goes on with it.
    pub fn keep_ports(&self) {
        self.shared.keeps_ports.store(true, Ordering::Relaxed);
    }

    /// Closes every connection, the listeners, and what the router has opened.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.commands.send(Command::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }

    /// A number that moves when streams to `node` that are kept for later use should be left for new ones: there is a
    /// better path, or the node's process takes no new streams. It is the same number while somebody holds it.
    pub fn generation(&self, node: &str) -> Arc<AtomicU64> {
        self.shared.generations.of(node.into())
    }

    /// Changes whenever the process of some node has said that it leaves; its [`Self::generation`] has moved by then.
    pub fn departures(&self) -> watch::Receiver<u64> {
        self.shared.departures.subscribe()
    }

    /// Streams that are open, both directions.
    pub fn streams(&self) -> usize {
        self.shared.streams.load(Ordering::Relaxed)
    }

    /// Peers about which the tunnel holds any state: connections, dials, back-off.
    pub fn tracked_peers(&self) -> usize {
        self.shared.table.len()
    }
}

fn behaviour(config: &TunnelConfig, shared: Arc<Shared>, circuits: relay::client::Behaviour) -> Behaviour {
    let identify = identify::Config::new("selvage/1".to_owned(), config.key.keypair().public())
        .with_agent_version(concat!("selvage/", env!("CARGO_PKG_VERSION")).to_owned());
    let probe =
        ping::Config::new().with_interval(config.timeouts.ping).with_timeout(config.timeouts.ping_timeout);
    let bounds = connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(config.limits.handshakes))
        .with_max_established_per_peer(Some(config.limits.connections_of_a_peer));
    Behaviour {
        bounds: connection_limits::Behaviour::new(bounds),
        streams: Streams::new(shared.clone()),
        circuits,
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::new(probe),
        nat: nat::Parts::new(&config.nat, config.key.keypair().public().to_peer_id(), shared),
    }
}
