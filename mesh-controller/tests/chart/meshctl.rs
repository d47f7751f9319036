//! What meshctl says of the mesh that the chart has installed: through the API server and the kubelets to the programs.

use std::{
    collections::BTreeMap,
    io::Read,
    process::{Command, Output},
    time::{Duration, Instant},
};

use mesh_testkit::{bins, kube::eventually};
use serde_json::{Value, json};

use crate::shop::{NAMESPACE, NODES, Shop};

const REVIEWS: &str = "reviews.default.svc.cluster.local";

struct Meshctl<'s> {
    shop: &'s Shop,
}

impl Meshctl<'_> {
    /// On the node where the API server is reached.
    fn output(&self, args: &[&str]) -> Output {
        self.output_in_all(&[args, &["-n", NAMESPACE]].concat())
    }

    fn output_in_all(&self, args: &[&str]) -> Output {
        let kube = self.shop.cluster.kube();
        let mut command = Command::new(bins::find("meshctl").unwrap());
        command.args(args).arg("--kubeconfig").arg(kube.admin_kubeconfig());
        command.env("HELM", kube.programs().join("helm")).env_remove("MESH_PROXY_ADMIN_URL");
        command.env("HOME", self.shop.cluster.world().folder("helm").unwrap());
        self.shop.cluster.place(NODES[0]).unwrap().wrap(&command, None).output().unwrap()
    }

    fn try_json(&self, args: &[&str]) -> Result<Value, String> {
        let output = self.output(&[args, &["-o", "json"]].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        let value = serde_json::from_str(&out).map_err(|e| format!("meshctl {args:?}: {e}: {out}{err}"))?;
        match output.status.code() {
            Some(0) => Ok(value),
            code => Err(format!("meshctl {args:?}: {code:?}: {value:#}{err}")),
        }
    }

    fn json(&self, args: &[&str]) -> Value {
        self.try_json(args).unwrap_or_else(|e| panic!("{e}"))
    }

    fn text(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "meshctl {args:?}: {text}{err}");
        text
    }
}

/// Every command that looks at a running mesh, once the chart is installed and the bookshop is open.
pub(crate) fn meshctl_commands(shop: &Shop) {
    let start = Instant::now();
    let meshctl = Meshctl { shop };
    is_well(&meshctl);
    everyone_is_synced(&meshctl);
    a_proxy_is_looked_into(&meshctl);
    a_proxy_afar_is_asked_and_changed(&meshctl);
    what_controllers_share(&meshctl);
    calls_are_counted(&meshctl);
    logs_come_from_everywhere(&meshctl);
    a_report_is_whole(&meshctl);
    println!("meshctl: all commands in {:.1} s", start.elapsed().as_secs_f64());
}

fn is_well(meshctl: &Meshctl<'_>) {
    let mut checks = Value::Null;
    // Right after an installation a proxy may still be on its way.
    eventually(Duration::from_secs(60), Duration::from_secs(1), || {
        meshctl.try_json(&["check"]).map(|found| checks = found)
    })
    .unwrap();
    for check in ["controllers", "synced", "proxies", "certificates", "webhook", "crds", "nodes", "versions"]
    {
        let found = checks.as_array().unwrap().iter().find(|c| c["check"] == check);
        assert_eq!(found.unwrap_or_else(|| panic!("{check}: {checks:#}"))["status"], "ok", "{checks:#}");
    }
}

fn everyone_is_synced(meshctl: &Meshctl<'_>) {
    let mut found = Value::Null;
    eventually(Duration::from_secs(30), Duration::from_millis(500), || {
        found = meshctl.try_json(&["status"])?;
        let all = found["proxies"].as_array().unwrap();
        // Nodes, and the pods of relay and gateway.
        let nodes = NODES.iter().all(|node| all.iter().any(|p| p["node"] == *node));
        let synced = all.iter().all(|p| p["sync"] == "synced");
        if nodes && synced { Ok(()) } else { Err(format!("{found:#}")) }
    })
    .unwrap();
    let controllers = found["controllers"].as_array().unwrap();
    assert_eq!(controllers.iter().filter(|c| c["leader"] == true).count(), 1, "{found:#}");
    let followed: u64 = controllers.iter().map(|c| c["proxies"].as_u64().unwrap()).sum();
    assert_eq!(followed, found["proxies"].as_array().unwrap().len() as u64, "{found:#}");
    let rows = meshctl.json(&["proxies"]);
    for node in NODES {
        let row = rows.as_array().unwrap().iter().find(|row| row["node"] == node);
        let row = row.unwrap_or_else(|| panic!("{node}: {rows:#}"));
        assert_eq!(
            (&row["node"], &row["ready"], &row["connected"]),
            (&json!(node), &json!(true), &json!(true)),
            "{rows:#}"
        );
        assert!(row["captured"].as_u64().unwrap() > 0, "{rows:#}");
    }
}

