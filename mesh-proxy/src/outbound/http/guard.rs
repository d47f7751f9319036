//! What is refused before any rule is looked at: requests that are not well-formed or could be read in two ways.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Method, Request, Uri, Version, header};
use hyper::body::Incoming;
use mesh_core::path;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{super::failure::FailureClass, HttpConnection, Version as Spoken, scan::HeadScanner};

/// Refuses what no rule should see.
pub(crate) fn check(conn: &HttpConnection, request: &Request<Incoming>) -> Result<(), FailureClass> {
    let number = conn.watch.requests.get();
    conn.watch.requests.set(number + 1);
    let refused = match conn.version {
        Spoken::Http1 => conn.scan.is_bad(number) || !http1_host_is_plain(request),
        Spoken::Http2 => request.uri().authority().is_none() && !has_one_host(request.headers()),
    };
    if refused {
        conn.connection.worker.shared.telemetry.edges.bad_requests.inc();
        return Err(FailureClass::BadRequest);
    }
    if request.method() == Method::CONNECT {
        return Err(FailureClass::MethodRefused);
    }
    Ok(())
}

fn http1_host_is_plain(request: &Request<Incoming>) -> bool {
    let headers = request.headers();
    if request.version() == Version::HTTP_10 && !headers.contains_key(header::HOST) {
        return true;
    }
    has_one_host(headers)
}

/// One `Host`, of which nobody can read more than one.
fn has_one_host(headers: &HeaderMap) -> bool {
    let mut all = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (all.next(), all.next()) else { return false };
    let plain = |b: &u8| {
        b.is_ascii_alphanumeric()
            || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']' | b'%' | b'~' | b'!' | b'*' | b'+' | b'=')
    };
    host.as_bytes().iter().all(plain)
}

/// Takes dot segments out of the path: rules and the endpoint see the same path.
pub(crate) fn normalize(request: &mut Request<Incoming>) {
    let Some(given) = request.uri().path_and_query() else { return };
    let std::borrow::Cow::Owned(plain) = path::normalize(given.as_str()) else { return };
    let mut parts = request.uri().clone().into_parts();
    if let Ok(new) = plain.parse() {
        parts.path_and_query = Some(new);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}

/// What the scanner found, as requests ask for it. The socket and the requests live on one thread; the HTTP library
/// wants its I/O to be `Send` all the same.
#[derive(Debug)]
pub(crate) struct ScanState {
    first_bad: AtomicU64,
    /// The number of the head of which a part has come, or [`NONE`].
    partial: AtomicU64,
    ended: AtomicBool,
}

const NONE: u64 = u64::MAX;

impl Default for ScanState {
    fn default() -> Self {
        Self { first_bad: AtomicU64::new(NONE), partial: AtomicU64::new(NONE), ended: AtomicBool::new(false) }
    }
}

impl ScanState {
    fn is_bad(&self, request: u64) -> bool {
        request >= self.first_bad.load(Ordering::Relaxed)
    }

    /// The number of the head of which a part has come, and the rest has not.
    pub(crate) fn partial_head(&self) -> Option<u64> {
        Some(self.partial.load(Ordering::Relaxed)).filter(|n| *n != NONE)
    }

    /// A message is over: the next bytes begin a head.
    pub(crate) fn message_ended(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// A stream whose incoming bytes are looked at.
pub(crate) struct Scanned<S> {
    inner: S,
    scanner: HeadScanner,
    state: Arc<ScanState>,
}

impl<S> Scanned<S> {
    pub(crate) const fn new(inner: S, state: Arc<ScanState>) -> Self {
        Self { inner, scanner: HeadScanner::new(), state }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Scanned<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut this.inner).poll_read(cx, buf));
        if this.state.ended.swap(false, Ordering::Relaxed) {
            this.scanner.message_ended();
        }
        this.scanner.feed(&buf.filled()[before..]);
        this.state.partial.store(this.scanner.partial_head().unwrap_or(NONE), Ordering::Relaxed);
        if let Some(bad) = this.scanner.bad_head() {
            this.state.first_bad.store(bad, Ordering::Relaxed);
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Scanned<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
