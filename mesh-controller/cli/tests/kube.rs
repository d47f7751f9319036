//! Installing, looking and removing, with the real Helm on a real API server. Nothing runs there: what asks programs has to
//! say so. Programs that run are asked in the chart's test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it fails")]

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use mesh_testkit::kube::KubeCluster;
use serde_json::{Value, json};

const NAMESPACE: &str = "selvage-system";
const SECRET: &str = "Pl4nted-S3cret-Value";

struct Operator {
    cluster: KubeCluster,
    dir: tempfile::TempDir,
    helm: PathBuf,
}

impl Operator {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cluster = KubeCluster::start(dir.path()).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../mesh-proxy/testkit/kube/build.sh");
        let built = Command::new(script).arg("helm").stderr(Stdio::inherit()).output().unwrap();
        assert!(built.status.success(), "helm is not built");
        let helm = Path::new(String::from_utf8(built.stdout).unwrap().lines().last().unwrap()).join("helm");
        Self { cluster, dir, helm }
    }

    fn run_as(&self, kubeconfig: &Path, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
        command.args(args).arg("--kubeconfig").arg(kubeconfig);
        command.env("HELM", &self.helm);
        for key in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "HOME"] {
            command.env(key, self.dir.path());
        }
        command.env_remove("MESH_PROXY_ADMIN_URL").env_remove("KUBECONFIG").output().unwrap()
    }

    fn run(&self, args: &[&str]) -> Output {
        self.run_as(&self.cluster.admin_kubeconfig(), args)
    }

    /// Ends with this code; standard output and error.
    fn ends(&self, code: i32, args: &[&str]) -> (String, String) {
        let output = self.run(args);
        let both = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{args:?}: {} {}", both.0, both.1);
        both
    }

    fn json(&self, code: i32, args: &[&str]) -> Value {
        let args = [args, &["-o", "json"]].concat();
        let (out, err) = self.ends(code, &args);
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {out}{err}"))
    }

    fn count(&self, kind: &str) -> usize {
        self.cluster.kubectl(&["get", kind, "-A", "-o", "name"]).unwrap().lines().count()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn status_of(checks: &Value, name: &str) -> Vec<String> {
    let all = checks.as_array().unwrap().iter().filter(|c| c["check"] == name);
    all.map(|c| c["status"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_mesh_comes_is_looked_at_and_goes() {
    let operator = Operator::start();
    before(&operator);
    installs(&operator);
    nothing_runs(&operator);
    a_report(&operator);
    it_is_analysed(&operator);
    others_are_told(&operator);
    goes(&operator);
}

fn before(operator: &Operator) {
    let (out, err) = operator.ends(0, &["check"]);
    assert!(err.contains("there is no mesh") && out.contains("second-release"), "{out}{err}");
    let (_, err) = operator.ends(2, &["check", "--ignore", "nonsense"]);
    assert!(err.contains("nonsense") && err.contains("kernel"), "{err}");
    let (_, err) = operator.ends(2, &["status"]);
    assert!(err.contains("meshctl install") && err.contains(NAMESPACE), "{err}");
    // What is in the way is said, and nothing is installed.
    let agent = json!({ "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": "edgemesh-agent", "namespace": "default" },
        "spec": { "selector": { "matchLabels": { "k8s-app": "edgemesh-agent" } }, "template": {
            "metadata": { "labels": { "k8s-app": "edgemesh-agent" } },
            "spec": { "containers": [{ "name": "a", "image": "a" }] } } } });
    operator.cluster.apply(&agent.to_string()).unwrap();
    let (_, err) = operator.ends(1, &["install"]);
    assert!(err.contains("EdgeMesh runs here") && err.contains("nothing was installed"), "{err}");
    let refused = operator.json(1, &["install"]);
    assert_eq!(
        (&refused["done"], status_of(&refused["before"], "edgemesh")),
        (&json!(false), vec!["fail".to_owned()])
    );
    operator.cluster.kubectl(&["delete", "daemonset", "edgemesh-agent"]).unwrap();
    // A Helm that is none.
    let output = operator.run(&["install", "--helm", "/nowhere/helm", "--dry-run"]);
    assert_eq!(output.status.code(), Some(2));
}

fn installs(operator: &Operator) {
    let (out, err) = operator.ends(0, &["install", "--dry-run", "--set", "proxy.enabled=false"]);
    assert!(out.contains("kind: Deployment") && !out.contains("kind: DaemonSet"), "{out}{err}");
    assert_eq!(operator.count("deployments"), 0, "a dry run installs nothing");
    let (_, err) = operator.ends(2, &["install", "--no-wait", "--set", "nonsense=1"]);
    assert!(err.contains("nonsense"), "Helm's own words: {err}");

    // Nobody runs the Job that looks again in the cluster.
    let values = operator.dir.path().join("values.yaml");
    std::fs::write(
        &values,
        format!("preflight: {{enabled: false}}\nproxy: {{config: {{joinToken: {SECRET}}}}}\n"),
    )
    .unwrap();
    let values = values.display().to_string();
    let report = operator.json(0, &["install", "--no-wait", "-f", &values, "--set-string", "image.tag=7"]);
    assert_eq!((&report["done"], &report["release"]), (&json!(true), &json!("mesh")), "{report:#}");
    assert!(report["next"].to_string().contains("meshctl check"), "{report:#}");
    let image = "jsonpath={.spec.template.spec.containers[0].image}";
    let image = operator
        .cluster
        .kubectl(&["get", "deployment/mesh-controller", "-n", NAMESPACE, "-o", image])
        .unwrap();
    assert!(image.ends_with(":7"), "{image}");
    assert!(operator.count("crds") >= 15, "{}", operator.count("crds"));
    // Again: an upgrade that keeps what was said before.
    operator.ends(0, &["install", "--no-wait", "--set", "controller.replicas=3"]);
    let path = "jsonpath={.spec.replicas} {.spec.template.spec.containers[0].image}";
    let both = operator
        .cluster
        .kubectl(&["get", "deployment/mesh-controller", "-n", NAMESPACE, "-o", path])
        .unwrap();
    assert!(both.starts_with("3 ") && both.ends_with(":7"), "{both}");
}

/// Nothing starts pods here, so these are made, and no kubelet leads to them.
fn nothing_runs(operator: &Operator) {
    for (name, label, node) in [("c-1", "mesh-controller", "cloud"), ("p-1", "mesh-proxy", "edge-a")] {
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": NAMESPACE,
            "labels": { "app.kubernetes.io/name": label, "app.kubernetes.io/part-of": "selvage" } },
            "spec": { "nodeName": node, "containers": [{ "name": label, "image": "i:1", "env": [{ "name": "API_TOKEN", "value": SECRET }] }] } });
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node } });
        operator.cluster.apply(&node.to_string()).unwrap();
        operator.cluster.apply(&pod.to_string()).unwrap();
        operator.cluster.set_pod_ready(NAMESPACE, name, [10, 0, 0, 1].into(), [192, 0, 2, 1].into()).unwrap();
    }
    let checks = operator.json(1, &["check", "--timeout", "15s"]);
    assert_eq!(status_of(&checks, "release"), ["ok"], "{checks:#}");
    assert_eq!(status_of(&checks, "crds"), ["ok"], "{checks:#}");
    assert_eq!(status_of(&checks, "deployment"), ["fail"], "{checks:#}");
    assert_eq!(status_of(&checks, "controllers"), ["fail"], "{checks:#}");
    assert_eq!(status_of(&checks, "webhook"), ["fail"], "no controller has written its CA: {checks:#}");
    let found = operator.json(1, &["status", "--timeout", "9s"]);
    assert_eq!(found["controllers"][0]["state"], "unreachable", "{found:#}");
    let rows = operator.json(1, &["proxies", "--timeout", "9s"]);
    assert_eq!((&rows[0]["node"], &rows[0]["answers"]), (&json!("edge-a"), &json!(false)), "{rows:#}");
    let (_, err) = operator.ends(2, &["endpoints", "--node", "edge-z", "--timeout", "9s"]);
    assert!(err.contains("edge-z") && err.contains("edge-a"), "{err}");
    let (_, err) = operator.ends(2, &["logs", "edge-z"]);
    assert!(err.contains("edge-z"), "{err}");
    let (_, err) = operator.ends(1, &["logs", "--timeout", "9s"]);
    assert!(err.contains("edge-a/proxy") && err.contains("cloud/c-1"), "{err}");
    // A definition of another version.
    let patch = r#"[{"op":"remove","path":"/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/hosts"}]"#;
    let crd = "crd/virtualservices.networking.istio.io";
    operator.cluster.kubectl(&["patch", crd, "--type=json", "-p", patch]).unwrap();
    let checks = operator.json(1, &["check", "--timeout", "9s"]);
    assert_eq!(status_of(&checks, "crds"), ["warn"], "{checks:#}");
    assert!(checks.to_string().contains("lacks field spec.hosts"), "{checks:#}");
}

