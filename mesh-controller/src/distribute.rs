//! Compiled resources to proxies: delta discovery, and the agent calls beside it, over mutual TLS.
//!
//! One connection has one node certificate; every call but Join needs it. A session never waits for another: it reads
//! shared state and owns only names.

pub(crate) mod agent;
pub(crate) mod copies;
pub(crate) mod peer;
mod service;
mod session;
pub(crate) mod sessions;
pub(crate) mod store;
mod stream;

use std::{sync::Arc, time::Duration};

use node_rt::Tasks;
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::{members::Members, metrics::Metrics, registry::Registry};

/// Joins at a time: each signs a certificate and writes to disk.
const CONCURRENT_JOINS: usize = 32;

/// What all sessions share.
pub(crate) struct Shared {
    pub(crate) store: Arc<store::Store>,
    pub(crate) sessions: sessions::Sessions,
    pub(crate) registry: Registry,
    pub(crate) issuer: agent::Issuer,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tasks: Tasks,
    pub(crate) joins: Semaphore,
    /// Names that the cluster knows.
    pub(crate) members: Members,
    /// Time in which nodes are told that this controller stops.
    pub(crate) handover: Duration,
}

impl Shared {
    pub(crate) fn new(
        store: Arc<store::Store>,
        registry: Registry,
        issuer: agent::Issuer,
        metrics: Arc<Metrics>,
        tasks: Tasks,
    ) -> Self {
        Self {
            store,
            sessions: sessions::Sessions::default(),
            registry,
            issuer,
            metrics,
            tasks,
            joins: Semaphore::new(CONCURRENT_JOINS),
            members: Members::default(),
            handover: Duration::ZERO,
        }
    }

    /// A node's record is gone, and it was not this controller that removed it: meshctl, kubectl or another controller.
    pub(crate) fn left_elsewhere(&self, node: &str) {
        self.metrics.left.with_label_values(&["elsewhere"]).inc();
        self.sessions.revoke(node);
    }
}

/// Serves until the drain ends.
pub(crate) fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    max_connections: usize,
) {
    let tasks = shared.tasks.clone();
    let connections = peer::accept(listener, tls, max_connections, &tasks, shared.metrics.clone());
    let routes = service::Routes::new(shared);
    let drain = tasks.drain().clone();
    tasks.spawn_critical("grpc", async move {
        // Held while connections end by themselves.
        let _guard = drain.guard();
        let server = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .max_concurrent_streams(16)
            .serve_with_incoming_shutdown(routes, ReceiverStream::new(connections), drain.stop_accepting());
        if let Err(error) = server.await {
            tracing::error!(error = %crate::chain(&error), "grpc server");
        }
    });
}
