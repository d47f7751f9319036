//! Entry point.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    meshctl::run(&meshctl::args::Args::parse())
}
