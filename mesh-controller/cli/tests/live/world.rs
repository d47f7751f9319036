//! A controller and a proxy as processes on loopback, and meshctl.

use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use mesh_testkit::{bins, ports::free_address};
use serde_json::Value;

/// Runs meshctl as it is in this machine's shell, but for what its environment may say.
pub(crate) fn meshctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(args)
        .env_remove("MESH_PROXY_ADMIN_URL")
        .env_remove("KUBECONFIG")
        .output()
        .unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}{}", stdout(output), stderr(output)))
}

/// A child that does not outlive the test; its log is shown when the test fails.
pub(crate) struct Process {
    child: Child,
    log: std::path::PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            println!("{}:\n{}", self.log.display(), std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) controller: String,
    pub(crate) proxy: String,
    /// HTTP proxy of the node, for calls.
    pub(crate) forward: SocketAddr,
    controller_process: Option<Process>,
    _proxy_process: Process,
}

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {clusterIP: 10.96.0.10, selector: {app: reviews}, ports: [{name: http, port: 9080, targetPort: BACKEND}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews-old, namespace: shop}
spec: {clusterIP: 10.96.0.11, selector: {app: old}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-1, namespace: shop, labels: {app: reviews, version: v1}}
spec: {nodeName: edge-a, hostNetwork: true}
status: {podIP: 127.0.0.1, phase: Running}
---
apiVersion: v1
kind: Node
metadata: {name: edge-a, labels: {topology.kubernetes.io/zone: zone-1, topology.kubernetes.io/region: north}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - name: testers
    match: [{headers: {end-user: {exact: jason}}, uri: {prefix: /api}}]
    route: [{destination: {host: reviews, subset: v1}}]
    timeout: 1.5s
    retries: {attempts: 3}
  - route: [{destination: {host: reviews, subset: v1}, weight: 100}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {selector: {app: gw}, servers: [{port: {number: 8080, name: http, protocol: HTTP}, hosts: [shop.example.com]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [shop.example.com]
  gateways: [edge]
  http: [{match: [{uri: {prefix: /shop}}], route: [{destination: {host: reviews, port: {number: 9080}}}]}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: dead, namespace: shop}
spec:
  hosts: [dead.example.com]
  addresses: [240.0.0.9]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 127.0.0.1, ports: {http: NOBODY}}]
"#;

impl World {
    /// One service with one pod on the node `edge-a`, which is this machine; `backend` is what serves.
    pub(crate) fn start(backend: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        std::fs::create_dir(&source).unwrap();
        let text = MANIFESTS.replace("BACKEND", &backend.port().to_string());
        let text = text.replace("NOBODY", &free_address().port().to_string());
        std::fs::write(source.join("all.yaml"), text).unwrap();
        let (listen, metrics, admin) = (free_address(), free_address(), free_address());
        let mut command = Command::new(bins::find("mesh-controller").unwrap());
        command.args(["--source", &format!("dir:{}", source.display())]);
        command.arg("--state-dir").arg(dir.path().join("controller"));
        for (key, address) in [("--listen", listen), ("--metrics-listen", metrics), ("--admin-listen", admin)]
        {
            command.args([key, &address.to_string()]);
        }
        let controller_process = Some(spawn(command, &dir.path().join("controller.log")));
        let mut world = Self {
            controller: format!("http://{admin}"),
            proxy: String::new(),
            forward: free_address(),
            _proxy_process: Process { child: Command::new("true").spawn().unwrap(), log: "none".into() },
            controller_process,
            dir,
        };
        until("the controller answers", || get(admin, "/state").contains("\"synced\": true"));
        world.join(listen);
        world
    }

    fn join(&mut self, controller: SocketAddr) {
        let state = self.dir.path().join("controller").display().to_string();
        let token = meshctl(&["token", "create", "--node", "edge-a", "--state-dir", &state, "-o", "json"]);
        let token = json_of(&token)["token"].as_str().unwrap().to_owned();
        let (admin, health) = (free_address(), free_address());
        self.proxy = format!("http://{admin}");
        let mut command = Command::new(bins::find("mesh-proxy").unwrap());
        command.args(["--node", "edge-a", "--workers", "1", "--controller", &controller.to_string()]);
        command.arg("--state-dir").arg(self.dir.path().join("proxy"));
        command.env("MESH_PROXY_JOIN_TOKEN", token).env("MESH_PROXY_CAPTURE__ENABLED", "false");
        command.env("MESH_PROXY_DNS__ENABLED", "false").env_remove("MESH_PROXY_ADMIN_URL");
        for key in ["outbound", "tunnel", "metrics"] {
            command.args(["--set", &format!("listen.{key}={}", free_address())]);
        }
        for (key, address) in [("admin", admin), ("health", health), ("proxy", self.forward)] {
            command.args(["--set", &format!("listen.{key}={address}")]);
        }
        self._proxy_process = spawn(command, &self.dir.path().join("proxy.log"));
        until("the proxy is ready", || get(health, "/healthz/ready").contains("ready"));
    }

    /// The controller is gone, as by a power cut.
    pub(crate) fn kill_controller(&mut self) {
        self.controller_process = None;
    }

    /// A call through the node's proxy; its status.
    pub(crate) fn call(&self, url: &str) -> u16 {
        let mut stream = TcpStream::connect(self.forward).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let host = url.trim_start_matches("http://").split('/').next().unwrap();
        write!(stream, "GET {url} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        let _reset = stream.read_to_string(&mut answer);
        answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
    }
}

fn spawn(mut command: Command, log: &Path) -> Process {
    let file = File::create(log).unwrap();
    command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    Process { child: command.spawn().unwrap(), log: log.to_owned() }
}

/// Slow machines get their time; a fault is seen all the same.
pub(crate) fn until(what: &str, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nhost: x\r\n\r\n").unwrap();
        let _cut_off = stream.read_to_string(&mut text);
    }
    if text.starts_with("HTTP/1.0 200") || text.starts_with("HTTP/1.1 200") { text } else { String::new() }
}

/// Answers 200 to `/ok` and 503 to everything else, until the test ends.
pub(crate) fn backend() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut head = [0; 8192];
                while let Ok(n) = stream.read(&mut head) {
                    if n == 0 {
                        return;
                    }
                    let fine = String::from_utf8_lossy(&head[..n]).contains("/ok ");
                    let status = if fine { "200 OK" } else { "503 Service Unavailable" };
                    if write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}
