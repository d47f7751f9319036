//! Objects from a Kubernetes API server: one watch for each kind. A relist reconciles what was deleted meanwhile. Kinds
//! whose CRD is not installed are waited for; that is no fault.

mod pauses;
mod watch;

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use kube::{
    Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use mesh_index::Kind;
use node_rt::Tasks;
use tokio::sync::mpsc;

use super::{Health, Op};
pub(crate) use pauses::Pauses;

/// Bookmarks come every minute; a watch that says nothing for longer than this sits on a dead connection.
const SILENCE: Duration = Duration::from_secs(150);

/// A client by kubeconfig, or as the pod that this is.
pub(crate) async fn client(kubeconfig: Option<PathBuf>) -> anyhow::Result<Client> {
    let mut config = match kubeconfig {
        Some(path) => {
            let file =
                Kubeconfig::read_from(&path).with_context(|| format!("kubeconfig {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?
        }
        None => kube::Config::infer().await.context("no kubeconfig given, and none found")?,
    };
    config.connect_timeout = Some(Duration::from_secs(10));
    config.read_timeout = Some(SILENCE);
    Client::try_from(config).context("Kubernetes client")
}

/// What is followed.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// The objects of Gateway API, once it is installed.
    pub(crate) gateway_api: bool,
    /// Where the ConfigMap with Istio's settings of the mesh is. Of other ConfigMaps only Gateway API knows.
    pub(crate) root_namespace: String,
}

impl Wanted {
    fn kinds(&self) -> Vec<Kind> {
        let wanted = |kind: &Kind| self.gateway_api || !matches!(kind, Kind::GatewayApi(_));
        Kind::ALL.into_iter().filter(wanted).collect()
    }
}

/// Starts one watch for each kind.
pub(crate) fn start_with(
    client: Client,
    wanted: Wanted,
    sender: mpsc::Sender<Vec<Op>>,
    health: Health,
    tasks: &Tasks,
) {
    let kinds = wanted.kinds();
    let wanted = Arc::new(wanted);
    let pending = Arc::new(Mutex::new(kinds.iter().copied().collect()));
    for kind in kinds {
        let sync = Sync { pending: pending.clone(), sender: sender.clone() };
        let (client, wanted, health) = (client.clone(), wanted.clone(), health.clone());
        let follower = watch::Follower { kind, client, wanted, sync, health };
        tasks.spawn_critical("kube source", follower.run());
    }
}

/// Notices when every kind has been listed once.
#[derive(Clone)]
struct Sync {
    pending: Arc<Mutex<HashSet<Kind>>>,
    sender: mpsc::Sender<Vec<Op>>,
}

/// The engine is gone: the process ends.
#[derive(Debug)]
struct Gone;

impl Sync {
    async fn send(&self, ops: Vec<Op>) -> Result<(), Gone> {
        if ops.is_empty() {
            return Ok(());
        }
        self.sender.send(ops).await.map_err(|_| Gone)
    }

    /// The kind is complete.
    async fn complete(&self, kind: Kind) -> Result<(), Gone> {
        let all = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.remove(&kind) && pending.is_empty()
        };
        if all { self.send(vec![Op::Synced]).await } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
