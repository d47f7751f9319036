//! The control plane of the tests is a real one: EndpointSlices come from Kubernetes' own controller, rights are enforced,
//! and the state survives the API server's death.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::time::{Duration, Instant};

use mesh_testkit::kube::{KubeCluster, eventually};

#[test]
fn the_control_plane_makes_endpoint_slices_and_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let mut cluster = KubeCluster::start(dir.path()).unwrap();
    println!("control plane ready in {:.1} s", start.elapsed().as_secs_f64());
    let version = cluster.kubectl(&["version", "-o", "json"]).unwrap();
    let version: serde_json::Value = serde_json::from_str(&version).unwrap();
    for side in ["clientVersion", "serverVersion"] {
        assert!(version[side]["gitVersion"].as_str().unwrap().starts_with("v1.3"), "{version}");
    }
    cluster
        .apply(
            r#"{"apiVersion":"v1","kind":"List","items":[
            {"apiVersion":"v1","kind":"Node","metadata":{"name":"a"}},
            {"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"selector":{"app":"web"},"ports":[{"port":80,"targetPort":8080}]}},
            {"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","labels":{"app":"web"}},"spec":{"nodeName":"a","containers":[{"name":"web","image":"web"}]}}]}"#,
        )
        .unwrap();
    cluster.set_pod_ready("default", "web", [10, 1, 0, 5].into(), [192, 0, 2, 1].into()).unwrap();
    let slices = |cluster: &KubeCluster| cluster.kubectl(&["get", "endpointslices", "-o", "json"]);
    eventually(Duration::from_secs(10), Duration::from_millis(100), || {
        let slices = slices(&cluster).unwrap();
        if slices.contains("10.1.0.5") && slices.contains("8080") { Ok(()) } else { Err(slices) }
    })
    .unwrap();

    cluster.kill_apiserver();
    assert!(slices(&cluster).is_err(), "the API server is still there");
    cluster.start_apiserver().unwrap();
    assert!(slices(&cluster).unwrap().contains("10.1.0.5"), "the stored state is gone");

    cluster.kubectl(&["create", "serviceaccount", "limited"]).unwrap();
    let limited = cluster.service_account_kubeconfig("default", "limited").unwrap();
    let refused = cluster.kubectl_as(&limited, &["get", "pods"], "").unwrap_err().to_string();
    assert!(refused.contains("system:serviceaccount:default:limited"), "{refused}");
}
