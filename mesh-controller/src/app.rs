//! Starts the parts in order and says where they listen.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use mesh_ca::{StateDir, TrustDomain};
use mesh_index::Options;
use mesh_net::tls::{ClientAuth, Credentials, Expect, NodeTls};
use node_rt::{AdminServer, Readiness, Tasks};
use tokio::{net::TcpListener, sync::mpsc};

use crate::{
    admin,
    config::Config,
    distribute::{self, Shared, agent, store::Store},
    engine::{Engine, SharedOverview},
    metrics::Metrics,
    registry::Registry,
    source::{self, Health, SourceKind},
    status::{self, Desk, StatusMetrics},
    webhook,
};

/// Batches between source and engine: a source that is faster waits.
const OPERATIONS: usize = 256;
/// The controller's own certificate; renewed at a third of it.
const OWN_CERTIFICATE_TTL: Duration = Duration::from_secs(7 * 86_400);

/// A running controller.
#[derive(Debug, Clone, Copy)]
pub struct Running {
    /// Where proxies connect.
    pub listen: SocketAddr,
    /// Metrics and health.
    pub metrics: SocketAddr,
    /// State for operators.
    pub admin: SocketAddr,
}

/// Starts everything; what runs is owned by `tasks`.
pub async fn start(config: &Config, tasks: &Tasks, readiness: &Readiness) -> anyhow::Result<Running> {
    let trust_domain = TrustDomain::new(&config.trust_domain)?;
    let state = StateDir::new(config.state_path());
    let authority = state.authority(&trust_domain, agent::now()).context("certificate authority")?;
    let tokens = state.tokens().context("join tokens")?;
    let registered = prometheus::Registry::new();
    let metrics = Arc::new(Metrics::new(&registered)?);

    let (sender, operations) = mpsc::channel(OPERATIONS);
    let registry = Registry::open(state.nodes(), sender.clone()).context("node registry")?;
    let (store, overview, health) = (Arc::new(Store::new()), SharedOverview::default(), Health::default());
    let guard = readiness.wait_for("source");
    let status_metrics = StatusMetrics::new(&registered)?;
    let desk = Desk::default();
    Engine::new(options(config), store.clone(), metrics.clone(), overview.clone(), desk.clone(), guard)
        .start(operations, tasks);
    sender.send(registry.all()).await.ok();

    let tls = own_tls(&authority, config)?;
    let accept_tls = tls.server_config(ClientAuth::Optional(Expect::AnyNode), &[b"h2"]).context("TLS")?;
    let issuer = agent::Issuer { authority, tokens, ttl: config.node_ttl() };
    let shared = Arc::new(Shared::new(store, registry, issuer, metrics, tasks.clone()));

    let listener = bind("listen", config.listen).await?;
    let metrics_listener = bind("metrics_listen", config.metrics_listen).await?;
    let admin_listener = bind("admin_listen", config.admin_listen).await?;
    let running = Running {
        listen: listener.local_addr()?,
        metrics: metrics_listener.local_addr()?,
        admin: admin_listener.local_addr()?,
    };
    AdminServer::new().health(readiness.clone()).metrics(registered).serve(
        "metrics",
        metrics_listener,
        tasks,
    );
    let pages = admin::Pages { shared: shared.clone(), overview, health: health.clone() };
    pages.serve(admin_listener, readiness.clone(), tasks);

    let mut writing = None;
    match &config.source {
        SourceKind::Dir(path) => source::dir::start(folder(path, config, &health), sender, tasks),
        SourceKind::Kube => {
            let client = source::kube::client(config.kubeconfig.clone()).await?;
            source::kube::start_with(client.clone(), sender, health.clone(), tasks);
            serve_webhook(config, &tls, status_metrics.reviews.clone(), tasks).await?;
            let (name, ca) =
                (config.webhook_configuration.clone(), shared.issuer.authority.certificate_pem());
            webhook::keep_bundle(client.clone(), name, ca.to_owned(), tasks);
            writing = config.write_status.then(|| status_writing(config, client));
        }
    }
    status::start(desk, status_metrics, writing, tasks);
    // Proxies keep what they have until this controller knows all of it.
    serve_when_ready(shared.clone(), listener, accept_tls, config.max_connections, readiness);
    keep_current(shared, tls, config.clone(), health);
    Ok(running)
}

