//! Who is connected and how it fares: for status, metrics, for ending the sessions of removed nodes, and for asking a
//! stream whether somebody is still there.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mesh_api::{ResourceType, xds::DeltaDiscoveryResponse};
use serde::Serialize;
use tokio::sync::{Notify, watch};

/// What is known of one stream.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SessionInfo {
    /// The node.
    pub node: Arc<str>,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// What it says it runs.
    pub agent: String,
    /// The machine on which it runs, as it says; empty when it says nothing.
    pub machine: Arc<str>,
    /// Responses sent.
    pub pushes: u64,
    /// Responses taken.
    pub acks: u64,
    /// Responses refused, at least in part.
    pub nacks: u64,
    /// Responses not answered yet.
    pub unanswered: usize,
    /// The last refusal of each resource type.
    pub last_nack: BTreeMap<&'static str, String>,
    /// The publication that the proxy has last been up to date with.
    pub generation: u64,
    /// Seconds since the stream was opened.
    pub connected_seconds: u64,
    /// Seconds since it said something.
    pub heard_seconds: Option<u64>,
    /// How long it has been without something that it should have; none = it has all.
    pub behind_ms: Option<u64>,
    /// How long it took until it had all, the last time that there was something new for it.
    pub lag_ms: Option<u64>,
    #[serde(skip)]
    opened: Option<Instant>,
    #[serde(skip)]
    behind: Option<Instant>,
    #[serde(skip)]
    identified: bool,
    /// When it said something last.
    #[serde(skip)]
    heard: Option<Instant>,
}

/// Why we end a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The node was removed.
    Removed,
    /// Another machine with the same key is connected; how that is told.
    Copied(String),
    /// Nobody is at the other end any more.
    Dead,
}

