//! Replays istiod's goldens of Gateway API from the folder named by `CONFORMANCE_VECTORS`: the Istio objects and the
//! status that it makes of them must be ours too. Cases about ambient mode are skipped, and so are routes to an
//! InferencePool.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use istio_compat::{
    Resource,
    gateway_api::{
        self, Objects, Settings, Snapshot, World,
        facts::{EntryFacts, HostFacts, ServicePort},
    },
    parse, yaml,
};
use serde_json::{Map, Value, json};

/// Everything that the cases share: the services that istiod's test has, as `namespace: names`.
const SERVICES: &[(&str, &str)] = &[
    ("istio-system", "istio-ingressgateway istiod echo httpbin"),
    (
        "default",
        "httpbin httpbin-second httpbin-wildcard foo-svc httpbin-other example echo svc4 httpbin-zero httpbin-mirror \
         httpbin-foo httpbin-alt httpbin-bad echo-1 echo-2 echo-port not-found",
    ),
    ("apple", "httpbin-apple"),
    ("banana", "httpbin-banana"),
    ("cert", "httpbin"),
    ("service", "my-svc"),
    ("allowed-1", "a-example b-example svc1 svc2"),
    ("allowed-2", "a-example svc2 svc3"),
    ("group-namespace1", "httpbin"),
    ("group-namespace2", "httpbin"),
];
const EXTERNAL: &[(&str, &str)] = &[
    ("istio-system", "example.com"),
    ("default", "google.com secure.example.net plaintext.example.net tcp.example.net"),
    ("allowed-1", "cross.example.net"),
];
const CERTIFICATES: &[&str] = &[
    "istio-system/my-cert-http",
    "ns2/ns2-cert",
    "ns3/ns3-cert",
    "ns4/ns4-cert",
    "istio-system/my-cert",
    "istio-system/my-cert-http2",
    "cert/cert",
    "bookinfo/bookinfo-secret",
    "bookinfo/another-secret",
];
const CONFIG_MAPS: &[(&str, &str, &str)] = &[
    ("istio-system/malformed", "not-ca.crt", "hello"),
    ("istio-system/malformed-trustbundle", "ca.crt", "hello"),
    ("istio-system/my-cert-http", "ca.crt", CERTIFICATE),
    ("default/malformed", "not-ca.crt", "hello"),
    ("default/auth-cert", "ca.crt", CERTIFICATE),
];
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMAMCAQA=\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMAMCAQA=\n-----END PRIVATE KEY-----\n";
/// Waypoints and ambient mode: `docs/istio-support.md` says that they are not implemented.
const AMBIENT: &[&str] = &["istio-waypoint", "istio-east-west"];

fn split(name: &str) -> (String, String) {
    let (namespace, name) = name.split_once('/').unwrap();
    (namespace.to_owned(), name.to_owned())
}

fn text(object: &Value, path: &str) -> String {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn port(name: &str, number: u32) -> ServicePort {
    ServicePort { name: name.to_owned(), number }
}

fn host_facts(ports: &[u32]) -> HostFacts {
    HostFacts {
        ports: ports.iter().copied().collect(),
        ports_with_endpoints: ports.iter().copied().collect(),
        by_target_port: BTreeMap::from([(8080, ports[0])]),
        ..HostFacts::default()
    }
}

/// The surroundings of a case.
fn facts(documents: &[Value]) -> Snapshot {
    let mut facts = Snapshot::default();
    for (namespace, names) in SERVICES {
        for name in names.split_whitespace() {
            let ports = vec![port("http", 80), port("tcp", 34000), port("tcp-other", 34001)];
            facts.services.insert(((*namespace).to_owned(), name.to_owned()), ports);
            let gateway = name == "istio-ingressgateway";
            let mut host = host_facts(if gateway { &[80, 443, 34000, 34001] } else { &[80, 34000, 34001] });
            if gateway {
                host.external.push("1.2.3.4".to_owned());
            }
            let full = format!("{name}.{namespace}.svc.domain.suffix");
            facts.hosts.entry(full).or_default().insert((*namespace).to_owned(), host);
        }
    }
    for (namespace, names) in EXTERNAL {
        for name in names.split_whitespace() {
            let host = host_facts(&[80, 34000, 34001]);
            facts.hosts.entry(name.to_owned()).or_default().insert((*namespace).to_owned(), host);
        }
    }
    for name in CERTIFICATES {
        let data = [("tls.crt", CERTIFICATE), ("tls.key", KEY), ("ca.crt", CERTIFICATE)];
        let data = data.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec()));
        facts.secrets.insert(split(name), data.collect());
    }
    let junk = ["tls.crt", "tls.key"].map(|k| (k.to_owned(), b"SGVsbG8gd29ybGQK".to_vec()));
    facts.secrets.insert(split("istio-system/malformed"), junk.into());
    for (name, key, value) in CONFIG_MAPS {
        facts.config_maps.insert(split(name), BTreeMap::from([((*key).to_owned(), (*value).to_owned())]));
    }
    for object in documents {
        let namespace = text(object, "/metadata/namespace");
        let key = (namespace.clone(), text(object, "/metadata/name"));
        let ports = |number: &str| -> Vec<ServicePort> {
            let list = object.pointer("/spec/ports").and_then(Value::as_array);
            let one =
                |p: &Value| port(&text(p, "/name"), u32::try_from(p[number].as_u64().unwrap()).unwrap());
            list.into_iter().flatten().map(one).collect()
        };
        match text(object, "/kind").as_str() {
            "Service" => {
                facts.services.insert(key, ports("port"));
            }
            "ServiceEntry" => {
                let hosts = object["spec"]["hosts"].as_array().unwrap().iter();
                let hosts = hosts.map(|h| h.as_str().unwrap().to_owned()).collect();
                facts.service_entries.insert(key, EntryFacts { hosts, ports: ports("number") });
            }
            "ConfigMap" => {
                let data = object["data"].as_object().cloned().unwrap_or_default();
                let data = data.into_iter().map(|(k, v)| (k, v.as_str().unwrap_or_default().to_owned()));
                facts.config_maps.insert(key, data.collect());
            }
            _ => {}
        }
        if !namespace.is_empty() {
            let part = namespace.split('-').next().unwrap().to_owned();
            let labels = BTreeMap::from([("istio.io/test-name-part".to_owned(), part)]);
            facts.namespaces.insert(namespace, labels);
        }
    }
    facts
}

