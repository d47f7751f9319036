//! The chart on a real cluster, from `helm install` to `helm uninstall`: pods are real containers started by kubelets. No call
//! may fail while the mesh is upgraded, rolled back, or a node is drained, and nothing may be left at the end.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "chart/aged.rs"]
mod aged;
#[path = "chart/dns_cache.rs"]
mod dns_cache;
#[path = "chart/documented.rs"]
mod documented;
#[path = "chart/entrances.rs"]
mod entrances;
#[path = "chart/ipvs.rs"]
mod ipvs;
#[path = "chart/kubeedge.rs"]
mod kubeedge;
#[allow(dead_code, reason = "each test uses its part")]
#[path = "kube/manifests.rs"]
mod manifests;
#[allow(dead_code, reason = "each test uses its part")]
#[path = "kube/mesh.rs"]
mod mesh;
#[path = "chart/meshctl.rs"]
mod meshctl;
#[path = "chart/previous.rs"]
mod previous;
#[path = "chart/prometheus.rs"]
mod prometheus;
#[allow(dead_code, reason = "each test uses its part")]
#[path = "chart/shop.rs"]
mod shop;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use mesh::Report;
use mesh_testkit::kube::eventually;
use serde_json::json;
use shop::{NAMESPACE, NODES, Shop, root};

const ALL_V1: &str = "virtual-service-all-v1.yaml";
const DESTINATION_RULES: &str = "destination-rule-all.yaml";

#[test]
fn the_chart_from_install_to_uninstall() {
    let Some(mut shop) = Shop::up("chart") else { return };
    let tags = Tags::of(&shop);
    let (objects, kernels) = (shop.objects(), shop.kernels());
    let chart = root().join("charts/mesh");

    let took = shop.helm("install", &previous::chart(), &json!({ "image": { "tag": tags.old } })).unwrap();
    println!("helm install --wait: {:.1} s", took.as_secs_f64());
    shop.open();
    crosses_nodes_through_the_mesh(&shop);
    rules_steer(&shop);

    let mut next = json!({ "image": { "tag": tags.new } });
    shop::merge(&mut next, &entrances::values());
    let took = shop.without_failure("helm upgrade", || shop.helm("upgrade", &chart, &next).unwrap());
    println!("helm upgrade --wait: {:.1} s", took.as_secs_f64());
    all_run_image(&shop, tags.new);
    definitions_are_new(&shop, &chart);
    entrances::work(&shop);
    dns_cache::is_borne(&shop);
    if let Some(prometheus) = prometheus::Prometheus::start(&shop) {
        prometheus.sees_the_mesh();
    }
    meshctl::meshctl_commands(&shop);
    shop.without_failure("controller roll", || controller_rolls(&shop));
    shop.without_failure("node drain", || node_drains(&shop));
    let took = shop.without_failure("helm rollback", || rolls_back(&shop, "1"));
    println!("helm rollback --wait: {:.1} s", took.as_secs_f64());
    all_run_image(&shop, tags.old);
    if tags.old == previous::TAG {
        shop.without_failure("helm rollback to this release", || rolls_back(&shop, "2"));
        all_run_image(&shop, tags.new);
    }
    loses_its_power(&mut shop);
    ipvs::is_borne(&shop, || aged::a_former_ca(&shop, "edge-a"));
    steers_after_all_that(&shop);
    a_second_release_is_refused(&shop, &chart);

    uninstalls(&shop);
    close(&shop);
    documented::install_to_canary(&shop);
    close(&shop);
    meshctl::installs_and_uninstalls(&shop);
    shop.cluster.kubectl(&["delete", "namespace", NAMESPACE, "--timeout=60s"]).unwrap();
    let left: Vec<String> = shop.objects().difference(&objects).cloned().collect();
    let left: Vec<&String> = left.iter().filter(|o| !is_kept(o)).collect();
    assert!(left.is_empty(), "objects that are left: {left:#?}");
    for (node, before) in &kernels {
        let after = shop.cluster.kernel_state(node).unwrap();
        let left: Vec<&String> = after.difference(before).collect();
        assert!(left.is_empty(), "in the kernel of {node} is left: {left:#?}");
        let lost: Vec<&String> = before.difference(&after).collect();
        assert!(lost.is_empty(), "from the kernel of {node} is lost: {lost:#?}");
    }
    println!("uninstalled: no object, rule, interface or table is left");
}

