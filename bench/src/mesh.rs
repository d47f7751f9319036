//! The mesh in the bench: a controller that reads a folder, the proxy of the node `one` with redirect on, the proxy of
//! the node `two` at the other end of the tunnel, and that of the node `three` behind a relay. All share the namespace,
//! each with ports of its own.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use mesh_testkit::{bins, kube::Daemon};
use serde_json::{Value, json};

use crate::{
    load::{self, Kind},
    report::{APPLY, Report},
    subject::{self, Group, Subject},
    world::{CLIENT, FAR, NEAR, NODES, REMOTE, run},
};

/// Services that are known and not called, as in a mesh of some size.
const OTHERS: usize = 1000;
/// The services of the bench: name, address, L7 or L4. Each has the pod of the name before its dash.
const SERVICES: [(&str, [u8; 4], bool); 6] = [
    ("near", [10, 96, 0, 10], true),
    ("near-tcp", [10, 96, 0, 11], false),
    ("far", [10, 96, 0, 20], true),
    ("far-tcp", [10, 96, 0, 21], false),
    ("remote", [10, 96, 0, 30], true),
    ("remote-tcp", [10, 96, 0, 31], false),
];
/// First port of each proxy.
const ONE: u16 = 15_000;
const TWO: u16 = 16_000;
const RELAY: u16 = 17_000;
const THREE: u16 = 18_000;
/// Of the tunnel, after the first.
const TUNNEL: u16 = 8;

/// The mesh's processes, and its rule.
pub(crate) struct Mesh {
    rule: PathBuf,
    rules: usize,
    /// The other nodes, the node `one`, the controller.
    _processes: Vec<Daemon>,
}

/// Starts controller and proxies, and returns when calls go through. `relayed`: with a node that only a relay reaches.
pub(crate) fn start(dir: &Path, relayed: bool) -> Result<(Mesh, Vec<Group>)> {
    let objects = dir.join("objects");
    fs::create_dir_all(&objects)?;
    replace(&objects.join("world.json"), &world())?;
    let rule_file = objects.join("rule.json");
    replace(&rule_file, &rule(0))?;
    let state = dir.join("controller");
    let controller = controller(dir, &objects, &state)?;
    let one = proxy(dir, &state, "one", ONE)?;
    let two = proxy(dir, &state, "two", TWO)?;
    let mut near = Group::of("mesh-proxy", subjects("mesh-proxy", "near"), vec![one.pid()]);
    near.binary = Some(find("mesh-proxy")?);
    let far = Group::of("mesh-tunnel", subjects("mesh-tunnel", "far"), vec![one.pid(), two.pid()]);
    let mut groups = vec![near, far];
    let mut processes = vec![two];
    if relayed {
        let relay = proxy(dir, &state, "relay", RELAY)?;
        // All nodes are one host here. What leads straight to these two ports goes nowhere; what the relay answers does:
        // nodes dial it from there.
        let closed = format!("{{ {}, {} }}", ONE + TUNNEL, THREE + TUNNEL);
        run("nft", &["add table inet bench"])?;
        run("nft", &["add chain inet bench out { type filter hook output priority 0 ; }"])?;
        run(
            "nft",
            &[&format!(
                "add rule inet bench out meta l4proto {{ tcp, udp }} th dport {closed} th sport != {} drop",
                RELAY + TUNNEL
            )],
        )?;
        let three = proxy(dir, &state, "three", THREE)?;
        let pids = vec![one.pid(), relay.pid(), three.pid()];
        let mut subject = subjects("mesh-tunnel", "remote");
        subject.truncate(1);
        subject[0].name = "mesh-tunnel-relayed".to_owned();
        match reachable(&subject[0]) {
            Ok(()) => groups.push(Group::of("mesh-tunnel-relayed", subject, pids)),
            Err(error) => eprintln!("bench: mesh-tunnel-relayed is left out: {error:#}"),
        }
        processes.extend([three, relay]);
    }
    processes.extend([one, controller]);
    for subject in groups.iter().flat_map(|g| &g.subjects) {
        reachable(subject).with_context(|| format!("logs are in {}", dir.display()))?;
    }
    Ok((Mesh { rule: rule_file, rules: 0, _processes: processes }, groups))
}

fn subjects(name: &str, service: &str) -> Vec<Subject> {
    let vip = |name: &str| SERVICES.iter().find(|s| s.0 == name).map_or([0; 4], |s| s.1);
    let tcp = format!("{service}-tcp");
    let (l7, l4) = (SocketAddr::from((vip(service), 80)), vip(&tcp));
    vec![
        Subject::new(format!("{name}-l4"), &host(&tcp)).http((l4, 80).into()).bulk((l4, 81).into()),
        Subject::new(format!("{name}-l7"), &host(service)).http(l7),
    ]
}

fn host(service: &str) -> String {
    format!("{service}.default.svc.cluster.local")
}

fn controller(dir: &Path, objects: &Path, state: &Path) -> Result<Daemon> {
    let mut command = Command::new(find("mesh-controller")?);
    command.arg("--source").arg(format!("dir:{}", objects.display())).arg("--state-dir").arg(state);
    subject::start("mesh-controller", dir, command, ([127, 0, 0, 1], 15_012).into())
}

