//! Our own Gateway API manifests, the Istio objects that they become and their status.
//! `REGENERATE=1 cargo test -p istio-compat --test gatewayapi` rewrites the results; read the difference before you keep it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use istio_compat::{
    gateway_api::{
        self, Objects, Settings, Snapshot, World,
        facts::{EntryFacts, HostFacts, ServicePort},
    },
    translate, yaml,
};
use serde_json::{Value, json};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gatewayapi")
}

fn text(object: &Value, path: &str) -> String {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn strings(object: &Value, path: &str) -> BTreeMap<String, String> {
    let map = object.pointer(path).and_then(Value::as_object).into_iter().flatten();
    map.map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect()
}

fn ports(object: &Value, number: &str) -> Vec<ServicePort> {
    let list = object.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    let number = |p: &Value| u32::try_from(p[number].as_u64().unwrap()).unwrap();
    list.map(|p| ServicePort { name: text(p, "/name"), number: number(p) }).collect()
}

/// What Gateway API refers to, from manifests. Every port of a service has endpoints.
fn facts(documents: &[Value]) -> Snapshot {
    let mut facts = Snapshot::default();
    for object in documents {
        let (namespace, name) = (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
        let key = (namespace.clone(), name.clone());
        match text(object, "/kind").as_str() {
            "Namespace" => {
                facts.namespaces.insert(name, strings(object, "/metadata/labels"));
            }
            "Service" => {
                let numbers: BTreeSet<_> = ports(object, "port").iter().map(|p| p.number).collect();
                let host = HostFacts {
                    ports: numbers.clone(),
                    ports_with_endpoints: numbers,
                    ..HostFacts::default()
                };
                let full = format!("{name}.{namespace}.svc.cluster.local");
                facts.hosts.entry(full).or_default().insert(namespace, host);
                facts.services.insert(key, ports(object, "port"));
            }
            "ServiceEntry" => {
                let hosts = object["spec"]["hosts"].as_array().unwrap().iter();
                let hosts = hosts.map(|h| h.as_str().unwrap().to_owned()).collect();
                facts.service_entries.insert(key, EntryFacts { hosts, ports: ports(object, "number") });
            }
            "Secret" => {
                let data = strings(object, "/stringData");
                facts.secrets.insert(key, data.into_iter().map(|(k, v)| (k, v.into_bytes())).collect());
            }
            "ConfigMap" => {
                facts.config_maps.insert(key, strings(object, "/data"));
            }
            _ => {}
        }
    }
    facts
}

fn documents(path: &Path) -> Vec<Value> {
    yaml::documents(&fs::read_to_string(path).unwrap()).unwrap()
}

fn compiled(path: &Path) -> String {
    let mut all = documents(&folder().join("shop.inc"));
    all.extend(documents(path));
    let mut objects = Objects::default();
    for document in &all {
        if gateway_api::is_known(&text(document, "/apiVersion"), &text(document, "/kind")) {
            let read = gateway_api::read(document).unwrap();
            assert_eq!(read.unknown, []);
            objects.put(read.object);
        }
    }
    let facts = facts(&all);
    let settings = Settings { controller: "example.com/controller".to_owned(), ..Settings::default() };
    let world = World { objects: &objects, facts: &facts, settings: &settings };
    let (derived, statuses) = gateway_api::compile(&world, "T");
    for object in &derived.virtual_services {
        // Whatever comes out can be compiled.
        translate::virtual_service(object, &translate::Context::default(), &translate::no_delegates);
    }
    let line = |kind: &str, meta: &istio_compat::Meta, spec: Value| {
        format!("{kind} {}\n{}\n", meta.key(), serde_json::to_string_pretty(&spec).unwrap())
    };
    let mut out = String::new();
    for o in &derived.gateways {
        out += &line("Gateway", &o.meta, o.spec.clone());
    }
    for o in &derived.virtual_services {
        out += &line("VirtualService", &o.meta, json!(o.spec));
    }
    for o in &derived.destination_rules {
        out += &line("DestinationRule", &o.meta, json!(o.spec));
    }
    for (id, status) in statuses {
        let name = format!("status of {} {}/{}", id.kind.as_str(), id.namespace, id.name);
        out += &format!("{name}\n{}\n", serde_json::to_string_pretty(&status).unwrap());
    }
    out
}

fn check(name: &str) {
    let got = compiled(&folder().join(format!("{name}.yaml")));
    let file = folder().join(format!("{name}.compiled"));
    if std::env::var_os("REGENERATE").is_some() {
        fs::write(&file, &got).unwrap();
    }
    let want = fs::read_to_string(&file).unwrap_or_default();
    let line = want.lines().zip(got.lines()).position(|(w, g)| w != g);
    assert!(want == got, "{name}: first difference at line {:?} of {}", line.map(|l| l + 1), file.display());
}

#[test]
fn rules_of_all_routes_of_a_host_are_tried_in_one_order() {
    check("weights-and-precedence");
}

#[test]
fn routes_attach_where_they_may() {
    check("attachment");
}

#[test]
fn references_need_leave_and_something_to_refer_to() {
    check("references");
}

#[test]
fn listeners_have_certificates_and_owners() {
    check("listeners");
}

#[test]
fn backends_are_called_by_policy() {
    check("policies");
}

/// A status that was written once is not different when it is computed again, but for what others wrote.
#[test]
fn statuses_settle() {
    let mut all = documents(&folder().join("shop.inc"));
    all.extend(documents(&folder().join("attachment.yaml")));
    let facts = facts(&all);
    let settings = Settings::default();
    let mut round = |now: &str, previous: &[(gateway_api::ObjectRef, Value)]| {
        let mut objects = Objects::default();
        for document in &mut all {
            if !gateway_api::is_known(&text(document, "/apiVersion"), &text(document, "/kind")) {
                continue;
            }
            let (kind, name) = (text(document, "/kind"), text(document, "/metadata/name"));
            if let Some((_, status)) =
                previous.iter().find(|(id, _)| id.kind.as_str() == kind && id.name == name)
            {
                document["status"] = status.clone();
            }
            objects.put(gateway_api::read(document).unwrap().object);
        }
        gateway_api::statuses(&World { objects: &objects, facts: &facts, settings: &settings }, now)
    };
    let first = round("T1", &[]);
    let mut with_others = first.clone();
    let route = with_others.iter_mut().find(|(id, _)| id.name == "anywhere").unwrap();
    let theirs =
        json!({"controllerName": "example.com/other", "parentRef": {"name": "front"}, "conditions": []});
    route.1["parents"].as_array_mut().unwrap().push(theirs);
    let second = round("T2", &with_others);
    assert_eq!(second.len(), with_others.len());
    for (id, status) in &second {
        let before = &with_others.iter().find(|(other, _)| other == id).unwrap().1;
        let sorted = |v: &Value| {
            let mut parents: Vec<_> =
                v["parents"].as_array().into_iter().flatten().map(ToString::to_string).collect();
            parents.sort();
            (parents, v["conditions"].clone(), v["listeners"].clone())
        };
        assert_eq!(sorted(status), sorted(before), "{id:?}");
    }
}
