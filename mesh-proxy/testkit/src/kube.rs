//! A real Kubernetes control plane for tests: etcd, kube-apiserver and kube-controller-manager on one loopback
//! address, with certificates of its own. It decides how the programs are started and when they count as ready; what
//! is stored in the cluster is the test's business.

mod pki;
mod process;
mod programs;

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

pub use process::{Daemon, Wrap};
pub use programs::{all_programs, programs};

use crate::ports::free_port;
use pki::Pki;

/// How long each program may take to get ready. A cold start takes 4 to 8 s on two idle cores.
const READY: Duration = Duration::from_secs(90);
/// The controllers that a mesh test without kubelets needs. Node lifecycle stays off: it would mark nodes without a
/// kubelet unreachable and evict their pods.
const CONTROLLERS: &str = "endpointslice-controller,namespace-controller,serviceaccount-controller,\
                           garbage-collector-controller,deployment-controller,replicaset-controller";

/// Why the control plane is not there.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// The programs are not built and could not be built.
    #[error("build the control plane: {0}")]
    Build(String),
    /// A file or process of the cluster could not be made.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried.
        operation: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificates could not be made.
    #[error("make certificate for {name}: {source}")]
    Certificate {
        /// Common name.
        name: String,
        /// What the library said.
        source: rcgen::Error,
    },
    /// A program ended or did not get ready in time.
    #[error("{program} is not ready after {waited:?}: {reason}; the end of {log}:\n{tail}", log = log.display())]
    NotReady {
        /// Which program.
        program: &'static str,
        /// How long it was waited for.
        waited: Duration,
        /// What the last probe said.
        reason: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of its log.
        tail: String,
    },
    /// kubectl ended with an error.
    #[error("kubectl {args}: {stderr}")]
    Kubectl {
        /// The arguments.
        args: String,
        /// Its standard error.
        stderr: String,
    },
}

impl KubeError {
    pub(crate) fn io(operation: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::Io { operation, source }
    }
}

/// Where and how the control plane runs.
pub struct KubeOptions {
    /// Folder for certificates, data and logs. Made if missing.
    pub dir: PathBuf,
    /// The address that the API server listens on, and that its certificate names.
    pub address: IpAddr,
    /// The API server's port; 0 picks a free one.
    pub port: u16,
    /// Changes each command before it is started, for example to run it inside a network namespace.
    pub wrap: Wrap,
    /// Whether kubelets will join: all controllers run, and a scheduler, the API server is reached at the ClusterIP
    /// 10.96.0.1, and kubelets have the rights of nodes. `address` must not be loopback then.
    pub with_nodes: bool,
}

impl KubeOptions {
    /// Everything on loopback of this namespace.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            wrap: Wrap::none(),
            with_nodes: false,
        }
    }
}

/// A running control plane. Dropping it kills its processes; the folder is left to its owner.
pub struct KubeCluster {
    dir: PathBuf,
    programs: PathBuf,
    wrap: Wrap,
    api: SocketAddr,
    etcd_port: u16,
    pki: Pki,
    with_nodes: bool,
    etcd: Option<Daemon>,
    apiserver: Option<Daemon>,
    controllers: Option<Daemon>,
    scheduler: Option<Daemon>,
}

impl KubeCluster {
    /// Starts a control plane on loopback with its files in `dir`.
    pub fn start(dir: impl Into<PathBuf>) -> Result<Self, KubeError> {
        Self::start_with(KubeOptions::new(dir))
    }

    /// Starts a control plane.
    pub fn start_with(options: KubeOptions) -> Result<Self, KubeError> {
        let programs = if options.with_nodes { all_programs()? } else { programs()? };
        let dir = options.dir;
        std::fs::create_dir_all(&dir).map_err(KubeError::io(format!("create {}", dir.display())))?;
        let dir = dir.canonicalize().map_err(KubeError::io("resolve the cluster's folder"))?;
        let (etcd_port, free) = (free_port(), free_port());
        let port = if options.port == 0 { free } else { options.port };
        let pki = Pki::create(&dir.join("pki"), options.address)?;
        let mut cluster = Self {
            api: SocketAddr::new(options.address, port),
            wrap: options.wrap,
            with_nodes: options.with_nodes,
            etcd: None,
            apiserver: None,
            controllers: None,
            scheduler: None,
            dir,
            programs,
            etcd_port,
            pki,
        };
        cluster.write_kubeconfig("admin", &cluster.pki.admin())?;
        cluster.write_kubeconfig("controller-manager", &cluster.pki.controller_manager())?;
        cluster.start_etcd()?;
        if cluster.with_nodes {
            cluster.pki.client("system:kube-apiserver-kubelet-client", Some("system:masters"))?;
        }
        cluster.start_apiserver()?;
        cluster.start_controllers()?;
        if cluster.with_nodes {
            cluster.start_scheduler()?;
        }
        Ok(cluster)
    }

    /// The folder of the programs, such as `kubectl`.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// The certificate of the cluster's authority.
    pub fn ca_file(&self) -> PathBuf {
        self.pki.path("ca.crt")
    }

