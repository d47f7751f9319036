//! Starts the parts in order and says where they listen.

mod own;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use mesh_ca::TrustDomain;
use mesh_index::Options;
use mesh_net::tls::{ClientAuth, Expect, NodeTls};
use node_rt::{AdminServer, Readiness, Tasks};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

use crate::{
    admin,
    config::Config,
    distribute::{self, Shared, agent, copies, store::Store},
    engine::{Engine, SharedOverview},
    enrol::Reviewer,
    members::{self, Members},
    metrics::Metrics,
    registry::Registry,
    source::{self, Health, SourceKind},
    state::{self, KubeState},
    status::{self, Desk, StatusMetrics},
    webhook,
};

/// Batches between source and engine: a source that is faster waits.
const OPERATIONS: usize = 256;
/// How long the store of the state is waited for at start.
const STORE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(2);

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
    let client = match &config.source {
        SourceKind::Dir(_) => None,
        SourceKind::Kube => Some(source::kube::client(config.kubeconfig.clone()).await?),
    };
    let (opened, place) = open_state(config, client.clone()).await?;
    let (new_ca, authority) = watch::channel(Arc::new(opened.authority));
    let registered = prometheus::Registry::new();
    let metrics = Arc::new(Metrics::new(&registered)?);

    let (sender, operations) = mpsc::channel(OPERATIONS);
    let (nodes, changes) = (opened.nodes, sender.clone());
    let (registry, moved) = tokio::task::spawn_blocking(move || Registry::open(nodes, changes))
        .await?
        .context("node registry")?;
    let (store, overview, health) = (Arc::new(Store::new()), SharedOverview::default(), Health::default());
    let guard = readiness.wait_for("source");
    let status_metrics = StatusMetrics::new(&registered)?;
    let desk = Desk::default();
    let members = Members::default().with_pods_of(config.pod_namespaces());
    Engine::new(options(config), store.clone(), metrics.clone(), overview.clone(), desk.clone(), guard)
        .with_members(members.clone())
        .start(operations, tasks);
    sender.send(registry.all()).await.ok();

    let tls = own::tls(&authority.borrow(), config)?;
    let accept_tls = tls.server_config(ClientAuth::Optional(Expect::AnyNode), &[b"h2"]).context("TLS")?;
    let reviewer = client.clone().map(|client| Reviewer::new(client, config.accounts()));
    let ttl = config.node_ttl();
    let issuer = agent::Issuer { authority: authority.clone(), tokens: opened.tokens, ttl, reviewer };
    let mut shared = Shared::new(store, registry, issuer, metrics, tasks.clone());
    (shared.members, shared.handover) = (members, config.handover());
    let shared = Arc::new(shared);
    copies::follow(&shared, moved);

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

    let shares_dir = place.is_none();
    let mut writing = None;
    match (&config.source, client) {
        (SourceKind::Dir(path), _) => source::dir::start(folder(path, config, &health), sender, tasks),
        (SourceKind::Kube, None) => {}
        (SourceKind::Kube, Some(client)) => {
            let wanted = source::kube::Wanted {
                gateway_api: config.gateway_api,
                root_namespace: config.root_namespace.clone(),
            };
            source::kube::start_with(client.clone(), wanted, sender.clone(), health.clone(), tasks);
            serve_webhook(config, &tls, status_metrics.reviews.clone(), tasks).await?;
            let configuration = config.webhook_configuration.clone();
            webhook::keep_bundle(client.clone(), configuration, authority.clone(), tasks);
            let identity = identity();
            let of_status = || status_writing(config, client.clone(), place.as_ref(), identity.clone());
            writing = config.write_status.then(of_status);
            let lease_place = place.clone().unwrap_or_else(|| state::Place {
                client,
                namespace: config.lease_namespace.clone(),
                owner: None,
            });
            members::keep(&shared, lease_place, identity);
            if let Some(place) = place {
                state::follow(&place, shared.clone(), sender, health.clone());
                state::keep_ca(place, authority, tasks);
            }
        }
    }
    status::start(desk, status_metrics, writing, tasks);
    // Proxies keep what they have until this controller knows all of it.
    serve_when_ready(shared.clone(), listener, accept_tls, config.max_connections, readiness);
    own::keep_current(shared, tls, config.clone(), health, shares_dir);
    let trust_domain = TrustDomain::new(&config.trust_domain)?;
    state::keep_renewed(opened.store, trust_domain, config.lives(), agent::now, new_ca, tasks);
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
        gateway_controller: config.gateway_controller.clone(),
        derive_endpoints: is_folder,
        allocate_vips: is_folder,
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

/// Pods are told apart by their host names; the number tells a restarted one from the one before.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{:08x}", host.trim(), rand::random::<u32>())
}

fn status_writing(
    config: &Config,
    client: kube::Client,
    place: Option<&state::Place>,
    identity: String,
) -> status::Writing {
    let namespace = config.lease_namespace.clone();
    // An owner is of the same namespace.
    let owner = place.filter(|p| p.namespace == namespace).and_then(|p| p.owner.clone());
    status::Writing { client, namespace, owner, identity }
}

/// The state, and where it is if that is a cluster. An API server that is away for a moment is waited for.
async fn open_state(
    config: &Config,
    client: Option<kube::Client>,
) -> anyhow::Result<(state::Opened, Option<state::Place>)> {
    let trust_domain = TrustDomain::new(&config.trust_domain)?;
    let Some(client) = client.filter(|_| config.state_in_cluster()) else {
        return Ok((
            state::open(state::in_dir(config.state_path()), trust_domain, config.lives(), agent::now())
                .await?,
            None,
        ));
    };
    let started = tokio::time::Instant::now();
    loop {
        let attempt = async {
            let namespace = config.own_namespace();
            let state = KubeState::new(client.clone(), &namespace, &config.state_owner).await?;
            let place = state.place().clone();
            let (trust_domain, lives) = (trust_domain.clone(), config.lives());
            let opened = state::open(Arc::new(state), trust_domain, lives, agent::now()).await?;
            anyhow::Ok((opened, Some(place)))
        };
        match attempt.await {
            Ok(opened) => return Ok(opened),
            Err(error) if started.elapsed() >= STORE => return Err(error.context("state in the cluster")),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), retry_in = ?AGAIN, "the cluster's state is not to be had");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
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
