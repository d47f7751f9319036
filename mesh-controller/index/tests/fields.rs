//! Every field of every kind does something, or is said to do nothing: each leaf of the schema is set alone in a small
//! object, and the compiled resources differ from those without it, or a finding names it. What is right for a field
//! stands in istio-compat's table of support, from which the documentation is made.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "fields/paths.rs"]
mod paths;

use std::collections::BTreeMap;

use istio_compat::{
    parse, schema,
    support::{self, Status},
    types, validate, yaml,
};
use mesh_api::ResourceType;
use mesh_index::{Applied, Index, Options};
use paths::{names, sampled, set, take};
use serde_json::{Value, json};

/// What is around the object: services, workloads, nodes.
const WORLD: &str = include_str!("fields/world.yaml");
/// Objects in which leaves are set, by the part of the schema that they are for.
const BASES: &str = include_str!("fields/bases.yaml");
/// Parts of objects that must be there before a leaf within them can be set.
const PARTS: &str = include_str!("fields/parts.yaml");
/// Values for leaves that do not take just any, by the end of their path, or by `Kind:path`. A list, map or object with
/// values of its own is a leaf as well. None at all: shown by the object around it.
const SAMPLES: &str = include_str!("fields/samples.yaml");

/// A scalar of a schema, or a free-form object.
#[derive(Debug, Clone)]
struct Leaf {
    /// As the table of support writes it.
    path: String,
    schema: &'static Value,
}

fn leaves(kind: &str, node: &'static Value, path: &str, table: &Value, out: &mut Vec<Leaf>) {
    if !path.is_empty() && sampled(kind, path, table).is_some() {
        out.push(Leaf { path: path.to_owned(), schema: node });
        let inner = node.get("additionalProperties").or(node.get("items")).unwrap_or(node);
        if inner["type"] != "object" {
            return;
        }
    }
    let properties = node["properties"].as_object();
    let free = node.get("x-kubernetes-preserve-unknown-fields").is_some();
    if let Some(items) = node.get("items") {
        return leaves(kind, items, &format!("{path}[]"), table, out);
    }
    if let Some(inner) = node.get("additionalProperties").filter(|a| a.is_object()) {
        return leaves(kind, inner, &format!("{path}{{}}"), table, out);
    }
    match properties {
        Some(properties) if !free => {
            for (name, inner) in properties {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(kind, inner, &path, table, out);
            }
        }
        _ => out.push(Leaf { path: path.to_owned(), schema: node }),
    }
}

/// Values that a leaf may take.
fn samples(kind: &str, leaf: &Leaf, table: &Value) -> Vec<Value> {
    if let Some(values) = sampled(kind, &leaf.path, table) {
        return values;
    }
    if let Some(values) = leaf.schema["enum"].as_array() {
        return values.clone();
    }
    let is_duration = leaf.schema["x-kubernetes-validations"]
        .as_array()
        .is_some_and(|r| r.iter().any(|r| r["rule"].as_str().is_some_and(|t| t.contains("duration("))));
    match leaf.schema["type"].as_str().unwrap() {
        "string" if is_duration => vec![json!("7s")],
        "string" => vec![json!("sample"), json!("sample.example.com"), json!("10.9.8.7")],
        "boolean" => vec![json!(true), json!(false)],
        "integer" => vec![json!(7), json!(77)],
        "number" => vec![json!(7.5)],
        "object" => vec![json!({"any": "thing"})],
        other => panic!("{}: a leaf of type {other}", leaf.path),
    }
}

struct World {
    around: Vec<Value>,
}

/// What became of one object.
#[derive(Default)]
struct Outcome {
    /// Compiled resources by type and name; `None` when the object is refused.
    compiled: Option<BTreeMap<(&'static str, String), String>>,
    errors: Vec<String>,
    /// Paths of fields that are said to have no effect here.
    unsupported: Vec<String>,
    /// Paths of warnings.
    warnings: Vec<String>,
}

impl World {
    fn outcome(&self, kind: &str, spec: &Value) -> Outcome {
        let info = types::kind_info(kind).unwrap();
        let object = json!({
            "apiVersion": format!("{}/{}", info.group, info.versions[0]), "kind": kind,
            "metadata": { "name": "sample", "namespace": "default" }, "spec": spec,
        });
        let parsed = match parse(&object) {
            Ok(parsed) => parsed,
            Err(e) => return Outcome { errors: vec![e.to_string()], ..Outcome::default() },
        };
        assert!(parsed.unknown.is_empty(), "{kind}: {:?}", parsed.unknown);
        let verdict = validate::judge(&parsed);
        let paths = |list: &[istio_compat::Finding]| list.iter().map(|f| f.path.clone()).collect();
        let mut out = Outcome {
            errors: verdict.errors.iter().map(|f| format!("{}: {}", f.path, f.message)).collect(),
            unsupported: paths(&parsed.unsupported),
            warnings: paths(&verdict.warnings),
            compiled: None,
        };
        if out.errors.is_empty() {
            let mut index =
                Index::new(Options { derive_endpoints: true, allocate_vips: true, ..Options::default() });
            for object in &self.around {
                assert_ne!(index.apply(object), Applied::Rejected, "{object}");
            }
            index.apply(&object);
            index.compile();
            let refused: Vec<_> = index
                .findings()
                .filter(|f| f.level == mesh_index::Level::Error && f.message.contains("nodes refuse"))
                .map(ToString::to_string)
                .collect();
            assert!(refused.is_empty(), "{kind} {spec}: {refused:?}");
            let named = |kind: ResourceType, name: &str| (kind.as_str(), name.to_owned());
            out.compiled =
                Some(index.resources().map(|(k, n, c)| (named(k, n), c.version.clone())).collect());
        }
        out
    }
}

/// The base whose part of the schema is the longest that the leaf is in.
fn base<'a>(bases: &'a [Value], kind: &str, path: &str) -> &'a Value {
    let fits = |b: &&Value| {
        let at = b["at"].as_str().unwrap();
        b["kind"] == kind
            && path
                .strip_prefix(at)
                .is_some_and(|rest| at.is_empty() || rest.is_empty() || rest.starts_with(['.', '[', '{']))
    };
    let found = bases.iter().filter(fits).max_by_key(|b| b["at"].as_str().unwrap().len());
    &found.unwrap_or_else(|| panic!("{kind} has no base"))["spec"]
}

