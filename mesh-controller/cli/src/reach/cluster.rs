//! A client of the API server, and the mesh's pods in it.

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;

use super::PodFacts;
use crate::args::{self, Program as Kind};

/// What all objects of the chart are labelled with.
pub(crate) const PART_OF: &str = "app.kubernetes.io/part-of=selvage";
const NAME: &str = "app.kubernetes.io/name";
/// Objects of a page. A cluster may have thousands of nodes.
const PAGE: u32 = 500;
const CONNECT: Duration = Duration::from_secs(5);

/// A client by kubeconfig, or as the pod that this is.
pub(crate) async fn client(kube: &args::Kube) -> Result<Client> {
    let options = KubeConfigOptions { context: kube.context.clone(), ..KubeConfigOptions::default() };
    let named = kube.kubeconfig.is_some() || kube.context.is_some();
    let config = if named {
        let file = match &kube.kubeconfig {
            Some(path) => Kubeconfig::read_from(path)
                .with_context(|| format!("--kubeconfig: read {}", path.display()))?,
            None => Kubeconfig::read().context("read the kubeconfig ($KUBECONFIG or ~/.kube/config)")?,
        };
        let what = kube.context.as_deref().unwrap_or("the current context");
        kube::Config::from_custom_kubeconfig(file, &options).await.with_context(|| {
            format!("use {what} of the kubeconfig (kubectl config get-contexts lists them)")
        })?
    } else {
        kube::Config::infer().await.context(
            "no cluster: there is no kubeconfig and this is no pod; name one with --kubeconfig FILE, or the admin page of \
             a program on this machine with --admin http://127.0.0.1:15000",
        )?
    };
    client_of(config)
}

fn client_of(mut config: kube::Config) -> Result<Client> {
    config.connect_timeout = Some(CONNECT);
    // Logs that are followed may be silent for long.
    config.read_timeout = None;
    Client::try_from(config).context("make a client of the API server")
}

/// What went wrong at the API server, and how to mend it.
pub(crate) fn mend(error: kube::Error, what: &str) -> anyhow::Error {
    match &error {
        kube::Error::Api(status) if status.code == 403 => anyhow::anyhow!(
            "{what}: this account may not: {} (kubectl auth can-i --list shows what it may)",
            status.message
        ),
        kube::Error::Api(status) if status.code == 401 => {
            anyhow::anyhow!(
                "{what}: the API server does not know this account: its token or certificate has expired"
            )
        }
        kube::Error::Api(status) => anyhow::anyhow!("{what}: {}", status.message),
        _ => anyhow::Error::new(error).context(format!(
            "{what}: the API server does not answer (kubectl cluster-info shows its address)"
        )),
    }
}

/// All objects of a kind, page by page.
pub(crate) async fn all<K>(api: &Api<K>, params: ListParams, what: &str) -> Result<Vec<K>>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let (mut all, mut params) = (Vec::new(), params.limit(PAGE));
    loop {
        let page = api.list(&params).await.map_err(|e| mend(e, &format!("list {what}")))?;
        let next = page.metadata.continue_.clone().filter(|token| !token.is_empty());
        all.extend(page.items);
        match next {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(all),
        }
    }
}

/// The mesh's pods that run or should, by kind and name: of the pods of a node the one that serves.
pub(crate) async fn pods(client: &Client, namespace: &str) -> Result<Vec<(Kind, PodFacts)>> {
    Ok(choose(all_pods(client, namespace).await?))
}

/// All pods of the mesh's programs.
pub(crate) async fn all_pods(client: &Client, namespace: &str) -> Result<Vec<(Kind, PodFacts)>> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let found = all(&api, ListParams::default().labels(PART_OF), "pods").await?;
    Ok(found.iter().filter_map(|pod| Some((kind(pod)?, facts(pod)))).collect())
}

fn kind(pod: &Pod) -> Option<Kind> {
    match pod.labels().get(NAME)?.as_str() {
        "mesh-controller" => Some(Kind::Controller),
        "mesh-proxy" => Some(Kind::Proxy),
        "mesh-relay" => Some(Kind::Relay),
        "mesh-gateway" => Some(Kind::Gateway),
        _ => None,
    }
}

