//! Neighbours of what others' cases ask: one condition, one action, one field varied at a time, with the answer that Istio
//! documents. One case a line: objects (of `networking.istio.io/v1`, namespace `default` when they name none), a request,
//! and what the answer has at JSON pointers; null: nothing. `subsets`: `reviews` has the subsets v1 to v3.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use meshctl::simulate::{Request, World, WorldOptions};
use serde_json::{Value, json};

const CASES: &str = include_str!("cases/routes.jsonl");
/// Namespace, name, address, ports.
type Service = (&'static str, &'static str, &'static str, &'static [(&'static str, u16)]);

const SERVICES: [Service; 10] = [
    ("default", "reviews", "10.0.0.1", &[("http", 80)]),
    ("default", "ratings", "10.0.0.2", &[("http", 80)]),
    ("default", "web", "10.0.0.3", &[("http", 80)]),
    ("default", "api", "10.0.0.4", &[("http", 8080)]),
    ("default", "multi", "10.0.0.5", &[("http", 80), ("http-alt", 8080)]),
    ("prod", "reviews", "10.0.1.1", &[("http", 80)]),
    ("prod", "ratings", "10.0.1.2", &[("http", 80)]),
    ("default", "echo", "10.0.2.1", &[("tcp", 9000)]),
    ("default", "echo-v2", "10.0.2.2", &[("tcp", 9000)]),
    ("default", "secure", "10.0.2.3", &[("tls", 443)]),
];

fn world(case: &Value) -> World {
    let service = |(namespace, name, address, ports): &Service| {
        let ports: Vec<_> = ports.iter().map(|(name, port)| json!({ "name": name, "port": port })).collect();
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": namespace },
            "spec": { "clusterIP": address, "selector": { "app": name }, "ports": ports },
        })
    };
    let mut objects: Vec<Value> = SERVICES.iter().map(service).collect();
    if case["subsets"] == true {
        let subset = |v: &str| json!({ "name": v, "labels": { "version": v } });
        let subsets = ["v1", "v2", "v3"].map(subset);
        objects.push(json!({
            "kind": "DestinationRule", "metadata": { "name": "reviews" },
            "spec": { "host": "reviews", "subsets": subsets },
        }));
    }
    objects.extend(case["config"].as_array().unwrap().iter().cloned());
    for object in &mut objects {
        let fields = object.as_object_mut().unwrap();
        fields.entry("apiVersion").or_insert("networking.istio.io/v1".into());
        let meta = fields["metadata"].as_object_mut().unwrap();
        meta.entry("namespace").or_insert("default".into());
    }
    World::new(&objects, &WorldOptions::default())
}

#[test]
fn neighbours_of_route_cases() {
    let (mut count, mut wrong) = (0, Vec::new());
    for line in CASES.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let mut request = json!({ "host": "reviews", "port": 80, "source": { "namespace": "default" } });
        request.as_object_mut().unwrap().extend(case["request"].as_object().unwrap().clone());
        let request: Request = serde_json::from_value(request).unwrap();
        let answer = serde_json::to_value(world(&case).simulate(&request).unwrap()).unwrap();
        count += 1;
        for (at, want) in case["want"].as_object().unwrap() {
            let got = answer.pointer(at).unwrap_or(&Value::Null);
            if got != want {
                wrong.push(format!("{}: {at}: expected {want}, got {got}\n  {}", case["id"], answer["why"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 150, "{count} cases");
}
