//! A mesh of two sites behind NATs, a relay and a controller; everything in it is used, and much of it is broken.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use mesh_testkit::{
    bins,
    lab::{LabError, Nat, Proc, Spec},
    mesh::{App, Mesh, Plan, manifest, metric},
};

const SERVE: [&str; 8] = ["--http", "8080", "--http", "8082", "--tcp", "9000", "--udp", "9000"];
const PORTS: [(&str, u16, &str); 4] =
    [("http", 8080, "TCP"), ("grpc", 8082, "TCP"), ("tcp", 9000, "TCP"), ("udp", 9000, "UDP")];
const READY: Duration = Duration::from_secs(30);
/// What does not show within this time is looked for again at the end.
const PATIENCE: Duration = Duration::from_secs(15);
/// A node that is no member.
const LATE: &str = "late";

pub struct World {
    mesh: Mesh,
    /// While this file is there, nft fails on the node `a2`.
    broken: PathBuf,
    _names: Proc,
    /// Stages so far.
    turn: usize,
    /// The node `a2` is no member any more.
    removed: bool,
}

/// What is done, and what it calls between its steps.
type Run = fn(&mut World, &mut dyn FnMut(&str));

/// Something that is done to the mesh.
pub struct Stage {
    pub name: &'static str,
    run: Run,
    /// Metrics that nothing else moves; all others move with the calls.
    pub moves: &'static [&'static str],
}

impl Stage {
    const fn new(name: &'static str, run: Run, moves: &'static [&'static str]) -> Self {
        Self { name, run, moves }
    }
}

/// All of it, in this order. Each may be gone through again.
pub static STAGES: [Stage; 7] = [
    Stage::new("calls", |world, _| world.calls(), &[]),
    Stage::new(
        "rules",
        |world, _| world.rules(),
        &[
            "selvage_controller_findings",
            "selvage_controller_source_errors_total",
            "selvage_ignored_fields",
            "selvage_outbound_mirrors_skipped_total",
            "selvage_resource_errors",
            "selvage_route_requests_total",
        ],
    ),
    Stage::new(
        "nobody and nothing",
        |world, _| world.nobody_and_nothing(),
        &[
            "selvage_controller_failed_handshakes_total",
            "selvage_inbound_refused_total",
            "selvage_outbound_bad_requests_total",
            "selvage_outbound_loops_total",
            "selvage_outbound_refused_connections_total",
            "selvage_outbound_retries_denied_total",
            "selvage_udp_dropped_total",
        ],
    ),
    Stage::new(
        "spoil",
        World::spoil,
        &[
            "selvage_capture_failed_total",
            "selvage_capture_repaired_total",
            "selvage_outbound_accept_pauses_total",
        ],
    ),
    Stage::new(
        "controllers",
        World::controllers,
        &["selvage_discovery_failures_total", "selvage_discovery_handovers_total"],
    ),
    Stage::new("leave", World::leave, &["selvage_relay_refused_total", "selvage_tunnel_refused_total"]),
    Stage::new(
        "cut",
        World::cut,
        &[
            "selvage_controller_copied_nodes_total",
            "selvage_controller_nodes_left_total",
            "selvage_tunnel_denied_connections_total",
            "selvage_tunnel_silent_connections_total",
        ],
    ),
];

fn plan() -> Plan {
    let net = |text: &str| text.parse().unwrap();
    let world = Spec::named("metrics")
        .site("left", net("192.168.1.0/24"), Nat::PortRestricted)
        .site("right", net("192.168.1.0/24"), Nat::PortRestricted)
        .node("cloud", None, None)
        .node("relay", None, None)
        .node(LATE, None, None)
        .node("a", Some("left"), Some(net("10.1.1.0/24")))
        .node("a2", Some("left"), Some(net("10.1.2.0/24")))
        .node("b", Some("right"), Some(net("10.1.3.0/24")))
        .pod("client", "a")
        .pod("near-1", "a")
        .pod("far-1", "b");
    let apps = vec![App::new("near-1", "near", "v1", &SERVE), App::new("far-1", "far", "v1", &SERVE)];
    let mut manifests = ["near", "far"].map(|s| manifest::service(s, s, &PORTS)).to_vec();
    // Nobody listens there, and retries do not help.
    manifests.push(manifest::service("closed", "near", &[("http", 8099, "TCP"), ("udp", 9999, "UDP")]));
    manifests.push(manifest::service("shut", "far", &[("http", 8099, "TCP")]));
    manifests.push(manifest::service("nobody", "none", &[("udp", 9000, "UDP")]));
    manifests.push(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: closed}\nspec:\n  host: closed\n  \
         trafficPolicy: {connectionPool: {http: {maxRetries: 1}}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: closed}\nspec:\n  hosts: [closed]\n  \
         http: [{route: [{destination: {host: closed}}], retries: {attempts: 5, retryOn: connect-failure}}]\n"
            .to_owned(),
    );
    Plan {
        world,
        controller: "cloud".to_owned(),
        apps,
        manifests,
        relays: vec!["relay".to_owned()],
        ..Plan::default()
    }
}

