//! Copies a circuit. Buffers are borrowed only while bytes are under way, so an idle circuit costs none. After its
//! share a circuit gives way to the others on its thread; the share shrinks with the number of circuits that the same
//! peer has, so that peers, not circuits, get equal parts.

use std::{
    cell::RefCell,
    future::Future,
    io,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures::{AsyncRead, AsyncWrite};
use tokio::time::{Sleep, sleep_until};

use super::Circuit;

/// Bytes that the circuits of one peer move together before others have their turn.
const TURN: usize = 256 << 10;
/// A circuit moves at least this much at a time.
const MIN_TURN: usize = 8 << 10;
/// Buffers that a thread keeps.
const KEPT: usize = 8;
/// Longest burst of a peer that has a rate.
const BURST: Duration = Duration::from_millis(250);

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn take(size: usize) -> Vec<u8> {
    let kept = BUFFERS.with_borrow_mut(Vec::pop);
    match kept {
        Some(buffer) if buffer.len() == size => buffer,
        _ => vec![0; size],
    }
}

fn give(buffer: Vec<u8>) {
    BUFFERS.with_borrow_mut(|kept| {
        if kept.len() < KEPT {
            kept.push(buffer);
        }
    });
}

/// A rate that the circuits of one peer share.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: Option<f64>,
    /// When all that was taken so far is paid for.
    paid: Mutex<Option<Instant>>,
}

impl Bucket {
    pub(crate) fn new(rate: Option<u64>) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no 53 bits")]
        Self { rate: rate.map(|r| r.max(1) as f64), paid: Mutex::new(None) }
    }

    /// Takes `bytes`; gives when the next ones may be taken, if that is not now.
    fn pay(&self, bytes: usize, now: Instant) -> Option<Instant> {
        let rate = self.rate?;
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no 53 bits")]
        let cost = Duration::from_secs_f64(bytes as f64 / rate);
        let until = paid.filter(|p| *p > now).unwrap_or(now) + cost;
        *paid = Some(until);
        (until > now + BURST).then(|| until - BURST)
    }
}

#[derive(Debug, Default)]
struct Half {
    buffer: Option<Vec<u8>>,
    start: usize,
    end: usize,
    ended: bool,
    closed: bool,
    unflushed: bool,
    moved: u64,
}

