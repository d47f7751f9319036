//! Which sessions there are, and which of them ends next. Time is an argument.
//!
//! A datagram only notes when it came; the order of ends is put right when an end would be due, so that a session with
//! many datagrams costs no more than one with few.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};

/// What makes a session: who sends, and what to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) client: SocketAddr,
    pub(crate) to: SocketAddr,
}

/// A session that was idle for less than this gives its place to nobody.
pub(crate) const PROTECTED: Duration = Duration::from_millis(200);
/// How many sessions are looked at for a place: more would make a flood of new ones expensive.
const LOOKED_AT: usize = 16;

/// There is no place for another session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// The sessions of one worker.
#[derive(Debug)]
pub(crate) struct Table<V> {
    sessions: HashMap<Key, Slot<V>>,
    /// Not before when each session is due.
    order: BTreeMap<(Instant, u64), Key>,
    next: u64,
    most: usize,
    idle: Duration,
}

#[derive(Debug)]
struct Slot<V> {
    value: V,
    id: u64,
    last: Instant,
    idle: Duration,
    /// Its place in the order.
    at: Instant,
}

impl<V> Table<V> {
    pub(crate) fn new(most: usize, idle: Duration) -> Self {
        Self { sessions: HashMap::new(), order: BTreeMap::new(), next: 0, most, idle }
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// The session, which has just been used.
    pub(crate) fn touch(&mut self, key: &Key, now: Instant) -> Option<&V> {
        let slot = self.sessions.get_mut(key)?;
        slot.last = now;
        Some(&slot.value)
    }

    /// Adds a session; gives its number, and the one that made place for it.
    pub(crate) fn insert(&mut self, key: Key, value: V, now: Instant) -> Result<(u64, Option<V>), Full> {
        let evicted = match self.sessions.len() < self.most {
            true => None,
            false => Some(self.evict(now).ok_or(Full)?),
        };
        let (id, at) = (self.next, now + self.idle);
        self.next += 1;
        if let Some(old) = self.sessions.insert(key, Slot { value, id, last: now, idle: self.idle, at }) {
            self.order.remove(&(old.at, old.id));
        }
        self.order.insert((at, id), key);
        Ok((id, evicted))
    }

    /// From now on the session may be idle for so long.
    pub(crate) fn set_idle(&mut self, key: &Key, id: u64, idle: Duration) {
        let Some(slot) = self.sessions.get_mut(key).filter(|s| s.id == id) else { return };
        slot.idle = idle;
        let due = slot.last + idle;
        // A later end is found when the earlier one would be due.
        if due < slot.at {
            self.order.remove(&(slot.at, id));
            slot.at = due;
            self.order.insert((due, id), *key);
        }
    }

    /// Forgets a session, unless another one has its key.
    pub(crate) fn remove(&mut self, key: &Key, id: u64) -> Option<V> {
        if self.sessions.get(key)?.id != id {
            return None;
        }
        let slot = self.sessions.remove(key)?;
        self.order.remove(&(slot.at, slot.id));
        Some(slot.value)
    }

    /// Takes one session that has been idle for too long.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<V> {
        loop {
            let (&(at, id), &key) = self.order.first_key_value()?;
            if at > now {
                return None;
            }
            if let Some(ended) = self.take_if_due(key, (at, id), now) {
                return Some(ended);
            }
        }
    }

    /// Takes all sessions.
    pub(crate) fn drain(&mut self) -> Vec<V> {
        self.order.clear();
        self.sessions.drain().map(|(_, s)| s.value).collect()
    }

    /// Ends the session at that place of the order, or moves it to where it belongs.
    fn take_if_due(&mut self, key: Key, place: (Instant, u64), now: Instant) -> Option<V> {
        self.order.remove(&place);
        let slot = self.sessions.get_mut(&key)?;
        let due = slot.last + slot.idle;
        if due <= now {
            return self.sessions.remove(&key).map(|s| s.value);
        }
        slot.at = due;
        self.order.insert((due, slot.id), key);
        None
    }