/// An upgrade reaches the definitions of kinds, which Helm leaves alone where they are in a chart's `crds/`.
fn definitions_are_new(shop: &Shop, chart: &Path) {
    let version = std::fs::read_to_string(chart.join("Chart.yaml")).unwrap();
    let version = version.lines().find_map(|l| l.strip_prefix("version: ")).unwrap().to_owned();
    let path = r#"jsonpath={range .items[*]}{.metadata.name} {.metadata.labels.helm\.sh/chart}{"\n"}{end}"#;
    let crds = ["get", "crds", "-l", "app.kubernetes.io/part-of=selvage", "-o", path];
    let crds = shop.cluster.kubectl(&crds).unwrap();
    assert!(crds.lines().count() > 10, "{crds}");
    assert!(crds.lines().all(|l| l.ends_with(&format!(" mesh-{version}"))), "{crds}");
}

fn crosses_nodes_through_the_mesh(shop: &Shop) {
    let start = Instant::now();
    eventually(Duration::from_secs(30), Duration::from_millis(200), || {
        let report = shop.call("reviews", 30);
        if report.failed == 0 && report.versions == ["v1", "v2", "v3"] { Ok(()) } else { Err(report) }
    })
    .unwrap();
    println!("bookshop: all versions answer {:.1} s after its pods are ready", start.elapsed().as_secs_f64());
    let requests = || shop.metric("cloud", "istio_requests_total", "destination_service_name=\"ratings\"");
    let before = requests();
    let report = shop.call("ratings", 20);
    assert_eq!((report.failed, &report.nodes[..]), (0, &["edge-a".to_owned()][..]), "{report:#?}");
    // Workers hand their counts over from time to time.
    eventually(Duration::from_secs(10), Duration::from_millis(200), || {
        let counted = requests() - before;
        if counted >= 20.0 { Ok(()) } else { Err(counted) }
    })
    .unwrap();
    let streams = shop.metric("edge-a", "selvage_tunnel_accepted_total", "");
    assert!(streams > 0.0, "calls reached edge-a, but not through the tunnel");
    let page = shop.call("productpage", 1).body();
    assert_eq!(
        (&page["details"]["status"], &page["reviews"]["status"]),
        (&json!(200), &json!(200)),
        "{page:#}"
    );
}

fn only(report: Report, versions: &[&str]) -> Result<(), Report> {
    if report.failed == 0 && report.versions == versions { Ok(()) } else { Err(report) }
}

fn rules(shop: &Shop, verb: &str, file: &str) {
    let path = root().join("examples/bookinfo/networking").join(file);
    shop.cluster.kubectl(&[verb, "-f", path.to_str().unwrap()]).unwrap();
}

fn rules_steer(shop: &Shop) {
    rules(shop, "apply", DESTINATION_RULES);
    rules(shop, "apply", ALL_V1);
    let start = Instant::now();
    eventually(Duration::from_secs(20), Duration::ZERO, || only(shop.call("reviews", 20), &["v1"])).unwrap();
    println!("all to v1: in effect after {:.1} s", start.elapsed().as_secs_f64());
    only(shop.call("reviews", 100), &["v1"]).unwrap();
    rules(shop, "delete", ALL_V1);
    eventually(Duration::from_secs(20), Duration::ZERO, || {
        only(shop.call("reviews", 40), &["v1", "v2", "v3"])
    })
    .unwrap();
}

/// Tags of the images of the release before, and of this one.
struct Tags {
    old: &'static str,
    new: &'static str,
}

impl Tags {
    /// With the release's own programs where they can be had; else today's, under another tag: another version, as far as
    /// Kubernetes can tell.
    fn of(shop: &Shop) -> Self {
        match previous::images() {
            Ok(images) => {
                images.iter().for_each(|image| shop.cluster.import(image).unwrap());
                Self { old: previous::TAG, new: "test" }
            }
            Err(why) => {
                println!("skipped: programs of the release before this one: {why}");
                for program in ["mesh-proxy", "mesh-controller"] {
                    let image = format!("selvage/{program}");
                    shop.cluster.tag(&format!("{image}:test"), &format!("{image}:next")).unwrap();
                }
                Self { old: "test", new: "next" }
            }
        }
    }
}

fn all_run_image(shop: &Shop, tag: &str) {
    let path = r#"jsonpath={range .items[*]}{.metadata.name} {.spec.containers[0].image} {.metadata.deletionTimestamp}{"\n"}{end}"#;
    let pods = ["get", "pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/part-of=selvage", "-o", path];
    let pods = shop.cluster.kubectl(&pods).unwrap();
    let staying: Vec<&str> = pods.lines().map(str::trim).filter(|l| l.split(' ').count() == 2).collect();
    assert!(staying.len() >= 2 + NODES.len(), "{pods}");
    assert!(staying.iter().all(|l| l.ends_with(&format!(":{tag}"))), "{pods}");
}

fn controller_rolls(shop: &Shop) {
    let kubectl = |args: &[&str]| shop.cluster.kubectl(args).unwrap();
    kubectl(&["rollout", "restart", "deployment/mesh-controller", "-n", NAMESPACE]);
    kubectl(&["rollout", "status", "deployment/mesh-controller", "-n", NAMESPACE, "--timeout=120s"]);
}

