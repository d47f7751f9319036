//! Answers of upstream servers, bounded, kept past their time for when no server answers
//! (RFC 8767). Pure: the clock is an argument.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{LowerName, Record, RecordType};

/// A question, without its class: only IN is forwarded.
pub(crate) type Key = (LowerName, RecordType);

/// An upstream server's answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    /// The SOA of a negative answer.
    pub(crate) authorities: Vec<Record>,
    /// How long it holds.
    pub(crate) ttl: Duration,
}

/// Bounds of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Questions kept.
    pub entries: usize,
    /// Records in an answer that is kept.
    pub records: usize,
    /// Longest time that an answer counts as fresh, whatever its TTL says.
    pub fresh: Duration,
    /// Longest time that a negative answer counts as fresh.
    pub negative: Duration,
    /// How long after its time an answer may be used when no server answers.
    pub stale: Duration,
    /// How long no server is asked again after a failure.
    pub retry: Duration,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            entries: 4096,
            records: 64,
            fresh: Duration::from_secs(3600),
            negative: Duration::from_secs(300),
            stale: Duration::from_secs(24 * 3600),
            retry: Duration::from_secs(5),
        }
    }
}

struct Entry {
    found: Arc<Found>,
    stored: Instant,
    fresh_until: Instant,
    /// No server is asked before this.
    retry_at: Instant,
    /// Looked at since the clock hand last passed.
    used: bool,
}

/// What the cache knows about a question.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Hit {
    /// Within its time; with its age.
    Fresh(Arc<Found>, Duration),
    /// Past its time, and a server may be asked.
    Stale(Arc<Found>),
    /// Past its time, and the servers have failed a moment ago.
    StaleNoRetry(Arc<Found>),
    Miss,
}

pub(crate) struct Cache {
    limits: CacheLimits,
    entries: HashMap<Key, Entry>,
    /// Every key once, in the order of the clock hand.
    hand: VecDeque<Key>,
}

impl Cache {
    pub(crate) fn new(limits: CacheLimits) -> Self {
        Self { limits, entries: HashMap::new(), hand: VecDeque::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn get(&mut self, key: &Key, now: Instant) -> Hit {
        let Some(entry) = self.entries.get_mut(key) else { return Hit::Miss };
        entry.used = true;
        let found = Arc::clone(&entry.found);
        if now < entry.fresh_until {
            Hit::Fresh(found, now.duration_since(entry.stored))
        } else if now >= entry.fresh_until + self.limits.stale {
            Hit::Miss
        } else if now < entry.retry_at {
            Hit::StaleNoRetry(found)
        } else {
            Hit::Stale(found)
        }
    }

    pub(crate) fn put(&mut self, key: Key, found: Arc<Found>, now: Instant) {
        if found.answers.len() > self.limits.records || found.ttl.is_zero() || self.limits.entries == 0 {
            return;
        }
        let longest = if found.answers.is_empty() { self.limits.negative } else { self.limits.fresh };
        let fresh_until = now + found.ttl.min(longest);
        let entry = Entry { found, stored: now, fresh_until, retry_at: fresh_until, used: false };
        if self.entries.insert(key.clone(), entry).is_none() {
            self.hand.push_back(key);
        }
        while self.entries.len() > self.limits.entries {
            self.evict();
        }
    }

    /// Remembers that no server answered, so that the next questions do not wait for nothing.
    pub(crate) fn failed(&mut self, key: &Key, now: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.retry_at = now + self.limits.retry;
        }
    }

    /// Takes out one entry that has not been used since the hand passed it last.
    fn evict(&mut self) {
        while let Some(key) = self.hand.pop_front() {
            match self.entries.get_mut(&key) {
                Some(entry) if entry.used => {
                    entry.used = false;
                    self.hand.push_back(key);
                }
                _ => {
                    self.entries.remove(&key);
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{Name, RData};

    use super::*;

    fn key(name: &str) -> Key {
        (LowerName::from(Name::from_ascii(name).unwrap()), RecordType::A)
    }

    fn found(ttl: u64) -> Arc<Found> {
        let name = Name::from_ascii("a.").unwrap();
        let answers = vec![Record::from_rdata(
            name,
            ttl as u32,
            RData::A(std::net::Ipv4Addr::new(192, 0, 2, 1).into()),
        )];
        Arc::new(Found {
            code: ResponseCode::NoError,
            answers,
            authorities: vec![],
            ttl: Duration::from_secs(ttl),
        })
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn fresh_then_stale_then_gone() {
        let limits = CacheLimits { stale: seconds(100), ..CacheLimits::default() };
        let (mut cache, start) = (Cache::new(limits), Instant::now());
        assert_eq!(cache.get(&key("a."), start), Hit::Miss);
        cache.put(key("a."), found(10), start);
        assert_eq!(cache.get(&key("a."), start + seconds(9)), Hit::Fresh(found(10), seconds(9)));
        assert_eq!(cache.get(&key("a."), start + seconds(10)), Hit::Stale(found(10)));
        cache.failed(&key("a."), start + seconds(20));
        assert_eq!(cache.get(&key("a."), start + seconds(24)), Hit::StaleNoRetry(found(10)));
        assert_eq!(cache.get(&key("a."), start + seconds(25)), Hit::Stale(found(10)));
        assert_eq!(cache.get(&key("a."), start + seconds(110)), Hit::Miss);
    }

    #[test]
    fn long_and_negative_answers_are_cut_short_and_what_is_too_large_is_not_kept() {
        let limits =
            CacheLimits { fresh: seconds(50), negative: seconds(5), records: 2, ..CacheLimits::default() };
        let (mut cache, start) = (Cache::new(limits), Instant::now());
        cache.put(key("a."), found(1_000_000), start);
        assert!(matches!(cache.get(&key("a."), start + seconds(50)), Hit::Stale(_)));
        let negative = Found { code: ResponseCode::NXDomain, answers: vec![], ..(*found(1000)).clone() };
        cache.put(key("n."), Arc::new(negative), start);
        assert!(matches!(cache.get(&key("n."), start + seconds(4)), Hit::Fresh(..)));
        assert!(matches!(cache.get(&key("n."), start + seconds(5)), Hit::Stale(_)));
        let mut large = (*found(10)).clone();
        large.answers = vec![large.answers[0].clone(); 3];
        cache.put(key("l."), Arc::new(large), start);
        cache.put(key("z."), found(0), start);
        assert_eq!((cache.get(&key("l."), start), cache.get(&key("z."), start)), (Hit::Miss, Hit::Miss));
    }

    #[test]
    fn the_number_of_entries_is_bounded_and_used_ones_stay() {
        let (mut cache, start) =
            (Cache::new(CacheLimits { entries: 10, ..CacheLimits::default() }), Instant::now());
        cache.put(key("used."), found(10), start);
        for n in 0..1000 {
            assert_ne!(cache.get(&key("used."), start), Hit::Miss, "after {n}");
            cache.put(key(&format!("n{n}.")), found(10), start);
            cache.put(key(&format!("n{n}.")), found(20), start);
            assert!(cache.len() <= 10 && cache.hand.len() <= 10);
        }
    }
}
