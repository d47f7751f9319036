//! The whole system in a closed world: a Kubernetes control plane and mesh-controller on the node `cloud`, a proxy on
//! each of two edge nodes in different subnets, and the bookshop's pods as network namespaces of their own.

use std::{net::IpAddr, path::PathBuf, process::Command, sync::Arc, time::Duration};

use mesh_testkit::{
    bins,
    kube::{KubeCluster, KubeOptions, Wrap, eventually},
    lab::{Nat, Proc, Spec, World},
};
use serde_json::Value;

use crate::manifests::{self, Pod};

pub(crate) const EDGES: [&str; 2] = ["edge-a", "edge-b"];
/// App, version, node.
const PODS: [(&str, &str, &str); 6] = [
    ("productpage", "v1", "edge-a"),
    ("reviews", "v1", "edge-a"),
    ("reviews", "v2", "edge-b"),
    ("reviews", "v3", "edge-b"),
    ("ratings", "v1", "edge-b"),
    ("details", "v1", "edge-b"),
];

/// Everything that runs. Fields are dropped in this order.
pub(crate) struct Mesh {
    processes: Vec<Proc>,
    pub(crate) controller: Option<Proc>,
    pub(crate) cluster: KubeCluster,
    pub(crate) world: Arc<World>,
    kubeconfig: PathBuf,
}

impl Mesh {
    /// Brings all of it up, and returns when the bookshop answers without rules.
    pub(crate) fn start() -> Self {
        Self::start_with(&[], |_| None)
    }

    /// The same with more manifests beside those of the bookshop, and with gateway settings of proxies by node.
    pub(crate) fn start_with(manifests: &[PathBuf], gateway: impl Fn(&str) -> Option<Value>) -> Self {
        bins::know("mesh-controller", env!("CARGO_BIN_EXE_mesh-controller"));
        for program in ["meshctl", "mesh-proxy", "echo"] {
            // Built before anything runs, and the same for the whole test.
            bins::know(program, bins::find(program).unwrap().to_str().unwrap());
        }
        let world = Arc::new(World::up(&spec()).unwrap());
        let cluster = control_plane(&world);
        manifests::install_crds(&cluster);
        let rbac = manifests::root().join("mesh-controller/tests/kube/rbac.yaml");
        cluster.kubectl(&["apply", "-f", rbac.to_str().unwrap()]).unwrap();
        for manifest in manifests {
            cluster.kubectl(&["apply", "-f", manifest.to_str().unwrap()]).unwrap();
        }
        let kubeconfig = cluster.service_account_kubeconfig("selvage-system", "mesh-controller").unwrap();
        let zones = [("cloud", "cloud"), ("edge-a", "a"), ("edge-b", "b")];
        let pods: Vec<Pod<'_>> =
            PODS.iter().map(|(app, version, node)| pod(&world, app, version, node)).collect();
        manifests::apply_bookshop(&cluster, &zones, &pods);

        let mut mesh = Self { processes: Vec::new(), controller: None, cluster, world, kubeconfig };
        mesh.start_controller();
        for edge in EDGES {
            mesh.start_proxy(edge, gateway(edge));
        }
        for (app, version, node) in PODS {
            mesh.start_pod(app, version, node);
        }
        mesh.wait_until_called();
        mesh
    }

    /// Starts mesh-controller with the rights of its service account.
    pub(crate) fn start_controller(&mut self) {
        let mut command = Command::new(bins::find("mesh-controller").unwrap());
        command
            .args(["--source", "kube", "--state-dir"])
            .arg(self.state_dir())
            // For the API server, which asks the webhook by address.
            .args(["--set", &format!("names=[{}]", self.world.node("cloud").unwrap().address())])
            .env("KUBECONFIG", &self.kubeconfig);
        self.controller = Some(self.world.node("cloud").unwrap().spawn("mesh-controller", &command).unwrap());
        let health = "http://127.0.0.1:15014/healthz/ready";
        self.wait_for("cloud", health);
    }

