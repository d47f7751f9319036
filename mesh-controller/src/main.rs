//! Entry point.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use mesh_controller::{
    app,
    config::{Config, Invocation, run_cli},
    preflight::report,
};
use node_rt::{Drain, DrainConfig, Readiness, Tasks};

fn main() -> anyhow::Result<ExitCode> {
    node_rt::install_crypto_provider();
    match run_cli(std::env::args_os(), &mut std::io::stdout())? {
        Invocation::Done => Ok(ExitCode::SUCCESS),
        Invocation::Wrong(errors) => {
            eprintln!("{errors}");
            Ok(ExitCode::from(2))
        }
        Invocation::Preflight(preflight) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (text, fine) = report(&runtime.block_on(preflight.run())?);
            print!("{text}");
            Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Invocation::Run(config) => {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(16).build()?;
            runtime.block_on(run(*config))
        }
    }
}

async fn run(config: Config) -> anyhow::Result<ExitCode> {
    node_rt::init_logging(config.log_format, &config.log_level)?;
    node_rt::raise_descriptor_limit();
    let drain = Drain::new();
    let (tasks, readiness) = (Tasks::new(drain.clone()), Readiness::new());
    node_rt::handle_signals(&tasks).context("signal handlers")?;
    let running = app::start(&config, &tasks, &readiness).await?;
    tracing::info!(listen = %running.listen, metrics = %running.metrics, admin = %running.admin, "started");
    let limits = DrainConfig {
        not_ready_for: config.handover(),
        drain_for: Duration::from_secs(config.drain_seconds),
        ..DrainConfig::default()
    };
    let report = drain.run(limits, &readiness, &tasks).await;
    tracing::info!(reason = %report.reason, cut_off = report.cut_off, "stopped");
    Ok(ExitCode::from(report.reason.exit_code()))
}
