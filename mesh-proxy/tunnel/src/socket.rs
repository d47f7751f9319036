//! The TCP socket under a tunnel connection. Reads ahead, because TLS asks for 4 KiB at a time; and follows its task:
//! a socket that was connected or accepted on one runtime reports its readiness there, so it is registered anew when
//! its task is found running on another. What the kernel is told about it is here too.

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
    time::{Duration, Instant},
};

use futures::{AsyncRead, AsyncWrite};
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    runtime::{Handle, Id},
};
use tokio_util::io::poll_read_buf;

use crate::{config::Congestion, numbers::Numbers};

/// Bytes that one system call reads.
const AHEAD: usize = 64 << 10;
/// Sent bytes that the peer has not acknowledged for this long end the connection: longer than an outage that streams
/// shall survive, with the pause after which the kernel sends again. A silent connection is left by new streams at once,
/// and ended sooner where another way answers.
const UNACKNOWLEDGED: Duration = Duration::from_secs(24);
/// Bytes that wait in the kernel without having been sent. More would only delay other streams, and on a slow line
/// nothing would tell for seconds that it moves.
const UNSENT: u32 = 256 << 10;
/// The kernel sends again at least this often. Its own pauses double: after an outage of nine seconds it would be silent for
/// up to nine more, and be given up for a new connection.
const AGAIN: Duration = Duration::from_secs(1);
/// Congestion control where the operator says nothing. Not every kernel has it.
const CONGESTION: &str = "bbr";
/// What every kernel has.
const OTHER: &str = "reno";
/// BBR stops for 200 ms whenever it has not seen the shortest round trip for ten seconds, in the midst of a transfer that
/// happens to run then. A connection that comes from a rest of this length begins anew with it, as a new one would: the
/// stop comes ten seconds later, or in the next rest.
const REST: Duration = Duration::from_millis(250);
/// Round trips that differ by less, and by less than a quarter, are alike.
const ALIKE: Duration = Duration::from_micros(200);
/// But not more often than this: each beginning looks for the rate of the line again, with more than it carries.
const BEGIN_EVERY: Duration = Duration::from_secs(4);
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
    /// Only with BBR.
    rest: Option<Rest>,
}

/// When a socket sent, and when its congestion control began.
#[derive(Debug, Clone, Copy)]
struct Rest {
    sent: Instant,
    began: Instant,
}

impl Rest {
    fn new(now: Instant) -> Self {
        Self { sent: now, began: now }
    }

    /// Notes that something is sent; whether the congestion control should begin anew before.
    fn is_over(&mut self, now: Instant) -> bool {
        let rested = now.saturating_duration_since(self.sent) >= REST;
        self.sent = now;
        let over = rested && now.saturating_duration_since(self.began) >= BEGIN_EVERY;
        if over {
            self.began = now;
        }
        over
    }
}

/// What all sockets of a tunnel share.
#[derive(Debug, Clone)]
pub(crate) struct Sockets {
    lives: Arc<Numbers<SocketAddr>>,
    congestion: Congestion,
}

impl Sockets {
    pub(crate) fn new(lives: Arc<Numbers<SocketAddr>>, congestion: Congestion) -> Self {
        Self { lives, congestion }
    }

    /// Takes a socket that was connected or accepted. What a kernel does not know it does without.
    pub(crate) fn take(&self, stream: TcpStream) -> Socket {
        let says = |what: &str, result: io::Result<()>| {
            if let Err(error) = result {
                tracing::debug!(%error, what, "option of a socket");
            }
        };
        let socket = SockRef::from(&stream);
        // A peer that vanished is noticed by unacknowledged bytes, long before TCP itself gives up (15 minutes).
        says("TCP_USER_TIMEOUT", socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED)));
        says("TCP_RTO_MAX_MS", mesh_net::tcp::set_retransmission_max(&stream, AGAIN));
        says("TCP_NOTSENT_LOWAT", socket.set_tcp_notsent_lowat(UNSENT));
        // As on QUIC: loss on a radio or a long line is no sign of a full queue.
        let congestion = self.congestion.name().unwrap_or(CONGESTION);
        says("TCP_CONGESTION", socket.set_tcp_congestion(congestion.as_bytes()));
        let canonical = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
        let life = stream.peer_addr().ok().map(|at| self.lives.of(canonical(at)));
        let home = Handle::try_current().ok().map(|h| (h.id(), thread::current().id()));
        let rest = is_bbr(&stream).then(|| Rest::new(Instant::now()));
        Socket { stream: Some(stream), home, ahead: Vec::new(), start: 0, life, blocked: false, rest }
    }
}

