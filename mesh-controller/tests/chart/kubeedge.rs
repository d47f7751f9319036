//! A node as KubeEdge's `keadm join` leaves it: its labels, no kube-proxy, no way to addresses of services but the mesh. What
//! docs/install.md says of edge nodes is typed. Its agent in place of the kubelet is not here.

use std::time::{Duration, Instant};

use mesh_testkit::kube::eventually;
use serde_json::json;

use crate::{
    documented::typed_with,
    mesh::Report,
    shop::{NAMESPACE, Shop, deployment},
};

const NODE: &str = "edge-b";
const LABELS: [&str; 2] = ["node-role.kubernetes.io/edge", "node-role.kubernetes.io/agent"];

fn label(shop: &Shop, sign: &str) {
    let labels = LABELS.map(|label| format!("{label}{sign}"));
    shop.cluster.kubectl(&["label", "node", NODE, &labels[0], &labels[1]]).unwrap();
}

fn kube_proxy_table(shop: &Shop) -> bool {
    let tables = shop.cluster.place(NODE).unwrap().exec(&["nft", "list", "tables"]).unwrap().stdout;
    tables.contains("kube-proxy")
}

/// The mesh of the page, with a node of the edge.
pub(crate) fn a_node_of_the_edge(shop: &Shop, page: &str) {
    let start = Instant::now();
    label(shop, "=");
    shop.cluster.hold(NODE, "kube-proxy", true).unwrap();
    let flush = [
        "bash",
        "-c",
        "sleep 1; for f in ip ip6; do nft delete table $f kube-proxy; done; iptables-save | grep -c KUBE || true",
    ];
    shop.cluster.place(NODE).unwrap().exec(&flush).unwrap();
    // There are none on a node that was one of the edge from the start.
    let of_node = format!("spec.nodeName={NODE}");
    let controllers = ["-l", "app.kubernetes.io/name=mesh-controller", "--field-selector", &of_node];
    shop.cluster.kubectl(&[&["delete", "pod", "-n", NAMESPACE], &controllers[..]].concat()).unwrap();
    let cloud = shop.cluster.place("cloud").unwrap().address().to_string();
    let places = [("mesh.example.com", &cloud[..]), ("203.0.113.7", &cloud), ("cloud-1", "cloud")];
    typed_with(shop, page, "Edge nodes", &places);
    for (kind, name) in
        [("deployment", "mesh-controller"), ("daemonset", "mesh-proxy"), ("daemonset", "mesh-proxy-edge")]
    {
        let what = format!("{kind}/{name}");
        shop.cluster.kubectl(&["rollout", "status", &what, "-n", NAMESPACE, "--timeout=180s"]).unwrap();
    }
    let pods = ["get", "pods", "-n", NAMESPACE, "--field-selector", &of_node, "-o", "name"];
    eventually(Duration::from_secs(60), Duration::from_millis(500), || {
        let pods = shop.cluster.kubectl(&pods).unwrap();
        let proxies = pods.lines().filter(|l| l.contains("mesh-proxy")).count();
        if proxies == 1 && pods.contains("mesh-proxy-edge-") { Ok(()) } else { Err(pods) }
    })
    .unwrap();
    let mut client = deployment("client", "v1", NODE);
    let labels = json!({ "app": "at-the-edge", "version": "v1" });
    client["metadata"] = json!({ "name": "at-the-edge", "labels": labels });
    client["spec"]["selector"]["matchLabels"] = labels.clone();
    client["spec"]["template"]["metadata"]["labels"] = labels;
    shop.cluster.apply(&client.to_string()).unwrap();
    shop.cluster.kubectl(&["rollout", "status", "deployment/at-the-edge", "--timeout=90s"]).unwrap();
    assert!(!kube_proxy_table(shop), "nobody else knows services there");
    let call = [
        "exec",
        "deployment/at-the-edge",
        "--",
        "/usr/local/bin/echo",
        "call",
        "http://reviews:9080/reviews/0",
        "-n",
        "30",
        "-o",
        "json",
    ];
    eventually(Duration::from_secs(30), Duration::from_millis(300), || {
        let (out, err) = shop.cluster.kube().kubectl_output(&call).unwrap();
        match Report::parse(&out) {
            Some(report) if report.failed == 0 => Ok(()),
            other => Err(format!("{other:?} {err}")),
        }
    })
    .unwrap();
    println!(
        "a node as KubeEdge has them, without kube-proxy: calls by name work; {:.1} s",
        start.elapsed().as_secs_f64()
    );
    shop.cluster.kubectl(&["delete", "deployment/at-the-edge"]).unwrap();
    for gone in [["label", "selvage.io/relay-"], ["annotate", "selvage.io/addresses-"]] {
        shop.cluster.kubectl(&[gone[0], "node", "cloud", gone[1]]).unwrap();
    }
    label(shop, "-");
    shop.cluster.hold(NODE, "kube-proxy", false).unwrap();
    eventually(Duration::from_secs(60), Duration::from_millis(300), || {
        if kube_proxy_table(shop) { Ok(()) } else { Err("kube-proxy has no table yet") }
    })
    .unwrap();
}
