//! `cluster`: a real cluster to play with.

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use clap::{Parser, Subcommand};

use super::{Cluster, ClusterError, Options, node};
use crate::lab::{LabError, World, state};

/// A Kubernetes cluster in a closed world: real kubelets, containers and Helm.
#[derive(Debug, Parser)]
#[command(
    name = "cluster",
    version,
    after_help = "Examples:\n  cluster up\n  cluster kubectl get nodes -o wide\n  cluster helm install mesh charts/mesh --wait\n  cluster exec edge-a -- nft list ruleset"
)]
struct Cli {
    /// The cluster's name; needed only when more than one is up
    #[arg(long, global = true, default_value = "cluster")]
    name: String,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Brings a cluster up with this project's images, and stays until Ctrl-C
    Up {
        /// Nodes; the control plane runs on the first one too
        #[arg(default_values = ["cloud", "edge-a", "edge-b"])]
        nodes: Vec<String>,
        /// Programs that the nodes get as images `selvage/NAME:test`
        #[arg(long, value_delimiter = ',', default_value = "mesh-controller,mesh-proxy,echo")]
        programs: Vec<String>,
        /// kube-proxy's mode
        #[arg(long, default_value = "nftables")]
        proxy_mode: String,
    },
    /// Runs kubectl as administrator
    Kubectl {
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Runs Helm as administrator
    Helm {
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Runs a command in the network of a node
    Exec {
        /// Where
        node: String,
        /// What
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    #[command(name = "__node", hide = true)]
    Node { plan: PathBuf },
}

/// Runs the program; the exit code.
#[must_use]
pub fn main() -> i32 {
    let Cli { name, what } = Cli::parse();
    let outcome = match what {
        What::Up { nodes, programs, proxy_mode } => up(name, &nodes, &programs, &proxy_mode),
        What::Kubectl { args } => kube(&name, "kubectl", &args),
        What::Helm { args } => kube(&name, "helm", &args),
        What::Exec { node, command } => running(&name).and_then(|w| replace(&w, &node, &command)),
        What::Node { plan } => node::main(&plan),
    };
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("cluster: {error}");
            1
        }
    }
}

fn up(name: String, nodes: &[String], programs: &[String], proxy_mode: &str) -> Result<(), ClusterError> {
    let start = std::time::Instant::now();
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let programs: Vec<&str> = programs.iter().map(String::as_str).collect();
    let mut options = Options::with_nodes(&nodes).programs(&programs)?;
    options.name = name;
    proxy_mode.clone_into(&mut options.proxy_mode);
    let mut signals = nix::sys::signal::SigSet::empty();
    signals.add(nix::sys::signal::SIGINT);
    signals.add(nix::sys::signal::SIGTERM);
    signals.thread_block().map_err(ClusterError::system("blocking signals"))?;
    let cluster = Cluster::up(&options)?;
    println!("{}", cluster.kubectl(&["get", "nodes", "-o", "wide"])?);
    println!(
        "up after {:.1} s; in another terminal: cluster kubectl get pods -A",
        start.elapsed().as_secs_f64()
    );
    println!("Ctrl-C ends it");
    // Whoever started it may have closed its output.
    let _closed = std::io::stdout().flush();
    signals.wait().map_err(ClusterError::system("waiting"))?;
    Ok(())
}

/// The cluster of that name that is up: its world's name goes on with numbers.
fn running(name: &str) -> Result<World, ClusterError> {
    let number = |c: char| c.is_ascii_digit() || c == '-';
    let own = |world: &str| {
        world.strip_prefix(name).is_some_and(|rest| rest.starts_with('-') && rest.chars().all(number))
    };
    let mut found: Vec<_> = state::all().into_iter().filter(|(n, f)| own(n) && f.alive()).collect();
    match (found.pop(), found.is_empty()) {
        (Some((_, files)), true) => World::attach(&files).map_err(ClusterError::World),
        (None, _) => Err(ClusterError::Unable("none is up (cluster up)".to_owned())),
        (Some(_), false) => Err(ClusterError::Unable("more than one is up".to_owned())),
    }
}

fn kube(name: &str, program: &str, args: &[String]) -> Result<(), ClusterError> {
    let world = running(name)?;
    let folder = world.folder("kube").map_err(ClusterError::World)?;
    let config = folder.join("admin.kubeconfig");
    let programs = crate::kube::all_programs().map_err(ClusterError::Kube)?;
    let text = std::fs::read_to_string(&config).map_err(ClusterError::io("read", &config))?;
    // The control plane's node: the one with the address that the clients use.
    let first = world.places().values().find(|p| text.contains(&format!("//{}:", p.address)));
    let first = first.map(|p| p.name.clone()).unwrap_or_default();
    let mut command = vec!["env".to_owned(), format!("KUBECONFIG={}", config.display())];
    command.push(programs.join(program).display().to_string());
    command.extend(args.iter().cloned());
    replace(&world, &first, &command)
}

fn replace(world: &World, node: &str, command: &[String]) -> Result<(), ClusterError> {
    let place = world.node(node).map_err(ClusterError::World)?;
    let (program, args) = command
        .split_first()
        .ok_or_else(|| ClusterError::World(LabError::Process("no command given".to_owned())))?;
    let error = place.wrap(Command::new(program).args(args), None).exec();
    Err(ClusterError::io("run", Path::new(program))(error))
}
