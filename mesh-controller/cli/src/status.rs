//! `meshctl status`: which proxies have what their controller says, since when, and from which controller.

use std::collections::BTreeMap;

use anyhow::Result;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};
use mesh_ca::cluster as names;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    Outcome,
    args::{self, Program as Kind},
    output,
    reach::{self, Mesh, cluster},
    token::{now, span},
};

/// What is shown.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Summary {
    pub(crate) controllers: Vec<Controller>,
    pub(crate) proxies: Vec<Proxy>,
}

/// A controller.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Controller {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) version: String,
    /// ready, starting, or unreachable.
    pub(crate) state: String,
    pub(crate) leader: bool,
    /// Proxies that follow it.
    pub(crate) proxies: usize,
    /// Publications since its start: the version of what it hands out.
    pub(crate) generation: u64,
    pub(crate) errors: usize,
    pub(crate) warnings: usize,
    pub(crate) restarts: i32,
    pub(crate) note: String,
}

/// Whether a proxy has what it should.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sync {
    /// No controller has a stream of it.
    #[default]
    Away,
    /// It did not take a part.
    Refused,
    /// Something is on its way, or without an answer.
    Behind,
    /// It has all.
    Synced,
}

/// A proxy.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Proxy {
    pub(crate) node: String,
    pub(crate) sync: Sync,
    pub(crate) controller: String,
    pub(crate) version: String,
    /// Seconds since its stream was opened.
    pub(crate) connected_seconds: Option<u64>,
    /// Seconds since it said something.
    pub(crate) heard_seconds: Option<u64>,
    /// What it has taken of its controller's publications.
    pub(crate) generation: Option<u64>,
    /// How long it has been without the newest.
    pub(crate) behind_ms: Option<u64>,
    /// How long it took to take the last change.
    pub(crate) lag_ms: Option<u64>,
    pub(crate) address: String,
    /// How it has joined.
    pub(crate) origin: String,
    /// Seconds since 1970 of its first join.
    pub(crate) joined: u64,
    pub(crate) refused: BTreeMap<String, String>,
}

pub(crate) fn run(args: &args::Status) -> Result<Outcome> {
    let summary = reach::within(args.look.reach.timeout, "status of the mesh", async {
        let mesh = Mesh::find(&args.look.reach).await?;
        let mut summary = of(&mesh).await?;
        if !args.nodes.is_empty() {
            for node in &args.nodes {
                if !summary.proxies.iter().any(|p| p.node == *node) {
                    anyhow::bail!(
                        "no node {node} has joined the mesh; `meshctl status` lists those that have"
                    );
                }
            }
            summary.proxies.retain(|p| args.nodes.contains(&p.node));
        }
        Ok(summary)
    })?;
    output::print(args.look.output.format, &summary, || text(&summary))?;
    let bad = summary.controllers.is_empty()
        || summary.controllers.iter().any(|c| c.state != "ready")
        || summary.proxies.iter().any(|p| matches!(p.sync, Sync::Away | Sync::Refused));
    Ok(if bad { Outcome::Findings } else { Outcome::Fine })
}

/// What the controllers say.
pub(crate) async fn of(mesh: &Mesh) -> Result<Summary> {
    let controllers = mesh.of(Kind::Controller);
    if controllers.is_empty() {
        if mesh.client.is_none() {
            anyhow::bail!(
                "none of the addresses is a controller's: name its admin page with --admin http://127.0.0.1:15016, or see \
                 `meshctl proxies` for what a proxy says"
            );
        }
        if mesh.programs.is_empty() {
            return Err(mesh.nothing());
        }
    }
    let states = mesh.ask_json(controllers, "/state").await;
    let mut summary = Summary::default();
    let mut proxies: BTreeMap<String, Proxy> = BTreeMap::new();
    for (program, state) in states {
        let mut row = Controller { name: program.name.clone(), ..Controller::default() };
        if let Some(pod) = &program.pod {
            (row.node, row.restarts) = (pod.node.clone(), pod.restarts);
        }
        match state {
            Ok(state) => {
                controller(&mut row, &state);
                take(&mut proxies, &program.name, &state);
            }
            Err(error) => {
                let trouble = program.pod.map(|p| p.trouble).filter(|t| !t.is_empty());
                row.state = "unreachable".to_owned();
                row.note = trouble.unwrap_or_else(|| format!("{error:#}"));
            }
        }
        summary.controllers.push(row);
    }
    if let Some(client) =
        mesh.client.as_ref().filter(|_| summary.controllers.iter().all(|c| c.state == "unreachable"))
    {
        registered(&mut proxies, client, &mesh.namespace).await?;
    }
    summary.proxies = proxies.into_values().collect();
    Ok(summary)
}

