//! Kademlia, which asks the nodes that are reached. libp2p's dials every node that might know a peer: a connection of each
//! node with each other. And it dials from the listen port: toward a peer behind a NAT that is the same pair of endpoints as
//! a punch, with another idea of who is client of the encryption; the kernel joins whichever two meet, and both sides wait
//! for the other's first word. Here nobody is dialled while there are a few to ask, and then from a port of its own.

use std::{
    collections::HashSet,
    ops::{Deref, DerefMut},
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    kad::{self, store::MemoryStore},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, dial_opts::DialOpts,
    },
};

type Inner = kad::Behaviour<MemoryStore>;

/// So many nodes that are reached are enough to ask.
const ENOUGH: usize = 3;

/// Others are not dialled only to be asked.
#[derive(Debug, thiserror::Error)]
#[error("nodes that are reached are asked, others are not dialled for it")]
struct NotReached;

pub(crate) struct Kademlia {
    inner: Inner,
    reached: HashSet<PeerId>,
    /// Dials that the swarm is asked for and is not to make: the query hears at once that it must do without.
    refused: HashSet<ConnectionId>,
}

impl Kademlia {
    pub(crate) fn new(inner: Inner) -> Self {
        Self { inner, reached: HashSet::new(), refused: HashSet::new() }
    }
}

impl Deref for Kademlia {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl DerefMut for Kademlia {
    fn deref_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }
}

/// The same dial from a port of its own.
fn aside(opts: DialOpts) -> DialOpts {
    let Some(peer) = opts.get_peer_id() else { return opts };
    DialOpts::peer_id(peer)
        .addresses(Vec::new())
        .extend_addresses_through_behaviour()
        .allocate_new_port()
        .build()
}

impl NetworkBehaviour for Kademlia {
    type ConnectionHandler = <Inner as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = kad::Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_outbound_connection(id, peer, address, role, port)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        if self.refused.remove(&id) {
            return Err(ConnectionDenied::new(NotReached));
        }
        self.inner.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match &event {
            FromSwarm::ConnectionEstablished(e) => {
                self.reached.insert(e.peer_id);
            }
            FromSwarm::ConnectionClosed(e) if e.remaining_established == 0 => {
                self.reached.remove(&e.peer_id);
            }
            FromSwarm::DialFailure(e) => {
                self.refused.remove(&e.connection_id);
            }
            _ => {}
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.inner.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<kad::Event, THandlerInEvent<Self>>> {
        self.inner.poll(cx).map(|action| match action {
            ToSwarm::Dial { opts } => {
                let opts = aside(opts);
                if self.reached.len() >= ENOUGH {
                    self.refused.insert(opts.connection_id());
                }
                ToSwarm::Dial { opts }
            }
            other => other,
        })
    }
}
