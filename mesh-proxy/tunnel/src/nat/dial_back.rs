//! AutoNAT's server, with an end to what it dials: libp2p leaves the connection of a dial-back to its idle time-out, five
//! minutes of two descriptors and a socket of its own for each node that asks. Here it takes no streams from the start,
//! and the engine closes it when the test is over.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId, autonat,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
    },
};

use crate::tunnel::Shared;

type Inner = autonat::v2::server::Behaviour;

/// What the engine hears.
#[derive(Debug)]
pub(crate) enum DialBack {
    /// A test has ended.
    Tested(autonat::v2::server::Event),
    /// The connection of a test is not needed any more.
    Over(PeerId, ConnectionId),
}

pub(crate) struct DialBacks {
    inner: Inner,
    shared: Arc<Shared>,
    /// Its dials, and the connections that came of them, until the test is over.
    dialled: HashSet<ConnectionId>,
    over: VecDeque<(PeerId, ConnectionId)>,
}

impl DialBacks {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { inner: Inner::default(), shared, dialled: HashSet::new(), over: VecDeque::new() }
    }
}

impl NetworkBehaviour for DialBacks {
    type ConnectionHandler = <Inner as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = DialBack;

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

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match &event {
            FromSwarm::ConnectionEstablished(e) if self.dialled.contains(&e.connection_id) => {
                if let Some(conn) = self.shared.table.find(e.peer_id, e.connection_id) {
                    self.shared.retire(&conn);
                }
            }
            FromSwarm::ConnectionClosed(e) => {
                self.dialled.remove(&e.connection_id);
            }
            FromSwarm::DialFailure(e) => {
                self.dialled.remove(&e.connection_id);
            }
            _ => {}
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        // The handler of a dial-back says one thing: how it ended.
        if self.dialled.remove(&id) {
            self.over.push_back((peer, id));
        }
        self.inner.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<DialBack, THandlerInEvent<Self>>> {
        if let Some((peer, id)) = self.over.pop_front() {
            return Poll::Ready(ToSwarm::GenerateEvent(DialBack::Over(peer, id)));
        }
        self.inner.poll(cx).map(|action| {
            if let ToSwarm::Dial { opts } = &action {
                self.dialled.insert(opts.connection_id());
            }
            action.map_out(DialBack::Tested)
        })
    }
}
