//! CustomResourceDefinitions from the types. The schema is structural: the API server prunes and refuses by itself.

use serde_json::{Value, json};

use crate::{
    schema,
    types::{NETWORKING_GROUP, NETWORKING_VERSIONS},
};

struct Kind {
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
    columns: fn() -> Vec<Value>,
}

const KINDS: [Kind; 2] = [
    Kind {
        kind: "DestinationRule",
        plural: "destinationrules",
        short: "dr",
        columns: destination_rule_columns,
    },
    Kind { kind: "VirtualService", plural: "virtualservices", short: "vs", columns: virtual_service_columns },
];

/// All CRDs, ordered by name.
pub fn all() -> Vec<Value> {
    KINDS.iter().map(definition).collect()
}

/// File name of a CRD under `charts/crds`.
pub fn file_name(crd: &Value) -> String {
    format!("{}.yaml", crd["metadata"]["name"].as_str().unwrap_or_default())
}

fn definition(kind: &Kind) -> Value {
    let singular = kind.kind.to_ascii_lowercase();
    let versions: Vec<Value> =
        NETWORKING_VERSIONS.iter().enumerate().map(|(i, v)| version(kind, v, i == 0)).collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{}.{NETWORKING_GROUP}", kind.plural) },
        "spec": {
            "group": NETWORKING_GROUP,
            "names": {
                "categories": ["istio-io", "networking-istio-io"],
                "kind": kind.kind,
                "listKind": format!("{}List", kind.kind),
                "plural": kind.plural,
                "shortNames": [kind.short],
                "singular": singular,
            },
            "scope": "Namespaced",
            "versions": versions,
        },
    })
}

fn version(kind: &Kind, name: &str, storage: bool) -> Value {
    let mut columns = (kind.columns)();
    columns.push(json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" }));
    json!({
        "name": name,
        "served": true,
        "storage": storage,
        "subresources": { "status": {} },
        "additionalPrinterColumns": columns,
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "properties": {
                    "spec": schema::of_spec(kind.kind),
                    "status": status(),
                },
            },
        },
    })
}

/// Conditions and messages as Istio writes them; anything else that a controller writes is kept.
fn status() -> Value {
    json!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "observedGeneration": { "type": "integer", "format": "int64" },
            "conditions": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "type": { "type": "string" },
                        "status": { "type": "string" },
                        "reason": { "type": "string" },
                        "message": { "type": "string" },
                        "observedGeneration": { "type": "integer", "format": "int64" },
                        "lastProbeTime": { "type": "string", "format": "date-time" },
                        "lastTransitionTime": { "type": "string", "format": "date-time" },
                    },
                },
            },
            "validationMessages": {
                "type": "array",
                "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
            },
        },
    })
}

fn virtual_service_columns() -> Vec<Value> {
    vec![
        json!({ "name": "Gateways", "type": "string", "jsonPath": ".spec.gateways",
            "description": "Gateways and sidecars that use these routes" }),
        json!({ "name": "Hosts", "type": "string", "jsonPath": ".spec.hosts",
            "description": "Hosts that these routes are for" }),
    ]
}

fn destination_rule_columns() -> Vec<Value> {
    vec![json!({ "name": "Host", "type": "string", "jsonPath": ".spec.host",
        "description": "Host that this policy is for" })]
}

/// A CRD as a file.
pub fn yaml(crd: &Value) -> String {
    // A value of maps, lists and scalars has no way to fail.
    format!(
        "# Generated from istio-compat's types; do not edit.\n{}",
        serde_saphyr::to_string(crd).unwrap_or_default()
    )
}
