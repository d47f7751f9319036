//! The connections of each peer: which one a stream takes, when a dial starts, how long a failing peer is left alone.
//! Holds no sockets and runs no tasks; `now` is an argument.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use libp2p::{PeerId, Stream, swarm::ConnectionId};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{exec::Worker, peers::Path};

/// Asks a connection for a stream. Dropping the sender's receiver cancels it.
pub(crate) type OpenReply = oneshot::Sender<Stream>;

/// Opens that wait for the connection task to notice them.
pub(crate) const OPEN_QUEUE: usize = 1024;

/// One established connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) id: ConnectionId,
    pub(crate) peer: PeerId,
    pub(crate) path: Path,
    pub(crate) dialled: bool,
    pub(crate) worker: Option<Worker>,
    pub(crate) opens: mpsc::Sender<OpenReply>,
    /// Streams of both directions on this connection.
    pub(crate) streams: AtomicUsize,
    pub(crate) load: Arc<PeerLoad>,
    pub(crate) rtt_us: AtomicU64,
    pub(crate) closed: AtomicBool,
    /// The peer's process behind it takes no new streams; another one may have taken its place.
    pub(crate) retired: AtomicBool,
}

impl Conn {
    /// Whether new streams may take it.
    fn is_usable(&self) -> bool {
        !self.closed.load(Ordering::Relaxed) && !self.retired.load(Ordering::Relaxed)
    }
}

/// Streams of one peer over all its connections.
#[derive(Debug, Default)]
pub(crate) struct PeerLoad {
    pub(crate) outbound: AtomicUsize,
    pub(crate) inbound: AtomicUsize,
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

#[derive(Debug, Default)]
pub(crate) struct Table {
    peers: Mutex<HashMap<PeerId, Entry>>,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Entry>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides for one opener that runs on `worker`.
    pub(crate) fn step(&self, peer: PeerId, worker: Option<Worker>, spread: Spread, now: Instant) -> Step {
        let mut peers = self.lock();
        let entry = peers.entry(peer).or_default();
        if let Some(conn) = entry.pick(worker) {
            let spread = entry.wants_more(&conn, worker, spread, now);
            if spread {
                entry.dialling = Some(watch::Sender::new(None));
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

    /// The load counters that a new connection of `peer` shares.
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
    }

    pub(crate) fn closed(&self, peer: PeerId, id: ConnectionId) -> Option<Arc<Conn>> {
        let mut peers = self.lock();
        let entry = peers.get_mut(&peer)?;
        let at = entry.conns.iter().position(|c| c.id == id)?;
        let conn = entry.conns.swap_remove(at);
        conn.closed.store(true, Ordering::Relaxed);
        if entry.is_empty() {
            peers.remove(&peer);
        }
        Some(conn)
    }

    pub(crate) fn find(&self, peer: PeerId, id: ConnectionId) -> Option<Arc<Conn>> {
        self.lock().get(&peer)?.conns.iter().find(|c| c.id == id).cloned()
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

    /// Forgets failures: the peer has new addresses.
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
            (c.path, worker.is_some() && c.worker != worker, c.streams.load(Ordering::Relaxed))
        })
        .cloned()
    }

