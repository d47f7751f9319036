//! Replays the destination policy vectors that the folder named by `CONFORMANCE_VECTORS` holds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use mesh_core::{
    Client,
    policy::{ClientTlsMode, EffectivePolicy, H2Upgrade, HashKey, HashTableKind, LoadBalancing},
    retry::RetryPolicy,
};
use meshctl::simulate::{World, WorldOptions};
use serde_json::{Value, json};
use support::{Report, vectors, world_objects};

#[path = "common/vectors.rs"]
mod support;

#[test]
fn destination_policy() {
    let Some(dir) = vectors() else { return };
    let world = world_objects(&dir);
    let mut report = Report::new("destination_policy");
    for case in support::cases(&dir, "routes/destination_policy.json") {
        let id = case["id"].as_str().unwrap();
        report.case(id, &check(&world, &case), case.get("note").is_some());
    }
    report.finish();
}

fn check(world: &[Value], case: &Value) -> Vec<String> {
    let settings = support::mesh_config(case);
    let objects = world.iter().chain(case["config"].as_array().unwrap()).chain(&settings);
    let mesh = World::new(objects, &WorldOptions::default());
    let labels: BTreeMap<String, String> = serde_json::from_value(case["client"]["labels"].clone()).unwrap();
    let gateway = (case["client"]["type"] == "gateway").then_some("istio-system/gateway");
    let client = Client {
        labels: &labels,
        gateway,
        ..Client::in_namespace(case["client"]["namespace"].as_str().unwrap())
    };
    let query = &case["query"];
    let port = u16::try_from(query["port"].as_u64().unwrap()).unwrap();
    let service = mesh.tables().service(query["host"].as_str().unwrap()).expect("service");
    let cluster = service.cluster(&client, query["subset"].as_str().unwrap(), port);
    let mut faults = Vec::new();
    for (key, want) in case["expected"].as_object().unwrap() {
        let got = match (key.as_str(), cluster) {
            ("exists", c) => json!(c.is_some()),
            (_, None) => Value::Null,
            (key, Some(c)) => value(&c.policy, key, want),
        };
        if *want != got {
            faults.push(format!("{key}: expected {want}, got {got}"));
        }
    }
    faults
}

fn hash_key(key: &HashKey) -> Value {
    match key {
        HashKey::Header(name) => json!({ "header": &**name }),
        HashKey::Query(name) => json!({ "query": &**name }),
        HashKey::SourceIp => json!({ "sourceIp": true }),
        HashKey::Cookie(c) => {
            let mut out = json!({ "cookie": &*c.name });
            if !c.path.is_empty() {
                out["path"] = json!(&*c.path);
            }
            if let Some(ttl) = c.ttl {
                out["ttl_ms"] = json!(ttl.as_millis());
            }
            out
        }
    }
}

/// The model's value in the words of the vectors.
fn value(p: &EffectivePolicy, key: &str, want: &Value) -> Value {
    let limit = |n: Option<u32>| json!(n.unwrap_or(u32::MAX));
    match key {
        "lb" => json!(match (&p.balancing.hash, p.balancing.kind) {
            (Some(hash), _) => match hash.table {
                HashTableKind::Ring { .. } => "RING_HASH",
                HashTableKind::Maglev { .. } => "MAGLEV",
            },
            (None, kind) => match kind {
                LoadBalancing::LeastRequest => "LEAST_REQUEST",
                LoadBalancing::RoundRobin => "ROUND_ROBIN",
                LoadBalancing::Random => "RANDOM",
                LoadBalancing::Passthrough => "PASSTHROUGH",
            },
        }),
        "hash" => p.balancing.hash.as_ref().map_or(Value::Null, |h| json!([hash_key(&h.key)])),
        "retryIgnorePreviousHosts" => {
            json!(RetryPolicy::default().avoids_previous_hosts(p.balancing.hash.is_some()))
        }
        "slowStart" => p.balancing.warmup.map_or(Value::Null, |w| {
            json!({ "window_ms": w.duration.as_millis(), "aggression": f64::from(w.aggression) / 1000.0,
                "minPercent": f64::from(w.minimum) / 10.0 })
        }),
        "maxConnectionDuration_ms" => json!(p.pool.max_connection_duration.map(|d| d.as_millis())),
        "http" => json!(match p.pool.h2_upgrade {
            H2Upgrade::ByPort => "http1",
            H2Upgrade::Upgrade => "http2",
            H2Upgrade::Client => "downstream",
        }),
        "sans" => json!(p.tls.subject_alt_names.iter().map(|n| &**n).collect::<Vec<_>>()),
        "proxyProtocol" => json!(p.proxy_protocol.map(|v| format!("{v:?}"))),
        "maxConnections" => limit(p.pool.max_connections),
        "maxRequests" => limit(p.pool.max_requests),
        "connectTimeout_ms" => json!(p.pool.connect_timeout.as_millis()),
        "tls" => json!(match p.tls.mode {
            ClientTlsMode::Auto => "auto",
            ClientTlsMode::Disable => "none",
            ClientTlsMode::Simple | ClientTlsMode::Mutual | ClientTlsMode::IstioMutual => "tls",
        }),
        "sni" => json!(&*p.tls.sni),
        "panicThreshold" => json!(p.outlier.as_ref().map(|o| f64::from(o.min_health_percent))),
        "outlier" => {
            let Some(o) = &p.outlier else { return Value::Null };
            let mut got = json!({
                "consecutive5xx": o.consecutive_5xx,
                "interval_ms": o.interval.as_millis(),
                "maxEjectionPercent": o.max_ejection_percent,
                // Ejection by 5xx is certain, by success rate off, always.
                "enforcing5xx": 100,
                "enforcingSuccessRate": 0,
            });
            if let (Some(got), Some(want)) = (got.as_object_mut(), want.as_object()) {
                got.retain(|k, _| want.contains_key(k));
            }
            got
        }
        other => panic!("no such value: {other}"),
    }
}
