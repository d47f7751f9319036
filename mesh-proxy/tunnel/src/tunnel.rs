//! The tunnel's handle: opens streams to nodes by name, swaps the view of peers, drains, closes.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::AsyncWriteExt;
use libp2p::{Multiaddr, PeerId, Stream, Swarm, connection_limits, identify, ping, swarm};
use mesh_api::model::{TunnelAnswer, TunnelOpen};
use prometheus::Registry;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    accept::{Acceptor, Incoming},
    behaviour::Streams,
    config::{Limits, Timeouts, TunnelConfig},
    driver::{self, Behaviour, Command, Driver},
    error::{OpenError, Refusal, StartError},
    exec::{Executors, Placement, Worker},
    metrics::Metrics,
    peers::{Known, Peer, View},
    stream::{Direction, StreamGuard, TunnelStream},
    table::{Conn, Spread, Step, Table},
    transport, wire,
};

/// What the handle, the swarm's behaviour and every connection share.
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) metrics: Metrics,
    pub(crate) table: Table,
    pub(crate) placement: Arc<Placement>,
    pub(crate) streams: AtomicUsize,
    pub(crate) closed: CancellationToken,
    view: RwLock<Arc<View>>,
    own: PeerId,
    draining: AtomicBool,
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

    fn spread(&self) -> Spread {
        let max_connections = self.limits.connections_per_peer.min(self.placement.workers());
        Spread { max_connections, at_streams: self.limits.spread_at }
    }
}

/// State of one connection, for status output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Node name, empty when the peer just left the view.
    pub node: String,
    /// Base58 peer id.
    pub peer_id: String,
    /// `tcp`, `quic` or `relayed`.
    pub transport: &'static str,
    /// Whether this node dialled.
    pub dialled: bool,
    /// Streams on it.
    pub streams: usize,
    /// Last measured round trip.
    pub rtt: Option<Duration>,
}

/// Handle of a running tunnel. Clones are cheap; the tunnel ends with [`Tunnel::close`] or when all are dropped.
#[derive(Debug, Clone)]
pub struct Tunnel {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    addresses: watch::Receiver<Vec<String>>,
}

