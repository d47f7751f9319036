//! State for operators, as JSON, on loopback.

use std::sync::Arc;

use node_rt::{AdminResponse, AdminServer, Readiness, Tasks, json_response};
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;
use tonic::codegen::http::StatusCode;

use crate::{
    distribute::{Shared, sessions::SessionInfo},
    engine::{Overview, SharedOverview},
    registry::NodeRecord,
    source::{Health, HealthState},
};

/// What the pages show.
#[derive(Clone)]
pub(crate) struct Pages {
    pub(crate) shared: Arc<Shared>,
    pub(crate) overview: SharedOverview,
    pub(crate) health: Health,
}

#[derive(Serialize)]
struct State {
    version: &'static str,
    /// Whether this replica cleans up the node registry.
    leader: bool,
    /// Publications since the start: the version of what is handed out.
    generation: u64,
    /// Ends of the controller's certificate and of the CA's, seconds since 1970.
    certificate_expires: i64,
    ca_expires: i64,
    #[serde(flatten)]
    overview: Overview,
    source: HealthState,
    sessions: Vec<SessionInfo>,
    nodes: Vec<NodeRecord>,
}

impl Pages {
    pub(crate) fn serve(self, listener: TcpListener, readiness: Readiness, tasks: &Tasks) {
        let (state, resources, remove) = (self.clone(), self.clone(), self);
        AdminServer::new()
            .process_logging(tasks)
            .health(readiness)
            .route("GET", "/state", move |_request| {
                let pages = state.clone();
                async move { pages.state() }
            })
            .route("GET", "/resources", move |_request| {
                let pages = resources.clone();
                async move { pages.resources() }
            })
            .route("DELETE", "/nodes/*", move |request| {
                let pages = remove.clone();
                let node = request.uri().path().trim_start_matches("/nodes/").to_owned();
                async move { pages.remove(node).await }
            })
            .serve("admin", listener, tasks);
    }

    fn state(&self) -> AdminResponse {
        let metrics = &self.shared.metrics;
        let state = State {
            version: env!("CARGO_PKG_VERSION"),
            leader: metrics.leader.get() == 1,
            generation: self.shared.store.read().generation(),
            certificate_expires: metrics.certificate_expires.get(),
            ca_expires: metrics.ca_expires.get(),
            overview: self.overview.get(),
            source: self.health.snapshot(),
            sessions: self.shared.sessions.list(),
            nodes: self.shared.registry.list(),
        };
        json_response(StatusCode::OK, &state)
    }

    /// Names and versions of all compiled resources.
    fn resources(&self) -> AdminResponse {
        let view = self.shared.store.read();
        let all: serde_json::Map<String, serde_json::Value> = mesh_api::ResourceType::ALL
            .into_iter()
            .map(|kind| {
                let versions: serde_json::Map<_, _> =
                    view.all(kind).iter().map(|(n, c)| (n.to_string(), json!(c.version))).collect();
                (kind.as_str().to_owned(), versions.into())
            })
            .collect();
        json_response(StatusCode::OK, &all)
    }

    /// Removes a node: its streams end, its certificate is not renewed, peers stop accepting it.
    async fn remove(&self, node: String) -> AdminResponse {
        let (registry, name) = (self.shared.registry.clone(), node.clone());
        let removed = tokio::task::spawn_blocking(move || registry.remove(&name)).await;
        self.shared.sessions.revoke(&node);
        match removed {
            Ok(Ok(true)) => {
                tracing::info!(node, "node was removed by an operator");
                self.shared.metrics.left.with_label_values(&["operator"]).inc();
                json_response(StatusCode::OK, &json!({"removed": node}))
            }
            Ok(Ok(false)) => json_response(StatusCode::NOT_FOUND, &json!({"error": "no such node"})),
            Ok(Err(error)) => {
                json_response(StatusCode::INTERNAL_SERVER_ERROR, &json!({"error": error.to_string()}))
            }
            Err(_) => json_response(StatusCode::INTERNAL_SERVER_ERROR, &json!({"error": "interrupted"})),
        }
    }
}
