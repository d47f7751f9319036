//! What is concluded from what a cluster says of its mesh.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::after::Workload;
use crate::{
    doctor::Check,
    proxies::Row,
    reach::{PodFacts, Program},
    status::{Proxy, Sync},
    token::span,
};

const DAY: u64 = 86_400;
/// A CA that ends sooner should have been replaced.
const CA_DAYS: u64 = 30;
/// Names in a sentence; the rest is a number.
const NAMED: usize = 5;

pub(super) fn release(workloads: &[Workload], release: &str, namespace: &str) -> Check {
    let what = "release";
    let Some(controller) = workloads.iter().find(|w| w.name == "mesh-controller") else {
        let fix = format!("Install the mesh: meshctl install -n {namespace}");
        return Check::fail(what, format!("namespace {namespace} has no mesh-controller"), fix);
    };
    let found = format!("{} in namespace {namespace}, version {}", controller.release, controller.version);
    let ours = env!("CARGO_PKG_VERSION");
    if controller.release != release {
        return Check::warn(
            what,
            format!("{found}, not {release:?}"),
            format!("Name it: --release {}", controller.release),
        );
    }
    if controller.version != ours {
        let fix = "Use the meshctl of that version, or upgrade: meshctl install";
        return Check::warn(what, format!("{found}; this meshctl is {ours}"), fix);
    }
    Check::ok(what, found)
}

pub(super) fn workload(w: &Workload, pods: &[PodFacts]) -> Check {
    let what = if w.kind == "DaemonSet" { "daemonset" } else { "deployment" };
    let mut found = format!("{}: {} of {} ready", w.name, w.ready, w.wanted);
    if w.wanted == 0 && w.kind == "Deployment" {
        return Check::warn(
            what,
            format!("{found}: it is scaled to none"),
            "kubectl scale deployment, or controller.replicas.",
        );
    }
    if w.ready >= w.wanted && w.updated >= w.wanted {
        return Check::ok(what, found);
    }
    if w.updated < w.wanted {
        found.push_str(&format!(", {} of the newest form", w.updated));
    }
    let not_yet: Vec<&PodFacts> =
        pods.iter().filter(|p| p.name.starts_with(&w.name) && !p.ready && !p.leaving).collect();
    let names: Vec<&str> = not_yet.iter().map(|p| p.name.as_str()).collect();
    if !names.is_empty() {
        found.push_str(&format!(" (not {})", named(&names)));
    }
    let troubles: BTreeSet<&str> =
        not_yet.iter().map(|p| p.trouble.as_str()).filter(|t| !t.is_empty()).collect();
    for trouble in troubles.into_iter().take(NAMED) {
        found.push_str(&format!("; {trouble}"));
    }
    let fix = "See what it says: meshctl logs --level warn; what Kubernetes says: kubectl describe pod.";
    if w.ready > 0 || w.wanted == 0 { Check::warn(what, found, fix) } else { Check::fail(what, found, fix) }
}

pub(super) fn nodes(nodes: &[(String, bool)], proxies: &[Program]) -> Check {
    let what = "nodes";
    let has =
        |node: &str| proxies.iter().any(|p| p.name == node && p.pod.as_ref().is_some_and(|pod| pod.ready));
    let without: Vec<&str> = nodes.iter().map(|(n, _)| n.as_str()).filter(|n| !has(n)).collect();
    let unready = |n: &&&str| nodes.iter().any(|(name, ready)| name == **n && !ready);
    let gone: Vec<&str> = without.iter().filter(unready).copied().collect();
    let lacking: Vec<&str> = without.iter().filter(|n| !unready(n)).copied().collect();
    let mut found = format!("{} of {} have a proxy that is ready", nodes.len() - without.len(), nodes.len());
    if without.is_empty() {
        return Check::ok(what, found);
    }
    if !lacking.is_empty() {
        found.push_str(&format!("; without: {}", named(&lacking)));
    }
    if !gone.is_empty() {
        found.push_str(&format!("; not ready themselves: {}", named(&gone)));
    }
    let fix = "proxy.tolerations, proxy.nodeSelector and proxy.affinity of the chart's values say where proxies run.";
    Check::warn(
        what,
        found,
        if lacking.is_empty() { "The node's own conditions say why: kubectl describe node." } else { fix },
    )
}

