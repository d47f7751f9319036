//! What controllers share: join tokens and nodes, in a directory or in a cluster.

use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, Subcommand};

use super::{Output, mesh::Kube};

const DEFAULT_STATE_DIR: &str = "/var/lib/mesh-controller";

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
    /// State directory of the controller on this machine; /var/lib/mesh-controller where there is one.
    #[arg(long, value_name = "DIR", env = "MESH_CONTROLLER_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Trust domain of the mesh; counts only when the CA does not exist yet.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
}

impl State {
    /// The directory, whether it is there or not.
    pub fn path(&self) -> &Path {
        self.state_dir.as_deref().unwrap_or(Path::new(DEFAULT_STATE_DIR))
    }
}

/// Where the controllers keep what they share: a directory of this machine, or a cluster.
#[derive(Debug, Clone, ClapArgs)]
pub struct Place {
    /// State directory.
    #[command(flatten)]
    pub state: State,
    /// The cluster, which is meant where no state directory is.
    #[command(flatten)]
    pub kube: Kube,
}

/// What to do with tokens.
#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// Make a token with which one node may join once. It is printed and kept nowhere.
    #[command(after_help = "\
Examples:
  meshctl token create --node edge-a --ttl 1h                          in the cluster of the current context
  meshctl token create --node edge-a --state-dir /var/lib/mesh-controller
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
        /// Directory or cluster.
        #[command(flatten)]
        place: Place,
        /// Format.
        #[command(flatten)]
        output: Output,
    },
    /// List tokens, without their secrets.
    List {
        /// Directory or cluster.
        #[command(flatten)]
        place: Place,
        /// Format.
        #[command(flatten)]
        output: Output,
    },
    /// Revoke a token that was not used.
    #[command(after_help = "Example:\n  meshctl token revoke 4f0c2a9d1b7e6a35")]
    Revoke {
        /// Its id, from `list`.
        id: String,
        /// Directory or cluster.
        #[command(flatten)]
        place: Place,
    },
}

/// `meshctl node`
#[derive(Debug, Clone, ClapArgs)]
pub struct Node {
    /// What to do.
    #[command(subcommand)]
    pub command: NodeCommand,
}

/// What to do with nodes that have joined.
#[derive(Debug, Clone, Subcommand)]
pub enum NodeCommand {
    /// List the nodes that have joined, how, and on which machine each runs.
    #[command(after_help = "Examples:\n  meshctl node list\n  meshctl node list -n mesh -o json")]
    List {
        /// Directory or cluster.
        #[command(flatten)]
        place: Place,
        /// Format.
        #[command(flatten)]
        output: Output,
    },
    /// Take a node out of the mesh: its streams end at once, its certificate is good for nothing any more, and peers do
    /// not take its calls. A pod of the mesh that still runs there joins again; a node outside needs a new token.
    #[command(after_help = "Example:\n  meshctl node remove edge-a")]
    Remove {
        /// Its name.
        name: String,
        /// Directory or cluster.
        #[command(flatten)]
        place: Place,
    },
}

/// `meshctl ca`
#[derive(Debug, Clone, ClapArgs)]
pub struct Ca {
    /// What to do.
    #[command(subcommand)]
    pub command: CaCommand,
}

/// What to do with CAs.
#[derive(Debug, Clone, Subcommand)]
pub enum CaCommand {
    /// List the CAs that are trusted: the one that signs is the first.
    #[command(after_help = "Examples:\n  meshctl ca status\n  meshctl ca status -n mesh -o json")]
    Status {
        /// Directory or cluster.
        #[command(flatten)]
        place: Place,
        /// Format.
        #[command(flatten)]
        output: Output,
    },
    /// Have the controllers make the next CA now, before its time. It is trusted at once and
    /// signs when every node knows it: after the life of a node certificate. Nothing is interrupted.
    #[command(
        after_help = "Examples:\n  meshctl ca renew\n  meshctl ca renew --state-dir /var/lib/mesh-controller"
    )]
    Renew {
        /// Directory or cluster.
        #[command(flatten)]
        place: Place,
    },
}
