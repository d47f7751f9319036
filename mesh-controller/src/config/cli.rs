//! The command line.

use std::{ffi::OsString, io::Write, path::PathBuf};

use clap::{CommandFactory, Parser, Subcommand};
use node_rt::ConfigErrors;

use super::{Config, ENV_PREFIX};
use crate::preflight::Preflight;

/// The control plane of the mesh: watches Kubernetes or a folder, compiles, streams to proxies.
///
/// Every setting can be given in the file (stateDir), as an environment variable (MESH_CONTROLLER_STATE_DIR) or as a flag
/// (--state-dir, --set stateDir=...); later ones win.
#[derive(Debug, Parser)]
#[command(name = "mesh-controller", version)]
pub struct Cli {
    /// Configuration file (YAML).
    #[arg(long, env = "MESH_CONTROLLER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where objects come from: `kube` or `dir:PATH`.
    #[arg(long)]
    source: Option<String>,
    /// Kubeconfig for source `kube`.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<String>,
    /// Where CA, join tokens and node registry are kept: `dir`, `kube` or `auto` [default: auto].
    #[arg(long, value_name = "STORE")]
    state_store: Option<String>,
    /// Directory of CA, join tokens and node registry.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// Namespace of the state in the cluster [default: the pod's own].
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Where proxies connect [default: 0.0.0.0:15012].
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Metrics and health [default: 0.0.0.0:15014].
    #[arg(long, value_name = "ADDR")]
    metrics_listen: Option<String>,
    /// State for operators, loopback only [default: 127.0.0.1:15016].
    #[arg(long, value_name = "ADDR")]
    admin_listen: Option<String>,
    /// Where the API server asks for admission, for source `kube` [default: 0.0.0.0:15017].
    #[arg(long, value_name = "ADDR")]
    webhook_listen: Option<String>,
    /// Trust domain of all identities [default: cluster.local].
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
    /// Domain of Kubernetes services [default: cluster.local].
    #[arg(long, value_name = "DOMAIN")]
    cluster_domain: Option<String>,
    /// Log lines as `text` or `json`.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// What is logged, e.g. `info` or `info,mesh_controller=debug`.
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
    /// Any other setting, e.g. `--set outbound=registry-only`.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    settings: Vec<(String, String)>,
    /// Print the effective configuration and end.
    #[arg(long)]
    print_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a completion script for a shell.
    Completion {
        /// bash, zsh, fish, elvish or powershell.
        shell: clap_complete::Shell,
    },
    /// Look whether a cluster can run the mesh, and say why not; exit code 1 when it cannot.
    Preflight(Preflight),
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Run with this configuration.
    Run(Box<Config>),
    /// Look at the cluster.
    Preflight(Preflight),
    /// Everything asked for has been printed.
    Done,
    /// The configuration is wrong.
    Wrong(ConfigErrors),
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Reads command line, environment and file.
pub fn run_cli<I, T>(args: I, out: &mut impl Write) -> anyhow::Result<Invocation>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let Cli {
        config,
        source,
        kubeconfig,
        state_store,
        state_dir,
        namespace,
        listen,
        metrics_listen,
        admin_listen,
        webhook_listen,
        trust_domain,
        cluster_domain,
        log_format,
        log_level,
        settings,
        print_config,
        command,
    } = Cli::parse_from(args);
    match command {
        Some(Command::Completion { shell }) => {
            // Into memory first: the generator panics when its output is closed early, as `head` does.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mesh-controller", &mut script);
            out.write_all(&script)?;
            return Ok(Invocation::Done);
        }
        Some(Command::Preflight(preflight)) => return Ok(Invocation::Preflight(preflight)),
        None => {}
    }
    let named = [
        ("source", source),
        ("kubeconfig", kubeconfig),
        ("stateStore", state_store),
        ("stateDir", state_dir),
        ("namespace", namespace),
        ("listen", listen),
        ("metricsListen", metrics_listen),
        ("adminListen", admin_listen),
        ("webhookListen", webhook_listen),
        ("trustDomain", trust_domain),
        ("clusterDomain", cluster_domain),
        ("logFormat", log_format),
        ("logLevel", log_level),
    ];
    let given = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let flags = given.chain(settings).collect();
    let config: Config =
        match node_rt::load(config.as_deref(), ENV_PREFIX, &["MESH_CONTROLLER_CONFIG"], flags) {
            Ok(config) => config,
            Err(errors) => return Ok(Invocation::Wrong(errors)),
        };
    if print_config {
        writeln!(out, "{}", serde_json::to_string_pretty(&config)?)?;
        return Ok(Invocation::Done);
    }
    Ok(Invocation::Run(Box::new(config)))
}
