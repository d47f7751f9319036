//! The world of the conformance suite, and its run.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use mesh_testkit::{
    bins,
    kube::{KubeCluster, KubeOptions, Wrap, eventually},
    lab::{Proc, Spec, World},
};
use serde_json::{Value, json};

use crate::manifests;

const CLASS: &str = "selvage";
const MESH: &str = "gateway-conformance-mesh";
const CONSUMER: &str = "gateway-conformance-mesh-consumer";
/// Nodes with pods, and how many places for pods and for Gateways there are.
const EDGES: [&str; 2] = ["edge-a", "edge-b"];
const PLACES: usize = 72;
const GATEWAYS: usize = 30;
const PROFILES: &str = "GATEWAY-HTTP,GATEWAY-GRPC,GATEWAY-TLS,GATEWAY-TCP,MESH-HTTP,MESH-GRPC";
/// Ports of listeners in the suite; the services of Gateways have all of them.
const PORTS: [u16; 23] = [
    80, 443, 1111, 5300, 6443, 7443, 8080, 8081, 8082, 8083, 8090, 8443, 8883, 9091, 9300, 9301, 9302, 9310,
    9311, 9312, 9313, 9320, 9321,
];
/// Features that this mesh does not claim.
const NOT_CLAIMED: &str =
    "GatewayStaticAddresses,GatewayInfrastructurePropagation,UDPRoute,MeshClusterIPMatching";
/// Tests that fail today; docs/gateway-api.md says why.
const KNOWN: [&str; 1] = ["MeshFrontend"];

/// The tests that may fail.
pub(crate) fn known() -> Vec<&'static str> {
    KNOWN.to_vec()
}

/// What the suite says.
pub(crate) struct Report {
    pub(crate) text: String,
    pub(crate) passed: u64,
    pub(crate) failed: BTreeSet<String>,
}

impl Report {
    const fn none() -> Self {
        Self { text: String::new(), passed: 0, failed: BTreeSet::new() }
    }

    fn and(mut self, other: Self) -> Self {
        self.text += &other.text;
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self
    }
}

/// Everything that runs. Fields are dropped in this order.
struct Lab {
    processes: Vec<Proc>,
    cluster: KubeCluster,
    world: Arc<World>,
}

/// Runs the suite, or some tests of it, one after the other (names with commas in between).
pub(crate) fn run(only: Option<&str>) -> Report {
    let programs = programs();
    for program in ["mesh-controller", "meshctl", "mesh-proxy"] {
        bins::know(program, bins::find(program).unwrap().to_str().unwrap());
    }
    let mut lab = Lab::up();
    lab.controller();
    for edge in EDGES {
        lab.proxy(edge);
    }
    lab.player(&programs);
    let report = match only {
        None => lab.suite(&programs, None),
        Some(names) => {
            names.split(',').map(|name| lab.suite(&programs, Some(name))).fold(Report::none(), Report::and)
        }
    };
    let folder = manifests::root().join("target/gateway-api");
    std::fs::create_dir_all(&folder).unwrap();
    lab.keep_logs(&folder);
    report
}

/// The folder with the suite's programs.
fn programs() -> PathBuf {
    let script = manifests::root().join("mesh-proxy/testkit/gateway-api/conformance/build.sh");
    let output = Command::new(script).stderr(std::process::Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "the suite could not be built");
    String::from_utf8(output.stdout).unwrap().trim().into()
}

fn place(i: usize) -> String {
    format!("p{i:02}")
}

fn gateway(i: usize) -> String {
    format!("gw{i:02}")
}

/// The node of a place, and the namespace whose pods may be there.
fn home(i: usize) -> (&'static str, &'static str) {
    let namespace = match i {
        0..=7 => MESH,
        8..=11 => CONSUMER,
        _ => "",
    };
    (EDGES[i % 2], namespace)
}

impl Lab {
    fn up() -> Self {
        let net = |text: &str| text.parse().unwrap();
        let mut spec = Spec::named("suite")
            .node("cloud", None, None)
            .node("edge-a", None, Some(net("10.1.0.0/24")))
            .node("edge-b", None, Some(net("10.2.0.0/24")));
        for i in 0..PLACES {
            spec = spec.pod(&place(i), home(i).0);
        }
        for i in 0..GATEWAYS {
            spec = spec.node(&gateway(i), None, None);
        }
        let world = Arc::new(World::up(&spec).unwrap());
        let mut options = KubeOptions::new(world.folder("kube").unwrap());
        options.address = world.node("cloud").unwrap().address();
        options.port = 6443;
        let inside = Arc::clone(&world);
        options.wrap = Wrap::with(move |command| inside.node("cloud").unwrap().wrap(&command, None));
        let cluster = KubeCluster::start_with(options).unwrap();
        let lab = Self { processes: Vec::new(), cluster, world };
        lab.objects();
        lab
    }

