//! What can be asked for.

mod install;
mod mesh;
mod state;

use std::{path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

pub use install::{Helm, Install, Uninstall};
pub use mesh::{
    Admin, BugReport, By, Check, Force, Kube, Level, Logs, Look, Program, Proxies, Reach, Status, Top,
};
pub use state::{Ca, CaCommand, Node, NodeCommand, Place, State, Token, TokenCommand};

/// Installs the mesh, looks into it while it runs, checks its rules, explains routing, makes join tokens.
#[derive(Debug, Parser)]
#[command(
    name = "meshctl",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  meshctl install                                 bring the mesh into the cluster of the current context
  meshctl check                                   whether a cluster can have it, or whether it is well
  meshctl status                                  which proxies have what they should
  meshctl routes --service reviews                what a proxy does with calls
  meshctl validate -f rules/                      what admission would say of each object
  meshctl analyze                                 what is wrong in the cluster, with Istio's codes
  meshctl simulate -f mesh/ --request call.json   where that call would go, and why
  meshctl token create --node edge-a              let a new node join
  meshctl proxy services                          what the proxy of this node knows
  meshctl crds | kubectl apply -f -               teach a cluster the mesh's kinds

Exit code: 0 fine, 1 findings of level error, 2 wrong usage or unreadable input."
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring the mesh into a cluster, or upgrade it: checks, Helm, and a look at what came of it.
    Install(Install),
    /// Take the mesh out of a cluster.
    Uninstall(Uninstall),
    /// Say whether a cluster can have the mesh, or whether the mesh that it has is well.
    Check(Check),
    /// Say which proxies have what their controller says, since when, and from which controller.
    Status(Status),
    /// Say what each proxy, relay and gateway says of itself.
    Proxies(Proxies),
    /// List the services that a proxy knows.
    #[command(after_help = "\
Examples:
  meshctl services
  meshctl services --node edge-a --host reviews
  meshctl services --port 9080 -o json
  meshctl services --admin http://127.0.0.1:15000")]
    Services(Force),
    /// List the rules that a proxy follows, in the order in which they are tried.
    #[command(after_help = "\
Rules of each host in the order in which they are tried: the first whose condition holds takes the request. A host without
rules goes to its own endpoints.

Examples:
  meshctl routes --service reviews
  meshctl routes --node edge-a --host shop.example.com -o yaml
  meshctl routes --port 9080")]
    Routes(Force),
    /// List the endpoints that a proxy may choose from, their health, and the path to them.
    #[command(after_help = "\
Endpoints of each service, subset and port as this proxy sees them: HEALTH is ready, starting (not ready), leaving, or unwell
(this proxy gives it no new calls for a time: it failed); PATH is how its node is reached from here.

Examples:
  meshctl endpoints --service reviews
  meshctl endpoints --node edge-a --host reviews --port 9080 -o json
  meshctl endpoints --admin http://127.0.0.1:15000")]
    Endpoints(Force),
    /// Print the logs of the mesh's programs, or follow them.
    Logs(Logs),
    /// Show requests, errors, times, connections, CPU and memory, of each proxy or service.
    Top(Top),
    /// Write an archive with what somebody needs who looks for a fault, without secrets.
    BugReport(BugReport),
    /// Say of each Istio object what admission would say.
    Validate(Validate),
    /// Say what is wrong with objects when they are looked at together, with Istio's codes.
    Analyze(Analyze),
    /// Say where a request would go, and why.
    Simulate(Simulate),
    /// Say on which path each peer is reached, and why it is not a better one.
    Paths(Paths),
    /// Look for what is wrong on this node, and say how to mend it.
    Doctor(Doctor),
    /// Make, list and revoke join tokens.
    Token(Token),
    /// List the nodes that have joined, and take one out.
    Node(Node),
    /// Show the CAs that are trusted, and have the next one made.
    Ca(Ca),
    /// Look into a node's proxy through its admin page on loopback.
    Proxy(Proxy),
    /// Print the CustomResourceDefinitions of the mesh.
    Crds(Crds),
    /// Print the webhook configuration by which a cluster asks the controller for admission.
    Webhook(Webhook),
    /// Turn the settings of another mesh into values of charts/mesh.
    Migrate(Migrate),
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  meshctl completion bash > /etc/bash_completion.d/meshctl")]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    #[value(alias = "text")]
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// Where objects come from.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct Files {
    /// File or directory of YAML or JSON; `-` for standard input. Any number of times.
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR", required = true)]
    pub files: Vec<PathBuf>,
}

/// Output format.
#[derive(Debug, Clone, Copy, Default, ClapArgs)]
pub struct Output {
    /// How the result is printed.
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    pub format: Format,
}

/// `meshctl validate`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Examples:
  meshctl validate -f virtual-service.yaml
  meshctl validate -f rules/ -f more.yaml -o json
  kubectl get virtualservices -A -o yaml | meshctl validate -f -")]
