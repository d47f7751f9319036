//! A number for each node that moves when streams that are kept for later use should be left: a better path has come,
//! or the node's process goes. Whoever keeps streams compares it with what it was, which costs a load.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::AtomicU64},
};

/// The numbers of all nodes that somebody looks at.
#[derive(Debug, Default)]
pub(crate) struct Generations(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    by_node: HashMap<Arc<str>, Weak<AtomicU64>>,
    /// Numbers that nobody looks at any more are forgotten when there are this many.
    sweep_at: usize,
}

const FIRST_SWEEP: usize = 64;

impl Generations {
    /// The number of a node; always the same one while somebody holds it.
    pub(crate) fn of(&self, node: &str) -> Arc<AtomicU64> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = inner.by_node.get(node).and_then(Weak::upgrade) {
            return number;
        }
        if inner.by_node.len() >= inner.sweep_at.max(FIRST_SWEEP) {
            inner.by_node.retain(|_, number| number.strong_count() > 0);
            inner.sweep_at = inner.by_node.len() * 2;
        }
        let number = Arc::new(AtomicU64::new(0));
        inner.by_node.insert(node.into(), Arc::downgrade(&number));
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_the_same_for_all_and_is_forgotten_with_the_last() {
        let all = Generations::default();
        let one = all.of("a");
        assert!(Arc::ptr_eq(&one, &all.of("a")) && !Arc::ptr_eq(&one, &all.of("b")));
        for i in 0..10_000 {
            all.of(&i.to_string());
        }
        assert!(Arc::ptr_eq(&one, &all.of("a")));
        assert!(all.0.lock().unwrap().by_node.len() <= FIRST_SWEEP * 2);
    }
}
