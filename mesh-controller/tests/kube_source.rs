//! Source `kube` against a real API server: what is stored there is compiled, changes come through one by one, and its
//! absence, missing CRDs and missing rights are said and survived.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[allow(dead_code, reason = "each test uses its part")]
#[path = "kube/manifests.rs"]
mod manifests;

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use manifests::{Pod, apply_bookshop, install_crds};
use mesh_testkit::kube::{Daemon, KubeCluster, Wrap, eventually};
use serde_json::Value;

const REVIEWS: &str = "reviews.default.svc.cluster.local";

/// A running mesh-controller.
struct Controller {
    admin: SocketAddr,
    _process: Daemon,
}

impl Controller {
    fn start(dir: &Path, kubeconfig: &Path) -> Self {
        let [proxies, metrics, admin, webhook] = free_addresses();
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-controller"));
        command
            .args(["--source", "kube", "--kubeconfig"])
            .arg(kubeconfig)
            .arg("--state-dir")
            .arg(dir.join("state"));
        command.arg("--listen").arg(proxies.to_string()).arg("--metrics-listen").arg(metrics.to_string());
        command.arg("--admin-listen").arg(admin.to_string()).arg("--webhook-listen").arg(webhook.to_string());
        let process =
            Daemon::spawn("mesh-controller", &Wrap::none(), command, &dir.join("mesh-controller.log"))
                .unwrap();
        Self { admin, _process: process }
    }

    fn get(&self, path: &str) -> Value {
        let text = http_get(self.admin, path).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    fn state(&self) -> Value {
        self.get("/state")
    }

    /// Version of a compiled resource.
    fn version(&self, kind: &str, name: &str) -> Option<String> {
        self.get("/resources")[kind][name].as_str().map(str::to_owned)
    }

    /// Waits until `check` holds for the state; returns how long that took.
    fn until(&self, what: &str, check: impl Fn(&Value) -> bool) -> Duration {
        let waited = eventually(Duration::from_secs(30), Duration::from_millis(20), || {
            let state = self.state();
            if check(&state) { Ok(()) } else { Err(state) }
        });
        waited.unwrap_or_else(|(waited, state)| panic!("{what}: not after {waited:?}: {state:#}"))
    }

    /// Waits until a resource has another version than `before`.
    fn until_changed(&self, kind: &str, name: &str, before: &Option<String>) -> Duration {
        self.until(&format!("{kind} {name} changes"), |_| self.version(kind, name) != *before)
    }
}

fn free_addresses<const N: usize>() -> [SocketAddr; N] {
    let held: Vec<TcpListener> =
        (0..N).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
    std::array::from_fn(|i| held[i].local_addr().unwrap())
}

fn http_get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return Ok(body.split("\r\n").skip(1).step_by(2).collect());
    }
    Ok(body.to_owned())
}

fn pods() -> [Pod<'static>; 3] {
    let pod = |version: &'static str, node: &'static str, last: u8| Pod {
        app: "reviews",
        version,
        node,
        address: [10, 1, 0, last].into(),
        host: [192, 0, 2, last].into(),
    };
    [pod("v1", "edge-a", 11), pod("v2", "edge-b", 12), pod("v3", "edge-b", 13)]
}

#[test]
fn objects_of_a_real_api_server_are_compiled() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = KubeCluster::start(dir.path()).unwrap();
    let rbac = manifests::root().join("mesh-controller/tests/kube/rbac.yaml");
    cluster.kubectl(&["apply", "-f", rbac.to_str().unwrap()]).unwrap();
    let account = cluster.service_account_kubeconfig("selvage-system", "mesh-controller").unwrap();
    let controller = Controller::start(dir.path(), &account);

    // Without the CRDs: that is no fault, services work.
    controller.until("synced without CRDs", |s| s["synced"] == true);
    let waiting = controller.state()["source"]["waiting"].to_string();
    assert!(waiting.contains("VirtualService") && waiting.contains("DestinationRule"), "{waiting}");
    apply_bookshop(&cluster, &[("edge-a", "a"), ("edge-b", "b")], &pods());
    controller.until("reviews is compiled", |_| controller.version("endpoints", REVIEWS).is_some());
    install_crds(&cluster);
    // Those of Gateway API are not installed here.
    let of_istio = ["VirtualService", "DestinationRule", "Gateway", "ServiceEntry", "Sidecar", "Telemetry"];
    controller.until("the CRDs are seen", |s| {
        let waiting = s["source"]["waiting"].as_array();
        waiting.is_some_and(|all| all.iter().all(|kind| !of_istio.iter().any(|k| kind == k)))
    });

    a_rule_changes_its_host_only(&cluster, &controller);
    readiness_changes_endpoints(&cluster, &controller);
    an_invalid_rule_is_named(&cluster, &controller);
    the_server_may_go_and_come(&mut cluster, &controller);
}

