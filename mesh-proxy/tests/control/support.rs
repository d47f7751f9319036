//! A controller and proxies in this process, on loopback, with the folder source.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it fails")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use mesh_ca::{NodeName, StateDir, TrustDomain};
use mesh_controller::source::SourceKind;
use mesh_proxy::{Config, app};
use node_rt::{Drain, DrainConfig, Readiness, Reason, Tasks};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

pub(crate) const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

pub(crate) struct Controller {
    dir: tempfile::TempDir,
    config: mesh_controller::config::Config,
    live: Option<(mesh_controller::app::Running, Tasks, Readiness)>,
}

impl Controller {
    pub(crate) async fn start(files: &[(&str, String)]) -> Self {
        Self::start_with(files, |_| {}).await
    }

    pub(crate) async fn start_with(
        files: &[(&str, String)],
        change: impl FnOnce(&mut mesh_controller::config::Config),
    ) -> Self {
        node_rt::install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let manifests = dir.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        for (name, text) in files {
            std::fs::write(manifests.join(name), text).unwrap();
        }
        let mut config = mesh_controller::config::Config {
            source: SourceKind::Dir(manifests),
            state_dir: dir.path().join("state"),
            listen: LOOPBACK,
            metrics_listen: LOOPBACK,
            admin_listen: LOOPBACK,
            ..Default::default()
        };
        change(&mut config);
        let mut this = Self { dir, config, live: None };
        this.up().await;
        // From now on at the same port.
        this.config.listen = this.address();
        this
    }

    pub(crate) async fn up(&mut self) {
        let readiness = Readiness::new();
        let tasks = Tasks::new(Drain::new());
        let running = mesh_controller::app::start(&self.config, &tasks, &readiness).await.unwrap();
        self.live = Some((running, tasks, readiness));
    }

    pub(crate) async fn down(&mut self) {
        let (_, tasks, readiness) = self.live.take().unwrap();
        tasks.drain().begin(Reason::Requested("test"));
        tasks.drain().force();
        let report = tasks.drain().run(DrainConfig::default(), &readiness, &tasks).await;
        assert!(report.stuck.is_empty(), "{report:?}");
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.live.as_ref().map_or(self.config.listen, |l| l.0.listen)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join("manifests").join(name), text).unwrap();
    }

    pub(crate) fn token(&self, node: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let state = StateDir::new(&self.config.state_dir);
        let authority = state.authority(&TrustDomain::new("cluster.local").unwrap(), now).unwrap();
        let node = NodeName::new(node).unwrap();
        let controllers = vec![self.address().to_string()];
        state
            .tokens()
            .unwrap()
            .create(&node, 600, authority.fingerprint(), controllers, now)
            .unwrap()
            .encode()
    }
}

impl Controller {
    /// A node's identity file, with a certificate issued `seconds` from now.
    pub(crate) fn certificate(&self, node: &str, seconds: i64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let then = now.checked_add_signed(seconds).unwrap();
        let state = StateDir::new(&self.config.state_dir);
        let authority = state.authority(&TrustDomain::new("cluster.local").unwrap(), now).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        let node = NodeName::new(node).unwrap();
        let leaf = authority.sign_node(&node, csr.der(), Duration::from_secs(3600), then).unwrap();
        let pem = |label: &str, der: &[u8]| {
            use base64::Engine;
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
        };
        key.serialize_pem() + &pem("CERTIFICATE", &leaf) + &pem("CERTIFICATE", authority.certificate())
    }
}

impl Controller {
    /// As when the mesh is set up anew under an old name.
    pub(crate) fn forget_ca(&self) {
        std::fs::remove_dir_all(self.config.state_dir.join("ca")).unwrap();
    }
}

/// Puts a CA where a controller will start whose time to be followed by another has come. Gives its certificate.
pub(crate) fn ca_that_is_due(config: &mesh_controller::config::Config) -> String {
    let lives = config.lives();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let domain = TrustDomain::new(&config.trust_domain).unwrap();
    let made = now - lives.ca.as_secs() / 3 * 2 - 1;
    let dir = config.state_dir.join("ca");
    mesh_ca::Authority::open(&dir, &domain, made).unwrap();
    std::fs::read_to_string(dir.join("ca.crt")).unwrap()
}

/// The certificates in a PEM text.
pub(crate) fn certificates(pem: &str) -> Vec<Vec<u8>> {
    use rustls_pki_types::{CertificateDer, pem::PemObject};
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(|c| c.unwrap().to_vec()).collect()
}

