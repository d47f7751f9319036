use serde_json::{Value, json};

use super::*;
use crate::schema;

/// Every path of a schema, as the table writes it.
fn paths(node: &Value, at: &str, out: &mut Vec<String>) {
    for (name, inner) in node["properties"].as_object().into_iter().flatten() {
        let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        out.push(path.clone());
        descend(inner, &path, out);
    }
}

fn descend(node: &Value, path: &str, out: &mut Vec<String>) {
    paths(node, path, out);
    if node["items"].is_object() {
        descend(&node["items"], &format!("{path}[]"), out);
    }
    if node["additionalProperties"].is_object() {
        let path = format!("{path}{{}}");
        out.push(path.clone());
        descend(&node["additionalProperties"], &path, out);
    }
}

fn all(kind: &str) -> Vec<String> {
    let mut out = Vec::new();
    paths(schema::of_spec(kind).unwrap(), "", &mut out);
    out
}

/// Whether a row covers the path: its own, or one above it. A row for a plain container such as `trafficPolicy` says
/// nothing about the blocks of a policy, which need rows of their own.
fn covered(kind: &str, path: &str) -> bool {
    let path = canonical(path);
    fields(kind).iter().any(|f| {
        let below = path.strip_prefix(f.path);
        below == Some("")
            || (f.path != "trafficPolicy" && below.is_some_and(|b| b.starts_with(['.', '[', '{'])))
    })
}

/// Blocks whose fields have rows, one by one.
const CONTAINERS: [&str; 6] = [
    "trafficPolicy.loadBalancer",
    "trafficPolicy.connectionPool",
    "trafficPolicy.connectionPool.tcp",
    "trafficPolicy.connectionPool.http",
    "trafficPolicy.outlierDetection",
    "trafficPolicy.tls",
];

#[test]
fn every_field_has_a_row() {
    let mut kinds: Vec<_> = crate::types::KINDS.iter().map(|k| k.kind).collect();
    kinds.sort_unstable_by_key(|kind| KINDS.iter().position(|k| k == kind));
    assert_eq!(kinds, KINDS, "a kind without a table");
    for kind in KINDS {
        let known = all(kind);
        for path in &known {
            assert!(
                covered(kind, path) || CONTAINERS.contains(&canonical(path).as_ref()),
                "{kind}: {path} has no row"
            );
        }
        for field in fields(kind) {
            assert!(known.iter().any(|p| p == field.path), "{kind}: {} is not in the schema", field.path);
            assert!(
                field.status == Status::Honoured || !field.note.is_empty(),
                "{kind}: {} has no note",
                field.path
            );
        }
    }
}

#[test]
fn blocks_of_ports_and_subsets_are_named_too() {
    let lb = "loadBalancer.simple";
    for prefix in [
        "trafficPolicy",
        "subsets[].trafficPolicy",
        "trafficPolicy.portLevelSettings[]",
        "subsets[].trafficPolicy.portLevelSettings[]",
    ] {
        let row = row("DestinationRule", &format!("{prefix}.{lb}")).unwrap();
        assert_eq!(row.path, format!("trafficPolicy.{lb}"), "{prefix}");
    }
    assert!(unsupported("DestinationRule", "trafficPolicy.portLevelSettings[].port", &json!({})).is_none());
}

#[test]
fn only_values_without_effect_are_named() {
    let bind = |v| unsupported("Gateway", "servers[].bind", &json!(v)).is_some();
    assert!(!bind("0.0.0.0"));
    assert!(bind("unix:///run/x"));
    let set = |v| unsupported("VirtualService", "http[].headers.request.set{}", &json!(v)).is_some();
    assert!(!set("100%%"));
    assert!(!set("a %REQ(x)% %START_TIME(%Y %S)% %%"));
    assert!(set("%HOSTNAME%") && set("%REQ(x)% %TLS%") && set("%START_TIME(%s)% %"));
}
