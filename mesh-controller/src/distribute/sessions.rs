//! Who is connected and how it fares: for status, metrics, and for ending the sessions of removed nodes.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mesh_api::ResourceType;
use serde::Serialize;
use tokio::sync::watch;

/// What is known of one stream.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SessionInfo {
    /// The node.
    pub node: Arc<str>,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// What it says it runs.
    pub agent: String,
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
    #[serde(skip)]
    identified: bool,
}

#[derive(Debug, Default)]
struct Inner {
    sessions: HashMap<u64, (SessionInfo, watch::Sender<bool>)>,
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
    pub(crate) fn open(&self, node: &Arc<str>, peer: SocketAddr) -> Option<SessionHandle> {
        let info = SessionInfo {
            node: node.clone(),
            peer,
            agent: String::new(),
            pushes: 0,
            acks: 0,
            nacks: 0,
            unanswered: 0,
            last_nack: BTreeMap::new(),
            identified: false,
        };
        let (sender, revoked) = watch::channel(false);
        let mut inner = self.lock();
        let open = inner.per_node.entry(node.clone()).or_default();
        if *open >= STREAMS_PER_NODE {
            return None;
        }
        *open += 1;
        inner.next += 1;
        let id = inner.next;
        inner.sessions.insert(id, (info, sender));
        drop(inner);
        Some(SessionHandle { sessions: self.clone(), id, revoked })
    }

    /// All streams by node.
    pub(crate) fn list(&self) -> Vec<SessionInfo> {
        let mut all: Vec<_> = self.lock().sessions.values().map(|(info, _)| info.clone()).collect();
        all.sort_by(|a, b| (&a.node, a.peer).cmp(&(&b.node, b.peer)));
        all
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().sessions.len()
    }

    /// Ends the streams of a node that was removed.
    pub(crate) fn revoke(&self, node: &str) {
        for (info, revoke) in self.lock().sessions.values() {
            if &*info.node == node {
                revoke.send_replace(true);
            }
        }
    }
}

/// Held by a stream; it is listed until this is dropped.
#[derive(Debug)]
pub(crate) struct SessionHandle {
    sessions: Sessions,
    id: u64,
    revoked: watch::Receiver<bool>,
}

impl SessionHandle {
    fn update<T>(&self, change: impl FnOnce(&mut SessionInfo) -> T) -> Option<T> {
        self.sessions.lock().sessions.get_mut(&self.id).map(|(info, _)| change(info))
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

    /// Resolves when the node was removed.
    pub(crate) async fn revoked(&mut self) {
        if self.revoked.wait_for(|revoked| *revoked).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for SessionHandle {
    fn drop(&mut self) {
        let mut inner = self.sessions.lock();
        let Some((info, _)) = inner.sessions.remove(&self.id) else { return };
        if let Some(open) = inner.per_node.get_mut(&info.node) {
            *open -= 1;
            if *open == 0 {
                inner.per_node.remove(&info.node);
            }
        }
    }
}
