//! More than 20,000 objects that the schemas allow, all kinds together, go the whole way: read, judged, compiled,
//! taken by a node's tables, and asked. Nothing panics, and a node refuses nothing that was compiled.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../../../istio-compat/tests/common/generate.rs"]
mod generate;

use std::time::Instant;

use generate::{Choices, mutate, value};
use istio_compat::{crd, types::KINDS};
use mesh_api::Resource;
use mesh_core::{Change, Tables};
use mesh_index::{Applied, Index, Options};
use meshctl::simulate::{Request, World, WorldOptions};
use serde_json::{Value, json};

const OBJECTS: usize = 20_400;
const IN_A_WORLD: usize = 60;

/// The same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.next() >> 24) as u8).collect()
    }
}

fn service(name: &str, vip: u8) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": format!("10.96.0.{vip}"), "selector": {"app": name}, "ports": [
            {"name": "http", "port": 80}, {"name": "tcp", "port": 9000}, {"name": "https", "port": 443}]}})
}

fn object(kind: usize, specs: &[Value], numbers: &mut Numbers) -> Value {
    let info = &KINDS[kind];
    let bytes = numbers.bytes(240);
    let mut choices = Choices(&bytes, 0);
    // Most are good ones with a few changes: of those made by chance alone hardly any is accepted.
    let spec = if numbers.next().is_multiple_of(4) {
        value(&specs[kind], &mut choices, 0)
    } else {
        let mut good = good(info.kind, numbers);
        mutate(&mut good, &specs[kind], &mut choices, 0);
        good
    };
    let name = format!("o{}", numbers.next() % 6);
    let namespace = ["default", "default", "prod", "istio-system"][(numbers.next() % 4) as usize];
    json!({
        "apiVersion": format!("{}/{}", info.group, info.versions[0]), "kind": info.kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    })
}

/// A spec that admission accepts.
fn good(kind: &str, numbers: &mut Numbers) -> Value {
    let host = ["reviews", "a", "a.example.com", "*.example.com", "x.com"][(numbers.next() % 5) as usize];
    let to = json!([{"destination": {"host": "reviews", "subset": "v1"}, "weight": 1}, {"destination": {"host": "a"}, "weight": 3}]);
    match kind {
        "VirtualService" => json!({"hosts": [host], "gateways": ["mesh", "default/o1"], "http": [
            {"match": [{"uri": {"prefix": "/api"}, "headers": {"x-header": {"exact": "v1"}}}], "route": to,
                "retries": {"attempts": 2, "retryOn": "5xx"}, "timeout": "1s", "headers": {"request": {"set": {"a": "b"}}}},
            {"match": [{"uri": {"exact": "/r"}}], "redirect": {"uri": "/s"}},
            {"route": to}], "tcp": [{"route": [{"destination": {"host": "a"}}]}]}),
        "DestinationRule" => json!({"host": host, "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"},
                "connectionPool": {"tcp": {"maxConnections": 3}, "http": {"maxRetries": 2}}, "outlierDetection": {"interval": "1s"},
                "tls": {"mode": "DISABLE"}},
            "subsets": [{"name": "v1", "labels": {"version": "v1"}, "trafficPolicy": {"loadBalancer": {"consistentHash": {"httpHeaderName": "x"}}}}]}),
        "Gateway" => json!({"selector": {"app": "a"}, "servers": [
            {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]},
            {"port": {"number": 443, "name": "https", "protocol": "HTTPS"}, "hosts": ["*.example.com"], "tls": {"mode": "SIMPLE", "credentialName": "c"}}]}),
        "ServiceEntry" => {
            json!({"hosts": ["a.example.com"], "resolution": "STATIC", "addresses": ["10.9.0.1"],
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "endpoints": [{"address": "1.1.1.1", "labels": {"version": "v1"}}]})
        }
        "Sidecar" => {
            json!({"egress": [{"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["./*"]}, {"hosts": ["*/*"]}],
            "outboundTrafficPolicy": {"mode": "ALLOW_ANY"}})
        }
        "WorkloadEntry" => json!({"address": "2.2.2.2", "labels": {"app": "a"}, "locality": "r/z/s"}),
        "WorkloadGroup" => json!({"template": {"serviceAccount": "a"}}),
        "AuthorizationPolicy" => {
            json!({"rules": [{"from": [{"source": {"namespaces": ["a"]}}], "to": [{"operation": {"paths": ["/a"]}}]}]})
        }
        "RequestAuthentication" => {
            json!({"jwtRules": [{"issuer": "a", "jwksUri": "https://a.example.com/keys"}]})
        }
        "Telemetry" => {
            json!({"metrics": [{"overrides": [{"match": {"metric": "REQUEST_COUNT"}, "tagOverrides": {"a": {"value": "b"}}}]}],
            "accessLogging": [{"filter": {"expression": "response.code >= 400"}}], "tracing": [{"randomSamplingPercentage": 1.0}]})
        }
        "EnvoyFilter" => json!({"configPatches": [{"applyTo": "CLUSTER", "patch": {"operation": "REMOVE"}}]}),
        "WasmPlugin" => json!({"url": "oci://a.example.com/x"}),
        _ => json!({}),
    }
}