/// Connections that one open tries.
const ATTEMPTS: usize = 3;
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
        let shared = Arc::new(Shared {
            metrics: Metrics::new(registry).map_err(StartError::Metrics)?,
            table: Table::default(),
            placement: placement.clone(),
            streams: AtomicUsize::new(0),
            closed,
            view: RwLock::default(),
            own,
            draining: AtomicBool::new(false),
            queues,
            limits: config.limits.clone(),
            timeouts: config.timeouts.clone(),
        });
        let transport = transport::build(&config.key, &config.limits, &config.timeouts)?;
        let swarm_config = swarm::Config::with_executor({
            let placement = placement.clone();
            move |task| placement.spawn(task)
        })
        .with_idle_connection_timeout(config.timeouts.idle)
        .with_max_negotiating_inbound_streams(config.limits.negotiating)
        .with_substream_upgrade_protocol_override(libp2p::core::upgrade::Version::V1Lazy);
        let mut swarm = Swarm::new(transport, behaviour(&config, shared.clone()), own, swarm_config);
        let mut listeners = Vec::new();
        for text in &config.listen {
            let address: Multiaddr = text
                .parse()
                .map_err(|e| StartError::Address { address: text.clone(), reason: format!("{e}") })?;
            let listener = swarm
                .listen_on(address)
                .map_err(|e| StartError::Listen { address: text.clone(), reason: e.to_string() })?;
            listeners.push(listener);
        }
        let addresses = driver::listening(&mut swarm, listeners.len(), LISTEN_WAIT).await;
        let (address_sender, address_receiver) = watch::channel(addresses);
        let (command_sender, command_receiver) = mpsc::channel(COMMAND_QUEUE);
        let driver = Driver::new(swarm, shared.clone(), command_receiver, (listeners, address_sender));
        placement.control().spawn(driver.run());
        let tunnel = Self { shared, commands: command_sender, addresses: address_receiver };
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

    /// Replaces the view of peers. Peers that are not in it any more are cut, streams and all.
    pub async fn set_peers(&self, peers: &[Peer]) {
        let (view, refused) = View::new(peers, &self.shared.own);
        for (node, reason) in refused {
            tracing::warn!(%node, %reason, "peer is left out of the view");
        }
        let view = Arc::new(view);
        let old = {
            let mut slot = self.shared.view.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *slot, view.clone())
        };
        for (peer, known) in view.iter() {
            if old.peer(peer).is_none_or(|before| before.addresses != known.addresses) {
                self.shared.table.forgive(*peer);
            }
        }
        let cut = self.shared.table.remove_unwanted(|peer| view.peer(peer).is_some());
        if !cut.is_empty() {
            let _ = self.commands.send(Command::Cut(cut)).await;
        }
    }

    /// Opens a stream to an endpoint of `node`. Dials when there is no connection; concurrent opens share that dial.
    pub async fn open(&self, node: &str, open: TunnelOpen) -> Result<TunnelStream, OpenError> {
        let result = self.open_in_time(node, open).await;
        self.shared.metrics.opened(result.as_ref().map_or_else(OpenError::as_str, |_| "ok"));
        result
    }

    async fn open_in_time(&self, node: &str, mut open: TunnelOpen) -> Result<TunnelStream, OpenError> {
        open.version = wire::VERSION;
        let message = wire::encode_open(&open).map_err(OpenError::TooLarge)?;
        let view = self.shared.view();
        let known = view.node(node).ok_or_else(|| OpenError::UnknownNode(node.to_owned()))?;
        let attempt = async {
            let (mut left, mut draining) = (ATTEMPTS, None);
            loop {
                left -= 1;
                match (self.attempt(known, &message).await, &draining) {
                    // A connection may close for idleness just when a stream is asked for.
                    (Err(OpenError::Lost(_)), _) if left > 0 => {}
                    // Behind a process that is leaving there may be its successor, with the same key, on a connection
                    // of its own.
                    (Err(e @ OpenError::Refused { code: Refusal::Draining, .. }), _) if left > 0 => {
                        draining = Some(e)
                    }
                    // There is none.
                    (Err(OpenError::Dial { .. } | OpenError::Backoff { .. }), Some(said)) => {
                        return Err(said.clone());
                    }
                    (other, _) => return other,
                }
            }
        };
        match tokio::time::timeout(self.shared.timeouts.open, attempt).await {
            Ok(result) => result,
            Err(_) => Err(OpenError::Timeout(known.node.clone())),
        }
    }

    async fn attempt(&self, known: &Known, message: &[u8]) -> Result<TunnelStream, OpenError> {
        let lost = || OpenError::Lost(known.node.clone());
        let conn = self.connection(known).await?;
        let guard = self.shared.admit(&conn, Direction::Outbound).map_err(OpenError::Limit)?;
        let (reply, stream) = oneshot::channel();
        conn.opens.send(reply).await.map_err(|_| lost())?;
        let mut stream = stream.await.map_err(|_| lost())?;
        send(&mut stream, message).await.map_err(|_| lost())?;
        let (answer, rest) = match wire::read::<TunnelAnswer>(&mut stream).await {
            Ok(read) => read,
            Err(wire::ReadError::Io(_) | wire::ReadError::Ended) => return Err(lost()),
            Err(wire::ReadError::TooLarge | wire::ReadError::Malformed) => {
                return Err(OpenError::BadAnswer(known.node.clone()));
            }
        };
        match wire::outcome(&answer) {
            Some(Ok(())) => Ok(TunnelStream::new(stream, rest, conn.path, guard)),
            Some(Err(code)) => {
                if code == Refusal::Draining {
                    conn.retired.store(true, Ordering::Relaxed);
                }
                Err(OpenError::Refused { node: known.node.clone(), code, detail: answer.detail })
            }
            None => Err(OpenError::BadAnswer(known.node.clone())),
        }
    }

    /// The best connection to a peer, dialled if there is none.
    async fn connection(&self, known: &Known) -> Result<Arc<Conn>, OpenError> {
        let worker = self.shared.placement.current();
        loop {
            if self.shared.closed.is_cancelled() {
                return Err(OpenError::Closed);
            }
            match self.shared.table.step(known.id, worker, self.shared.spread(), Instant::now()) {
                Step::Use { conn, spread } => {
                    if spread && self.commands.try_send(Command::Dial(known.id)).is_err() {
                        self.shared.table.dialled(known.id, Ok(()), Instant::now(), |_| Duration::ZERO);
                    }
                    return Ok(conn);
                }
                Step::Held { wait, reason } => {
                    return Err(OpenError::Backoff { node: known.node.clone(), wait, reason });
                }
                Step::Wait { mut end, start } => {
                    if start {
                        if known.addresses.is_empty() {
                            let none: Arc<str> = "no address".into();
                            self.shared
                                .table
                                .dialled(known.id, Err(none), Instant::now(), |_| Duration::ZERO);
                            return Err(OpenError::NoAddress(known.node.to_string()));
                        }
                        self.commands.send(Command::Dial(known.id)).await.map_err(|_| OpenError::Closed)?;
                    }
                    let ended = match end.wait_for(Option::is_some).await {
                        Ok(ended) => ended.clone(),
                        Err(_) => None,
                    };
                    if let Some(Err(reason)) = ended {
                        return Err(OpenError::Dial { node: known.node.clone(), reason });
                    }
                }
            }
        }
    }

    /// Refuses new streams from now on and stops listening, so that a successor on the same port gets the peers'
    /// next connections. Streams that are open go on.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
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

    /// Closes every connection and the listeners.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.commands.send(Command::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }

    /// Streams that are open, both directions.
    pub fn streams(&self) -> usize {
        self.shared.streams.load(Ordering::Relaxed)
    }

    /// Peers about which the tunnel holds any state: connections, dials, back-off.
    pub fn tracked_peers(&self) -> usize {
        self.shared.table.len()
    }

    /// Every connection.
    pub fn status(&self) -> Vec<PeerStatus> {
        let view = self.shared.view();
        let status = |conn: Arc<Conn>| PeerStatus {
            node: view.peer(&conn.peer).map_or_else(String::new, |k| k.node.to_string()),
            peer_id: conn.peer.to_base58(),
            transport: conn.path.as_str(),
            dialled: conn.dialled,
            streams: conn.streams.load(Ordering::Relaxed),
            rtt: match conn.rtt_us.load(Ordering::Relaxed) {
                0 => None,
                micros => Some(Duration::from_micros(micros)),
            },
        };
        self.shared.table.connections().into_iter().map(status).collect()
    }
}

fn behaviour(config: &TunnelConfig, shared: Arc<Shared>) -> Behaviour {
    let identify = identify::Config::new("selvage/1".to_owned(), config.key.keypair().public())
        .with_agent_version(concat!("selvage/", env!("CARGO_PKG_VERSION")).to_owned());
    let probe =
        ping::Config::new().with_interval(config.timeouts.ping).with_timeout(config.timeouts.ping_timeout);
    let bounds = connection_limits::ConnectionLimits::default()
        .with_max_pending_incoming(Some(config.limits.handshakes))
        .with_max_established_per_peer(Some(config.limits.connections_of_a_peer));
    Behaviour {
        bounds: connection_limits::Behaviour::new(bounds),
        streams: Streams::new(shared),
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::new(probe),
    }
}

async fn send(stream: &mut Stream, message: &[u8]) -> std::io::Result<()> {
    stream.write_all(message).await?;
    stream.flush().await
}
