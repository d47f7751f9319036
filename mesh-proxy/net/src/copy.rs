//! Copies between two streams in both directions until both have ended.
//!
//! A connection owns no buffer: bytes are read into the thread's scratch buffer and written from
//! there. Only what the other side does not take at once moves to a buffer of the thread's pool,
//! until it is taken. Idle connections so cost nothing, and no chunk costs an allocation. Between
//! two TCP sockets a direction that carries bulk moves by `splice(2)`.

mod direction;
mod pool;
mod splice;

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::Prefixed;
use direction::{Direction, Failure};

/// How to copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyOptions {
    /// End when no byte has moved in either direction for this long (up to a quarter longer).
    pub idle: Option<Duration>,
    /// Never use `splice(2)`, for comparison.
    pub no_splice: bool,
}

/// Told about every chunk, while the connection lives.
pub trait Observe {
    /// Bytes written to `b`.
    fn a_to_b(&self, bytes: u64);
    /// Bytes written to `a`.
    fn b_to_a(&self, bytes: u64);
}

impl Observe for () {
    fn a_to_b(&self, _bytes: u64) {}
    fn b_to_a(&self, _bytes: u64) {}
}

/// The simplest observer.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes written to `b`.
    pub a_to_b: AtomicU64,
    /// Bytes written to `a`.
    pub b_to_a: AtomicU64,
}

impl Observe for Counters {
    fn a_to_b(&self, bytes: u64) {
        self.a_to_b.fetch_add(bytes, Ordering::Relaxed);
    }
    fn b_to_a(&self, bytes: u64) {
        self.b_to_a.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Bytes moved by a connection that both sides ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// From `a` to `b`.
    pub a_to_b: u64,
    /// From `b` to `a`.
    pub b_to_a: u64,
}

/// Which of the two streams failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first argument.
    A,
    /// The second argument.
    B,
}

/// Why a copy ended before both sides did.
#[derive(Debug)]
pub enum CopyError {
    /// Reading from this side failed.
    Read(Side, io::Error),
    /// Writing to this side failed.
    Write(Side, io::Error),
    /// Nothing moved for too long.
    Idle,
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(side, _) => write!(f, "reading from side {side:?} failed"),
            Self::Write(side, _) => write!(f, "writing to side {side:?} failed"),
            Self::Idle => f.write_str("idle for too long"),
        }
    }
}

impl std::error::Error for CopyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read(_, error) | Self::Write(_, error) => Some(error),
            Self::Idle => None,
        }
    }
}

/// Copies until both directions have ended. The end of one direction is passed on as a half-close.
pub async fn copy_bidirectional<A, B, O>(
    a: &mut A,
    b: &mut B,
    options: CopyOptions,
    observer: &O,
) -> Result<Copied, CopyError>
where
    A: AsyncRead + AsyncWrite + Unpin + ?Sized,
    B: AsyncRead + AsyncWrite + Unpin + ?Sized,
    O: Observe + ?Sized,
{
    run(a, b, options, observer, (|_, _| None, |_, _| None)).await
}

/// As [`copy_bidirectional`], for two TCP sockets, with `splice(2)` for bulk.
pub async fn copy_tcp<O>(
    a: &mut Prefixed<TcpStream>,
    b: &mut Prefixed<TcpStream>,
    options: CopyOptions,
    observer: &O,
) -> Result<Copied, CopyError>
where
    O: Observe + ?Sized,
{
    if options.no_splice {
        run(a, b, options, observer, (|_, _| None, |_, _| None)).await
    } else {
        run(a, b, options, observer, (both_sockets, both_sockets)).await
    }
}

/// The sockets themselves, once nothing is left to be replayed.
fn both_sockets<'s>(
    from: &'s Prefixed<TcpStream>,
    to: &'s Prefixed<TcpStream>,
) -> Option<(&'s TcpStream, &'s TcpStream)> {
    from.prefix().is_empty().then(|| (from.get_ref(), to.get_ref()))
}

/// Gives the sockets of two streams when both are plain TCP.
type Sockets<R, W> = for<'s> fn(&'s R, &'s W) -> Option<(&'s TcpStream, &'s TcpStream)>;

async fn run<A, B, O>(
    a: &mut A,
    b: &mut B,
    options: CopyOptions,
    observer: &O,
    sockets: (Sockets<A, B>, Sockets<B, A>),
) -> Result<Copied, CopyError>
where
    A: AsyncRead + AsyncWrite + Unpin + ?Sized,
    B: AsyncRead + AsyncWrite + Unpin + ?Sized,
    O: Observe + ?Sized,
{
    let mut forth = Direction::new();
    let mut back = Direction::new();
    let mut idle = options.idle.map(IdleCheck::new);
    let mut sleep = pin!(idle.as_ref().map(|check| tokio::time::sleep(check.tick)));
    poll_fn(|cx| {
        let first = forth.poll(cx, a, b, sockets.0, &|bytes| observer.a_to_b(bytes));
        let second = back.poll(cx, b, a, sockets.1, &|bytes| observer.b_to_a(bytes));
        let forth_done = ended(first, Side::A, Side::B)?;
        let back_done = ended(second, Side::B, Side::A)?;
        if forth_done && back_done {
            return Poll::Ready(Ok(Copied { a_to_b: forth.total(), b_to_a: back.total() }));
        }
        if let (Some(check), Some(sleep)) = (&mut idle, sleep.as_mut().as_pin_mut()) {
            let moved = forth.take_moved() | back.take_moved();
            if check.poll(cx, sleep, moved).is_ready() {
                return Poll::Ready(Err(CopyError::Idle));
            }
        }
        Poll::Pending
    })
    .await
}

fn ended(result: Poll<Result<(), Failure>>, from: Side, to: Side) -> Result<bool, CopyError> {
    match result {
        Poll::Pending => Ok(false),
        Poll::Ready(Ok(())) => Ok(true),
        Poll::Ready(Err(Failure::Read(error))) => Err(CopyError::Read(from, error)),
        Poll::Ready(Err(Failure::Write(error))) => Err(CopyError::Write(to, error)),
    }
}

/// Ticks of the idle timer in one idle period: moving its deadline for each chunk would cost more
/// than the chunk.
const TICKS: u32 = 4;

struct IdleCheck {
    tick: Duration,
    moved: bool,
    quiet: u32,
}

impl IdleCheck {
    fn new(idle: Duration) -> Self {
        Self { tick: (idle / TICKS).max(Duration::from_millis(1)), moved: false, quiet: 0 }
    }

    /// Ready once nothing has moved for all ticks of a period.
    fn poll(&mut self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>, moved: bool) -> Poll<()> {
        self.moved |= moved;
        while sleep.as_mut().poll(cx).is_ready() {
            self.quiet = if std::mem::take(&mut self.moved) { 0 } else { self.quiet + 1 };
            if self.quiet >= TICKS {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(Instant::now() + self.tick);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
