//! A map whose copy is cheap and whose change touches one shard. A snapshot of 5,000 services shares everything but
//! the shards that a change writes.

use std::{
    borrow::Borrow,
    hash::{BuildHasher, BuildHasherDefault, Hash},
    sync::Arc,
};

use crate::hash::{Fast, FastMap};

const SHARDS: usize = 64;

#[derive(Debug)]
pub(crate) struct Shards<K, V> {
    shards: Box<[Arc<FastMap<K, V>>]>,
    len: usize,
}

impl<K, V> Clone for Shards<K, V> {
    fn clone(&self) -> Self {
        Self { shards: self.shards.clone(), len: self.len }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Shards<K, V> {
    pub(crate) fn new() -> Self {
        let empty = Arc::new(FastMap::default());
        Self { shards: vec![empty; SHARDS].into_boxed_slice(), len: 0 }
    }

    fn shard_of<Q: Hash + ?Sized>(key: &Q) -> usize {
        // The high bits: the map inside a shard uses the low ones.
        (BuildHasherDefault::<Fast>::default().hash_one(key) >> 58) as usize % SHARDS
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shards[Self::shard_of(key)].get(key)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let shard = Arc::make_mut(&mut self.shards[Self::shard_of(&key)]);
        let old = shard.insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    pub(crate) fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let shard = &mut self.shards[Self::shard_of(key)];
        if !shard.contains_key(key) {
            return None;
        }
        self.len -= 1;
        Arc::make_mut(shard).remove(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|s| s.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_does_not_see_later_changes() {
        let mut a: Shards<Arc<str>, u32> = Shards::new();
        for i in 0..500 {
            a.insert(Arc::from(format!("k{i}")), i);
        }
        let before = a.clone();
        assert_eq!(a.insert(Arc::from("k7"), 700), Some(7));
        assert_eq!(a.remove("k8"), Some(8));
        assert_eq!(a.remove("k8"), None);
        assert_eq!((a.get("k7"), a.get("k8"), a.len()), (Some(&700), None, 499));
        assert_eq!((before.get("k7"), before.get("k8"), before.len()), (Some(&7), Some(&8), 500));
        assert_eq!(before.iter().count(), 500);
        let shared = a.shards.iter().zip(&before.shards).filter(|(x, y)| Arc::ptr_eq(x, y)).count();
        assert!(shared >= SHARDS - 2, "only the touched shards are copied, {shared} are shared");
    }
}