/// Nodes that have joined, as the API server keeps them: when no controller says anything, they are away.
async fn registered(proxies: &mut BTreeMap<String, Proxy>, client: &Client, namespace: &str) -> Result<()> {
    let (group, version, kind, plural) = names::MESH_NODE;
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let nodes: Vec<Value> = cluster::all(&api, ListParams::default(), plural)
        .await?
        .into_iter()
        .map(|mut node| node.data["spec"].take())
        .collect();
    take(proxies, "", &json!({ "nodes": nodes }));
    Ok(())
}

fn controller(row: &mut Controller, state: &Value) {
    let level =
        |l: &str| state["findings"].as_array().into_iter().flatten().filter(|f| f["level"] == l).count();
    let healthy = state["source"]["healthy"] != false;
    row.version = text_of(&state["version"]);
    row.state = if state["synced"] == true { "ready" } else { "starting" }.to_owned();
    row.leader = state["leader"] == true;
    row.proxies = state["sessions"].as_array().map_or(0, Vec::len);
    row.generation = state["generation"].as_u64().unwrap_or(0);
    (row.errors, row.warnings) = (level("error"), level("warning"));
    if !healthy {
        row.note = format!("its source of objects fails: {}", text_of(&state["source"]["error"]));
    }
}

/// Nodes that have joined, and the streams that this controller has of them.
fn take(proxies: &mut BTreeMap<String, Proxy>, name: &str, state: &Value) {
    for node in state["nodes"].as_array().into_iter().flatten() {
        let key = text_of(&node["node"]);
        let row = proxies.entry(key.clone()).or_default();
        row.node = key;
        row.joined = node["joined"].as_u64().unwrap_or(0);
        row.origin = text_of(&node["origin"]);
        if row.version.is_empty() {
            row.version = text_of(&node["version"]);
        }
    }
    for session in state["sessions"].as_array().into_iter().flatten() {
        let key = text_of(&session["node"]);
        let row = proxies.entry(key.clone()).or_default();
        let connected = session["connected_seconds"].as_u64();
        // While a node goes from one controller to another, both may have a stream; the younger one counts.
        if row.connected_seconds.is_some_and(|old| connected.is_some_and(|new| new >= old)) {
            continue;
        }
        (row.node, row.controller) = (key, name.to_owned());
        (row.connected_seconds, row.heard_seconds) = (connected, session["heard_seconds"].as_u64());
        row.generation = session["generation"].as_u64();
        (row.behind_ms, row.lag_ms) = (session["behind_ms"].as_u64(), session["lag_ms"].as_u64());
        row.address = text_of(&session["peer"]);
        row.refused = session["last_nack"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(kind, reason)| (kind.clone(), text_of(reason)))
            .collect();
        row.sync = match (row.refused.is_empty(), row.behind_ms) {
            (false, _) => Sync::Refused,
            (true, Some(_)) => Sync::Behind,
            (true, None) => Sync::Synced,
        };
    }
}

fn text(summary: &Summary) -> String {
    let controllers: Vec<Vec<String>> = summary.controllers.iter().map(controller_row).collect();
    let mut out = output::table(
        &["controller", "node", "state", "leader", "proxies", "config", "findings", "version"],
        &controllers,
    );
    for c in summary.controllers.iter().filter(|c| !c.note.is_empty()) {
        out.push_str(&format!("{}: {}\n", c.name, c.note));
    }
    if summary.controllers.is_empty() {
        out.push_str("no controller runs: proxies go on with what they know\n");
    }
    out.push('\n');
    let proxies: Vec<Vec<String>> = summary.proxies.iter().map(proxy_row).collect();
    out.push_str(&output::table(
        &["proxy", "sync", "config", "lag", "connected", "heard", "controller", "joined by", "version"],
        &proxies,
    ));
    for p in &summary.proxies {
        for (kind, reason) in &p.refused {
            out.push_str(&format!("{}: refused {kind}: {reason}\n", p.node));
        }
    }
    let count = |s: Sync| summary.proxies.iter().filter(|p| p.sync == s).count();
    let counts = [
        (Sync::Synced, "synced"),
        (Sync::Behind, "behind"),
        (Sync::Refused, "refused"),
        (Sync::Away, "away"),
    ];
    let counts: Vec<String> = counts
        .iter()
        .map(|(s, name)| (count(*s), name))
        .filter(|(n, _)| *n > 0)
        .map(|(n, name)| format!("{n} {name}"))
        .collect();
    if counts.is_empty() {
        out.push_str("no node has joined; `meshctl check` says why\n");
    } else {
        out.push_str(&format!("{}\n", counts.join(", ")));
    }
    out
}