/// Starts the proxy of a node whose ports begin at `base`.
fn proxy(dir: &Path, state: &Path, node: &'static str, base: u16) -> Result<Daemon> {
    let token = Command::new(find("meshctl")?)
        .args(["token", "create", "--node", node, "--state-dir"])
        .arg(state)
        .output()
        .context("run meshctl")?;
    if !token.status.success() {
        bail!("meshctl token create: {}", String::from_utf8_lossy(&token.stderr).trim());
    }
    let at = |port: u16| SocketAddr::from(([0, 0, 0, 0], base + port)).to_string();
    let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], base + port)).to_string();
    let config = json!({
        "node": node,
        "state_dir": dir.join(node),
        "controller": "127.0.0.1:15012",
        "join_token": String::from_utf8_lossy(&token.stdout).trim(),
        "workers": 2,
        "listen": {
            "outbound": at(1), "tunnel": at(TUNNEL), "admin": local(0), "metrics": at(20),
            "health": at(21), "proxy": local(80),
        },
        "dns": { "enabled": false },
        // Calls are captured for the node of the client.
        "capture": { "enabled": base == ONE },
        "tunnel": { "relay": { "enabled": base == RELAY } },
        // A node that says where it is reached asks no relay for a place.
        "advertise": if base == THREE { json!([]) } else { json!([NODES]) },
        "log_level": "warn",
    });
    let file = dir.join(format!("{node}.yaml"));
    fs::write(&file, config.to_string())?;
    let mut command = Command::new(find("mesh-proxy")?);
    command.arg("--config").arg(file);
    subject::start(node, dir, command, ([127, 0, 0, 1], base + 21).into())
}

fn find(program: &str) -> Result<PathBuf> {
    bins::find(program).map_err(|e| anyhow!("{program}: {e}"))
}

/// Waits until some calls in a row succeed.
fn reachable(subject: &Subject) -> Result<()> {
    let Some(target) = subject.http else { return Ok(()) };
    let start = Instant::now();
    loop {
        let outcome = load::run(Kind::NewConnections(1), target, &subject.host, Duration::from_millis(100))?;
        if outcome.failed == 0 && outcome.done > 2 {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(30) {
            bail!("{} does not answer at {target}: {} calls failed", subject.name, outcome.failed);
        }
    }
}

fn world() -> Value {
    let mut items = vec![
        node("one"),
        node("two"),
        node("three"),
        node("relay"),
        pod("client", "one", CLIENT),
        pod("near", "one", NEAR),
        pod("far", "two", FAR),
        pod("remote", "three", REMOTE),
    ];
    for (name, address, is_http) in SERVICES {
        let pod = name.split('-').next().unwrap_or(name);
        let ports = if is_http {
            json!([{ "name": "http", "port": 80, "targetPort": 8080 }])
        } else {
            json!([{ "name": "tcp", "port": 80, "targetPort": 8080 }, { "name": "tcp-bulk", "port": 81, "targetPort": 8081 }])
        };
        items.push(service(name, address, &json!({ "app": pod }), &ports));
    }
    for i in 0..OTHERS {
        let address = [10, 97, (i / 250) as u8, (i % 250 + 1) as u8];
        let ports = json!([{ "name": "http", "port": 80 }]);
        items.push(service(&format!("other-{i}"), address, &json!({ "app": "other" }), &ports));
    }
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

fn node(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } })
}

fn pod(name: &str, node: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "labels": { "app": name, "version": "v1" } },
        "spec": { "nodeName": node, "serviceAccountName": name, "containers": [{ "name": "c", "image": "none" }] },
        "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
            "conditions": [{ "type": "Ready", "status": "True" }] },
    })
}

pub(crate) fn service(name: &str, address: [u8; 4], selector: &Value, ports: &Value) -> Value {
    let address = std::net::Ipv4Addr::from(address);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "clusterIP": address, "clusterIPs": [address], "selector": selector, "ports": ports },
    })
}

/// A rule with matches that miss before the one that hits, as real ones have. Its number is in every answer.
fn rule(number: usize) -> Value {
    let route = json!([{ "destination": { "host": "near" }, "headers": { "response": { "set": { "x-rule": number.to_string() } } } }]);
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": { "name": "near", "namespace": "default" },
        "spec": { "hosts": ["near"], "http": [
            { "match": [{ "headers": { "end-user": { "exact": "jason" } } }], "route": route },
            { "match": [{ "uri": { "prefix": "/admin" } }, { "uri": { "regex": "/v[0-9]+/.*" } }], "route": route },
            { "route": route },
        ] },
    })
}

/// Writes a manifest as a deployment tool does: whole, by rename.
pub(crate) fn replace(path: &Path, content: &Value) -> Result<()> {
    let hidden = path.with_file_name(".next");
    fs::write(&hidden, content.to_string())?;
    fs::rename(&hidden, path).with_context(|| format!("replace {}", path.display()))
}

impl Mesh {
    /// How long a changed rule takes to steer traffic: from the file's replacement to the first answer by the new rule.
    pub(crate) fn apply_to_effect(&mut self, rounds: usize, report: &mut Report) -> Result<()> {
        let target = subjects("mesh-proxy", "near").into_iter().find(|s| s.name.ends_with("-l7"));
        let Some((target, host)) = target.and_then(|s| Some((s.http?, s.host))) else { return Ok(()) };
        for round in 0..rounds {
            self.rules += 1;
            replace(&self.rule, &rule(self.rules))?;
            let start = Instant::now();
            while answered_by(target, &host)? != Some(self.rules) {
                if start.elapsed() > Duration::from_secs(10) {
                    bail!("rule {} has no effect after 10 s", self.rules);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            let millis = start.elapsed().as_secs_f64() * 1000.0;
            report.add(["apply", "rule-file", "mesh-proxy-l7"], APPLY, round, millis, None);
        }
        Ok(())
    }
}

/// The number of the rule that an answer says.
fn answered_by(target: SocketAddr, host: &str) -> Result<Option<usize>> {
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(&load::request(host, true))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    Ok(text.lines().find_map(|l| l.strip_prefix("x-rule: ")).and_then(|n| n.trim().parse().ok()))
}
