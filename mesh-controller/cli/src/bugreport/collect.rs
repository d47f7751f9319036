//! What goes into a report.

use anyhow::Result;
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingWebhookConfiguration,
    apps::v1::{DaemonSet, Deployment},
    core::v1::{ConfigMap, Event, Node, Pod},
};
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, LogParams},
};
use mesh_ca::cluster as names;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::archive::Archive;
use crate::{
    args::{self, Program as Kind},
    logs,
    reach::{Mesh, PodFacts, Program, cluster},
    status,
};

/// Lines of one program.
const LINES: i64 = 20_000;
/// Bytes of one program's log.
const LOG_BYTES: i64 = 8 << 20;
/// Pages of a proxy.
const PROXY_PAGES: [&str; 7] =
    ["/status", "/config", "/config_dump", "/clusters", "/peers", "/paths?all=1", "/logging?format=json"];
/// Pages of a controller.
const CONTROLLER_PAGES: [&str; 3] = ["/state", "/resources", "/logging?format=json"];

pub(super) async fn all<W: std::io::Write>(
    mesh: &Mesh,
    args: &args::BugReport,
    archive: &mut Archive<W>,
) -> Result<()> {
    let mut versions = json!({ "meshctl": env!("CARGO_PKG_VERSION"), "made": crate::token::now() });
    if let Some(client) = &mesh.client {
        match client.apiserver_version().await {
            Ok(version) => versions["kubernetes"] = json!(version.git_version),
            Err(error) => archive.miss("version of Kubernetes", &error.to_string()),
        }
        objects(client, &mesh.namespace, archive).await;
        match crate::install::helm::values(args, &mesh.namespace).await {
            Ok(text) => archive.page("values.json", &text),
            Err(error) => archive.miss("values of the release", &format!("{error:#}")),
        }
        let checks = crate::check::after::all(client, mesh, &args.release).await;
        archive.json("check.json", &serde_json::to_value(&checks)?);
    }
    let chosen = mesh.proxies(&args.nodes)?;
    let pods = mesh.programs.iter().filter_map(|p| Some((&p.name, p.pod.as_ref()?)));
    versions["images"] =
        pods.map(|(name, pod)| (name.clone(), json!(pod.image))).collect::<serde_json::Map<_, _>>().into();
    archive.json("versions.json", &versions);

    match status::of(mesh).await {
        Ok(summary) => archive.json("status.json", &status::as_json(&summary)),
        Err(error) => archive.miss("status", &format!("{error:#}")),
    }
    pages(mesh, mesh.of(Kind::Controller), &CONTROLLER_PAGES, archive).await;
    let mut of_proxies = PROXY_PAGES.to_vec();
    of_proxies.push("/stats/prometheus");
    pages(mesh, chosen.clone(), &of_proxies, archive).await;
    if let Some(client) = &mesh.client {
        let mut programs = mesh.of(Kind::Controller);
        programs.extend(chosen);
        log_files(client, &mesh.namespace, &programs, args, archive).await;
    }
    Ok(())
}

