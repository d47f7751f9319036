//! Where the controllers keep what they share: a directory of this machine, or a cluster, with the operator's rights. Both are
//! the controller's own stores.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use mesh_ca::{DirShelf, Shelf, StateDir, StateStore, TokenStore, TrustDomain, cluster as names};
use mesh_controller::state::KubeState;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::{args, reach::cluster};

/// What the chart has join tokens belong to, so that they go with the mesh.
const OWNER: &str = "mesh-state";

/// The state that is meant.
pub(crate) enum State {
    Dir(StateDir, String),
    Cluster(Box<Cluster>),
}

/// A mesh's namespace.
pub(crate) struct Cluster {
    client: Client,
    namespace: String,
    state: KubeState,
    /// The stores' calls block, and wait for what goes on here.
    runtime: Runtime,
}

/// A directory that is named or is there, else the cluster.
pub(crate) fn open(place: &args::Place) -> Result<State> {
    let path = place.state.path();
    let cluster_named = place.kube.kubeconfig.is_some() || place.kube.context.is_some();
    if place.state.state_dir.is_some() || (path.join("ca").is_dir() && !cluster_named) {
        return Ok(State::Dir(StateDir::new(path), place.state.trust_domain.clone()));
    }
    node_rt::install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start")?;
    let namespace = place.kube.namespace.clone();
    let (client, state) = runtime.block_on(async {
        let client =
            cluster::client(&place.kube).await.context("name a directory with --state-dir, or a cluster")?;
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
        let owner =
            maps.get_opt(OWNER).await.map_err(|e| cluster::mend(e, &format!("read ConfigMap {OWNER}")))?;
        let owner = owner.map_or("", |_| OWNER);
        anyhow::Ok((client.clone(), KubeState::new(client, &namespace, owner).await?))
    })?;
    Ok(State::Cluster(Box::new(Cluster { client, namespace, state, runtime })))
}

impl State {
    /// The hash of the CA that a join token carries. In a directory the CA is made if there is none.
    pub(crate) fn ca_sha256(&self, now: u64) -> Result<[u8; 32]> {
        match self {
            Self::Dir(dir, trust_domain) => {
                let trust_domain = TrustDomain::new(trust_domain).context("--trust-domain")?;
                Ok(dir.authority(&trust_domain, now)?.fingerprint())
            }
            Self::Cluster(cluster) => {
                let pem = cluster.ca_certificates()?;
                let der = CertificateDer::from_pem_slice(pem.as_bytes());
                Ok(mesh_net::tls::fingerprint(&der.context("ConfigMap mesh-ca has no certificate")?))
            }
        }
    }

    /// The CAs that are trusted as PEM, the one that signs first. In a directory the CA is made if there is none.
    pub(crate) fn ca_certificates(&self, now: u64) -> Result<String> {
        match self {
            Self::Dir(dir, trust_domain) => {
                let trust_domain = TrustDomain::new(trust_domain).context("--trust-domain")?;
                Ok(dir.authority(&trust_domain, now)?.bundle_pem().to_owned())
            }
            Self::Cluster(cluster) => cluster.ca_certificates(),
        }
    }

    /// Asks whoever looks after the CA for the next one.
    pub(crate) fn renew_ca(&self, now: u64) -> Result<()> {
        match self {
            Self::Dir(dir, _) => Ok(dir.renew_ca(now)?),
            Self::Cluster(cluster) => cluster.renew_ca(now),
        }
    }

    /// The join tokens.
    pub(crate) fn tokens(&self) -> Result<TokenStore> {
        Ok(match self {
            Self::Dir(dir, _) => dir.tokens()?,
            Self::Cluster(cluster) => cluster.state.tokens()?,
        })
    }

    /// The records of nodes that have joined.
    pub(crate) fn nodes(&self) -> Result<Vec<Value>> {
        let all = match self {
            Self::Dir(dir, _) => DirShelf::open(&dir.nodes())?.list()?,
            Self::Cluster(cluster) => cluster.state.nodes()?.list()?,
        };
        Ok(all.iter().filter_map(|(_, d)| serde_json::from_slice(&d.content).ok()).collect())
    }

    /// Takes a node out; `false` when there is none of that name.
    pub(crate) fn remove_node(&self, name: &str) -> Result<bool> {
        Ok(match self {
            Self::Dir(dir, _) => DirShelf::open(&dir.nodes())?.remove(name, None)?,
            Self::Cluster(cluster) => cluster.state.nodes()?.remove(name, None)?,
        })
    }
}

impl Cluster {
    /// All CAs that are trusted, the one that signs first: what everybody may read.
    fn ca_certificates(&self) -> Result<String> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = self.runtime.block_on(maps.get(names::CA));
        let what =
            format!("ConfigMap {}/{} (is the mesh installed in this namespace?)", self.namespace, names::CA);
        let data = found.map_err(|e| cluster::mend(e, &what))?.data.unwrap_or_default();
        Ok(data.get(names::CA_CERTIFICATE).cloned().unwrap_or_default())
    }

    fn renew_ca(&self, now: u64) -> Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let note = json!({ "metadata": { "annotations": { names::CA_RENEW: now.to_string() } } });
        let (params, patch) = (PatchParams::default(), Patch::Merge(&note));
        // Not the Secret itself, which has the key: what is asked for is not read.
        let done = self.runtime.block_on(secrets.patch_metadata(names::CA, &params, &patch));
        let what = format!("annotate Secret {}/{}", self.namespace, names::CA);
        done.map(drop).map_err(|e| cluster::mend(e, &what))
    }
}
