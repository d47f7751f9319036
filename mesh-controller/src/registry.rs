//! The node registry: who has joined with which key, and where each node says it can be reached. One file a node, so
//! that a report costs one small write.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mesh_ca::{FileError, write_private};
use mesh_index::Registration;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::source::Op;

/// What is kept of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeRecord {
    /// Its name.
    pub node: String,
    /// libp2p peer id.
    pub peer_id: String,
    /// Multiaddrs, best first.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// It carries circuits of others.
    #[serde(default)]
    pub relay: bool,
    /// Kind of its NAT.
    #[serde(default)]
    pub nat: String,
    /// Circuit addresses at which it is reached.
    #[serde(default)]
    pub reservations: Vec<String>,
    /// What it runs.
    #[serde(default)]
    pub version: String,
    /// Seconds since 1970 of the first join.
    pub joined: u64,
    /// Seconds since 1970 of the last report that changed anything.
    #[serde(default)]
    pub reported: u64,
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub addresses: Vec<String>,
    pub relay: bool,
    pub nat: String,
    pub reservations: Vec<String>,
    pub version: String,
}

/// What identifies a state of a file without reading it.
type Stamp = (std::time::SystemTime, u64, u64);

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Registry {
    dir: Arc<Path>,
    nodes: Arc<Mutex<BTreeMap<String, NodeRecord>>>,
    /// State of each file as last read, to notice what another controller writes.
    stamps: Arc<Mutex<BTreeMap<PathBuf, Stamp>>>,
    changes: mpsc::Sender<Vec<Op>>,
}

impl Registry {
    /// Loads all records. One that cannot be read is left alone and said: its node can join again.
    pub(crate) fn open(dir: PathBuf, changes: mpsc::Sender<Vec<Op>>) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let registry = Self { dir: dir.into(), nodes: Arc::default(), stamps: Arc::default(), changes };
        registry.read()?;
        Ok(registry)
    }

    /// Takes over what another controller on the same directory has written, and returns which nodes it has removed.
    /// Blocks on the disk.
    pub(crate) fn refresh(&self) -> io::Result<Vec<String>> {
        let (changed, removed) = self.read()?;
        let gone = removed.iter().map(|node| Op::Register(node.clone(), None));
        let operations: Vec<Op> = changed.iter().map(operation).chain(gone).collect();
        if !operations.is_empty() {
            self.changes.blocking_send(operations).ok();
        }
        Ok(removed)
    }

    /// Reads files that are new or different; returns records that are different, and names of those that are gone.
    fn read(&self) -> io::Result<(Vec<NodeRecord>, Vec<String>)> {
        // Own writes happen under the same lock: a file and its record are never seen apart.
        let mut nodes = self.lock();
        let mut stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut found, mut changed) = (BTreeMap::new(), Vec::new());
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            // One that goes away between the two is gone.
            let Ok(stamp) = stamp(&path) else { continue };
            if stamps.get(&path) != Some(&stamp) {
                let parsed = fs::read(&path).and_then(|content| {
                    serde_json::from_slice::<NodeRecord>(&content).map_err(io::Error::other)
                });
                match parsed {
                    Ok(record) if nodes.get(&record.node) == Some(&record) => {}
                    Ok(record) => {
                        nodes.insert(record.node.clone(), record.clone());
                        changed.push(record);
                    }
                    Err(error) => {
                        tracing::error!(path = %path.display(), %error, "node record is not usable")
                    }
                }
            }
            found.insert(path, stamp);
        }
        let gone: Vec<String> =
            nodes.keys().filter(|n| !found.contains_key(&self.path(n))).cloned().collect();
        for node in &gone {
            nodes.remove(node);
        }
        *stamps = found;
        Ok((changed, gone))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, NodeRecord>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn knows(&self, node: &str) -> bool {
        self.lock().contains_key(node)
    }

    /// Another node that has joined with this key: a copied state directory, most likely.
    pub(crate) fn other_holder(&self, peer_id: &str, node: &str) -> Option<String> {
        self.lock().values().find(|r| r.peer_id == peer_id && r.node != node).map(|r| r.node.clone())
    }

    /// All records, as operations for the index.
    pub(crate) fn all(&self) -> Vec<Op> {
        self.lock().values().map(operation).collect()
    }

    pub(crate) fn list(&self) -> Vec<NodeRecord> {
        self.lock().values().cloned().collect()
    }

    /// Notes a node that has proved itself. Blocks on the disk.
    pub(crate) fn joined(&self, node: &str, peer_id: &str, now: u64) -> Result<(), FileError> {
        self.update(node, |old| {
            let mut record = old.cloned().unwrap_or_else(|| NodeRecord {
                node: node.to_owned(),
                peer_id: String::new(),
                addresses: Vec::new(),
                relay: false,
                nat: String::new(),
                reservations: Vec::new(),
                version: String::new(),
                joined: now,
                reported: 0,
            });
            peer_id.clone_into(&mut record.peer_id);
            Some(record)
        })
        .map(drop)
    }

    /// Notes where a node can be reached; `false` when it has not joined. Blocks on the disk.
    pub(crate) fn reported(&self, node: &str, said: Said, now: u64) -> Result<bool, FileError> {
        self.update(node, |old| {
            let old = old?;
            let Said { addresses, relay, nat, reservations, version } = said;
            let new = NodeRecord { addresses, relay, nat, reservations, version, ..old.clone() };
            Some(if new == *old { new } else { NodeRecord { reported: now, ..new } })
        })
    }

    /// Forgets a node; `false` when it was not known. Blocks on the disk.
    pub(crate) fn remove(&self, node: &str) -> io::Result<bool> {
        let mut nodes = self.lock();
        if nodes.remove(node).is_none() {
            return Ok(false);
        }
        fs::remove_file(self.path(node))?;
        drop(nodes);
        self.changes.blocking_send(vec![Op::Register(node.to_owned(), None)]).ok();
        Ok(true)
    }

    /// Writes first, then shows: what the mesh knows survives a restart.
    fn update(
        &self,
        node: &str,
        change: impl FnOnce(Option<&NodeRecord>) -> Option<NodeRecord>,
    ) -> Result<bool, FileError> {
        let mut nodes = self.lock();
        let old = nodes.get(node);
        let Some(record) = change(old) else { return Ok(false) };
        if old == Some(&record) {
            return Ok(true);
        }
        let json = serde_json::to_vec_pretty(&record).unwrap_or_default();
        write_private(&self.path(node), &json)?;
        let operation = operation(&record);
        nodes.insert(node.to_owned(), record);
        drop(nodes);
        self.changes.blocking_send(vec![operation]).ok();
        Ok(true)
    }

    /// Node names are DNS names: safe as file names.
    fn path(&self, node: &str) -> PathBuf {
        self.dir.join(format!("{node}.json"))
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(path)?;
    Ok((meta.modified()?, meta.len(), meta.ino()))
}

