//! HTTP on a client's connection. The order in which a request is worked on is in [`stack`].

pub(crate) mod body;
mod client;
mod edit;
mod guard;
mod mirror;
mod record;
mod reply;
pub(crate) mod response;
mod retry;
mod scan;
mod stack;
mod upgrade;
mod view;

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::{
    connection::{ClientStream, Connection},
    worker::WorkerState,
};
use guard::{ScanState, Scanned};

/// What the client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

/// A client's connection, as its requests see it.
pub(crate) struct HttpConnection {
    pub(crate) connection: Connection,
    pub(crate) version: Version,
    pub(crate) scan: Arc<ScanState>,
    pub(crate) requests: Cell<u64>,
}

/// Serves requests until the client or the drain ends the connection.
pub(crate) async fn serve(connection: Connection, stream: ClientStream, version: Version) {
    let worker = Rc::clone(&connection.worker);
    let config = &worker.shared.config;
    let scan: Arc<ScanState> = Arc::default();
    let http =
        Rc::new(HttpConnection { connection, version, scan: Arc::clone(&scan), requests: Cell::new(0) });
    let service = service_fn(move |request| stack::handle(Rc::clone(&http), request));
    let result = match version {
        Version::Http1 => {
            let io = TokioIo::new(Scanned::new(stream, scan));
            let mut builder = http1::Builder::new();
            builder.max_header_size(config.max_head).pipeline_flush(true);
            let served = builder.serve_connection(io, service).with_upgrades();
            Draining::new(served, Rc::clone(&worker)).await
        }
        Version::Http2 => {
            let mut builder = http2::Builder::new(LocalExec);
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(config.max_streams)
                .max_header_list_size(u32::try_from(config.max_head).unwrap_or(u32::MAX))
                .initial_stream_window_size(H2_STREAM_WINDOW)
                .initial_connection_window_size(H2_CONNECTION_WINDOW);
            let served = builder.serve_connection(TokioIo::new(stream), service);
            Draining::new(served, Rc::clone(&worker)).await
        }
    };
    if let Err(e) = result {
        if e.is_parse() {
            worker.shared.telemetry.edges.bad_requests.inc();
        }
        tracing::debug!(error = &e as &dyn std::error::Error, "client connection ended");
    }
}

/// Bytes that may be on their way for one stream before its reader takes some: enough for a LAN at full speed.
pub(crate) const H2_STREAM_WINDOW: u32 = 256 << 10;
/// The same for all streams of a connection together.
pub(crate) const H2_CONNECTION_WINDOW: u32 = 1 << 20;

/// Runs the tasks of HTTP/2 on this thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalExec;

impl<F> hyper::rt::Executor<F> for LocalExec
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// A server connection that can be told to finish.
trait Finish: Future<Output = hyper::Result<()>> {
    fn finish(self: Pin<&mut Self>);
}

impl<I, S, B> Finish for http1::UpgradeableConnection<I, S>
where
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    B: hyper::body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S, B> Finish for http2::Connection<I, S, LocalExec>
where
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: 'static,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: hyper::body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    LocalExec: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// A connection that finishes what it does when its worker closes.
struct Draining<C> {
    connection: Pin<Box<C>>,
    worker: Rc<WorkerState>,
    registered: Option<std::task::Waker>,
    finishing: bool,
}

impl<C: Finish> Draining<C> {
    fn new(connection: C, worker: Rc<WorkerState>) -> Self {
        Self { connection: Box::pin(connection), worker, registered: None, finishing: false }
    }
}

impl<C: Finish> Future for Draining<C> {
    type Output = hyper::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if !this.finishing {
            if this.worker.closing.is_closed() {
                this.finishing = true;
                this.connection.as_mut().finish();
            } else if this.registered.is_none() {
                this.worker.closing.register(cx.waker());
                this.registered = Some(cx.waker().clone());
            }
        }
        this.connection.as_mut().poll(cx)
    }
}

impl<C> Drop for Draining<C> {
    fn drop(&mut self) {
        if let Some(waker) = &self.registered {
            self.worker.closing.forget(waker);
        }
    }
}
