//! Where the controllers keep what they share: a directory of this machine, or a cluster, through the `kubectl` that the
//! operator has, with the operator's rights.

use std::{
    fmt,
    io::Write,
    process::{Command, Stdio},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use mesh_ca::{
    DirShelf, Document, Put, Shelf, StateDir, StoreError, TokenStore, TrustDomain, cluster as names,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;

use crate::args;

/// The state that is meant.
pub(crate) enum State {
    Dir(StateDir, String),
    Cluster(Kubectl),
}

/// A directory that is named or is there, else the cluster.
pub(crate) fn open(place: &args::Place) -> State {
    let path = place.state.path();
    let cluster_named = place.cluster.kubeconfig.is_some() || place.cluster.context.is_some();
    if place.state.state_dir.is_some() || (path.join("ca").is_dir() && !cluster_named) {
        return State::Dir(StateDir::new(path), place.state.trust_domain.clone());
    }
    State::Cluster(Kubectl { cluster: place.cluster.clone(), namespace: place.namespace.clone() })
}

impl State {
    /// The hash of the CA that a join token carries. In a directory the CA is made if there is none.
    pub(crate) fn ca_sha256(&self, now: u64) -> Result<[u8; 32]> {
        match self {
            Self::Dir(dir, trust_domain) => {
                let trust_domain = TrustDomain::new(trust_domain).context("--trust-domain")?;
                Ok(dir.authority(&trust_domain, now)?.fingerprint())
            }
            Self::Cluster(kubectl) => {
                let found = kubectl.json(&["get", "configmap", names::CA, "-o", "json"]);
                let found = found.context("the mesh's CA (is the mesh installed in this namespace?)")?;
                let pem = found["data"][names::CA_CERTIFICATE].as_str().unwrap_or_default();
                let der = CertificateDer::from_pem_slice(pem.as_bytes());
                Ok(mesh_net::tls::fingerprint(&der.context("ConfigMap mesh-ca has no certificate")?))
            }
        }
    }

    /// The join tokens.
    pub(crate) fn tokens(&self) -> Result<TokenStore> {
        Ok(match self {
            Self::Dir(dir, _) => dir.tokens()?,
            Self::Cluster(kubectl) => TokenStore::on(Arc::new(TokenSecrets(kubectl.clone()))),
        })
    }

    /// The records of nodes that have joined.
    pub(crate) fn nodes(&self) -> Result<Vec<Value>> {
        match self {
            Self::Dir(dir, _) => {
                let all = DirShelf::open(&dir.nodes())?.list()?;
                Ok(all.iter().filter_map(|(_, d)| serde_json::from_slice(&d.content).ok()).collect())
            }
            Self::Cluster(kubectl) => {
                let (group, _, _, plural) = names::MESH_NODE;
                let mut list =
                    kubectl.json(&["get", &format!("{plural}.{group}"), "-o", "json"]).context("nodes")?;
                let items = list.get_mut("items").and_then(Value::as_array_mut).map(std::mem::take);
                Ok(items.unwrap_or_default().iter_mut().map(|item| item["spec"].take()).collect())
            }
        }
    }

    /// Takes a node out; `false` when there is none of that name.
    pub(crate) fn remove_node(&self, name: &str) -> Result<bool> {
        match self {
            Self::Dir(dir, _) => Ok(DirShelf::open(&dir.nodes())?.remove(name, None)?),
            Self::Cluster(kubectl) => {
                let (group, _, _, plural) = names::MESH_NODE;
                let kind = format!("{plural}.{group}");
                Ok(kubectl.run(&["delete", &kind, name, "--wait=false"], None)?.is_some())
            }
        }
    }
}

/// Calls the operator's `kubectl` in one namespace.
#[derive(Debug, Clone)]
pub(crate) struct Kubectl {
    cluster: args::Cluster,
    namespace: String,
}

impl Kubectl {
    /// Standard output; `None` when the API server says that there is no such object, or that it has changed.
    fn run(&self, args: &[&str], input: Option<&str>) -> Result<Option<String>> {
        let program = &self.cluster.kubectl;
        let mut command = Command::new(program);
        if let Some(path) = &self.cluster.kubeconfig {
            command.arg("--kubeconfig").arg(path);
        }
        if let Some(context) = &self.cluster.context {
            command.arg("--context").arg(context);
        }
        command.args(["--namespace", &self.namespace]).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let shown = program.display();
        let mut child = command.spawn().with_context(|| {
            format!("run {shown} (name another with --kubectl, or a directory with --state-dir)")
        })?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // It may end before it reads; its exit status says why.
            stdin.write_all(input.as_bytes()).ok();
        }
        let output = child.wait_with_output().with_context(|| format!("wait for {shown}"))?;
        if output.status.success() {
            return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        let errors = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let expected = ["(NotFound)", "(Conflict)", "(AlreadyExists)"];
        if expected.iter().any(|reason| errors.contains(reason)) {
            return Ok(None);
        }
        bail!("{shown} {}: {errors}", args.first().copied().unwrap_or_default())
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.run(args, None)?.context("there is none")?;
        serde_json::from_str(&text).context("read kubectl's answer")
    }
}

/// Join tokens as Secrets.
struct TokenSecrets(Kubectl);

impl fmt::Debug for TokenSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TokenSecrets").field(&self.0.namespace).finish()
    }
}

impl TokenSecrets {
    fn call(
        &self,
        operation: &'static str,
        name: &str,
        args: &[&str],
        input: Option<&str>,
    ) -> Result<Option<Value>, StoreError> {
        let failed = |e: anyhow::Error| StoreError::new(operation, name, e);
        let Some(text) = self.0.run(args, input).map_err(failed)? else { return Ok(None) };
        // A deletion is told in words.
        Ok(Some(serde_json::from_str(&text).unwrap_or(Value::Null)))
    }
}

impl Shelf for TokenSecrets {
    fn get(&self, name: &str) -> Result<Option<Document>, StoreError> {
        let object = names::token_name(name);
        let found = self.call("read", &object, &["get", "secret", &object, "-o", "json"], None)?;
        Ok(found.as_ref().and_then(names::token_of).map(|(_, document)| document))
    }

    fn put(&self, name: &str, content: &[u8], seen: Option<&str>) -> Result<Put, StoreError> {
        let manifest = names::token_secret(&self.0.namespace, name, content, seen).to_string();
        let verb = if seen.is_some() { "replace" } else { "create" };
        let args = [verb, "-f", "-", "-o", "json"];
        let written = self.call("write", &names::token_name(name), &args, Some(&manifest))?;
        let version = written.as_ref().and_then(names::token_of).map(|(_, document)| document.version);
        Ok(version.map_or(Put::Conflict, Put::Done))
    }

    fn remove(&self, name: &str, _seen: Option<&str>) -> Result<bool, StoreError> {
        let object = names::token_name(name);
        Ok(self.call("remove", &object, &["delete", "secret", &object], None)?.is_some())
    }

    fn versions(&self) -> Result<Vec<(String, String)>, StoreError> {
        Ok(self.list()?.into_iter().map(|(name, document)| (name, document.version)).collect())
    }

    fn list(&self) -> Result<Vec<(String, Document)>, StoreError> {
        let selector = format!("{}={}", names::JOIN_TOKEN.0, names::JOIN_TOKEN.1);
        let found =
            self.call("list", "join tokens", &["get", "secrets", "-l", &selector, "-o", "json"], None)?;
        let items = found.as_ref().and_then(|list| list["items"].as_array());
        Ok(items.into_iter().flatten().filter_map(names::token_of).collect())
    }
}
