//! Who belongs to the cluster: the names of its nodes, and of the pods that joined under their own names. A node of the
//! registry whose Node object or pod is deleted has left, and is cut off.
//!
//! The engine, which sees every object, keeps the names; every controller acts on what it sees go, since that must not
//! wait for a leader. What went while nobody looked is the business of the replica that holds the Lease, as are join
//! tokens that are past any use.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_index::{Kind, ObjectKey};
use tokio::sync::Notify;

use crate::{
    distribute::{Shared, agent::now},
    registry::{NodeRecord, Origin},
    state::Place,
    status::{STEP, Seat},
};

/// How often the holder of the Lease looks at everything.
const SWEEP: Duration = Duration::from_secs(600);
/// Changes are looked at together.
const SETTLE: Duration = Duration::from_millis(100);
/// After a removal that failed.
const AGAIN: Duration = Duration::from_secs(2);
/// Seconds for which a node counts as new.
const NEW: u64 = 30;
const LEASE: &str = "selvage-registry";

/// Names that the cluster knows. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Members(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    names: Mutex<Names>,
    gone: Notify,
}

#[derive(Debug, Default)]
struct Names {
    nodes: HashSet<String>,
    pods: HashSet<String>,
    /// Nodes and pods that were there and are not any more.
    left: HashSet<String>,
    /// All has been seen once.
    synced: bool,
    /// Namespaces whose pods may be members.
    pod_namespaces: HashSet<String>,
}

impl Members {
    /// Pods of these namespaces count.
    pub(crate) fn with_pods_of(self, namespaces: impl IntoIterator<Item = String>) -> Self {
        self.lock().pod_namespaces = namespaces.into_iter().collect();
        self
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn applied(&self, key: &ObjectKey) {
        match key.kind {
            Kind::Node => {
                let mut names = self.lock();
                names.left.remove(&*key.name);
                names.nodes.insert(key.name.to_string());
            }
            Kind::Pod => {
                let mut names = self.lock();
                if names.pod_namespaces.contains(&*key.namespace) {
                    names.left.remove(&*key.name);
                    names.pods.insert(key.name.to_string());
                }
            }
            _ => {}
        }
    }

    pub(crate) fn deleted(&self, key: &ObjectKey) {
        let gone = match key.kind {
            Kind::Node => {
                let mut names = self.lock();
                let gone = names.nodes.remove(&*key.name);
                if gone {
                    names.left.insert(key.name.to_string());
                }
                gone
            }
            Kind::Pod => {
                let mut names = self.lock();
                let gone = names.pod_namespaces.contains(&*key.namespace) && names.pods.remove(&*key.name);
                if gone {
                    names.left.insert(key.name.to_string());
                }
                gone
            }
            _ => false,
        };
        if gone {
            self.0.gone.notify_one();
        }
    }

    /// The names are complete.
    pub(crate) fn synced(&self) {
        self.lock().synced = true;
        self.0.gone.notify_one();
    }

    pub(crate) fn has_node(&self, name: &str) -> bool {
        self.lock().nodes.contains(name)
    }

    /// Why a node of the registry is no member any more; `None` while it is, or while that is not known.
    fn gone(&self, record: &NodeRecord, now: u64) -> Option<&'static str> {
        let names = self.lock();
        let left = names.left.contains(&record.node);
        // Of one that has just come the watch may not have told yet.
        if !names.synced || (!left && now < record.joined.saturating_add(NEW)) {
            return None;
        }
        let no_node = !names.nodes.contains(&record.node);
        let was_node = record.in_cluster || left;
        match record.origin {
            Origin::PodServiceAccount => (!names.pods.contains(&record.node)).then_some("its pod is gone"),
            Origin::NodeServiceAccount => no_node.then_some("its Node object is gone"),
            Origin::JoinToken => (no_node && was_node).then_some("its Node object is gone"),
        }
    }

    /// Names that have left are of interest once.
    fn forget_left(&self) {
        self.lock().left.clear();
    }
}

/// Cuts off nodes that have left, until the drain. `place` is that of the Lease.
pub(crate) fn keep(shared: &Arc<Shared>, place: Place, identity: String) {
    let shared = shared.clone();
    shared.tasks.clone().spawn_critical("members", async move {
        let mut seat = Seat::named(place.client, &place.namespace, LEASE, identity).owned_by(place.owner);
        let drain = shared.tasks.drain().clone();
        let mut step = tokio::time::interval(STEP);
        step.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut swept, mut complaint) = (None, String::new());
        loop {
            tokio::select! {
                () = shared.members.0.gone.notified() => {
                    tokio::time::sleep(SETTLE).await;
                    clean(&shared).await;
                }
                _ = step.tick() => {
                    complaint = renew(&mut seat, complaint).await;
                    let ours = seat.is_ours();
                    shared.metrics.leader.set(i64::from(ours));
                    let due = swept.is_none_or(|at: tokio::time::Instant| at.elapsed() >= SWEEP);
                    if ours && due {
                        clean(&shared).await;
                        purge(&shared).await;
                        swept = Some(tokio::time::Instant::now());
                    } else if !ours {
                        swept = None;
                    }
                }
                () = drain.stop_accepting() => break,
            }
        }
        shared.metrics.leader.set(0);
        tokio::time::timeout(STEP, seat.release()).await.ok();
    });
}