pub(super) fn controllers(states: &[(String, Result<Value>)]) -> Check {
    let what = "controllers";
    let mut wrong = Vec::new();
    for (name, state) in states {
        match state {
            Err(error) => wrong.push(format!("{name}: {error:#}")),
            Ok(s) if s["source"]["healthy"] == false => {
                wrong.push(format!("{name} cannot read the cluster: {}", s["source"]["error"]));
            }
            Ok(s) if s["synced"] != true => wrong.push(format!("{name} has not read everything yet")),
            Ok(_) => {}
        }
    }
    let leaders = states.iter().filter(|(_, s)| s.as_ref().is_ok_and(|s| s["leader"] == true)).count();
    let answering = states.iter().filter(|(_, s)| s.is_ok()).count();
    if answering == 0 {
        let found = if wrong.is_empty() { "there is none".to_owned() } else { wrong.join("; ") };
        let fix = "Proxies go on with what they know. This needs the right to port-forward (create pods/portforward).";
        return Check::fail(what, found, fix);
    }
    if !wrong.is_empty() {
        return Check::warn(
            what,
            wrong.join("; "),
            "See what they say: meshctl logs --only controller --level warn",
        );
    }
    if leaders == 0 {
        let found = format!("{answering} answer, none of them leads: records of nodes that left stay");
        return Check::warn(
            what,
            found,
            "A lease is taken within seconds; if not, see meshctl logs --only controller.",
        );
    }
    Check::ok(what, format!("{answering} answer, have read everything, and one leads"))
}

pub(super) fn synced(proxies: &[Proxy]) -> Check {
    let what = "synced";
    let of = |sync: Sync| -> Vec<&str> {
        proxies.iter().filter(|p| p.sync == sync).map(|p| p.node.as_str()).collect()
    };
    let (away, refused, behind) = (of(Sync::Away), of(Sync::Refused), of(Sync::Behind));
    if proxies.is_empty() {
        return Check::fail(
            what,
            "no node has joined",
            "See meshctl logs --level warn for why proxies are refused.",
        );
    }
    if !refused.is_empty() {
        let fix = "meshctl status says what and why; the last good state stays in force there.";
        return Check::fail(what, format!("{} refused a part of what they were sent", named(&refused)), fix);
    }
    if !away.is_empty() {
        let found = format!("{} of {} have no controller: {}", away.len(), proxies.len(), named(&away));
        let fix = "What they know goes on working. Nodes that are gone for good: meshctl node remove NAME.";
        return Check::warn(what, found, fix);
    }
    // A change is under way for some milliseconds; longer is a slow or dead line.
    let slow = proxies.iter().filter(|p| p.behind_ms.is_some_and(|ms| ms > 10_000));
    let slow: Vec<&str> = slow.map(|p| p.node.as_str()).collect();
    if !slow.is_empty() {
        let fix = "Their line to the controller is slow or dead: meshctl doctor on such a node.";
        return Check::warn(
            what,
            format!("{} have been without the newest for more than 10 s", named(&slow)),
            fix,
        );
    }
    let under_way = if behind.is_empty() {
        String::new()
    } else {
        format!(", a change is on its way to {}", behind.len())
    };
    Check::ok(what, format!("{} proxies have what they should{under_way}", proxies.len()))
}

pub(super) fn proxies(rows: &[Row]) -> Check {
    let what = "proxies";
    let silent: Vec<&str> = rows.iter().filter(|r| !r.answers).map(|r| r.node.as_str()).collect();
    let unready: Vec<String> =
        rows.iter().filter(|r| r.answers && !r.ready).map(|r| format!("{} {}", r.node, r.state)).collect();
    let notes: Vec<String> =
        rows.iter().flat_map(|r| r.notes.iter().map(move |n| format!("{}: {n}", r.node))).collect();
    if !unready.is_empty() {
        let fix = "See meshctl logs NODE --level warn.";
        return Check::fail(what, unready.join("; "), fix);
    }
    if !silent.is_empty() {
        let fix = "meshctl proxies says why; edge nodes may be out of the API server's reach, and work all the same.";
        return Check::warn(what, format!("{} do not answer", named(&silent)), fix);
    }
    if !notes.is_empty() {
        let shown: Vec<&str> = notes.iter().map(String::as_str).collect();
        return Check::warn(what, named(&shown), "meshctl doctor on the node says more.");
    }
    Check::ok(what, format!("{} are ready", rows.len()))
}

