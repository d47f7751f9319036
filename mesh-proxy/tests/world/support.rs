//! A mesh of three nodes, real programs in a closed network, shared by the tests of a file.

use std::process::Stdio;

use mesh_testkit::{
    bins,
    echo::load::Report,
    lab::Spec,
    mesh::{App, Mesh, Plan, manifest},
};
use serde_json::Value;
use tokio::{
    io::{Join, join},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// Ports of the services: name (which says the protocol) and number.
pub const PORTS: [(&str, u16, &str); 8] = [
    ("http", 8080, "TCP"),
    ("http2", 8081, "TCP"),
    ("grpc", 8082, "TCP"),
    ("tcp", 9000, "TCP"),
    ("tls", 8443, "TCP"),
    ("auto", 8083, "TCP"),
    ("banner", 9001, "TCP"),
    ("http-2", 8084, "TCP"),
];

const SERVE: [&str; 14] = [
    "--http", "8080", "--http", "8081", "--http", "8082", "--http", "8083", "--http", "8084", "--tls",
    "8443", "--tcp", "9000",
];

/// Two nodes, a client on the first, `near` on the same node, `far` on the other, `trio` on both.
pub fn up(name: &str) -> Mesh {
    bins::know("mesh-proxy", env!("CARGO_BIN_EXE_mesh-proxy"));
    let world = Spec::named(name)
        .node("cloud", None, None)
        .node("a", None, Some("10.1.1.0/24".parse().unwrap()))
        .node("b", None, Some("10.1.2.0/24".parse().unwrap()))
        .pod("client", "a")
        .pod("near-1", "a")
        .pod("far-1", "b")
        .pod("first-1", "b")
        .pod("trio-1", "a")
        .pod("trio-2", "b")
        .pod("trio-3", "b");
    let apps = vec![
        App::new("near-1", "near", "v1", &SERVE),
        App::new("far-1", "far", "v1", &SERVE),
        App::new("first-1", "first", "v1", &["--tcp", "9001", "--tcp-mode", "banner"]),
        App::new("trio-1", "trio", "v1", &SERVE),
        App::new("trio-2", "trio", "v1", &SERVE),
        App::new("trio-3", "trio", "v1", &SERVE),
    ];
    let services = ["near", "far", "first", "trio"].map(|s| manifest::service(s, s, &PORTS));
    let plan = Plan {
        world,
        controller: "cloud".to_owned(),
        apps,
        manifests: services.to_vec(),
        proxy_settings: vec!["drain_seconds=10".to_owned()],
        ..Plan::default()
    };
    Mesh::up(&plan).unwrap_or_else(|e| panic!("{}", e.full()))
}

/// Calls from the client's pod; no call may fail.
pub fn call(mesh: &Mesh, url: &str, args: &[&str]) -> Report {
    let report = mesh.call("client", url, args).unwrap();
    assert_eq!(report.failed, 0, "{url} {args:?}: {report:?}");
    report
}

/// A connection from a node or pod, end to end under the test's control.
pub struct Wire {
    pub io: Join<ChildStdout, ChildStdin>,
    _child: Child,
}

pub fn connect(mesh: &Mesh, at: &str, to: &str) -> Wire {
    let mut command = Command::from(mesh.pipe(at, to).unwrap());
    command.kill_on_drop(true).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let (out, stdin) = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
    Wire { io: join(out, stdin), _child: child }
}

/// What `echo` received, from its answer.
pub fn received(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(body)))
}
