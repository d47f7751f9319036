//! The TCP socket under a tunnel connection. Reads ahead, because TLS asks for 4 KiB at a time; and follows its task:
//! a socket that was connected or accepted on one runtime reports its readiness there, so it is registered anew when
//! its task is found running on another.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    thread::{self, ThreadId},
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite};
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    runtime::{Handle, Id},
};
use tokio_util::io::poll_read_buf;

use crate::numbers::Numbers;

/// Bytes that one system call reads.
const AHEAD: usize = 64 << 10;
/// Sent bytes that the peer has not acknowledged for this long end the connection: longer than an outage that streams
/// shall survive, with the pause after which the kernel sends again. A silent connection is left by new streams at once,
/// and ended sooner where another way answers.
const UNACKNOWLEDGED: Duration = Duration::from_secs(24);
/// Bytes that wait in the kernel without having been sent. More would only delay other streams, and on a slow line
/// nothing would tell for seconds that it moves.
const UNSENT: u32 = 256 << 10;
/// Congestion control.
const CONGESTION: &[u8] = b"bbr";
/// Buffers that a thread keeps for its sockets.
const KEPT: usize = 4;

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
pub(crate) struct Socket {
    /// Absent only while it is registered anew, or after that failed.
    stream: Option<TcpStream>,
    /// Where it is registered, and the thread that was last seen polling it.
    home: Option<(Id, ThreadId)>,
    /// Bytes read ahead: `ahead[start..]`. Held only while there are any.
    ahead: Vec<u8>,
    start: usize,
    /// Moves with each sign of life of the other end.
    life: Option<Arc<AtomicU64>>,
    /// The kernel had no room for our bytes.
    blocked: bool,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, lives: &Numbers<SocketAddr>) -> Self {
        // A peer that vanished is noticed by unacknowledged bytes, long before TCP itself gives up (15 minutes).
        if let Err(error) = SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED)) {
            tracing::debug!(%error, "set TCP_USER_TIMEOUT");
        }
        if let Err(error) = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT) {
            tracing::debug!(%error, "set TCP_NOTSENT_LOWAT");
        }
        // As on QUIC: loss on a radio or a long line is no sign of a full queue. Not every kernel has it.
        if let Err(error) = SockRef::from(&stream).set_tcp_congestion(CONGESTION) {
            tracing::debug!(%error, "set TCP_CONGESTION");
        }
        let canonical = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
        let life = stream.peer_addr().ok().map(|at| lives.of(canonical(at)));
        let home = Handle::try_current().ok().map(|h| (h.id(), thread::current().id()));
        Self { stream: Some(stream), home, ahead: Vec::new(), start: 0, life, blocked: false }
    }

    fn lives(&self) {
        if let Some(life) = &self.life {
            life.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes what a write says of the other end: room where there was none is made by its acknowledgements.
    fn wrote(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let blocked = written.is_pending();
        if self.blocked && !blocked {
            self.lives();
        }
        self.blocked = blocked;
        written
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        let here = thread::current().id();
        if self.home.is_none_or(|(_, thread)| thread != here) {
            self.follow(here)?;
        }
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn follow(&mut self, here: ThreadId) -> io::Result<()> {
        let Ok(runtime) = Handle::try_current() else { return Ok(()) };
        let id = runtime.id();
        if self.home.is_none_or(|(home, _)| home != id)
            && let Some(stream) = self.stream.take()
        {
            self.stream = Some(TcpStream::from_std(stream.into_std()?)?);
        }
        self.home = Some((id, here));
        Ok(())
    }

    fn take_ahead(&mut self, buf: &mut [u8]) -> usize {
        let available = &self.ahead[self.start..];
        let n = available.len().min(buf.len());
        buf[..n].copy_from_slice(&available[..n]);
        self.start += n;
        if self.start == self.ahead.len() {
            self.start = 0;
            give_back(std::mem::take(&mut self.ahead));
        }
        n
    }
}

fn borrow() -> Vec<u8> {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(AHEAD))
}

fn give_back(mut buffer: Vec<u8>) {
    if buffer.capacity() == 0 {
        return;
    }
    buffer.clear();
    BUFFERS.with_borrow_mut(|kept| {
        if kept.len() < KEPT {
            kept.push(buffer);
        }
    });
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            return Poll::Ready(Ok(this.take_ahead(buf)));
        }
        let mut ahead = borrow();
        let read = match this.stream() {
            Ok(stream) => poll_read_buf(stream, cx, &mut ahead),
            Err(e) => Poll::Ready(Err(e)),
        };
        if ahead.is_empty() {
            give_back(ahead);
            return read;
        }
        this.lives();
        this.ahead = ahead;
        Poll::Ready(Ok(this.take_ahead(buf)))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = tokio::io::AsyncWrite::poll_write(this.stream()?, cx, buf);
        this.wrote(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = tokio::io::AsyncWrite::poll_write_vectored(this.stream()?, cx, bufs);
        this.wrote(written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        tokio::io::AsyncWrite::poll_flush(self.get_mut().stream()?, cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        tokio::io::AsyncWrite::poll_shutdown(self.get_mut().stream()?, cx)
    }
}