    /// The controller's folder.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.world.folder("controller").unwrap()
    }

    /// Keeps a process for as long as the mesh.
    pub(crate) fn keep(&mut self, process: Proc) {
        self.processes.push(process);
    }

    fn start_proxy(&mut self, node: &str, gateway: Option<Value>) {
        let cloud = self.world.node("cloud").unwrap();
        let state = self.world.folder("controller").unwrap();
        let meshctl = bins::find("meshctl").unwrap();
        let token = cloud
            .exec(&[
                meshctl.to_str().unwrap(),
                "token",
                "create",
                "--node",
                node,
                "--state-dir",
                state.to_str().unwrap(),
            ])
            .unwrap();
        assert!(token.ok(), "meshctl token create: {}{}", token.stdout, token.stderr);
        let folder = self.world.folder(node).unwrap();
        let token_file = folder.join("token");
        std::fs::write(&token_file, token.stdout.trim()).unwrap();
        let config = serde_json::json!({
            "node": node,
            "state_dir": folder.join("state"),
            "controller": format!("{}:15012", cloud.address()),
            "join_token": format!("@{}", token_file.display()),
            "log_level": "info",
            "gateway": gateway,
        });
        let file = folder.join("mesh-proxy.yaml");
        std::fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(bins::find("mesh-proxy").unwrap());
        command.arg("--config").arg(file);
        self.processes.push(self.world.node(node).unwrap().spawn("mesh-proxy", &command).unwrap());
        self.wait_for(node, "http://127.0.0.1:15021/healthz/ready");
    }

    fn start_pod(&mut self, app: &str, version: &str, node: &str) {
        let name = format!("{app}-{version}");
        let mut command = Command::new(bins::find("echo").unwrap());
        command.args(["serve", "--name", &name, "--version", version, "--node", node, "--app", app]);
        self.processes.push(self.world.pod(&name).unwrap().spawn("echo", &command).unwrap());
    }

    /// Waits until a URL answers 200 at a place.
    fn wait_for(&self, place: &str, url: &str) {
        let place = self.world.place(place).unwrap();
        eventually(Duration::from_secs(40), Duration::from_millis(100), || {
            let output =
                place.exec(&["curl", "-s", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}", url]).unwrap();
            if output.stdout == "200" {
                Ok(())
            } else {
                Err(format!("{url}: {} {}", output.stdout, output.stderr))
            }
        })
        .unwrap();
    }

    fn wait_until_called(&self) {
        eventually(Duration::from_secs(30), Duration::from_millis(100), || {
            let report = self.call("reviews", None, 30);
            if report.failed == 0 && report.versions == ["v1", "v2", "v3"] { Ok(()) } else { Err(report) }
        })
        .unwrap();
    }

    /// Calls a service from the pod `client`, by its short name.
    pub(crate) fn call(&self, service: &str, user: Option<&str>, count: u32) -> Report {
        self.call_within(service, user, count, Duration::from_secs(10))
    }

    /// The same, with a time-out for each call.
    pub(crate) fn call_within(
        &self,
        service: &str,
        user: Option<&str>,
        count: u32,
        limit: Duration,
    ) -> Report {
        let mut args = self.call_args(service, user);
        args.extend(
            ["-n", &count.to_string(), "--timeout", &limit.as_secs_f64().to_string()].map(str::to_owned),
        );
        // Hundreds of calls take a fraction of that, unless the machine has better things to do.
        let output = self.world.pod("client").unwrap().exec_within(&args, Duration::from_secs(120)).unwrap();
        Report::parse(&output.stdout)
            .unwrap_or_else(|| panic!("echo call: {}{}", output.stdout, output.stderr))
    }

    /// Starts a steady load on a service; its report is the whole log when it ends.
    pub(crate) fn load(&self, service: &str, rate: u32, length: Duration) -> Proc {
        let args = self.call_args(service, None);
        let mut command = Command::new(&args[0]);
        command.args(&args[1..]).args([
            "--rate",
            &rate.to_string(),
            "--duration",
            &length.as_secs_f64().to_string(),
        ]);
        command.args(["--concurrency", "4"]);
        self.world.pod("client").unwrap().spawn("load", &command).unwrap()
    }

    fn call_args(&self, service: &str, user: Option<&str>) -> Vec<String> {
        let path = if service == "productpage" { "productpage" } else { &format!("{service}/0") };
        let echo = bins::find("echo").unwrap().display().to_string();
        let mut args = vec![echo, "call".to_owned(), format!("http://{service}:9080/{path}")];
        if let Some(user) = user {
            args.extend(["-H".to_owned(), format!("end-user: {user}")]);
        }
        args.extend(["-o", "json"].map(str::to_owned));
        args
    }

    /// What a URL says at a place.
    pub(crate) fn get(&self, place: &str, url: &str) -> String {
        self.world.place(place).unwrap().exec(&["curl", "-s", "-m", "5", url]).unwrap().stdout
    }
}

