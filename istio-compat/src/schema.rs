//! Structural schemas (Kubernetes' subset of OpenAPI v3) of the specs, made from the Rust types.

pub(crate) mod violations;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::types;

/// The schema of a kind's spec, or nothing for a kind that is not ours.
pub fn of_spec(kind: &str) -> Option<&'static Value> {
    types::kind_info(kind).map(|k| (k.schema)())
}

pub(crate) fn structural<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    let mut value = settings.into_generator().into_root_schema_for::<T>().to_value();
    clean(&mut value, true);
    value
}

/// Rewrites one schema node in place. `root` keeps its description.
fn clean(node: &mut Value, root: bool) {
    let Value::Object(map) = node else { return };
    unwrap_optional(map);
    for key in ["title", "default", "$schema", "writeOnly", "readOnly"] {
        map.remove(key);
    }
    if root {
        map.remove("components");
    }
    fix_type(map);
    enum_of_constants(map);
    integer_format(map);
    if let Some(required) = map.remove("x-required") {
        map.insert("required".into(), required);
    }
    if let Some(groups) = map.remove("x-one-of") {
        one_of(map, &groups);
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        let mut aliases = Vec::new();
        for property in properties.values_mut() {
            let alias = property.as_object_mut().and_then(|p| p.remove("x-alias"));
            clean(property, false);
            if let Some(Value::String(alias)) = alias {
                aliases.push((alias, property.clone()));
            }
        }
        properties.extend(aliases);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key) {
            clean(inner, false);
        }
    }
}

/// `Option<Enum or struct>` comes as `anyOf: [T, null]` or as `allOf: [T]`; only `T` is meant.
fn unwrap_optional(map: &mut Map<String, Value>) {
    for key in ["anyOf", "allOf", "oneOf"] {
        let Some(Value::Array(list)) = map.get(key) else { continue };
        let mut real = list.iter().filter(|v| {
            v.get("type") != Some(&json!("null"))
                && v.get("enum") != Some(&json!([null]))
                && v.get("nullable").is_none_or(|_| v.get("type").is_some())
        });
        if let (Some(Value::Object(only)), None) = (real.next(), real.next()) {
            let only = only.clone();
            map.remove(key);
            for (k, v) in only {
                map.entry(k).or_insert(v);
            }
        }
    }
    if !map.contains_key("x-keep-nullable") && map.get("nullable") == Some(&Value::Bool(true)) {
        map.remove("nullable");
    }
    if map.remove("x-keep-nullable").is_some() {
        map.insert("nullable".into(), Value::Bool(true));
    }
}

/// `type: [T, null]` becomes `type: T`.
fn fix_type(map: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = map.get("type")
        && let Some(first) = types.iter().find(|t| **t != json!("null")).cloned()
    {
        map.insert("type".into(), first);
    }
    if let Some(Value::Array(values)) = map.get_mut("enum") {
        values.retain(|v| !v.is_null());
    }
}

/// An enum with a description for each value comes as `oneOf` of constants; one list of values is meant.
fn enum_of_constants(map: &mut Map<String, Value>) {
    let Some(Value::Array(list)) = map.get("oneOf") else { return };
    let mut values = Vec::new();
    for entry in list {
        match (entry.get("const"), entry.get("enum")) {
            (Some(v), _) => values.push(v.clone()),
            (_, Some(Value::Array(more))) => values.extend(more.iter().cloned()),
            _ => return,
        }
    }
    map.remove("oneOf");
    map.insert("type".into(), json!("string"));
    map.insert("enum".into(), Value::Array(values));
}

/// Kubernetes knows `int32` and `int64` only; unsigned numbers become bounds.
fn integer_format(map: &mut Map<String, Value>) {
    let Some(Value::String(format)) = map.get("format") else { return };
    match format.as_str() {
        "uint32" => {
            map.remove("format");
            map.entry("minimum").or_insert(json!(0));
            map.entry("maximum").or_insert(json!(u32::MAX));
        }
        "uint64" => {
            map.remove("format");
            map.entry("minimum").or_insert(json!(0));
        }
        _ => {}
    }
}

/// "At most one of" as value validation, once for each group.
fn one_of(map: &mut Map<String, Value>, groups: &Value) {
    let Value::Array(groups) = groups else { return };
    let rules: Vec<Value> = groups
        .iter()
        .filter_map(Value::as_array)
        .map(|fields| {
            let required: Vec<Value> = fields.iter().map(|f| json!({ "required": [f] })).collect();
            let mut choices = vec![json!({ "not": { "anyOf": required.clone() } })];
            choices.extend(required);
            json!({ "oneOf": choices })
        })
        .collect();
    match <[Value; 1]>::try_from(rules) {
        Ok([Value::Object(only)]) => map.extend(only),
        Ok(_) => {}
        Err(many) => {
            map.insert("allOf".into(), Value::Array(many));
        }
    }
}
