//! Where this controller keeps what it shares with others: a directory, or objects of the cluster.

mod cluster;
mod follow;
mod publish;
mod renewal;

use std::{path::Path, sync::Arc, time::Duration};

use kube::Client;
use mesh_ca::{Shelf, StateDir, StateStore};

pub use cluster::KubeState;
pub(crate) use follow::follow;
pub(crate) use publish::keep_ca;
pub(crate) use renewal::{Cas, keep as keep_renewed};

/// How long one call to the API server may take.
pub(crate) const CALL: Duration = Duration::from_secs(10);

/// The store of a directory.
pub(crate) fn in_dir(path: &Path) -> Arc<dyn StateStore> {
    Arc::new(StateDir::new(path))
}

/// What a controller has read of its store at start.
pub(crate) struct Opened {
    pub(crate) authority: mesh_ca::Authority,
    pub(crate) tokens: mesh_ca::TokenStore,
    pub(crate) nodes: Arc<dyn Shelf>,
    /// Where all of it is.
    pub(crate) store: Arc<dyn StateStore>,
}

/// Reads CA and tokens, or begins them.
pub(crate) async fn open(
    store: Arc<dyn StateStore>,
    trust_domain: mesh_ca::TrustDomain,
    lives: mesh_ca::Lives,
    now: u64,
) -> anyhow::Result<Opened> {
    use anyhow::Context;
    let opened = tokio::task::spawn_blocking(move || {
        let (authority, steps) =
            store.authority(&trust_domain, &lives, now).context("certificate authority")?;
        renewal::say(&steps);
        let tokens = store.tokens().context("join tokens")?;
        let nodes = store.nodes().context("node registry")?;
        anyhow::Ok(Opened { authority, tokens, nodes, store })
    });
    opened.await?
}

/// The cluster's side of a state, for what is not a shelf.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) owner: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference>,
}