fn requests() -> Vec<Request> {
    let hosts = ["reviews", "reviews.default.svc.cluster.local", "a.example.com", "x.com"];
    let mut out = Vec::new();
    for (i, host) in hosts.iter().enumerate() {
        let base = json!({"host": host, "port": 80, "path": "/api/v1?x=1", "headers": {"x-header": "v1"},
            "source": {"namespace": "default", "labels": {"app": "a"}}, "dice": {"weight": 0.1 * (i as f64)}});
        out.push(base.clone());
        let mut at_gateway = base.clone();
        at_gateway["gateway"] = json!("default/o1");
        out.push(at_gateway);
        let mut tls = base;
        tls["protocol"] = json!("tls");
        tls["port"] = json!(443);
        out.push(tls);
    }
    out.push(json!({"protocol": "tcp", "port": 9000, "address": "10.96.0.1"}));
    out.into_iter().map(|v| serde_json::from_value(v).unwrap()).collect()
}

#[test]
fn objects_of_all_kinds_go_the_whole_way() {
    let started = Instant::now();
    let crds = crd::all();
    let spec = |kind: &str| {
        let crd = crds.iter().find(|c| c["spec"]["names"]["kind"] == kind).unwrap();
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
    };
    let specs: Vec<Value> = KINDS.iter().map(|k| spec(k.kind)).collect();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let requests = requests();
    let (mut made, mut taken, mut resources, mut asked) = (0, vec![0_usize; KINDS.len()], 0, 0);
    while made < OBJECTS {
        let mut objects = vec![service("reviews", 1), service("a", 2)];
        for i in 0..IN_A_WORLD {
            objects.push(object((made + i) % KINDS.len(), &specs, &mut numbers));
        }
        made += IN_A_WORLD;
        let mut index =
            Index::new(Options { derive_endpoints: true, allocate_vips: true, ..Options::default() });
        for object in &objects {
            let applied = index.apply(object);
            assert_ne!(applied, Applied::Ignored, "{object}");
            if applied == Applied::Changed
                && let Some(kind) = KINDS.iter().position(|k| object["kind"] == k.kind)
            {
                taken[kind] += 1;
            }
        }
        let compiled: Vec<Change> = index
            .compile()
            .into_iter()
            .map(|c| Change::Set(Resource::decode(c.kind, &c.name, &c.content.unwrap().bytes).unwrap()))
            .collect();
        resources += compiled.len();
        let (_, applied) = Tables::new().apply(compiled);
        assert_eq!(applied.rejected, [], "nodes refuse what was compiled of {objects:#?}");
        // Every tenth world is asked, by the way that a user takes.
        if made % (IN_A_WORLD * 10) == 0 {
            let world = World::new(&objects, &WorldOptions::default());
            for request in &requests {
                world.simulate(request).unwrap();
                asked += 1;
            }
        }
    }
    let by_kind: Vec<_> = KINDS.iter().zip(&taken).map(|(k, n)| format!("{} {n}", k.kind)).collect();
    println!(
        "{made} objects, taken: {}; {resources} resources, {asked} requests, {:?}",
        by_kind.join(", "),
        started.elapsed()
    );
    assert!(made >= 20_000);
    for (kind, n) in KINDS.iter().zip(&taken) {
        // The two that are refused as a whole count as taken by nobody.
        let refused = matches!(kind.kind, "EnvoyFilter" | "WasmPlugin");
        assert!(refused || *n > 20, "hardly any {} was accepted: {n}", kind.kind);
    }
}
