//! The connections of each peer: which one a stream takes, when a dial starts, how long a failing peer is left alone.
//! Holds no sockets and runs no tasks; `now` is an argument.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use libp2p::{Multiaddr, PeerId, Stream, swarm::ConnectionId};
use prometheus::{IntCounter, IntCounterVec};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::{
    exec::Worker,
    path::{Path, PathKind, PathTransport},
};

/// Asks a connection for a stream. Dropping the receiver cancels it.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) reply: oneshot::Sender<Stream>,
    pub(crate) what: Asked,
}

/// What the stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// An endpoint of the peer.
    Tunnel,
    /// A word between the two nodes about the connection itself.
    Control,
}

/// Opens that wait for the connection task to notice them.
pub(crate) const OPEN_QUEUE: usize = 1024;

/// One established connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) id: ConnectionId,
    pub(crate) peer: PeerId,
    pub(crate) path: Path,
    /// The relay that carries it.
    pub(crate) relay: Option<PeerId>,
    pub(crate) remote: Multiaddr,
    pub(crate) dialled: bool,
    pub(crate) worker: Option<Worker>,
    pub(crate) opens: mpsc::Sender<Ask>,
    pub(crate) since: (SystemTime, Instant),
    /// Streams of both directions on this connection.
    pub(crate) streams: AtomicUsize,
    pub(crate) load: Arc<PeerLoad>,
    /// Smoothed round trip; 0 = not measured.
    pub(crate) rtt_us: AtomicU64,
    /// Probes that were sent, and those that had no answer in time.
    pub(crate) probes: (AtomicU32, AtomicU32),
    pub(crate) sent: Counted,
    pub(crate) received: Counted,
    /// Signs of life beside the bytes of streams.
    pub(crate) signs: AtomicU64,
    /// Signs of life of the socket below, which it may share with other connections to the same address.
    pub(crate) socket: Option<Arc<AtomicU64>>,
    pub(crate) closed: AtomicBool,
    /// The peer's process behind it takes no new streams, or a better connection has taken its place.
    pub(crate) retired: AtomicBool,
    /// The peer has heard that it takes no new streams.
    pub(crate) told: AtomicBool,
    /// It has not answered for a while; new streams prefer any other.
    pub(crate) suspect: AtomicBool,
    /// Moves when pooled streams to the node should be left for new ones.
    pub(crate) generation: Arc<AtomicU64>,
    /// Another connection to the same place has just broken: this one is asked with less patience.
    pub(crate) shaken: AtomicBool,
    /// A probe is under way.
    pub(crate) probing: AtomicBool,
    /// Tells opens that wait on it that it became suspect.
    pub(crate) doubt: Notify,
}

/// Bytes of one direction of one connection, counted for the node too.
#[derive(Debug)]
pub(crate) struct Counted {
    own: AtomicU64,
    all: IntCounter,
}

impl Counted {
    pub(crate) fn new(all: IntCounter) -> Self {
        Self { own: AtomicU64::new(0), all }
    }

    pub(crate) fn add(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.own.fetch_add(bytes, Ordering::Relaxed);
        self.all.inc_by(bytes);
    }

    pub(crate) fn get(&self) -> u64 {
        self.own.load(Ordering::Relaxed)
    }
}

impl Conn {
    /// Whether new streams may take it.
    pub(crate) fn is_usable(&self) -> bool {
        !self.closed.load(Ordering::Relaxed)
            && !self.retired.load(Ordering::Relaxed)
            // The connection's task has ended; the swarm says so a little later.
            && !self.opens.is_closed()
    }

    /// Notes that something came from the peer.
    pub(crate) fn heard(&self) {
        self.signs.fetch_add(1, Ordering::Relaxed);
    }

    /// Moves whenever something comes from the peer.
    pub(crate) fn life(&self) -> u64 {
        let socket = self.socket.as_ref().map_or(0, |s| s.load(Ordering::Relaxed));
        self.signs.load(Ordering::Relaxed).wrapping_add(self.received.get()).wrapping_add(socket)
    }