fn a_report(operator: &Operator) {
    let rule = json!({ "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": { "name": "web", "namespace": "default", "annotations": { "note": format!("password={SECRET}") } },
        "spec": { "http": [{ "headers": { "request": { "set": { "authorization": format!("Bearer {SECRET}") } } },
            "route": [{ "destination": { "host": "web" } }] }] } });
    operator.cluster.apply(&rule.to_string()).unwrap();
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s", "namespace": NAMESPACE },
        "stringData": { "anything": SECRET } });
    operator.cluster.apply(&secret.to_string()).unwrap();
    let stored =
        operator.cluster.kubectl(&["get", "configmap/mesh-proxy", "-n", NAMESPACE, "-o", "yaml"]).unwrap();
    assert!(stored.contains(SECRET), "the secret is planted where it would be seen");
    let file = operator.dir.path().join("report.tar.gz").display().to_string();
    let report = operator.json(0, &["bug-report", "--file", &file, "--timeout", "9s"]);
    assert!(report["missing"].to_string().contains("p-1"), "{report:#}");
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(&file).unwrap()));
    let mut all = BTreeMap::new();
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let (path, mut text) = (entry.path().unwrap().display().to_string(), String::new());
        entry.read_to_string(&mut text).unwrap();
        all.insert(path, text);
    }
    for (name, text) in &all {
        assert!(!text.contains(SECRET), "{name} has the secret");
    }
    let of = |name: &str| {
        all.get(&format!("selvage-report/{name}")).unwrap_or_else(|| panic!("{name} in {:?}", all.keys()))
    };
    assert!(of("rules/virtualservices.json").contains("\"web\""), "rules are in it");
    assert!(of("objects/pods.json").contains("API_TOKEN") && of("check.json").contains("controllers"));
    assert!(of("values.json").contains("preflight") && of("versions.json").contains("kubernetes"));
}