impl SessionInfo {
    /// With times as they are now.
    fn at(mut self, now: Instant) -> Self {
        let since = |at: Instant| now.saturating_duration_since(at);
        self.connected_seconds = self.opened.map_or(0, |at| since(at).as_secs());
        self.heard_seconds = self.heard.map(|at| since(at).as_secs());
        self.behind_ms = self.behind.map(|at| millis(since(at)));
        self
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Debug)]
struct Entry {
    info: SessionInfo,
    end: watch::Sender<Option<End>>,
    probe: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inner {
    sessions: HashMap<u64, Entry>,
    per_node: HashMap<Arc<str>, usize>,
    next: u64,
}

/// Streams of one node at a time: the old one may linger while a new one starts, more is a fault.
const STREAMS_PER_NODE: usize = 4;

/// All streams.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions(Arc<Mutex<Inner>>);

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` when the node has too many already.
    pub(crate) fn open(&self, node: &Arc<str>, peer: SocketAddr, machine: Arc<str>) -> Option<SessionHandle> {
        let info = SessionInfo {
            node: node.clone(),
            peer,
            agent: String::new(),
            machine,
            pushes: 0,
            acks: 0,
            nacks: 0,
            unanswered: 0,
            last_nack: BTreeMap::new(),
            generation: 0,
            connected_seconds: 0,
            heard_seconds: None,
            behind_ms: None,
            lag_ms: None,
            opened: Some(Instant::now()),
            behind: None,
            identified: false,
            heard: None,
        };
        let (sender, ended) = watch::channel(None);
        let probe = Arc::new(Notify::new());
        let mut inner = self.lock();
        let open = inner.per_node.entry(node.clone()).or_default();
        if *open >= STREAMS_PER_NODE {
            return None;
        }
        *open += 1;
        inner.next += 1;
        let id = inner.next;
        inner.sessions.insert(id, Entry { info, end: sender, probe: probe.clone() });
        drop(inner);
        Some(SessionHandle { sessions: self.clone(), id, ended, probe })
    }

    /// All streams by node.
    pub(crate) fn list(&self) -> Vec<SessionInfo> {
        let now = Instant::now();
        let mut all: Vec<_> = self.lock().sessions.values().map(|entry| entry.info.clone().at(now)).collect();
        all.sort_by(|a, b| (&a.node, a.peer).cmp(&(&b.node, b.peer)));
        all
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().sessions.len()
    }

    /// Ends the streams of a node that was removed.
    pub(crate) fn revoke(&self, node: &str) {
        for entry in self.lock().sessions.values() {
            if &*entry.info.node == node {
                entry.end.send_replace(Some(End::Removed));
            }
        }
    }

    /// Streams of a node, with their numbers.
    pub(crate) fn of(&self, node: &str) -> Vec<(u64, SessionInfo)> {
        let inner = self.lock();
        if !inner.per_node.contains_key(node) {
            return Vec::new();
        }
        let of_node = inner.sessions.iter().filter(|(_, entry)| &*entry.info.node == node);
        let mut all: Vec<_> = of_node.map(|(id, entry)| (*id, entry.info.clone())).collect();
        all.sort_by_key(|(id, _)| *id);
        all
    }

    /// Ends one stream.
    pub(crate) fn end(&self, id: u64, why: End) {
        if let Some(entry) = self.lock().sessions.get(&id) {
            entry.end.send_replace(Some(why));
        }
    }

    /// Makes a stream send something that the node answers.
    pub(crate) fn probe(&self, id: u64) {
        if let Some(entry) = self.lock().sessions.get(&id) {
            entry.probe.notify_one();
        }
    }

    /// Whether a stream has said something since.
    pub(crate) fn heard_since(&self, id: u64, since: Instant) -> bool {
        self.lock().sessions.get(&id).is_some_and(|e| e.info.heard.is_some_and(|at| at > since))
    }

    pub(crate) fn is_open(&self, id: u64) -> bool {
        self.lock().sessions.contains_key(&id)
    }
}

/// Held by a stream; it is listed until this is dropped.
#[derive(Debug)]
pub(crate) struct SessionHandle {
    sessions: Sessions,
    id: u64,
    ended: watch::Receiver<Option<End>>,
    probe: Arc<Notify>,
}

impl SessionHandle {
    fn update<T>(&self, change: impl FnOnce(&mut SessionInfo) -> T) -> Option<T> {
        self.sessions.lock().sessions.get_mut(&self.id).map(|entry| change(&mut entry.info))
    }

    /// The stream's number.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The node has said something.
    pub(crate) fn heard(&self) {
        self.update(|info| info.heard = Some(Instant::now()));
    }

    /// Notified when somebody wants to know whether the node is still there.
    pub(crate) fn probes(&self) -> Arc<Notify> {
        self.probe.clone()
    }

    pub(crate) fn is_identified(&self) -> bool {
        self.update(|info| info.identified).unwrap_or_default()
    }

    pub(crate) fn identified(&self, agent: Option<&str>) {
        self.update(|info| {
            info.identified = true;
            if let Some(agent) = agent {
                info.agent = agent.chars().take(100).collect();
            }
        });
    }

    /// A response goes out: what it has refused and is sent anew, it has not refused any more.
    pub(crate) fn sends(&self, kind: ResourceType, response: &DeltaDiscoveryResponse) {
        self.update(|info| {
            let anew = |reason: &String| {
                let sent = response.resources.iter().map(|r| &r.name).chain(&response.removed_resources);
                sent.into_iter().any(|name| reason.contains(name.as_str()))
            };
            if info.last_nack.get(kind.as_str()).is_some_and(anew) {
                info.last_nack.remove(kind.as_str());
            }
        });
    }

    /// Whether the proxy has all of that publication. A refusal counts as having it: what was refused is listed apart.
    pub(crate) fn progress(&self, settled: bool, generation: u64) {
        self.update(|info| match (settled, info.behind) {
            (true, since) => {
                info.generation = generation;
                if let Some(since) = since {
                    info.lag_ms = Some(millis(since.elapsed()));
                    info.behind = None;
                }
            }
            (false, None) => info.behind = Some(Instant::now()),
            (false, Some(_)) => {}
        });
    }

    pub(crate) fn sent(&self, unanswered: usize) {
        self.update(|info| (info.pushes, info.unanswered) = (info.pushes + 1, unanswered));
    }

    pub(crate) fn acknowledged(&self, unanswered: usize) {
        self.update(|info| (info.acks, info.unanswered) = (info.acks + 1, unanswered));
    }

    pub(crate) fn refused(&self, kind: ResourceType, reason: String, unanswered: usize) {
        self.update(|info| {
            (info.nacks, info.unanswered) = (info.nacks + 1, unanswered);
            info.last_nack.insert(kind.as_str(), reason);
        });
    }

    /// Resolves when we end the stream.
    pub(crate) async fn ended(&mut self) -> End {
        match self.ended.wait_for(Option::is_some).await.map(|end| end.clone()) {
            Ok(Some(end)) => end,
            // The sender lives as long as this handle.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for SessionHandle {
    fn drop(&mut self) {
        let mut inner = self.sessions.lock();
        let Some(Entry { info, .. }) = inner.sessions.remove(&self.id) else { return };
        if let Some(open) = inner.per_node.get_mut(&info.node) {
            *open -= 1;
            if *open == 0 {
                inner.per_node.remove(&info.node);
            }
        }
    }
}