fn a_rule_changes_its_host_only(cluster: &KubeCluster, controller: &Controller) {
    let (rules, _) = manifests::rules(&["virtual-service-reviews-50-v3.yaml"]);
    let before = controller.get("/resources");
    let path = rules.join("virtual-service-reviews-50-v3.yaml");
    cluster.kubectl(&["apply", "-f", path.to_str().unwrap()]).unwrap();
    let took = controller.until_changed("service", REVIEWS, &version_in(&before, REVIEWS));
    println!("a rule is compiled {:.0} ms after kubectl apply", took.as_secs_f64() * 1000.0);
    assert!(took < Duration::from_secs(1), "{took:?}");
    let after = controller.get("/resources");
    let changed: Vec<&String> = after["service"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, version)| before["service"][name.as_str()] != **version)
        .map(|(name, _)| name)
        .collect();
    assert_eq!(changed, [REVIEWS]);
    assert_eq!(before["endpoints"], after["endpoints"]);

    cluster.kubectl(&["delete", "-f", path.to_str().unwrap()]).unwrap();
    controller.until("delete reverts", |_| {
        version_in(&controller.get("/resources"), REVIEWS) == version_in(&before, REVIEWS)
    });
}

fn version_in(resources: &Value, service: &str) -> Option<String> {
    resources["service"][service].as_str().map(str::to_owned)
}

fn readiness_changes_endpoints(cluster: &KubeCluster, controller: &Controller) {
    let [pod, ..] = pods();
    let before = controller.version("endpoints", REVIEWS);
    let start = Instant::now();
    cluster.set_pod_status("default", &pod.name(), pod.address, pod.host, false).unwrap();
    controller.until_changed("endpoints", REVIEWS, &before);
    println!("a pod that is not ready is known after {:.0} ms", start.elapsed().as_secs_f64() * 1000.0);
    cluster.set_pod_ready("default", &pod.name(), pod.address, pod.host).unwrap();
    controller.until("ready again", |_| controller.version("endpoints", REVIEWS) == before);
}

fn an_invalid_rule_is_named(cluster: &KubeCluster, controller: &Controller) {
    let rule = |regex: &str| {
        format!(
            r#"{{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{{"name":"broken"}},
            "spec":{{"hosts":["reviews"],"http":[{{"match":[{{"uri":{{"regex":"{regex}"}}}}],"route":[{{"destination":{{"host":"reviews"}}}}]}}]}}}}"#
        )
    };
    let plain = controller.version("service", REVIEWS);
    cluster.apply(&rule("/good.*")).unwrap();
    controller.until_changed("service", REVIEWS, &plain);
    let good = controller.version("service", REVIEWS);
    cluster.apply(&rule("(")).unwrap();
    controller.until("the broken rule is named", |s| {
        let mut findings = s["findings"].as_array().into_iter().flatten();
        findings.any(|f| {
            f["level"] == "error"
                && f["object"]["name"] == "broken"
                && f["path"] == "spec.http[0].match[0].uri.regex"
        })
    });
    assert_eq!(controller.version("service", REVIEWS), good, "the last good rule must stay");
    cluster.kubectl(&["delete", "virtualservice", "broken"]).unwrap();
    controller.until("nothing is wrong any more", |s| s["findings"].as_array().is_some_and(Vec::is_empty));
}

fn the_server_may_go_and_come(cluster: &mut KubeCluster, controller: &Controller) {
    let before = controller.get("/resources");
    cluster.kill_apiserver();
    controller
        .until("the loss is said", |s| s["source"]["problems"].as_object().is_some_and(|p| !p.is_empty()));
    assert_eq!(controller.get("/resources"), before, "what is known stays");
    cluster.start_apiserver().unwrap();
    let back = Instant::now();
    cluster.kubectl(&["delete", "service", "ratings"]).unwrap();
    controller.until("a deletion comes through", |_| {
        controller.version("service", "ratings.default.svc.cluster.local").is_none()
    });
    println!("API server back: a change is known after {:.1} s", back.elapsed().as_secs_f64());
    controller.until("all is well again", |s| {
        s["source"]["problems"].as_object().is_some_and(serde_json::Map::is_empty)
    });
}

/// An account without rights: the controller says which kinds it may not read, and does not claim to be ready.
#[test]
fn missing_rights_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = KubeCluster::start(dir.path()).unwrap();
    cluster.kubectl(&["create", "serviceaccount", "nobody"]).unwrap();
    let account = cluster.service_account_kubeconfig("default", "nobody").unwrap();
    let controller = Controller::start(dir.path(), &account);
    controller.until("the refusal is said", |s| {
        let problems = s["source"]["problems"].to_string();
        ["Service", "EndpointSlice", "Pod"].iter().all(|k| problems.contains(k))
            && problems.contains("forbidden")
    });
    assert_eq!(controller.state()["synced"], false);
}
