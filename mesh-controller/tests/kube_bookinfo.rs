//! The main job on a real Kubernetes: rules that a user applies with kubectl steer calls between pods on two edge nodes,
//! by DNS name, and go on doing so without the API server. Rules are Istio's own samples, unmodified, when
//! `CONFORMANCE_VECTORS` names a folder that has them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[allow(dead_code, reason = "each test uses its part")]
#[path = "kube/manifests.rs"]
mod manifests;
#[allow(dead_code, reason = "each test uses its part")]
#[path = "kube/mesh.rs"]
mod mesh;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use mesh::{Mesh, Report};
use mesh_testkit::kube::eventually;

/// From the end of `kubectl apply` until every call behaves as the rule says.
const EFFECT: Duration = Duration::from_secs(2);

const DESTINATION_RULES: &str = "destination-rule-all.yaml";
const ALL_V1: &str = "virtual-service-all-v1.yaml";
const HALF_V3: &str = "virtual-service-reviews-50-v3.yaml";
const TEST_V2: &str = "virtual-service-reviews-test-v2.yaml";
const DELAY: &str = "virtual-service-ratings-test-delay.yaml";
const ABORT: &str = "virtual-service-ratings-test-abort.yaml";

#[test]
fn istio_rules_steer_the_bookshop() {
    let start = Instant::now();
    let mut mesh = Mesh::start();
    println!("the world is up in {:.1} s", start.elapsed().as_secs_f64());
    let (rules, which) = manifests::rules(&[DESTINATION_RULES, ALL_V1, HALF_V3, TEST_V2, DELAY, ABORT]);
    println!("rules: {which}, unmodified");

    crosses_nodes(&mesh);
    routes(&mesh, &rules);
    faults(&mesh, &rules);
    reports_an_invalid_rule(&mesh, &rules);
    survives_the_api_server(&mut mesh, &rules);
    survives_the_controller(&mut mesh, &rules);
    deletes_revert(&mesh, &rules);
    has_no_more_rights_than_it_needs(&mesh);
}

/// Applies a file, waits until `check` holds, and says how long that took.
fn apply(mesh: &Mesh, rules: &Path, file: &str, check: impl FnMut() -> Result<(), Report>) {
    let path = rules.join(file);
    let start = Instant::now();
    mesh.cluster.kubectl(&["apply", "-f", path.to_str().unwrap()]).unwrap();
    took_effect(&format!("apply {file}"), start, check);
}

fn delete(mesh: &Mesh, rules: &Path, file: &str, check: impl FnMut() -> Result<(), Report>) {
    let path = rules.join(file);
    let start = Instant::now();
    mesh.cluster.kubectl(&["delete", "--ignore-not-found", "-f", path.to_str().unwrap()]).unwrap();
    took_effect(&format!("delete {file}"), start, check);
}

