//! The CRDs obey the rules of structural schemas, so that a real API server accepts them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use istio_compat::crd;
use serde_json::Value;

#[test]
fn crds_are_structural() {
    let crds = crd::all();
    assert_eq!(crds.len(), 14);
    for crd in &crds {
        let versions = crd["spec"]["versions"].as_array().unwrap();
        assert_eq!(versions.iter().filter(|v| v["storage"] == true).count(), 1);
        for version in versions {
            let root = &version["schema"]["openAPIV3Schema"];
            structural(root, crd["metadata"]["name"].as_str().unwrap());
        }
    }
}

/// Every node that describes data has a type and only keywords that Kubernetes knows; logic keywords hold nothing but
/// value validation.
fn structural(node: &Value, path: &str) {
    const KNOWN: [&str; 26] = [
        "type",
        "properties",
        "items",
        "additionalProperties",
        "required",
        "enum",
        "format",
        "minimum",
        "maximum",
        "nullable",
        "description",
        "oneOf",
        "allOf",
        "anyOf",
        "not",
        "pattern",
        "x-kubernetes-validations",
        "x-kubernetes-preserve-unknown-fields",
        "maxLength",
        "maxItems",
        "maxProperties",
        "minLength",
        "minItems",
        "minProperties",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
    ];
    let map = node.as_object().unwrap_or_else(|| panic!("{path}: not a schema: {node}"));
    for key in map.keys() {
        assert!(KNOWN.contains(&key.as_str()), "{path}: keyword {key}");
    }
    let kind =
        map.get("type").and_then(Value::as_str).unwrap_or_else(|| panic!("{path}: no single type: {node}"));
    assert!(["object", "array", "string", "integer", "number", "boolean"].contains(&kind), "{path}: {kind}");
    if let Some(format) = map.get("format") {
        let known = ["int32", "int64", "double", "float", "byte", "date-time"];
        assert!(known.contains(&format.as_str().unwrap()), "{path}: format {format}");
    }
    assert!(
        !(map.contains_key("properties") && map.contains_key("additionalProperties")),
        "{path}: properties and additionalProperties exclude each other"
    );
    for (name, property) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        structural(property, &format!("{path}.{name}"));
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get(key) {
            structural(inner, &format!("{path}.{key}"));
        }
    }
    assert_eq!(kind == "array", map.contains_key("items"), "{path}: items");
    for key in ["oneOf", "anyOf", "allOf"] {
        for branch in map.get(key).and_then(Value::as_array).into_iter().flatten() {
            value_validation(branch, path);
        }
    }
}

fn value_validation(node: &Value, path: &str) {
    for (key, inner) in node.as_object().unwrap() {
        match key.as_str() {
            "required" => {}
            "not" => value_validation(inner, path),
            "oneOf" | "anyOf" | "allOf" => {
                inner.as_array().unwrap().iter().for_each(|n| value_validation(n, path));
            }
            other => panic!("{path}: {other} inside logic"),
        }
    }
}