    /// Writes a kubeconfig for a client with a certificate of its own, such as `system:node:NAME` of `system:nodes`.
    pub fn client_kubeconfig(&self, user: &str, group: Option<&str>) -> Result<PathBuf, KubeError> {
        self.pki.client(user, group)?;
        self.write_kubeconfig(&user.replace(':', "-"), &self.pki.user(user))
    }

    /// `https://address:port` of the API server.
    pub fn url(&self) -> String {
        format!("https://{}", self.api)
    }

    /// The kubeconfig of a cluster administrator.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// Writes a kubeconfig that has exactly the rights of a service account, by a token of the API server's own making.
    pub fn service_account_kubeconfig(&self, namespace: &str, account: &str) -> Result<PathBuf, KubeError> {
        let token = self.kubectl(&["create", "token", account, "-n", namespace, "--duration=24h"])?;
        let user = serde_json::json!({ "token": token.trim() });
        self.write_kubeconfig(&format!("sa-{namespace}-{account}"), &user)
    }

    /// Runs kubectl as administrator and returns its standard output.
    pub fn kubectl(&self, args: &[&str]) -> Result<String, KubeError> {
        self.kubectl_as(&self.admin_kubeconfig(), args, "")
    }

    /// `kubectl apply` of a manifest as text.
    pub fn apply(&self, manifest: &str) -> Result<String, KubeError> {
        self.kubectl_as(&self.admin_kubeconfig(), &["apply", "-f", "-"], manifest)
    }

