//! Builds the proxy from its parts and runs it until the drain has ended.
//!
//! ```text
//! control runtime: identity ─► discovery ─► tables        data workers (one thread each):
//!                  dns, tunnel's swarm, admin, health       outbound listeners, inbound streams of the tunnel
//! ```
//! A second process with the same state directory takes the listening sockets of the first one over, serves them, and
//! only then tells the first one to drain: no connection is refused, and none that waits to be accepted is lost.

mod control;
mod rest;
mod sockets;
mod successor;
mod tunnel;
mod worker;

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use mesh_net::connect::DEFAULT_MARK;
use mesh_tunnel::{NodeKey, Tunnel};
use node_rt::{Drain, DrainConfig, LogControl, Readiness, Reason, Stage, Tasks, Workers};
use prometheus::Registry;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    capture,
    config::Config,
    discovery::Discovery,
    dns::DnsError,
    gateway::Gateway,
    identity::{self, Identity, IdentityError, Keeper, StateFiles},
    inbound::{Inbound, InboundConfig},
    outbound::{self, names::ServerNames},
    shared::Shared,
    store::Store,
    telemetry::{
        AccessLog, Telemetry, Tracer,
        trace::{Exporter, Through},
    },
    udp::Udp,
};
use sockets::Sockets;

/// How long "not ready" is shown, and capture taken away, before listeners stop accepting.
const NOT_READY_FOR: Duration = Duration::from_millis(250);
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
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Keys or certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A metric is registered twice.
    #[error("register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The tunnel.
    #[error("start the tunnel: {0}")]
    Tunnel(#[from] mesh_tunnel::StartError),
    /// DNS.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// The address of DNS.
    #[error(transparent)]
    Link(#[from] capture::LinkError),
    /// Capture.
    #[error(transparent)]
    Capture(#[from] capture::CaptureError),
}

pub(crate) fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
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
    node_rt::raise_descriptor_limit();
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
    let readiness = Readiness::new();
    let tasks = Tasks::new(Drain::new());
    node_rt::handle_signals(&tasks).map_err(system("signal handlers"))?;
    // Before anything can be replaced, so that no signal is missed.
    let mut told = signal(SignalKind::terminate()).map_err(system("signal handlers"))?;
    let stays = config.stay_after_handover;
    let running = start(config, &tasks, &readiness, Some(log)).await?;
    let reason = running.until_drained(&tasks, &readiness).await;
    if stays && reason == successor::REPLACED {
        tracing::info!("replaced; waiting to be told to stop");
        told.recv().await;
    }
    Ok(reason)
}

/// A proxy that serves.
#[derive(Debug)]
pub struct Running {
    /// Where it listens, with the real ports.
    pub addresses: Addresses,
    /// The tables and their changes.
    pub shared: Arc<Shared>,
    /// The tunnel.
    pub tunnel: Tunnel,
    workers: Workers,
    store: Store,
    /// The address of DNS on this node.
    link: Option<capture::LinkAddress>,
}

/// Where a proxy listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Captured connections.
    pub outbound: Option<SocketAddr>,
    /// Captured datagrams.
    pub datagrams: Option<SocketAddr>,
    /// HTTP CONNECT and SOCKS5.
    pub proxy: Option<SocketAddr>,
    /// DNS.
    pub dns: Option<SocketAddr>,
    /// Admin pages.
    pub admin: Option<SocketAddr>,
    /// Metrics.
    pub metrics: Option<SocketAddr>,
    /// Health.
    pub health: Option<SocketAddr>,
}

