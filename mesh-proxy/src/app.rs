//! Builds the proxy from its parts and runs it until the drain has ended.
//!
//! ```text
//! control runtime: identity ─► discovery ─► tables        data workers (one thread each):
//!                  dns, tunnel's swarm, admin, health       outbound listeners, inbound streams of the tunnel
//! ```
//! A second process with the same state directory takes the listening sockets of the first one over, serves them, and
//! only then tells the first one to drain: no connection is refused, and none that waits to be accepted is lost.

mod sockets;
mod tunnel;
mod worker;

use std::{process::ExitCode, sync::Arc, time::Duration};

use mesh_net::handover;
use node_rt::{Drain, DrainConfig, LogControl, Readiness, Reason, Stage, Tasks};
use tokio::net::TcpListener;

use crate::{
    admin::Admin,
    config::Config,
    discovery::Discovery,
    dns::{self, DnsOptions},
    identity::{Identity, Keeper, StateFiles},
    inbound::{Inbound, InboundConfig},
    outbound,
    shared::Shared,
    store::Store,
    telemetry::{AccessLog, Telemetry},
};
use sockets::Sockets;

/// How long the running process gets to hand its sockets over.
const HANDOVER_WAIT: Duration = Duration::from_secs(5);
/// How long "not ready" is shown before listeners stop accepting.
const NOT_READY_FOR: Duration = Duration::from_millis(100);
/// How long tasks get to end after everything was cancelled.
const CANCEL_FOR: Duration = Duration::from_secs(2);
/// Threads of the control side: nothing that a request waits for runs there.
const CONTROL_THREADS: usize = 1;

