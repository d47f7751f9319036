//! 5,000 services and 5,000 rules: the first compile, and one changed rule, which compiles one host and nothing else.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use mesh_api::ResourceType;
use mesh_index::{Applied, Index, Options};
use serde_json::{Value, json};

const SERVICES: usize = 5000;

fn service(i: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("s{i}"), "namespace": format!("n{}", i % 50)},
        "spec": {"clusterIP": format!("10.100.{}.{}", i / 250, i % 250 + 1), "ports": [{"name": "http", "port": 80}]}})
}

/// Rules of three kinds: policies, routes, and routes at a gateway.
fn rule(i: usize, timeout: &str) -> Value {
    let meta = json!({"name": format!("r{i}"), "namespace": format!("n{}", i % 50)});
    let to = |subset: &str| json!([{"destination": {"host": format!("s{i}"), "subset": subset}}]);
    let route = json!([
        {"match": [{"uri": {"prefix": "/api"}}], "timeout": timeout, "route": to("")},
        {"route": to("v1")},
    ]);
    let (kind, spec) = match i % 4 {
        0 => {
            let subsets = json!([{"name": "v1", "labels": {"version": "v1"}}]);
            ("DestinationRule", json!({"host": format!("s{i}"), "subsets": subsets}))
        }
        1 => {
            let host = format!("h{i}.example.com");
            ("VirtualService", json!({"hosts": [host], "gateways": ["istio-system/front"], "http": route}))
        }
        _ => ("VirtualService", json!({"hosts": [format!("s{i}")], "http": route})),
    };
    json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": meta, "spec": spec})
}

fn gateway() -> Value {
    let server =
        json!({"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*.example.com"]});
    json!({"apiVersion": "networking.istio.io/v1", "kind": "Gateway",
        "metadata": {"name": "front", "namespace": "istio-system"},
        "spec": {"selector": {"istio": "ingressgateway"}, "servers": [server]}})
}

#[test]
fn one_changed_rule_among_thousands_compiles_one_host() {
    let objects: Vec<Value> =
        (0..SERVICES).map(service).chain([gateway()]).chain((0..SERVICES).map(|i| rule(i, "1s"))).collect();
    let started = Instant::now();
    let mut index = Index::new(Options::default());
    for object in &objects {
        assert_eq!(index.apply(object), Applied::Changed, "{object}");
    }
    let all = index.compile();
    println!(
        "first compile: {} objects to {} resources in {:?}",
        objects.len(),
        all.len(),
        started.elapsed()
    );
    assert!(all.len() >= SERVICES);

    let (mut worst_mesh, mut worst_gateway) = (Duration::ZERO, Duration::ZERO);
    for i in [2, 1002, 4998, 1, 2001, 4997] {
        let before = index.stats();
        let started = Instant::now();
        assert_eq!(index.apply(&rule(i, "7s")), Applied::Changed);
        let changes = index.compile();
        let took = started.elapsed();
        let after = index.stats();
        let at_gateway = i % 4 == 1;
        let kind = if at_gateway { ResourceType::GatewayHost } else { ResourceType::Service };
        assert_eq!(changes.iter().map(|c| c.kind).collect::<Vec<_>>(), [kind]);
        let compiled = (
            after.services - before.services,
            after.others - before.others,
            after.endpoints - before.endpoints,
        );
        assert_eq!(compiled, if at_gateway { (0, 1, 0) } else { (1, 0, 0) }, "rule {i}");
        let worst = if at_gateway { &mut worst_gateway } else { &mut worst_mesh };
        *worst = took.max(*worst);
    }
    println!("one changed rule: {worst_mesh:?} for the mesh, {worst_gateway:?} at a gateway");
}
