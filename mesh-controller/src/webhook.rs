//! The admission webhook: refuses what Istio's own refuses, naming field and reason, and warns of what has no effect
//! here. It decides with the same code as the compiler, which looks at every object again: what gets into the cluster
//! while no webhook answers is a finding and a status condition, not a hole.

mod bundle;
mod review;

use std::{sync::Arc, time::Duration};

use node_rt::{AdminLimits, AdminRequest, AdminServer, Tasks, json_response, text_response};
use prometheus::IntCounterVec;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::codegen::http::StatusCode;

pub(crate) use bundle::keep as keep_bundle;

/// What the API server may take: an object is at most 3 MiB there, and a review of an update holds two.
const LIMITS: AdminLimits = AdminLimits {
    connections: 128,
    body: 8 << 20,
    header_wait: Duration::from_secs(30),
    // The API server waits 10 s by default, and calls at most once.
    request: Duration::from_secs(10),
    patience: Duration::from_secs(10),
};

/// Answers reviews on `/validate` until the drain.
pub(crate) fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    requests: IntCounterVec,
    tasks: &Tasks,
) {
    let acceptor = TlsAcceptor::from(tls);
    let answer = move |request: AdminRequest| {
        let requests = requests.clone();
        async move {
            match review::answer(request.body()) {
                Ok(reviewed) => {
                    requests.with_label_values(&[&reviewed.kind, reviewed.outcome.as_str()]).inc();
                    json_response(StatusCode::OK, &reviewed.response)
                }
                Err(reason) => {
                    requests.with_label_values(&["none", "malformed"]).inc();
                    text_response(StatusCode::BAD_REQUEST, format!("{reason}\n"))
                }
            }
        }
    };
    let live = |_request| std::future::ready(text_response(StatusCode::OK, "live\n"));
    AdminServer::new()
        .limits(LIMITS)
        .route("POST", "/validate", answer)
        .route("GET", "/healthz/live", live)
        .serve_over("webhook", listener, tasks, move |stream| {
            let accepting = acceptor.accept(stream);
            async move {
                match accepting.await {
                    Ok(stream) => Some(stream),
                    Err(error) => {
                        tracing::debug!(%error, "webhook TLS");
                        None
                    }
                }
            }
        });
}
