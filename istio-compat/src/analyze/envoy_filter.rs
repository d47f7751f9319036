//! EnvoyFilters: patches that do nothing, or depend on the order of others. (This mesh honours none of them.)

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    report::Report,
    world::{Kind, Object, World, text},
};

/// Checks each patch.
pub(super) fn patches(world: &World, out: &mut Report) {
    let mut of_versions: BTreeSet<String> = BTreeSet::new();
    for filter in world.all(Kind::EnvoyFilter) {
        let mut said = BTreeSet::new();
        for (i, patch) in filter.list("/spec/configPatches").iter().enumerate() {
            if patch.get("patch").is_none_or(Value::is_null) {
                break;
            }
            let name = filter_name(patch);
            let code = finding(filter, patch, of_versions.contains(&name));
            // Said once of a filter, at the first patch.
            if let Some(code) = code.filter(|c| said.insert(*c)) {
                out.add(filter, code, format!("spec.configPatches[{i}]"), &[]);
            }
            if !text(patch, "/match/proxy/proxyVersion").is_empty() {
                of_versions.insert(name);
            }
        }
    }
}

fn finding(filter: &Object, patch: &Value, of_version: bool) -> Option<&'static str> {
    let target = text(patch, "/applyTo");
    let routes = matches!(target, "ROUTE_CONFIGURATION" | "HTTP_ROUTE");
    match text(patch, "/patch/operation") {
        "ADD" if routes => Some("IST0153"),
        "REMOVE" if routes => Some("IST0154"),
        "REPLACE" if !matches!(target, "NETWORK_FILTER" | "HTTP_FILTER" | "VIRTUAL_HOST") => Some("IST0152"),
        // Relative to what others may have changed before.
        "REMOVE" | "REPLACE" | "INSERT_BEFORE" | "INSERT_AFTER" => {
            let ordered =
                filter.value.pointer("/spec/priority").and_then(Value::as_i64).unwrap_or_default() != 0;
            (!ordered).then_some(if of_version { "IST0155" } else { "IST0151" })
        }
        _ => None,
    }
}

/// The filter that a patch is about, in its value or else in what it matches.
fn filter_name(patch: &Value) -> String {
    let Some(value) = patch.pointer("/patch/value").and_then(Value::as_object) else { return String::new() };
    match value.get("name") {
        Some(name) => name.to_string(),
        None => text(patch, "/match/listener/filterChain/filter/name").to_owned(),
    }
}