fn took_effect(what: &str, start: Instant, check: impl FnMut() -> Result<(), Report>) {
    let kubectl = start.elapsed();
    let effect = eventually(Duration::from_secs(10), Duration::ZERO, check)
        .unwrap_or_else(|(waited, report)| panic!("{what}: not in effect after {waited:?}: {report:#?}"));
    println!("{what}: in effect after {:.0} ms (kubectl took {:.0} ms)", ms(effect), ms(kubectl));
    assert!(effect < EFFECT, "{what} took {effect:?}");
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Every one of some calls succeeds and is answered by these versions, each of them.
fn only(report: Report, versions: &[&str]) -> Result<(), Report> {
    if report.failed == 0 && report.versions == versions { Ok(()) } else { Err(report) }
}

fn crosses_nodes(mesh: &Mesh) {
    let report = mesh.call("ratings", None, 5);
    assert_eq!((report.failed, &report.nodes[..]), (0, &["edge-b".to_owned()][..]), "{report:#?}");
    let page = mesh.call("productpage", None, 1);
    let body = page.body();
    assert_eq!(body["details"]["status"], 200, "{body:#}");
    assert_eq!(body["reviews"]["status"], 200, "{body:#}");
}

fn routes(mesh: &Mesh, rules: &Path) {
    let all = ["v1", "v2", "v3"];
    apply(mesh, rules, DESTINATION_RULES, || only(mesh.call("reviews", None, 40), &all));
    apply(mesh, rules, ALL_V1, || only(mesh.call("reviews", None, 20), &["v1"]));
    only(mesh.call("reviews", None, 200), &["v1"]).unwrap();

    apply(mesh, rules, HALF_V3, || only(mesh.call("reviews", None, 20), &["v1", "v3"]));
    let split = mesh.call("reviews", None, 400);
    println!("50/50: {:.1} % of {} calls went to v3", 100.0 * split.share("v3"), split.sent());
    // Six standard deviations on either side.
    assert!(
        (split.share("v3") - 0.5).abs() < 0.15 && split.failed == 0 && split.share("v2") == 0.0,
        "{split:#?}"
    );

    apply(mesh, rules, TEST_V2, || {
        only(mesh.call("reviews", Some("jason"), 10), &["v2"])?;
        only(mesh.call("reviews", None, 10), &["v1"])
    });
    // The header travels: the page's own call to reviews is steered by the user of the caller.
    let page = mesh.call("productpage", Some("jason"), 1).body();
    assert_eq!(page["reviews"]["body"]["version"], "v2", "{page:#}");
    let page = mesh.call("productpage", None, 1).body();
    assert_eq!(page["reviews"]["body"]["version"], "v1", "{page:#}");
}

fn faults(mesh: &Mesh, rules: &Path) {
    let short = Duration::from_millis(700);
    apply(mesh, rules, DELAY, || {
        let delayed = mesh.call_within("ratings", Some("jason"), 1, short);
        if delayed.failed == 1 { Ok(()) } else { Err(delayed) }
    });
    let delayed = mesh.call("ratings", Some("jason"), 1);
    assert!(delayed.failed == 0 && (7000.0..7900.0).contains(&delayed.p50_ms), "{delayed:#?}");
    let others = mesh.call_within("ratings", None, 20, short);
    assert!(others.failed == 0 && others.p50_ms < 500.0, "{others:#?}");

    apply(mesh, rules, ABORT, || {
        let aborted = mesh.call_within("ratings", Some("jason"), 5, short);
        if aborted.statuses == [500] { Ok(()) } else { Err(aborted) }
    });
    let others = mesh.call("ratings", None, 20);
    assert_eq!((others.failed, &others.statuses[..]), (0, &[200][..]), "{others:#?}");
}

/// A rule that the schema lets through and that cannot work: named, and nothing else is disturbed.
fn reports_an_invalid_rule(mesh: &Mesh, rules: &Path) {
    let findings = || {
        metric(
            &mesh.get("cloud", "http://127.0.0.1:15014/metrics"),
            "selvage_controller_findings{level=\"error\"}",
        )
    };
    let before = findings();
    mesh.cluster
        .apply(
            r#"{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"broken"},
            "spec":{"hosts":["details"],"http":[{"match":[{"uri":{"regex":"("}}],"route":[{"destination":{"host":"details"}}]}]}}"#,
        )
        .unwrap();
    eventually(Duration::from_secs(5), Duration::from_millis(50), || {
        if findings() > before { Ok(()) } else { Err(before) }
    })
    .unwrap();
    let log = mesh.controller.as_ref().unwrap().log();
    assert!(log.contains("default/broken"), "the controller's log does not name the object:\n{log}");
    only(mesh.call("details", None, 10), &["v1"]).unwrap();
    only(mesh.call("reviews", Some("jason"), 10), &["v2"]).unwrap();
    mesh.cluster.kubectl(&["delete", "virtualservice", "broken"]).unwrap();
    eventually(Duration::from_secs(5), Duration::from_millis(50), || {
        if findings() == before { Ok(()) } else { Err(findings()) }
    })
    .unwrap();
    let _ = rules;
}

