//! A cluster's node from within: one process that prepares the node's files and groups, starts containerd, kubelet and
//! kube-proxy, and starts them again when they end, as systemd would.

use std::{
    fs::{self, File},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};

use super::{ClusterError, cgroup, config};

/// Where containerd listens, as the node sees it.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";
/// Kernel settings of the whole machine that a kubelet would change: the node has files of its own in their place.
const MACHINE_WIDE: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];
/// Folders that the node has for itself.
pub(super) const FOLDERS: [(&str, &str); 3] = [("run", "/run"), ("lib", "/var/lib"), ("log", "/var/log")];

/// All that a node's process is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) name: String,
    /// The node's folder.
    pub(super) dir: PathBuf,
    /// Its control group.
    pub(super) group: String,
    /// The Kubernetes programs.
    pub(super) programs: PathBuf,
    pub(super) address: std::net::IpAddr,
    pub(super) pods: ipnet::Ipv4Net,
    pub(super) all_pods: ipnet::Ipv4Net,
    pub(super) dns: std::net::Ipv4Addr,
    pub(super) proxy_mode: String,
    pub(super) ca: PathBuf,
    pub(super) kubeconfig: PathBuf,
    pub(super) proxy_kubeconfig: PathBuf,
    pub(super) labels: Vec<(String, String)>,
    /// Archives that are imported before the kubelet starts.
    pub(super) images: Vec<PathBuf>,
}

struct Service {
    name: &'static str,
    command: Command,
    child: Option<Child>,
    started: Instant,
}

