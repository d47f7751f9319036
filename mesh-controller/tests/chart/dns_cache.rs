//! NodeLocal DNSCache beside the mesh: pods of a node ask 169.254.20.10, whose packets are not tracked, so that the proxy does
//! not see them. A program that hands queries on plays it; address and rules are those that it makes.

use std::time::{Duration, Instant};

use mesh_testkit::kube::eventually;
use serde_json::{Value, json};

use crate::{
    mesh::Report,
    shop::{CLIENT, NAMESPACE, Shop, deployment},
};

const CACHE: &str = "169.254.20.10";
const CLUSTER_DNS: &str = "10.96.0.10";
const MESH_DNS: &str = "169.254.96.16";
const RULES: &str = "table ip nodelocaldns {
  chain prerouting { type filter hook prerouting priority raw; ip daddr 169.254.20.10 th dport 53 notrack; }
  chain output { type filter hook output priority raw; ip saddr 169.254.20.10 th sport 53 notrack; }
}
";

/// Services are called through the mesh whomever the cache asks, and preflight says what is missing.
pub(crate) fn is_borne(shop: &Shop) {
    let start = Instant::now();
    let (_, _, node) = CLIENT;
    let run = |script: String| {
        let script = format!("{script} && echo done");
        let out = shop.cluster.place(node).unwrap().exec(&["bash", "-c", &script]).unwrap();
        assert_eq!(out.stdout.trim(), "done", "{script}: {}", out.stderr);
    };
    run(format!("ip address add {CACHE}/32 dev lo && nft '{RULES}'"));
    shop.cluster.apply(&manifests(node, CLUSTER_DNS).to_string()).unwrap();
    rolled_out(shop);
    let pod = "deployment/cached-v1";
    shop.cluster.kubectl(&["rollout", "status", pod, "--timeout=90s"]).unwrap();
    calls_go_through_the_mesh(shop, pod);
    let said = preflight(shop, node);
    assert!(said.contains("warn   nodelocaldns") && said.contains("forward . 169.254.96.16"), "{said}");

    // As the page says: what only the mesh knows is asked of it.
    shop.cluster.apply(&manifests(node, MESH_DNS).to_string()).unwrap();
    rolled_out(shop);
    calls_go_through_the_mesh(shop, pod);
    let said = preflight(shop, node);
    assert!(said.contains("ok     nodelocaldns"), "{said}");

    let gone = |args: &[&str]| shop.cluster.kubectl(&[&["delete", "--wait"], args].concat()).unwrap();
    gone(&["daemonset/node-local-dns", "configmap/node-local-dns", "-n", "kube-system"]);
    gone(&[pod]);
    run(format!("nft delete table ip nodelocaldns && ip address delete {CACHE}/32 dev lo"));
    println!(
        "NodeLocal DNSCache: services by the mesh, told what to forward; {:.1} s",
        start.elapsed().as_secs_f64()
    );
}

fn rolled_out(shop: &Shop) {
    let set = ["rollout", "status", "daemonset/node-local-dns", "-n", "kube-system", "--timeout=90s"];
    shop.cluster.kubectl(&set).unwrap();
}

fn calls_go_through_the_mesh(shop: &Shop, pod: &str) {
    let url = "http://reviews:9080/reviews/0";
    let args = ["exec", pod, "--", "/usr/local/bin/echo", "call", url, "-n", "20", "-o", "json"];
    let counted = || shop.metric(CLIENT.2, "istio_requests_total", "source_workload=\"cached-v1\"");
    let before = counted();
    eventually(Duration::from_secs(30), Duration::from_millis(300), || {
        let (out, err) = shop.cluster.kube().kubectl_output(&args).unwrap();
        match Report::parse(&out) {
            Some(report) if report.failed == 0 => Ok(()),
            other => Err(format!("{other:?} {err}")),
        }
    })
    .unwrap();
    eventually(Duration::from_secs(10), Duration::from_millis(200), || {
        let now = counted() - before;
        if now >= 20.0 { Ok(()) } else { Err(now) }
    })
    .unwrap();
}

fn preflight(shop: &Shop, node: &str) -> String {
    let program = env!("CARGO_BIN_EXE_mesh-controller");
    let config = shop.cluster.kube().admin_kubeconfig();
    let args = [program, "preflight", "--namespace", NAMESPACE, "--kubeconfig", config.to_str().unwrap()];
    shop.cluster.place(node).unwrap().exec(&args).unwrap().stdout
}

fn manifests(node: &str, upstream: &str) -> Value {
    let meta = json!({ "name": "node-local-dns", "namespace": "kube-system", "labels": { "k8s-app": "node-local-dns" } });
    // What preflight reads; the program has it as an argument.
    let corefile = format!("cluster.local:53 {{\n  bind {CACHE}\n  cache 5\n  forward . {upstream}\n}}\n");
    let args = ["forward".to_owned(), format!("--bind={CACHE}:53"), format!("--to={upstream}:53")];
    let mut client = deployment("client", "v1", node);
    let labels = json!({ "app": "cached", "version": "v1" });
    client["metadata"] = json!({ "name": "cached-v1", "labels": labels });
    client["spec"]["selector"]["matchLabels"] = labels.clone();
    client["spec"]["template"]["metadata"]["labels"] = labels;
    client["spec"]["template"]["spec"]["dnsPolicy"] = "None".into();
    client["spec"]["template"]["spec"]["dnsConfig"] = json!({ "nameservers": [CACHE],
        "searches": ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"], "options": [{ "name": "ndots", "value": "5" }] });
    let select = json!({ "k8s-app": "node-local-dns" });
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": { "Corefile": corefile } },
        { "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": meta, "spec": {
            "selector": { "matchLabels": select },
            "template": { "metadata": { "labels": select }, "spec": {
                "hostNetwork": true, "dnsPolicy": "Default", "nodeSelector": { "kubernetes.io/hostname": node },
                "containers": [{ "name": "node-cache", "image": "selvage/echo:test", "imagePullPolicy": "IfNotPresent",
                    "args": args, "securityContext": { "runAsUser": 0 } }],
            } },
        } },
        client,
    ] })
}
