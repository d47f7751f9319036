//! Which connections exist: only with peers of the view, each with a tunnel handler, each in the table while it
//! lives. Denies unknown peers as soon as the handshake has said who they are.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Instant, SystemTime},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        CloseConnection, ConnectionDenied, ConnectionError, ConnectionId, FromSwarm, NetworkBehaviour,
        THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    },
};
use tokio::sync::{Notify, mpsc};

use crate::{
    handler::{Handler, Link},
    path::{PathTransport, is_circuit, path_of, socket_of},
    peers::relay_of,
    quic,
    table::{Conn, Counted, OPEN_QUEUE},
    tunnel::Shared,
};

/// The peer is not in the view.
#[derive(Debug, thiserror::Error)]
#[error("peer {0} is not in the view of this node")]
pub(crate) struct NotInView(PeerId);

pub(crate) struct Streams {
    shared: Arc<Shared>,
    /// Handlers made for connections that the swarm has not confirmed yet.
    unconfirmed: HashMap<ConnectionId, Arc<Conn>>,
    /// Connections whose peer left the view while they were being made.
    unwanted: VecDeque<(PeerId, ConnectionId)>,
}

impl Streams {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, unconfirmed: HashMap::new(), unwanted: VecDeque::new() }
    }

    fn connect(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        (dialled, punched): (bool, bool),
    ) -> Result<Handler, ConnectionDenied> {
        let Some(known) = self.shared.view().peer(&peer).cloned() else {
            self.shared.metrics.denied("unknown_peer");
            return Err(ConnectionDenied::new(NotInView(peer)));
        };
        let (opens, receiver) = mpsc::channel(OPEN_QUEUE);
        let placement = &self.shared.placement;
        let quic = quic::socket_of(address).and_then(|at| placement.quic(at));
        let worker = quic.or_else(|| self.shared.table.place(peer, placement.workers()));
        let path = path_of(address, &self.shared.networks(), punched);
        let conn = Arc::new(Conn {
            id,
            peer,
            path,
            relay: relay_of(address),
            remote: address.clone(),
            dialled,
            worker,
            opens,
            since: (SystemTime::now(), Instant::now()),
            streams: AtomicUsize::new(0),
            load: self.shared.table.load(peer),
            rtt_us: AtomicU64::new(0),
            probes: Default::default(),
            sent: Counted::new(self.shared.metrics.bytes("sent", path)),
            received: Counted::new(self.shared.metrics.bytes("received", path)),
            signs: AtomicU64::new(0),
            socket: (path.transport != PathTransport::Quic)
                .then(|| socket_of(address).map(|at| self.shared.lives.of(at)))
                .flatten(),
            closed: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            told: AtomicBool::new(false),
            suspect: AtomicBool::new(false),
            generation: self.shared.generations.of(known.node.clone()),
            shaken: AtomicBool::new(false),
            probing: AtomicBool::new(false),
            doubt: Notify::new(),
        });
        self.unconfirmed.insert(id, conn.clone());
        self.shared.placement.place_next(worker);
        let link = Link { shared: self.shared.clone(), conn };
        Ok(Handler::new(Arc::new(link), receiver))
    }
}

/// Whether a connection ended without a word, as those of a process that was killed do. A plain end of file is what
/// follows the words.
fn is_broken(cause: &ConnectionError) -> bool {
    let ConnectionError::IO(error) = cause else { return false };
    let mut innermost = error;
    while let Some(inner) = innermost.get_ref().and_then(|e| e.downcast_ref::<io::Error>()) {
        innermost = inner;
    }
    match innermost.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::TimedOut => true,
        io::ErrorKind::UnexpectedEof => innermost.get_ref().is_some(),
        _ => false,
    }
}

impl NetworkBehaviour for Streams {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        // Behind a relay the remote address names the peer only; the local one says through whom.
        let address = if is_circuit(local) { local } else { remote };
        // The other half of a punch: the peer dials at the same time.
        let knowledge = &self.shared.knowledge;
        let punched =
            (self.shared.take_punched(id) || knowledge.is_punching(&peer)) && !knowledge.is_open_to(remote);
        self.connect(id, peer, address, (false, punched))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let punched = (self.shared.take_punched(id) || role.is_listener())
            && !self.shared.knowledge.is_open_at(&peer, address);
        self.connect(id, peer, address, (true, punched))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(e) => {
                if let Some(conn) = self.unconfirmed.remove(&e.connection_id) {
                    self.shared.metrics.connections(conn.path).inc();
                    self.shared.table.established(conn);
                    // Looked up after it is in the table: whoever swaps the view now finds it there.
                    if self.shared.view().peer(&e.peer_id).is_none() {
                        self.unwanted.push_back((e.peer_id, e.connection_id));
                    }
                }
            }
            FromSwarm::ConnectionClosed(e) => {
                if let Some(conn) = self.shared.table.closed(e.peer_id, e.connection_id) {
                    self.shared.metrics.connections(conn.path).dec();
                    // What a circuit's end means for others is seen at its relay's own connections.
                    if conn.relay.is_none()
                        && !conn.retired.load(Ordering::Relaxed)
                        && e.cause.is_some_and(is_broken)
                    {
                        self.shared.table.beside(conn.peer).iter().for_each(|c| self.shared.shake(c));
                    }
                }
            }
            FromSwarm::DialFailure(e) => {
                self.shared.take_punched(e.connection_id);
                self.unconfirmed.remove(&e.connection_id);
            }
            FromSwarm::ListenFailure(e) => {
                self.unconfirmed.remove(&e.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        match self.unwanted.pop_front() {
            Some((peer_id, id)) => {
                Poll::Ready(ToSwarm::CloseConnection { peer_id, connection: CloseConnection::One(id) })
            }
            None => Poll::Pending,
        }
    }
}
