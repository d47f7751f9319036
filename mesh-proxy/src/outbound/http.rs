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
mod said;
mod scan;
mod stack;
mod upgrade;
mod view;

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::server::conn::{http1, http2};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};

use super::{connection::Connection, stream::Stream, watch::Watch};
pub(crate) use guard::ScanState;
use guard::Scanned;

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
    pub(crate) watch: Rc<Watch>,
}

/// Serves requests until the client or the drain ends the connection.
pub(crate) async fn serve<S: Stream + 'static>(connection: Connection, stream: S, version: Version) {
    let worker = Rc::clone(&connection.worker);
    let config = &worker.shared.config;
    let scan: Arc<ScanState> = Arc::default();
    let watch = Watch::new(Arc::clone(&scan));
    let http = Rc::new(HttpConnection { connection, version, scan: Arc::clone(&scan), watch });
    let seen = Rc::clone(&http);
    let service = TowerToHyperService::new(stack::service(http));
    let result = match version {
        Version::Http1 => {
            let io = TokioIo::new(Scanned::new(stream, scan));
            let mut builder = http1::Builder::new();
            builder.max_header_size(config.max_head);
            let served = builder.serve_connection(io, service).with_upgrades();
            Draining::new(served, seen).await
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
            Draining::new(served, seen).await
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

/// How long a connection gets, once its worker closes, for one more request, which is told that it is the last: hyper
/// would close an idle connection at once, and a request that the client has just sent would be lost.
const NEXT_REQUEST: Duration = Duration::from_secs(1);

/// A connection that finishes what it does when its worker closes.
struct Draining<C> {
    connection: Pin<Box<C>>,
    http: Rc<HttpConnection>,
    registered: bool,
    /// Requests when the worker closed.
    served: Option<u64>,
    grace: Option<Pin<Box<tokio::time::Sleep>>>,
    finishing: bool,
}

impl<C: Finish> Draining<C> {
    fn new(connection: C, http: Rc<HttpConnection>) -> Self {
        Self {
            connection: Box::pin(connection),
            http,
            registered: false,
            served: None,
            grace: None,
            finishing: false,
        }
    }

    /// Tells the connection to finish, if it is time to.
    fn finish_in_time(&mut self, cx: &mut Context<'_>) {
        let watches = &self.http.connection.worker.watches;
        if self.finishing {
            return;
        }
        if !self.registered {
            watches.add(&self.http.watch, cx.waker());
            self.registered = true;
        }
        if !watches.is_closed() {
            return;
        }
        let requests = self.http.watch.requests.get();
        if requests == *self.served.get_or_insert(requests) {
            let grace = self.grace.get_or_insert_with(|| Box::pin(tokio::time::sleep(NEXT_REQUEST)));
            if grace.as_mut().poll(cx).is_pending() {
                return;
            }
        }
        self.finishing = true;
        self.connection.as_mut().finish();
    }
}

impl<C: Finish> Future for Draining<C> {
    type Output = hyper::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.http.watch.is_given_up() {
            return Poll::Ready(Ok(()));
        }
        self.finish_in_time(cx);
        let was_finishing = self.finishing;
        let result = self.connection.as_mut().poll(cx);
        if result.is_pending() && !was_finishing {
            // The first request may have begun in this very turn: its answer is to say that it is the last.
            self.finish_in_time(cx);
            if self.finishing {
                return self.connection.as_mut().poll(cx);
            }
        }
        result
    }
}

impl<C> Drop for Draining<C> {
    fn drop(&mut self) {
        if self.registered {
            self.http.connection.worker.watches.remove(&self.http.watch);
        }
    }
}

#[cfg(test)]
pub(crate) fn exchange_size() -> usize {
    stack::exchange_size()
}