/// The base with the parts that the leaf is within.
fn prepared(base: &Value, path: &str, parts: &Value) -> Value {
    let mut spec = base.clone();
    for (part, value) in parts.as_object().unwrap() {
        if let Some(at) = path.find(part.as_str()) {
            let (upto, rest) = path.split_at(at + part.len());
            if (at == 0 || path[..at].ends_with('.')) && rest.starts_with(['.', '[', '{']) {
                set(&mut spec, upto, value);
            }
        }
    }
    spec
}

/// Fields of which only the default is honoured, by any of its names.
const DEFAULT_ONLY: [(&str, &str); 2] =
    [("Sidecar", "egress[].captureMode"), ("Sidecar", "ingress[].captureMode")];

/// What is wrong with how a leaf is treated, if anything is.
fn judge(world: &World, kind: &str, leaf: &Leaf, base: &Value, samples: &[Value]) -> Option<String> {
    let Some(row) = support::row(kind, &leaf.path) else {
        return Some(format!("{kind} {}: no row", leaf.path));
    };
    if samples.is_empty() {
        return None;
    }
    let own_row = leaf.path.ends_with(row.path);
    let (mut acts, mut told, mut errors) = (false, false, Vec::new());
    for value in samples {
        let mut spec = base.clone();
        let place = set(&mut spec, &leaf.path, value);
        // What is made only to hold the leaf is there in both.
        let mut without = spec.clone();
        take(&mut without, &leaf.path, base);
        let (with, without) = (world.outcome(kind, &spec), world.outcome(kind, &without));
        let without = match without.compiled {
            Some(_) => without,
            None => world.outcome(kind, base),
        };
        assert!(
            without.compiled.is_some(),
            "{kind}: the base of {} is refused: {:?}",
            leaf.path,
            without.errors
        );
        let reported = with.unsupported.iter().any(|f| names(f, &place));
        acts |= with.compiled.is_some() && with.compiled != without.compiled && !reported;
        told |= match row.status {
            Status::Idle => with.warnings.contains(&place) && with.compiled == without.compiled,
            Status::Ignored => reported || with.errors.iter().any(|e| e.starts_with(&format!("{place}:"))),
            _ => reported,
        };
        errors.extend(with.errors);
    }
    let wrong = match row.status {
        Status::Honoured if !acts => "changes nothing",
        Status::Ignored if !told => "is not reported",
        Status::Idle if !told => "is not warned of, or has an effect",
        Status::Partly if !acts && !DEFAULT_ONLY.contains(&(kind, row.path)) => "never changes anything",
        Status::Partly if own_row && row.has_values() && !told => "is never reported",
        _ => return None,
    };
    Some(format!("{kind} {} ({}): {wrong} {errors:?}", leaf.path, row.status.as_str()))
}

#[test]
fn every_field_acts_or_is_reported() {
    let world = World { around: yaml::documents(WORLD).unwrap() };
    let bases = yaml::documents(BASES).unwrap();
    let parts = yaml::documents(PARTS).unwrap().remove(0);
    let table = yaml::documents(SAMPLES).unwrap().remove(0);
    let (mut count, mut wrong) = (0, Vec::new());
    for kind in support::KINDS {
        let mut all = Vec::new();
        leaves(kind, schema::of_spec(kind).unwrap(), "", &table, &mut all);
        for leaf in &all {
            count += 1;
            let base = prepared(base(&bases, kind, &leaf.path), &leaf.path, &parts);
            wrong.extend(judge(&world, kind, leaf, &base, &samples(kind, leaf, &table)));
        }
    }
    assert!(wrong.is_empty(), "{} of {count} fields:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 500, "{count} fields were looked at");
    println!("{count} fields");
}
