//! The relay and the ingress gateway as pods of the release, switched on by values.

use std::time::{Duration, Instant};

use mesh_testkit::kube::eventually;
use serde_json::{Value, json};

use crate::shop::{NAMESPACE, NODES, Shop, root};

const RELAY: &str = "/dns4/mesh-relay.selvage-system.svc.cluster.local/tcp/15008";

/// What switches them on. There is nobody who gives addresses to load balancers here.
pub(crate) fn values() -> Value {
    let small = json!({ "requests": { "cpu": "10m" } });
    json!({
        "relay": { "enabled": true, "addresses": [RELAY], "service": { "type": "ClusterIP" }, "resources": small },
        "gateway": { "enabled": true, "service": { "type": "ClusterIP" }, "resources": small },
    })
}

/// The gateway answers for a host of a Gateway, and every proxy knows the relay.
pub(crate) fn work(shop: &Shop) {
    let rule = root().join("examples/bookinfo/networking/bookinfo-gateway.yaml");
    shop.cluster.kubectl(&["apply", "-f", rule.to_str().unwrap()]).unwrap();
    let start = Instant::now();
    let address = ["get", "service", "mesh-gateway", "-n", NAMESPACE, "-o", "jsonpath={.spec.clusterIP}"];
    let url = format!("http://{}/productpage", shop.cluster.kubectl(&address).unwrap());
    let call = |host: &str, url: &str| {
        let host = format!("Host: {host}");
        let args = ["curl", "-s", "-m", "5", "-H", &host, "-w", "\n%{http_code}", url];
        let out = shop.cluster.place("cloud").unwrap().exec(&args).unwrap().stdout;
        let (body, code) = out.rsplit_once('\n').unwrap_or(("", &out));
        (code.to_owned(), body.to_owned())
    };
    eventually(Duration::from_secs(30), Duration::from_millis(200), || {
        let (code, body) = call("books.example.com", &url);
        let page: Value = serde_json::from_str(&body).unwrap_or_default();
        if code == "200" && page["details"]["status"] == 200 { Ok(()) } else { Err((code, body)) }
    })
    .unwrap();
    println!("gateway: books.example.com answers {:.1} s after its rule", start.elapsed().as_secs_f64());
    // Both replicas, one connection each time.
    let codes: Vec<String> = (0..20).map(|_| call("books.example.com", &url).0).collect();
    assert!(codes.iter().all(|code| code == "200"), "{codes:?}");
    assert_eq!(call("other.example.com", &url).0, "404", "a host that no Gateway has");
    shop.cluster.kubectl(&["delete", "-f", rule.to_str().unwrap()]).unwrap();
    for node in NODES {
        eventually(Duration::from_secs(30), Duration::from_millis(300), || relay_at(shop, node)).unwrap();
    }
    println!("relay: listed by {} proxies, at {RELAY}", NODES.len());
}

/// Whether a node's proxy knows the relay and has a connection to it.
fn relay_at(shop: &Shop, node: &str) -> Result<(), String> {
    let page = |path: &str| shop.get(node, &format!("http://127.0.0.1:15000{path}"));
    let dump: Value = serde_json::from_str(&page("/config_dump")).map_err(|e| e.to_string())?;
    let nodes = dump["nodes"].as_array().cloned().unwrap_or_default();
    let relay = nodes.iter().find(|n| n["name"] == "mesh-relay-0").cloned().unwrap_or_default();
    let addresses = relay["addresses"].to_string();
    if relay["relay"] != true || !addresses.contains("mesh-relay.selvage-system") {
        return Err(format!("{node}: {dump:#}"));
    }
    Ok(())
}