fn operation(record: &NodeRecord) -> Op {
    let registration = Registration {
        peer_id: record.peer_id.clone(),
        addresses: record.addresses.clone(),
        relay: record.relay,
        nat: record.nat.clone(),
        reservations: record.reservations.clone(),
    };
    Op::Register(record.node.clone(), Some(registration))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_a_restart_and_bad_ones_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, mut receiver) = mpsc::channel(16);
        let registry = Registry::open(dir.path().to_owned(), sender.clone()).unwrap();
        let said = |version: &str| Said {
            addresses: vec!["/ip4/1.2.3.4/tcp/1".to_owned()],
            relay: true,
            nat: "symmetric".to_owned(),
            reservations: vec!["/ip4/5.6.7.8/tcp/1/p2p/12D3/p2p-circuit".to_owned()],
            version: version.to_owned(),
        };
        assert!(!registry.reported("a", said(""), 5).unwrap());
        registry.joined("a", "peer-1", 1).unwrap();
        registry.joined("b", "peer-2", 2).unwrap();
        assert!(registry.reported("a", said("v1"), 5).unwrap());
        // The same again is no change.
        assert!(registry.reported("a", said("v1"), 9).unwrap());
        registry.joined("a", "peer-3", 7).unwrap();
        assert!(registry.remove("b").unwrap() && !registry.remove("b").unwrap());
        let mut seen = 0;
        while receiver.try_recv().is_ok() {
            seen += 1;
        }
        assert_eq!(seen, 5);
        fs::write(dir.path().join("c.json"), "garbage").unwrap();
        let again = Registry::open(dir.path().to_owned(), sender).unwrap().list();
        assert_eq!(again.len(), 1);
        assert_eq!((again[0].peer_id.as_str(), again[0].joined, again[0].reported), ("peer-3", 1, 5));
        assert_eq!(again[0].addresses, ["/ip4/1.2.3.4/tcp/1"]);
        assert_eq!(
            (again[0].relay, again[0].nat.as_str(), again[0].reservations.len()),
            (true, "symmetric", 1)
        );
    }

    #[test]
    fn two_controllers_on_one_directory_know_the_same_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, mut receiver) = mpsc::channel(16);
        let one = Registry::open(dir.path().to_owned(), mpsc::channel(16).0).unwrap();
        let two = Registry::open(dir.path().to_owned(), sender).unwrap();
        one.joined("a", "peer-1", 1).unwrap();
        assert!(!two.knows("a"));
        assert!(two.refresh().unwrap().is_empty());
        assert!(two.knows("a"));
        let told = receiver.try_recv().unwrap();
        assert!(matches!(&told[..], [Op::Register(node, Some(r))] if node == "a" && r.peer_id == "peer-1"));
        assert!(two.refresh().unwrap().is_empty() && receiver.try_recv().is_err(), "nothing is new");
        // What a controller writes itself is not news to it.
        two.joined("b", "peer-2", 2).unwrap();
        receiver.try_recv().unwrap();
        two.refresh().unwrap();
        assert!(receiver.try_recv().is_err());
        one.refresh().unwrap();
        assert!(one.remove("b").unwrap());
        assert_eq!(two.refresh().unwrap(), ["b"]);
        assert!(matches!(&receiver.try_recv().unwrap()[..], [Op::Register(node, None)] if node == "b"));
        assert!(!two.knows("b"));
    }
}