    /// Whether a pool should leave it at the next request: there is a better connection, or it takes no new streams.
    pub(crate) fn is_superseded(&self) -> bool {
        !self.is_usable() || self.load.best.load(Ordering::Relaxed) < self.path.rank()
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        match self.rtt_us.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    /// Takes a new measurement of the round trip.
    pub(crate) fn measured(&self, rtt: Duration) {
        let micros = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1);
        let before = self.rtt_us.load(Ordering::Relaxed);
        let smoothed = if before == 0 { micros } else { before - before / 4 + micros / 4 };
        self.rtt_us.store(smoothed.max(1), Ordering::Relaxed);
    }
}

/// No usable connection.
const NO_PATH: u8 = u8::MAX;

/// What all connections of one peer share.
#[derive(Debug)]
pub(crate) struct PeerLoad {
    pub(crate) outbound: AtomicUsize,
    pub(crate) inbound: AtomicUsize,
    /// Rank of the best usable path.
    best: AtomicU8,
}

impl Default for PeerLoad {
    fn default() -> Self {
        Self { outbound: AtomicUsize::new(0), inbound: AtomicUsize::new(0), best: AtomicU8::new(NO_PATH) }
    }
}

/// How a dial ended, for those who wait for it.
pub(crate) type DialEnd = Option<Result<(), Arc<str>>>;

#[derive(Debug, Default)]
struct Entry {
    conns: Vec<Arc<Conn>>,
    load: Arc<PeerLoad>,
    dialling: Option<watch::Sender<DialEnd>>,
    failures: u32,
    held: Option<(Instant, Arc<str>)>,
    /// The path of new streams.
    path: Option<Path>,
}

/// What an opener does next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Take this connection; `spread` asks for one more dial in the background.
    Use { conn: Arc<Conn>, spread: bool },
    /// Wait for the dial; `start` says that this caller must start it.
    Wait { end: watch::Receiver<DialEnd>, start: bool },
    /// Dials failed a moment ago.
    Held { wait: Duration, reason: Arc<str> },
}

/// When more connections to one peer are worth having.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) max_connections: usize,
    pub(crate) at_streams: usize,
}

/// What upkeep looks at: one peer with connections.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) peer: PeerId,
    /// The path of new streams.
    pub(crate) best: Option<Path>,
    /// The connection that the next stream takes.
    pub(crate) chosen: Option<ConnectionId>,
    pub(crate) conns: Vec<Arc<Conn>>,
}