    /// Takes the session that is nearest to its end, if it has been idle for long enough.
    fn evict(&mut self, now: Instant) -> Option<V> {
        for _ in 0..LOOKED_AT {
            let (&place, &key) = self.order.first_key_value()?;
            let slot = self.sessions.get_mut(&key)?;
            let due = slot.last + slot.idle;
            if due > place.0 {
                // It was used since it was put there.
                self.order.remove(&place);
                slot.at = due;
                self.order.insert((due, slot.id), key);
                continue;
            }
            if now.saturating_duration_since(slot.last) < PROTECTED.min(slot.idle) {
                return None;
            }
            self.order.remove(&place);
            return self.sessions.remove(&key).map(|s| s.value);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    fn key(port: u16) -> Key {
        Key { client: ([10, 1, 1, 2], port).into(), to: ([10, 96, 0, 1], 53).into() }
    }

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn a_session_ends_when_it_was_idle_and_not_before() {
        let t0 = Instant::now();
        let mut table = Table::new(10, IDLE);
        table.insert(key(1), 1, t0).unwrap();
        table.insert(key(2), 2, t0).unwrap();
        assert_eq!(table.expired(after(t0, 59_999)), None);
        assert_eq!(table.touch(&key(1), after(t0, 59_999)), Some(&1));
        assert_eq!(table.expired(after(t0, 60_000)), Some(2));
        assert_eq!(table.expired(after(t0, 60_000)), None);
        assert_eq!(table.expired(after(t0, 119_998)), None);
        assert_eq!(table.expired(after(t0, 119_999)), Some(1));
        assert_eq!((table.len(), table.order.len()), (0, 0));
        assert_eq!(table.touch(&key(1), t0), None);
    }

    #[test]
    fn an_answered_session_ends_early_and_a_new_question_keeps_it() {
        let t0 = Instant::now();
        let mut table = Table::new(10, IDLE);
        let (id, _) = table.insert(key(1), 1, t0).unwrap();
        table.set_idle(&key(1), id, Duration::from_secs(1));
        assert_eq!(table.expired(after(t0, 999)), None);
        table.touch(&key(1), after(t0, 900));
        table.set_idle(&key(1), id, IDLE);
        assert_eq!(table.expired(after(t0, 60_899)), None);
        table.set_idle(&key(1), id + 1, Duration::ZERO);
        assert_eq!(table.expired(after(t0, 60_899)), None, "another session's number changes nothing");
        assert_eq!(table.expired(after(t0, 60_900)), Some(1));
    }

    #[test]
    fn the_longest_idle_makes_place_and_busy_ones_do_not() {
        let t0 = Instant::now();
        let mut table = Table::new(3, IDLE);
        for port in 1..=3 {
            table.insert(key(port), port, after(t0, u64::from(port))).unwrap();
        }
        // All are busy: the newcomer is refused, and nobody loses anything.
        assert_eq!(table.insert(key(4), 4, after(t0, 200)), Err(Full));
        assert_eq!(table.len(), 3);
        // The first is used again, so the second is the oldest.
        table.touch(&key(1), after(t0, 1500));
        assert_eq!(table.insert(key(4), 4, after(t0, 1600)).unwrap().1, Some(2));
        assert_eq!(table.insert(key(5), 5, after(t0, 1600)).unwrap().1, Some(3));
        assert_eq!(table.insert(key(6), 6, after(t0, 1600)), Err(Full));
        assert_eq!((table.len(), table.order.len()), (3, 3));
    }

    #[test]
    fn what_is_removed_is_gone_and_a_successor_stays() {
        let t0 = Instant::now();
        let mut table = Table::new(3, IDLE);
        let (first, _) = table.insert(key(1), 1, t0).unwrap();
        assert_eq!(table.remove(&key(1), first), Some(1));
        let (second, _) = table.insert(key(1), 2, t0).unwrap();
        assert_eq!(table.remove(&key(1), first), None);
        assert_eq!(table.touch(&key(1), t0), Some(&2));
        assert_eq!(table.remove(&key(1), second), Some(2));
        assert_eq!((table.len(), table.order.len()), (0, 0));
    }

    #[test]
    fn a_hundred_thousand_sessions_leave_nothing() {
        let t0 = Instant::now();
        let mut table = Table::new(4096, IDLE);
        let mut now = t0;
        for i in 0..100_000_u32 {
            now += Duration::from_millis(1);
            let key = Key {
                client: (std::net::Ipv4Addr::from(0x0a01_0000 + i / 60_000), (i % 60_000) as u16 + 1).into(),
                to: ([10, 96, 0, 1], 9000).into(),
            };
            table.insert(key, (), now).unwrap();
            assert!(table.len() <= 4096 && table.order.len() == table.len());
        }
        now += IDLE;
        while table.expired(now).is_some() {}
        assert_eq!((table.len(), table.order.len()), (0, 0));
    }
}