    /// One more connection pays when this worker has none of its own and there is load to spread.
    fn wants_more(&self, conn: &Conn, worker: Option<Worker>, spread: Spread, now: Instant) -> bool {
        let dialled = self.conns.iter().filter(|c| c.path == Path::Tcp && c.is_usable()).count();
        worker.is_some()
            && conn.worker != worker
            && conn.path == Path::Tcp
            && self.dialling.is_none()
            && dialled < spread.max_connections
            && conn.streams.load(Ordering::Relaxed) >= spread.at_streams
            && self.held.as_ref().is_none_or(|(until, _)| *until <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPREAD: Spread = Spread { max_connections: 2, at_streams: 2 };

    fn conn(table: &Table, peer: PeerId, id: usize, path: Path, worker: Option<Worker>) -> Arc<Conn> {
        Arc::new(Conn {
            id: ConnectionId::new_unchecked(id),
            peer,
            path,
            dialled: true,
            worker,
            opens: mpsc::channel(1).0,
            streams: AtomicUsize::new(0),
            load: table.load(peer),
            rtt_us: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            retired: AtomicBool::new(false),
        })
    }

    fn used(step: Step) -> (usize, bool) {
        match step {
            Step::Use { conn, spread } => (format!("{}", conn.id).parse().unwrap(), spread),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn concurrent_openers_share_one_dial_and_a_failure_holds_the_next() {
        let (table, peer, now) = (Table::default(), PeerId::random(), Instant::now());
        assert!(matches!(table.step(peer, None, SPREAD, now), Step::Wait { start: true, .. }));
        let Step::Wait { start: false, end } = table.step(peer, None, SPREAD, now) else { panic!() };
        table.dialled(peer, Err("refused".into()), now, |n| Duration::from_secs(n.into()));
        assert!(end.borrow().as_ref().unwrap().is_err());
        assert!(
            matches!(table.step(peer, None, SPREAD, now), Step::Held { wait, .. } if wait.as_secs() == 1)
        );
        let later = now + Duration::from_secs(2);
        assert!(matches!(table.step(peer, None, SPREAD, later), Step::Wait { start: true, .. }));
        table.dialled(peer, Err("refused".into()), later, |n| Duration::from_secs(n.into()));
        assert!(
            matches!(table.step(peer, None, SPREAD, later), Step::Held { wait, .. } if wait.as_secs() == 2)
        );
        table.forgive(peer);
        assert!(matches!(table.step(peer, None, SPREAD, later), Step::Wait { start: true, .. }));
    }

    #[test]
    fn tcp_comes_before_quic_and_the_own_worker_before_another() {
        let (table, peer, now) = (Table::default(), PeerId::random(), Instant::now());
        table.established(conn(&table, peer, 1, Path::Quic, Some(0)));
        assert_eq!(used(table.step(peer, Some(0), SPREAD, now)).0, 1);
        table.established(conn(&table, peer, 2, Path::Tcp, Some(1)));
        assert_eq!(used(table.step(peer, Some(0), SPREAD, now)).0, 2);
        table.established(conn(&table, peer, 3, Path::Tcp, Some(0)));
        assert_eq!(used(table.step(peer, Some(0), SPREAD, now)).0, 3);
        assert_eq!(used(table.step(peer, Some(1), SPREAD, now)).0, 2);
        table.closed(peer, ConnectionId::new_unchecked(3)).unwrap();
        assert_eq!(used(table.step(peer, Some(0), SPREAD, now)).0, 2);
    }

    #[test]
    fn a_second_connection_is_asked_for_once_and_only_under_load() {
        let (table, peer, now) = (Table::default(), PeerId::random(), Instant::now());
        let first = conn(&table, peer, 1, Path::Tcp, Some(0));
        table.established(first.clone());
        assert!(!used(table.step(peer, Some(1), SPREAD, now)).1);
        first.streams.store(2, Ordering::Relaxed);
        assert!(!used(table.step(peer, Some(0), SPREAD, now)).1, "this worker has its own");
        assert!(used(table.step(peer, Some(1), SPREAD, now)).1);
        assert!(!used(table.step(peer, Some(1), SPREAD, now)).1, "the dial is under way");
        table.established(conn(&table, peer, 2, Path::Tcp, Some(1)));
        table.dialled(peer, Ok(()), now, |_| Duration::ZERO);
        assert!(!used(table.step(peer, Some(2), SPREAD, now)).1, "at the bound");
    }

    #[test]
    fn nothing_stays_behind_when_a_peer_is_gone() {
        let (table, peer, now) = (Table::default(), PeerId::random(), Instant::now());
        for id in 0..50 {
            assert!(matches!(table.step(peer, None, SPREAD, now), Step::Wait { start: true, .. }));
            table.established(conn(&table, peer, id, Path::Tcp, None));
            table.dialled(peer, Ok(()), now, |_| Duration::ZERO);
            table.closed(peer, ConnectionId::new_unchecked(id)).unwrap();
            assert_eq!(table.len(), 0);
        }
        table.established(conn(&table, peer, 99, Path::Tcp, None));
        assert_eq!(table.remove_unwanted(|_| false), [peer]);
        table.closed(peer, ConnectionId::new_unchecked(99)).unwrap();
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn placement_balances_the_peer_first() {
        let (table, peer, other) = (Table::default(), PeerId::random(), PeerId::random());
        assert_eq!(table.place(peer, 0), None);
        assert_eq!(table.place(peer, 2), Some(0));
        table.established(conn(&table, peer, 1, Path::Tcp, Some(0)));
        assert_eq!(table.place(peer, 2), Some(1));
        assert_eq!(table.place(other, 2), Some(1), "fewest of all");
    }
}
