//! The commands that look at a mesh that runs, and how its programs are reached.

use std::{path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, ValueEnum};

use super::Output;

/// `30s`, `5m`, `1h`.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    let nanos = istio_compat::duration::parse(text).map_err(|e| format!("{e}; write 30s, 5m or 1h"))?;
    let nanos = u64::try_from(nanos).ok().filter(|n| *n > 0).ok_or("must be more than nothing")?;
    Ok(Duration::from_nanos(nanos))
}

/// The API server of a cluster, and where the mesh is in it.
#[derive(Debug, Clone, ClapArgs)]
pub struct Kube {
    /// A kubeconfig; without it $KUBECONFIG or ~/.kube/config, else the service account of this pod.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Namespace of the mesh.
    #[arg(short, long, global = true, value_name = "NAMESPACE", default_value = "selvage-system")]
    pub namespace: String,
}

/// One proxy: of this machine, or of a node of a cluster. The admin page stays on loopback there: the API server leads to it as
/// `kubectl port-forward` does.
#[derive(Debug, Clone, ClapArgs)]
pub struct Admin {
    /// Admin address of a proxy of this machine.
    #[arg(
        long = "admin",
        global = true,
        value_name = "URL",
        env = "MESH_PROXY_ADMIN_URL",
        default_value = "http://127.0.0.1:15000"
    )]
    pub url: String,
    /// Ask the proxy of this node, or the relay or gateway of this name, through the API server.
    #[arg(long, global = true, value_name = "NODE")]
    pub node: Option<String>,
    /// The cluster of that node.
    #[command(flatten)]
    pub kube: Kube,
    /// Port of that proxy's admin page.
    #[arg(long, global = true, value_name = "PORT", default_value_t = 15000)]
    pub proxy_port: u16,
    /// Limit for each thing that is asked.
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = span)]
    pub timeout: Duration,
}

impl Admin {
    pub(crate) fn reach(&self) -> Reach {
        Reach { proxy_port: self.proxy_port, ..Reach::of(&self.kube, self.timeout) }
    }
}

/// How the programs of the mesh are reached: through the API server, which leads to the admin page of a pod as `kubectl
/// port-forward` does, or at addresses of this machine.
#[derive(Debug, Clone, ClapArgs)]
pub struct Reach {
    /// Admin page of a proxy (port 15000) or controller (15016) on this machine, instead of a cluster; any number of times. Does
    /// not count where a kubeconfig or a context is named.
    #[arg(long = "admin", value_name = "URL", env = "MESH_PROXY_ADMIN_URL", value_delimiter = ',')]
    pub admin: Vec<String>,
    /// The cluster.
    #[command(flatten)]
    pub kube: Kube,
    /// Port of the proxies' admin pages.
    #[arg(long, value_name = "PORT", default_value_t = 15000)]
    pub proxy_port: u16,
    /// Port of the controllers' admin pages.
    #[arg(long, value_name = "PORT", default_value_t = 15016)]
    pub controller_port: u16,
    /// Limit for all of it; a program that does not answer in a third of it is left out and named.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = span)]
    pub timeout: Duration,
}

impl Reach {
    /// Through the API server, with the usual ports.
    pub fn of(kube: &Kube, timeout: Duration) -> Self {
        Self { admin: Vec::new(), kube: kube.clone(), proxy_port: 15000, controller_port: 15016, timeout }
    }
}

/// What all commands have that look into a mesh that runs.
#[derive(Debug, Clone, ClapArgs)]
pub struct Look {
    /// How programs are reached.
    #[command(flatten)]
    pub reach: Reach,
    /// Format.
    #[command(flatten)]
    pub output: Output,
}

/// `meshctl check`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Before the mesh is installed: whether this cluster can run it. After: controller, proxies of each node, what they have in
force, versions, certificates, CRDs, webhook, rules with findings. Each check is ok, warn (works, with less than there could
be) or fail, and says how to mend it. Exit code 1 when a check fails.

Examples:
  meshctl check
  meshctl check --before                          only what an installation needs
  meshctl check -o json
  meshctl check --kubeconfig cluster.yaml --context prod -n mesh --timeout 1m")]
pub struct Check {
    /// Look as before an installation, whether the mesh is there or not.
    #[arg(long)]
    pub before: bool,
    /// Name of the release.
    #[arg(long, default_value = "mesh")]
    pub release: String,
    /// Checks before an installation whose answer does not count.
    #[arg(long, value_name = "CHECK,...", value_delimiter = ',')]
    pub ignore: Vec<String>,
    /// Where it looks, and how it prints.
    #[command(flatten)]
    pub look: Look,
}

/// `meshctl status`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
A proxy is synced (it has taken all that its controller has), behind (since that time something is on its way or without an
answer), refused (it did not take a part of it: the last line says why) or away (no controller has a stream of it; what it
knows goes on working). LAG is how long it took to take the last change. Exit code 1 when a proxy is away or refused
something, or when a controller does not answer.

Examples:
  meshctl status
  meshctl status edge-a -o json
  meshctl status --admin http://127.0.0.1:15016   a controller of this machine")]
pub struct Status {
    /// Only these nodes.
    pub nodes: Vec<String>,
    /// Where it looks, and how it prints.
    #[command(flatten)]
    pub look: Look,
}

/// `meshctl proxies`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
What each proxy, relay and gateway says of itself: whether it is ready, follows a controller, how much it knows, how long its
certificate holds, its connections. Exit code 1 when one is not ready or does not answer.

