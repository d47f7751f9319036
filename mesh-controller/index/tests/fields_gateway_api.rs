//! Every field of every kind of Gateway API does something, or is said to do nothing: each leaf of the schemas is set alone
//! in a small object, and what is compiled or said in a status differs from that without it, or a finding names it. The
//! list of fields is that of the CRDs (experimental channel): what this mesh does not read at all is told as unknown.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../../../istio-compat/tests/common/generate.rs"]
mod generate;
#[allow(dead_code, reason = "each test uses its part")]
#[path = "fields/paths.rs"]
mod paths;

use std::collections::{BTreeMap, BTreeSet};

use istio_compat::{gateway_api::GatewayKind, yaml};
use mesh_index::{Applied, Index, Options};
use paths::{names, sampled, set, take};
use serde_json::{Value, json};

const TABLE: &str = include_str!("fields/gateway_api.yaml");
/// `KIND PATH`, one a line: the leaves of the CRDs of Gateway API 1.6.
const LEAVES: &str = include_str!("fields/gateway_api.txt");

/// What became of an object: everything compiled and all statuses, and the places that findings about it name.
struct Outcome {
    all: BTreeMap<String, Value>,
    told: Vec<String>,
    rejected: Vec<String>,
}

struct World {
    around: Vec<Value>,
}

impl World {
    fn outcome(&self, kind: GatewayKind, spec: &Value) -> Outcome {
        let options = Options { derive_endpoints: true, allocate_vips: true, ..Options::default() };
        let mut index = Index::new(options);
        for object in &self.around {
            assert_ne!(index.apply(object), Applied::Rejected, "{object}");
        }
        let mut metadata = json!({ "name": "sample", "uid": "1" });
        if !kind.is_cluster_scoped() {
            // A grant counts where what it grants is.
            let namespace = if kind == GatewayKind::ReferenceGrant { "other" } else { "shop" };
            metadata["namespace"] = namespace.into();
        }
        let version = kind.versions()[0];
        let object = json!({
            "apiVersion": format!("{}/{version}", kind.group()), "kind": kind.as_str(),
            "metadata": metadata, "spec": spec,
        });
        let applied = index.apply(&object);
        index.compile();
        let mut all = BTreeMap::new();
        for (of, name, content) in index.resources() {
            all.insert(format!("{} {name}", of.as_str()), content.version.clone().into());
        }
        for (id, status) in index.gateway_api_statuses("now").unwrap_or_default() {
            all.insert(format!("status {:?} {}/{}", id.kind, id.namespace, id.name), status);
        }
        let own = index.findings().filter(|f| f.object.name.as_ref() == "sample");
        let own: Vec<_> = own.collect();
        Outcome {
            all,
            told: own.iter().map(|f| f.path.clone()).collect(),
            rejected: match applied {
                Applied::Rejected => own.iter().map(ToString::to_string).collect(),
                _ => Vec::new(),
            },
        }
    }
}

/// The base whose part of the schema is the longest that the leaf is in; a leaf of a filter is set in a rule with a filter
/// of its type.
fn base(table: &Value, kind: &str, path: &str) -> Value {
    let within = |at: &str, path: &str| {
        path.strip_prefix(at)
            .is_some_and(|rest| at.is_empty() || rest.is_empty() || rest.starts_with(['.', '[', '{']))
    };
    let fits = |b: &&Value| b["kind"] == kind && within(b["at"].as_str().unwrap(), path);
    let bases = table["bases"].as_array().unwrap().iter().filter(fits);
    let found = bases.max_by_key(|b| b["at"].as_str().unwrap().len());
    let mut spec = found.unwrap_or_else(|| panic!("{kind} has no base"))["spec"].clone();
    for at in ["rules[].backendRefs[].filters[]", "rules[].filters[]"] {
        let Some(leaf) = path.strip_prefix(at).and_then(|rest| rest.strip_prefix('.')) else { continue };
        let filters = table["filters"].as_object().unwrap();
        let found = filters.iter().filter(|(of, _)| within(of, leaf)).max_by_key(|(of, _)| of.len());
        set(&mut spec, at, found.unwrap_or_else(|| panic!("{kind} {path}: no filter")).1);
        if leaf.contains("replacePrefixMatch") {
            set(&mut spec, "rules[].matches[]", &json!({ "path": { "type": "PathPrefix", "value": "/p" } }));
        }
        break;
    }
    spec
}

