//! Runs the swarm: listens, dials on demand, cuts peers that left the view, closes connections that do not answer.
//!
//! - [`dials`]: the groups of addresses of each dial, one after the other.
//! - [`upkeep`]: once a second: better paths are tried, worse connections leave, silent ones are probed; and what is
//!   done when this host's networks change.

mod dials;
mod upkeep;

use std::{collections::HashMap, future::pending, sync::Arc, time::Duration};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, connection_limits,
    core::transport::ListenerId,
    identify, ping, relay,
    swarm::{ConnectionId, ListenError, NetworkBehaviour, SwarmEvent},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::MissedTickBehavior,
};

use self::{
    dials::Job,
    upkeep::{Traffic, Upgrade, Watcher},
};
use crate::{
    behaviour::Streams,
    nat,
    path::{PathTransport, is_circuit},
    table::Conn,
    tunnel::Shared,
};

/// Asks the driver for something.
#[derive(Debug)]
pub(crate) enum Command {
    /// The table has a dial for this peer that nobody runs yet.
    Dial(PeerId),
    /// These left the view.
    Cut(Vec<PeerId>),
    /// Listen here too.
    Listen(Multiaddr, oneshot::Sender<Result<(), String>>),
    /// These have other addresses than before.
    Moved(Vec<PeerId>),
    /// This connection does not answer.
    CloseConnection(ConnectionId),
    /// Take no new connections.
    StopListening,
    /// End the swarm.
    Close(oneshot::Sender<()>),
}

#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    /// First, so that a connection that is one too many gets no handler.
    pub(crate) bounds: connection_limits::Behaviour,
    pub(crate) streams: Streams,
    /// Asks relays for circuits, with the transport of the same name.
    pub(crate) circuits: relay::client::Behaviour,
    pub(crate) identify: identify::Behaviour,
    pub(crate) ping: ping::Behaviour,
    pub(crate) nat: nat::Parts,
}

pub(crate) struct Driver {
    swarm: Swarm<Behaviour>,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    listeners: Vec<(ListenerId, Multiaddr)>,
    addresses: watch::Sender<Vec<String>>,
    jobs: HashMap<PeerId, Job>,
    attempts: HashMap<ConnectionId, PeerId>,
    /// Peers on a path that may be bettered.
    upgrades: HashMap<PeerId, Upgrade>,
    /// Traffic of each connection when it was last looked at.
    traffic: HashMap<ConnectionId, Traffic>,
    networks: Watcher,
    /// Connections that have just bettered a peer's path.
    settling: Vec<Arc<Conn>>,
    nat: nat::Engine,
}

/// How often paths are looked after.
const UPKEEP: Duration = Duration::from_secs(1);

impl Driver {
    pub(crate) fn new(
        swarm: Swarm<Behaviour>,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        (listeners, addresses): (Vec<(ListenerId, Multiaddr)>, watch::Sender<Vec<String>>),
        nat: nat::Engine,
    ) -> Self {
        Self {
            swarm,
            shared,
            commands,
            listeners,
            addresses,
            jobs: HashMap::new(),
            attempts: HashMap::new(),
            upgrades: HashMap::new(),
            traffic: HashMap::new(),
            networks: Watcher::new(),
            settling: Vec::new(),
            nat,
        }
    }

