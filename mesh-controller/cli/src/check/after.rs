//! Reads what a cluster says of the mesh in it. What cannot be read is a check that failed, not the end of all.

use std::collections::BTreeMap;

use anyhow::Result;
use k8s_openapi::{
    api::{
        admissionregistration::v1::ValidatingWebhookConfiguration,
        apps::v1::{DaemonSet, Deployment},
        core::v1::Node,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, Client, ResourceExt, api::ListParams};
use serde_json::Value;

use super::verdicts;
use crate::{
    args::Program as Kind,
    doctor::Check,
    proxies,
    reach::{Mesh, cluster},
    status,
    token::now,
};

/// The name under which the chart registers the webhook.
const WEBHOOK: &str = "selvage-validator";

/// A Deployment or a DaemonSet.
#[derive(Debug, Clone, Default)]
pub(super) struct Workload {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) wanted: i32,
    pub(super) ready: i32,
    /// Pods of the newest form.
    pub(super) updated: i32,
    /// The version of the chart's programs, from its labels.
    pub(super) version: String,
    pub(super) release: String,
}

/// All checks of a mesh that is installed.
pub(crate) async fn all(client: &Client, mesh: &Mesh, release: &str) -> Vec<Check> {
    let mut checks = Vec::new();
    match workloads(client, &mesh.namespace).await {
        Ok(workloads) => {
            checks.push(verdicts::release(&workloads, release, &mesh.namespace));
            checks.extend(workloads.iter().map(|w| verdicts::workload(w, &mesh.pods)));
        }
        Err(error) => checks.push(unread("workloads", &error)),
    }
    match nodes(client).await {
        Ok(nodes) => checks.push(verdicts::nodes(&nodes, &mesh.of(Kind::Proxy))),
        Err(error) => checks.push(unread("nodes", &error)),
    }
    let states = mesh.ask_json(mesh.of(Kind::Controller), "/state").await;
    let states: Vec<(String, Result<Value>)> = states.into_iter().map(|(p, s)| (p.name, s)).collect();
    checks.push(verdicts::controllers(&states));
    match status::of(mesh).await {
        Ok(summary) => checks.push(verdicts::synced(&summary.proxies)),
        Err(error) => checks.push(unread("synced", &error)),
    }
    match proxies::of(mesh, &[]).await {
        Ok(rows) => {
            checks.push(verdicts::proxies(&rows));
            checks.push(verdicts::certificates(&rows, &states, now()));
            checks.push(verdicts::versions(&rows, &states));
        }
        Err(error) => checks.push(unread("proxies", &error)),
    }
    let webhooks: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    match webhooks.get_opt(WEBHOOK).await {
        Ok(found) => checks.push(verdicts::webhook(found.as_ref(), &mesh.namespace, now())),
        Err(error) => {
            checks.push(unread("webhook", &cluster::mend(error, "read the webhook's configuration")))
        }
    }
    match definitions(client).await {
        Ok(found) => checks.push(verdicts::crds(&crate::install::chart::definitions(), &found)),
        Err(error) => checks.push(unread("crds", &error)),
    }
    checks.push(verdicts::rules(&states));
    checks
}

fn unread(check: &'static str, error: &anyhow::Error) -> Check {
    Check::fail(check, format!("{error:#}"), "The account of the kubeconfig must be allowed to read this.")
}

async fn workloads(client: &Client, namespace: &str) -> Result<Vec<Workload>> {
    let ours = || ListParams::default().labels(cluster::PART_OF);
    let label = |labels: &BTreeMap<String, String>, key: &str| labels.get(key).cloned().unwrap_or_default();
    let mut all = Vec::new();
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    for d in cluster::all(&deployments, ours(), "deployments").await? {
        all.push(Workload {
            kind: "Deployment",
            name: d.name_any(),
            wanted: d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1),
            ready: d.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0),
            updated: d.status.as_ref().and_then(|s| s.updated_replicas).unwrap_or(0),
            version: label(d.labels(), "app.kubernetes.io/version"),
            release: label(d.labels(), "app.kubernetes.io/instance"),
        });
    }
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    for d in cluster::all(&sets, ours(), "daemonsets").await? {
        let status = d.status.clone().unwrap_or_default();
        all.push(Workload {
            kind: "DaemonSet",
            name: d.name_any(),
            wanted: status.desired_number_scheduled,
            ready: status.number_ready,
            updated: status.updated_number_scheduled.unwrap_or(0),
            version: label(d.labels(), "app.kubernetes.io/version"),
            release: label(d.labels(), "app.kubernetes.io/instance"),
        });
    }
    Ok(all)
}

/// Names of the nodes, and whether each is ready.
async fn nodes(client: &Client) -> Result<Vec<(String, bool)>> {
    let api: Api<Node> = Api::all(client.clone());
    let nodes = cluster::all(&api, ListParams::default(), "nodes").await?;
    let is_ready = |n: &Node| {
        let conditions = n.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    Ok(nodes.iter().map(|n| (n.name_any(), is_ready(n))).collect())
}

/// Definitions by name, as JSON like our own.
async fn definitions(client: &Client) -> Result<BTreeMap<String, Value>> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let all = cluster::all(&api, ListParams::default(), "customresourcedefinitions").await?;
    all.into_iter().map(|crd| Ok((crd.name_any(), serde_json::to_value(&crd)?))).collect()
}
