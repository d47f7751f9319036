//! The operator's command line. Each command calls the libraries that the programs themselves run; nothing is decided
//! here.

mod analyze;
pub mod args;
mod crds;
mod doctor;
mod input;
mod migrate;
mod node;
mod output;
mod paths;
mod place;
mod proxy;
pub mod simulate;
mod token;
mod validate;
mod webhook;

use std::process::ExitCode;

use clap::CommandFactory;

pub use input::Object;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to complain about.
    Fine,
    /// Findings of level error.
    Findings,
}

/// Exit code for findings of level error.
const FINDINGS: u8 = 1;
/// Exit code for wrong usage and unreadable input; clap uses the same.
const UNUSABLE: u8 = 2;

/// Runs one command.
pub fn run(args: &args::Args) -> ExitCode {
    use args::Command;
    let result = match &args.command {
        Command::Validate(a) => validate::run(a),
        Command::Analyze(a) => analyze::run(a),
        Command::Simulate(a) => simulate::run(a),
        Command::Paths(a) => paths::run(a),
        Command::Doctor(a) => doctor::run(a),
        Command::Token(a) => token::run(a),
        Command::Node(a) => node::run(a),
        Command::Proxy(a) => proxy::run(a),
        Command::Crds(a) => crds::run(a),
        Command::Webhook(a) => webhook::run(a),
        Command::Migrate(a) => migrate::run(a),
        Command::Completion { shell } => {
            let mut command = args::Args::command();
            clap_complete::generate(*shell, &mut command, "meshctl", &mut std::io::stdout());
            Ok(Outcome::Fine)
        }
    };
    match result {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Findings) => ExitCode::from(FINDINGS),
        Err(error) => {
            eprintln!("meshctl: {error:#}");
            ExitCode::from(UNUSABLE)
        }
    }
}