/// A free port of loopback, for listeners that must come back at the same one.
pub(crate) fn free_port() -> SocketAddr {
    mesh_testkit::ports::free_address()
}

pub(crate) fn config(node: &str, state_dir: &Path) -> Config {
    let mut c = Config {
        node: node.into(),
        state_dir: state_dir.into(),
        workers: 2,
        drain_seconds: 5,
        ..Config::default()
    };
    c.capture.enabled = false;
    c.dns.listen = LOOPBACK;
    c.outbound.detect_ms = 50;
    let l = &mut c.listen;
    for address in [&mut l.outbound, &mut l.tunnel, &mut l.admin, &mut l.metrics, &mut l.health] {
        *address = LOOPBACK;
    }
    l.proxy = Some(LOOPBACK);
    c
}

pub(crate) struct Proxy {
    pub(crate) running: app::Running,
    pub(crate) tasks: Tasks,
    pub(crate) readiness: Readiness,
}

impl Proxy {
    pub(crate) async fn start(config: Config) -> Self {
        node_rt::install_crypto_provider();
        let readiness = Readiness::new();
        let tasks = Tasks::new(Drain::new());
        let running = app::start(Arc::new(config), &tasks, &readiness, None).await.unwrap();
        Self { running, tasks, readiness }
    }

    pub(crate) async fn ready(&self, within: Duration) {
        let ready = tokio::time::timeout(within, self.readiness.ready()).await;
        assert!(ready.is_ok(), "not ready: {:?}", self.readiness.pending());
    }

    /// Waits until the tables are as wanted.
    pub(crate) async fn until(&self, what: &str, f: impl Fn(&mesh_core::Tables) -> bool) -> Duration {
        let start = Instant::now();
        let mut updates = self.running.shared.updates();
        loop {
            if f(&self.running.shared.tables.load()) {
                return start.elapsed();
            }
            let left = Duration::from_secs(10).checked_sub(start.elapsed()).unwrap_or_default();
            let changed = tokio::time::timeout(left, updates.changed()).await;
            assert!(changed.is_ok(), "not within 10 s: {what}");
        }
    }

    pub(crate) async fn stop(self) -> Reason {
        self.tasks.drain().begin(Reason::Requested("test"));
        self.running.until_drained(&self.tasks, &self.readiness).await
    }

    /// GET through the listener for applications; status and body.
    pub(crate) async fn get(&self, url: &str) -> std::io::Result<(u16, String)> {
        get_by(self.running.addresses.proxy.unwrap(), url).await
    }

    pub(crate) async fn admin(&self, path: &str) -> serde_json::Value {
        let address = self.running.addresses.admin.unwrap();
        let (status, body) = get_by(address, path).await.unwrap();
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (_, body) = get_by(self.running.addresses.metrics.unwrap(), "/metrics").await.unwrap();
        let line = body.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok());
        line.unwrap_or_else(|| panic!("no metric {name}"))
    }
}

/// One request on a connection of its own. `target` is a URL or a path.
pub(crate) async fn get_by(server: SocketAddr, target: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(server).await?;
    let host = target.strip_prefix("http://").and_then(|t| t.split('/').next()).unwrap_or("localhost");
    let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await??;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok());
    let body = text.split_once("\r\n\r\n").map(|(_, b)| b.to_owned());
    status.zip(body).ok_or_else(|| std::io::Error::other(format!("not an answer: {text:?}")))
}

/// An HTTP server that answers with its name.
pub(crate) async fn backend(name: &'static str, address: &str) -> SocketAddr {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
            tokio::spawn(async move {
                let mut seen = Vec::new();
                let mut chunk = [0; 1024];
                loop {
                    match stream.read(&mut chunk).await {
                        Ok(0) | Err(_) => return,
                        Ok(n) => seen.extend_from_slice(&chunk[..n]),
                    }
                    while let Some(at) = seen.windows(4).position(|w| w == b"\r\n\r\n") {
                        seen.drain(..at + 4);
                        let answer =
                            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

pub(crate) fn service(name: &str, vip: &str, target: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: {vip}\n  \
         selector: {{app: {name}}}\n  ports: [{{name: http, port: 80, targetPort: {target}}}]\n---\n"
    )
}

pub(crate) fn pod(name: &str, version: &str, ip: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}-{version}, labels: {{app: {name}, version: {version}}}}}\n\
         spec: {{nodeName: {node}}}\nstatus: {{podIP: {ip}, phase: Running}}\n---\n"
    )
}