fn metric(text: &str, name: &str) -> f64 {
    text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0.0)
}

/// With the API server dead, calls go on; when it is back, changes come through again.
fn survives_the_api_server(mesh: &mut Mesh, rules: &Path) {
    let mut load = mesh.load("reviews", 50, Duration::from_secs(8));
    mesh.cluster.kill_apiserver();
    std::thread::sleep(Duration::from_secs(2)); // the time that the server is away
    let controller = mesh.controller.as_mut().unwrap();
    assert!(controller.running(), "the controller ended without its API server:\n{}", controller.tail());
    only(mesh.call("reviews", None, 20), &["v1"]).unwrap();
    mesh.cluster.start_apiserver().unwrap();
    let back = Instant::now();
    let path = rules.join(HALF_V3);
    mesh.cluster.kubectl(&["apply", "-f", path.to_str().unwrap()]).unwrap();
    eventually(Duration::from_secs(60), Duration::from_millis(50), || {
        only(mesh.call("reviews", None, 20), &["v1", "v3"])
    })
    .unwrap();
    println!("API server back: a new rule is in effect after {:.0} ms", ms(back.elapsed()));
    load.wait(Duration::from_secs(20));
    let report = Report::parse(&load.log()).unwrap_or_else(|| panic!("load: {}", load.log()));
    println!("API server killed and restarted: {} calls, {} failed", report.sent(), report.failed);
    assert!(report.failed == 0 && report.sent() > 300, "{report:#?}");
}

/// With the controller killed, calls go on; the next one finds its proxies again and steers them.
fn survives_the_controller(mesh: &mut Mesh, rules: &Path) {
    let mut load = mesh.load("reviews", 50, Duration::from_secs(6));
    mesh.controller.take().unwrap().kill();
    let away = Instant::now();
    only(mesh.call("reviews", None, 40), &["v1", "v3"]).unwrap();
    mesh.start_controller();
    println!("the controller was away for {:.0} ms", ms(away.elapsed()));
    let back = Instant::now();
    let path = rules.join(TEST_V2);
    mesh.cluster.kubectl(&["apply", "-f", path.to_str().unwrap()]).unwrap();
    eventually(Duration::from_secs(60), Duration::from_millis(50), || {
        only(mesh.call("reviews", None, 20), &["v1"])
    })
    .unwrap();
    println!("controller back: a new rule is in effect after {:.0} ms", ms(back.elapsed()));
    load.wait(Duration::from_secs(20));
    let report = Report::parse(&load.log()).unwrap_or_else(|| panic!("load: {}", load.log()));
    println!("controller killed and restarted: {} calls, {} failed", report.sent(), report.failed);
    assert!(report.failed == 0 && report.sent() > 200, "{report:#?}");
}

fn deletes_revert(mesh: &Mesh, rules: &Path) {
    delete(mesh, rules, TEST_V2, || only(mesh.call("reviews", None, 40), &["v1", "v2", "v3"]));
    delete(mesh, rules, ABORT, || only(mesh.call("ratings", Some("jason"), 10), &["v1"]));
    delete(mesh, rules, ALL_V1, || only(mesh.call("details", None, 5), &["v1"]));
    delete(mesh, rules, DESTINATION_RULES, || only(mesh.call("reviews", None, 40), &["v1", "v2", "v3"]));
}

/// The account that all of this ran with may read what the mesh needs, and nothing else.
fn has_no_more_rights_than_it_needs(mesh: &Mesh) {
    let account = mesh.cluster.service_account_kubeconfig("selvage-system", "mesh-controller").unwrap();
    for refused in [["get", "serviceaccounts"], ["get", "configmaps"]] {
        let error = mesh.cluster.kubectl_as(&account, &refused, "").unwrap_err().to_string();
        assert!(error.contains("forbidden"), "{error}");
    }
    mesh.cluster
        .kubectl_as(&account, &["get", "services,pods,nodes,endpointslices,virtualservices"], "")
        .unwrap();
}
