//! The operator's command line. Each command calls the libraries that the programs themselves run; nothing is decided
//! here.

mod analyze;
pub mod args;
mod bugreport;
mod ca;
mod check;
mod crds;
mod doctor;
mod force;
mod input;
mod install;
mod logs;
mod migrate;
mod node;
mod output;
mod paths;
mod place;
mod proxies;
mod proxy;
mod reach;
pub mod simulate;
mod status;
mod token;
mod top;
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
    /// Findings of level error, or something that is not as it should be.
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
        Command::Install(a) => install::run(a),
        Command::Uninstall(a) => install::uninstall(a),
        Command::Check(a) => check::run(a),
        Command::Status(a) => status::run(a),
        Command::Proxies(a) => proxies::run(a),
        Command::Services(a) => force::services(a),
        Command::Routes(a) => force::routes(a),
        Command::Endpoints(a) => force::endpoints(a),
        Command::Logs(a) => logs::run(a),
        Command::Top(a) => top::run(a),
        Command::BugReport(a) => bugreport::run(a),
        Command::Validate(a) => validate::run(a),
        Command::Analyze(a) => analyze::run(a),
        Command::Simulate(a) => simulate::run(a),
        Command::Paths(a) => paths::run(a),
        Command::Doctor(a) => doctor::run(a),
        Command::Token(a) => token::run(a),
        Command::Node(a) => node::run(a),
        Command::Ca(a) => ca::run(a),
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