Examples:
  meshctl proxies
  meshctl proxies edge-a edge-b -o yaml
  meshctl proxies --admin http://127.0.0.1:15000  the proxy of this machine")]
pub struct Proxies {
    /// Only these nodes.
    pub nodes: Vec<String>,
    /// Where it looks, and how it prints.
    #[command(flatten)]
    pub look: Look,
}

/// `meshctl services`, `routes` and `endpoints`: what of a proxy's configuration is shown.
#[derive(Debug, Clone, ClapArgs)]
pub struct Force {
    /// The node whose proxy is asked; without it the first one that is ready.
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// Only hosts that contain this.
    #[arg(long, value_name = "PART")]
    pub host: Option<String>,
    /// Only this port of services.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Only this service: `reviews`, `reviews.shop`, or its whole host.
    #[arg(long, value_name = "NAME[.NAMESPACE]")]
    pub service: Option<String>,
    /// Where it looks, and how it prints.
    #[command(flatten)]
    pub look: Look,
}

/// The level of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Level {
    /// What is of use to developers only.
    Trace,
    /// What helps to find a fault.
    Debug,
    /// What happens.
    Info,
    /// What should not happen.
    Warn,
    /// What somebody has to look at.
    Error,
}

/// `meshctl logs`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Lines of all programs in the order of their time, each with the name of its node. -o json prints one object a line, -o yaml
one document a line. --level hides lines below a level; more is written by `meshctl proxy log-level debug --for 10m`.

Examples:
  meshctl logs                                    the last lines of all programs
  meshctl logs edge-a -f --since 10m
  meshctl logs --only controller --level warn
  meshctl logs --previous edge-a                  what it said before it was restarted")]
pub struct Logs {
    /// Only programs of these nodes, or pods of these names.
    pub names: Vec<String>,
    /// Only programs of this kind.
    #[arg(long, value_name = "KIND", value_enum)]
    pub only: Option<Program>,
    /// Go on with what is written from now on; also of programs that start later. Ends with Ctrl-C.
    #[arg(short, long)]
    pub follow: bool,
    /// Only lines of this time.
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub since: Option<Duration>,
    /// Lines of each program to begin with.
    #[arg(long, value_name = "LINES", default_value_t = 200)]
    pub tail: u32,
    /// Only lines of at least this level.
    #[arg(long, value_name = "LEVEL", value_enum)]
    pub level: Option<Level>,
    /// The log of the process before the present one.
    #[arg(long, conflicts_with = "follow")]
    pub previous: bool,
    /// Limit for what is asked of the API server, but for following.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = span)]
    pub timeout: Duration,
    /// The cluster.
    #[command(flatten)]
    pub kube: Kube,
    /// Format.
    #[command(flatten)]
    pub output: Output,
}

/// The programs of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Program {
    /// The control plane.
    Controller,
    /// The proxy of a node.
    Proxy,
    /// A relay for nodes behind NAT.
    Relay,
    /// An ingress gateway.
    Gateway,
}

/// By what `top` counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// One row a proxy.
    #[default]
    Proxy,
    /// One row a service that is called.
    Service,
}

/// `meshctl top`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Reads the metrics of each proxy twice, --interval apart. Requests are those that ended in between; a proxy counts calls of its
own pods (OUT) and calls to them (IN). By service, callers' proxies are summed up. p50 and p99 are estimates within a bucket,
as Prometheus' histogram_quantile makes them.

Examples:
  meshctl top
  meshctl top --by service --interval 10s
  meshctl top edge-a -o json
  meshctl top --admin http://127.0.0.1:15000")]
pub struct Top {
    /// Only these nodes.
    pub nodes: Vec<String>,
    /// What a row is.
    #[arg(long, value_enum, default_value_t)]
    pub by: By,
    /// Time between the two looks.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = span)]
    pub interval: Duration,
    /// Rows, the busiest first; 0 = all.
    #[arg(long, value_name = "ROWS", default_value_t = 0)]
    pub rows: usize,
    /// Where it looks, and how it prints.
    #[command(flatten)]
    pub look: Look,
}

/// `meshctl bug-report`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Writes one archive: versions, values, objects, events, rules, what each program has in force, metrics, last logs, findings. Keys,
tokens, passwords, certificates' keys and what looks like them are replaced by ***; Secrets are not read. Look into it before
you hand it on: names of hosts and services stay.

Examples:
  meshctl bug-report
  meshctl bug-report --file report.tar.gz --since 1h
  meshctl bug-report edge-a --max-mib 8
  meshctl bug-report --admin http://127.0.0.1:15000")]
pub struct BugReport {
    /// Only programs of these nodes, beside the controllers.
    pub nodes: Vec<String>,
    /// The archive; default selvage-report-TIME.tar.gz in this directory.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Log lines of this time.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = span)]
    pub since: Duration,
    /// The helm program, which knows the values that were given.
    #[arg(long, value_name = "PROGRAM", env = "HELM", default_value = "helm")]
    pub helm: PathBuf,
    /// Name of the release.
    #[arg(long, default_value = "mesh")]
    pub release: String,
    /// Most MiB of all files together, before they are packed; what does not fit is named in MANIFEST.txt.
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    pub max_mib: usize,
    /// Where it looks, and how it prints.
    #[command(flatten)]
    pub look: Look,
}
