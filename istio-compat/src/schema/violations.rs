//! What an API server says against an object by the keywords of a schema: what must be there, how long, how many, of
//! which form. Types and enums are checked where an object is read; rules of CEL have their counterparts in validation.

use regex::Regex;
use serde_json::{Map, Value};

use crate::parse::Finding;

/// All violations. `path` is where `value` is.
pub(crate) fn of(value: &Value, schema: &Value, path: &str) -> Vec<Finding> {
    let mut out = Vec::new();
    node(value, schema, path, &mut out);
    out
}

fn bound(schema: &Value, key: &str) -> Option<usize> {
    schema.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok())
}

/// A count against two keywords.
fn count(n: usize, schema: &Value, (least, most): (&str, &str), path: &str, out: &mut Vec<Finding>) {
    if let Some(least) = bound(schema, least).filter(|least| n < *least) {
        out.push(Finding::new(path, format!("has {n}, must have at least {least}")));
    }
    if let Some(most) = bound(schema, most).filter(|most| n > *most) {
        out.push(Finding::new(path, format!("has {n}, must have at most {most}")));
    }
}

fn node(value: &Value, schema: &Value, path: &str, out: &mut Vec<Finding>) {
    match value {
        Value::String(text) => {
            count(text.chars().count(), schema, ("minLength", "maxLength"), path, out);
            let pattern = schema.get("pattern").and_then(Value::as_str).and_then(|p| Regex::new(p).ok());
            if let Some(pattern) = pattern.filter(|p| !p.is_match(text)) {
                out.push(Finding::new(path, format!("{text:?} does not have the form {pattern}")));
            }
        }
        Value::Array(items) => {
            count(items.len(), schema, ("minItems", "maxItems"), path, out);
            let Some(inner) = schema.get("items") else { return };
            for (i, item) in items.iter().enumerate() {
                node(item, inner, &format!("{path}[{i}]"), out);
            }
        }
        Value::Object(map) => object(map, schema, path, out),
        _ => {}
    }
}

fn object(map: &Map<String, Value>, schema: &Value, path: &str, out: &mut Vec<Finding>) {
    count(map.len(), schema, ("minProperties", "maxProperties"), path, out);
    let has = |name: &str| map.get(name).is_some_and(|v| !v.is_null());
    for name in
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    {
        if !has(name) {
            out.push(Finding::new(format!("{path}.{name}"), "is required"));
        }
    }
    let groups = schema.get("allOf").and_then(Value::as_array).into_iter().flatten().chain([schema]);
    for group in groups.filter_map(|g| g.get("oneOf")).filter_map(Value::as_array) {
        let names = group.iter().filter_map(|g| g.pointer("/required/0").and_then(Value::as_str));
        let set: Vec<_> = names.filter(|n| has(n)).collect();
        if set.len() > 1 {
            out.push(Finding::new(path, format!("only one of {} may be set", set.join(", "))));
        }
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for (key, inner) in map.iter().filter(|(_, v)| !v.is_null()) {
        if let Some(schema) = properties.and_then(|p| p.get(key)) {
            node(inner, schema, &format!("{path}.{key}"), out);
        } else if let Some(schema) = schema.get("additionalProperties").filter(|s| s.is_object()) {
            node(inner, schema, &format!("{path}[{key:?}]"), out);
        }
    }
}