/// Starts everything; what runs is owned by `tasks` and ends with their drain.
pub async fn start(
    config: Arc<Config>,
    tasks: &Tasks,
    readiness: &Readiness,
    log: Option<LogControl>,
) -> Result<Running, StartError> {
    let started = std::time::Instant::now();
    let serving = readiness.wait_for("listeners");
    let config = Arc::new(with_own_sockets(&as_permitted(&config).await));

    // 1. What is on disk: keys, certificate, snapshot.
    let disk = Disk::open(&config, readiness)?;
    let shared = disk.shared.clone();

    // 2. Sockets: those of the process before us, or new ones.
    let (inherited, predecessor) = successor::take_over(&config.state_dir);
    let mut link = None;
    if config.dns.enabled {
        link = Some(capture::ensure_address(config.dns.listen.ip()).await?);
    }
    let sockets = Sockets::open(&config, inherited)?;
    let addresses = sockets.addresses();
    let offered = sockets.duplicate().map_err(system("the hand-over of listeners"))?;

    // 3. The data side: workers, the tunnel that runs on them, outbound and inbound.
    let (workers, seats) = worker::start(config.worker_count(), tasks.drain()).await?;
    let registry = &shared.metrics;
    let key = disk.tunnel_key.clone();
    let started_tunnel = tunnel::start(&config, key, &seats, registry, predecessor.is_some()).await?;
    let tunnel::Started { tunnel, acceptors, held } = started_tunnel;
    let (outbound, inbound) = data_side(&shared, &tunnel, disk.keeper.tls())?;
    shared.know_health(outbound.limits());
    if let Some(tracer) = &outbound.tracer {
        let through =
            Through { tables: shared.tables.clone(), proxy: addresses.proxy, mark: config.outbound.mark };
        let exporter = Exporter::new(tracer.clone(), shared.node.clone(), through, tasks.clone());
        tasks.spawn("trace exporter", exporter.run());
    }
    let control_sockets = worker::seat(seats, outbound, inbound, acceptors, sockets);

    // 4. The control side.
    let store = disk.store.clone();
    let capturing =
        control::start(disk, &tunnel, tasks, readiness, log, (control_sockets, addresses.datagrams)).await?;
    serving.ready();
    tracing::info!(
        node = %shared.node, workers = config.worker_count(), services = shared.tables.load().service_count(),
        took = ?started.elapsed(), "serving"
    );

    // 5. Take over, and be ready to be taken over from.
    if let Some(before) = predecessor
        && let Err(error) = before.serving()
    {
        tracing::warn!(%error, "the process before us did not hear that we serve");
    }
    tasks.spawn("tunnel listeners", tunnel::listen_when_free(tunnel.clone(), held));
    successor::offer(&config.state_dir, offered, capturing, tasks);
    tasks.spawn("memory at rest", rest::watch(readiness.clone(), tasks.drain().clone()));
    Ok(Running { addresses, shared, tunnel, workers, store, link })
}

/// Leaves out what this process may not do, and says so: applications then use the HTTP CONNECT or SOCKS5 proxy. Without
/// that proxy nothing is left out, and the start fails with the reason.
pub(crate) async fn as_permitted(config: &Config) -> Config {
    let mut config = config.clone();
    let Some(proxy) = config.listen.proxy else { return config };
    if config.capture.enabled
        && let Err(error) = capture::probe(&config.capture.nft).await
    {
        let error = crate::chain(&error);
        tracing::error!(%error, %proxy, "no traffic is captured: applications must use the proxy");
        config.capture.enabled = false;
        if config.dns.enabled
            && let Err(error) = capture::ensure_address(config.dns.listen.ip()).await
        {
            let error = crate::chain(&error);
            tracing::error!(%error, "no DNS: set dns.listen to an address of this node");
            config.dns.enabled = false;
        }
    }
    config
}

/// Sockets of the proxy carry a mark when it captures, and it never connects to its own listeners.
fn with_own_sockets(config: &Config) -> Config {
    let mut config = config.clone();
    if config.capture.enabled && config.outbound.mark.is_none() {
        config.outbound.mark = Some(DEFAULT_MARK);
    }
    let l = &config.listen;
    let all = [Some(l.outbound), Some(l.tunnel), Some(l.admin), Some(l.metrics), Some(l.health), l.proxy];
    config.outbound.own_ports = all.into_iter().flatten().map(|a| a.port()).filter(|p| *p != 0).collect();
    config
}

/// What was found on disk.
struct Disk {
    shared: Arc<Shared>,
    discovery: Discovery,
    keeper: Keeper,
    tunnel_key: NodeKey,
    store: Store,
    controllers: Vec<String>,
}

impl Disk {
    fn open(config: &Arc<Config>, readiness: &Readiness) -> Result<Self, StartError> {
        let registry = Registry::new();
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let shared = Shared::new(config.clone(), registry.clone());
        let files = StateFiles::open(&config.state_dir)?;
        let controllers = identity::controllers(config, &files);
        let identity = Identity::open_as(&config.node, files, &config.trust_domain)?;
        let tunnel_key = identity.tunnel_key.clone();
        let (store, loaded) = Store::open(&config.state_dir, &registry)?;
        let known = readiness.wait_for("configuration");
        let discovery = Discovery::new(shared.clone(), store.clone(), loaded, known)?;
        let keeper = Keeper::new(config.clone(), identity, &registry)?;
        Ok(Self { shared, discovery, keeper, tunnel_key, store, controllers })
    }
}

