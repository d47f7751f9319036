//! From an applied object to a typed resource. Nothing is dropped in silence: wrong types are errors with their path,
//! fields that nobody knows and fields that this mesh does not honour are listed.

use serde_json::{Map, Value};

use crate::{
    crd, schema, support,
    types::{Meta, Resource, kind_info},
};

/// Something to say about one field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Finding {
    /// Where, e.g. `spec.http[0].match[1].uri`.
    pub path: String,
    /// What.
    pub message: String,
}

impl Finding {
    /// A finding at a path.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

/// A resource, and what must be said about fields that have no effect.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The typed resource.
    pub resource: Resource,
    /// Fields that Istio does not know either; the API server drops them.
    pub unknown: Vec<Finding>,
    /// Fields that Istio accepts and this mesh does not honour.
    pub unsupported: Vec<Finding>,
    /// Fields that have no effect in Istio either.
    pub idle: Vec<Finding>,
    /// What an API server refuses by the schema, beside types: lengths, counts, forms, what must be there.
    pub violations: Vec<Finding>,
}

/// Why an object is not a resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Another kind or API group; not an error of the user.
    #[error("{api_version} {kind} is not an Istio kind that this mesh reads")]
    OtherKind {
        /// `apiVersion` of the object.
        api_version: String,
        /// `kind` of the object.
        kind: String,
    },
    /// Fields of the wrong type or shape.
    #[error("{}", problems.iter().map(|p| format!("{}: {}", p.path, p.message)).collect::<Vec<_>>().join("; "))]
    Malformed {
        /// Every such field.
        problems: Vec<Finding>,
    },
}

/// Whether [`parse`] reads objects of this API version and kind.
pub fn is_known(api_version: &str, kind: &str) -> bool {
    let Some((group, version)) = api_version.split_once('/') else { return false };
    kind_info(kind).is_some_and(|k| k.group == group && k.versions.contains(&version))
}

/// Reads an object as applied.
pub fn parse(object: &Value) -> Result<Parsed, ParseError> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let Some(info) = kind_info(&kind).filter(|_| is_known(&api_version, &kind)) else {
        return Err(ParseError::OtherKind { api_version, kind });
    };
    let mut walk = Walk { kind: &kind, ..Walk::default() };
    let meta = meta(object.get("metadata"), &mut walk.problems);
    let mut spec = object.get("spec").cloned().unwrap_or(Value::Null);
    if spec.is_null() {
        if crd::SPEC_REQUIRED.contains(&info.kind) {
            walk.problems.push(Finding::new("spec", "is required"));
        }
        spec = Value::Object(Map::new());
    }
    walk.node(&mut spec, (info.schema)(), &mut "spec".to_owned(), &mut String::new());
    if !walk.problems.is_empty() {
        return Err(ParseError::Malformed { problems: walk.problems });
    }
    let violations = schema::violations::of(&spec, (info.schema)(), "spec");
    let resource = (info.read)(meta, spec)
        .map_err(|e| ParseError::Malformed { problems: vec![Finding::new("spec", e.to_string())] })?;
    Ok(Parsed { resource, unknown: walk.unknown, unsupported: walk.unsupported, idle: walk.idle, violations })
}

/// What [`against_schema`] found.
pub(crate) struct Checked {
    pub(crate) meta: Meta,
    pub(crate) unknown: Vec<Finding>,
}

/// Checks an object of another group by the schema of its spec, and drops nulls.
pub(crate) fn against_schema(
    object: &Value,
    spec: &mut Value,
    schema: &Value,
) -> Result<Checked, ParseError> {
    let mut walk = Walk::default();
    let meta = meta(object.get("metadata"), &mut walk.problems);
    walk.node(spec, schema, &mut "spec".to_owned(), &mut String::new());
    if !walk.problems.is_empty() {
        return Err(ParseError::Malformed { problems: walk.problems });
    }
    Ok(Checked { meta, unknown: walk.unknown })
}

fn meta(value: Option<&Value>, problems: &mut Vec<Finding>) -> Meta {
    let mut value = value.cloned().unwrap_or(Value::Null);
    if let Value::Object(map) = &mut value {
        map.retain(|_, v| !v.is_null());
    }
    if value.is_null() {
        value = Value::Object(Map::new());
    }
    let mut meta: Meta = serde_json::from_value(value).unwrap_or_else(|e| {
        problems.push(Finding::new("metadata", e.to_string()));
        Meta::default()
    });
    if meta.namespace.is_empty() {
        meta.namespace = "default".to_owned();
    }
    if meta.name.is_empty() {
        problems.push(Finding::new("metadata.name", "is required"));
    }
    meta
}

