//! `mesh-controller preflight`: whether a cluster can run the mesh. Reads, and changes nothing; what is concluded is in
//! [`checks`].

mod checks;

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    apps::v1::{DaemonSet, Deployment},
    core::v1::{ConfigMap, Namespace, Node},
};
use kube::{
    Api, Client, Resource,
    api::{ListParams, ObjectMeta},
};
use serde::de::DeserializeOwned;

pub use checks::{CHECKS, Level, Verdict};
use checks::{Facts, NodeFacts, Object, Settings};

use crate::source;

/// Objects of a page. A cluster may have thousands of nodes.
const PAGE: u32 = 500;

/// Looks whether this cluster can run the mesh, and says why not. Exit code 1 when it cannot.
#[derive(Debug, Clone, Args)]
pub struct Preflight {
    /// Namespace of the release.
    #[arg(long, default_value = "selvage-system")]
    pub namespace: String,
    /// Name of the release.
    #[arg(long, default_value = "mesh")]
    pub release: String,
    /// Checks whose answer does not count.
    #[arg(long, value_name = "CHECK,...", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(CHECKS))]
    pub ignore: Vec<String>,
    /// How many addresses `controller.externalAddresses` has, if that is known.
    #[arg(long, value_name = "COUNT", env = "SELVAGE_CONTROLLER_ADDRESSES")]
    pub controller_addresses: Option<usize>,
    /// A kubeconfig; without it the pod's service account, else $KUBECONFIG or ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

impl Preflight {
    /// What the checks say.
    pub async fn run(&self) -> anyhow::Result<Vec<Verdict>> {
        self.look(source::kube::client(self.kubeconfig.clone()).await?).await
    }

    /// The same with a client that the caller has.
    pub async fn look(&self, client: Client) -> anyhow::Result<Vec<Verdict>> {
        let mut facts = Facts::new(&self.namespace, &self.release);
        facts.controller_addresses = self.controller_addresses;
        let facts = Reader { client, facts }.read().await?;
        Ok(checks::all(&facts, &self.ignore))
    }
}

/// As lines for people, and whether the mesh can run.
pub fn report(verdicts: &[Verdict]) -> (String, bool) {
    let mut text = String::new();
    for v in verdicts {
        let mark = match v.level {
            Level::Ok => "ok    ",
            Level::Warn => "warn  ",
            Level::Refuse => "REFUSE",
        };
        text.push_str(&format!("{mark} {:<16} {}\n", v.check, v.text));
    }
    let refused = verdicts.iter().any(|v| v.level == Level::Refuse);
    if refused {
        text.push_str("The mesh is not installed. preflight.ignore=[CHECK] overrides a check that is wrong about this cluster.\n");
    }
    (text, !refused)
}

struct Reader {
    client: Client,
    facts: Facts,
}

impl Reader {
    async fn read(mut self) -> anyhow::Result<Facts> {
        for node in self.list::<Node>("nodes").await? {
            let info = node.status.and_then(|s| s.node_info).unwrap_or_default();
            self.facts.nodes.push(NodeFacts {
                name: node.metadata.name.unwrap_or_default(),
                os: info.operating_system,
                kernel: info.kernel_version,
                kubelet: info.kubelet_version,
                edge: node.metadata.labels.is_some_and(|labels| labels.contains_key(checks::EDGE)),
            });
        }
        let sets = self.list::<DaemonSet>("daemonsets").await?;
        self.facts.workloads.extend(sets.into_iter().map(|o| object("DaemonSet", o.metadata)));
        let deployments = self.list::<Deployment>("deployments").await?;
        self.facts.workloads.extend(deployments.into_iter().map(|o| object("Deployment", o.metadata)));
        let spaces = self.list::<Namespace>("namespaces").await?;
        self.facts.namespaces.extend(spaces.into_iter().map(|o| object("Namespace", o.metadata)));
        let hooks = self.list::<MutatingWebhookConfiguration>("mutatingwebhookconfigurations").await?;
        self.facts
            .webhooks
            .extend(hooks.into_iter().map(|o| object("MutatingWebhookConfiguration", o.metadata)));
        for (namespace, name) in checks::SETTINGS {
            if let Some(found) = self.settings(namespace, name).await? {
                self.facts.settings.insert((namespace, name), found);
            }
        }
        Ok(self.facts)
    }

    /// All objects of a kind; none, and a note, when that is not permitted.
    async fn list<K>(&mut self, plural: &str) -> anyhow::Result<Vec<K>>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let (mut all, mut params) = (Vec::new(), ListParams::default().limit(PAGE));
        loop {
            let page = match api.list(&params).await {
                Err(error) if is_forbidden(&error) => {
                    self.facts.forbidden.push(format!("list {plural}"));
                    return Ok(Vec::new());
                }
                other => other.with_context(|| format!("list {plural}"))?,
            };
            let next = page.metadata.continue_.clone().filter(|token| !token.is_empty());
            all.extend(page.items);
            match next {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(all),
            }
        }
    }

    /// What is in a ConfigMap, if there is one.
    async fn settings(&mut self, namespace: &str, name: &str) -> anyhow::Result<Option<Settings>> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let what = || format!("get configmap {namespace}/{name}");
        match api.get_opt(name).await {
            Ok(found) => Ok(found.map(|c| c.data.unwrap_or_default())),
            Err(error) if is_forbidden(&error) => {
                let notes = if checks::refuses_by(namespace, name) {
                    &mut self.facts.forbidden
                } else {
                    &mut self.facts.unseen
                };
                notes.push(what());
                Ok(None)
            }
            Err(error) => Err(error).with_context(what),
        }
    }
}

fn object(kind: &'static str, metadata: ObjectMeta) -> Object {
    Object {
        kind,
        namespace: metadata.namespace.unwrap_or_default(),
        name: metadata.name.unwrap_or_default(),
        labels: metadata.labels.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
    }
}

fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}