fn data_side(
    shared: &Arc<Shared>,
    tunnel: &Tunnel,
    identity: outbound::tls::Identity,
) -> Result<(Arc<outbound::Shared>, Arc<Inbound>), StartError> {
    let config = &shared.config;
    let telemetry = Arc::new(Telemetry::apart(&shared.metrics, config.telemetry.clone())?);
    let telemetry = shared.traffic.get_or_init(|| telemetry).clone();
    let lines = config.access_log.output().map_err(system("the access log"))?;
    let access_log = AccessLog::start(&config.access_log, lines).map_err(system("the access log"))?;
    let tracer = Tracer::new(&config.tracing, &shared.metrics)?;
    let (node, tables) = (shared.node.clone(), shared.tables.clone());
    let mut out =
        outbound::Shared::new(config.outbound.clone(), node.clone(), tables.clone(), telemetry.clone());
    out.tunnel = Some(Arc::new(crate::tunnel_glue::Opener(tunnel.clone())));
    out.access_log = access_log.clone();
    out.tracer = tracer.clone();
    out.names = Arc::new(ServerNames::new(outside_servers(config)));
    out.tls = outbound::tls::TlsConfigs::new(Some(identity.clone()));
    out.gateway = config.gateway.clone().map(|g| Arc::new(Gateway::new(g, Some(identity))));
    let mut udp = Udp::new(config.udp.clone(), &shared.metrics)?;
    udp.updates = Some(shared.updates());
    let udp = Arc::new(udp);
    out.udp = Some(udp.clone());
    let own = InboundConfig {
        mark: config.outbound.mark,
        own_ports: config.outbound.own_ports.clone(),
        requests: config.telemetry.inbound_requests,
        ..InboundConfig::default()
    };
    let mut inbound = Inbound::new(own, node, tables, telemetry, access_log, &shared.metrics)?;
    inbound.udp = Some(udp);
    inbound.tracer = tracer;
    Ok((Arc::new(out), Arc::new(inbound)))
}

/// Name servers that know the names outside: ours would answer with addresses of the mesh.
fn outside_servers(config: &Config) -> impl Fn() -> Vec<SocketAddr> + Send + Sync + 'static {
    let (fixed, own) = (config.dns.upstreams.clone(), config.dns.listen);
    move || {
        if !fixed.is_empty() {
            return fixed.clone();
        }
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        crate::dns::usable(&crate::dns::parse_resolv_conf(&text), own)
    }
}

impl Running {
    /// Serves until the end is asked for, then ends in stages.
    pub async fn until_drained(self, tasks: &Tasks, readiness: &Readiness) -> Reason {
        let drain = tasks.drain().clone();
        let (leaving, ending) = (self.tunnel.clone(), drain.clone());
        tasks.spawn("tunnel drain", async move {
            ending.reached(Stage::StopAccepting).await;
            leaving.drain();
        });
        let stages = DrainConfig {
            not_ready_for: NOT_READY_FOR,
            drain_for: Duration::from_secs(self.shared.config.drain_seconds),
            cancel_for: CANCEL_FOR,
        };
        let report = drain.run(stages, readiness, tasks).await;
        self.store.close().await;
        if matches!(report.reason, Reason::Requested(_)) {
            // The process that goes on uses the same ports of the router.
            self.tunnel.keep_ports();
        }
        self.tunnel.close().await;
        let workers = self.workers;
        let stuck_threads = tokio::task::spawn_blocking(move || workers.join(CANCEL_FOR)).await.unwrap_or(0);
        // A successor answers there.
        if let Some(link) = self.link.filter(|_| report.reason != successor::REPLACED) {
            link.remove().await;
        }
        if report.cut_off > 0 || !report.stuck.is_empty() || stuck_threads > 0 {
            tracing::warn!(cut_off = report.cut_off, stuck = ?report.stuck, stuck_threads, "drain was not complete");
        }
        report.reason
    }
}
