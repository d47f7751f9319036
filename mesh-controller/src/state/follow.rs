//! What other controllers, and people, do to the node registry in the cluster: a watch, so that a node that is removed
//! anywhere is cut off here within a moment.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::StreamExt;
use kube::{
    Api,
    api::DynamicObject,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::mpsc;

use super::{
    Place,
    cluster::{mesh_node_resource, node_document},
};
use crate::{
    distribute::Shared,
    registry::Seen,
    source::{Health, Op, kube::Pauses},
};

/// Name of this watch among the parts of the source.
const PART: &str = "MeshNode";
/// After the kind was not served.
const AGAIN: Duration = Duration::from_secs(2);

/// Follows the MeshNodes until the drain.
pub(crate) fn follow(place: &Place, shared: Arc<Shared>, changes: mpsc::Sender<Vec<Op>>, health: Health) {
    let api: Api<DynamicObject> =
        Api::namespaced_with(place.client.clone(), &place.namespace, &mesh_node_resource());
    let tasks = shared.tasks.clone();
    tasks.spawn_critical("node registry", async move {
        let mut listed = HashSet::new();
        loop {
            let stream = watcher(api.clone(), watcher::Config::default());
            let mut events = std::pin::pin!(stream.backoff(Pauses::new(rand::random::<f64>)));
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::InitDone) => {
                        health.fine(PART);
                        look_again(&shared, &listed).await;
                        listed.clear();
                    }
                    Ok(event) => {
                        let operations = take(&shared, event, &mut listed, &health);
                        if !operations.is_empty() && changes.send(operations).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => health.problem(PART, crate::chain(&error)),
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    });
}

fn take(
    shared: &Shared,
    event: watcher::Event<DynamicObject>,
    listed: &mut HashSet<String>,
    health: &Health,
) -> Vec<Op> {
    let name = |object: &DynamicObject| object.metadata.name.clone().unwrap_or_default();
    let mut changes = Vec::new();
    let listing = matches!(event, watcher::Event::InitApply(_));
    match event {
        watcher::Event::Init => listed.clear(),
        watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
            if listing {
                listed.insert(name(&object));
            }
            health.fine(PART);
            let found = serde_json::to_value(&object).ok().and_then(|value| node_document(&value));
            if let Some((name, document)) = found {
                changes.push(shared.registry.take(&name, Seen::There(document)));
            }
        }
        watcher::Event::Delete(object) => {
            let version = object.metadata.resource_version.clone().unwrap_or_default();
            changes.push(shared.registry.take(&name(&object), Seen::Gone { version }));
        }
        watcher::Event::InitDone => {}
    }
    let mut operations = Vec::new();
    for (operation, left) in changes {
        operations.extend(operation);
        if let Some(node) = left {
            cut(shared, &node);
        }
    }
    operations
}

fn cut(shared: &Shared, node: &str) {
    tracing::info!(node, "node was removed from the registry");
    shared.left_elsewhere(node);
}

/// Nodes that are known here and are not in the list have left while nobody watched, or have joined since.
async fn look_again(shared: &Arc<Shared>, listed: &HashSet<String>) {
    let registry = shared.registry.clone();
    let missing: Vec<String> = registry.names().into_iter().filter(|name| !listed.contains(name)).collect();
    if missing.is_empty() {
        return;
    }
    match tokio::task::spawn_blocking(move || registry.look_again(&missing)).await {
        Ok(Ok(gone)) => gone.iter().for_each(|node| cut(shared, node)),
        Ok(Err(error)) => tracing::warn!(error = crate::chain(&error), "look at the node registry"),
        Err(_interrupted) => {}
    }
}
