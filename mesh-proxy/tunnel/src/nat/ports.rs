//! Streams of our own small protocols on every connection, handed out raw: the protocols themselves are functions over
//! a stream in `relay`, `punch` and `probe`. Knows for each connection whether it leaves from the listen port, because
//! only such a connection shows the address that others must dial.

use std::{
    collections::{HashMap, VecDeque},
    iter,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{
        Endpoint,
        transport::PortUse,
        upgrade::{InboundUpgrade, ReadyUpgrade, UpgradeInfo},
    },
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};

use super::wire;
use crate::tunnel::Shared;

/// Time that the negotiation of a stream may take.
const NEGOTIATE: Duration = Duration::from_secs(5);
/// Streams and orders that wait in one handler. Streams beyond it are reset.
const QUEUE: usize = 64;

/// One connection.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) peer: PeerId,
    /// The address that was dialled, or the one that the peer's packets come from.
    pub(crate) remote: Multiaddr,
    pub(crate) dialled: bool,
    /// It leaves from the port that this node listens on.
    pub(crate) from_listen_port: bool,
    /// Through a relay.
    pub(crate) relayed: bool,
    pub(crate) since: Instant,
    pub(crate) established: bool,
}

/// Number of a stream that was asked for.
pub(crate) type Ticket = u64;

#[derive(Debug)]
pub(crate) enum Event {
    /// The peer opened a stream.
    Inbound { peer: PeerId, id: ConnectionId, protocol: StreamProtocol, stream: Stream },
    /// A stream that was asked for; none: the peer does not speak the protocol, or the connection is going.
    Opened { ticket: Ticket, stream: Option<Stream> },
}

#[derive(Debug)]
pub(crate) enum Order {
    Open(StreamProtocol, Ticket),
    /// The connection is kept although it has no streams.
    Hold(bool),
}

#[derive(Debug)]
pub(crate) struct Ports {
    shared: Arc<Shared>,
    pub(crate) links: HashMap<ConnectionId, Link>,
    queue: VecDeque<ToSwarm<Event, Order>>,
    next: Ticket,
    /// Tickets that no answer has come for, by connection: a connection that closes takes its orders with it.
    open: HashMap<Ticket, ConnectionId>,
    waker: Option<Waker>,
}

/// The peer is not in the view.
#[derive(Debug, thiserror::Error)]
#[error("peer {0} is not in the view of this node and is not dialled")]
pub(crate) struct Stranger(PeerId);

impl Ports {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            links: HashMap::new(),
            queue: VecDeque::new(),
            next: 0,
            open: HashMap::new(),
            waker: None,
        }
    }

    /// Asks for a stream. An [`Event::Opened`] with the ticket follows in any case.
    pub(crate) fn open(&mut self, id: ConnectionId, protocol: &'static str) -> Ticket {
        self.next += 1;
        let ticket = self.next;
        match self.links.get(&id).map(|l| l.peer) {
            Some(peer_id) => {
                self.open.insert(ticket, id);
                let event = Order::Open(StreamProtocol::new(protocol), ticket);
                self.push(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(id), event });
            }
            None => self.push(ToSwarm::GenerateEvent(Event::Opened { ticket, stream: None })),
        }
        ticket
    }

    /// Keeps a connection open without streams, or lets it go.
    pub(crate) fn hold(&mut self, id: ConnectionId, hold: bool) {
        if let Some(peer_id) = self.links.get(&id).map(|l| l.peer) {
            let event = Order::Hold(hold);
            self.push(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(id), event });
        }
    }

    /// Has AutoNAT find out whether others get in at an address.
    pub(crate) fn check_address(&mut self, address: Multiaddr) {
        self.push(ToSwarm::NewExternalAddrCandidate(address));
    }

    /// A connection to `peer` that is not relayed, the oldest one.
    pub(crate) fn direct(&self, peer: &PeerId) -> Option<ConnectionId> {
        let direct = self.links.iter().filter(|(_, l)| l.peer == *peer && l.established && !l.relayed);
        direct.min_by_key(|(_, l)| l.since).map(|(id, _)| *id)
    }

    /// Every connection to `peer` that is not relayed.
    pub(crate) fn all_direct(&self, peer: &PeerId) -> Vec<ConnectionId> {
        let direct = self.links.iter().filter(|(_, l)| l.peer == *peer && l.established && !l.relayed);
        direct.map(|(id, _)| *id).collect()
    }

    fn push(&mut self, action: ToSwarm<Event, Order>) {
        self.queue.push_back(action);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn close(&mut self, id: ConnectionId) {
        self.links.remove(&id);
        let lost: Vec<Ticket> = self.open.iter().filter(|(_, c)| **c == id).map(|(t, _)| *t).collect();
        for ticket in lost {
            self.open.remove(&ticket);
            self.push(ToSwarm::GenerateEvent(Event::Opened { ticket, stream: None }));
        }
    }
}