fn options(config: &Config) -> Options {
    // What a cluster's own controllers do, nobody does for a folder.
    let is_folder = matches!(config.source, SourceKind::Dir(_));
    Options {
        cluster_domain: config.cluster_domain.clone(),
        trust_domain: config.trust_domain.clone(),
        root_namespace: config.root_namespace.clone(),
        outbound: config.outbound.into(),
        derive_endpoints: is_folder,
        allocate_vips: is_folder,
        ..Options::default()
    }
}

async fn bind(key: &'static str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{key}: cannot listen on {address}"))
}

fn folder(path: &std::path::Path, config: &Config, health: &Health) -> source::dir::Folder {
    let copies = source::dir::Copies::open(config.state_path().join("last-good"));
    let copies = copies.inspect_err(|error| tracing::warn!(%error, "no copies of manifests are kept")).ok();
    source::dir::Folder::new(path.to_owned(), health.clone()).with_copies(copies)
}

async fn serve_webhook(
    config: &Config,
    tls: &NodeTls,
    reviews: prometheus::IntCounterVec,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    // The API server is no node: it is enough that it knows whom it calls.
    let tls = tls.server_config(ClientAuth::NotAsked, &[b"http/1.1"]).context("TLS of the webhook")?;
    let listener = bind("webhook_listen", config.webhook_listen).await?;
    webhook::serve(listener, tls, reviews, tasks);
    Ok(())
}

fn status_writing(config: &Config, client: kube::Client) -> status::Writing {
    // Pods are told apart by their host names; the number tells a restarted one from the one before.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let identity = format!("{}-{:08x}", host.trim(), rand::random::<u32>());
    status::Writing { client, namespace: config.lease_namespace.clone(), identity }
}

fn credentials(authority: &mesh_ca::Authority, config: &Config) -> anyhow::Result<Credentials> {
    let issued =
        authority.issue_controller(&config.certificate_names(), OWN_CERTIFICATE_TTL, agent::now())?;
    Ok(Credentials {
        chain: issued.chain,
        key: issued.key.into(),
        roots: vec![authority.certificate().clone()],
    })
}

fn own_tls(authority: &mesh_ca::Authority, config: &Config) -> anyhow::Result<NodeTls> {
    NodeTls::new(&config.trust_domain, credentials(authority, config)?)
        .context("the controller's own certificate")
}

fn serve_when_ready(
    shared: Arc<Shared>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    max_connections: usize,
    readiness: &Readiness,
) {
    let (tasks, readiness) = (shared.tasks.clone(), readiness.clone());
    tasks.clone().spawn("serve", async move {
        readiness.ready().await;
        distribute::serve(shared, listener, tls, max_connections);
    });
}

/// Nodes that joined, moved or were removed at another controller on the same state directory.
async fn share_registry(shared: &Shared) {
    let registry = shared.registry.clone();
    match tokio::task::spawn_blocking(move || registry.refresh()).await {
        Ok(Ok(removed)) => removed.iter().for_each(|node| shared.sessions.revoke(node)),
        Ok(Err(error)) => tracing::warn!(%error, "look at the node registry"),
        Err(_interrupted) => {}
    }
}

/// Slow things: the own certificate, and gauges that are read rather than counted.
fn keep_current(shared: Arc<Shared>, tls: NodeTls, config: Config, health: Health) {
    let tasks = shared.tasks.clone();
    tasks.spawn_critical("upkeep", async move {
        let mut renewed = tokio::time::Instant::now();
        let mut errors = 0;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            share_registry(&shared).await;
            shared.metrics.connected.set(shared.sessions.count() as i64);
            let state = health.snapshot();
            shared.metrics.source_healthy.set(i64::from(state.problems.is_empty()));
            shared.metrics.source_errors.inc_by(state.errors - errors);
            errors = state.errors;
            if renewed.elapsed() > OWN_CERTIFICATE_TTL / 3 {
                let new = credentials(&shared.issuer.authority, &config);
                match new.and_then(|c| Ok(tls.replace(c)?)) {
                    Ok(()) => renewed = tokio::time::Instant::now(),
                    Err(error) => tracing::error!(error = format!("{error:#}"), "renew own certificate"),
                }
            }
        }
    });
}
