//! Runs the swarm: listens, dials on demand (TCP first, QUIC after a head start), cuts peers that left the view,
//! closes connections that do not answer probes.

use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    num::NonZeroU8,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, connection_limits,
    core::transport::ListenerId,
    identify, ping,
    swarm::{
        ConnectionId, DialError, NetworkBehaviour, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{behaviour::Streams, tunnel::Shared};

/// Asks the driver for something.
#[derive(Debug)]
pub(crate) enum Command {
    /// The table has a dial for this peer that nobody runs yet.
    Dial(PeerId),
    /// These left the view.
    Cut(Vec<PeerId>),
    /// Listen here too.
    Listen(Multiaddr, oneshot::Sender<Result<(), String>>),
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
    pub(crate) identify: identify::Behaviour,
    pub(crate) ping: ping::Behaviour,
}

/// A dial of one peer: groups of addresses, started one after the other.
struct DialJob {
    /// Attempts under way.
    attempts: Vec<ConnectionId>,
    groups: VecDeque<Vec<Multiaddr>>,
    /// When the next group starts even though attempts are under way.
    next: Instant,
    reasons: Vec<String>,
    began: Instant,
    /// All addresses once more, for a first round that fails quickly: a process that is replaced resets connections
    /// that it has not accepted, and its successor takes the next ones.
    again: VecDeque<Vec<Multiaddr>>,
}

pub(crate) struct Driver {
    swarm: Swarm<Behaviour>,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    listeners: Vec<ListenerId>,
    addresses: watch::Sender<Vec<String>>,
    jobs: HashMap<PeerId, DialJob>,
    attempts: HashMap<ConnectionId, PeerId>,
}

/// A first round that fails within this time is followed by a second one after a pause.
const QUICK_FAILURE: Duration = Duration::from_secs(1);
const SECOND_ROUND: Duration = Duration::from_millis(100);
/// Addresses of one group that are tried at once.
const DIAL_CONCURRENCY: NonZeroU8 = match NonZeroU8::new(8) {
    Some(n) => n,
    None => NonZeroU8::MIN,
};

impl Driver {
    pub(crate) fn new(
        swarm: Swarm<Behaviour>,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        (listeners, addresses): (Vec<ListenerId>, watch::Sender<Vec<String>>),
    ) -> Self {
        Self { swarm, shared, commands, listeners, addresses, jobs: HashMap::new(), attempts: HashMap::new() }
    }

    pub(crate) async fn run(mut self) {
        loop {
            let next_group = self.jobs.values().filter(|j| !j.groups.is_empty()).map(|j| j.next).min();
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
                    Some(Command::Listen(address, done)) => {
                        let _gone = done.send(self.listen(address));
                    }
                    Some(Command::StopListening) => self.stop_listening(),
                    Some(Command::Close(done)) => return self.close(Some(done)),
                    None => return self.close(None),
                },
                event = self.swarm.select_next_some() => self.on_event(event),
                () = timer => self.start_due_groups(),
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
        let listener = self.swarm.listen_on(address).map_err(|e| e.to_string())?;
        self.listeners.push(listener);
        Ok(())
    }

    fn stop_listening(&mut self) {
        for listener in self.listeners.drain(..) {
            self.swarm.remove_listener(listener);
        }
    }

    fn cut(&mut self, peers: Vec<PeerId>) {
        for peer in peers {
            tracing::info!(%peer, "peer left the view: its connections are cut");
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    // === dials ===

    fn start_dial(&mut self, peer: PeerId) {
        let Some(known) = self.shared.view().peer(&peer).cloned() else {
            return self.end_dial(peer, Err("peer left the view".into()));
        };
        if known.addresses.is_empty() {
            return self.end_dial(peer, Err("peer has no addresses".into()));
        }
        let groups: VecDeque<_> = known.addresses.iter().cloned().collect();
        let (began, again) = (Instant::now(), groups.clone());
        let job = DialJob { attempts: Vec::new(), groups, next: began, reasons: Vec::new(), began, again };
        self.jobs.insert(peer, job);
        self.start_group(peer);
    }

    fn start_due_groups(&mut self) {
        let now = Instant::now();
        let due = self.jobs.iter().filter(|(_, j)| !j.groups.is_empty() && j.next <= now);
        for peer in due.map(|(p, _)| *p).collect::<Vec<_>>() {
            self.start_group(peer);
        }
    }

    /// Starts the next group of a job; ends the job when there is none and nothing is under way.
    fn start_group(&mut self, peer: PeerId) {
        let Some(job) = self.jobs.get_mut(&peer) else { return };
        while let Some(addresses) = job.groups.pop_front() {
            job.next = Instant::now() + self.shared.timeouts.quic_delay;
            let opts = DialOpts::peer_id(peer)
                .condition(PeerCondition::Always)
                .addresses(addresses)
                .override_dial_concurrency_factor(DIAL_CONCURRENCY)
                // Reusing the listen port would tie each pair of nodes to one connection.
                .allocate_new_port()
                .build();
            let id = opts.connection_id();
            match self.swarm.dial(opts) {
                Ok(()) => {
                    job.attempts.push(id);
                    self.attempts.insert(id, peer);
                    return;
                }
                Err(e) => job.reasons.push(describe(&e)),
            }
        }
        if !job.attempts.is_empty() {
            return;
        }
        let again = std::mem::take(&mut job.again);
        if !again.is_empty() && job.began.elapsed() < QUICK_FAILURE {
            job.groups = again;
            job.next = Instant::now() + SECOND_ROUND;
            job.reasons.clear();
            return;
        }
        let reason = job.reasons.join("; ").into();
        self.jobs.remove(&peer);
        self.end_dial(peer, Err(reason));
    }

    fn end_dial(&mut self, peer: PeerId, end: Result<(), Arc<str>>) {
        self.shared.metrics.dialled(if end.is_ok() { "ok" } else { "failed" });
        if let Err(reason) = &end {
            tracing::debug!(%peer, %reason, "dial failed");
        }
        let (min, max) = (self.shared.timeouts.backoff_min, self.shared.timeouts.backoff_max);
        self.shared.table.dialled(peer, end, Instant::now(), |failures| {
            let factor = 1u32 << failures.saturating_sub(1).min(16);
            // A quarter of jitter, so that nodes that lost the same peer do not return together.
            let spread: f64 = rand::random_range(0.75..1.25);
            min.saturating_mul(factor).min(max).mul_f64(spread)
        });
    }

    fn on_attempt_failed(&mut self, id: ConnectionId, error: &DialError) {
        let Some(peer) = self.attempts.remove(&id) else { return };
        let Some(job) = self.jobs.get_mut(&peer) else { return };
        job.attempts.retain(|a| *a != id);
        job.reasons.push(describe(error));
        if job.attempts.is_empty() {
            self.start_group(peer);
        }
    }

    fn on_established(&mut self, id: ConnectionId, peer: PeerId) {
        let ours = self.attempts.remove(&id).is_some();
        // A connection that the peer dialled serves those who wait too, but does not end our own attempts.
        if ours && self.jobs.remove(&peer).is_some() {
            self.end_dial(peer, Ok(()));
        }
    }

    // === events ===

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                tracing::debug!(peer = %peer_id, address = %endpoint.get_remote_address(), "connected");
                self.on_established(connection_id, peer_id);
            }
            SwarmEvent::ConnectionClosed { peer_id, cause, .. } => {
                tracing::debug!(peer = %peer_id, cause = cause.map(|c| c.to_string()), "connection closed");
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.on_attempt_failed(connection_id, &error);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(from = %send_back_addr, %error, "incoming connection failed");
            }
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
            _ => {}
        }
    }

    fn on_ping(&mut self, event: ping::Event) {
        match event.result {
            Ok(rtt) => {
                if let Some(conn) = self.shared.table.find(event.peer, event.connection) {
                    let micros = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
                    conn.rtt_us.store(micros, std::sync::atomic::Ordering::Relaxed);
                }
            }
            Err(error) => {
                tracing::info!(peer = %event.peer, %error, "peer does not answer: connection is closed");
                if let Some(conn) = self.shared.table.find(event.peer, event.connection) {
                    // No stream takes it while it closes.
                    conn.closed.store(true, std::sync::atomic::Ordering::Relaxed);
                }
                self.swarm.close_connection(event.connection);
            }
        }
    }
}

/// One line for a failed dial, with each address once.
fn describe(error: &DialError) -> String {
    match error {
        DialError::Transport(errors) => {
            let each = errors.iter().map(|(address, e)| {
                let mut text = format!("{address}: {e}");
                let mut source = std::error::Error::source(e);
                // The outermost lines only name layers; the innermost says what happened.
                while let Some(inner) = source {
                    if inner.source().is_none() {
                        text = format!("{address}: {inner}");
                    }
                    source = inner.source();
                }
                text
            });
            each.collect::<Vec<_>>().join("; ")
        }
        other => other.to_string(),
    }
}

/// Waits until every listener has an address or `limit` is over.
pub(crate) async fn listening(
    swarm: &mut Swarm<Behaviour>,
    listeners: usize,
    limit: Duration,
) -> Vec<String> {
    let mut addresses = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let wait = async {
        while seen.len() < listeners {
            if let SwarmEvent::NewListenAddr { listener_id, address } = swarm.select_next_some().await {
                tracing::info!(%address, "tunnel listens");
                addresses.push(address.to_string());
                seen.insert(listener_id);
            }
        }
    };
    let _ = tokio::time::timeout(limit, wait).await;
    addresses
}
