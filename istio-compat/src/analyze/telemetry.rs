//! Telemetry: selectors as for Sidecars, and providers that exist.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    report::Report,
    sidecar::{by_pod, names},
    world::{Kind, Object, World, list, text},
};

/// Each selects a pod, and no pod is selected twice.
pub(super) fn selectors(world: &World, out: &mut Report) {
    for (pod, telemetries) in by_pod(world, Kind::Telemetry, "/spec/selector/matchLabels", out) {
        for telemetry in telemetries.iter().filter(|_| telemetries.len() > 1) {
            let parts: [&dyn std::fmt::Display; 3] = [&names(&telemetries), &pod.namespace, &pod.name];
            out.add(telemetry, "IST0159", "metadata.name", &parts);
        }
    }
}

/// One at most for a whole namespace.
pub(super) fn without_selector(world: &World, out: &mut Report) {
    let mut by_namespace: BTreeMap<&str, Vec<&Object>> = BTreeMap::new();
    // One for a gateway or service by reference is for that alone.
    let alone = |t: &&Object| !t.has("/spec/selector");
    for telemetry in world.all(Kind::Telemetry).iter().filter(alone) {
        by_namespace.entry(telemetry.namespace()).or_default().push(telemetry);
    }
    for (namespace, telemetries) in by_namespace.iter().filter(|(_, all)| all.len() > 1) {
        for telemetry in telemetries {
            out.add(telemetry, "IST0160", "", &[&names(telemetries), namespace]);
        }
    }
}

/// Access logging without a provider, where the mesh has none by default.
pub(super) fn providers(world: &World, out: &mut Report) {
    if !list(&world.options.mesh_config, "/defaultProviders/accessLogging").is_empty() {
        return;
    }
    for telemetry in world.all(Kind::Telemetry) {
        let mut logs = telemetry.list("/spec/accessLogging").iter().enumerate();
        let off = |log: &Value| log.get("disabled") == Some(&Value::Bool(true));
        if let Some((i, _)) = logs.find(|(_, log)| !off(log) && list(log, "/providers").is_empty()) {
            let parts: [&dyn std::fmt::Display; 2] = [&telemetry.name.name, &telemetry.namespace()];
            out.add(telemetry, "IST0157", format!("spec.accessLogging[{i}]"), &parts);
        }
    }
}

/// Lightstep is spoken through OpenTelemetry now.
pub(super) fn lightstep(world: &World, out: &mut Report) {
    let all = list(&world.options.mesh_config, "/extensionProviders").iter();
    let old: BTreeSet<&str> =
        all.filter(|p| p.get("lightstep").is_some()).map(|p| text(p, "/name")).collect();
    for telemetry in world.all(Kind::Telemetry) {
        for provider in telemetry.list("/spec/tracing").iter().flat_map(|t| list(t, "/providers")) {
            let name = text(provider, "/name");
            if old.contains(name) {
                let text = format!(
                    "The Lightstep provider {name} is deprecated, please migrate to OpenTelemetry provider."
                );
                out.add(telemetry, "IST0002", "spec.tracing", &[&text]);
            }
        }
    }
}
