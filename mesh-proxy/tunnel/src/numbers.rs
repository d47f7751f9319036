//! Numbers that several parts look at: one for each key, the same one for all while somebody holds it.
//!
//! The tunnel has two sets. A node's number moves when streams to it that are kept for later use should be left: a
//! better path has come, or the node's process goes. The number of a remote socket address moves whenever the kernel
//! shows that the other end lives: bytes came, or bytes of ours were taken.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::AtomicU64},
};

/// A set of numbers.
#[derive(Debug)]
pub(crate) struct Numbers<K>(Mutex<Inner<K>>);

#[derive(Debug)]
struct Inner<K> {
    all: HashMap<K, Weak<AtomicU64>>,
    /// Numbers that nobody looks at any more are forgotten when there are this many.
    sweep_at: usize,
}

const FIRST_SWEEP: usize = 64;

impl<K> Default for Numbers<K> {
    fn default() -> Self {
        Self(Mutex::new(Inner { all: HashMap::new(), sweep_at: FIRST_SWEEP }))
    }
}

impl<K: Hash + Eq> Numbers<K> {
    /// The number of a key.
    pub(crate) fn of(&self, key: K) -> Arc<AtomicU64> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = inner.all.get(&key).and_then(Weak::upgrade) {
            return number;
        }
        if inner.all.len() >= inner.sweep_at {
            inner.all.retain(|_, number| number.strong_count() > 0);
            inner.sweep_at = FIRST_SWEEP.max(inner.all.len() * 2);
        }
        let number = Arc::new(AtomicU64::new(0));
        inner.all.insert(key, Arc::downgrade(&number));
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_the_same_for_all_and_is_forgotten_with_the_last() {
        let all = Numbers::<usize>::default();
        let one = all.of(1);
        assert!(Arc::ptr_eq(&one, &all.of(1)) && !Arc::ptr_eq(&one, &all.of(2)));
        for i in 3..10_000 {
            all.of(i);
        }
        assert!(Arc::ptr_eq(&one, &all.of(1)));
        assert!(all.0.lock().unwrap().all.len() <= FIRST_SWEEP * 2);
    }
}
