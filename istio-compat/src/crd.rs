//! CustomResourceDefinitions from the types. The schema is structural: the API server prunes and refuses by itself.

use serde_json::{Value, json};

use crate::{
    schema,
    types::{KINDS, KindInfo},
};

/// Kinds without any sense when they say nothing.
pub(crate) const SPEC_REQUIRED: [&str; 3] = ["ServiceEntry", "WorkloadEntry", "WorkloadGroup"];

/// All CRDs, ordered by name.
pub fn all() -> Vec<Value> {
    KINDS.iter().map(definition).collect()
}

/// File name of a CRD under `charts/crds`.
pub fn file_name(crd: &Value) -> String {
    format!("{}.yaml", crd["metadata"]["name"].as_str().unwrap_or_default())
}

fn definition(kind: &KindInfo) -> Value {
    let singular = kind.kind.to_ascii_lowercase();
    let versions: Vec<Value> =
        kind.versions.iter().enumerate().map(|(i, v)| version(kind, v, i == 0)).collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{}.{}", kind.plural, kind.group) },
        "spec": {
            "group": kind.group,
            "names": {
                "categories": ["istio-io", kind.group.replace('.', "-")],
                "kind": kind.kind,
                "listKind": format!("{}List", kind.kind),
                "plural": kind.plural,
                "shortNames": kind.short,
                "singular": singular,
            },
            "scope": "Namespaced",
            "versions": versions,
        },
    })
}

fn version(kind: &KindInfo, name: &str, storage: bool) -> Value {
    let mut columns: Vec<Value> = kind
        .columns
        .iter()
        .map(|(name, path, text)| json!({ "name": name, "type": "string", "jsonPath": path, "description": text }))
        .collect();
    columns.push(json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" }));
    let spec = schema::of_spec(kind.kind);
    // Where the spec has fields that must be there, so must the spec.
    let mut root = json!({ "type": "object", "properties": { "spec": spec, "status": status() } });
    if SPEC_REQUIRED.contains(&kind.kind) {
        root["required"] = json!(["spec"]);
    }
    json!({
        "name": name,
        "served": true,
        "storage": storage,
        "subresources": { "status": {} },
        "additionalPrinterColumns": columns,
        "schema": { "openAPIV3Schema": root },
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

/// A CRD as a file.
pub fn yaml(crd: &Value) -> String {
    // A value of maps, lists and scalars has no way to fail.
    format!(
        "# Generated from istio-compat's types; do not edit.\n{}",
        serde_saphyr::to_string(crd).unwrap_or_default()
    )
}