pub struct Validate {
    /// Objects.
    #[command(flatten)]
    pub files: Files,
    /// Format.
    #[command(flatten)]
    pub output: Output,
}

/// `meshctl analyze`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Codes are Istio's (https://istio.io/latest/docs/reference/config/analysis/); SLV... are this mesh's own.
The annotation galley.istio.io/analyze-suppress: CODE,... on an object silences codes for it.

Examples:
  meshctl analyze                                  the cluster of the current context
  meshctl analyze -n shop -o json
  meshctl analyze -f rules/ -f services.yaml
  meshctl analyze -f rules/ --codes IST0101,IST0130")]
pub struct Analyze {
    /// File or directory of YAML or JSON; `-` for standard input. Any number of times. Without it, the cluster is read.
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,
    /// Say nothing but these codes.
    #[arg(long, value_name = "CODE,...", value_delimiter = ',')]
    pub codes: Vec<String>,
    /// Namespace of objects that name none, and the only one of which something is said.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Speak of all namespaces, which is what happens without --namespace.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Namespace of the control plane, whose rules apply to the whole mesh.
    #[arg(long, value_name = "NAMESPACE", default_value = "istio-system")]
    pub root_namespace: String,
    /// Istio's MeshConfig; a cluster's own is read from its ConfigMap `istio`.
    #[arg(long, value_name = "FILE")]
    pub mesh_config: Option<PathBuf>,
    /// Istio's MeshNetworks.
    #[arg(long, value_name = "FILE")]
    pub mesh_networks: Option<PathBuf>,
    /// How the cluster is reached.
    #[command(flatten)]
    pub cluster: Cluster,
    /// Format.
    #[command(flatten)]
    pub output: Output,
}

/// How a cluster is reached.
#[derive(Debug, Clone, ClapArgs)]
pub struct Cluster {
    /// A kubeconfig; without it $KUBECONFIG or ~/.kube/config, else the service account of this pod.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// Limit for reading the cluster.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = mesh::span)]
    pub timeout: Duration,
}

impl Cluster {
    pub(crate) fn kube(&self) -> Kube {
        Kube { kubeconfig: self.kubeconfig.clone(), context: self.context.clone(), namespace: String::new() }
    }
}

/// `meshctl simulate`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Example of a request (a list gives a list):
  {\"protocol\":\"http\", \"host\":\"reviews.default.svc.cluster.local\", \"port\":9080,
   \"method\":\"GET\", \"path\":\"/\", \"headers\":{\"end-user\":\"jason\"},
   \"source\":{\"namespace\":\"default\",\"labels\":{\"app\":\"productpage\"}},
   \"dice\":{\"weight\":0.5}}

Examples:
  meshctl simulate -f mesh/ --request call.json
  echo '{\"host\":\"reviews\",\"port\":9080}' | meshctl simulate -f mesh/ --request - -o json")]
pub struct Simulate {
    /// Services, rules, and, if endpoints matter, pods or EndpointSlices.
    #[command(flatten)]
    pub files: Files,
    /// Format.
    #[command(flatten)]
    pub output: Output,
    /// The request, or a list of requests, as JSON; `-` for standard input.
    #[arg(long, value_name = "FILE")]
    pub request: PathBuf,
    /// Refuse hosts that no registry knows, instead of letting them through.
    #[arg(long)]
    pub registry_only: bool,
    /// Domain of Kubernetes services.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Namespace whose rules apply to the whole mesh.
    #[arg(long, value_name = "NAMESPACE", default_value = "istio-system")]
    pub root_namespace: String,
}

/// `meshctl paths`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Paths, best first: lan, direct, punched (through both NATs), relayed (through the named node). Each peer's reason why
its path is not a better one, and what would change it, is printed below the table.

Examples:
  meshctl paths
  meshctl paths edge-b -o json
  meshctl paths --all                             also paths that new connections do not take
  meshctl paths --node edge-a                     as the proxy of that node sees them, through the API server")]
pub struct Paths {
    /// Only the path to this node.
    pub peer: Option<String>,
    /// Also paths that are open but not in use.
    #[arg(long)]
    pub all: bool,
    /// The proxy that is asked.
    #[command(flatten)]
    pub admin: Admin,
    /// Format.
    #[command(flatten)]
    pub output: Output,
}

/// `meshctl doctor`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Looks at: the proxy, ports that others hold, capture, UDP services, DNS, the controller, the clock, the certificate,
UDP and TCP to relays and peers with round trips, and the largest datagram that passes. Each check is ok, warn (works,
with less than there could be) or fail, and says how to mend it. Exit code 1 when a check fails. Of another node (--node) only
what its proxy says of itself is looked at; the rest is looked at where it is.

Examples:
  meshctl doctor
  meshctl doctor -o json
  meshctl doctor --node edge-a
  meshctl doctor --admin http://127.0.0.1:16000 --wait-ms 3000")]
pub struct Doctor {
    /// How long an answer from the network may take.
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub wait_ms: u64,
    /// The proxy that is asked.
    #[command(flatten)]
    pub admin: Admin,
    /// Format.
    #[command(flatten)]
    pub output: Output,
}

impl Doctor {
    pub(crate) fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms.clamp(10, 60_000))
    }
}

