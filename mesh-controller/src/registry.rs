//! The node registry: who has joined with which key, where each node says it can be reached, and on which machine it
//! runs. One document a node on a shelf that all controllers share; a document is written when something changes, never
//! by a heartbeat. What others write comes by [`Registry::refresh`] or, from a watch, by [`Registry::take`].

mod record;

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mesh_ca::{Document, Put, Shelf, StoreError};
use tokio::sync::mpsc;

use crate::source::Op;
pub(crate) use record::{Joined, NodeRecord, Origin, Refused, Said};

/// Another writer of the same record is met once or twice.
const TRIES: usize = 8;
/// Writers of one node wait for each other, those of others hardly ever.
const GATES: usize = 64;

/// A record and the version in which it was seen; a document that is no record has a version only.
#[derive(Debug, Clone, Default)]
struct Known {
    record: Option<NodeRecord>,
    version: String,
}

/// What a watch has seen of a document.
#[derive(Debug)]
pub(crate) enum Seen {
    /// It is there.
    There(Document),
    /// It was removed, which was a new version as well.
    Gone { version: String },
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Registry {
    shelf: Arc<dyn Shelf>,
    nodes: Arc<Mutex<BTreeMap<String, Known>>>,
    gates: Arc<[Mutex<()>; GATES]>,
    hasher: RandomState,
    changes: mpsc::Sender<Vec<Op>>,
    /// Nodes whose records were found to be gone while they were being changed: nobody has been told of them.
    gone: Arc<Mutex<Vec<String>>>,
    /// Nodes that run on another machine than before. When nobody keeps up, what is lost is a look at a copied disk.
    machines: mpsc::Sender<String>,
}

/// Machine changes that wait to be looked at.
const MACHINES: usize = 1024;

impl Registry {
    /// Loads all records. One that cannot be read is left alone and said: its node can join again. Blocks.
    pub(crate) fn open(
        shelf: Arc<dyn Shelf>,
        changes: mpsc::Sender<Vec<Op>>,
    ) -> Result<(Self, mpsc::Receiver<String>), StoreError> {
        let (machines, moved) = mpsc::channel(MACHINES);
        let registry = Self {
            shelf,
            nodes: Arc::default(),
            gates: Arc::new(std::array::from_fn(|_| Mutex::new(()))),
            hasher: RandomState::new(),
            changes,
            gone: Arc::default(),
            machines,
        };
        for (name, document) in registry.shelf.list()? {
            registry.set(&name, Some(document));
        }
        Ok((registry, moved))
    }

    /// Takes over what another controller has written, and returns which nodes it has removed. Blocks.
    pub(crate) fn refresh(&self) -> Result<Vec<String>, StoreError> {
        let there: BTreeMap<String, String> = self.shelf.versions()?.into_iter().collect();
        let (changed, gone) = {
            let nodes = self.lock();
            let is_new = |(name, version): &(&String, &String)| {
                nodes.get(*name).is_none_or(|known| known.version != **version)
            };
            let changed: Vec<String> = there.iter().filter(is_new).map(|(name, _)| name.clone()).collect();
            let gone: Vec<String> = nodes.keys().filter(|n| !there.contains_key(*n)).cloned().collect();
            (changed, gone)
        };
        let names: Vec<String> = changed.into_iter().chain(gone).collect();
        self.look_again(&names)
    }

    /// Takes over what the shelf says of some nodes, and returns which of them are out. Blocks.
    pub(crate) fn look_again(&self, names: &[String]) -> Result<Vec<String>, StoreError> {
        let (mut operations, mut removed) = (Vec::new(), Vec::new());
        for name in names {
            // With the gate closed: our own writes happen there too.
            let _gate = self.gate(name);
            let (operation, left) = self.set(name, self.shelf.get(name)?);
            operations.extend(operation);
            removed.extend(left);
        }
        if !operations.is_empty() {
            self.changes.blocking_send(operations).ok();
        }
        Ok(removed)
    }