/// By the administrator, and by somebody who may read no secrets.
fn it_is_analysed(operator: &Operator) {
    let (out, err) = operator.ends(1, &["analyze", "-o", "json"]);
    let said: Value = serde_json::from_str(&out).unwrap();
    let of_rule = |m: &&Value| m["code"] == "IST0101" && m["resource"] == "VirtualService default/web";
    assert!(said.as_array().unwrap().iter().any(|m| of_rule(&m)) && err.is_empty(), "{said:#} {err}");
    let kubectl = |args: &[&str]| operator.cluster.kubectl(args).unwrap();
    kubectl(&["create", "serviceaccount", "reader", "-n", "default"]);
    let may = |core: &[&str]| {
        let groups = ["apps", "apiextensions.k8s.io", "admissionregistration.k8s.io", "networking.k8s.io"];
        let istio = ["networking", "security", "telemetry", "extensions"].map(|g| format!("{g}.istio.io"));
        let groups: Vec<&str> = groups.into_iter().chain(istio.iter().map(String::as_str)).collect();
        let role = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": "reader" },
            "rules": [{ "apiGroups": [""], "resources": core, "verbs": ["list"] },
                { "apiGroups": groups, "resources": ["*"], "verbs": ["list"] }] });
        operator.cluster.apply(&role.to_string()).unwrap();
    };
    may(&["pods"]);
    kubectl(&[
        "create",
        "clusterrolebinding",
        "reader",
        "--clusterrole=reader",
        "--serviceaccount=default:reader",
    ]);
    let reader = operator.cluster.service_account_kubeconfig("default", "reader").unwrap();
    let output = operator.run_as(&reader, &["analyze", "-o", "json"]);
    let err = text(&output.stderr);
    assert!(output.status.code() == Some(2) && err.contains("this account may not"), "{err}");
    may(&["pods", "services", "namespaces", "configmaps", "nodes", "endpoints", "serviceaccounts"]);
    let output = operator.run_as(&reader, &["analyze", "-o", "json"]);
    let err = text(&output.stderr);
    assert!(output.status.code() == Some(1) && err.contains("secrets are not looked at"), "{err}");
}