/// `meshctl proxy`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Examples:
  meshctl proxy status
  meshctl proxy endpoints reviews
  meshctl proxy peers --node edge-a               of another node, through the API server
  meshctl proxy routes reviews.default.svc.cluster.local -o yaml")]
pub struct Proxy {
    /// What to show.
    #[command(subcommand)]
    pub what: ProxyWhat,
    /// The proxy that is asked.
    #[command(flatten)]
    pub admin: Admin,
    /// How the result is printed.
    #[arg(short = 'o', long = "output", global = true, value_enum, default_value_t)]
    pub format: Format,
}

/// What to show of a proxy.
#[derive(Debug, Clone, Subcommand)]
pub enum ProxyWhat {
    /// Services that it knows.
    Services {
        /// Only hosts that contain this.
        filter: Option<String>,
    },
    /// Routing rules.
    Routes {
        /// Only hosts that contain this.
        filter: Option<String>,
    },
    /// Endpoints.
    Endpoints {
        /// Only hosts that contain this.
        filter: Option<String>,
    },
    /// Tunnel connections to other nodes.
    Peers,
    /// Who the proxy is, whether it is ready, how much it knows.
    Status,
    /// Show log levels, or change them while the proxy runs.
    #[command(
        after_help = "Examples:\n  meshctl proxy log-level\n  meshctl proxy log-level debug --for 10m\n  \
                            meshctl proxy log-level trace --target mesh_proxy::dns\n  meshctl proxy log-level --node edge-a debug --for 10m\n  \
                            meshctl proxy log-level --reset"
    )]
    LogLevel {
        /// off, error, warn, info, debug or trace; without it the levels are shown.
        level: Option<String>,
        /// Only of this part of the program.
        #[arg(long, value_name = "TARGET", requires = "level")]
        target: Option<String>,
        /// Undo the change after this time: 30s, 10m, 1h.
        #[arg(long = "for", value_name = "TIME", requires = "level")]
        time: Option<String>,
        /// Back to what the proxy started with.
        #[arg(long, conflicts_with = "level")]
        reset: bool,
    },
}

/// `meshctl crds`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "Examples:\n  meshctl crds | kubectl apply -f -\n  meshctl crds --write charts/crds")]
pub struct Crds {
    /// Write one file for each kind into this directory instead of printing.
    #[arg(long, value_name = "DIR")]
    pub write: Option<PathBuf>,
}

/// `meshctl migrate`
#[derive(Debug, Clone, ClapArgs)]
pub struct Migrate {
    /// From what.
    #[command(subcommand)]
    pub what: MigrateWhat,
}

/// From what to migrate.
#[derive(Debug, Clone, Subcommand)]
pub enum MigrateWhat {
    /// Values of EdgeMesh's charts, or its ConfigMaps: prints values for charts/mesh, and says what became of each setting.
    EdgemeshValues(EdgemeshValues),
}

/// `meshctl migrate edgemesh-values`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
The values are on standard output, what was taken over and what not, and why, on standard error; with -o json or yaml all of
it is one document on standard output.

Examples:
  meshctl migrate edgemesh-values -f edgemesh.yaml > mesh.yaml && helm install mesh charts/mesh -f mesh.yaml
  helm get values edgemesh -n kubeedge | meshctl migrate edgemesh-values -f -
  kubectl get configmap edgemesh-agent-cfg -n kubeedge -o yaml | meshctl migrate edgemesh-values -f - -o json")]
pub struct EdgemeshValues {
    /// Values or ConfigMaps.
    #[command(flatten)]
    pub files: Files,
    /// Format.
    #[command(flatten)]
    pub output: Output,
}

/// `meshctl webhook`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
By default objects get in while no controller answers; the controller refuses them by itself and says so in their
status. With --fail-closed nobody can change a rule in that time.

Examples:
  meshctl webhook | kubectl apply -f -
  meshctl webhook --service mesh/controller --fail-closed
  meshctl webhook --url https://controller.example.com:15017/validate")]
pub struct Webhook {
    /// Name of the configuration; the controller keeps its CA in the one of this name.
    #[arg(long, default_value = "selvage-validator")]
    pub name: String,
    /// The controller's Service.
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "selvage-system/mesh-controller")]
    pub service: String,
    /// Port of the Service.
    #[arg(long, default_value_t = 15017)]
    pub port: u16,
    /// Where the controller answers, when it is not in the cluster.
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Refuse every change while no controller answers.
    #[arg(long)]
    pub fail_closed: bool,
    /// State directory, for its CA.
    #[command(flatten)]
    pub state: State,
    /// Format.
    #[command(flatten)]
    pub output: Output,
}