fn is_bbr(stream: &TcpStream) -> bool {
    // Zeros follow the name.
    let name = SockRef::from(stream).tcp_congestion();
    name.is_ok_and(|name| name.split(|b| *b == 0).next() == Some(CONGESTION.as_bytes()))
}

/// Makes the kernel's BBR forget what it knows. Naming it again would change nothing.
fn begin_anew(stream: &TcpStream) -> io::Result<()> {
    // What is under way belongs to what it knows.
    if mesh_net::tcp::unacknowledged(stream)? > 0 {
        return Ok(());
    }
    // It would begin with the shortest round trip of five minutes: far too little, if the line has become longer since.
    let same = |(shortest, bbr): (Duration, Duration)| bbr <= shortest + shortest / 4 + ALIKE;
    if !mesh_net::tcp::shortest_round_trips(stream).is_some_and(same) {
        return Ok(());
    }
    let socket = SockRef::from(stream);
    socket.set_tcp_congestion(OTHER.as_bytes())?;
    socket.set_tcp_congestion(CONGESTION.as_bytes())
}

impl Socket {
    /// Before something is sent.
    fn sends(&mut self) {
        let Some(rest) = &mut self.rest else { return };
        if rest.is_over(Instant::now())
            && let Some(stream) = &self.stream
            && let Err(error) = begin_anew(stream)
        {
            tracing::debug!(%error, "congestion control of a socket");
            self.rest = None;
        }
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
        this.sends();
        let written = tokio::io::AsyncWrite::poll_write(this.stream()?, cx, buf);
        this.wrote(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.sends();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_congestion_control_is_the_operators_or_bbr_where_the_kernel_has_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let of = async |congestion: &str| {
            let stream = TcpStream::connect(at).await.unwrap();
            let before = SockRef::from(&stream).tcp_congestion().unwrap();
            let sockets = Sockets::new(Arc::default(), congestion.parse().unwrap());
            let taken = sockets.take(stream);
            let after = SockRef::from(taken.stream.as_ref().unwrap()).tcp_congestion().unwrap();
            let text = |name: Vec<u8>| String::from_utf8(name).unwrap().trim_end_matches('\0').to_owned();
            (text(before), text(after))
        };
        // Every kernel has it and lets everybody use it.
        assert_eq!(of("reno").await.1, "reno");
        let (before, after) = of("auto").await;
        assert!(after == CONGESTION || after == before, "{before}, then {after}");
        let (before, after) = of("none_such").await;
        assert_eq!(before, after, "what the kernel does not have is not used");
    }

    #[test]
    fn a_rest_is_over_once_and_not_too_often() {
        let start = Instant::now();
        let mut rest = Rest::new(start);
        let mut over = |millis| rest.is_over(start + Duration::from_millis(millis));
        assert!(!over(100) && !over(2_000), "it has just begun");
        assert!(over(5_000), "after a rest");
        assert!(!over(5_100) && !over(8_000), "and again only after a while");
        let busy = (8_000..12_000).step_by(100).any(&mut over);
        assert!(!busy, "no rest");
        assert!(over(12_500));
    }

    #[tokio::test]
    async fn a_socket_that_begins_anew_has_the_same_congestion_control() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut taken = Sockets::new(Arc::default(), "auto".parse().unwrap()).take(stream);
        let stream = taken.stream.as_ref().unwrap();
        if !is_bbr(stream) {
            assert!(taken.rest.is_none());
            eprintln!("this kernel has no BBR");
            return;
        }
        let long_ago = Instant::now().checked_sub(BEGIN_EVERY * 2).unwrap();
        taken.rest = Some(Rest::new(long_ago));
        taken.sends();
        assert!(is_bbr(taken.stream.as_ref().unwrap()));
        assert!(taken.rest.unwrap().began > long_ago, "it has begun anew");
    }
}
