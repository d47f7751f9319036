//! The program itself: its command line, its signals, a kill without warning, and a second process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it fails")]

#[path = "control/support.rs"]
#[allow(dead_code, reason = "this file uses a part")]
mod support;

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use futures::{SinkExt, StreamExt};
use support::{Controller, backend, free_port, get_by, pod, service};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

const WEB: &str = "http://web.default.svc.cluster.local/";

fn program() -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_mesh-proxy"));
    c.env_clear().stdin(Stdio::null());
    c
}

fn output(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_command_line_explains_itself() {
    let help = output(&["--help"]);
    assert!(help.status.success());
    for part in
        ["--config", "--state-dir", "--join-token", "--set", "--print-config", "completion", "MESH_PROXY_"]
    {
        assert!(text(&help.stdout).contains(part), "{part}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = output(&["completion", shell]);
        assert!(script.status.success() && text(&script.stdout).contains("mesh-proxy"), "{shell}");
    }
}

#[test]
fn the_configuration_is_checked_as_a_whole_and_shown_without_secrets() {
    let wrong =
        output(&["--node", "Bad_Name", "--set", "listen.admin=0.0.0.0:15000", "--set", "workers=many"]);
    assert_eq!(wrong.status.code(), Some(2));
    for part in ["node", "listen.admin", "workers", "(command line)"] {
        assert!(text(&wrong.stderr).contains(part), "{part}: {}", text(&wrong.stderr));
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mesh-proxy.yaml");
    std::fs::write(&file, "node: edge-a\njoinToken: selvage1.verysecret\nlisten: {proxy: null}\n").unwrap();
    let shown = program()
        .args(["--config", file.to_str().unwrap(), "--print-config"])
        .env("MESH_PROXY_DRAIN_SECONDS", "7")
        .output()
        .unwrap();
    let shown = (shown.status.code(), text(&shown.stdout));
    assert_eq!(shown.0, Some(0));
    assert!(shown.1.contains("drainSeconds: 7") && shown.1.contains("node: edge-a"), "{}", shown.1);
    assert!(!shown.1.contains("verysecret"));
}

/// A child that does not outlive the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Process {
    fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.0.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    async fn ends_within(&mut self, limit: Duration) -> Option<i32> {
        let start = Instant::now();
        while start.elapsed() < limit {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("did not end in {limit:?}");
    }
}

struct Node {
    state: tempfile::TempDir,
    controller: String,
    token: String,
    proxy: SocketAddr,
    health: SocketAddr,
    ports: Vec<SocketAddr>,
    /// A process that was replaced waits for its signal, as in a pod.
    stays: bool,
}

impl Node {
    fn new(controller: &Controller) -> Self {
        Self {
            state: tempfile::tempdir().unwrap(),
            controller: controller.address().to_string(),
            token: controller.token("edge-a"),
            proxy: free_port(),
            health: free_port(),
            ports: (0..5).map(|_| free_port()).collect(),
            stays: false,
        }
    }

    fn start(&self, log: &Path) -> Process {
        let mut c = program();
        c.args(["--node", "edge-a", "--workers", "2", "--controller", &self.controller]);
        c.arg("--state-dir").arg(self.state.path());
        c.env("MESH_PROXY_JOIN_TOKEN", &self.token).env("MESH_PROXY_CAPTURE__ENABLED", "false");
        let keys = ["listen.outbound", "listen.tunnel", "listen.admin", "listen.metrics", "dns.listen"];
        for (key, address) in keys.iter().zip(&self.ports) {
            c.args(["--set", &format!("{key}={address}")]);
        }
        c.args(["--set", &format!("listen.proxy={}", self.proxy)]);
        c.args(["--set", &format!("listen.health={}", self.health)]);
        c.args(["--set", &format!("stayAfterHandover={}", self.stays)]);
        let out = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        c.stdout(Stdio::null()).stderr(out);
        Process(c.spawn().unwrap())
    }

    /// All that processes of this node said.
    fn log(&self) -> String {
        ["log", "log1", "log2"]
            .iter()
            .filter_map(|name| std::fs::read_to_string(self.state.path().join(name)).ok())
            .collect()
    }

    async fn ready(&self, limit: Duration) -> Duration {
        let start = Instant::now();
        loop {
            if let Ok((200, _)) = get_by(self.health, "/healthz/ready").await {
                return start.elapsed();
            }
            assert!(start.elapsed() < limit, "not ready in {limit:?}; its log:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn world() -> Controller {
    let web = backend("v1", "127.0.0.2:0").await;
    let text = service("web", "10.96.0.1", web.port()) + &pod("web", "v1", "127.0.0.2", "edge-a");
    Controller::start(&[("world.yaml", text)]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_comes_back_from_its_snapshot_and_a_signal_ends_it() {
    let mut controller = world().await;
    let node = Node::new(&controller);
    let log = node.state.path().join("log");
    let process = node.start(&log);
    node.ready(Duration::from_secs(20)).await;
    assert_eq!(get_by(node.proxy, WEB).await.unwrap().0, 200);
    controller.down().await;
    process.signal("KILL");
    drop(process);

    let mut process = node.start(&log);
    let took = node.ready(Duration::from_secs(2)).await;
    println!("ready {took:?} after a kill, with no controller");
    assert_eq!(get_by(node.proxy, WEB).await.unwrap(), (200, "v1".to_owned()));

    process.signal("TERM");
    assert_eq!(process.ends_within(Duration::from_secs(5)).await, Some(0));
    assert!(TcpStream::connect(node.proxy).await.is_err());
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("stopped") && !log.contains("panic"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_takes_the_listeners_of_the_first() {
    let controller = world().await;
    let node = Node::new(&controller);
    let (log1, log2) = (node.state.path().join("log1"), node.state.path().join("log2"));
    let mut first = node.start(&log1);
    node.ready(Duration::from_secs(20)).await;
    let caller = async {
        for i in 0..400 {
            let (status, _) = get_by(node.proxy, WEB).await.unwrap_or_else(|e| panic!("call {i}: {e}"));
            assert_eq!(status, 200);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let restart = async {
        let second = node.start(&log2);
        assert_eq!(
            first.ends_within(Duration::from_secs(20)).await,
            Some(0),
            "the first one leaves by itself"
        );
        second
    };
    let ((), mut second) = tokio::join!(caller, restart);
    assert_eq!(get_by(node.proxy, WEB).await.unwrap().0, 200);
    second.signal("INT");
    assert_eq!(second.ends_within(Duration::from_secs(5)).await, Some(0));
    let log = std::fs::read_to_string(&log2).unwrap();
    assert!(log.contains("taking over") && log.contains("tunnel listens again"), "{log}");
}

/// A server that speaks WebSocket only, and says every message back.
async fn websocket_backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
            tokio::spawn(async move {
                let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_text() && socket.send(message).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    /// Through the listener for applications, as an application behind CONNECT does it.
    async fn open(proxy: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(proxy).await.unwrap();
        stream
            .write_all(b"CONNECT web.default.svc.cluster.local:80 HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 200"), "{}", text(&head));
        let (socket, answer) =
            tokio_tungstenite::client_async("ws://web.default.svc.cluster.local/", stream).await.unwrap();
        assert_eq!(answer.status(), 101);
        Self(socket)
    }

    async fn says_back(&mut self, word: &str) {
        self.0.send(Message::text(word)).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(10), self.0.next()).await.unwrap();
        assert_eq!(answer.unwrap().unwrap(), Message::text(word));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_lived_connections_live_through_a_restart() {
    let web = websocket_backend().await;
    let text = service("web", "10.96.0.1", web.port()) + &pod("web", "v1", "127.0.0.2", "edge-a");
    let controller = Controller::start(&[("world.yaml", text)]).await;
    let node = Node::new(&controller);
    let (log1, log2) = (node.state.path().join("log1"), node.state.path().join("log2"));
    let mut first = node.start(&log1);
    node.ready(Duration::from_secs(20)).await;
    let mut sockets = Vec::new();
    for i in 0..8 {
        let mut socket = Socket::open(node.proxy).await;
        socket.says_back(&format!("before {i}")).await;
        sockets.push(socket);
    }

    let mut second = node.start(&log2);
    let start = Instant::now();
    while !std::fs::read_to_string(&log1).unwrap().contains("hot restart") {
        assert!(start.elapsed() < Duration::from_secs(20), "the first one was not told: {}", node.log());
        for socket in &mut sockets {
            socket.says_back("while the second one starts").await;
        }
    }
    // Well past the moment at which the first one stops to accept and closes what is idle.
    for _ in 0..20 {
        for socket in &mut sockets {
            socket.says_back("after").await;
        }
        Socket::open(node.proxy).await.says_back("to the second one").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(first.0.try_wait().unwrap().is_none(), "the first one still serves them");
    // That of a kubelet, once the new pod is ready: it cuts nothing.
    first.signal("TERM");
    for _ in 0..10 {
        for socket in &mut sockets {
            socket.says_back("after the signal").await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(sockets);
    assert_eq!(first.ends_within(Duration::from_secs(10)).await, Some(0), "{}", node.log());
    Socket::open(node.proxy).await.says_back("still").await;
    second.signal("INT");
    assert_eq!(second.ends_within(Duration::from_secs(10)).await, Some(0));
}

/// A kubelet would start a process again that ends by itself, and that one would take everything back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_replaced_waits_to_be_told_if_it_shall() {
    let controller = world().await;
    let node = Node { stays: true, ..Node::new(&controller) };
    let (log1, log2) = (node.state.path().join("log1"), node.state.path().join("log2"));
    let mut first = node.start(&log1);
    node.ready(Duration::from_secs(20)).await;
    let mut second = node.start(&log2);
    let start = Instant::now();
    while !std::fs::read_to_string(&log1).unwrap().contains("waiting to be told to stop") {
        assert!(start.elapsed() < Duration::from_secs(30), "it was not replaced: {}", node.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(first.0.try_wait().unwrap().is_none(), "it ended by itself: {}", node.log());
    assert_eq!(get_by(node.proxy, WEB).await.unwrap().0, 200, "the second one serves");
    first.signal("TERM");
    assert_eq!(first.ends_within(Duration::from_secs(5)).await, Some(0), "{}", node.log());
    second.signal("TERM");
    assert_eq!(second.ends_within(Duration::from_secs(10)).await, Some(0));
}
