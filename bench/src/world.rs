//! The closed network namespace that everything runs in, and the programs in it.

use std::{
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use mesh_testkit::kube::Daemon;

use crate::{
    mesh, peers,
    report::{CALIBRATOR, Report},
    subject::{self, Backend, Group, Subject},
};

/// Set in the environment of the bench inside its namespace.
const INSIDE: &str = "SELVAGE_BENCH_INSIDE";
/// The caller's address, a pod of the node `one`. The mesh refuses loopback addresses, as it must.
pub(crate) const CLIENT: &str = "10.77.0.1";
/// The backend as a pod of the node `one`.
pub(crate) const NEAR: &str = "10.77.0.2";
/// The same backend as a pod of the node `two`.
pub(crate) const FAR: &str = "10.77.0.3";
/// And as a pod of the node `three`.
pub(crate) const REMOTE: &str = "10.77.0.5";
/// Where all nodes are reached.
pub(crate) const NODES: &str = "10.77.0.4";
const BACKEND_HTTP: ([u8; 4], u16) = ([10, 77, 0, 2], 8080);
const BACKEND_BULK: ([u8; 4], u16) = ([10, 77, 0, 2], 8081);

/// Whether this process runs inside the bench's namespace.
pub(crate) fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Starts this program again in a network namespace that has nothing but loopback; does not return unless that fails.
pub(crate) fn enter() -> Result<()> {
    peers::prepare(&tools())?; // the last thing that needs a network
    let program = std::env::current_exe()?;
    let flags = if nix::unistd::geteuid().is_root() { "-nm" } else { "-Urnm" };
    // Thousands of connections need thousands of files.
    let script = r#"ulimit -n "$(ulimit -Hn)"; exec "$0" "$@""#;
    let error = Command::new("unshare")
        .args([flags, "--kill-child", "--fork", "sh", "-c", script])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(error).context("run unshare (util-linux)")
}

fn tools() -> PathBuf {
    PathBuf::from("target/bench/tools")
}

/// All programs of a run.
pub(crate) struct World {
    pub(crate) groups: Vec<Group>,
    mesh: Option<mesh::Mesh>,
    backend: Option<Daemon>,
    pub(crate) dir: tempfile::TempDir,
}

impl World {
    /// Prepares the namespace and starts every subject whose name contains one of `only` (all, if that is empty).
    pub(crate) fn build(only: &[String]) -> Result<Self> {
        network()?;
        let dir = tempfile::Builder::new().prefix("selvage-bench-").tempdir()?;
        let backend = Backend { http: SocketAddr::from(BACKEND_HTTP), bulk: SocketAddr::from(BACKEND_BULK) };
        let program = std::env::current_exe()?;
        let mut command = Command::new(&program);
        command.args(["backend", &backend.http.to_string(), &backend.bulk.to_string()]);
        let server = subject::start("backend", dir.path(), command, backend.http)?;
        let mut world = Self { groups: vec![Group::direct(backend)], mesh: None, backend: Some(server), dir };
        world.groups.push(relay(CALIBRATOR, "relay", 20_000, world.dir.path(), &program, backend)?);
        let wanted = |name: &str| only.is_empty() || only.iter().any(|o| name.contains(o.as_str()));
        if wanted("tokio-copy-aa") {
            world.groups.push(relay(
                "tokio-copy-aa",
                "relay-aa",
                20_010,
                world.dir.path(),
                &program,
                backend,
            )?);
        }
        if wanted("mesh-proxy-l4")
            || wanted("mesh-proxy-l7")
            || wanted("mesh-tunnel-l4")
            || wanted("mesh-tunnel-l7")
            || wanted("mesh-tunnel-relayed")
        {
            match mesh::start(world.dir.path(), wanted("mesh-tunnel-relayed")) {
                Ok((mesh, groups)) => {
                    world.mesh = Some(mesh);
                    world.groups.extend(groups);
                }
                Err(error) => eprintln!("bench: the mesh is left out: {error:#}"),
            }
        }
        let dir = world.dir.path();
        for (name, group) in [
            ("haproxy", wanted("haproxy-l4").then(|| peers::haproxy(dir, backend))),
            ("nginx", wanted("nginx-l4").then(|| peers::nginx(dir, backend))),
            ("envoy", wanted("envoy-l4").then(|| peers::envoy(dir, &tools(), backend))),
            ("envoy-mtls", wanted("envoy-mtls").then(|| peers::envoy_mtls(dir, &tools(), backend))),
        ] {
            match group {
                Some(Ok(group)) => world.groups.push(group),
                Some(Err(error)) => eprintln!("bench: {name} is left out: {error:#}"),
                None => {}
            }
        }
        Ok(world)
    }

    /// How long a changed rule takes to steer traffic.
    pub(crate) fn apply_to_effect(&mut self, rounds: usize, report: &mut Report) -> Result<()> {
        match &mut self.mesh {
            Some(mesh) => mesh.apply_to_effect(rounds, report),
            None => Ok(()),
        }
    }

    /// Stops everything, subjects first.
    pub(crate) fn stop(&mut self) {
        for group in &mut self.groups {
            group.stop();
        }
        self.mesh = None;
        self.backend = None;
    }
}

fn relay(
    name: &'static str,
    log: &'static str,
    port: u16,
    dir: &Path,
    program: &Path,
    backend: Backend,
) -> Result<Group> {
    let at = |n| SocketAddr::from(([127, 0, 0, 1], port + n));
    let subject = Subject::new(name, "web.default.svc.cluster.local").http(at(0)).bulk(at(1));
    let mut command = Command::new(program);
    command.arg("relay").args([at(0), backend.http, at(1), backend.bulk].map(|a| a.to_string()));
    let mut group = Group::start(log, dir, command, program.to_owned(), at(0), vec![subject])?;
    group.name = name.to_owned();
    group.binary = None; // the whole bench is not the relay's size
    Ok(group)
}

fn network() -> Result<()> {
    run("ip", &["link", "set", "lo", "up"])?;
    for address in [CLIENT, NEAR, FAR, REMOTE, NODES] {
        run("ip", &["addr", "add", &format!("{address}/32"), "dev", "lo"])?;
    }
    // Virtual addresses lead nowhere by themselves; with a route, redirection gets to see them.
    run("ip", &["route", "add", "10.96.0.0/15", "dev", "lo", "src", CLIENT])?;
    // More client ports, and none of those that the programs listen on.
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "25000 65535")
        .context("set the range of client ports")?;
    Ok(())
}

pub(crate) fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
