//! The byte stream between two nodes: tokio's traits over a muxed stream, with the peer's end (half-close) and its
//! abort (reset) told apart.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
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
    io: Io,
    path: Path,
    guard: StreamGuard,
}

/// Our muxer carries resets; QUIC streams need them marked.
#[derive(Debug)]
enum Io {
    Plain { stream: Stream, early: Bytes },
    Marked(Marked<Stream>),
}

impl TunnelStream {
    pub(crate) fn new(stream: Stream, early: Bytes, path: Path, guard: StreamGuard) -> Self {
        let io = match path {
            Path::Tcp | Path::Relayed => Io::Plain { stream, early },
            Path::Quic => Io::Marked(Marked::new(stream, early)),
        };
        Self { io, path, guard }
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
        match &mut this.io {
            Io::Plain { early, .. } if !early.is_empty() => {
                let n = early.len().min(buf.remaining());
                buf.put_slice(&early.split_to(n));
            }
            Io::Plain { stream, .. } => {
                let n =
                    ready!(futures::AsyncRead::poll_read(Pin::new(stream), cx, buf.initialize_unfilled()))?;
                buf.advance(n);
            }
            Io::Marked(marked) => ready!(Pin::new(marked).poll_read(cx, buf))?,
        }
        let read = buf.filled().len() - before;
        this.guard.shared.metrics.bytes_received.inc_by(read as u64);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(match &mut this.io {
            Io::Plain { stream, .. } => futures::AsyncWrite::poll_write(Pin::new(stream), cx, buf),
            Io::Marked(marked) => Pin::new(marked).poll_write(cx, buf),
        })?;
        this.guard.shared.metrics.bytes_sent.inc_by(n as u64);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(match &mut this.io {
            Io::Plain { stream, .. } => futures::AsyncWrite::poll_write_vectored(Pin::new(stream), cx, bufs),
            Io::Marked(marked) => {
                let first = bufs.iter().find(|b| !b.is_empty()).map_or(&[][..], |b| b);
                Pin::new(marked).poll_write(cx, first)
            }
        })?;
        this.guard.shared.metrics.bytes_sent.inc_by(n as u64);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self.io, Io::Plain { .. })
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain { stream, .. } => futures::AsyncWrite::poll_flush(Pin::new(stream), cx),
            Io::Marked(marked) => Pin::new(marked).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain { stream, .. } => futures::AsyncWrite::poll_close(Pin::new(stream), cx),
            Io::Marked(marked) => Pin::new(marked).poll_shutdown(cx),
        }
    }
}