/// By kind, namespace and name.
type Table = BTreeMap<String, Value>;

fn named(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind} {namespace}/{name}")
}

/// An Istio object in one spelling: read, and written again, where this crate knows the kind.
fn canonical(kind: &str, meta: &Value, spec: &Value) -> Value {
    let spec = match kind {
        "Gateway" => spec.clone(),
        _ => {
            let api = "networking.istio.io/v1";
            let object = json!({"apiVersion": api, "kind": kind, "metadata": meta, "spec": spec});
            match parse(&object).unwrap_or_else(|e| panic!("{object}: {e}")).resource {
                Resource::VirtualService(o) => serde_json::to_value(o.spec).unwrap(),
                Resource::DestinationRule(o) => serde_json::to_value(o.spec).unwrap(),
                _ => unreachable!(),
            }
        }
    };
    let created = text(meta, "/creationTimestamp");
    json!({"annotations": meta["annotations"], "created": created, "spec": spec})
}

fn ours(derived: &gateway_api::Derived) -> Table {
    let mut out = Table::new();
    let mut put = |kind: &str, meta: &istio_compat::Meta, spec: Value| {
        let meta_json = serde_json::to_value(meta).unwrap();
        let value = canonical(kind, &meta_json, &spec);
        let old = out.insert(named(kind, &meta.namespace, &meta.name), value);
        assert!(old.is_none(), "two objects are called {kind} {}", meta.key());
    };
    for o in &derived.gateways {
        put("Gateway", &o.meta, o.spec.clone());
    }
    for o in &derived.virtual_services {
        put("VirtualService", &o.meta, serde_json::to_value(&o.spec).unwrap());
    }
    for o in &derived.destination_rules {
        put("DestinationRule", &o.meta, serde_json::to_value(&o.spec).unwrap());
    }
    out
}

fn theirs(path: &Path) -> Table {
    let documents = yaml::documents(&fs::read_to_string(path).unwrap()).unwrap();
    let objects = documents.iter().map(|o| {
        let (kind, meta) = (text(o, "/kind"), &o["metadata"]);
        let name = named(&kind, &text(meta, "/namespace"), &text(meta, "/name"));
        (name, canonical(&kind, meta, &o["spec"]))
    });
    objects.collect()
}

fn statuses_of(path: &Path) -> Table {
    let documents = yaml::documents(&fs::read_to_string(path).unwrap()).unwrap();
    let objects = documents.into_iter().map(|o| {
        let meta = &o["metadata"];
        let name = named(&text(&o, "/kind"), &text(meta, "/namespace"), &text(meta, "/name"));
        (name, without_times(o["status"].clone()))
    });
    objects.collect()
}

fn without_times(mut value: Value) -> Value {
    match &mut value {
        Value::Object(map) => {
            map.remove("lastTransitionTime");
            *map = std::mem::take(map).into_iter().map(|(k, v)| (k, without_times(v))).collect::<Map<_, _>>();
        }
        Value::Array(list) => {
            *list = std::mem::take(list).into_iter().map(without_times).collect();
        }
        _ => {}
    }
    value
}

/// Routes to an InferencePool, as annotations name them.
fn inference_routes(documents: &[Value]) -> BTreeSet<String> {
    documents
        .iter()
        .filter(|o| o["spec"].to_string().contains("\"InferencePool\""))
        .map(|o| {
            let name = text(o, "/metadata/name");
            format!("{}/{name}.{}", text(o, "/kind"), text(o, "/metadata/namespace"))
        })
        .collect()
}

