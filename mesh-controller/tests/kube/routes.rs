//! Routes of Gateway API that a user applies steer calls between pods on two edge nodes and from outside, and their
//! status says so. The CRDs come after the controller has started, which must not mind.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use mesh_testkit::kube::eventually;
use serde_json::{Value, json};

use crate::{
    manifests,
    mesh::{Mesh, Report},
};

/// Generous: the machine that runs this is slow and busy.
const LIMIT: Duration = Duration::from_secs(30);

/// The folder with the CRDs, in the module cache.
fn crds() -> PathBuf {
    let script = manifests::root().join("mesh-proxy/testkit/gateway-api/crds.sh");
    let output = Command::new(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().into()
}

fn example(name: &str) -> PathBuf {
    manifests::root().join("examples/gateway-api").join(name)
}

fn apply(mesh: &Mesh, file: &str) {
    mesh.cluster.kubectl(&["apply", "-f", example(file).to_str().unwrap()]).unwrap();
}

fn delete(mesh: &Mesh, file: &str) {
    mesh.cluster.kubectl(&["delete", "-f", example(file).to_str().unwrap()]).unwrap();
}

/// Waits until calls are answered so.
fn until(what: &str, check: impl FnMut() -> Result<(), Report>) {
    let start = Instant::now();
    eventually(LIMIT, Duration::ZERO, check)
        .unwrap_or_else(|(waited, report)| panic!("{what}: not after {waited:?}: {report:#?}"));
    println!("{what}: in effect after {:.0} ms", start.elapsed().as_secs_f64() * 1000.0);
}

fn only(report: Report, versions: &[&str]) -> Result<(), Report> {
    if report.failed == 0 && report.versions == versions { Ok(()) } else { Err(report) }
}

/// Status and reason of a condition.
fn condition(list: &Value, kind: &str) -> (String, String) {
    let of_kind = |c: &&Value| c["type"] == kind;
    let found = list.as_array().into_iter().flatten().find(of_kind).cloned().unwrap_or_default();
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

fn object(mesh: &Mesh, kind: &str, name: &str) -> Value {
    let resource = format!("{kind}.gateway.networking.k8s.io");
    let text = mesh.cluster.kubectl(&["get", &resource, name, "-o", "json"]).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Waits until the status of an object is so.
fn until_status(mesh: &Mesh, kind: &str, name: &str, check: impl Fn(&Value) -> bool) {
    eventually(LIMIT, Duration::from_millis(100), || {
        let object = object(mesh, kind, name);
        if check(&object["status"]) { Ok(()) } else { Err(object["status"].clone()) }
    })
    .unwrap_or_else(|(waited, status)| panic!("status of {kind} {name} after {waited:?}: {status:#}"));
}

/// Installs Gateway API, which the controller has run without, and goes through its examples.
pub(crate) fn steer_the_bookshop(mesh: &Mesh) {
    let crds = crds();
    mesh.cluster.kubectl(&["apply", "--server-side", "-f", crds.to_str().unwrap()]).unwrap();
    mesh.cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).unwrap();
    apply(mesh, "services.yaml");

    in_the_mesh(mesh);
    what_does_not_exist(mesh);
    grpc_beside_http(mesh);
    from_outside(mesh);

    delete(mesh, "mesh.yaml");
    until("delete mesh.yaml", || only(mesh.call("reviews", Some("jason"), 40), &["v1", "v2", "v3"]));
}

fn in_the_mesh(mesh: &Mesh) {
    apply(mesh, "mesh.yaml");
    until("apply mesh.yaml", || {
        only(mesh.call("reviews", Some("jason"), 10), &["v2"])?;
        only(mesh.call("reviews", None, 20), &["v1", "v3"])
    });
    let split = mesh.call("reviews", None, 400);
    // Six standard deviations on either side.
    assert!((split.share("v3") - 0.5).abs() < 0.15 && split.failed == 0, "{split:#?}");
    until_status(mesh, "httproutes", "reviews", |status| {
        let conditions = &status["parents"][0]["conditions"];
        condition(conditions, "Accepted") == ("True".into(), "Accepted".into())
            && condition(conditions, "ResolvedRefs") == ("True".into(), "ResolvedRefs".into())
            && status["parents"][0]["controllerName"] == "istio.io/gateway-controller"
    });
}

fn what_does_not_exist(mesh: &Mesh) {
    mesh.cluster
        .apply(
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"name":"details"},
            "spec":{"parentRefs":[{"group":"","kind":"Service","name":"details"}],
            "rules":[{"backendRefs":[{"name":"gone","port":9080}]}]}}"#,
        )
        .unwrap();
    until("a backend that does not exist", || {
        let report = mesh.call("details", None, 5);
        if report.statuses == [500] { Ok(()) } else { Err(report) }
    });
    until_status(mesh, "httproutes", "details", |status| {
        condition(&status["parents"][0]["conditions"], "ResolvedRefs")
            == ("False".into(), "BackendNotFound".into())
    });
    mesh.cluster.kubectl(&["delete", "httproutes", "details"]).unwrap();
    until("delete it", || only(mesh.call("details", None, 5), &["v1"]));
}

/// Both kinds of routes for one host are tried together: the longer prefix first.
fn grpc_beside_http(mesh: &Mesh) {
    apply(mesh, "grpc.yaml");
    until("apply grpc.yaml", || only(mesh.call("reviews", None, 10), &["v1"]));
    until_status(mesh, "grpcroutes", "reviews", |status| {
        condition(&status["parents"][0]["conditions"], "Accepted").0 == "True"
    });
    delete(mesh, "grpc.yaml");
    until("delete grpc.yaml", || only(mesh.call("reviews", None, 20), &["v1", "v3"]));
}

fn from_outside(mesh: &Mesh) {
    let address = mesh.world.node("edge-b").unwrap().address();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "front", "labels": { "gateway.networking.k8s.io/gateway-name": "front" } },
        "spec": { "nodeName": "edge-b", "hostNetwork": true,
            "containers": [{ "name": "gateway", "image": "selvage/mesh-proxy", "ports": [{ "containerPort": 8080 }] }] },
    });
    manifests::apply_list(&mesh.cluster, vec![pod]);
    mesh.cluster.set_pod_ready("default", "front", address, address).unwrap();
    apply(mesh, "gateway.yaml");
    until_status(mesh, "gatewayclasses", "istio", |s| condition(&s["conditions"], "Accepted").0 == "True");
    until_status(mesh, "gateways", "front", |status| {
        condition(&status["conditions"], "Programmed") == ("True".into(), "Programmed".into())
            && status["listeners"][0]["attachedRoutes"] == 1
            && status["addresses"][0]["value"] == "front-istio.default.svc.cluster.local"
    });
    let call = |host: &str, path: &str| {
        let url = format!("http://{address}:8080{path}");
        let header = format!("host: {host}");
        let arguments = ["curl", "-s", "-m", "5", "-w", "\n%{http_code}", "-H", &header, &url];
        let output = mesh.world.node("cloud").unwrap().exec(&arguments).unwrap().stdout;
        let (body, status) = output.rsplit_once('\n').unwrap_or(("", &output));
        (status.to_owned(), body.to_owned())
    };
    eventually(LIMIT, Duration::from_millis(50), || {
        let (status, body) = call("books.example.com", "/api/reviews/0");
        if status == "200" && body.contains("v3") { Ok(()) } else { Err((status, body)) }
    })
    .unwrap();
    assert_eq!(call("books.example.com", "/apis/reviews/0").0, "404", "a prefix ends at a slash");
    assert_eq!(call("other.example.com", "/api/reviews/0").0, "404");
}
