//! All compiled resources and a log of what changed: a session that is up to date reads the log, so that a push costs
//! what changed and not what exists.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use mesh_api::ResourceType;
use mesh_index::{Change, Content};
use tokio::sync::watch;

/// Entries kept for sessions that are behind; one that is further behind reconnects and says what it has.
const LOG_CAPACITY: usize = 1 << 18;

/// Counts publications; 0 = nothing yet.
pub(crate) type Generation = u64;

/// A session is further behind than the log reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooFarBehind;

/// Shared by the compiler, which writes, and the sessions, which read.
#[derive(Debug)]
pub(crate) struct Store {
    inner: RwLock<Inner>,
    generation: watch::Sender<Generation>,
}

#[derive(Debug, Default)]
struct Inner {
    resources: [BTreeMap<Arc<str>, Arc<Content>>; ResourceType::COUNT],
    log: VecDeque<(Generation, ResourceType, Arc<str>)>,
    generation: Generation,
    /// The newest generation that is no longer complete in the log.
    forgotten: Generation,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self { inner: RwLock::default(), generation: watch::channel(0).0 }
    }

    /// Takes over what the compiler found.
    pub(crate) fn publish(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.generation += 1;
        let generation = inner.generation;
        for Change { kind, name, content } in changes {
            let map = &mut inner.resources[slot(kind)];
            match content {
                Some(content) => map.insert(name.clone(), content),
                None => map.remove(&name),
            };
            inner.log.push_back((generation, kind, name));
        }
        while inner.log.len() > LOG_CAPACITY {
            if let Some((gone, ..)) = inner.log.pop_front() {
                inner.forgotten = gone;
            }
        }
        drop(inner);
        self.generation.send_replace(generation);
    }

    /// Notified of every publication.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Generation> {
        self.generation.subscribe()
    }

    pub(crate) fn read(&self) -> View<'_> {
        View(self.inner.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The resources at one moment.
pub(crate) struct View<'a>(RwLockReadGuard<'a, Inner>);

impl View<'_> {
    pub(crate) fn generation(&self) -> Generation {
        self.0.generation
    }

    pub(crate) fn get(&self, kind: ResourceType, name: &str) -> Option<&Arc<Content>> {
        self.0.resources[slot(kind)].get(name)
    }

    pub(crate) fn all(&self, kind: ResourceType) -> &BTreeMap<Arc<str>, Arc<Content>> {
        &self.0.resources[slot(kind)]
    }

    /// What changed after `generation`, each resource once.
    pub(crate) fn since(
        &self,
        generation: Generation,
    ) -> Result<BTreeSet<(ResourceType, Arc<str>)>, TooFarBehind> {
        if generation < self.0.forgotten {
            return Err(TooFarBehind);
        }
        let new = self.0.log.iter().rev().take_while(|(g, ..)| *g > generation);
        Ok(new.map(|(_, kind, name)| (*kind, name.clone())).collect())
    }
}

pub(crate) const fn slot(kind: ResourceType) -> usize {
    kind.index()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(name: &str, version: Option<&str>) -> Change {
        let content =
            version.map(|v| Arc::new(Content { version: v.to_owned(), bytes: Vec::new(), audience: None }));
        Change { kind: ResourceType::Service, name: name.into(), content }
    }

    #[test]
    fn the_log_says_what_a_session_has_missed() {
        let store = Store::new();
        store.publish(vec![change("a", Some("1")), change("b", Some("1"))]);
        store.publish(vec![change("a", Some("2"))]);
        store.publish(Vec::new());
        store.publish(vec![change("b", None), change("a", Some("3"))]);
        let view = store.read();
        assert_eq!(view.generation(), 3);
        let names = |g| view.since(g).unwrap().into_iter().map(|(_, n)| n.to_string()).collect::<Vec<_>>();
        assert_eq!(names(0), ["a", "b"]);
        assert_eq!(names(1), ["a", "b"]);
        assert_eq!(names(2), ["a", "b"]);
        assert!(names(3).is_empty());
        assert_eq!(view.get(ResourceType::Service, "a").unwrap().version, "3");
        assert!(view.get(ResourceType::Service, "b").is_none());
    }

    #[test]
    fn a_session_that_is_too_far_behind_is_told_so() {
        let store = Store::new();
        store.publish(vec![change("first", Some("1"))]);
        store.publish((0..LOG_CAPACITY).map(|i| change(&format!("s{i}"), Some("1"))).collect());
        let view = store.read();
        assert_eq!(view.since(0), Err(TooFarBehind));
        assert_eq!(view.since(1).unwrap().len(), LOG_CAPACITY);
    }
}
