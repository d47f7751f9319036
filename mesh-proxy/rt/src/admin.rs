//! Health, metrics and admin pages over HTTP/1.1, with bounds on everything a client can choose.

mod patient;
mod scrape;

use std::any::Any;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::{Exposed, Readiness, Tasks};
use patient::Patient;
use scrape::Page;

/// A request to an admin page, its body read.
pub type AdminRequest = Request<Bytes>;
/// An answer of an admin page.
pub type AdminResponse = Response<Full<Bytes>>;

type Answer = Pin<Box<dyn Future<Output = Response<Page>> + Send>>;
type Handler = Arc<dyn Fn(AdminRequest, AdminLimits) -> Answer + Send + Sync>;

/// What a client can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminLimits {
    /// Connections at a time; more wait in the accept queue.
    pub connections: usize,
    /// Bytes of a request body.
    pub body: usize,
    /// Time for the head of a request to arrive, which is also how long an idle connection is kept.
    pub header_wait: Duration,
    /// Time for a request from its head to its answer.
    pub request: Duration,
    /// Time for a client to take the next part of an answer, of at most some tens of kilobytes. It is reset otherwise.
    pub patience: Duration,
}

impl Default for AdminLimits {
    fn default() -> Self {
        Self {
            connections: 64,
            body: 64 * 1024,
            header_wait: Duration::from_secs(30),
            request: Duration::from_secs(30),
            patience: Duration::from_secs(10),
        }
    }
}

/// Routes of one admin listener.
#[derive(Clone, Default)]
pub struct AdminServer {
    /// By path, then by method. A path that ends in `/*` takes everything below it.
    routes: BTreeMap<&'static str, BTreeMap<&'static str, Handler>>,
    limits: AdminLimits,
}