pub(super) fn certificates(rows: &[Row], states: &[(String, Result<Value>)], now: u64) -> Check {
    let what = "certificates";
    let ended = rows.iter().filter(|r| r.certificate_left.is_some_and(|left| left <= 0));
    let ended: Vec<&str> = ended.map(|r| r.node.as_str()).collect();
    if !ended.is_empty() {
        let fix =
            "They renew by themselves once they reach a controller; check their clocks: meshctl doctor.";
        return Check::fail(what, format!("those of {} have ended", named(&ended)), fix);
    }
    let none = rows.iter().filter(|r| r.answers && r.certificate_left.is_none());
    let none: Vec<&str> = none.map(|r| r.node.as_str()).collect();
    if !none.is_empty() {
        let fix = "See meshctl logs NODE --level warn for why they have not joined.";
        return Check::fail(what, format!("{} have none", named(&none)), fix);
    }
    let ca = states.iter().filter_map(|(_, s)| s.as_ref().ok()?["ca_expires"].as_u64()).min();
    let shortest = rows.iter().filter_map(|r| r.certificate_left).min().unwrap_or(0);
    let left = ca.map(|end| end.saturating_sub(now));
    let found = match left {
        Some(left) => format!(
            "of nodes: the first ends in {}; of the CA: in {} days",
            span(shortest.unsigned_abs()),
            left / DAY
        ),
        None => format!("of nodes: the first ends in {}", span(shortest.unsigned_abs())),
    };
    match left {
        Some(left) if left < CA_DAYS * DAY => Check::warn(
            what,
            found,
            "The CA should have been replaced by now: see meshctl logs --only controller.",
        ),
        _ => Check::ok(what, found),
    }
}

pub(super) fn versions(rows: &[Row], states: &[(String, Result<Value>)]) -> Check {
    let what = "versions";
    let of_controllers: BTreeSet<&str> =
        states.iter().filter_map(|(_, s)| s.as_ref().ok()?["version"].as_str()).collect();
    let mut of_proxies: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in rows.iter().filter(|r| r.answers) {
        of_proxies.entry(&row.version).or_default().push(&row.node);
    }
    let newest = of_controllers.last().copied().unwrap_or_default();
    let same = of_controllers.len() <= 1 && of_proxies.keys().all(|v| *v == newest);
    if same {
        return Check::ok(what, format!("all run {newest}"));
    }
    let proxies: Vec<String> =
        of_proxies.iter().map(|(version, nodes)| format!("{version} on {}", named(nodes))).collect();
    let controllers: Vec<&str> = of_controllers.into_iter().collect();
    let controllers = if controllers.is_empty() { "nobody".to_owned() } else { controllers.join(" and ") };
    let found = format!("of controllers: {controllers}; of proxies: {}", proxies.join(", "));
    Check::warn(
        what,
        found,
        "One version apart works; finish the upgrade: kubectl rollout status daemonset/mesh-proxy.",
    )
}

pub(super) fn webhook(found: Option<&ValidatingWebhookConfiguration>, namespace: &str, now: u64) -> Check {
    let what = "webhook";
    let Some(found) = found else {
        let fix = "controller.webhook.enabled=true has rules checked when they are applied.";
        return Check::warn(what, "there is none: rules that mean nothing are admitted", fix);
    };
    let hooks = found.webhooks.as_deref().unwrap_or_default();
    let service = hooks.iter().find_map(|h| h.client_config.service.as_ref());
    if service.is_some_and(|s| s.namespace != namespace) {
        let elsewhere = service.map_or("", |s| s.namespace.as_str());
        return Check::fail(
            what,
            format!("it asks a controller in namespace {elsewhere}"),
            "A cluster has one mesh: remove the other one.",
        );
    }
    let bundle = hooks.iter().find_map(|h| h.client_config.ca_bundle.as_ref()).map(|b| b.0.as_slice());
    let end = bundle.and_then(last_end);
    let fix = "The controller writes it by itself: see meshctl logs --only controller --level warn.";
    match end {
        None => Check::fail(
            what,
            "its CA bundle has no certificate: the API server refuses or skips every check",
            fix,
        ),
        Some(end) if end <= now => Check::fail(what, "the certificate in its CA bundle has ended", fix),
        Some(end) if end - now < CA_DAYS * DAY => Check::warn(
            what,
            format!("the certificate in its CA bundle ends in {} days", (end - now) / DAY),
            fix,
        ),
        Some(end) => Check::ok(what, format!("its CA bundle holds for {} days", (end - now) / DAY)),
    }
}

