//! Entry point.

use std::process::ExitCode;

use mesh_proxy::{app, cli};

fn main() -> ExitCode {
    match cli::parse() {
        cli::Parsed::Run(config) => app::run(*config),
        cli::Parsed::Done(code) => code,
    }
}