    /// Takes over what a watch says; the operation is for the index, the name for the node's sessions if it is out.
    pub(crate) fn take(&self, name: &str, seen: Seen) -> (Option<Op>, Option<String>) {
        let (Seen::There(Document { version, .. }) | Seen::Gone { version }) = &seen;
        if self.lock().get(name).is_some_and(|known| !is_newer(version, &known.version)) {
            return (None, None);
        }
        match seen {
            Seen::There(document) => self.set(name, Some(document)),
            Seen::Gone { .. } => self.set(name, None),
        }
    }

    /// Nodes that others have removed, which neither [`Self::refresh`] nor a watch has told of.
    pub(crate) fn found_gone(&self) -> Vec<String> {
        std::mem::take(&mut *self.gone.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Names of all records.
    pub(crate) fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Puts a state of a document in force.
    fn set(&self, name: &str, document: Option<Document>) -> (Option<Op>, Option<String>) {
        let new = document.map(|found| Known { record: parse(name, &found), version: found.version });
        let mut nodes = self.lock();
        let record = new.as_ref().and_then(|known| known.record.clone());
        let old = match new {
            Some(known) => nodes.insert(name.to_owned(), known),
            None => nodes.remove(name),
        };
        drop(nodes);
        let old = old.and_then(|known| known.record);
        if old == record {
            return (None, None);
        }
        if let Some(record) = &record
            && old.as_ref().is_some_and(|o| (&o.machine, &o.refused) != (&record.machine, &record.refused))
        {
            self.machines.try_send(name.to_owned()).ok();
        }
        let left = (old.is_some() && record.is_none()).then(|| name.to_owned());
        (Some(Op::Register(name.to_owned(), record.map(|r| r.registration()))), left)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gate(&self, node: &str) -> MutexGuard<'_, ()> {
        let index = self.hasher.hash_one(node) as usize % GATES;
        self.gates[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a node here; it may have joined elsewhere a moment ago.
    pub(crate) fn get(&self, node: &str) -> Option<NodeRecord> {
        self.lock().get(node)?.record.clone()
    }

    /// A node's record, looked up on the shelf when it is not known here. Blocks.
    pub(crate) fn find(&self, node: &str) -> Result<Option<NodeRecord>, StoreError> {
        if let Some(record) = self.get(node) {
            return Ok(Some(record));
        }
        let _gate = self.gate(node);
        let (operation, _) = self.set(node, self.shelf.get(node)?);
        if let Some(operation) = operation {
            self.changes.blocking_send(vec![operation]).ok();
        }
        Ok(self.get(node))
    }

    /// Another node that has joined with this key: one that was renamed, or a copied state directory.
    pub(crate) fn other_holder(&self, peer_id: &str, node: &str) -> Option<String> {
        let nodes = self.lock();
        let mut records = nodes.values().filter_map(|known| known.record.as_ref());
        records.find(|r| r.peer_id == peer_id && r.node != node).map(|r| r.node.clone())
    }

    /// All records, as operations for the index.
    pub(crate) fn all(&self) -> Vec<Op> {
        self.list().into_iter().map(|r| Op::Register(r.node.clone(), Some(r.registration()))).collect()
    }

    pub(crate) fn list(&self) -> Vec<NodeRecord> {
        self.lock().values().filter_map(|known| known.record.clone()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Notes a node that has proved itself. Blocks.
    pub(crate) fn joined(&self, node: &str, joined: &Joined, now: u64) -> Result<(), StoreError> {
        self.update(node, |old| {
            let mut record = old.cloned().unwrap_or_else(|| NodeRecord::new(node, now));
            joined.peer_id.clone_into(&mut record.peer_id);
            if let Some(origin) = joined.origin {
                record.origin = origin;
            }
            record.in_cluster |= joined.in_cluster;
            Some(record)
        })
        .map(drop)
    }

    /// Notes where a node can be reached; `false` when it has not joined. Blocks.
    pub(crate) fn reported(&self, node: &str, said: &Said, now: u64) -> Result<bool, StoreError> {
        self.update(node, |old| {
            let old = old?;
            let new = said.on(old);
            Some(if new == *old { new } else { NodeRecord { reported: now, ..new } })
        })
    }

    /// Changes the record of a node that has joined; `false` when it has not. Blocks.
    pub(crate) fn change(
        &self,
        node: &str,
        change: impl Fn(&NodeRecord) -> NodeRecord,
    ) -> Result<bool, StoreError> {
        self.update(node, |old| old.map(&change))
    }

    /// Forgets a node; `false` when it was not known. Blocks.
    pub(crate) fn remove(&self, node: &str) -> Result<bool, StoreError> {
        self.remove_if(node, |_| true)
    }

    /// Forgets a node as it was seen; one that has joined again since stays. Blocks.
    pub(crate) fn remove_if(
        &self,
        node: &str,
        gone: impl Fn(&NodeRecord) -> bool,
    ) -> Result<bool, StoreError> {
        let _gate = self.gate(node);
        for _ in 0..TRIES {
            let Some(found) = self.shelf.get(node)? else {
                self.announce(node, None);
                return Ok(false);
            };
            let version = found.version.clone();
            if parse(node, &found).is_some_and(|record| !gone(&record)) {
                return Ok(false);
            }
            if self.shelf.remove(node, Some(&version))? {
                self.announce(node, None);
                return Ok(true);
            }
        }
        Err(contended(node))
    }

    fn announce(&self, node: &str, document: Option<Document>) {
        if let (Some(operation), _) = self.set(node, document) {
            self.changes.blocking_send(vec![operation]).ok();
        }
    }

    /// Writes first, then shows: what the mesh knows survives a restart.
    fn update(
        &self,
        node: &str,
        change: impl Fn(Option<&NodeRecord>) -> Option<NodeRecord>,
    ) -> Result<bool, StoreError> {
        let _gate = self.gate(node);
        let mut known = self.lock().get(node).cloned();
        if known.is_none() {
            known = self.look(node)?;
        }
        for _ in 0..TRIES {
            let (old, version) = match &known {
                Some(known) => (known.record.as_ref(), Some(known.version.as_str())),
                None => (None, None),
            };
            let Some(record) = change(old) else { return Ok(false) };
            if old == Some(&record) {
                return Ok(true);
            }
            let content =
                serde_json::to_vec_pretty(&record).map_err(|e| StoreError::new("encode", node, e))?;
            if let Put::Done(version) = self.shelf.put(node, &content, version)? {
                self.announce(node, Some(Document { content, version }));
                return Ok(true);
            }
            known = self.look(node)?;
        }
        Err(contended(node))
    }

    /// What is on the shelf, put in force here.
    fn look(&self, node: &str) -> Result<Option<Known>, StoreError> {
        let (operation, left) = self.set(node, self.shelf.get(node)?);
        if let Some(operation) = operation {
            self.changes.blocking_send(vec![operation]).ok();
        }
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).extend(left);
        Ok(self.lock().get(node).cloned())
    }
}

fn contended(node: &str) -> StoreError {
    StoreError::new("write", node, "it is changed all the time")
}

fn parse(name: &str, document: &Document) -> Option<NodeRecord> {
    match serde_json::from_slice::<NodeRecord>(&document.content) {
        Ok(record) if record.node == name => Some(record),
        Ok(record) => {
            tracing::error!(name, node = record.node, "node record has another node's name");
            None
        }
        Err(error) => {
            tracing::error!(name, %error, "node record is not usable");
            None
        }
    }
}

/// Versions of a cluster are numbers that grow; others only differ. A watch may say late what was written here.
fn is_newer(new: &str, known: &str) -> bool {
    match (new.parse::<u64>(), known.parse::<u64>()) {
        (Ok(new), Ok(known)) => new > known,
        _ => new != known,
    }
}

#[cfg(test)]
mod tests;
