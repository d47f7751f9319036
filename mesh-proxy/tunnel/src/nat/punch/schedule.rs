//! When a peer is tried: at once when it is reached through a relay only, again with growing pauses, and at once again
//! when something changed. Pure: `now` is an argument.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;

/// Peers that are tried at one time; the others wait for their turn.
const MAX_RUNNING: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    due: Instant,
    failures: u32,
    /// Tries in which both sides dialled.
    tries: u32,
    running: bool,
}

#[derive(Debug)]
pub(crate) struct Schedule {
    first: Duration,
    most: Duration,
    peers: HashMap<PeerId, Entry>,
}

impl Schedule {
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most: most.max(first), peers: HashMap::new() }
    }

    /// A peer is reached through a relay and nothing better.
    pub(crate) fn want(&mut self, peer: PeerId, now: Instant) {
        self.peers.entry(peer).or_insert(Entry { due: now, failures: 0, tries: 0, running: false });
    }

    /// A peer is reached directly, or not at all.
    pub(crate) fn forget(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
    }

    /// Something changed: what failed before may work now.
    pub(crate) fn changed(&mut self, peer: &PeerId, now: Instant) {
        if let Some(entry) = self.peers.get_mut(peer) {
            entry.failures = 0;
            entry.due = now;
        }
    }

    /// Something changed for all.
    pub(crate) fn all_changed(&mut self, now: Instant) {
        for entry in self.peers.values_mut() {
            entry.failures = 0;
            entry.due = now;
        }
    }

    /// A try began, here or at the peer.
    pub(crate) fn begin(&mut self, peer: PeerId, now: Instant) {
        let entry =
            self.peers.entry(peer).or_insert(Entry { due: now, failures: 0, tries: 0, running: false });
        entry.running = true;
    }

    /// A try failed; `hopeless` says that the NATs allow none.
    pub(crate) fn failed(&mut self, peer: &PeerId, hopeless: bool, now: Instant) {
        let Some(entry) = self.peers.get_mut(peer) else { return };
        entry.running = false;
        entry.failures = entry.failures.saturating_add(1);
        let pause = if hopeless {
            self.most
        } else {
            self.first.saturating_mul(1 << entry.failures.saturating_sub(1).min(16)).min(self.most)
        };
        entry.due = now + pause;
    }

    pub(crate) fn is_running(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|e| e.running)
    }

    /// Both sides dial; gives how often they have, this time included.
    pub(crate) fn tried(&mut self, peer: &PeerId) -> u32 {
        self.peers.get_mut(peer).map_or(1, |e| {
            e.tries = e.tries.saturating_add(1);
            e.tries
        })
    }

    pub(crate) fn tries(&self, peer: &PeerId) -> u32 {
        self.peers.get(peer).map_or(0, |e| e.tries)
    }

    /// Peers whose time has come.
    pub(crate) fn due(&self, now: Instant) -> Vec<PeerId> {
        let running = self.peers.values().filter(|e| e.running).count();
        let mut due: Vec<_> = self.peers.iter().filter(|(_, e)| !e.running && e.due <= now).collect();
        due.sort_by_key(|(_, e)| e.due);
        due.into_iter().take(MAX_RUNNING.saturating_sub(running)).map(|(p, _)| *p).collect()
    }

    /// When the next one's time comes.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.peers.values().filter(|e| !e.running).map(|e| e.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_wait_longer_and_a_change_starts_anew() {
        let mut it = Schedule::new(Duration::from_secs(5), Duration::from_secs(600));
        let (peer, mut now) = (PeerId::random(), Instant::now());
        it.want(peer, now);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            assert_eq!(it.due(now), [peer]);
            it.begin(peer, now);
            assert!(it.due(now + Duration::from_secs(9_999)).is_empty(), "one at a time");
            it.failed(&peer, false, now);
            let next = it.next().unwrap();
            pauses.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]);
        it.failed(&peer, false, now);
        assert!(it.due(now).is_empty());
        it.changed(&peer, now);
        assert_eq!(it.due(now), [peer]);
        it.begin(peer, now);
        it.failed(&peer, true, now);
        assert_eq!(it.next().unwrap() - now, Duration::from_secs(600), "nothing can help");
        it.all_changed(now);
        assert_eq!(it.due(now), [peer]);
        it.forget(&peer);
        assert!(it.due(now).is_empty() && it.next().is_none());
    }

    #[test]
    fn many_peers_take_turns() {
        let mut it = Schedule::new(Duration::from_secs(5), Duration::from_secs(600));
        let now = Instant::now();
        for _ in 0..500 {
            it.want(PeerId::random(), now);
        }
        let due = it.due(now);
        assert_eq!(due.len(), MAX_RUNNING);
        for peer in &due {
            it.begin(*peer, now);
        }
        assert!(it.due(now).is_empty());
        it.forget(&due[0]);
        assert_eq!(it.due(now).len(), 1);
    }
}