/// While a node's proxy is replaced, two pods share its ports: the newer one serves as soon as it is ready.
pub(crate) fn choose(pods: Vec<(Kind, PodFacts)>) -> Vec<(Kind, PodFacts)> {
    let mut chosen: BTreeMap<(Kind, String), PodFacts> = BTreeMap::new();
    for (kind, pod) in pods {
        let name = if kind == Kind::Proxy { &pod.node } else { &pod.name };
        let rank = |p: &PodFacts| (p.ready, !p.leaving, p.created);
        match chosen.get(&(kind, name.clone())) {
            Some(other) if rank(other) >= rank(&pod) => {}
            _ => {
                chosen.insert((kind, name.clone()), pod);
            }
        }
    }
    chosen.into_iter().map(|((kind, _), pod)| (kind, pod)).collect()
}

pub(crate) fn facts(pod: &Pod) -> PodFacts {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let containers = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    let waiting = containers.iter().find_map(|c| {
        let waiting = c.state.as_ref()?.waiting.as_ref()?;
        let said = waiting.message.as_deref().unwrap_or_default().lines().next().unwrap_or_default();
        let reason = waiting.reason.as_deref().unwrap_or("waits");
        Some(if said.is_empty() { reason.to_owned() } else { format!("{reason}: {said}") })
    });
    let unscheduled = || {
        let c = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
        c.message.clone()
    };
    PodFacts {
        name: pod.name_any(),
        node: spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        ready: conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"),
        leaving: pod.metadata.deletion_timestamp.is_some(),
        restarts: containers.iter().map(|c| c.restart_count).sum(),
        trouble: waiting.or_else(unscheduled).unwrap_or_default(),
        image: spec.and_then(|s| s.containers.first()?.image.clone()).unwrap_or_default(),
        created: pod.creation_timestamp().map_or(0, |t| t.0.as_second()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_two_pods_of_a_node_the_one_that_serves_is_asked() {
        let pod = |name: &str, ready, leaving, created| PodFacts {
            name: name.to_owned(),
            node: "edge-a".to_owned(),
            ready,
            leaving,
            created,
            ..PodFacts::default()
        };
        let chosen = |pods: &[PodFacts]| {
            let all = choose(pods.iter().map(|p| (Kind::Proxy, p.clone())).collect());
            assert_eq!(all.len(), 1);
            all[0].1.name.clone()
        };
        let (old, starting) = (pod("old", true, false, 1), pod("new", false, false, 2));
        assert_eq!(chosen(&[old.clone(), starting.clone()]), "old");
        assert_eq!(chosen(&[starting, old.clone()]), "old");
        let (new, ending) = (pod("new", true, false, 2), pod("old", true, true, 1));
        assert_eq!((chosen(&[old, new.clone()]), chosen(&[new, ending])), ("new".into(), "new".into()));
        // Controllers of one node are two.
        let both = ["a", "b"].map(|n| (Kind::Controller, pod(n, true, false, 1)));
        assert_eq!(choose(both.to_vec()).len(), 2);
    }

    #[test]
    fn why_a_pod_does_not_run_is_said_in_kubernetes_words() {
        let pod = |status: serde_json::Value| {
            let pod = json!({ "metadata": { "name": "p", "labels": { "app.kubernetes.io/name": "mesh-relay" } },
                "spec": { "containers": [{ "name": "c", "image": "i:1" }] }, "status": status });
            serde_json::from_value::<Pod>(pod).unwrap()
        };
        let waiting = pod(
            json!({ "containerStatuses": [{ "name": "c", "image": "", "imageID": "", "ready": false,
            "restartCount": 3, "state": { "waiting": { "reason": "ErrImagePull", "message": "not found\nat all" } } }] }),
        );
        let found = facts(&waiting);
        assert_eq!(
            (found.trouble.as_str(), found.restarts, found.ready),
            ("ErrImagePull: not found", 3, false)
        );
        assert_eq!((kind(&waiting), found.image.as_str()), (Some(Kind::Relay), "i:1"));
        let nowhere = pod(
            json!({ "conditions": [{ "type": "PodScheduled", "status": "False", "message": "no node" }] }),
        );
        assert_eq!(facts(&nowhere).trouble, "no node");
    }
}