fn samples(kind: &str, path: &str, table: &Value) -> Vec<Value> {
    let by_default = || vec![json!("sample"), json!("sample.example.com"), json!(7), json!(true)];
    sampled(kind, path, &table["samples"]).unwrap_or_else(by_default)
}

/// What is wrong with how a leaf is treated, if anything is.
fn judge(world: &World, kind: GatewayKind, path: &str, table: &Value) -> Option<String> {
    let base = base(table, kind.as_str(), path);
    let mut seen = BTreeSet::new();
    for value in samples(kind.as_str(), path, table) {
        let mut spec = base.clone();
        let place = set(&mut spec, path, &value);
        let with = world.outcome(kind, &spec);
        // A value of another type is refused, which says nothing about the field.
        if !with.rejected.is_empty() {
            seen.insert(with.rejected.join("; "));
            continue;
        }
        let mut without = spec.clone();
        take(&mut without, path, &base);
        let without = world.outcome(kind, &without);
        if with.all != without.all || with.told.iter().any(|f| names(f, &place)) {
            return None;
        }
        seen.insert(format!("{value} changes nothing, and is not told"));
    }
    Some(format!("{} {path}: {seen:?}", kind.as_str()))
}

#[test]
fn every_field_of_gateway_api_acts_or_is_reported() {
    let table = yaml::documents(TABLE).unwrap().remove(0);
    let world = World { around: table["world"].as_array().unwrap().clone() };
    let inert: BTreeMap<&str, &Value> =
        table["inert"].as_object().unwrap().iter().map(|(k, v)| (k.as_str(), v)).collect();
    let (mut count, mut wrong, mut idle) = (0, Vec::new(), BTreeSet::new());
    for line in LEAVES.lines() {
        let (kind, path) = line.split_once(' ').unwrap();
        let kind = GatewayKind::ALL.into_iter().find(|k| k.as_str() == kind).unwrap();
        count += 1;
        match (judge(&world, kind, path, &table), inert.get(line)) {
            (Some(problem), None) => wrong.push(problem),
            (Some(_), Some(_)) => drop(idle.insert(line)),
            (None, Some(_)) => wrong.push(format!("{line} is listed as without effect, and has one")),
            (None, None) => {}
        }
    }
    assert!(wrong.is_empty(), "{} of {count} fields:\n{}", wrong.len(), wrong.join("\n"));
    assert!(inert.keys().all(|line| idle.contains(line)), "listed, and no field: {inert:?}");
    assert!(count > 350, "{count} fields were looked at");
}

/// Objects that the schemas allow, good ones with a few changes, many kinds together: nothing panics. (Names that the API
/// server's patterns refuse are among them; what nodes would refuse of these stays here, as a finding.)
#[test]
fn objects_made_by_chance_are_compiled_or_refused() {
    const WORLDS: usize = 60;
    const IN_A_WORLD: usize = 40;
    let table = yaml::documents(TABLE).unwrap().remove(0);
    let bases = table["bases"].as_array().unwrap();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize
    };
    let mut changed = 0;
    for _ in 0..WORLDS {
        let options = Options { derive_endpoints: true, allocate_vips: true, ..Options::default() };
        let mut index = Index::new(options);
        for object in table["world"].as_array().unwrap() {
            index.apply(object);
        }
        index.compile();
        for _ in 0..IN_A_WORLD {
            let base = &bases[next() % bases.len()];
            let kind = GatewayKind::ALL.into_iter().find(|k| base["kind"] == k.as_str()).unwrap();
            let bytes: Vec<u8> = (0..200).map(|_| next() as u8).collect();
            let mut choices = generate::Choices(&bytes, 0);
            let mut spec = base["spec"].clone();
            match next() % 4 {
                0 => spec = generate::value(kind.schema(), &mut choices, 0),
                _ => generate::mutate(&mut spec, kind.schema(), &mut choices, 0),
            }
            let mut metadata = json!({ "name": format!("r{}", next() % 5), "uid": next().to_string() });
            if !kind.is_cluster_scoped() {
                metadata["namespace"] = ["shop", "other"][next() % 2].into();
            }
            let object = json!({
                "apiVersion": format!("{}/{}", kind.group(), kind.versions()[0]), "kind": kind.as_str(),
                "metadata": metadata, "spec": spec,
            });
            index.apply(&object);
            changed += usize::from(!index.compile().is_empty());
            index.gateway_api_statuses("now");
        }
    }
    assert!(changed * 8 > WORLDS * IN_A_WORLD, "{changed} objects changed something");
}
