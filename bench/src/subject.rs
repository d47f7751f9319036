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

/// The processes of one or two subjects.
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) subjects: Vec<Subject>,
    pub(crate) binary: Option<PathBuf>,
    daemons: Vec<Daemon>,
    /// Daemons that serve the group but are not on the request path, such as a controller.
    aside: Vec<Daemon>,
}

impl Group {
    /// No process of its own: the load goes straight to the backend.
    pub(crate) fn direct(backend: Backend) -> Self {
        let subject = Subject::new("direct", "web.default.svc.cluster.local").http(backend.http).bulk(backend.bulk);
        Self { name: "direct".into(), subjects: vec![subject], binary: None, daemons: Vec::new(), aside: Vec::new() }
    }

    /// Processes that are running already.
    pub(crate) fn of(name: &str, binary: PathBuf, subjects: Vec<Subject>, daemons: Vec<Daemon>, aside: Vec<Daemon>) -> Self {
        Self { name: name.into(), subjects, binary: Some(binary), daemons, aside }
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
        Ok(Self::of(name, binary, subjects, vec![daemon], Vec::new()))
    }

    /// The roots of the process trees whose cost counts.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.daemons.iter().map(Daemon::pid).collect()
    }

    /// Stops all processes.
    pub(crate) fn stop(&mut self) {
        self.daemons.clear();
        self.aside.clear();
    }
}

/// Starts a program and waits until it accepts connections at `probe`.
pub(crate) fn start(name: &'static str, dir: &Path, command: Command, probe: SocketAddr) -> Result<Daemon> {
    let mut daemon = Daemon::spawn(name, &Wrap::none(), command, &dir.join(format!("{name}.log")))
        .with_context(|| format!("start {name}"))?;
    let timeout = Duration::from_millis(500);
    daemon.wait_ready(Duration::from_secs(30), || {
        TcpStream::connect_timeout(&probe, timeout).map(drop).map_err(|e| format!("{probe}: {e}"))
    })?;
    Ok(daemon)
}
