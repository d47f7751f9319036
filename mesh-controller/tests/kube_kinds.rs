//! The mesh as a user of Kubernetes meets it: one real control plane, a controller with its webhook, proxies on two edge
//! nodes, one of them a gateway. Admission and status, Gateway API's examples, then every kind that is read.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "kube/admission.rs"]
mod admission;
#[path = "kube/kinds.rs"]
mod kinds;
#[path = "kube/load.rs"]
mod load;
#[allow(dead_code, reason = "each test uses its part")]
#[path = "kube/manifests.rs"]
mod manifests;
#[allow(dead_code, reason = "each test uses its part")]
#[path = "kube/mesh.rs"]
mod mesh;
#[path = "kube/routes.rs"]
mod routes;
#[path = "../../mesh-proxy/tests/metrics/scenarios.rs"]
mod scenarios;

use std::time::Instant;

use mesh::Mesh;
use serde_json::json;

#[test]
fn every_kind_is_judged_honoured_told_of_and_reverted() {
    let start = Instant::now();
    let said = |what: &str| println!("{what}: {:.0} s after the start", start.elapsed().as_secs_f64());
    let rbac = manifests::root().join("mesh-controller/tests/kube/gateway-api-rbac.yaml");
    let mut mesh = Mesh::start_with(&[rbac], |node| {
        let labels = json!({ "gateway.networking.k8s.io/gateway-name": "front", "istio": "edge" });
        (node == "edge-b").then(|| json!({ "labels": labels, "namespace": "default" }))
    });
    said("the mesh is up");
    admission::judges_and_tells(&mut mesh);
    said("admission and status");
    routes::steer_the_bookshop(&mesh);
    said("examples of Gateway API");
    kinds::go_through(&mut mesh);
    said("every kind");
    load::fails_no_request(&mesh);
    said("changes under load");
}
