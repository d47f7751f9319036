//! The byte stream between two nodes: tokio's traits over a muxed stream, with the peer's end (half-close) and its
//! abort (reset) told apart.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::Bytes;
use libp2p::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{marked::Marked, peers::Path, table::Conn, tunnel::Shared};

/// Who opened a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Outbound,
    Inbound,
}

/// Counts a stream while it lives.
#[derive(Debug)]
pub(crate) struct StreamGuard {
    pub(crate) shared: Arc<Shared>,
    pub(crate) conn: Arc<Conn>,
    pub(crate) direction: Direction,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.shared.streams.fetch_sub(1, Ordering::Relaxed);
        self.conn.streams.fetch_sub(1, Ordering::Relaxed);
        let (load, gauge) = match self.direction {
            Direction::Outbound => (&self.conn.load.outbound, &self.shared.metrics.streams_out),
            Direction::Inbound => (&self.conn.load.inbound, &self.shared.metrics.streams_in),
        };
        load.fetch_sub(1, Ordering::Relaxed);
        gauge.dec();
    }
}

/// A stream to an endpoint of another node (or from one).
///
/// `shutdown` ends this side only; reading goes on. Dropping the stream before `shutdown` resets it: the peer's read
/// fails with `ConnectionReset` and never looks like a clean end.
#[derive(Debug)]
pub struct TunnelStream {
    io: Marked<Stream>,
    path: Path,
    guard: StreamGuard,
}

impl TunnelStream {
    pub(crate) fn new(stream: Stream, rest: Bytes, path: Path, guard: StreamGuard) -> Self {
        Self { io: Marked::new(stream, rest), path, guard }
    }

    /// Transport that carries it: `tcp`, `quic` or `relayed`.
    pub fn transport(&self) -> &'static str {
        self.path.as_str()
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = Pin::new(&mut this.io).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            this.guard.shared.metrics.bytes_received.inc_by(read as u64);
        }
        result
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = &result {
            this.guard.shared.metrics.bytes_sent.inc_by(*n as u64);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