/// Why the proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A runtime, a thread or a signal handler.
    #[error("start {what}: {source}")]
    System {
        /// What was to start.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A listener.
    #[error("listen on {address} for {what}: {source}")]
    Listen {
        /// For what.
        what: &'static str,
        /// Where.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Keys or certificate.
    #[error(transparent)]
    Identity(#[from] crate::identity::IdentityError),
    /// A metric is registered twice.
    #[error("register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The tunnel.
    #[error("start the tunnel: {0}")]
    Tunnel(#[from] mesh_tunnel::StartError),
    /// DNS.
    #[error(transparent)]
    Dns(#[from] dns::DnsError),
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

/// Runs the proxy; the process ends with what this returns.
pub fn run(config: Config) -> ExitCode {
    node_rt::install_crypto_provider();
    let log = match node_rt::init_logging(config.log_format, &config.log_level) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("mesh-proxy: {error}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build();
    let result = runtime.map_err(system("the control runtime")).and_then(|runtime| {
        let reason = runtime.block_on(serve(Arc::new(config), log))?;
        // What has not ended by now (a file system that hangs) must not keep the process.
        runtime.shutdown_timeout(Duration::from_secs(1));
        Ok(reason)
    });
    match result {
        Ok(reason) => {
            tracing::info!(%reason, "stopped");
            ExitCode::from(reason.exit_code())
        }
        Err(error) => {
            tracing::error!(error = %crate::chain(&error), "cannot start");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Arc<Config>, log: LogControl) -> Result<Reason, StartError> {
    let started = std::time::Instant::now();
    let (drain, readiness) = (Drain::new(), Readiness::new());
    let tasks = Tasks::new(drain.clone());
    node_rt::handle_signals(&tasks).map_err(system("signal handlers"))?;
    let serving = readiness.wait_for("listeners");

    // 1. What is on disk: keys, certificate, snapshot.
    let registry = prometheus::Registry::new();
    // The process collector exists on Linux only and fails nowhere else that matters.
    let process = prometheus::process_collector::ProcessCollector::for_self();
    registry.register(Box::new(process))?;
    let shared = Shared::new(config.clone(), registry.clone());
    let files = StateFiles::open(&config.state_dir)?;
    let identity = Identity::open(files, &config.trust_domain)?;
    let tunnel_key = identity.tunnel_key.clone();
    let (store, loaded) = Store::open(&config.state_dir, &registry)?;
    let discovery = Discovery::new(shared.clone(), store.clone(), loaded, readiness.wait_for("configuration"))?;
    let keeper = Keeper::new(config.clone(), identity, &registry)?;

    // 2. Sockets: those of the process before us, or new ones.
    let handover_path = config.state_dir.join("handover.sock");
    let (inherited, predecessor) = match handover::take(&handover_path, HANDOVER_WAIT) {
        Ok(Some((sockets, successor))) => (sockets, Some(successor)),
        Ok(None) => (Vec::new(), None),
        Err(error) => {
            tracing::warn!(%error, "the process before us does not hand its listeners over");
            (Vec::new(), None)
        }
    };
    let sockets = Sockets::open(&config, inherited)?;
    let mut offered = sockets.duplicate().map_err(system("the hand-over of listeners"))?;

    // 3. The data side: workers, the tunnel that runs on them, outbound and inbound.
    let (workers, seats) = worker::start(config.worker_count(), &drain).await?;
    let (tunnel, acceptors) = tunnel::start(&config, tunnel_key, &seats, &registry, predecessor.is_some()).await?;
    let telemetry = Arc::new(Telemetry::new(&registry, config.telemetry.clone())?);
    let access_log = AccessLog::start(&config.access_log, std::io::stdout()).map_err(system("the access log"))?;
    let mut out = outbound::Shared::new(config.outbound.clone(), shared.node.clone(), shared.tables.clone(), telemetry.clone());
    out.tunnel = Some(Arc::new(crate::tunnel_glue::Opener(tunnel.clone())));
    out.access_log = access_log.clone();
    let inbound_config = InboundConfig { mark: config.outbound.mark, ..InboundConfig::default() };
    let inbound = Inbound::new(inbound_config, shared.node.clone(), shared.tables.clone(), telemetry, access_log, &registry)?;
    let Sockets { captured, proxy, dns: dns_sockets, admin, metrics, health } = sockets;
    worker::seat(seats, Arc::new(out), Arc::new(inbound), acceptors, captured, proxy);

    // 4. The control side.
    let addresses = tunnel::follow(&shared, &tunnel, &tasks);
    let tls = keeper.tls();
    tasks.spawn_critical("identity", keeper.run());
    let stop = drain.clone();
    tasks.spawn_critical("discovery", async move {
        tokio::select! {
            () = discovery.run(tls, addresses) => {}
            // Its successor follows the controller from here on.
            _ = stop.begun() => {}
        }
    });
    if let Some((udp, tcp)) = dns_sockets {
        let options = DnsOptions::new(config.dns.listen, config.dns.upstreams.clone());
        let udp = tokio::net::UdpSocket::from_std(udp).map_err(system("DNS"))?;
        let tcp = TcpListener::from_std(tcp).map_err(system("DNS"))?;
        dns::serve(&shared, options, &tasks, udp, tcp)?;
    }
    let pages = Admin {
        shared: shared.clone(),
        readiness: readiness.clone(),
        drain: drain.clone(),
        log: Some(log),
        tunnel: Some(tunnel.clone()),
    };
    let to_tokio = |l: std::net::TcpListener| TcpListener::from_std(l).map_err(system("admin listeners"));
    pages.server().serve("admin", to_tokio(admin)?, &tasks);
    node_rt::AdminServer::new().metrics(registry).serve("metrics", to_tokio(metrics)?, &tasks);
    node_rt::AdminServer::new().health(readiness.clone()).serve("health", to_tokio(health)?, &tasks);
    serving.ready();
    tracing::info!(
        node = %shared.node, workers = config.worker_count(), services = shared.tables.load().service_count(),
        took = ?started.elapsed(), "serving"
    );

    // 5. Take over, and be ready to be taken over from.
    if let Some(successor) = predecessor
        && let Err(error) = successor.serving()
    {
        tracing::warn!(%error, "the process before us did not hear that we serve");
    }
    let (ending, path) = (drain.clone(), handover_path);
    tasks.spawn("handover", async move {
        let borrowed: Vec<_> = offered.iter().map(|(n, fd)| (n.clone(), std::os::fd::AsFd::as_fd(fd))).collect();
        let handed_over = tokio::select! {
            result = handover::serve(&path, &borrowed) => result,
            _ = ending.begun() => Err(std::io::ErrorKind::Interrupted.into()),
        };
        drop(borrowed);
        // Closed in any case: a socket that nobody accepts from would keep its callers waiting.
        offered.clear();
        match handed_over {
            Ok(()) => ending.begin(Reason::Requested("hot restart: another process serves")),
            Err(error) if ending.has_begun() => tracing::debug!(%error, "hand-over ended"),
            Err(error) => tracing::warn!(%error, "no hot restart: cannot offer the listeners"),
        }
    });

    // 6. The end.
    let leaving = tunnel.clone();
    let ending = drain.clone();
    tasks.spawn("tunnel drain", async move {
        ending.reached(Stage::StopAccepting).await;
        leaving.drain();
    });
    let stages = DrainConfig {
        not_ready_for: NOT_READY_FOR,
        drain_for: Duration::from_secs(config.drain_seconds),
        cancel_for: CANCEL_FOR,
    };
    let report = drain.run(stages, &readiness, &tasks).await;
    store.flush().await;
    tunnel.close().await;
    let stuck_threads = tokio::task::spawn_blocking(move || workers.join(CANCEL_FOR)).await.unwrap_or(0);
    if report.cut_off > 0 || !report.stuck.is_empty() || stuck_threads > 0 {
        tracing::warn!(cut_off = report.cut_off, stuck = ?report.stuck, stuck_threads, "drain was not complete");
    }
    Ok(report.reason)
}