/// The end of the certificate that lasts longest, seconds since 1970.
fn last_end(pem: &[u8]) -> Option<u64> {
    let end = |der: CertificateDer<'_>| {
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        u64::try_from(certificate.validity().not_after.timestamp()).ok()
    };
    CertificateDer::pem_slice_iter(pem).filter_map(|der| end(der.ok()?)).max()
}

pub(super) fn crds(ours: &[Value], found: &BTreeMap<String, Value>) -> Check {
    let what = "crds";
    let (mut missing, mut old) = (Vec::new(), Vec::new());
    for crd in ours {
        let name = crd["metadata"]["name"].as_str().unwrap_or_default();
        match found.get(name) {
            None => missing.push(name),
            Some(there) => {
                if let Some(lack) = lacks(crd, there) {
                    old.push(format!("{name} lacks {lack}"));
                }
            }
        }
    }
    let fix = "meshctl crds | kubectl apply --server-side -f -, or let the chart's release own them (crds.install).";
    if !missing.is_empty() {
        let found = format!("{} of {} are not there: {}", missing.len(), ours.len(), named(&missing));
        return Check::fail(what, found, fix);
    }
    if !old.is_empty() {
        let shown: Vec<&str> = old.iter().map(String::as_str).collect();
        return Check::warn(what, format!("of another version: {}", named(&shown)), fix);
    }
    Check::ok(what, format!("all {} are there, with every version and field", ours.len()))
}

/// The first version that is not served, or field that is not known.
fn lacks(ours: &Value, there: &Value) -> Option<String> {
    let versions = |crd: &Value| -> BTreeMap<String, Value> {
        let all = crd["spec"]["versions"].as_array().into_iter().flatten();
        all.filter(|v| v["served"] == true)
            .map(|v| {
                (v["name"].as_str().unwrap_or_default().to_owned(), v["schema"]["openAPIV3Schema"].clone())
            })
            .collect()
    };
    let there = versions(there);
    for (name, schema) in versions(ours) {
        let Some(other) = there.get(&name) else { return Some(format!("version {name}")) };
        if let Some(field) = missing_field(&schema, other, "") {
            return Some(format!("field {field} of {name}"));
        }
    }
    None
}

fn missing_field(ours: &Value, there: &Value, at: &str) -> Option<String> {
    if there["x-kubernetes-preserve-unknown-fields"] == true {
        return None;
    }
    for (key, schema) in ours["properties"].as_object().into_iter().flatten() {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        // Kubernetes' own fields are in no definition.
        if at.is_empty() && key == "metadata" {
            continue;
        }
        let Some(other) = there["properties"].get(key) else { return Some(path) };
        if let Some(missing) = missing_field(schema, other, &path) {
            return Some(missing);
        }
    }
    if ours["items"].is_object() {
        return missing_field(&ours["items"], &there["items"], at);
    }
    None
}

pub(super) fn rules(states: &[(String, Result<Value>)]) -> Check {
    let what = "rules";
    let Some(state) = states.iter().find_map(|(_, s)| s.as_ref().ok().filter(|s| s["synced"] == true)) else {
        return Check::warn(
            what,
            "no controller says how they are",
            "meshctl analyze looks at the objects themselves.",
        );
    };
    let of = |level: &str| -> BTreeSet<String> {
        let all = state["findings"].as_array().into_iter().flatten().filter(|f| f["level"] == level);
        all.map(|f| {
            let o = &f["object"];
            let part = |key: &str| o[key].as_str().unwrap_or_default().to_owned();
            format!("{} {}/{}", part("kind"), part("namespace"), part("name"))
        })
        .collect()
    };
    let (errors, warnings) = (of("error"), of("warning"));
    let shown = |set: &BTreeSet<String>| named(&set.iter().map(String::as_str).collect::<Vec<_>>());
    let fix = "meshctl analyze says what is wrong with each, and kubectl get -o yaml has it as a condition.";
    match (errors.len(), warnings.len()) {
        (0, 0) => Check::ok(what, "nothing is wrong with any"),
        (0, _) => Check::warn(what, format!("a part without effect: {}", shown(&warnings)), fix),
        (_, _) => Check::warn(
            what,
            format!("without effect: {}; {} more in part", shown(&errors), warnings.len()),
            fix,
        ),
    }
}

fn named(names: &[&str]) -> String {
    let first = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len() {
        n if n > NAMED => format!("{first} and {} more", n - NAMED),
        _ => first,
    }
}

#[cfg(test)]
mod tests;