#[derive(Default)]
struct Walk<'a> {
    kind: &'a str,
    problems: Vec<Finding>,
    unknown: Vec<Finding>,
    unsupported: Vec<Finding>,
    idle: Vec<Finding>,
}

impl Walk<'_> {
    /// Checks one value against its schema. `path` is where it is in the object; `field` the same without indexes and
    /// map keys, as in the table of fields.
    fn node(&mut self, value: &mut Value, schema: &Value, path: &mut String, field: &mut String) {
        if !field.is_empty() {
            let of_value = |note| Finding::new(path.as_str(), note);
            self.unsupported.extend(support::unsupported(self.kind, field, value).map(of_value));
            self.idle.extend(support::idle(self.kind, field, value).map(of_value));
        }
        match schema.get("type").and_then(Value::as_str).unwrap_or_default() {
            "object" => self.object(value, schema, path, field),
            "array" => self.array(value, schema, path, field),
            "string" => self.string(value, schema, path),
            "boolean" if value.is_boolean() => {}
            "integer" => self.integer(value, schema, path),
            "number" if value.is_number() => {}
            other => self.wrong_type(path, other, value),
        }
    }

    fn wrong_type(&mut self, path: &str, wanted: &str, value: &Value) {
        let got = match value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        self.problems.push(Finding::new(path, format!("must be of type {wanted}, is {got}")));
    }

    fn object(&mut self, value: &mut Value, schema: &Value, path: &mut String, field: &mut String) {
        let Value::Object(map) = value else { return self.wrong_type(path, "object", value) };
        if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) {
            return;
        }
        let properties = schema.get("properties").and_then(Value::as_object);
        let extra = schema.get("additionalProperties").filter(|s| s.is_object());
        if extra.is_none() {
            map.retain(|_, v| !v.is_null());
        }
        if let Some(old_spelling) = extra.is_none().then(|| map.remove("mirror_percent")).flatten() {
            map.entry("mirrorPercent").or_insert(old_spelling);
        }
        for (key, inner) in map.iter_mut() {
            let (path_len, field_len) = (path.len(), field.len());
            if let Some(schema) = extra {
                if inner.is_null() {
                    continue; // an empty entry of a map is for validation to refuse
                }
                path.push_str(&format!("[{key:?}]"));
                field.push_str("{}");
                self.node(inner, schema, path, field);
            } else {
                path.push('.');
                path.push_str(key);
                if !field.is_empty() {
                    field.push('.');
                }
                field.push_str(key);
                match properties.and_then(|p| p.get(key.as_str())) {
                    Some(schema) => self.node(inner, schema, path, field),
                    None => self.unknown.push(Finding::new(path.as_str(), "is not a field of this kind")),
                }
            }
            path.truncate(path_len);
            field.truncate(field_len);
        }
    }

    fn array(&mut self, value: &mut Value, schema: &Value, path: &mut String, field: &mut String) {
        let Value::Array(items) = value else { return self.wrong_type(path, "array", value) };
        let Some(schema) = schema.get("items") else { return };
        let (path_len, field_len) = (path.len(), field.len());
        field.push_str("[]");
        for (i, item) in items.iter_mut().enumerate() {
            path.push_str(&format!("[{i}]"));
            self.node(item, schema, path, field);
            path.truncate(path_len);
        }
        field.truncate(field_len);
    }

    fn string(&mut self, value: &Value, schema: &Value, path: &str) {
        let Value::String(text) = value else { return self.wrong_type(path, "string", value) };
        if let Some(Value::Array(allowed)) = schema.get("enum")
            && !allowed.contains(value)
        {
            let allowed: Vec<_> = allowed.iter().filter_map(Value::as_str).collect();
            self.problems.push(Finding::new(path, format!("{text:?} is none of {}", allowed.join(", "))));
        }
    }

    fn integer(&mut self, value: &Value, schema: &Value, path: &str) {
        let Some(n) = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from)) else {
            return self.wrong_type(path, "integer", value);
        };
        let bound = |key: &str, default: i64| {
            schema
                .get(key)
                .and_then(|v| v.as_i64().or_else(|| v.as_f64().map(|f| f as i64)))
                .unwrap_or(default)
        };
        let int32 = schema.get("format") == Some(&Value::String("int32".into()));
        let (low, high) =
            if int32 { (i64::from(i32::MIN), i64::from(i32::MAX)) } else { (i64::MIN, i64::MAX) };
        let (low, high) = (i128::from(bound("minimum", low)), i128::from(bound("maximum", high)));
        if n < low || n > high {
            self.problems.push(Finding::new(path, format!("{n} is not between {low} and {high}")));
        }
    }
}

#[cfg(test)]
mod tests;