async fn pages<W: std::io::Write>(
    mesh: &Mesh,
    programs: Vec<Program>,
    pages: &[&'static str],
    archive: &mut Archive<W>,
) {
    for page in pages {
        let file = page.split('?').next().unwrap_or_default().trim_matches('/').replace('/', "-");
        let answers = mesh.ask(programs.clone(), |program| async move { program.text(page).await }).await;
        for (program, answer) in answers {
            let name = program.title().replace(' ', "-");
            match answer {
                Ok(text) => {
                    let ending = if text.starts_with(['{', '[']) { "json" } else { "txt" };
                    archive.page(&format!("programs/{name}/{file}.{ending}"), &text);
                }
                Err(error) => archive.miss(&format!("{page} of {}", program.title()), &format!("{error:#}")),
            }
        }
    }
}

async fn log_files<W: std::io::Write>(
    client: &Client,
    namespace: &str,
    programs: &[Program],
    args: &args::BugReport,
    archive: &mut Archive<W>,
) {
    let pods: Vec<(Kind, PodFacts)> =
        programs.iter().filter_map(|p| Some((p.kind, p.pod.clone()?))).collect();
    let params = |previous| LogParams {
        previous,
        since_seconds: Some(i64::try_from(args.since.as_secs().max(1)).unwrap_or(i64::MAX)),
        tail_lines: Some(LINES),
        limit_bytes: Some(LOG_BYTES),
        ..LogParams::default()
    };
    for (title, answer) in logs::read(client, namespace, &pods, &params(false)).await {
        match answer {
            Ok(text) => archive.text(&format!("logs/{}.log", title.replace('/', "-")), &text),
            Err(error) => archive.miss(&format!("log of {title}"), &format!("{error:#}")),
        }
    }
    let restarted: Vec<_> = pods.into_iter().filter(|(_, pod)| pod.restarts > 0).collect();
    for (title, answer) in logs::read(client, namespace, &restarted, &params(true)).await {
        if let Ok(text) = answer {
            archive.text(&format!("logs/{}.previous.log", title.replace('/', "-")), &text);
        }
    }
}

/// Objects of the mesh, and what it works from. Secrets are not read.
async fn objects<W: std::io::Write>(client: &Client, namespace: &str, archive: &mut Archive<W>) {
    let ours = || ListParams::default().labels(cluster::PART_OF);
    let inside = |kind: &'static str| format!("objects/{kind}.json");
    put::<Pod, W>(&Api::namespaced(client.clone(), namespace), ours(), &inside("pods"), archive).await;
    put::<Deployment, W>(
        &Api::namespaced(client.clone(), namespace),
        ours(),
        &inside("deployments"),
        archive,
    )
    .await;
    put::<DaemonSet, W>(&Api::namespaced(client.clone(), namespace), ours(), &inside("daemonsets"), archive)
        .await;
    put::<ConfigMap, W>(&Api::namespaced(client.clone(), namespace), ours(), &inside("configmaps"), archive)
        .await;
    put::<Event, W>(
        &Api::namespaced(client.clone(), namespace),
        ListParams::default(),
        &inside("events"),
        archive,
    )
    .await;
    put::<Node, W>(&Api::all(client.clone()), ListParams::default(), &inside("nodes"), archive).await;
    put::<ValidatingWebhookConfiguration, W>(&Api::all(client.clone()), ours(), &inside("webhooks"), archive)
        .await;
    let (group, version, kind, plural) = names::MESH_NODE;
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
    let nodes: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    put(&nodes, ListParams::default(), &inside("meshnodes"), archive).await;
    for crd in crate::install::chart::definitions() {
        let Some((resource, name)) = resource_of(&crd) else { continue };
        if resource.kind == kind {
            continue;
        }
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        put(&api, ListParams::default(), &format!("rules/{name}.json"), archive).await;
    }
}

/// The kind that a definition defines.
pub(crate) fn resource_of(crd: &Value) -> Option<(ApiResource, String)> {
    let spec = &crd["spec"];
    let version = spec["versions"].as_array()?.iter().find(|v| v["storage"] == true)?["name"].as_str()?;
    let gvk = GroupVersionKind::gvk(spec["group"].as_str()?, version, spec["names"]["kind"].as_str()?);
    let plural = spec["names"]["plural"].as_str()?;
    Some((ApiResource::from_gvk_with_plural(&gvk, plural), plural.to_owned()))
}

async fn put<K, W: std::io::Write>(api: &Api<K>, params: ListParams, file: &str, archive: &mut Archive<W>)
where
    K: Resource + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    match cluster::all(api, params, file).await {
        Ok(list) => {
            let mut value = serde_json::to_value(&list).unwrap_or_default();
            for item in value.as_array_mut().into_iter().flatten() {
                if let Some(metadata) = item.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("managedFields");
                }
            }
            archive.json(file, &value);
        }
        Err(error) => archive.miss(file, &format!("{error:#}")),
    }
}