/// What became of some calls.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) failed: u64,
    pub(crate) statuses: Vec<u64>,
    /// Versions that answered, sorted.
    pub(crate) versions: Vec<String>,
    pub(crate) nodes: Vec<String>,
    pub(crate) p50_ms: f64,
    all: Value,
}

impl Report {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let all: Value = serde_json::from_str(text.trim()).ok()?;
        let keys = |field: &str| -> Vec<String> {
            all[field].as_object().into_iter().flatten().map(|(k, _)| k.clone()).collect()
        };
        Some(Self {
            failed: all["failed"].as_u64()?,
            statuses: keys("byStatus").iter().filter_map(|s| s.parse().ok()).collect(),
            versions: keys("byVersion"),
            nodes: keys("byNode"),
            p50_ms: all["latencyMs"]["p50"].as_f64()?,
            all,
        })
    }

    pub(crate) fn sent(&self) -> u64 {
        self.all["sent"].as_u64().unwrap_or(0)
    }

    /// Share of the answers that came from a version.
    pub(crate) fn share(&self, version: &str) -> f64 {
        self.all["byVersion"][version].as_f64().unwrap_or(0.0) / self.sent().max(1) as f64
    }

    pub(crate) fn body(&self) -> Value {
        serde_json::from_str(self.all["lastBody"].as_str().unwrap_or("")).unwrap_or(Value::Null)
    }
}

fn spec() -> Spec {
    let net = |text: &str| text.parse().unwrap();
    let mut spec = Spec::named("kube")
        .site("a", net("203.0.113.64/28"), Nat::None)
        .site("b", net("198.51.100.64/28"), Nat::None)
        .node("cloud", None, None)
        .node("edge-a", Some("a"), Some(net("10.1.0.0/24")))
        .node("edge-b", Some("b"), Some(net("10.2.0.0/24")))
        .pod("client", "edge-a");
    for (app, version, node) in PODS {
        spec = spec.pod(&format!("{app}-{version}"), node);
    }
    spec
}

fn pod<'a>(world: &World, app: &'a str, version: &'a str, node: &'a str) -> Pod<'a> {
    let address = |place: &str| -> IpAddr { world.place(place).unwrap().address() };
    Pod { app, version, node, address: address(&format!("{app}-{version}")), host: address(node) }
}

fn control_plane(world: &Arc<World>) -> KubeCluster {
    let mut options = KubeOptions::new(world.folder("kube").unwrap());
    options.address = world.node("cloud").unwrap().address();
    options.port = 6443;
    let inside = Arc::clone(world);
    options.wrap = Wrap::with(move |command| inside.node("cloud").unwrap().wrap(&command, None));
    KubeCluster::start_with(options).unwrap()
}