    pub(crate) async fn run(mut self) {
        let mut upkeep = tokio::time::interval(UPKEEP);
        upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next_group = self.jobs.values().filter_map(Job::next).min();
            let timer = async move {
                match next_group {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Dial(peer)) => self.start_dial(peer),
                    Some(Command::Cut(peers)) => self.cut(peers),
                    Some(Command::Moved(peers)) => self.on_moved(peers),
                    Some(Command::CloseConnection(id)) => {
                        self.swarm.close_connection(id);
                    }
                    Some(Command::Listen(address, done)) => {
                        let _gone = done.send(self.listen(address));
                    }
                    Some(Command::StopListening) => self.stop_listening(),
                    Some(Command::Close(done)) => {
                        self.nat.leave().await;
                        return self.close(Some(done));
                    }
                    None => {
                        self.nat.leave().await;
                        return self.close(None);
                    }
                },
                event = self.swarm.select_next_some() => self.on_event(event),
                () = timer => self.start_due_groups(),
                change = self.networks.next() => self.on_network(change),
                _ = upkeep.tick() => self.upkeep(),
                wake = self.nat.wait() => self.nat.woken(wake, &mut self.swarm),
            }
        }
    }

    fn close(self, done: Option<oneshot::Sender<()>>) {
        self.shared.closed.cancel();
        // Dropping the swarm closes its sockets and ends the connection tasks.
        drop(self.swarm);
        if let Some(done) = done {
            let _ = done.send(());
        }
    }

    fn listen(&mut self, address: Multiaddr) -> Result<(), String> {
        let listener = self.swarm.listen_on(address.clone()).map_err(|e| e.to_string())?;
        self.listeners.push((listener, address));
        Ok(())
    }

    fn stop_listening(&mut self) {
        // The end of a QUIC listener is the end of its connections, and its port cannot be shared with a successor
        // anyhow: it stays to the end, and streams are refused.
        let leaving = |(_, address): &mut (_, Multiaddr)| PathTransport::of(address) != PathTransport::Quic;
        for (listener, _) in self.listeners.extract_if(.., leaving) {
            self.swarm.remove_listener(listener);
        }
    }

    fn cut(&mut self, peers: Vec<PeerId>) {
        for peer in peers {
            tracing::info!(%peer, "peer left the view: its connections are cut");
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    // === events ===

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        self.nat.on_event(&event, &mut self.swarm);
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                tracing::debug!(peer = %peer_id, address = %endpoint.get_remote_address(), "connected");
                self.on_established(connection_id, peer_id);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                self.traffic.remove(&connection_id);
                tracing::debug!(peer = %peer_id, cause = cause.map(|c| c.to_string()), "connection closed");
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.on_attempt_failed(connection_id, &error);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                if is_exceeded(&error) {
                    self.shared.metrics.denied("limit");
                }
                tracing::debug!(from = %send_back_addr, %error, "incoming connection failed");
            }
            // Circuits are told apart: they are not addresses of this host.
            SwarmEvent::NewListenAddr { address, .. } if is_circuit(&address) => {}
            SwarmEvent::NewListenAddr { address, .. } => {
                tracing::info!(%address, "tunnel listens");
                self.addresses.send_modify(|a| a.push(address.to_string()));
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                let gone = address.to_string();
                self.addresses.send_modify(|a| a.retain(|x| *x != gone));
            }
            SwarmEvent::ListenerClosed { reason: Err(error), .. }
            | SwarmEvent::ListenerError { error, .. } => {
                tracing::error!(%error, "tunnel listener failed");
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => self.on_ping(event),
            SwarmEvent::Behaviour(BehaviourEvent::Nat(event)) => self.nat.on_part(event, &mut self.swarm),
            _ => {}
        }
    }

    fn on_ping(&mut self, event: ping::Event) {
        match event.result {
            Ok(rtt) => {
                if let Some(conn) = self.shared.table.find(event.peer, event.connection) {
                    conn.measured(rtt);
                    self.shared.metrics.measured(conn.path, rtt);
                }
            }
            Err(error) => {
                tracing::info!(peer = %event.peer, %error, "peer does not answer: connection is closed");
                if let Some(conn) = self.shared.table.find(event.peer, event.connection) {
                    // No stream takes it while it closes.
                    conn.closed.store(true, std::sync::atomic::Ordering::Relaxed);
                    self.shared.table.refresh(event.peer);
                }
                self.swarm.close_connection(event.connection);
            }
        }
    }
}

/// Whether a connection was one too many: of its peer, or of those that have not proved who they are.
fn is_exceeded(error: &ListenError) -> bool {
    matches!(error, ListenError::Denied { cause } if cause.downcast_ref::<connection_limits::Exceeded>().is_some())
}

/// Waits until every listener has an address or `limit` is over.
pub(crate) async fn listening(
    swarm: &mut Swarm<Behaviour>,
    listeners: usize,
    limit: Duration,
    nat: &mut nat::Engine,
) -> Vec<String> {
    let mut addresses = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let wait = async {
        while seen.len() < listeners {
            if let SwarmEvent::NewListenAddr { listener_id, address } = swarm.select_next_some().await {
                tracing::info!(%address, "tunnel listens");
                nat.listens(&address);
                addresses.push(address.to_string());
                seen.insert(listener_id);
            }
        }
    };
    let _ = tokio::time::timeout(limit, wait).await;
    addresses
}
