//! What is measured: a subject is an address to send load to, and the processes whose CPU is its cost. Subjects of one
//! group share processes, so they are never under load at the same time.

use std::{
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use mesh_testkit::kube::{Daemon, Wrap};

/// The server behind all subjects.
#[derive(Clone, Copy)]
pub(crate) struct Backend {
    pub(crate) http: SocketAddr,
    pub(crate) bulk: SocketAddr,
}

#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) name: String,
    /// What requests name as host.
    pub(crate) host: String,
    /// Where requests go.
    pub(crate) http: Option<SocketAddr>,
    /// Where bulk bytes come from.
    pub(crate) bulk: Option<SocketAddr>,
}

impl Subject {
    pub(crate) fn new(name: impl Into<String>, host: &str) -> Self {
        Self { name: name.into(), host: host.to_owned(), http: None, bulk: None }
    }

    pub(crate) fn http(mut self, address: SocketAddr) -> Self {
        self.http = Some(address);
        self
    }

    pub(crate) fn bulk(mut self, address: SocketAddr) -> Self {
        self.bulk = Some(address);
        self
    }
}

/// One or two subjects, and the processes that they cost.
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) subjects: Vec<Subject>,
    pub(crate) binary: Option<PathBuf>,
    /// The roots of the process trees whose cost counts.
    pub(crate) pids: Vec<u32>,
    daemons: Vec<Daemon>,
}

impl Group {
    /// No process of its own: the load goes straight to the backend.
    pub(crate) fn direct(backend: Backend) -> Self {
        let subject =
            Subject::new("direct", "web.default.svc.cluster.local").http(backend.http).bulk(backend.bulk);
        Self::of("direct", vec![subject], Vec::new())
    }

    /// Processes that someone else started and ends.
    pub(crate) fn of(name: &str, subjects: Vec<Subject>, pids: Vec<u32>) -> Self {
        Self { name: name.into(), subjects, binary: None, pids, daemons: Vec::new() }
    }

    /// Starts one program and waits until it listens at `probe`.
    pub(crate) fn start(
        name: &'static str,
        dir: &Path,
        command: Command,
        binary: PathBuf,
        probe: SocketAddr,
        subjects: Vec<Subject>,
    ) -> Result<Self> {
        let daemon = start(name, dir, command, probe)?;
        Ok(Self {
            binary: Some(binary),
            pids: vec![daemon.pid()],
            daemons: vec![daemon],
            ..Self::of(name, subjects, Vec::new())
        })
    }

    /// Takes a further program whose cost counts.
    pub(crate) fn add(&mut self, daemon: Daemon) {
        self.pids.push(daemon.pid());
        self.daemons.push(daemon);
    }

    /// Stops its processes.
    pub(crate) fn stop(&mut self) {
        self.daemons.clear();
    }
}

/// Starts a program and waits until it accepts connections at `probe`.
pub(crate) fn start(name: &'static str, dir: &Path, command: Command, probe: SocketAddr) -> Result<Daemon> {
    start_within(name, dir, command, probe, Duration::from_secs(30))
}

/// As [`start`], for programs that take longer.
pub(crate) fn start_within(
    name: &'static str,
    dir: &Path,
    command: Command,
    probe: SocketAddr,
    limit: Duration,
) -> Result<Daemon> {
    let mut daemon = Daemon::spawn(name, &Wrap::none(), command, &dir.join(format!("{name}.log")))
        .with_context(|| format!("start {name}"))?;
    let timeout = Duration::from_millis(500);
    daemon.wait_ready(limit, || {
        TcpStream::connect_timeout(&probe, timeout).map(drop).map_err(|e| format!("{probe}: {e}"))
    })?;
    Ok(daemon)
}
