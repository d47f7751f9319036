//! `make nat-matrix`: every NAT kind against every NAT kind, with the real programs.

use std::process::ExitCode;

use clap::Parser as _;
use mesh_testkit::matrix::{Args, run};

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("nat-matrix: {error:#}");
            println!("nat-matrix: 0 passed, 1 failed, 0 skipped");
            ExitCode::from(2)
        }
    }
}