fn controller_row(c: &Controller) -> Vec<String> {
    let findings = match (c.errors, c.warnings) {
        (0, 0) => "none".to_owned(),
        (e, w) => format!("{e} errors, {w} warnings"),
    };
    vec![
        c.name.clone(),
        dash(&c.node),
        c.state.clone(),
        if c.leader { "yes" } else { "-" }.to_owned(),
        c.proxies.to_string(),
        c.generation.to_string(),
        findings,
        dash(&c.version),
    ]
}

fn proxy_row(p: &Proxy) -> Vec<String> {
    let sync = match (p.sync, p.behind_ms) {
        (Sync::Behind, Some(ms)) => format!("behind {}", istio_compat::duration::format_millis(ms)),
        (Sync::Away, _) => "away".to_owned(),
        (Sync::Refused, _) => "REFUSED".to_owned(),
        _ => "synced".to_owned(),
    };
    let seconds = |s: Option<u64>| s.map_or_else(|| "-".to_owned(), span);
    vec![
        p.node.clone(),
        sync,
        p.generation.map_or_else(|| "-".to_owned(), |g| g.to_string()),
        p.lag_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms")),
        seconds(p.connected_seconds),
        seconds(p.heard_seconds),
        dash(&p.controller),
        if p.joined == 0 {
            "-".to_owned()
        } else {
            format!("{}, {} ago", p.origin, span(now().saturating_sub(p.joined)))
        },
        dash(&p.version),
    ]
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// For a report.
pub(crate) fn as_json(summary: &Summary) -> Value {
    serde_json::to_value(summary).unwrap_or_else(|e| json!({ "error": e.to_string() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(sessions: Value) -> Value {
        json!({
            "synced": true, "version": "0.1.0", "generation": 9, "leader": true, "source": { "healthy": true },
            "findings": [{ "level": "error" }, { "level": "warning" }, { "level": "warning" }],
            "nodes": [
                { "node": "edge-a", "joined": 10, "origin": "join-token", "version": "0.0.9" },
                { "node": "edge-b", "joined": 10, "origin": "node-service-account", "version": "0.1.0" },
            ],
            "sessions": sessions,
        })
    }

    fn session(node: &str, connected: u64, more: Value) -> Value {
        let mut session = json!({ "node": node, "peer": "192.0.2.1:40000", "connected_seconds": connected,
            "heard_seconds": 1, "generation": 9, "lag_ms": 12, "last_nack": {} });
        session.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        session
    }

    #[test]
    fn a_proxy_is_synced_behind_refusing_or_away() {
        let mut proxies = BTreeMap::new();
        let sessions = json!([
            session("edge-a", 60, json!({ "behind_ms": 1500 })),
            session("gw-1", 5, json!({ "last_nack": { "services": "bad vip" } })),
        ]);
        take(&mut proxies, "c-1", &state(sessions));
        let sync = |n: &str| proxies[n].sync;
        assert_eq!((sync("edge-a"), sync("edge-b"), sync("gw-1")), (Sync::Behind, Sync::Away, Sync::Refused));
        let mut row = Controller::default();
        controller(&mut row, &state(json!([])));
        assert_eq!((row.errors, row.warnings, row.generation, row.state.as_str()), (1, 2, 9, "ready"));
        let summary = Summary { controllers: vec![row], proxies: proxies.into_values().collect() };
        let text = text(&summary);
        for part in
            ["behind 1.5s", "gw-1: refused services: bad vip", "1 behind, 1 refused, 1 away", "12 ms", "c-1"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn the_younger_of_two_streams_counts() {
        let mut proxies = BTreeMap::new();
        take(&mut proxies, "old", &state(json!([session("edge-a", 600, json!({ "behind_ms": 9 }))])));
        take(&mut proxies, "new", &state(json!([session("edge-a", 3, json!({}))])));
        take(&mut proxies, "older", &state(json!([session("edge-a", 700, json!({}))])));
        assert_eq!((proxies["edge-a"].controller.as_str(), proxies["edge-a"].sync), ("new", Sync::Synced));
        assert_eq!(proxies["edge-a"].origin, "join-token");
    }
}