    /// Runs kubectl with another kubeconfig and `input` on its standard input.
    pub fn kubectl_as(&self, kubeconfig: &Path, args: &[&str], input: &str) -> Result<String, KubeError> {
        let output = self.run_kubectl(kubeconfig, args, input)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(KubeError::Kubectl {
            args: args.join(" "),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// Runs kubectl as administrator and returns standard output and error, whether it fails or not.
    pub fn kubectl_output(&self, args: &[&str]) -> Result<(String, String), KubeError> {
        let output = self.run_kubectl(&self.admin_kubeconfig(), args, "")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((text(&output.stdout), text(&output.stderr)))
    }

    fn run_kubectl(&self, kubeconfig: &Path, args: &[&str], input: &str) -> Result<Output, KubeError> {
        let mut command = Command::new(self.programs.join("kubectl"));
        command
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(args)
            .env("HOME", &self.dir) // its discovery cache
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        run(self.wrap.apply(command), input).map_err(KubeError::io("run kubectl"))
    }

    /// Makes a stored pod look as a kubelet reports a running one.
    pub fn set_pod_ready(
        &self,
        namespace: &str,
        pod: &str,
        address: IpAddr,
        host: IpAddr,
    ) -> Result<(), KubeError> {
        self.set_pod_status(namespace, pod, address, host, true)
    }

    /// Sets a pod's address and readiness.
    pub fn set_pod_status(
        &self,
        namespace: &str,
        pod: &str,
        address: IpAddr,
        host: IpAddr,
        ready: bool,
    ) -> Result<(), KubeError> {
        let state = if ready { "True" } else { "False" };
        let condition = |kind: &str| serde_json::json!({ "type": kind, "status": state });
        let status = serde_json::json!({ "status": {
            "phase": "Running",
            "podIP": address, "podIPs": [{ "ip": address }],
            "hostIP": host, "hostIPs": [{ "ip": host }],
            "conditions": [condition("PodScheduled"), condition("Initialized"), condition("ContainersReady"), condition("Ready")],
        }});
        let patch = status.to_string();
        let args =
            ["patch", "pod", pod, "-n", namespace, "--subresource=status", "--type=merge", "-p", &patch];
        self.kubectl(&args).map(drop)
    }

    /// Kills the API server, as a power cut would.
    pub fn kill_apiserver(&mut self) {
        self.apiserver = None;
    }

    /// Starts the API server (again) at the same address and waits until it is ready.
    pub fn start_apiserver(&mut self) -> Result<(), KubeError> {
        let mut daemon = self.spawn("kube-apiserver", &self.apiserver_args())?;
        let probe = || {
            let args = ["get", "--raw", "/readyz", "--request-timeout=2s"];
            self.kubectl(&args).map(drop).map_err(|e| e.to_string())
        };
        daemon.wait_ready(READY, probe)?;
        self.apiserver = Some(daemon);
        Ok(())
    }

    fn start_etcd(&mut self) -> Result<(), KubeError> {
        let client = self.etcd_url();
        let args = [
            format!("--data-dir={}", self.dir.join("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            // One member has no peers; the port is its own choice.
            "--listen-peer-urls=http://127.0.0.1:0".to_owned(),
            "--unsafe-no-fsync".to_owned(), // a test's data need not survive a power cut
            "--log-level=warn".to_owned(),
        ];
        let mut daemon = self.spawn("etcd", &args)?;
        let address = format!("127.0.0.1:{}", self.etcd_port);
        let probe = self.wrap.connect_probe(&address);
        daemon.wait_ready(READY, probe)?;
        self.etcd = Some(daemon);
        Ok(())
    }

    fn start_controllers(&mut self) -> Result<(), KubeError> {
        let args = [
            format!("--kubeconfig={}", self.dir.join("controller-manager.kubeconfig").display()),
            format!("--controllers={}", if self.with_nodes { "*" } else { CONTROLLERS }),
            // Pods are given it as kube-root-ca.crt.
            format!("--root-ca-file={}", self.pki.path("ca.crt").display()),
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials=true".to_owned(), // each controller has its own rights
            "--secure-port=0".to_owned(),
            // A DaemonSet whose roll-out stood still for five minutes was seen once: what its controller waits for is noted.
            "--vmodule=daemon_controller=4,update=5,controller_utils=4".to_owned(),
        ];
        let mut daemon = self.spawn("kube-controller-manager", &args)?;
        // The first thing that a test needs of it: pods are refused until their service account is there.
        let probe = || {
            self.kubectl(&["get", "serviceaccount", "default", "-n", "default"])
                .map(drop)
                .map_err(|e| e.to_string())
        };
        daemon.wait_ready(READY, probe)?;
        self.controllers = Some(daemon);
        Ok(())
    }

    fn start_scheduler(&mut self) -> Result<(), KubeError> {
        let config = self.client_kubeconfig("system:kube-scheduler", None)?;
        let args = [
            format!("--kubeconfig={}", config.display()),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
        ];
        // It is ready when it binds a pod, which whoever waits for a pod sees.
        self.scheduler = Some(self.spawn("kube-scheduler", &args)?);
        Ok(())
    }

    fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.etcd_port)
    }

    fn apiserver_args(&self) -> Vec<String> {
        let file = |name: &str| self.pki.path(name).display().to_string();
        let mut args = vec![
            format!("--etcd-servers={}", self.etcd_url()),
            format!("--bind-address={}", self.api.ip()),
            format!("--advertise-address={}", self.api.ip()),
            format!("--secure-port={}", self.api.port()),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--service-account-key-file={}", file("service-account.pub")),
            format!("--service-account-signing-key-file={}", file("service-account.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            // It waits this long for its watches at a graceful stop, which tests do not do.
            "--shutdown-delay-duration=0s".to_owned(),
            "--profiling=false".to_owned(),
        ];
        if self.with_nodes {
            args.extend([
                "--authorization-mode=Node,RBAC".to_owned(),
                "--enable-admission-plugins=NodeRestriction".to_owned(),
                "--allow-privileged=true".to_owned(),
                format!("--kubelet-client-certificate={}", file("system-kube-apiserver-kubelet-client.crt")),
                format!("--kubelet-client-key={}", file("system-kube-apiserver-kubelet-client.key")),
                "--kubelet-preferred-address-types=InternalIP".to_owned(),
            ]);
        } else {
            args.extend([
                "--authorization-mode=RBAC".to_owned(),
                // Its own endpoints would be a loopback address, which the API refuses.
                "--endpoint-reconciler-type=none".to_owned(),
            ]);
        }
        args
    }

    /// Where a program of the control plane writes.
    pub fn log(&self, program: &str) -> PathBuf {
        self.dir.join(format!("{program}.log"))
    }

    fn spawn(&self, program: &'static str, args: &[String]) -> Result<Daemon, KubeError> {
        let mut command = Command::new(self.programs.join(program));
        command.args(args);
        Daemon::spawn(program, &self.wrap, command, &self.log(program))
    }

    fn write_kubeconfig(&self, name: &str, user: &serde_json::Value) -> Result<PathBuf, KubeError> {
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": {
                "server": self.url(), "certificate-authority": self.pki.path("ca.crt") } }],
            "users": [{ "name": "test", "user": user }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        let path = self.dir.join(format!("{name}.kubeconfig"));
        // JSON is YAML.
        std::fs::write(&path, config.to_string())
            .map_err(KubeError::io(format!("write {}", path.display())))?;
        Ok(path)
    }
}

impl Drop for KubeCluster {
    fn drop(&mut self) {
        // Clients first, so that nothing logs the loss of its server.
        self.scheduler = None;
        self.controllers = None;
        self.apiserver = None;
        self.etcd = None;
    }
}

fn run(mut command: Command, input: &str) -> std::io::Result<Output> {
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // kubectl may end before it reads; its exit status says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output()
}

/// Calls `check` every `pause` until it says yes or `limit` has passed; returns how long it took, or the last reason.
pub fn eventually<E>(
    limit: Duration,
    pause: Duration,
    mut check: impl FnMut() -> Result<(), E>,
) -> Result<Duration, (Duration, E)> {
    let start = Instant::now();
    loop {
        match check() {
            Ok(()) => return Ok(start.elapsed()),
            Err(reason) if start.elapsed() >= limit => return Err((start.elapsed(), reason)),
            Err(_) => std::thread::sleep(pause),
        }
    }
}

#[cfg(test)]
mod tests;