/// Drops what comes from routes to an InferencePool; how many were dropped.
fn drop_inference(table: &mut Table, routes: &BTreeSet<String>) -> usize {
    let before = table.len();
    table.retain(|name, value| {
        let parents = value["annotations"]["internal.istio.io/parents"].as_str().unwrap_or_default();
        let from_pool = parents.split(',').any(|p| routes.contains(p));
        let (kind, rest) = name.split_once(' ').unwrap();
        let (namespace, name) = rest.split_once('/').unwrap();
        let own = routes.contains(&format!("{kind}/{name}.{namespace}"));
        !from_pool && !own && kind != "InferencePool"
    });
    before - table.len()
}

fn differences(ours: &Table, theirs: &Table) -> Vec<String> {
    let names: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    let mut out = Vec::new();
    for name in names {
        match (theirs.get(name), ours.get(name)) {
            (Some(_), None) => out.push(format!("{name} is missing")),
            (None, Some(_)) => out.push(format!("{name} is not expected")),
            (Some(want), Some(got)) if want != got => {
                out.push(format!("{name}: {}", first_difference(want, got, "")));
            }
            _ => {}
        }
    }
    out
}

fn first_difference(want: &Value, got: &Value, path: &str) -> String {
    match (want, got) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()) {
                let (x, y) = (a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
                if x != y {
                    return first_difference(x, y, &format!("{path}.{key}"));
                }
            }
            String::new()
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let at = a.iter().zip(b).position(|(x, y)| x != y).unwrap_or_default();
            first_difference(&a[at], &b[at], &format!("{path}[{at}]"))
        }
        _ => format!("{path}: expected {want}, got {got}"),
    }
}

#[derive(Default)]
struct Score {
    passed: usize,
    skipped: usize,
    failures: Vec<String>,
}

impl Score {
    fn check(&mut self, case: &str, ours: &Table, theirs: &Table) {
        let differences = differences(ours, theirs);
        if differences.is_empty() {
            self.passed += 1;
            return;
        }
        let mut line = format!("FAIL gatewayapi/{case}: {}", differences[0]);
        if differences.len() > 1 {
            write!(line, " (and {} more)", differences.len() - 1).unwrap();
        }
        if std::env::var_os("CONFORMANCE_ALL").is_some() {
            line = format!("FAIL gatewayapi/{case}:\n  {}", differences.join("\n  "));
        }
        println!("{line}");
        self.failures.push(line);
    }
}

fn replay(file: &Path, score: &mut Score) {
    let case = file.file_stem().unwrap().to_str().unwrap().to_owned();
    let documents = yaml::documents(&fs::read_to_string(file).unwrap()).unwrap();
    let ambient = documents.iter().any(|o| {
        AMBIENT.contains(&text(o, "/spec/gatewayClassName").as_str())
            || text(o, "/spec/controllerName") == "istio.io/mesh-controller"
    });
    let golden = file.with_extension("yaml.golden");
    let status_golden = file.with_extension("status.yaml.golden");
    if ambient || !golden.exists() || !status_golden.exists() {
        println!("skipped gatewayapi/{case}: {}", if ambient { "ambient mode" } else { "no golden" });
        score.skipped += 1;
        return;
    }
    let mut objects = Objects::default();
    for document in &documents {
        if gateway_api::is_known(&text(document, "/apiVersion"), &text(document, "/kind")) {
            objects.put(gateway_api::read(document).unwrap_or_else(|e| panic!("{case}: {e}")).object);
        }
    }
    let facts = facts(&documents);
    let settings = Settings { cluster_domain: "domain.suffix".to_owned(), ..Settings::default() };
    let world = World { objects: &objects, facts: &facts, settings: &settings };
    let (derived, statuses) = gateway_api::compile(&world, "2026-01-01T00:00:00Z");

    let pools = inference_routes(&documents);
    let (mut got, mut want) = (ours(&derived), theirs(&golden));
    drop_inference(&mut got, &pools);
    let mut dropped = drop_inference(&mut want, &pools);
    if got.is_empty() && want.is_empty() && dropped > 0 {
        println!("skipped gatewayapi/{case}: InferencePool only");
        score.skipped += 1;
    } else {
        score.check(&case, &got, &want);
    }
    let mut got: Table = statuses
        .into_iter()
        .map(|(id, status)| (named(id.kind.as_str(), &id.namespace, &id.name), without_times(status)))
        .collect();
    let mut want = statuses_of(&status_golden);
    drop_inference(&mut got, &pools);
    dropped += drop_inference(&mut want, &pools);
    if dropped > 0 {
        println!("note gatewayapi/{case}: {dropped} objects about InferencePool are not compared");
    }
    score.check(&format!("{case}.status"), &got, &want);
}

#[test]
fn goldens() {
    let Some(dir) = std::env::var_os("CONFORMANCE_VECTORS").map(PathBuf::from) else {
        println!("skipped: CONFORMANCE_VECTORS names no folder of vectors");
        return;
    };
    let mut files: Vec<_> = fs::read_dir(dir.join("gatewayapi"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let mut score = Score::default();
    for file in &files {
        replay(file, &mut score);
    }
    let (passed, failed) = (score.passed, score.failures.len());
    println!("gatewayapi: {passed} passed, {failed} failed, {} skipped", score.skipped);
    assert!(score.failures.is_empty(), "{failed} cases of gatewayapi fail");
    assert!(passed > 0);
}