async fn renew(seat: &mut Seat, before: String) -> String {
    let complaint = match tokio::time::timeout(STEP, seat.step()).await {
        Ok(Ok(())) => String::new(),
        Ok(Err(error)) => crate::chain(&error),
        Err(_late) => "no answer".to_owned(),
    };
    if !complaint.is_empty() && complaint != before {
        tracing::warn!(error = complaint, "no lease for cleaning up the node registry");
    }
    complaint
}

/// Removes the records of nodes that are members no more. One that has joined again meanwhile stays.
async fn clean(shared: &Arc<Shared>) {
    let now = now();
    let gone: Vec<_> = shared
        .registry
        .list()
        .into_iter()
        .filter_map(|record| Some((shared.members.gone(&record, now)?, record)))
        .collect();
    let mut failed = false;
    for (why, seen) in gone {
        let (registry, node) = (shared.registry.clone(), seen.node.clone());
        let same =
            move |record: &NodeRecord| (record.joined, &record.peer_id) == (seen.joined, &seen.peer_id);
        let name = node.clone();
        match tokio::task::spawn_blocking(move || registry.remove_if(&name, same)).await {
            Ok(Ok(removed)) => {
                if removed {
                    tracing::info!(node, why, "node has left the mesh");
                    shared.metrics.left.with_label_values(&["cluster"]).inc();
                }
                shared.sessions.revoke(&node);
            }
            Ok(Err(error)) => {
                failed = true;
                tracing::warn!(node, error = crate::chain(&error), "remove a node that has left");
            }
            Err(_interrupted) => return,
        }
    }
    if failed {
        let members = shared.members.clone();
        shared.tasks.spawn("clean again", async move {
            tokio::time::sleep(AGAIN).await;
            members.0.gone.notify_one();
        });
    } else {
        shared.members.forget_left();
    }
}

async fn purge(shared: &Arc<Shared>) {
    let tokens = shared.issuer.tokens.clone();
    match tokio::task::spawn_blocking(move || tokens.purge(now())).await {
        Ok(Ok(0)) | Err(_) => {}
        Ok(Ok(dropped)) => tracing::info!(dropped, "join tokens that are past any use are removed"),
        Ok(Err(error)) => tracing::warn!(error = crate::chain(&error), "remove old join tokens"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: Kind, namespace: &str, name: &str) -> ObjectKey {
        ObjectKey::new(kind, namespace, name)
    }

    fn record(node: &str, origin: Origin, in_cluster: bool) -> NodeRecord {
        let json = serde_json::json!({ "node": node, "peer_id": "p", "joined": 1, "in_cluster": in_cluster });
        NodeRecord { origin, ..serde_json::from_value(json).unwrap() }
    }

    #[test]
    fn who_has_left_and_who_never_was_there() {
        let members = Members::default().with_pods_of(["sys".to_owned()]);
        let outside = record("far", Origin::JoinToken, false);
        let by_token = record("a", Origin::JoinToken, false);
        let by_account = record("b", Origin::NodeServiceAccount, true);
        let pod = record("gw-1", Origin::PodServiceAccount, false);
        let gone = |r: &NodeRecord| members.gone(r, 1000).is_some();
        assert!(!gone(&by_account), "nothing is known yet");
        for (kind, namespace, name) in [
            (Kind::Node, "", "a"),
            (Kind::Node, "", "b"),
            (Kind::Pod, "sys", "gw-1"),
            (Kind::Pod, "x", "gw-2"),
        ] {
            members.applied(&key(kind, namespace, name));
        }
        members.synced();
        assert!(![&outside, &by_token, &by_account, &pod].into_iter().any(gone));
        let elsewhere = record("gw-2", Origin::PodServiceAccount, false);
        assert!(gone(&elsewhere), "of another namespace");
        assert!(members.gone(&elsewhere, 10).is_none(), "it has just come");
        for (kind, namespace, name) in
            [(Kind::Node, "", "a"), (Kind::Node, "", "b"), (Kind::Pod, "sys", "gw-1")]
        {
            members.deleted(&key(kind, namespace, name));
        }
        assert!([&by_token, &by_account, &pod].into_iter().all(gone) && !gone(&outside));
        members.applied(&key(Kind::Node, "", "a"));
        assert!(!gone(&by_token), "it is there again");
    }
}
