//! kube-proxy in ipvs mode beside the mesh: it puts the address of every service on a link of its own, `kube-ipvs0`, which is
//! down. All of them are then addresses of the node itself. Kernels without ip_vs have the link all the same: a bridge takes
//! its place, where there is no dummy.

use std::time::{Duration, Instant};

use mesh_testkit::kube::eventually;
use serde_json::Value;

use crate::shop::{CLIENT, NODES, Shop};

/// Services of a larger cluster, which nobody calls.
const MORE: u8 = 250;

fn on(shop: &Shop, node: &str, script: &str) -> String {
    let script = format!("set -eu\n{script}");
    let out = shop.cluster.place(node).unwrap().exec(&["bash", "-c", &script]).unwrap();
    assert!(out.ok(), "{node}: {script}: {}{}", out.stdout, out.stderr);
    out.stdout
}

/// Addresses of services, with their names.
fn services(shop: &Shop) -> Vec<(String, String)> {
    let list: Value =
        serde_json::from_str(&shop.cluster.kubectl(&["get", "services", "-A", "-o", "json"]).unwrap())
            .unwrap();
    let of = |s: &Value| {
        let ip = s["spec"]["clusterIP"].as_str().filter(|ip| *ip != "None")?;
        Some((s["metadata"]["name"].as_str()?.to_owned(), ip.to_owned()))
    };
    list["items"].as_array().unwrap().iter().filter_map(of).collect()
}

/// Calls of pods and of the node's own programs go through the mesh as before, also where a proxy starts beside it
/// (`restart`); nobody is dialled at the address of a service.
pub(crate) fn is_borne(shop: &Shop, restart: impl FnOnce()) {
    let start = Instant::now();
    let services = services(shop);
    let mut batch = String::new();
    for (_, ip) in &services {
        batch += &format!("address add {ip}/32 dev kube-ipvs0\n");
    }
    for i in 1..=MORE {
        batch += &format!("address add 10.96.200.{i}/32 dev kube-ipvs0\n");
    }
    let link = "ip link add kube-ipvs0 type dummy 2>/dev/null || ip link add kube-ipvs0 type bridge";
    for node in NODES {
        let local = "ip route show table local | grep -c ^local.10.96.200.";
        let made = on(shop, node, &format!("{link}\nip -batch - <<'END'\n{batch}END\n{local}"));
        assert_eq!(made.trim(), MORE.to_string(), "addresses of the node itself");
    }
    restart();
    let counted = || shop.metric(CLIENT.2, "istio_requests_total", "destination_service_name=\"reviews\"");
    let before = counted();
    // A pod, by name; and what a kubelet or a program of the node sends.
    let report = shop.call("reviews", 60);
    assert!(report.failed == 0 && report.versions == ["v1", "v2", "v3"], "{report:#?}");
    let (_, reviews) = services.iter().find(|(name, _)| name == "reviews").unwrap();
    let url = format!("http://{reviews}:9080/reviews/0");
    let call = format!("for i in $(seq 20); do curl -sf -m 5 -o /dev/null {url}; done; echo done");
    assert_eq!(on(shop, CLIENT.2, &call).trim(), "done");
    eventually(Duration::from_secs(10), Duration::from_millis(200), || {
        let now = counted() - before;
        if now >= 80.0 { Ok(()) } else { Err(now) }
    })
    .unwrap();
    for node in NODES {
        let paths = shop.get(node, "http://127.0.0.1:15000/paths?all=1");
        assert!(paths.contains("\"active\": true") && !paths.contains("/ip4/10.96."), "{node}: {paths}");
        on(shop, node, "ip link delete kube-ipvs0");
    }
    let report = shop.call("reviews", 40);
    assert_eq!(report.failed, 0, "{report:#?}");
    println!(
        "kube-ipvs0 with {} addresses: pods and nodes call through the mesh; {:.1} s",
        services.len() + usize::from(MORE),
        start.elapsed().as_secs_f64()
    );
}