fn a_proxy_is_looked_into(meshctl: &Meshctl<'_>) {
    let services = meshctl.json(&["services", "--node", "edge-a", "--service", "reviews"]);
    assert_eq!((&services[0]["host"], &services[0]["ready"]), (&json!(REVIEWS), &json!(3)), "{services:#}");
    let routes = meshctl.text(&["routes", "--node", "edge-b", "--service", "reviews"]);
    assert!(routes.contains("to its own endpoints"), "{routes}");
    let endpoints =
        meshctl.json(&["endpoints", "--node", "edge-a", "--service", "reviews", "--port", "9080"]);
    let path_to = |node: &str| {
        let all = endpoints.as_array().unwrap().iter();
        let found = all.clone().find(|e| e["node"] == node && e["health"] == "ready");
        found.unwrap_or_else(|| panic!("{node}: {endpoints:#}"))["path"].clone()
    };
    assert_eq!(path_to("edge-a"), "local");
    assert!(!path_to("edge-b").as_str().unwrap().is_empty());
}

/// The admin page is on the loopback of another node: through the API server and its kubelet.
fn a_proxy_afar_is_asked_and_changed(meshctl: &Meshctl<'_>) {
    let paths = meshctl.json(&["paths", "--node", "cloud"]);
    let to_edge = paths.as_array().unwrap().iter().find(|p| p["peer"] == "edge-a");
    assert_eq!(to_edge.unwrap_or_else(|| panic!("{paths:#}"))["node"], "cloud", "{paths:#}");
    let status = meshctl.json(&["proxy", "status", "--node", "edge-b"]);
    assert_eq!(status["node"], "edge-b", "{status:#}");
    let checks = meshctl.json(&["doctor", "--node", "edge-a"]);
    for check in ["proxy", "capture", "controller", "clock", "certificate"] {
        let found = checks.as_array().unwrap().iter().find(|c| c["check"] == check);
        assert_eq!(found.unwrap_or_else(|| panic!("{check}: {checks:#}"))["status"], "ok", "{checks:#}");
    }
    let level = |more: &[&str]| {
        let levels = meshctl.json(&[&["proxy", "log-level", "--node", "edge-a"], more].concat());
        levels["levels"].to_string()
    };
    let before = level(&[]);
    assert!(level(&["trace", "--target", "mesh_proxy::dns", "--for", "10m"]).contains("mesh_proxy::dns"));
    assert_ne!(level(&[]), before);
    assert_eq!(level(&["--reset"]), before);
    let output = meshctl.output(&["doctor", "--node", "nowhere"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(2) && said.contains("no proxy of the mesh is called nowhere"),
        "{said}"
    );
}

/// Tokens, nodes and CAs, without kubectl.
fn what_controllers_share(meshctl: &Meshctl<'_>) {
    let token = meshctl.json(&["token", "create", "--node", "outside", "--ttl", "1h"]);
    let id = token["id"].as_str().unwrap().to_owned();
    assert!(meshctl.text(&["token", "list"]).contains(&id));
    meshctl.text(&["token", "revoke", &id]);
    assert!(!meshctl.text(&["token", "list"]).contains(&id));
    let nodes = meshctl.text(&["node", "list"]);
    assert!(NODES.iter().all(|node| nodes.contains(node)), "{nodes}");
    let analysis = meshctl.output_in_all(&["analyze", "-o", "json"]);
    let said: Value = serde_json::from_slice(&analysis.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&analysis.stderr)));
    assert!(said.is_array(), "{said:#}");
    // The next CA is made, trusted, and does not sign yet.
    let before = meshctl.json(&["ca", "status"]);
    meshctl.text(&["ca", "renew"]);
    eventually(Duration::from_secs(60), Duration::from_secs(1), || {
        let now = meshctl.json(&["ca", "status"]);
        let all = now.as_array().unwrap();
        if all.len() == 2 && all[0] == before[0] && all[1]["signs"] == false { Ok(()) } else { Err(now) }
    })
    .unwrap();
}

