//! The stream multiplexer on TCP: `/selvage/mux/1`.
//!
//! Why not yamux: its Rust form gives each stream a window of 256 KiB from the start (a node with 10,000 stalled
//! streams would hold 2.5 GiB), allows 4,096 streams at most, ends the whole connection when one stream is too many,
//! turns an abort after the peer's end into a clean end, and pays a channel hop, two allocations and two TLS records
//! for each chunk. Here a stream writes its frame straight into the connection's buffer, the connection sends what
//! gathered in one go, windows start small and grow with the measured round trip, and an abort is an abort.
//!
//! - [`buffer`]: received bytes that wait for their reader.
//! - [`frame`]: eight bytes before each frame.
//! - [`state`]: the state machine of one connection: no I/O, `now` is an argument.
//! - [`substream`]: one stream.

mod buffer;
mod frame;
mod state;
mod substream;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    convert::Infallible,
    future::{Ready, ready},
    io, iter,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::{
    UpgradeInfo,
    muxing::{StreamMuxer, StreamMuxerEvent},
    upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
};

use state::{Connection, Role};
pub(crate) use substream::Substream;

/// Bounds of one connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Config {
    /// Streams at a time, both directions of opening. A stream beyond it is reset, alone.
    pub(crate) max_streams: usize,
    /// Bytes that a stream may receive before its reader has taken any.
    pub(crate) window: u32,
    /// What a window may grow to.
    pub(crate) max_window: u32,
    /// What all windows of the connection may grow by, together.
    pub(crate) growth: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_streams: 65_536, window: 64 << 10, max_window: 4 << 20, growth: 64 << 20 }
    }
}

impl UpgradeInfo for Config {
    type Info = &'static str;
    type InfoIter = iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once("/selvage/mux/1")
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> InboundConnectionUpgrade<C> for Config {
    type Output = Muxer<C>;
    type Error = Infallible;
    type Future = Ready<Result<Muxer<C>, Infallible>>;

    fn upgrade_inbound(self, io: C, _: Self::Info) -> Self::Future {
        ready(Ok(Muxer::new(io, self, Role::Listener)))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> OutboundConnectionUpgrade<C> for Config {
    type Output = Muxer<C>;
    type Error = Infallible;
    type Future = Ready<Result<Muxer<C>, Infallible>>;

    fn upgrade_outbound(self, io: C, _: Self::Info) -> Self::Future {
        ready(Ok(Muxer::new(io, self, Role::Dialler)))
    }
}

/// Bytes that one read takes from the transport.
const READ: usize = 64 << 10;
/// Reads and writes of one poll, before other tasks of the thread get their turn.
const ROUNDS: usize = 16;

thread_local! {
    /// Incoming bytes pass through here on their way to the streams; no connection owns such a buffer.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// A multiplexed connection. Whoever polls it moves its bytes.
#[derive(Debug)]
pub(crate) struct Muxer<C> {
    io: C,
    connection: Arc<Connection>,
    /// Frames on their way to the transport.
    sending: Vec<u8>,
    sent: usize,
    flushed: bool,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    fn new(io: C, config: Config, role: Role) -> Self {
        let connection = Arc::new(Connection::new(config, role));
        Self { io, connection, sending: Vec::new(), sent: 0, flushed: true }
    }

    /// Moves bytes until neither direction goes on. `Err` ends the connection.
    fn drive(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        for _ in 0..ROUNDS {
            let wrote = self.write(cx)?;
            let read = self.read(cx)?;
            if !wrote && !read {
                return Ok(());
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Sends what the streams have written; tells whether anything moved.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut moved = false;
        loop {
            if self.sent == self.sending.len() {
                self.sending.clear();
                self.sent = 0;
                if !self.connection.take_output(&mut self.sending, cx.waker()) {
                    break;
                }
            }
            match Pin::new(&mut self.io).poll_write(cx, &self.sending[self.sent..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => {
                    self.sent += n;
                    self.flushed = false;
                    moved = true;
                }
                Poll::Ready(Err(e)) => return Err(e),
                Poll::Pending => break,
            }
        }
        if !self.flushed
            && let Poll::Ready(flushed) = Pin::new(&mut self.io).poll_flush(cx)
        {
            flushed?;
            self.flushed = true;
        }
        Ok(moved)
    }

    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if let Some(room) = self.connection.room() {
            return self.read_piece(cx, room);
        }
        SCRATCH.with_borrow_mut(|scratch| match Pin::new(&mut self.io).poll_read(cx, scratch) {
            Poll::Ready(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Poll::Ready(Ok(n)) => {
                self.connection.receive(&scratch[..n], Instant::now())?;
                Ok(true)
            }
            Poll::Ready(Err(e)) => Err(e),
            Poll::Pending => Ok(false),
        })
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    /// Bulk goes straight to where its reader finds it.
    fn read_piece(&mut self, cx: &mut Context<'_>, room: usize) -> io::Result<bool> {
        let mut piece = buffer::take();
        match Pin::new(&mut self.io).poll_read(cx, &mut piece[..room]) {
            Poll::Ready(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Poll::Ready(Ok(n)) => {
                self.connection.receive_piece(piece, n, Instant::now())?;
                Ok(true)
            }
            Poll::Ready(Err(e)) => Err(e),
            Poll::Pending => {
                buffer::give(piece);
                Ok(false)
            }
        }
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = Substream;
    type Error = io::Error;

    fn poll_inbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Substream>> {
        self.connection.poll_accept(cx).map_ok(|id| Substream::new(self.connection.clone(), id))
    }

    fn poll_outbound(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<Substream>> {
        Poll::Ready(self.connection.open().map(|id| Substream::new(self.connection.clone(), id)))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.connection.fail(io::ErrorKind::ConnectionAborted);
        // A peer that takes nothing cannot hold the close: what does not go at once is dropped with the socket.
        match Pin::new(&mut this.io).poll_close(cx) {
            Poll::Ready(closed) => Poll::Ready(closed),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        let this = self.get_mut();
        match this.drive(cx) {
            Ok(()) => Poll::Pending,
            Err(e) => {
                this.connection.fail(io::ErrorKind::ConnectionReset);
                Poll::Ready(Err(e))
            }
        }
    }
}

impl<C> Drop for Muxer<C> {
    fn drop(&mut self) {
        self.connection.fail(io::ErrorKind::ConnectionAborted);
    }
}
