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
use mesh_api::model::TunnelAnswer;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{error::OpenError, marked::Marked, path::Path, table::Conn, tunnel::Shared, wire};

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
    /// The owner has not answered yet.
    awaiting: Option<Box<Awaiting>>,
    early: usize,
}

/// An answer that is still to come.
#[derive(Debug)]
struct Awaiting {
    node: Arc<str>,
    buffer: Vec<u8>,
    /// It came, and was no.
    refused: Option<OpenError>,
}

/// Where a stream runs, for whoever keeps streams for later use.
#[derive(Debug, Clone)]
pub struct Place(Arc<Conn>);

impl Place {
    /// There is a better path to the peer by now, or the peer's process takes no new streams: whoever can should go on
    /// elsewhere. Costs two loads.
    pub fn is_superseded(&self) -> bool {
        self.0.is_superseded()
    }
}

/// Our muxer carries resets; QUIC streams need them marked.
#[derive(Debug)]
enum Io {
    Plain { stream: Stream, early: Bytes },
    Marked(Marked<Stream>),
}

impl TunnelStream {
    pub(crate) fn new(stream: Stream, early: Bytes, path: Path, guard: StreamGuard) -> Self {
        let io = if path.needs_marks() {
            Io::Marked(Marked::new(stream, early))
        } else {
            Io::Plain { stream, early }
        };
        Self { io, path, guard, awaiting: None, early: 0 }
    }

    /// A stream whose open message has just been sent.
    pub(crate) fn awaiting(stream: Stream, node: Arc<str>, path: Path, guard: StreamGuard) -> Self {
        let awaiting = Awaiting { node, buffer: Vec::new(), refused: None };
        Self { awaiting: Some(Box::new(awaiting)), ..Self::new(stream, Bytes::new(), path, guard) }
    }

    pub(crate) fn with_early(self, early: usize) -> Self {
        Self { early, ..self }
    }

    /// How many of the bytes given to `open_with` went with the open message.
    pub fn early(&self) -> usize {
        self.early
    }

    /// Reads the owner's answer, if it is still to come.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(awaiting) = &mut self.awaiting else { return Poll::Ready(Ok(())) };
        if let Some(refused) = &awaiting.refused {
            return Poll::Ready(Err(refusal(refused.clone())));
        }
        let (stream, early) = match &mut self.io {
            Io::Plain { stream, early } => (stream, early),
            Io::Marked(marked) => marked.before_first(),
        };
        let bad = || OpenError::BadAnswer(awaiting.node.clone());
        let outcome = loop {
            match wire::length(&awaiting.buffer) {
                Ok(Some((len, prefix))) if awaiting.buffer.len() >= prefix + len => {
                    let answer = TunnelAnswer::decode(&awaiting.buffer[prefix..prefix + len]);
                    let conn = &self.guard.conn;
                    let judged = answer
                        .map_err(|_| bad())
                        .and_then(|a| conn.judge(&awaiting.node, &a, &self.guard.shared.table));
                    *early = Bytes::copy_from_slice(&awaiting.buffer[prefix + len..]);
                    break judged;
                }
                Ok(_) => {}
                Err(_) => break Err(bad()),
            }
            let mut space = [0; 512];
            let n = ready!(futures::AsyncRead::poll_read(Pin::new(&mut *stream), cx, &mut space))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            awaiting.buffer.extend_from_slice(&space[..n]);
        };
        if let Err(error) = outcome {
            self.guard.shared.metrics.opened(error.as_str());
            awaiting.refused = Some(error.clone());
            return Poll::Ready(Err(refusal(error)));
        }
        self.awaiting = None;
        Poll::Ready(Ok(()))
    }

    /// A write that failed before the answer was read: the answer says why, if it is there.
    fn because(&mut self, cx: &mut Context<'_>, error: io::Error) -> io::Error {
        match self.poll_answer(cx) {
            Poll::Ready(Err(refused)) => refused,
            _ => error,
        }
    }

    /// The path that carries it.
    pub fn path(&self) -> Path {
        self.path
    }

    /// Tells at any time whether a pool should leave this stream for a new one.
    pub fn place(&self) -> Place {
        Place(self.guard.conn.clone())
    }
}

/// The owner's refusal as the error of a read or a write. No byte of the stream has reached the endpoint.
fn refusal(error: OpenError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, error)
}

impl AsyncRead for TunnelStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.awaiting.is_some() {
            ready!(this.poll_answer(cx))?;
        }
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
        this.guard.conn.received.add(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(match &mut this.io {
            Io::Plain { stream, .. } => futures::AsyncWrite::poll_write(Pin::new(stream), cx, buf),
            Io::Marked(marked) => Pin::new(marked).poll_write(cx, buf),
        })
        .map_err(|e| this.because(cx, e))?;
        this.guard.conn.sent.add(n);
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
        })
        .map_err(|e| this.because(cx, e))?;
        this.guard.conn.sent.add(n);
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