impl AdminServer {
    /// No pages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the limits.
    #[must_use]
    pub fn limits(mut self, limits: AdminLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Adds a page; `method` is a constant such as `"GET"` (which serves HEAD too), and a `path`
    /// that ends in `/*` takes everything below it.
    #[must_use]
    pub fn route<F, Fut>(mut self, method: &'static str, path: &'static str, page: F) -> Self
    where
        F: Fn(AdminRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = AdminResponse> + Send + 'static,
    {
        self.add(method, path, Arc::new(move |request, _| whole(page(request))));
        self
    }

    fn add(&mut self, method: &'static str, path: &'static str, handler: Handler) {
        self.routes.entry(path).or_default().insert(method, handler);
    }

    /// Adds `/healthz/ready` (503 with the names of what is pending) and `/healthz/live`.
    #[must_use]
    pub fn health(self, readiness: Readiness) -> Self {
        self.route("GET", "/healthz/ready", move |_| {
            let pending = readiness.pending();
            std::future::ready(if pending.is_empty() {
                text_response(StatusCode::OK, "ready\n")
            } else {
                text_response(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", pending.join(", ")))
            })
        })
        .route("GET", "/healthz/live", |_| std::future::ready(text_response(StatusCode::OK, "live\n")))
    }

    /// Adds `/metrics` and `/stats/prometheus`, in Prometheus' text format, compressed for who takes gzip.
    #[must_use]
    pub fn metrics(self, registry: Registry) -> Self {
        self.metrics_and(registry, None)
    }

    /// The same, with families that are written in parts.
    #[must_use]
    pub fn metrics_and(mut self, registry: Registry, large: Option<Arc<dyn Exposed>>) -> Self {
        for path in ["/metrics", "/stats/prometheus"] {
            let (registry, large) = (registry.clone(), large.clone());
            let page = move |request: AdminRequest, limits: AdminLimits| -> Answer {
                let gzip = scrape::takes_gzip(request.headers());
                Box::pin(scrape::answer(registry.clone(), large.clone(), gzip, limits.patience))
            };
            self.add("GET", path, Arc::new(page));
        }
        self
    }

    /// Serves `listener` until the drain cancels: health must answer while connections drain.
    pub fn serve(self, name: &'static str, listener: TcpListener, tasks: &Tasks) {
        self.serve_over(name, listener, tasks, |stream| std::future::ready(Some(stream)));
    }

    /// Serves `listener` over what `wrap` makes of a connection, e.g. TLS; without it the connection is closed.
    pub fn serve_over<W, Fut, S>(self, name: &'static str, listener: TcpListener, tasks: &Tasks, wrap: W)
    where
        W: Fn(TcpStream) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Option<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let server = Arc::new(self);
        let wrap = Arc::new(wrap);
        let owner = tasks.clone();
        tasks.spawn_critical(name, async move {
            let slots = Arc::new(Semaphore::new(server.limits.connections.max(1)));
            loop {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
                let stream = match listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of descriptors or memory: give others time to free some.
                        tracing::warn!(%error, listener = name, "accept");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                };
                let (server, wrap) = (Arc::clone(&server), Arc::clone(&wrap));
                owner.spawn("admin connection", async move {
                    let _slot = slot;
                    let _not_fatal = stream.set_nodelay(true);
                    // A peer that does not get on with it must not hold the slot.
                    let wrapped = tokio::time::timeout(server.limits.header_wait, wrap(stream)).await;
                    if let Ok(Some(stream)) = wrapped {
                        server.connection(stream).await;
                    }
                });
            }
        });
    }

    async fn connection(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let limits = self.limits;
        let service = service_fn(move |request| {
            let server = Arc::clone(&self);
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        // Twice: who writes a page in parts gives up, and counts that, before the connection does.
        let stream = Patient::new(stream, limits.patience * 2);
        let mut connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_wait)
            .max_buf_size(64 * 1024)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = (&mut connection).await {
            tracing::debug!(%error, "admin connection");
            if is_cut_off(&error) {
                reset(connection.into_parts().io.into_inner().into_inner());
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Page> {
        let method = if request.method() == Method::HEAD { "GET" } else { request.method().as_str() };
        let Some(methods) = self.find(request.uri().path()) else {
            return text_response(StatusCode::NOT_FOUND, "no such page\n").map(Page::Whole);
        };
        let Some(handler) = methods.get(method).cloned() else {
            let mut response = text_response(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
            let allowed = methods.keys().copied().collect::<Vec<_>>().join(", ");
            if let Ok(allowed) = HeaderValue::from_str(&allowed) {
                response.headers_mut().insert(ALLOW, allowed);
            }
            return response.map(Page::Whole);
        };
        let (head, body) = request.into_parts();
        let work = async {
            match Limited::new(body, self.limits.body).collect().await {
                Ok(body) => handler(Request::from_parts(head, body.to_bytes()), self.limits).await,
                Err(error) => {
                    let text = format!("request body: {error}\n");
                    text_response(StatusCode::PAYLOAD_TOO_LARGE, text).map(Page::Whole)
                }
            }
        };
        match tokio::time::timeout(self.limits.request, work).await {
            Ok(response) => response,
            Err(_late) => text_response(StatusCode::GATEWAY_TIMEOUT, "took too long\n").map(Page::Whole),
        }
    }

    fn find(&self, path: &str) -> Option<&BTreeMap<&'static str, Handler>> {
        self.routes.get(path).or_else(|| {
            let below =
                |route: &&'static str| route.strip_suffix('*').is_some_and(|base| path.starts_with(base));
            let longest = self.routes.keys().copied().filter(below).max_by_key(|route| route.len())?;
            self.routes.get(longest)
        })
    }
}

/// A plain text answer.
pub fn text_response(status: StatusCode, text: impl Into<Bytes>) -> AdminResponse {
    typed(status, "text/plain; charset=utf-8", text.into())
}

/// A JSON answer.
pub fn json_response(status: StatusCode, value: &impl serde::Serialize) -> AdminResponse {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => typed(status, "application/json", body.into()),
        Err(error) => text_response(StatusCode::INTERNAL_SERVER_ERROR, format!("not JSON: {error}\n")),
    }
}

fn typed(status: StatusCode, content_type: &'static str, body: Bytes) -> AdminResponse {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Whether an answer ended in the middle: its page did, or its client takes no more of it.
fn is_cut_off(error: &hyper::Error) -> bool {
    let stalled = |e: &io::Error| e.kind() == io::ErrorKind::TimedOut;
    error.is_user() || error.source().and_then(|e| e.downcast_ref()).is_some_and(stalled)
}

/// Closes a socket so that its peer sees an error: the end of an answer of HTTP/1.0 is that of its connection. TLS says
/// by itself that an end is missing.
fn reset<S: 'static>(mut stream: S) {
    if let Some(socket) = (&mut stream as &mut dyn Any).downcast_mut::<TcpStream>() {
        let _closed_already = socket.set_zero_linger();
    }
}

/// The answer of a page that is written at once.
fn whole(page: impl Future<Output = AdminResponse> + Send + 'static) -> Answer {
    Box::pin(async move { page.await.map(Page::Whole) })
}

#[cfg(test)]
mod tests;
