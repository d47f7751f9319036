//! `oci-image`: a container image of a program, without a daemon.

use std::process::ExitCode;

use clap::Parser as _;
use mesh_testkit::image::cli::{Args, run};

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oci-image: {error:#}");
            ExitCode::from(2)
        }
    }
}