/// Everything but the proxy leaves edge-b; calls go to the version that is left.
fn node_drains(shop: &Shop) {
    let kubectl = |args: &[&str]| shop.cluster.kubectl(args).unwrap();
    kubectl(&["drain", "edge-b", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"]);
    only(shop.call("reviews", 40), &["v1"]).unwrap();
    kubectl(&["uncordon", "edge-b"]);
    for version in ["v2", "v3"] {
        kubectl(&["rollout", "status", &format!("deployment/reviews-{version}"), "--timeout=90s"]);
    }
}

fn rolls_back(shop: &Shop, revision: &str) -> Duration {
    let start = Instant::now();
    let args = ["rollback", "mesh", revision, "-n", NAMESPACE, "--wait", "--timeout", "400s"];
    shop.cluster.helm(&args).unwrap();
    start.elapsed()
}

/// A node goes without a word: calls find what is left, long before Kubernetes notices. With power, and a certificate that has
/// ended while it was away, it is one of the mesh again.
fn loses_its_power(shop: &mut Shop) {
    shop.cluster.power_off("edge-b").unwrap();
    let start = Instant::now();
    eventually(Duration::from_secs(30), Duration::ZERO, || only(shop.call("reviews", 20), &["v1"])).unwrap();
    println!("power cut: only v1 answers {:.1} s later, no call fails", start.elapsed().as_secs_f64());
    aged::was_away_for_days(shop, "edge-b");
    shop.cluster.boot("edge-b").unwrap();
    shop.cluster.wait_ready("edge-b").unwrap();
    eventually(Duration::from_secs(120), Duration::from_millis(500), || {
        only(shop.call("reviews", 40), &["v1", "v2", "v3"])
    })
    .unwrap();
    aged::has_joined_anew(shop, "edge-b");
    println!("power cut: all versions answer {:.1} s after it", start.elapsed().as_secs_f64());
}

fn steers_after_all_that(shop: &Shop) {
    rules(shop, "apply", ALL_V1);
    eventually(Duration::from_secs(20), Duration::ZERO, || only(shop.call("reviews", 20), &["v1"])).unwrap();
    rules(shop, "delete", ALL_V1);
    rules(shop, "delete", DESTINATION_RULES);
}

fn a_second_release_is_refused(shop: &Shop, chart: &Path) {
    let chart = chart.display().to_string();
    for (name, namespace) in [("other", NAMESPACE), ("mesh", "elsewhere")] {
        let args =
            ["install", name, &chart, "-n", namespace, "--create-namespace", "--set", "image.tag=test"];
        let error = shop.cluster.helm(&args).unwrap_err().to_string();
        assert!(error.contains("has a mesh already") && error.contains(NAMESPACE), "{error}");
        println!("second release: {}", error.lines().last().unwrap_or_default());
    }
    only(shop.call("ratings", 10), &["v1"]).unwrap();
    shop.cluster.kubectl(&["delete", "namespace", "elsewhere", "--ignore-not-found"]).unwrap();
}

fn uninstalls(shop: &Shop) {
    let start = Instant::now();
    shop.cluster.helm(&["uninstall", "mesh", "-n", NAMESPACE, "--wait", "--timeout", "120s"]).unwrap();
    shop.wait_until_gone();
    println!("helm uninstall: {:.1} s until the last pod is gone", start.elapsed().as_secs_f64());
    // The services are those of a plain cluster again.
    eventually(Duration::from_secs(20), Duration::from_millis(200), || {
        let report = shop.call("reviews", 20);
        if report.failed == 0 { Ok(()) } else { Err(report) }
    })
    .unwrap();
}

/// Removes what the test itself made.
fn close(shop: &Shop) {
    shop.wait_until_gone();
    let services = root().join("examples/bookinfo/bookinfo.yaml");
    shop.cluster.kubectl(&["delete", "-f", services.to_str().unwrap()]).unwrap();
    shop.cluster.kubectl(&["delete", "deployments", "--all", "--timeout=60s"]).unwrap();
    shop.cluster.kubectl(&["delete", "namespace", NAMESPACE, "--timeout=60s"]).unwrap();
    eventually(Duration::from_secs(60), Duration::from_millis(300), || {
        let pods = shop.cluster.kubectl(&["get", "pods", "-o", "name"]).unwrap();
        if pods.trim().is_empty() { Ok(()) } else { Err(pods) }
    })
    .unwrap();
}

/// Definitions stay when a release is removed, or all rules would go with them; the chart says so.
fn is_kept(object: &str) -> bool {
    // An APIService is what the API server makes of a definition.
    object.starts_with("CustomResourceDefinition ") || object.starts_with("APIService ")
}
