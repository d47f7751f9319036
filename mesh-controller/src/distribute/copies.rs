//! A copied disk: two machines that use one node's key at the same time.
//!
//! A proxy says on which machine it runs (host name, boot, network namespace): what a copied disk does not have in common
//! with its original, and what a restarted or upgraded proxy does. A node that comes from another machine than before was
//! restarted there, most likely; it is a copy if the machine from before still answers. Then **the one that was there
//! first stays, and the newer one is refused**: it serves already, and whoever stole a disk must not be able to push the
//! owner out. Both are named, in the log, the metric, the registry and what the refused node is told.
//!
//! Between controllers the node's record is the judge: a controller claims it for the machine that has come to it; the
//! one that still has a stream of the machine before objects by claiming it back, naming the newer one as refused.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    Shared,
    agent::now,
    sessions::{End, SessionInfo},
};
use crate::registry::{NodeRecord, Refused};

/// How long a stream may take to answer before it counts as dead.
const ANSWER: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(50);

/// Looks whether the machine of a new stream is another one than before. Proxies that do not say are not looked at.
pub(super) fn opened(shared: &Arc<Shared>, node: &Arc<str>, id: u64, machine: Arc<str>, peer: SocketAddr) {
    if machine.is_empty() {
        return;
    }
    let (shared, node) = (shared.clone(), node.clone());
    shared.tasks.clone().spawn("machine", async move {
        let stays = settle(&shared, &node, &machine).await;
        match stays {
            Some(older) => refuse(&shared, &node, &machine, (id, peer), &older).await,
            None if shared.sessions.is_open(id) => {
                let claim = machine.clone();
                change(&shared, &node, move |record| claimed(record, &claim)).await;
            }
            None => {}
        }
    });
}

/// Follows what other controllers write into records: objects to claims, and obeys objections.
pub(crate) fn follow(shared: &Arc<Shared>, mut changed: mpsc::Receiver<String>) {
    let shared = shared.clone();
    shared.tasks.clone().spawn_critical("machines", async move {
        while let Some(node) = changed.recv().await {
            let Some(record) = shared.registry.get(&node) else { continue };
            let here: Vec<_> =
                shared.sessions.of(&node).into_iter().filter(|(_, s)| !s.machine.is_empty()).collect();
            if let Some(refused) = record.refused.clone()
                && let Some((id, info)) = here.iter().find(|(_, s)| *s.machine == *refused.machine)
            {
                say(&shared, &node, &record.machine, &refused, info.peer);
                shared.sessions.end(*id, End::Copied(told(&node, &record.machine, &refused, info.peer)));
                continue;
            }
            if here.is_empty() || here.iter().any(|(_, s)| *s.machine == *record.machine) {
                continue;
            }
            let (shared, claimed) = (shared.clone(), record.machine);
            shared.tasks.clone().spawn("machine", async move {
                if let Some(older) = settle(&shared, &node, &claimed).await {
                    object(&shared, &node, &claimed, &older).await;
                }
            });
        }
    });
}

/// The oldest stream of another machine that answers; those that do not answer are ended.
async fn settle(shared: &Shared, node: &str, machine: &str) -> Option<SessionInfo> {
    let others = shared.sessions.of(node).into_iter();
    let others: Vec<_> = others.filter(|(_, s)| !s.machine.is_empty() && *s.machine != *machine).collect();
    let asked = Instant::now();
    others.iter().for_each(|(id, _)| shared.sessions.probe(*id));
    let mut waiting = others;
    while !waiting.is_empty() && asked.elapsed() < ANSWER {
        tokio::time::sleep(STEP).await;
        if let Some((_, alive)) = waiting.iter().find(|(id, _)| shared.sessions.heard_since(*id, asked)) {
            return Some(alive.clone());
        }
        waiting.retain(|(id, _)| shared.sessions.is_open(*id));
    }
    for (id, info) in waiting {
        tracing::info!(node, machine = &*info.machine, peer = %info.peer, "old stream does not answer: ended");
        shared.sessions.end(id, End::Dead);
    }
    None
}

/// Refuses a newer stream that is here, for an older one that is here.
async fn refuse(
    shared: &Arc<Shared>,
    node: &Arc<str>,
    machine: &Arc<str>,
    (id, peer): (u64, SocketAddr),
    older: &SessionInfo,
) {
    let refused =
        Refused { machine: machine.to_string(), kept_address: older.peer.ip().to_string(), at: now() };
    say(shared, node, &older.machine, &refused, peer);
    shared.sessions.end(id, End::Copied(told(node, &older.machine, &refused, peer)));
    let kept = older.machine.clone();
    change(shared, node, move |record| objected(record, &kept, &refused)).await;
}

/// Takes the record back from a newer machine that has come to another controller.
async fn object(shared: &Arc<Shared>, node: &str, claimed: &str, older: &SessionInfo) {
    let refused =
        Refused { machine: claimed.to_owned(), kept_address: older.peer.ip().to_string(), at: now() };
    tracing::warn!(
        node,
        kept = &*older.machine,
        address = %older.peer,
        refused = claimed,
        "two machines use one node's key (a copied disk?): the newer one, at another controller, is refused"
    );
    let kept = older.machine.clone();
    change(shared, node, move |record| {
        // Somebody else has come meanwhile: that is another matter.
        if record.machine == refused.machine { objected(record, &kept, &refused) } else { record.clone() }
    })
    .await;
}

fn claimed(record: &NodeRecord, machine: &str) -> NodeRecord {
    if record.machine == machine {
        return record.clone();
    }
    NodeRecord { machine: machine.to_owned(), refused: None, ..record.clone() }
}

fn objected(record: &NodeRecord, kept: &str, refused: &Refused) -> NodeRecord {
    let known = record.refused.as_ref().is_some_and(|r| r.machine == refused.machine);
    // The same copy that tries again changes nothing.
    if known && record.machine == kept {
        return record.clone();
    }
    NodeRecord { machine: kept.to_owned(), refused: Some(refused.clone()), ..record.clone() }
}

fn say(shared: &Shared, node: &str, kept: &str, refused: &Refused, address: SocketAddr) {
    shared.metrics.copies.inc();
    tracing::error!(
        node,
        kept,
        kept_address = refused.kept_address,
        refused = refused.machine,
        refused_address = %address,
        "two machines use one node's key (a copied disk?): the one that was there first stays, the newer one is refused"
    );
}

/// What the refused machine is told.
fn told(node: &str, kept: &str, refused: &Refused, peer: SocketAddr) -> String {
    format!(
        "node {node} is connected from machine {kept} at {}; this is machine {} at {}: two machines use one key, as \
         after a disk was copied. The one that was there first stays. Give this one a name of its own, remove its state \
         directory and let it join anew",
        refused.kept_address,
        refused.machine,
        peer.ip()
    )
}

async fn change(
    shared: &Arc<Shared>,
    node: &str,
    change: impl Fn(&NodeRecord) -> NodeRecord + Send + 'static,
) {
    let (registry, name) = (shared.registry.clone(), node.to_owned());
    match tokio::task::spawn_blocking(move || registry.change(&name, change)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(node, error = crate::chain(&error), "note the node's machine"),
        Err(_interrupted) => {}
    }
}
