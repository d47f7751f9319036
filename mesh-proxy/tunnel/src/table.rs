//! The connections of each peer: which one a stream takes, when a dial starts, how long a failing peer is left alone, and
//! how long anyone waits for a silent one. Holds no sockets and runs no tasks; `now` is an argument.

mod conn;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use libp2p::{PeerId, swarm::ConnectionId};
use prometheus::IntCounterVec;
use tokio::sync::watch;

use self::conn::NO_PATH;
pub(crate) use self::conn::{Ask, Asked, Conn, Counted, OPEN_QUEUE, PeerLoad};
use crate::{
    exec::Worker,
    path::{Path, PathKind, PathTransport},
};

/// How a dial ended, for those who wait for it.
pub(crate) type DialEnd = Option<Result<(), Arc<str>>>;

#[derive(Debug, Default)]
struct Entry {
    conns: Vec<Arc<Conn>>,
    load: Arc<PeerLoad>,
    dialling: Option<Dialling>,
    failures: u32,
    held: Option<(Instant, Arc<str>)>,
    /// The path of new streams.
    path: Option<Path>,
    silence: Option<Silence>,
}

#[derive(Debug)]
struct Dialling {
    end: watch::Sender<DialEnd>,
    began: Instant,
}

impl Dialling {
    fn new(began: Instant) -> Self {
        Self { end: watch::Sender::new(None), began }
    }

    fn wait(&self, start: bool, until: Option<Instant>) -> Step {
        Step::Wait { end: self.end.subscribe(), start, until }
    }
}

/// No connection of a peer answers, and openers have noticed.
#[derive(Debug, Clone, Copy)]
struct Silence {
    since: Instant,
    /// When the last opener came.
    asked: Instant,
    /// How long openers wait, for a sign of life and for a dial.
    patience: Duration,
}

/// What an opener does next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Take this connection; `spread` asks for one more dial in the background. It does not answer: take it `until` then.
    Use { conn: Arc<Conn>, spread: bool, until: Option<Instant> },
    /// Wait for the dial; `start` says that this caller must start it. The peer is silent: wait `until` then.
    Wait { end: watch::Receiver<DialEnd>, start: bool, until: Option<Instant> },
    /// The peer's connections are silent, and a dial had no answer.
    Silent { since: Duration },
    /// Dials failed a moment ago.
    Held { wait: Duration, reason: Arc<str> },
}

/// A silence that nobody asked about for this long is none: whoever comes next waits for a dial as for any other.
const FORGET: Duration = Duration::from_secs(30);
/// How long openers wait for a peer that has fallen silent: for a sign of life, and for each dial of it.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// The same where a relay carried it: another one may have to be asked again until it knows of the peer.
const RELAYED_PATIENCE: Duration = Duration::from_millis(3_500);
/// Round trips that a dial may need.
const DIAL_ROUND_TRIPS: u32 = 8;

fn patience(conn: &Conn) -> Duration {
    let least = if conn.path.kind == PathKind::Relayed { RELAYED_PATIENCE } else { PATIENCE };
    least.max(conn.rtt().unwrap_or_default() * DIAL_ROUND_TRIPS)
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
            if conn.suspect.load(Ordering::Relaxed) {
                return entry.doubted(conn, now);
            }
            let spread = entry.wants_more(&conn, worker, spread, now);
            if spread {
                entry.dialling = Some(Dialling::new(now));
            }
            return Step::Use { conn, spread, until: None };
        }
        let silence = entry.silence(now, None);
        if let Some(dialling) = &entry.dialling {
            return match silence.map(|s| (s, dialling.began + s.patience)) {
                Some((silence, until)) if until <= now => Step::Silent { since: now - silence.since },
                until => dialling.wait(false, until.map(|(_, until)| until)),
            };
        }
        if let Some((until, reason)) = &entry.held
            && *until > now
        {
            return Step::Held { wait: *until - now, reason: reason.clone() };
        }
        entry.dialling.insert(Dialling::new(now)).wait(true, silence.map(|s| now + s.patience))
    }

    /// Whether a dial is due because no connection of the peer answers; the caller then starts it.
    pub(crate) fn is_silent(&self, peer: PeerId, now: Instant) -> bool {
        let mut peers = self.lock();
        let Some(entry) = peers.get_mut(&peer) else { return false };
        let suspect = entry.pick(None).is_some_and(|c| c.suspect.load(Ordering::Relaxed));
        let due = suspect && entry.may_dial(now);
        if due {
            entry.dialling = Some(Dialling::new(now));
        }
        due
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
        entry.silence = None;
        entry.conns.push(conn);
        if let Some(dialling) = &entry.dialling {
            // Wakes those who wait, also when it was the peer who connected.
            let _ = dialling.end.send(Some(Ok(())));
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
            dialling.end.send_replace(None);
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
        entry.silence = None;
        if let Some(dialling) = &entry.dialling {
            let _ = dialling.end.send(Some(Ok(())));
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
            let _ = dialling.end.send(Some(end));
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
        entry.silence = None;
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

    /// What an opener does whose best connection does not answer. It waits for a sign of life or for another connection, but
    /// not for long; and not at all once both were waited for in vain. Dials go on behind those who come and are told so.
    fn doubted(&mut self, conn: Arc<Conn>, now: Instant) -> Step {
        let start = self.may_dial(now);
        if start {
            self.dialling = Some(Dialling::new(now));
        }
        let Some(silence) = self.silence(now, Some(&conn)) else {
            return Step::Use { conn, spread: false, until: None };
        };
        let running = self.dialling.as_ref().filter(|d| d.end.borrow().is_none());
        let until = running.map_or(silence.since, |d| d.began) + silence.patience;
        match running {
            _ if until <= now => Step::Silent { since: now - silence.since },
            Some(dialling) => dialling.wait(start, Some(until)),
            None => Step::Use { conn, spread: false, until: Some(until) },
        }
    }

    /// Notes an opener that meets silence: that of a connection, or what is left of one that was given up.
    fn silence(&mut self, now: Instant, of: Option<&Conn>) -> Option<Silence> {
        let known = self.silence.filter(|s| now.saturating_duration_since(s.asked) < FORGET);
        self.silence = match (known, of) {
            (Some(silence), _) => Some(Silence { asked: now, ..silence }),
            (None, Some(conn)) => Some(Silence { since: now, asked: now, patience: patience(conn) }),
            (None, None) => None,
        };
        self.silence
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