impl World {
    pub fn up() -> Self {
        bins::know("mesh-proxy", env!("CARGO_BIN_EXE_mesh-proxy"));
        let mut plan = plan();
        plan.proxy_settings = [
            "accessLog.format=json",
            // Full, always.
            "accessLog.path=/dev/full",
            // Nobody listens there: spans wait, and the oldest give way.
            "tracing.endpoint=http://127.0.0.1:9",
            "tracing.samplingPercent=100",
            "tracing.buffer=4",
            "udp.idle_seconds=3",
            "telemetry.maxSeries=12",
            "outbound.sweepS=1",
            "drain_seconds=3",
        ]
        .map(str::to_owned)
        .to_vec();
        let few = vec!["outbound.maxConnections=2".to_owned()];
        plan.node_settings.insert("b".to_owned(), few);
        let dir = std::env::temp_dir().join(format!("selvage-metrics-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (broken, nft) = (dir.join("broken"), dir.join("nft"));
        fs::write(&nft, format!("#!/bin/sh\n[ -e {} ] && exit 1\nexec nft \"$@\"\n", broken.display()))
            .unwrap();
        Command::new("chmod").arg("755").arg(&nft).status().unwrap();
        plan.node_settings.insert("a2".to_owned(), vec![format!("capture.nft={}", nft.display())]);
        let mut mesh = Mesh::network(&plan).unwrap_or_else(|e| panic!("{}", e.full()));
        let names = name_server(&mesh);
        start(&mut mesh, &plan.apps);
        Self { mesh, broken, _names: names, turn: 0, removed: false }
    }

    /// All that the proxies and the controller have logged last.
    pub fn logs(&self) -> String {
        let procs = self.mesh.procs.iter().map(|(name, p)| (name.as_str(), p));
        let all = procs.chain(self.mesh.controller.iter().map(|p| ("controller", p)));
        all.map(|(name, p)| format!("--- {name}\n{}\n", p.tail())).collect()
    }

    /// Uses everything or breaks something, and lets `read` see what all say.
    pub fn go_through(&mut self, stage: &Stage, read: &mut dyn FnMut(&str)) {
        (stage.run)(self, read);
        self.scrape(read);
        self.turn += 1;
    }

    fn call(&self, at: &str, url: &str, args: &[&str]) {
        // Whether it works is the matter of other tests.
        let _report = self.mesh.call(at, url, args).unwrap();
    }

    fn calls(&self) {
        for host in ["near", "far"] {
            self.call("client", &format!("http://{host}:8080/"), &["-n", "5"]);
            self.call("client", &format!("http://{host}:8082/"), &["--grpc"]);
            self.call("client", &format!("tcp://{host}:9000"), &[]);
        }
        // A name that the name server knows, twice; and one about which it is silent.
        for name in ["known.example", "known.example", "silent.example"] {
            self.call("client", &format!("http://{name}/"), &["--timeout", "1"]);
        }
        self.call("client", "udp://far:9000", &["--timeout", "1"]);
    }

    fn scrape(&self, read: &mut dyn FnMut(&str)) {
        for node in self.mesh.nodes().iter().map(String::as_str).chain([LATE]) {
            if let Ok(text) = self.mesh.metrics(node) {
                read(&text);
            }
        }
        let controller = self.mesh.call("cloud", "http://127.0.0.1:15014/metrics", &[]).unwrap();
        if controller.failed == 0 {
            read(&controller.last_body);
        }
    }

    /// Scrapes one place until a metric is not zero there; not for ever, since what is missing is said at the end.
    fn until(&self, at: &str, name: &str, read: &mut dyn FnMut(&str)) {
        let (place, url) = match at {
            "controller" => ("cloud", "http://127.0.0.1:15014/metrics"),
            node => (node, "http://127.0.0.1:15020/metrics"),
        };
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let report = self.mesh.call(place, url, &["--timeout", "1"]).unwrap();
            if report.failed == 0 {
                read(&report.last_body);
                if metric(&report.last_body, name, &[]) != 0.0 {
                    return;
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Rules with a field that has no effect, a mistake, a copy that is too large, and an abort.
    fn rules(&self) {
        let rule = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: near}\nspec:\n  hosts: [near]\n  \
             http:\n  - match: [{uri: {prefix: /rule}, statPrefix: x}]\n    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}\n    \
             route: [{destination: {host: near}}]\n    headers: {request: {set: {x: '%NOT_A_COMMAND%'}}}\n  \
             - route: [{destination: {host: near}}]\n    mirror: {host: far}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: broken}\nspec:\n  hosts: [far]\n  \
             http: [{match: [{uri: {regex: '('}}], route: [{destination: {host: far}}]}]\n";
        self.mesh.apply("rule.yaml", rule).unwrap();
        self.mesh.apply("damaged.yaml", "kind: [\n").unwrap();
        std::thread::sleep(Duration::from_secs(1));
        self.call("client", "http://near:8080/copied", &["-X", "POST", "--body-bytes", "3000000"]);
        self.call("client", "http://near:8080/rule", &[]);
    }

    /// Endpoints that are not there, requests that nobody understands, callers that are too many.
    fn nobody_and_nothing(&self) {
        self.call("client", "http://closed:8099/", &["-n", "24", "-c", "12", "--timeout", "1"]);
        self.call("client", "udp://closed:9999", &["--timeout", "1"]);
        self.call("client", "udp://nobody:9000", &["--timeout", "1"]);
        self.call("client", "http://shut:8099/", &["--timeout", "2"]);
        self.call("a", "tcp://127.0.0.1:15001", &["--timeout", "1"]);
        self.call("far-1", "http://near:8080/", &["-n", "20", "-c", "20", "--timeout", "1"]);
        let near = format!("{}:8080", manifest::vip("default", "near"));
        let twice = "GET / HTTP/1.1\r\nHost: near\r\nHost: far\r\n\r\n";
        self.say("client", &near, twice);
        self.say("cloud", "127.0.0.1:15012", "this is no handshake\r\n\r\n");
    }

    /// Writes to a connection and waits for what comes, a moment.
    fn say(&self, at: &str, to: &str, text: &str) {
        let mut child = self.mesh.pipe(at, to).unwrap().spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
        let mut heard = [0; 64];
        let mut out = child.stdout.take().unwrap();
        let _anything = out.read(&mut heard);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Capture rules go away, or cannot be written; descriptors run out.
    fn spoil(&mut self, read: &mut dyn FnMut(&str)) {
        let delete = "nft list tables | grep selvage | while read t; do nft delete $t; done";
        self.mesh.world.node("a").unwrap().exec(&["sh", "-c", delete]).unwrap();
        fs::write(&self.broken, "").unwrap();
        let more = manifest::service(&format!("more-{}", self.turn), "near", &PORTS);
        self.mesh.apply("more.yaml", &manifest::with_addresses(&more).unwrap()).unwrap();
        let pid = self.mesh.procs["b"].pid().unwrap().to_string();
        let limit = |files: &str| {
            let done = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={files}")]).status();
            assert!(done.unwrap().success());
        };
        limit("8:4096");
        self.call("far-1", "http://near:8080/", &["-n", "5", "-c", "5", "--timeout", "1", "--no-keep-alive"]);
        limit("4096:4096");
        self.until("b", "selvage_outbound_accept_pauses_total", read);
        self.until("a", "selvage_capture_repaired_total", read);
        self.until("a2", "selvage_capture_failed_total", read);
        fs::remove_file(&self.broken).unwrap();
    }

    /// A controller that stops, and one that is killed.
    fn controllers(&mut self, read: &mut dyn FnMut(&str)) {
        self.mesh.controller.take().unwrap().stop(Duration::from_secs(10));
        self.mesh.start_controller().unwrap();
        self.until("a", "selvage_discovery_connected", read);
        self.mesh.controller.take().unwrap().kill();
        self.until("a", "selvage_discovery_failures_total", read);
        self.mesh.start_controller().unwrap();
    }

    /// A node that stops while it is called.
    fn leave(&mut self, read: &mut dyn FnMut(&str)) {
        let long =
            self.mesh.pipe("client", &format!("{}:9000", manifest::vip("default", "far"))).unwrap().spawn();
        let mut long = long.unwrap();
        long.stdin.as_mut().unwrap().write_all(b"still here\n").unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let load = self.mesh.load("client", "tcp://far:9000", &["--rate", "50", "-c", "4"]).unwrap();
        let b = &self.mesh.procs["b"];
        b.signal(mesh_testkit::lab::Signal::SIGTERM).unwrap();
        self.until("b", "selvage_tunnel_refused_total", read);
        self.mesh.procs.get_mut("b").unwrap().wait(Duration::from_secs(10));
        let _failed = load.finish();
        long.kill().unwrap();
        long.wait().unwrap();
        // Nobody of that name has a place at the relay now.
        self.call("client", "http://far:8080/", &["--timeout", "1"]);
        self.until("relay", "selvage_relay_refused_total", read);
        start_proxy(&mut self.mesh, "b", None);
        self.mesh.wait_ready("b", READY).unwrap();
    }

    /// A copied disk, and a node that is removed.
    fn copy(&mut self, read: &mut dyn FnMut(&str)) {
        let folder = |name: &str| self.mesh.world.folder(name).unwrap();
        let copied =
            Command::new("cp").args(["-a", "--"]).arg(folder("proxy-a")).arg(folder("copies")).status();
        assert!(copied.unwrap().success());
        self.mesh.procs.remove(LATE).unwrap().kill();
        let place = self.mesh.world.node(LATE).unwrap();
        let cloud = self.mesh.world.node("cloud").unwrap().address();
        let mut command = Command::new(bins::find("mesh-proxy").unwrap());
        command.args(["--node", "a", "--controller", &format!("{cloud}:15012"), "--state-dir"]);
        command.arg(folder("copies").join("proxy-a"));
        let copy = place.spawn("mesh-proxy", &command).unwrap();
        self.mesh.procs.insert(LATE.to_owned(), copy);
        self.until("controller", "selvage_controller_copied_nodes_total", read);
        let remove = Command::new(bins::find("meshctl").unwrap())
            .args(["node", "remove", "a2", "--state-dir"])
            .arg(folder("controller"))
            .output()
            .unwrap();
        let is_gone = std::mem::replace(&mut self.removed, true);
        assert!(remove.status.success() || is_gone, "{}", String::from_utf8_lossy(&remove.stderr));
        // It does not know, and comes again. Its next process would not: it could not keep where the relay is.
        self.until("relay", "selvage_tunnel_denied_connections_total", read);
        self.mesh.procs.remove("a2").unwrap().kill();
        start_proxy(&mut self.mesh, "a2", None);
        self.until("controller", "selvage_controller_nodes_left_total", read);
    }

    /// A network that swallows packets; what does not need the node behind it happens meanwhile.
    fn cut(&mut self, read: &mut dyn FnMut(&str)) {
        self.mesh.world.cut("b", None).unwrap();
        let load = self.mesh.load("client", "http://far:8080/", &["--rate", "5", "--timeout", "2"]).unwrap();
        self.copy(read);
        self.until("a", "selvage_tunnel_silent_connections_total", read);
        let _failed = load.finish();
        self.mesh.world.heal().unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(dir) = self.broken.parent() {
            let _left = fs::remove_dir_all(dir);
        }
    }
}

/// A name server in the cloud: this very program, as an ignored test.
fn name_server(mesh: &Mesh) -> Proc {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", "world::name_server_of_the_world"]);
    mesh.world.node("cloud").unwrap().spawn("name-server", &command).unwrap()
}

fn start(mesh: &mut Mesh, apps: &[App]) {
    fn up<T>(result: Result<T, LabError>) -> T {
        result.unwrap_or_else(|e| panic!("{}", e.full()))
    }
    // A database that is none, and one that cannot be opened.
    fs::write(mesh.world.folder("proxy-b").unwrap().join("snapshot.db"), [b'x'; 9000]).unwrap();
    fs::create_dir_all(mesh.world.folder("proxy-a2").unwrap().join("snapshot.db/not-empty")).unwrap();
    up(mesh.start_controller());
    apps.iter().for_each(|app| up(mesh.start_app(app)));
    for node in mesh.nodes() {
        let token = up(mesh.token(&node));
        start_proxy(mesh, &node, Some(&token));
    }
    for node in mesh.nodes() {
        up(mesh.wait_ready(&node, READY));
    }
    // One with the token of another.
    let token = up(mesh.token("somebody"));
    start_proxy(mesh, LATE, Some(&token));
}

/// Starts a node's proxy, which asks the cloud for names.
fn start_proxy(mesh: &mut Mesh, node: &str, token: Option<&str>) {
    let place = mesh.world.node(node).unwrap();
    let mut command = mesh.proxy_command(place, token).unwrap();
    let cloud = mesh.world.node("cloud").unwrap().address();
    command.args(["--set", &format!("dns.upstreams=[\"{cloud}:53\"]")]);
    let process = place.spawn("mesh-proxy", &command).unwrap();
    mesh.procs.insert(node.to_owned(), process);
}

/// Answers for `known.example`, and says nothing of `silent.example`.
#[test]
#[ignore = "a program of the world, not a test"]
fn name_server_of_the_world() {
    use hickory_proto::{
        op::{Message, ResponseCode},
        rr::{RData, Record, RecordType, rdata::A},
    };
    let socket = std::net::UdpSocket::bind("0.0.0.0:53").unwrap();
    let mut buffer = [0; 1500];
    loop {
        let (n, from) = socket.recv_from(&mut buffer).unwrap();
        let Ok(question) = Message::from_vec(&buffer[..n]) else { continue };
        let Some(query) = question.queries.first().cloned() else { continue };
        let name = query.name().to_string();
        if name.starts_with("silent.example") {
            continue;
        }
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.add_query(query.clone());
        if !name.starts_with("known.example") {
            answer.metadata.response_code = ResponseCode::NXDomain;
        } else if query.query_type() == RecordType::A {
            let address = A(std::net::Ipv4Addr::new(192, 0, 2, 1));
            answer.add_answer(Record::from_rdata(query.name().clone(), 60, RData::A(address)));
        }
        socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
    }
}