/// The whole way with the operator's program: the chart that is in it, the checks before and after, and nothing left.
pub(crate) fn installs_and_uninstalls(shop: &Shop) {
    let start = Instant::now();
    let meshctl = Meshctl { shop };
    let report = meshctl.json(&[
        "install",
        "--set",
        "image.tag=test",
        "--set",
        "controller.resources.requests.cpu=10m",
    ]);
    assert_eq!(report["done"], true, "{report:#}");
    let checks = report["after"].as_array().unwrap();
    let bad: Vec<&Value> = checks.iter().filter(|c| c["status"] == "fail").collect();
    assert!(checks.len() > 8 && bad.is_empty(), "{report:#}");
    // A second time is an upgrade that keeps what was said.
    let report = meshctl.json(&["install", "--set", "controller.replicas=1"]);
    assert_eq!(report["done"], true, "{report:#}");
    let image = "jsonpath={.spec.replicas} {.spec.template.spec.containers[0].image}";
    let image = ["get", "deployment/mesh-controller", "-n", NAMESPACE, "-o", image];
    assert_eq!(shop.cluster.kubectl(&image).unwrap(), "1 selvage/mesh-controller:test");
    println!("meshctl install, and again: {:.1} s", start.elapsed().as_secs_f64());
    let gone = meshctl.json(&["uninstall", "--purge-crds", "--yes"]);
    assert_eq!(gone["crds_removed"], true, "{gone:#}");
    shop.wait_until_gone();
    eventually(Duration::from_secs(60), Duration::from_millis(300), || {
        let left = shop.cluster.kubectl(&["get", "crds", "-o", "name"]).unwrap();
        if left.contains("istio.io") || left.contains("selvage.dev") { Err(left) } else { Ok(()) }
    })
    .unwrap();
    println!("meshctl install and uninstall: {:.1} s", start.elapsed().as_secs_f64());
}

fn calls_are_counted(meshctl: &Meshctl<'_>) {
    let (top, reports) = meshctl.shop.under_load("reviews", 1, || {
        (
            meshctl.json(&["top", "--interval", "4s"]),
            meshctl.json(&["top", "--by", "service", "--interval", "4s"]),
        )
    });
    let (by_proxy, by_service) = top;
    assert!(reports.iter().all(|r| r.failed == 0), "{reports:#?}");
    let cloud = by_proxy.as_array().unwrap().iter().find(|r| r["name"] == "cloud").unwrap();
    assert!(cloud["requests_per_s"].as_f64().unwrap() > 1.0 && cloud["errors"] == 0.0, "{by_proxy:#}");
    assert!(cloud["rss_bytes"].as_f64().unwrap() > 1e6, "{by_proxy:#}");
    let reviews = by_service.as_array().unwrap().iter().find(|r| r["name"] == "reviews.default").unwrap();
    assert!(
        reviews["requests_per_s"].as_f64().unwrap() > 1.0 && reviews["p99_ms"].is_number(),
        "{by_service:#}"
    );
}

fn logs_come_from_everywhere(meshctl: &Meshctl<'_>) {
    let text = meshctl.text(&["logs", "--tail", "2000"]);
    for node in NODES {
        assert!(text.lines().any(|l| l.starts_with(&format!("{node}/proxy |"))), "{node}: {text}");
    }
    assert!(text.contains("mesh-controller-") && text.contains("INFO"), "{text}");
    let only = meshctl.text(&["logs", "edge-a", "--only", "proxy", "-o", "json"]);
    for line in only.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["program"], "edge-a/proxy");
    }
}

fn a_report_is_whole(meshctl: &Meshctl<'_>) {
    let file = meshctl.shop.cluster.world().folder("helm").unwrap().join("report.tar.gz");
    let report = meshctl.json(&["bug-report", "--file", file.to_str().unwrap()]);
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(&file).unwrap()));
    let mut all = BTreeMap::new();
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let (path, mut text) = (entry.path().unwrap().display().to_string(), String::new());
        entry.read_to_string(&mut text).unwrap();
        all.insert(path, text);
    }
    for part in [
        "programs/proxy-edge-b/config_dump.json",
        "logs/edge-a-proxy.log",
        "values.json",
        "status.json",
        "objects/meshnodes.json",
    ] {
        assert!(all.contains_key(&format!("selvage-report/{part}")), "{part}: {:?} {report:#}", all.keys());
    }
    assert!(
        all.values()
            .all(|text| !text.contains("BEGIN PRIVATE KEY") && !text.contains("BEGIN EC PRIVATE KEY"))
    );
    println!("bug-report: {} files, {:.0} KiB", all.len(), report["bytes"].as_f64().unwrap() / 1024.0);
}