    fn address(&self, place: &str) -> String {
        self.world.place(place).unwrap().address().to_string()
    }

    /// CRDs, rights, nodes, the class.
    fn objects(&self) {
        manifests::install_crds(&self.cluster);
        let script = manifests::root().join("mesh-proxy/testkit/gateway-api/crds.sh");
        // Retries and some more are fields of this channel only.
        let output = Command::new(script).arg("experimental").output().unwrap();
        let crds = String::from_utf8(output.stdout).unwrap();
        self.cluster.kubectl(&["apply", "--server-side", "-k", crds.trim()]).unwrap();
        self.cluster
            .kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"])
            .unwrap();
        for file in ["rbac.yaml", "gateway-api-rbac.yaml"] {
            let file = manifests::root().join("mesh-controller/tests/kube").join(file);
            self.cluster.kubectl(&["apply", "-f", file.to_str().unwrap()]).unwrap();
        }
        let names = EDGES.iter().map(|e| (*e).to_owned()).chain((0..GATEWAYS).map(gateway));
        let node = |name: String| json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
        let mut items: Vec<Value> = names.map(node).collect();
        items.push(json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
            "metadata": { "name": CLASS }, "spec": { "controllerName": "istio.io/gateway-controller" } }));
        manifests::apply_list(&self.cluster, items);
        // What stands in for kubelets answers in one place.
        let status = json!({ "status": {
            "addresses": [{ "type": "InternalIP", "address": self.address("cloud") }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": 10250 } } } });
        for edge in EDGES {
            let args = ["patch", "node", edge, "--subresource=status", "--type=merge", "-p"];
            self.cluster.kubectl(&[&args[..], &[&status.to_string()]].concat()).unwrap();
        }
    }

    fn spawn(&mut self, at: &str, name: &str, command: &Command) {
        let process = self.world.place(at).unwrap().spawn(name, command).unwrap();
        self.processes.push(process);
    }

    fn wait_for(&self, place: &str, url: &str) {
        let place = self.world.place(place).unwrap();
        let ready = eventually(Duration::from_secs(60), Duration::from_millis(100), || {
            let args = ["curl", "-s", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}", url];
            let output = place.exec(&args).unwrap();
            if output.stdout == "200" { Ok(()) } else { Err(output.stdout + &output.stderr) }
        });
        ready.unwrap_or_else(|(_, e)| panic!("{url}: {e}"));
    }

    fn controller(&mut self) {
        let account = self.cluster.service_account_kubeconfig("selvage-system", "mesh-controller").unwrap();
        let mut command = Command::new(bins::find("mesh-controller").unwrap());
        command.args(["--source", "kube", "--state-dir"]).arg(self.world.folder("controller").unwrap());
        command.env("KUBECONFIG", account);
        self.spawn("cloud", "mesh-controller", &command);
        self.wait_for("cloud", "http://127.0.0.1:15014/healthz/ready");
    }

    /// The settings of a node's proxy, with a token to join with.
    fn settings(&self, node: &str) -> Value {
        let cloud = self.world.node("cloud").unwrap();
        let state = self.world.folder("controller").unwrap();
        let meshctl = bins::find("meshctl").unwrap();
        let args = ["token", "create", "--node", node, "--state-dir"];
        let output = cloud
            .exec(&[&[meshctl.to_str().unwrap()], &args[..], &[state.to_str().unwrap()]].concat())
            .unwrap();
        assert!(output.ok(), "meshctl token create: {}{}", output.stdout, output.stderr);
        let folder = self.world.folder(node).unwrap();
        let token = folder.join("token");
        std::fs::write(&token, output.stdout.trim()).unwrap();
        json!({
            "node": node,
            "state_dir": folder.join("state"),
            "controller": format!("{}:15012", cloud.address()),
            "join_token": format!("@{}", token.display()),
            "log_level": "info",
        })
    }

    fn proxy(&mut self, node: &str) {
        let file = self.world.folder(node).unwrap().join("mesh-proxy.yaml");
        std::fs::write(&file, self.settings(node).to_string()).unwrap();
        let mut command = Command::new(bins::find("mesh-proxy").unwrap());
        command.arg("--config").arg(file);
        self.spawn(node, "mesh-proxy", &command);
        self.wait_for(node, "http://127.0.0.1:15021/healthz/ready");
    }

    fn player(&mut self, programs: &Path) {
        let pods: Vec<Value> = (0..PLACES)
            .map(|i| {
                let (node, namespace) = home(i);
                json!({ "name": place(i), "address": self.address(&place(i)), "namespace": namespace,
                    "node": node, "nodeAddress": self.address(node) })
            })
            .collect();
        let gateways: Vec<Value> = (0..GATEWAYS)
            .map(|i| {
                let (name, address) = (gateway(i), self.address(&gateway(i)));
                json!({ "name": name, "address": address, "node": name, "nodeAddress": address,
                    "config": self.settings(&name) })
            })
            .collect();
        let config = json!({
            "kubeconfig": self.cluster.admin_kubeconfig(),
            "namespaces": self.world.dir().join("ns"),
            "kubelet": format!("{}:10250", self.address("cloud")),
            "folder": self.world.folder("player").unwrap(),
            "echoBasic": programs.join("echo-basic"),
            "meshProxy": bins::find("mesh-proxy").unwrap(),
            "nameserver": "169.254.96.16",
            "class": CLASS,
            "ports": PORTS,
            "pods": pods,
            "gateways": gateways,
        });
        let file = self.world.folder("player").unwrap().join("config.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(programs.join("player"));
        command.arg("run").arg(file);
        self.spawn("cloud", "player", &command);
    }

    fn suite(&self, programs: &Path, only: Option<&str>) -> Report {
        let folder = self.world.folder("report").unwrap();
        let (output, log) = (folder.join("report.yaml"), folder.join("suite.log"));
        let mut args: Vec<String> = [
            "-test.v",
            "-test.timeout=80m",
            "-all-features",
            "-allow-crds-mismatch",
            "-cleanup-base-resources=false",
            "-organization=selvage",
            "-project=selvage",
            "-url=https://selvage.invalid",
            "-contact=@selvage",
            // The suite's own limits are for clouds; what takes longer here has failed.
            "-timeout-config-overrides=GatewayMustHaveAddress:60;GatewayMustHaveCondition:60;\
             ListenerSetMustHaveCondition:60;DefaultTestTimeout:60;MaxTimeToConsistency:20",
        ]
        .map(str::to_owned)
        .to_vec();
        args.push(format!("-version={}", env!("CARGO_PKG_VERSION")));
        args.push(format!("-gateway-class={CLASS}"));
        args.push(format!("-conformance-profiles={PROFILES}"));
        args.push(format!("-exempt-features={NOT_CLAIMED}"));
        args.push(format!("-report-output={}", output.display()));
        args.extend(only.map(|t| format!("-run-test={t}")));
        let mut command = Command::new(programs.join("conformance.test"));
        command.args(args).env("KUBECONFIG", self.cluster.admin_kubeconfig()).current_dir(&folder);
        let mut process = self.world.node("cloud").unwrap().spawn("suite", &command).unwrap();
        let ended = process.wait(Duration::from_secs(85 * 60));
        std::fs::copy(process.log_path(), &log).unwrap();
        assert!(ended.is_some(), "the suite does not end:\n{}", process.tail());
        let kept = manifests::root().join("target/gateway-api");
        std::fs::create_dir_all(&kept).unwrap();
        std::fs::copy(&log, kept.join("suite.log")).unwrap();
        if output.exists() {
            std::fs::copy(&output, kept.join("report.yaml")).unwrap();
        }
        read(&std::fs::read_to_string(&log).unwrap())
    }

    /// Logs of what ran, for whoever looks for the reason of a failure.
    fn keep_logs(&self, to: &Path) {
        for (folder, to) in [("logs", to.join("logs")), ("data/player", to.join("pods"))] {
            let _before = std::fs::remove_dir_all(&to);
            std::fs::create_dir_all(&to).unwrap();
            for entry in std::fs::read_dir(self.world.dir().join(folder)).unwrap().flatten() {
                if entry.path().is_file() {
                    std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
                }
            }
        }
    }
}

/// Counts the suite's tests by its log: those directly below `TestConformance`.
fn read(log: &str) -> Report {
    let (mut passed, mut skipped, mut failed) = (0, 0, BTreeSet::new());
    for line in log.lines() {
        // `    --- PASS: TestConformance/HTTPRouteMatching (1.20s)`
        let Some((outcome, rest)) = line.trim_start().strip_prefix("--- ").and_then(|l| l.split_once(": "))
        else {
            continue;
        };
        let Some(name) = rest.split(' ').next().and_then(|n| n.strip_prefix("TestConformance/")) else {
            continue;
        };
        if name.contains('/') {
            continue;
        }
        match outcome {
            "PASS" => passed += 1,
            "SKIP" => skipped += 1,
            _ => {
                failed.insert(name.to_owned());
            }
        }
    }
    let mut text =
        format!("Gateway API conformance: {passed} passed, {} failed, {skipped} skipped\n", failed.len());
    for name in &failed {
        let _infallible = writeln!(text, "  failed: {name}");
    }
    if passed == 0 {
        text += log;
    }
    Report { text, passed, failed }
}