impl Survey {
    /// Whether the best path has stood for so long.
    pub(crate) fn lasting(&self, time: Duration, now: Instant) -> bool {
        let best = |c: &&Arc<Conn>| Some(c.path) == self.best && c.is_usable();
        self.conns.iter().filter(best).any(|c| now.saturating_duration_since(c.since.1) >= time)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    peers: Mutex<HashMap<PeerId, Entry>>,
    /// Counts changes of a peer's path.
    changes: Option<IntCounterVec>,
}

impl Table {
    pub(crate) fn new(changes: IntCounterVec) -> Self {
        Self { peers: Mutex::default(), changes: Some(changes) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Entry>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides for one opener that runs on `worker`.
    pub(crate) fn step(&self, peer: PeerId, worker: Option<Worker>, spread: Spread, now: Instant) -> Step {
        let mut peers = self.lock();
        let entry = peers.entry(peer).or_default();
        if let Some(conn) = entry.pick(worker) {
            // A connection that does not answer serves only until there is another one.
            let suspect = conn.suspect.load(Ordering::Relaxed) && entry.may_dial(now);
            let spread = suspect || entry.wants_more(&conn, worker, spread, now);
            if spread {
                entry.dialling = Some(watch::Sender::new(None));
            }
            // Who comes while that dial runs waits for it too: it ends with another connection, or when this one answers.
            if let Some(dialling) = &entry.dialling
                && conn.suspect.load(Ordering::Relaxed)
                && dialling.borrow().is_none()
            {
                return Step::Wait { end: dialling.subscribe(), start: suspect };
            }
            return Step::Use { conn, spread };
        }
        if let Some(dialling) = &entry.dialling {
            return Step::Wait { end: dialling.subscribe(), start: false };
        }
        if let Some((until, reason)) = &entry.held
            && *until > now
        {
            return Step::Held { wait: *until - now, reason: reason.clone() };
        }
        let (sender, end) = watch::channel(None);
        entry.dialling = Some(sender);
        Step::Wait { end, start: true }
    }

    /// What a new connection of `peer` shares with its others.
    pub(crate) fn load(&self, peer: PeerId) -> Arc<PeerLoad> {
        self.lock().entry(peer).or_default().load.clone()
    }

    /// The worker with the fewest connections of this peer, then with the fewest of all.
    pub(crate) fn place(&self, peer: PeerId, workers: usize) -> Option<Worker> {
        let peers = self.lock();
        (0..workers).min_by_key(|w| {
            let on = |e: &Entry| e.conns.iter().filter(|c| c.worker == Some(*w)).count();
            (peers.get(&peer).map_or(0, on), peers.values().map(on).sum::<usize>())
        })
    }

    pub(crate) fn established(&self, conn: Arc<Conn>) {
        let mut peers = self.lock();
        let entry = peers.entry(conn.peer).or_default();
        entry.failures = 0;
        entry.held = None;
        entry.conns.push(conn);
        if let Some(dialling) = &entry.dialling {
            // Wakes those who wait, also when it was the peer who connected.
            let _ = dialling.send(Some(Ok(())));
        }
        entry.refresh(self.changes.as_ref());
    }

    pub(crate) fn closed(&self, peer: PeerId, id: ConnectionId) -> Option<Arc<Conn>> {
        let mut peers = self.lock();
        let entry = peers.get_mut(&peer)?;
        let at = entry.conns.iter().position(|c| c.id == id)?;
        let conn = entry.conns.swap_remove(at);
        conn.closed.store(true, Ordering::Relaxed);
        entry.refresh(self.changes.as_ref());
        if let (None, Some(dialling)) = (entry.path, &entry.dialling) {
            // What those who wait were woken for is gone again.
            dialling.send_replace(None);
        }
        if entry.is_empty() {
            peers.remove(&peer);
        }
        Some(conn)
    }

    /// A silent connection of the peer has answered after all.
    pub(crate) fn answered(&self, peer: PeerId) {
        let mut peers = self.lock();
        let Some(entry) = peers.get_mut(&peer) else { return };
        if let Some(dialling) = &entry.dialling {
            let _ = dialling.send(Some(Ok(())));
        }
        entry.refresh(self.changes.as_ref());
    }

    /// The other connections of a peer, and those that it carries as a relay.
    pub(crate) fn beside(&self, peer: PeerId) -> Vec<Arc<Conn>> {
        let peers = self.lock();
        let all = peers.values().flat_map(|e| &e.conns);
        all.filter(|c| c.peer == peer || c.relay == Some(peer)).cloned().collect()
    }

    /// To be called after a connection of the peer became usable or not.
    pub(crate) fn refresh(&self, peer: PeerId) {
        if let Some(entry) = self.lock().get_mut(&peer) {
            entry.refresh(self.changes.as_ref());
        }
    }

    /// The worker that runs a connection with `peer`.
    pub(crate) fn worker_of(&self, peer: &PeerId) -> Option<Worker> {
        self.lock().get(peer)?.conns.first()?.worker
    }

    pub(crate) fn find(&self, peer: PeerId, id: ConnectionId) -> Option<Arc<Conn>> {
        self.lock().get(&peer)?.conns.iter().find(|c| c.id == id).cloned()
    }

    /// The path that a new stream to the peer takes.
    pub(crate) fn path(&self, peer: &PeerId) -> Option<Path> {
        self.lock().get(peer)?.path
    }

    /// The worst path of the peer's usable connections.
    pub(crate) fn worst(&self, peer: &PeerId) -> Option<Path> {
        self.lock().get(peer)?.conns.iter().filter(|c| c.is_usable()).map(|c| c.path).max()
    }

    /// The path of the connections that answer, for a dial of one more.
    pub(crate) fn answering(&self, peer: &PeerId) -> Option<Path> {
        let peers = self.lock();
        let live =
            peers.get(peer)?.conns.iter().filter(|c| c.is_usable() && !c.suspect.load(Ordering::Relaxed));
        live.map(|c| c.path).min()
    }

    /// Ends a dial. A failure holds the next one back for `pause(failures)`.
    pub(crate) fn dialled(
        &self,
        peer: PeerId,
        end: Result<(), Arc<str>>,
        now: Instant,
        pause: impl FnOnce(u32) -> Duration,
    ) {
        let mut peers = self.lock();
        let Some(entry) = peers.get_mut(&peer) else { return };
        let dialling = entry.dialling.take();
        if let Err(reason) = &end {
            entry.failures = entry.failures.saturating_add(1);
            entry.held = Some((now + pause(entry.failures), reason.clone()));
        }
        if let Some(dialling) = dialling {
            let _ = dialling.send(Some(end));
        }
        if entry.is_empty() {
            peers.remove(&peer);
        }
    }

    /// Forgets failures: the peer has new addresses, or this node is in another network.
    pub(crate) fn forgive(&self, peer: PeerId) {
        let mut peers = self.lock();
        let Some(entry) = peers.get_mut(&peer) else { return };
        entry.failures = 0;
        entry.held = None;
        if entry.is_empty() {
            peers.remove(&peer);
        }
    }

    /// Forgets peers that are not wanted; gives those that still have connections, which are closed by the caller.
    pub(crate) fn remove_unwanted(&self, wanted: impl Fn(&PeerId) -> bool) -> Vec<PeerId> {
        let mut cut = Vec::new();
        self.lock().retain(|peer, entry| {
            if wanted(peer) {
                return true;
            }
            entry.failures = 0;
            entry.held = None;
            for conn in &entry.conns {
                conn.closed.store(true, Ordering::Relaxed);
            }
            entry.refresh(None);
            if !entry.conns.is_empty() {
                cut.push(*peer);
            }
            !entry.is_empty()
        });
        cut
    }

    pub(crate) fn connections(&self) -> Vec<Arc<Conn>> {
        self.lock().values().flat_map(|e| e.conns.iter().cloned()).collect()
    }

    pub(crate) fn connections_of(&self, peer: &PeerId) -> Vec<Arc<Conn>> {
        self.lock().get(peer).map_or_else(Vec::new, |e| e.conns.clone())
    }

    /// Every peer with connections or failures.
    pub(crate) fn survey(&self) -> Vec<Survey> {
        let peers = self.lock();
        let one = |(peer, e): (&PeerId, &Entry)| Survey {
            peer: *peer,
            best: e.path,
            chosen: e.pick(None).map(|c| c.id),
            conns: e.conns.clone(),
        };
        peers.iter().map(one).collect()
    }

    /// Peers with any state, for tests of growth.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.conns.is_empty() && self.dialling.is_none() && self.failures == 0
    }

    fn pick(&self, worker: Option<Worker>) -> Option<Arc<Conn>> {
        let live = self.conns.iter().filter(|c| c.is_usable());
        live.min_by_key(|c| {
            let elsewhere = worker.is_some() && c.worker != worker;
            (c.suspect.load(Ordering::Relaxed), c.path, elsewhere, c.streams.load(Ordering::Relaxed))
        })
        .cloned()
    }

    /// Works out which path new streams take.
    fn refresh(&mut self, changes: Option<&IntCounterVec>) {
        let best = self.pick(None);
        let path = best.as_ref().map(|c| c.path);
        if let (Some(best), Some(before)) = (&best, self.path)
            && best.path < before
        {
            best.generation.fetch_add(1, Ordering::Relaxed);
        }
        self.load.best.store(path.map_or(NO_PATH, Path::rank), Ordering::Relaxed);
        if let (Some(before), Some(now)) = (self.path, path)
            && before != now
            && let Some(changes) = changes
        {
            changes.with_label_values(&[before.kind.as_str(), now.kind.as_str()]).inc();
        }
        self.path = path;
    }

    /// Whether a further dial may start now.
    fn may_dial(&self, now: Instant) -> bool {
        self.dialling.is_none() && self.held.as_ref().is_none_or(|(until, _)| *until <= now)
    }

    /// One more connection pays when this worker has none of its own and there is load to spread.
    fn wants_more(&self, conn: &Conn, worker: Option<Worker>, spread: Spread, now: Instant) -> bool {
        let spreads = |c: &Conn| c.path.transport == PathTransport::Tcp && c.path.kind <= PathKind::Direct;
        let dialled = self.conns.iter().filter(|c| spreads(c) && c.is_usable()).count();
        worker.is_some()
            && conn.worker != worker
            && spreads(conn)
            && dialled < spread.max_connections
            && conn.streams.load(Ordering::Relaxed) >= spread.at_streams
            && self.may_dial(now)
    }
}
