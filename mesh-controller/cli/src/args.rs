//! What can be asked for.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// Checks mesh rules, explains routing, makes join tokens, looks into a node's proxy.
#[derive(Debug, Parser)]
#[command(
    name = "meshctl",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  meshctl validate -f rules/                      what admission would say of each object
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
    /// Say of each Istio object what admission would say.
    Validate(Validate),
    /// Say where a request would go, and why.
    Simulate(Simulate),
    /// Make, list and revoke join tokens.
    Token(Token),
    /// Look into a node's proxy through its admin page on loopback.
    Proxy(Proxy),
    /// Print the CustomResourceDefinitions of the mesh.
    Crds(Crds),
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

/// `meshctl token`
#[derive(Debug, Clone, ClapArgs)]
pub struct Token {
    /// What to do.
    #[command(subcommand)]
    pub command: TokenCommand,
}

/// The state directory of a controller.
#[derive(Debug, Clone, ClapArgs)]
pub struct State {
    /// State directory of the controller on this machine.
    #[arg(
        long,
        value_name = "DIR",
        env = "MESH_CONTROLLER_STATE_DIR",
        default_value = "/var/lib/mesh-controller"
    )]
    pub state_dir: PathBuf,
    /// Trust domain of the mesh; counts only when the CA does not exist yet.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
}

/// What to do with tokens.
#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// Make a token with which one node may join once. It is printed and kept nowhere.
    #[command(after_help = "\
Examples:
  meshctl token create --node edge-a --ttl 1h
  meshctl token create --node edge-a --controller mesh.example.com:15012 > edge-a.token")]
    Create {
        /// Name of the node.
        #[arg(long, value_name = "NAME")]
        node: String,
        /// How long the token may be used.
        #[arg(long, value_name = "DURATION", default_value = "24h")]
        ttl: String,
        /// Where controllers answer; any number of times.
        #[arg(long = "controller", value_name = "HOST:PORT")]
        controllers: Vec<String>,
        /// State directory.
        #[command(flatten)]
        state: State,
        /// Format.
        #[command(flatten)]
        output: Output,
    },
    /// List tokens, without their secrets.
    List {
        /// State directory.
        #[command(flatten)]
        state: State,
        /// Format.
        #[command(flatten)]
        output: Output,
    },
    /// Revoke a token that was not used.
    #[command(after_help = "Example:\n  meshctl token revoke 4f0c2a9d1b7e6a35")]
    Revoke {
        /// Its id, from `list`.
        id: String,
        /// State directory.
        #[command(flatten)]
        state: State,
    },
}

/// `meshctl proxy`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Examples:
  meshctl proxy status
  meshctl proxy endpoints reviews
  meshctl proxy routes reviews.default.svc.cluster.local -o yaml")]
pub struct Proxy {
    /// What to show.
    #[command(subcommand)]
    pub what: ProxyWhat,
    /// Admin address of the proxy.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "MESH_PROXY_ADMIN_URL",
        default_value = "http://127.0.0.1:15000"
    )]
    pub admin: String,
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
}

/// `meshctl crds`
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "Examples:\n  meshctl crds | kubectl apply -f -\n  meshctl crds --write charts/crds")]
pub struct Crds {
    /// Write one file for each kind into this directory instead of printing.
    #[arg(long, value_name = "DIR")]
    pub write: Option<PathBuf>,
}
