//! Datagrams to services, and single pods of another site whose pod network is the same: with the real programs, in a
//! closed network.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(missing_docs, unreachable_pub, reason = "a test is no interface")]

#[path = "world/support.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    process::{Child, ChildStdin, ChildStdout},
    sync::OnceLock,
    time::{Duration, Instant},
};

use mesh_testkit::{
    bins,
    echo::load::Report,
    lab::Spec,
    mesh::{App, Mesh, Plan, manifest, metric},
};
use serde_json::json;

const SERVE: [&str; 8] = ["--http", "8080", "--tcp", "53", "--udp", "53", "--udp", "9000"];
const PORTS: [(&str, u16, &str); 4] =
    [("http", 8080, "TCP"), ("dns-tcp", 53, "TCP"), ("dns", 53, "UDP"), ("game", 9000, "UDP")];

/// Two sites with the same pod network: a client and `near` at one, `far` and `web` at the other. The addresses of
/// pods are the same on both sides.
fn mesh() -> &'static Mesh {
    static MESH: OnceLock<Mesh> = OnceLock::new();
    MESH.get_or_init(|| {
        bins::know("mesh-proxy", env!("CARGO_BIN_EXE_mesh-proxy"));
        let pods = Some("10.1.1.0/24".parse().unwrap());
        let world = Spec::named("udp")
            .site_with("left", |s| s.lan = "192.168.1.0/24".parse().unwrap())
            .node("cloud", None, None)
            .node("a", Some("left"), pods)
            .node("b", None, pods)
            .pod("client", "a")
            .pod("near-1", "a")
            .pod("far-1", "b")
            .pod("web-0", "b")
            .pod("web-1", "a");
        let apps = ["near-1", "far-1", "web-0", "web-1"]
            .map(|pod| App::new(pod, pod.split('-').next().unwrap(), "v1", &SERVE));
        let plan = Plan {
            world,
            controller: "cloud".to_owned(),
            apps: apps.to_vec(),
            manifests: ["near", "far"].map(|s| manifest::service(s, s, &PORTS)).to_vec(),
            proxy_settings: vec!["udp.idle_seconds=3".to_owned(), "udp.sessions=2048".to_owned()],
            ..Plan::default()
        };
        let mesh = Mesh::up(&plan).unwrap_or_else(|e| panic!("{}", e.full()));
        mesh.apply("web.yaml", &stateful_set(&mesh)).unwrap();
        let start = Instant::now();
        loop {
            let report = call(&mesh, "udp://web-0.web.default.svc.cluster.local:9000", &["--timeout", "1"]);
            if report.failed == 0 {
                break;
            }
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "no headless service: {report:?}\n{}",
                logs(&mesh)
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        mesh
    })
}

/// A headless service with a name for each pod, as a StatefulSet has it.
fn stateful_set(mesh: &Mesh) -> String {
    let endpoint = |pod: &str, node: &str| {
        json!({
            "addresses": [mesh.world.pod(pod).unwrap().address()], "nodeName": node, "hostname": pod,
            "targetRef": { "kind": "Pod", "name": pod, "namespace": "default" },
            "conditions": { "ready": true },
        })
    };
    let ports: Vec<_> =
        PORTS.iter().map(|(n, port, t)| json!({ "name": n, "port": port, "protocol": t })).collect();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" },
        "spec": { "clusterIP": "None", "ports": ports },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "web-1", "namespace": "default", "labels": { "kubernetes.io/service-name": "web" },
        },
        "addressType": "IPv4", "ports": ports,
        "endpoints": [endpoint("web-0", "b"), endpoint("web-1", "a")],
    });
    format!("{service:#}\n---\n{slice:#}\n")
}

fn call(mesh: &Mesh, url: &str, args: &[&str]) -> Report {
    mesh.call("client", url, args).unwrap()
}

/// Logs of both proxies, for a test that fails.
fn logs(mesh: &Mesh) -> String {
    let counts = |node: &str| {
        let text = mesh.metrics(node).unwrap_or_default();
        let ours = text.lines().filter(|l| l.starts_with("selvage_udp") && !l.ends_with(" 0"));
        ours.map(|l| format!("{l}\n")).collect::<String>()
    };
    ["a", "b"].iter().map(|n| format!("--- {n}\n{}\n{}", mesh.procs[*n].tail(), counts(n))).collect()
}

/// As [`call`]; no call may fail.
fn well(url: &str, args: &[&str]) -> Report {
    let report = call(mesh(), url, args);
    assert_eq!(report.failed, 0, "{url} {args:?}: {report:?}\n{}", logs(mesh()));
    report
}

/// One socket in the client's pod.
struct Socket {
    child: Child,
    write: ChildStdin,
    read: std::sync::mpsc::Receiver<Vec<u8>>,
}

impl Socket {
    fn to(address: &str) -> Self {
        let mut child = mesh().pipe("client", &format!("udp://{address}")).unwrap().spawn().unwrap();
        let (write, read) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (say, heard) = std::sync::mpsc::sync_channel(4096);
        std::thread::spawn(move || frames(read, &say));
        Self { child, write, read: heard }
    }

