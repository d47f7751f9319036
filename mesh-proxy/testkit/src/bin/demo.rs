//! `make demo`: the main job, shown and checked.

use std::process::ExitCode;

use clap::Parser as _;
use mesh_testkit::demo::{Args, run};

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
