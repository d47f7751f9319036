//! A real cluster with the chart and the bookshop: pods are containers, names are resolved by the cluster's name server or the
//! mesh, and everything that the mesh needs is what `helm install` brings.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mesh_testkit::{
    bins,
    cluster::{Cluster, ClusterError, Options, stand_ins},
    kube::eventually,
};
use serde_json::{Value, json};

use crate::{documented::STAND_INS, mesh::Report};

pub(crate) const NODES: [&str; 3] = ["cloud", "edge-a", "edge-b"];
pub(crate) const NAMESPACE: &str = "selvage-system";
/// Who calls: app, version, node.
pub(crate) const CLIENT: (&str, &str, &str) = ("client", "v1", "cloud");
/// App, version, node.
const PODS: [(&str, &str, &str); 7] = [
    ("productpage", "v1", "cloud"),
    ("reviews", "v1", "edge-a"),
    ("reviews", "v2", "edge-b"),
    ("reviews", "v3", "edge-b"),
    ("ratings", "v1", "edge-a"),
    ("details", "v1", "edge-a"),
    CLIENT,
];

/// The project's folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub(crate) struct Shop {
    pub(crate) cluster: Cluster,
}

impl Shop {
    /// A cluster without the mesh; none where this machine cannot have one. kube-proxy runs as `SELVAGE_KUBE_PROXY` says:
    /// `nftables` or `iptables`.
    pub(crate) fn up(name: &str) -> Option<Self> {
        bins::know("mesh-controller", env!("CARGO_BIN_EXE_mesh-controller"));
        let start = Instant::now();
        let mut options =
            Options::with_nodes(&NODES).programs(&["mesh-controller", "mesh-proxy", "echo"]).unwrap();
        options.images.push(stand_ins("echo", &STAND_INS).unwrap());
        name.clone_into(&mut options.name);
        if let Ok(mode) = std::env::var("SELVAGE_KUBE_PROXY") {
            options.proxy_mode = mode;
        }
        match Cluster::up(&options) {
            Ok(cluster) => {
                println!("cluster of {} nodes: up after {:.1} s", NODES.len(), start.elapsed().as_secs_f64());
                Some(Self { cluster })
            }
            Err(ClusterError::Unable(why)) => {
                println!("skipped: {why}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// `helm VERB mesh CHART --wait` with the test's images and these values on top. The limit is longer than the five minutes
    /// after which Kubernetes' DaemonSet controller looks again when it has missed what became of a pod; that was seen once.
    pub(crate) fn helm(&self, verb: &str, chart: &Path, values: &Value) -> Result<Duration, ClusterError> {
        let start = Instant::now();
        let file = self.cluster.world().folder("helm").unwrap().join("values.json");
        let mut all = json!({ "image": { "tag": "test" }, "controller": { "resources": { "requests": { "cpu": "10m" } } } });
        merge(&mut all, values);
        std::fs::write(&file, all.to_string()).unwrap();
        let (chart, file) = (chart.display().to_string(), file.display().to_string());
        let mut args =
            vec![verb, "mesh", &chart, "-n", NAMESPACE, "--wait", "--timeout", "400s", "-f", &file];
        if verb == "install" {
            args.push("--create-namespace");
        }
        self.cluster.helm(&args)?;
        Ok(start.elapsed())
    }

    /// The bookshop's services and one Deployment for each version, on a node of its own choice.
    pub(crate) fn open(&self) {
        let services = root().join("examples/bookinfo/bookinfo.yaml");
        self.cluster.kubectl(&["apply", "-f", services.to_str().unwrap()]).unwrap();
        let items: Vec<Value> =
            PODS.iter().map(|(app, version, node)| deployment(app, version, node)).collect();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        self.cluster.apply(&list.to_string()).unwrap();
        for (app, version, _) in PODS {
            let name = format!("deployment/{app}-{version}");
            self.cluster.kubectl(&["rollout", "status", &name, "--timeout=90s"]).unwrap();
        }
    }

    /// The client's pod.
    fn client(&self) -> String {
        let path = "jsonpath={.items[0].metadata.name}";
        self.cluster.kubectl(&["get", "pods", "-l", "app=client", "-o", path]).unwrap()
    }

    /// Calls a service from the client's pod, by its short name.
    pub(crate) fn call(&self, service: &str, count: u32) -> Report {
        self.exec(service, &["-n", &count.to_string()])
    }

    fn exec(&self, service: &str, how: &[&str]) -> Report {
        let path = if service == "productpage" { "productpage" } else { &format!("{service}/0") };
        let (client, url) = (self.client(), format!("http://{service}:9080/{path}"));
        let mut args = vec!["exec", &client, "--", "/usr/local/bin/echo", "call", &url, "-o", "json"];
        args.extend(how);
        let (out, err) = self.cluster.kube().kubectl_output(&args).unwrap();
        Report::parse(&out).unwrap_or_else(|| panic!("echo call: {out}{err}"))
    }

    /// A steady load on a service while `work` runs, each call on a kept or on a new connection; at least `least` seconds.
    pub(crate) fn under_load<T>(
        &self,
        service: &str,
        least: u64,
        work: impl FnOnce() -> T,
    ) -> (T, Vec<Report>) {
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Rounds, because nothing tells a program in a pod to stop early and report.
            let round = |how: &'static [&'static str]| {
                let stop = &stop;
                scope.spawn(move || {
                    let (mut reports, start) = (Vec::new(), Instant::now());
                    while !stop.load(std::sync::atomic::Ordering::Relaxed)
                        || start.elapsed().as_secs() < least
                    {
                        reports.push(self.exec(service, how));
                    }
                    reports
                })
            };
            let kept = round(&["-d", "4", "-r", "15", "-c", "2"]);
            let new = round(&["-d", "4", "-r", "8", "-c", "2", "--no-keep-alive"]);
            let done = work();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            let mut reports = kept.join().unwrap();
            reports.extend(new.join().unwrap());
            (done, reports)
        })
    }

    /// The same, and no call may fail. Prints the counts.
    pub(crate) fn without_failure<T>(&self, what: &str, work: impl FnOnce() -> T) -> T {
        let (done, reports) = self.under_load("reviews", 9, work);
        let sent: u64 = reports.iter().map(Report::sent).sum();
        let failed: u64 = reports.iter().map(|r| r.failed).sum();
        println!("{what}: {sent} calls, {failed} failed");
        let bad: Vec<&Report> = reports.iter().filter(|r| r.failed > 0).collect();
        assert!(failed == 0 && sent > 100, "{what}: {failed} of {sent} calls failed: {bad:#?}");
        done
    }

    /// What a URL says on a node.
    pub(crate) fn get(&self, node: &str, url: &str) -> String {
        self.cluster.place(node).unwrap().exec(&["curl", "-s", "-m", "5", url]).unwrap().stdout
    }

    /// The sum of a node's metric over all labels that hold `labels`.
    pub(crate) fn metric(&self, node: &str, name: &str, labels: &str) -> f64 {
        let text = self.get(node, "http://127.0.0.1:15020/stats/prometheus");
        let lines = text.lines().filter(|l| l.starts_with(name) && l.contains(labels));
        lines.filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// What every node has in its kernel.
    pub(crate) fn kernels(&self) -> BTreeMap<&'static str, BTreeSet<String>> {
        NODES.iter().map(|node| (*node, self.cluster.kernel_state(node).unwrap())).collect()
    }

    /// Every object of the cluster but those that come and go by themselves: `kind.group namespace/name`.
    pub(crate) fn objects(&self) -> BTreeSet<String> {
        let kinds = self.cluster.kubectl(&["api-resources", "--verbs=list", "-o", "name"]).unwrap();
        let passing =
            ["events", "events.events.k8s.io", "leases.coordination.k8s.io", "componentstatuses", "pods"];
        let kinds: Vec<&str> = kinds.lines().filter(|k| !passing.contains(k)).collect();
        let path = r#"jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{"\n"}{end}"#;
        let text =
            self.cluster.kubectl(&["get", &kinds.join(","), "-A", "--ignore-not-found", "-o", path]).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until no pod of the mesh is left, not even one that drains.
    pub(crate) fn wait_until_gone(&self) {
        eventually(Duration::from_secs(90), Duration::from_millis(300), || {
            let pods = self
                .cluster
                .kubectl(&["get", "pods", "-A", "-l", "app.kubernetes.io/part-of=selvage", "-o", "name"])
                .unwrap();
            if pods.trim().is_empty() { Ok(()) } else { Err(pods) }
        })
        .unwrap();
    }
}

pub(crate) fn deployment(app: &str, version: &str, node: &str) -> Value {
    let labels = json!({ "app": app, "version": version });
    let name = format!("{app}-{version}");
    let mut args = vec!["serve", "--name", &name, "--version", version, "--node", node];
    if app != "client" {
        args.extend(["--app", app]);
    }
    let account = if app == "client" { "default".to_owned() } else { format!("bookinfo-{app}") };
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name, "labels": labels },
        "spec": { "selector": { "matchLabels": labels }, "template": {
            "metadata": { "labels": labels },
            "spec": {
                "serviceAccountName": account,
                "nodeSelector": { "kubernetes.io/hostname": node },
                "terminationGracePeriodSeconds": 10,
                "containers": [{
                    "name": app, "image": "selvage/echo:test", "imagePullPolicy": "IfNotPresent", "args": args,
                    "ports": [{ "containerPort": 9080 }],
                    // It goes on answering until everyone knows that it leaves.
                    "lifecycle": { "preStop": { "sleep": { "seconds": 3 } } },
                    "readinessProbe": if app == "client" { Value::Null } else { json!({ "tcpSocket": { "port": 9080 }, "periodSeconds": 1 }) },
                }],
            },
        } },
    })
}

/// Objects key by key, everything else replaced.
pub(crate) fn merge(base: &mut Value, other: &Value) {
    match (base, other) {
        (Value::Object(base), Value::Object(other)) => {
            for (key, value) in other {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, other) => *base = other.clone(),
    }
}