    fn send(&mut self, data: &[u8]) {
        let length = u16::try_from(data.len()).unwrap().to_be_bytes();
        self.write.write_all(&[&length, data].concat()).unwrap();
        self.write.flush().unwrap();
    }

    fn receive(&self) -> Option<Vec<u8>> {
        self.read.recv_timeout(Duration::from_secs(10)).ok()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

fn frames(mut read: ChildStdout, say: &std::sync::mpsc::SyncSender<Vec<u8>>) {
    let mut length = [0; 2];
    while read.read_exact(&mut length).is_ok() {
        let mut data = vec![0; usize::from(u16::from_be_bytes(length))];
        if read.read_exact(&mut data).is_err() || say.send(data).is_err() {
            return;
        }
    }
}

fn sessions(node: &str, side: &str) -> f64 {
    let side = format!("side=\"{side}\"");
    metric(&mesh().metrics(node).unwrap(), "selvage_udp_sessions", &[&side])
}

fn dropped(node: &str) -> f64 {
    metric(&mesh().metrics(node).unwrap(), "selvage_udp_dropped_total", &[])
}

#[test]
fn boundaries_are_kept_on_this_node_and_across_the_tunnel() {
    for host in ["near", "far", "web-0.web", "web-1.web"] {
        let mut socket = Socket::to(&format!("{host}.default.svc.cluster.local:9000"));
        for size in [1, 0, 1472, 65_507, 2] {
            let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            socket.send(&data);
            let back = socket.receive();
            assert!(
                back.as_ref() == Some(&data),
                "{host}: {size} bytes became {:?}\n{}",
                back.map(|b| b.len()),
                logs(mesh())
            );
        }
        // Several at once arrive as several.
        for i in 0..20_u8 {
            socket.send(&vec![i; usize::from(i) * 10]);
        }
        for i in 0..20_u8 {
            assert_eq!(socket.receive().map(|b| b.len()), Some(usize::from(i) * 10), "{host}");
        }
    }
}

#[test]
fn each_name_leads_to_its_pod_though_addresses_are_the_same() {
    let address = |pod: &str| mesh().world.pod(pod).unwrap().address();
    let here = ["client", "near-1", "web-1"].map(address);
    let both = ["far-1", "web-0"].map(address);
    assert!(both.iter().all(|ip| here.contains(ip)), "the sites use the same addresses: {here:?} {both:?}");
    let web = |pod: &str| format!("{pod}.web.default.svc.cluster.local");
    for (host, pod) in [
        ("near".to_owned(), "near-1"),
        ("far".to_owned(), "far-1"),
        (web("web-0"), "web-0"),
        (web("web-1"), "web-1"),
    ] {
        for url in [
            format!("udp://{host}:53"),
            format!("udp://{host}:9000"),
            format!("tcp://{host}:53"),
            format!("http://{host}:8080/"),
        ] {
            let report = well(&url, &["-n", "5", "--timeout", "10"]);
            assert_eq!(report.by_name, BTreeMap::from([(pod.to_owned(), 5)]), "{url}");
        }
    }
    // The headless name itself means all of them; resolvers prefer the address that is nearest to their own.
    let report = well("http://web.default.svc.cluster.local:8080/", &["-n", "10", "--no-keep-alive"]);
    assert!(report.by_name.keys().all(|name| name.starts_with("web-")), "{report:?}");
}

#[test]
fn questions_across_the_tunnel_are_answered_and_leave_nothing() {
    let start = Instant::now();
    let report = well("udp://far:53", &["--duration", "4", "--rate", "1000", "-c", "32", "--timeout", "10"]);
    let rate = report.sent as f64 / start.elapsed().as_secs_f64();
    eprintln!("{} questions, {rate:.0}/s, {:?}", report.sent, report.latency_ms);
    // Each is a session of its own; the answered ones end by themselves.
    let start = Instant::now();
    while sessions("a", "outbound") + sessions("b", "inbound") > 0.0 {
        assert!(start.elapsed() < Duration::from_secs(20), "sessions stay: {}", sessions("a", "outbound"));
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn thousands_of_sessions_one_after_the_other_stay_within_the_bound() {
    for host in ["near", "far"] {
        let before = dropped("a");
        let report = well(&format!("udp://{host}:9000"), &["-n", "2000", "-c", "2", "--timeout", "10"]);
        assert_eq!((report.sent, dropped("a") - before), (2000, 0.0), "{host}");
        assert!(sessions("a", "outbound") <= 2.0 * 2048.0);
    }
    let start = Instant::now();
    while sessions("a", "outbound") + sessions("b", "inbound") > 0.0 {
        assert!(start.elapsed() < Duration::from_secs(30), "sessions stay: {}", sessions("a", "outbound"));
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn nobody_is_asked_where_no_service_is() {
    let before = sessions("a", "outbound");
    let report = call(mesh(), "udp://far:9001", &["-n", "3", "--timeout", "0.3"]);
    assert_eq!(report.failed, 3, "{report:?}");
    assert!(sessions("a", "outbound") <= before + 2.0 * 2048.0);
}