impl Half {
    /// Moves bytes until nothing can be read or written, or `budget` is used up.
    fn transfer<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        (from, to): (&mut R, &mut W),
        budget: &mut usize,
        size: usize,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while !self.closed {
            if let Some(buffer) = &self.buffer {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, &buffer[self.start..self.end]))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.unflushed = true;
                self.start += n;
                self.moved += n as u64;
                *budget = budget.saturating_sub(n);
                if self.start == self.end
                    && let Some(buffer) = self.buffer.take()
                {
                    give(buffer);
                }
                continue;
            }
            if self.ended {
                ready!(Pin::new(&mut *to).poll_close(cx))?;
                self.closed = true;
                break;
            }
            if *budget == 0 {
                return Poll::Pending;
            }
            let most = size.min(*budget);
            let mut buffer = take(size);
            match Pin::new(&mut *from).poll_read(cx, &mut buffer[..most]) {
                Poll::Ready(Ok(0)) => {
                    give(buffer);
                    self.ended = true;
                }
                Poll::Ready(Ok(n)) => (self.buffer, self.start, self.end) = (Some(buffer), 0, n),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => {
                    give(buffer);
                    if self.unflushed && Pin::new(&mut *to).poll_flush(cx)?.is_ready() {
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Why a circuit ended.
#[derive(Debug)]
pub(crate) enum Ends {
    /// Both sides said so.
    Done,
    /// It is too old.
    Duration,
    /// It has moved too much.
    Bytes,
    /// A side is gone.
    Lost(io::Error),
}

/// A circuit that is being copied.
#[derive(Debug)]
pub(crate) struct Copy<A, B> {
    circuit: Circuit,
    source: A,
    destination: B,
    forth: Half,
    back: Half,
    counted: u64,
    old: Option<Pin<Box<Sleep>>>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<A, B> Copy<A, B> {
    pub(crate) fn new(circuit: Circuit, source: A, destination: B) -> Self {
        let old = circuit.server.limits.duration;
        let old = old.map(|d| Box::pin(sleep_until((Instant::now() + d).into())));
        let (forth, back) = (Half::default(), Half::default());
        Self { circuit, source, destination, forth, back, counted: 0, old, pause: None }
    }
}

impl<A, B> Future for Copy<A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    type Output = Ends;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ends> {
        let this = self.get_mut();
        if this.old.as_mut().is_some_and(|old| old.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Ends::Duration);
        }
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(cx));
            this.pause = None;
        }
        let size = this.circuit.server.limits.buffer;
        let turn = (TURN / this.circuit.siblings()).max(MIN_TURN);
        let (mut forth, mut back) = (turn, turn);
        let a = this.forth.transfer(cx, (&mut this.source, &mut this.destination), &mut forth, size);
        let b = this.back.transfer(cx, (&mut this.destination, &mut this.source), &mut back, size);
        let moved = this.forth.moved + this.back.moved;
        let new = moved - this.counted;
        this.counted = moved;
        if new > 0 {
            this.circuit.server.moved(new);
            let now = Instant::now();
            let new = usize::try_from(new).unwrap_or(usize::MAX);
            if let Some(until) = this.circuit.bucket.pay(new, now) {
                this.pause = Some(Box::pin(sleep_until(until.into())));
            }
        }
        match (a, b) {
            (Poll::Ready(Err(e)), _) | (_, Poll::Ready(Err(e))) => return Poll::Ready(Ends::Lost(e)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ends::Done),
            _ => {}
        }
        if this.circuit.server.limits.bytes.is_some_and(|most| moved >= most) {
            return Poll::Ready(Ends::Bytes);
        }
        // A side that used up its share goes on after the others, or after the pause.
        let go_on = match &mut this.pause {
            Some(pause) => pause.as_mut().poll(cx).is_ready(),
            None => forth == 0 || back == 0,
        };
        if go_on {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::{AsyncReadExt, AsyncWriteExt};
    use libp2p::{PeerId, swarm::ConnectionId};
    use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

    use super::{super::Server, *};
    use crate::nat::{metrics::Metrics, settings::RelayConfig};

    type Pipe = Compat<tokio::io::DuplexStream>;

    fn server(change: impl FnOnce(&mut RelayConfig)) -> Arc<Server> {
        let mut limits = RelayConfig::default();
        change(&mut limits);
        Server::new(limits, Metrics::new(&prometheus::Registry::new()).unwrap())
    }

    /// Two ends of a circuit that is being copied.
    fn circuit(server: &Arc<Server>, source: PeerId) -> (Pipe, Pipe, Copy<Pipe, Pipe>) {
        let destination = PeerId::random();
        server.reserve(destination, ConnectionId::new_unchecked(1), true).unwrap();
        let (circuit, _) = server.connect(source, destination, true).unwrap();
        let (a, a_relay) = tokio::io::duplex(256 << 10);
        let (b, b_relay) = tokio::io::duplex(256 << 10);
        (a.compat(), b.compat(), Copy::new(circuit, a_relay.compat(), b_relay.compat()))
    }

    #[tokio::test]
    async fn bytes_and_half_close_pass_both_ways() {
        let server = server(|_| {});
        let (mut a, mut b, copy) = circuit(&server, PeerId::random());
        let talk = async {
            let sent: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
            let mut got = Vec::new();
            let write = async {
                a.write_all(&sent).await.unwrap();
                a.close().await.unwrap();
            };
            let ((), read) = tokio::join!(write, b.read_to_end(&mut got));
            read.unwrap();
            assert!(got == sent);
            b.write_all(b"back").await.unwrap();
            b.close().await.unwrap();
            let mut back = Vec::new();
            a.read_to_end(&mut back).await.unwrap();
            assert_eq!(back, b"back");
        };
        let (end, ()) = tokio::join!(copy, talk);
        assert!(matches!(end, Ends::Done), "{end:?}");
    }

    #[tokio::test]
    async fn a_limit_of_bytes_or_age_ends_it() {
        let bytes = server(|l| l.bytes = Some(100_000));
        let (mut a, mut b, copy) = circuit(&bytes, PeerId::random());
        let talk = async {
            let _ = a.write_all(&vec![1; 150_000]).await;
            let mut got = Vec::new();
            let _ = b.read_to_end(&mut got).await;
            assert!(got.len() >= 100_000 && got.len() < 250_000);
        };
        let (end, ()) = tokio::join!(copy, talk);
        assert!(matches!(end, Ends::Bytes), "{end:?}");
        let age = server(|l| l.duration = Some(Duration::from_millis(20)));
        let (_a, _b, copy) = circuit(&age, PeerId::random());
        assert!(matches!(copy.await, Ends::Duration));
    }

    #[tokio::test]
    async fn a_side_that_vanishes_ends_it() {
        let server = server(|_| {});
        let (a, mut b, copy) = circuit(&server, PeerId::random());
        drop(a);
        b.write_all(b"x").await.unwrap();
        drop(b);
        let _ended = copy.await;
    }

    #[test]
    fn a_rate_is_shared_and_allows_a_burst() {
        let (bucket, now) = (Bucket::new(Some(1_000_000)), Instant::now());
        assert_eq!(bucket.pay(200_000, now), None);
        let until = bucket.pay(300_000, now).unwrap();
        assert_eq!(until - now, Duration::from_millis(250));
        assert_eq!(bucket.pay(100_000, now + Duration::from_secs(10)), None);
        assert_eq!(Bucket::new(None).pay(usize::MAX, now), None);
    }

    #[tokio::test]
    async fn a_peer_with_many_circuits_gets_no_more_than_one_with_a_single_one() {
        // Four circuits of one peer against one of another, on one thread, for as long as the single one needs.
        let server = server(|l| l.buffer = 16 << 10);
        let (greedy, modest) = (PeerId::random(), PeerId::random());
        let mut tasks = tokio::task::JoinSet::new();
        let total = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let pump = |mut a: Pipe,
                    mut b: Pipe,
                    count: Option<Arc<std::sync::atomic::AtomicU64>>,
                    most: usize| async move {
            let write = async {
                let chunk = vec![0; 64 << 10];
                for _ in 0..most / chunk.len() {
                    a.write_all(&chunk).await.unwrap();
                }
                a.close().await.unwrap();
            };
            let read = async {
                let mut chunk = vec![0; 64 << 10];
                loop {
                    match b.read(&mut chunk).await.unwrap() {
                        0 => break,
                        n => {
                            if let Some(count) = &count {
                                count.fetch_add(n as u64, std::sync::atomic::Ordering::Relaxed);
                            }
                        }
                    }
                }
            };
            tokio::join!(write, read);
        };
        let mut all = Vec::new();
        for source in [greedy; 4].into_iter().chain([modest]) {
            all.push(circuit(&server, source));
        }
        let (a, b, copy) = all.pop().unwrap();
        for (a, b, copy) in all {
            tasks.spawn(async move {
                copy.await;
            });
            tasks.spawn(pump(a, b, Some(total.clone()), 1 << 30));
        }
        tasks.spawn(async move {
            copy.await;
        });
        let bytes = 32 << 20;
        // A task of its own like the others: the runtime polls what it blocks on less often.
        let modest = tasks.spawn(pump(a, b, None, bytes));
        while !modest.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let others = total.load(std::sync::atomic::Ordering::Relaxed);
        assert!(others < 3 * bytes as u64, "the one moved {bytes}, the four of the other {others}");
        tasks.abort_all();
    }
}