fn others_are_told(operator: &Operator) {
    operator.cluster.kubectl(&["create", "serviceaccount", "nobody", "-n", "default"]).unwrap();
    let nobody = operator.cluster.service_account_kubeconfig("default", "nobody").unwrap();
    for command in ["status", "logs", "proxies"] {
        let output = operator.run_as(&nobody, &[command]);
        let err = text(&output.stderr);
        assert!(
            output.status.code() == Some(2) && err.contains("this account may not") && err.contains("pods"),
            "{command}: {err}"
        );
    }
    let output = operator.run_as(Path::new("/nowhere/config"), &["status"]);
    assert!(text(&output.stderr).contains("/nowhere/config"), "{}", text(&output.stderr));
    let (_, err) = operator.ends(2, &["status", "--context", "nonsense"]);
    assert!(err.contains("nonsense") && err.contains("get-contexts"), "{err}");
    // An API server that is not there.
    let admin = std::fs::read_to_string(operator.cluster.admin_kubeconfig()).unwrap();
    let away = operator.dir.path().join("away.kubeconfig");
    std::fs::write(&away, admin.replace(&operator.cluster.url(), "https://127.0.0.1:1")).unwrap();
    let output = operator.run_as(&away, &["status", "--timeout", "5s"]);
    assert!(output.status.code() == Some(2), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("does not answer") || text(&output.stderr).contains("no answer"),
        "{}",
        text(&output.stderr)
    );
}

fn goes(operator: &Operator) {
    let said = operator.json(0, &["uninstall", "--dry-run"]);
    assert_eq!(said["done"], false, "{said:#}");
    assert!(said["stays"].to_string().contains("--purge-crds"), "{said:#}");
    assert_eq!(operator.count("deployments"), 1, "a dry run removes nothing");
    let (_, err) = operator.ends(2, &["uninstall", "--purge-crds"]);
    assert!(err.contains("1 rules") && err.contains("--yes"), "{err}");
    assert_eq!(operator.count("deployments"), 1, "it is not asked twice, and nothing is done");
    let (out, _) = operator.ends(0, &["uninstall", "--no-wait"]);
    assert!(out.contains("What stays") && out.contains(NAMESPACE), "{out}");
    assert_eq!((operator.count("deployments"), operator.count("virtualservices")), (0, 1), "rules stay");
    let purged = operator.json(0, &["uninstall", "--purge-crds", "--yes", "--no-wait"]);
    assert!(purged["crds"].as_array().unwrap().len() >= 15 && purged["crds_removed"] == true, "{purged:#}");
    let gone = operator.cluster.kubectl(&[
        "wait",
        "--for=delete",
        "crd",
        "-l",
        "app.kubernetes.io/part-of=selvage",
        "--timeout=60s",
    ]);
    assert!(gone.is_ok(), "{gone:?}");
    let left = operator.cluster.kubectl(&["get", "crds", "-o", "name"]).unwrap();
    assert!(!left.contains("istio.io") && !left.contains("selvage.dev"), "{left}");
}
