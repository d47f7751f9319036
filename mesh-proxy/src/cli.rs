//! The command line: flags are a layer of the configuration.

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Config, ENV_PREFIX};

/// The edge mesh data plane: DNS, capture, L4 and L7 routing, tunnel.
///
/// Every setting can come from the file, from the environment (`dns.listen` is MESH_PROXY_DNS__LISTEN, `stateDir` is
/// MESH_PROXY_STATE_DIR) or from `--set`; `--print-config` shows the result.
#[derive(Debug, Parser)]
#[command(name = "mesh-proxy", version)]
struct Args {
    /// Configuration file (YAML).
    #[arg(long, env = "MESH_PROXY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// This node's name.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Directory for key, certificate and snapshot.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// Controllers, separated by commas.
    #[arg(long, value_name = "HOST:PORT")]
    controller: Option<String>,
    /// Join token, or @FILE. The environment (MESH_PROXY_JOIN_TOKEN) and a file keep it out of process lists.
    #[arg(long, value_name = "TOKEN")]
    join_token: Option<String>,
    /// Projected service-account token with which a pod joins (identity.serviceAccountTokenFile).
    #[arg(long, value_name = "FILE")]
    enrol_token_file: Option<String>,
    /// CA of the mesh, for joining with a service-account token (identity.caFile).
    #[arg(long, value_name = "FILE")]
    ca_file: Option<String>,
    /// Data-plane threads; 0 = one for each core.
    #[arg(long, value_name = "N")]
    workers: Option<String>,
    /// Log filter, such as `info` or `info,mesh_proxy::dns=debug`.
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
    /// Any setting by its key, such as `dns.listen=127.0.0.1:5353`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the configuration in force, without secrets, and end.
    #[arg(long)]
    print_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a completion script.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// What the command line asks for.
pub enum Parsed {
    /// Run with this configuration.
    Run(Box<Config>),
    /// All is said.
    Done(ExitCode),
}

/// Reads the command line, the environment and the file. Errors are printed.
pub fn parse() -> Parsed {
    let args = Args::parse();
    if let Some(Command::Completion { shell }) = args.command {
        clap_complete::generate(shell, &mut Args::command(), "mesh-proxy", &mut std::io::stdout());
        return Parsed::Done(ExitCode::SUCCESS);
    }
    let flags = match flags(&args) {
        Ok(flags) => flags,
        Err(text) => {
            eprintln!("mesh-proxy: --set {text:?} is not KEY=VALUE");
            return Parsed::Done(ExitCode::from(2));
        }
    };
    match node_rt::load::<Config>(args.config.as_deref(), ENV_PREFIX, &["MESH_PROXY_CONFIG"], flags) {
        Err(errors) => {
            eprintln!("mesh-proxy: {errors}");
            Parsed::Done(ExitCode::from(2))
        }
        Ok(config) if args.print_config => match serde_saphyr::to_string(&config) {
            Ok(text) => {
                println!("{text}");
                Parsed::Done(ExitCode::SUCCESS)
            }
            Err(error) => {
                eprintln!("mesh-proxy: {error}");
                Parsed::Done(ExitCode::FAILURE)
            }
        },
        Ok(config) => Parsed::Run(Box::new(config)),
    }
}

fn flags(args: &Args) -> Result<Vec<(String, String)>, String> {
    let named = [
        ("node", &args.node),
        ("stateDir", &args.state_dir),
        ("controller", &args.controller),
        ("joinToken", &args.join_token),
        ("identity.serviceAccountTokenFile", &args.enrol_token_file),
        ("identity.caFile", &args.ca_file),
        ("workers", &args.workers),
        ("logLevel", &args.log_level),
    ];
    let mut out: Vec<_> = named.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v.clone()?))).collect();
    for text in &args.set {
        let (key, value) = text.split_once('=').ok_or_else(|| text.clone())?;
        out.push((key.to_owned(), value.to_owned()));
    }
    Ok(out)
}