/// Runs a node until its world ends.
///
/// # Errors
/// When a step of its start fails.
pub(super) fn main(plan: &Path) -> Result<(), ClusterError> {
    let text = fs::read(plan).map_err(ClusterError::io("read", plan))?;
    let plan: Plan = serde_json::from_slice(&text)
        .map_err(|e| ClusterError::Node { node: "?".to_owned(), reason: e.to_string() })?;
    own_files(&plan)?;
    cgroup::enter(&plan.group)?;
    let none: Option<&str> = None;
    // Kubernetes hands mounts on between pods and node where a volume asks for it.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none)
        .map_err(ClusterError::system("sharing mounts"))?;
    config::write(&plan)?;
    let mut services = vec![start(&plan, "containerd", containerd(&plan))?];
    wait_for_containerd(&plan)?;
    for image in &plan.images {
        import(SOCKET, image)?;
    }
    services.push(start(&plan, "kubelet", kubelet(&plan))?);
    services.push(start(&plan, "kube-proxy", kube_proxy(&plan))?);
    println!("the node {} is up", plan.name);
    loop {
        for service in &mut services {
            keep(&plan, service)?;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

fn own_files(plan: &Plan) -> Result<(), ClusterError> {
    let none: Option<&str> = None;
    let bind = |from: &Path, to: &str| {
        mount(Some(from), to, none, MsFlags::MS_BIND, none)
            .map_err(ClusterError::system(format!("binding {to}")))
    };
    for (folder, at) in FOLDERS {
        let path = plan.dir.join(folder);
        fs::create_dir_all(&path).map_err(ClusterError::io("create", &path))?;
        bind(&path, at)?;
    }
    let settings = plan.dir.join("sysctl");
    for (name, value) in MACHINE_WIDE {
        let path = settings.join(name);
        let parent = path.parent().unwrap_or(&settings);
        fs::create_dir_all(parent).map_err(ClusterError::io("create", parent))?;
        fs::write(&path, format!("{value}\n")).map_err(ClusterError::io("write", &path))?;
        let target = format!("/proc/sys/{name}");
        if Path::new(&target).exists() {
            bind(&path, &target)?;
        }
    }
    // Two nodes are not one machine.
    if Path::new("/etc/machine-id").exists() {
        let path = plan.dir.join("machine-id");
        let id: String = plan
            .group
            .bytes()
            .chain(plan.dir.to_string_lossy().bytes())
            .map(|b| format!("{b:02x}"))
            .collect();
        let id: String = id.chars().rev().take(32).collect();
        fs::write(&path, format!("{id}\n")).map_err(ClusterError::io("write", &path))?;
        bind(&path, "/etc/machine-id")?;
    }
    Ok(())
}

fn containerd(plan: &Plan) -> Command {
    let mut command = Command::new("containerd");
    command.arg("--config").arg(config::containerd_file(plan));
    command
}

fn kubelet(plan: &Plan) -> Command {
    let mut command = Command::new(plan.programs.join("kubelet"));
    let labels: Vec<String> = plan.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    command
        .arg(format!("--config={}", config::kubelet_file(plan).display()))
        .arg(format!("--kubeconfig={}", plan.kubeconfig.display()))
        .args(["--root-dir=/var/lib/kubelet", "--cert-dir=/var/lib/kubelet/pki", "--v=2"])
        .arg(format!("--hostname-override={}", plan.name))
        .arg(format!("--node-ip={}", plan.address))
        .arg(format!("--node-labels={}", labels.join(",")));
    command
}

fn kube_proxy(plan: &Plan) -> Command {
    let mut command = Command::new(plan.programs.join("kube-proxy"));
    command.arg(format!("--config={}", config::proxy_file(plan).display()));
    command
}

fn start(plan: &Plan, name: &'static str, command: Command) -> Result<Service, ClusterError> {
    let mut service = Service { name, command, child: None, started: Instant::now() };
    launch(plan, &mut service)?;
    Ok(service)
}

fn launch(plan: &Plan, service: &mut Service) -> Result<(), ClusterError> {
    let path = log(&plan.dir, service.name);
    let out =
        File::options().create(true).append(true).open(&path).map_err(ClusterError::io("open", &path))?;
    let err = out.try_clone().map_err(ClusterError::io("open", &path))?;
    let child = service.command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
    service.started = Instant::now();
    service.child = Some(child.map_err(ClusterError::io("run", Path::new(service.name)))?);
    Ok(())
}

/// Where a program of a node writes.
pub(super) fn log(dir: &Path, program: &str) -> PathBuf {
    dir.join(format!("{program}.log"))
}

fn keep(plan: &Plan, service: &mut Service) -> Result<(), ClusterError> {
    let ended = service.child.as_mut().is_some_and(|c| !matches!(c.try_wait(), Ok(None)));
    // A file of this name keeps the program down: a test's way to stop it.
    let wanted = !plan.dir.join(format!("{}.stop", service.name)).exists();
    if ended {
        service.child = None;
    }
    match (&mut service.child, wanted) {
        (None, true) if service.started.elapsed() > Duration::from_secs(1) => {
            println!("{} starts again", service.name);
            launch(plan, service)?;
        }
        (Some(child), false) => {
            let _ended = child.kill();
        }
        _ => {}
    }
    Ok(())
}

fn wait_for_containerd(plan: &Plan) -> Result<(), ClusterError> {
    let start = Instant::now();
    while UnixStream::connect(SOCKET).is_err() {
        if start.elapsed() > Duration::from_secs(60) {
            let log = fs::read_to_string(log(&plan.dir, "containerd")).unwrap_or_default();
            return Err(ClusterError::Node {
                node: plan.name.clone(),
                reason: format!("containerd does not listen:\n{log}"),
            });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Gives an archive's images to the containerd at that socket.
pub(super) fn import(socket: &str, image: &Path) -> Result<(), ClusterError> {
    ctr(socket, &["import".as_ref(), image.as_os_str()])
}

/// Gives an image another name as well.
pub(super) fn tag(socket: &str, image: &str, new: &str) -> Result<(), ClusterError> {
    let [image, new] = [image, new].map(|name| format!("docker.io/{name}"));
    ctr(socket, &["tag".as_ref(), "--force".as_ref(), image.as_ref(), new.as_ref()])
}

fn ctr(socket: &str, args: &[&std::ffi::OsStr]) -> Result<(), ClusterError> {
    let output = Command::new("ctr")
        .args(["--address", socket, "--namespace", "k8s.io", "images"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(ClusterError::io("run", Path::new("ctr")))?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ClusterError::Tool { tool: format!("ctr {args:?}"), reason })
}