pub(crate) fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|p| p == libp2p::multiaddr::Protocol::P2pCircuit)
}

impl NetworkBehaviour for Ports {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    /// Other behaviours dial peers of whom they have only heard.
    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        match peer {
            Some(peer) if self.shared.view().peer(&peer).is_none() => {
                Err(ConnectionDenied::new(Stranger(peer)))
            }
            _ => Ok(Vec::new()),
        }
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let relayed = is_relayed(local);
        let link = Link {
            peer,
            remote: remote.clone(),
            dialled: false,
            from_listen_port: !relayed,
            relayed,
            since: Instant::now(),
            established: false,
        };
        self.links.insert(id, link);
        Ok(Handler::new(!relayed))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        _: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let relayed = is_relayed(address);
        let link = Link {
            peer,
            remote: address.clone(),
            dialled: true,
            from_listen_port: port_use == PortUse::Reuse && !relayed,
            relayed,
            since: Instant::now(),
            established: false,
        };
        self.links.insert(id, link);
        Ok(Handler::new(!relayed))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(e) => {
                if let Some(link) = self.links.get_mut(&e.connection_id) {
                    link.established = true;
                }
            }
            FromSwarm::ConnectionClosed(e) => self.close(e.connection_id),
            FromSwarm::DialFailure(e) => self.close(e.connection_id),
            FromSwarm::ListenFailure(e) => self.close(e.connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        let event = match event {
            Out::Inbound(protocol, stream) => Event::Inbound { peer, id, protocol, stream },
            Out::Opened(ticket, stream) => {
                if self.open.remove(&ticket).is_none() {
                    return;
                }
                Event::Opened { ticket, stream }
            }
        };
        self.push(ToSwarm::GenerateEvent(event));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        match self.queue.pop_front() {
            Some(action) => Poll::Ready(action),
            None => {
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// From the handler to the behaviour.
#[derive(Debug)]
pub(crate) enum Out {
    Inbound(StreamProtocol, Stream),
    Opened(Ticket, Option<Stream>),
}

/// Which protocols a connection takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spoken {
    hop: bool,
}

impl UpgradeInfo for Spoken {
    type Info = StreamProtocol;
    type InfoIter =
        iter::Chain<std::option::IntoIter<StreamProtocol>, std::array::IntoIter<StreamProtocol, 2>>;

    fn protocol_info(&self) -> Self::InfoIter {
        let own = [StreamProtocol::new(wire::PUNCH), StreamProtocol::new(wire::PROBE)];
        self.hop.then(|| StreamProtocol::new(wire::HOP)).into_iter().chain(own)
    }
}

impl InboundUpgrade<Stream> for Spoken {
    type Output = (StreamProtocol, Stream);
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        std::future::ready(Ok((protocol, stream)))
    }
}

#[derive(Debug)]
pub(crate) struct Handler {
    spoken: Spoken,
    hold: bool,
    orders: VecDeque<(StreamProtocol, Ticket)>,
    out: VecDeque<Out>,
}

impl Handler {
    fn new(hop: bool) -> Self {
        Self { spoken: Spoken { hop }, hold: false, orders: VecDeque::new(), out: VecDeque::new() }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Order;
    type ToBehaviour = Out;
    type InboundProtocol = Spoken;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Ticket;

    fn listen_protocol(&self) -> SubstreamProtocol<Spoken, ()> {
        SubstreamProtocol::new(self.spoken, ()).with_timeout(NEGOTIATE)
    }

    fn connection_keep_alive(&self) -> bool {
        self.hold
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Ticket, Out>> {
        if let Some(out) = self.out.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(out));
        }
        if let Some((name, ticket)) = self.orders.pop_front() {
            let protocol = SubstreamProtocol::new(ReadyUpgrade::new(name), ticket).with_timeout(NEGOTIATE);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        // The swarm polls again after each of the calls below.
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, order: Order) {
        match order {
            Order::Hold(hold) => self.hold = hold,
            Order::Open(_, ticket) if self.orders.len() >= QUEUE => {
                self.out.push_back(Out::Opened(ticket, None));
            }
            Order::Open(protocol, ticket) => self.orders.push_back((protocol, ticket)),
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Spoken, Self::OutboundProtocol, (), Ticket>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (name, stream),
                ..
            }) if self.out.len() < QUEUE => self.out.push_back(Out::Inbound(name, stream)),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                self.out.push_back(Out::Opened(info, Some(protocol)));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                if !matches!(error, StreamUpgradeError::NegotiationFailed) {
                    tracing::debug!(%error, "stream for NAT traversal");
                }
                self.out.push_back(Out::Opened(info, None));
            }
            _ => {}
        }
    }
}
