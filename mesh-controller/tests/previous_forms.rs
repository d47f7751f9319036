//! What the release before this one wrote is understood: messages on the wire by their definitions, and what a controller and
//! a proxy of it have left on their disks, where the resources of its controller lie byte for byte. Its programs themselves
//! run in the chart's test.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where it fails")]

#[path = "previous/definitions.rs"]
mod definitions;

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use definitions::Definitions;
use mesh_testkit::{bins, ports::free_address};
use serde_json::Value;

fn previous() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chart/previous")
}

/// Fields may come; none may go, or mean something else.
#[test]
fn definitions_have_only_grown() {
    let now = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mesh-proxy/api/proto");
    for file in ["mesh.proto", "discovery.proto"] {
        let read = |folder: &Path| Definitions::read(&fs::read_to_string(folder.join(file)).unwrap());
        let (old, new) = (read(&previous().join("proto")), read(&now));
        assert!(old.len() > 10, "{file}: {old:?}");
        let lost = old.lost_in(&new);
        assert!(lost.is_empty(), "{file}: a proxy or controller of before speaks otherwise: {lost:#?}");
    }
}

/// A child that does not outlive the test; its log is shown when the test fails.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(mut command: Command, log: PathBuf) -> Self {
        let file = File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Self { child: command.spawn().unwrap(), log }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            println!("{}:\n{}", self.log.display(), fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    };
    ask().unwrap_or_default()
}

fn until(what: &str, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}: not after a minute");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

struct Proxy {
    _process: Process,
    admin: SocketAddr,
    health: SocketAddr,
}

fn proxy(dir: &Path, controller: SocketAddr, token: &str) -> Proxy {
    let (admin, health) = (free_address(), free_address());
    let mut command = Command::new(bins::find("mesh-proxy").unwrap());
    command.args(["--node", "edge-a", "--workers", "1", "--controller", &controller.to_string()]);
    command.arg("--state-dir").arg(dir.join("proxy"));
    command.env("MESH_PROXY_CAPTURE__ENABLED", "false").env("MESH_PROXY_DNS__ENABLED", "false");
    if !token.is_empty() {
        command.env("MESH_PROXY_JOIN_TOKEN", token);
    }
    for key in ["outbound", "tunnel", "metrics", "proxy"] {
        command.args(["--set", &format!("listen.{key}={}", free_address())]);
    }
    command.args(["--set", &format!("listen.admin={admin}"), "--set", &format!("listen.health={health}")]);
    let process = Process::start(command, dir.join("proxy.log"));
    let proxy = Proxy { _process: process, admin, health };
    until("the proxy is ready", || get(proxy.health, "/healthz/ready").contains("ready"));
    proxy
}

/// Whether everything that was said is said again; more may be.
fn said_again(old: &Value, new: &Value, at: &str, lost: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in old {
                said_again(value, new.get(key).unwrap_or(&Value::Null), &format!("{at}.{key}"), lost);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (i, (old, new)) in old.iter().zip(new).enumerate() {
                said_again(old, new, &format!("{at}[{i}]"), lost);
            }
        }
        (old, new) if old == new => {}
        (old, new) => lost.push(format!("{at}: {old} has become {new}")),
    }
}

/// Without a controller a node goes on with what its last one of before had told it; with today's on the state of before it
/// joins, by a token that lies there or by its certificate, whichever still holds.
#[test]
fn a_node_and_a_controller_go_on_with_what_is_on_their_disks() {
    let dir = tempfile::tempdir().unwrap();
    copy(&previous().join("state"), dir.path());
    let dump: Value = serde_json::from_slice(&fs::read(previous().join("state/dump.json")).unwrap()).unwrap();
    let same = |proxy: &Proxy| {
        let now: Value = serde_json::from_str(&get(proxy.admin, "/config_dump")).unwrap();
        let mut lost = Vec::new();
        for part in ["node", "nodes", "services", "workloads", "cluster_domain", "trust_domain"] {
            said_again(&dump[part], &now[part], part, &mut lost);
        }
        lost
    };
    let alone = proxy(dir.path(), free_address(), "");
    let lost = same(&alone);
    assert!(lost.is_empty(), "{lost:#?}");
    drop(alone);

    let (listen, admin, metrics) = (free_address(), free_address(), free_address());
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-controller"));
    command.arg("--source").arg(format!("dir:{}", dir.path().join("source").display()));
    command.arg("--state-dir").arg(dir.path().join("controller"));
    for (key, address) in [("--listen", listen), ("--metrics-listen", metrics), ("--admin-listen", admin)] {
        command.args([key, &address.to_string()]);
    }
    let _controller = Process::start(command, dir.path().join("controller.log"));
    until("the controller answers", || get(admin, "/state").contains("\"synced\": true"));
    let mut meshctl = Command::new(bins::find("meshctl").unwrap());
    meshctl.args(["token", "create", "--node", "edge-a", "--state-dir"]).arg(dir.path().join("controller"));
    let token = meshctl.output().unwrap();
    assert!(token.status.success(), "{}", String::from_utf8_lossy(&token.stderr));
    let followed = proxy(dir.path(), listen, String::from_utf8_lossy(&token.stdout).trim());
    until("today's controller leads it", || {
        get(followed.admin, "/stats/prometheus").contains("\nselvage_discovery_connected 1")
    });
    let ca = fs::read(dir.path().join("controller/ca/ca.crt")).unwrap();
    assert_eq!(ca, fs::read(previous().join("state/controller/ca/ca.crt")).unwrap(), "the CA stays");
    let lost = same(&followed);
    assert!(lost.is_empty(), "{lost:#?}");
}
