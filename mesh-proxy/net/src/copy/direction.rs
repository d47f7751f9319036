//! One direction of a copy: read, write, pass the end on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Sockets;
use super::pool::{Buffer, SIZES, give_pipe, take_pipe};
use super::splice::Pipe;

/// Chunks moved before other connections of the thread get their turn: at most 1 MiB by copying.
const TURN: usize = 16;
/// Reads of at least this size count as bulk.
const BULK_READ: usize = 8 * 1024;
/// Bulk in a row before the direction splices: below, copying is cheaper.
const BULK_AFTER: usize = 64 * 1024;
/// A splice that moved less than this was not worth it.
const SMALL_SPLICE: usize = 4 * 1024;
/// So many small splices in a row end splicing.
const SMALL_SPLICES: u32 = 8;

pub(super) enum Failure {
    Read(io::Error),
    Write(io::Error),
}

enum State {
    Open,
    ShuttingDown,
    Done,
}

/// Bytes read and not taken yet.
struct Held {
    buffer: Buffer,
    start: usize,
    end: usize,
}

pub(super) struct Direction {
    state: State,
    held: Option<Held>,
    pipe: Option<Pipe>,
    /// Index into [`SIZES`] for the next read.
    class: usize,
    bulk: usize,
    splicing: bool,
    small_splices: u32,
    unflushed: bool,
    moved: bool,
    total: u64,
}

impl Direction {
    pub(super) fn new() -> Self {
        Self {
            state: State::Open,
            held: None,
            pipe: None,
            class: 0,
            bulk: 0,
            splicing: false,
            small_splices: 0,
            unflushed: false,
            moved: false,
            total: 0,
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Whether bytes have moved since the last question.
    pub(super) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Moves what can be moved now; ready once the end of `from` has been passed on to `to`.
    pub(super) fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        sockets: Sockets<R, W>,
        observe: &dyn Fn(u64),
    ) -> Poll<Result<(), Failure>>
    where
        R: AsyncRead + Unpin + ?Sized,
        W: AsyncWrite + Unpin + ?Sized,
    {
        for _ in 0..TURN {
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                State::ShuttingDown => {
                    // Not every writer flushes when it is shut down.
                    ready!(self.poll_flush(cx, to))?;
                    ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Failure::Write)?;
                    self.state = State::Done;
                    return Poll::Ready(Ok(()));
                }
                State::Open => {}
            }
            ready!(self.poll_held(cx, to, observe))?;
            let sockets = if self.splicing { sockets(from, to) } else { None };
            match sockets {
                Some((from, to)) => ready!(self.poll_splice(cx, from, to, observe))?,
                None => ready!(self.poll_copy(cx, from, to, observe))?,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn count(&mut self, bytes: usize, observe: &dyn Fn(u64)) {
        self.moved = true;
        self.total += bytes as u64;
        observe(bytes as u64);
    }

    /// Writes what an earlier turn could not.
    fn poll_held<W>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
        observe: &dyn Fn(u64),
    ) -> Poll<Result<(), Failure>>
    where
        W: AsyncWrite + Unpin + ?Sized,
    {
        while let Some(mut held) = self.held.take() {
            match Pin::new(&mut *to).poll_write(cx, &held.buffer[held.start..held.end]) {
                Poll::Pending => {
                    self.held = Some(held);
                    return self.poll_flush(cx, to).and_pending();
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::Write(error))),
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(Failure::Write(io::ErrorKind::WriteZero.into())));
                }
                Poll::Ready(Ok(written)) => {
                    self.unflushed = true;
                    self.count(written, observe);
                    held.start += written;
                    if held.start < held.end {
                        self.held = Some(held);
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush<W>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<Result<(), Failure>>
    where
        W: AsyncWrite + Unpin + ?Sized,
    {
        if self.unflushed {
            ready!(Pin::new(to).poll_flush(cx)).map_err(Failure::Write)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// One chunk through a buffer.
    fn poll_copy<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        observe: &dyn Fn(u64),
    ) -> Poll<Result<(), Failure>>
    where
        R: AsyncRead + Unpin + ?Sized,
        W: AsyncWrite + Unpin + ?Sized,
    {
        let mut buffer = Buffer::take(self.class);
        let mut read = ReadBuf::new(&mut buffer);
        match Pin::new(from).poll_read(cx, &mut read) {
            Poll::Pending => {
                drop(buffer);
                // Nothing more for now, so what was written must not wait in the writer.
                return self.poll_flush(cx, to).and_pending();
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::Read(error))),
            Poll::Ready(Ok(())) => {}
        }
        let end = read.filled().len();
        if end == 0 {
            self.state = State::ShuttingDown;
            return Poll::Ready(Ok(()));
        }
        self.learn(end);
        self.held = Some(Held { buffer, start: 0, end });
        self.poll_held(cx, to, observe)
    }

    /// Adapts buffer size and method to what the last read gave.
    fn learn(&mut self, read: usize) {
        let size = SIZES[self.class];
        if read == size && self.class + 1 < SIZES.len() {
            self.class += 1;
        } else if read < size / 8 && self.class > 0 {
            self.class -= 1;
        }
        if read >= BULK_READ {
            self.bulk += read;
            self.splicing = self.bulk >= BULK_AFTER;
        } else if read < size {
            self.bulk = 0;
        }
    }

    /// One pipe full.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        from: &tokio::net::TcpStream,
        to: &tokio::net::TcpStream,
        observe: &dyn Fn(u64),
    ) -> Poll<Result<(), Failure>> {
        let mut pipe = match self.pipe.take().map_or_else(take_pipe, Ok) {
            Ok(pipe) => pipe,
            Err(_no_descriptors) => {
                self.stop_splicing();
                return Poll::Ready(Ok(()));
            }
        };
        if pipe.is_empty() {
            match pipe.poll_fill(cx, from) {
                Poll::Pending => {
                    give_pipe(pipe);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => {
                    give_pipe(pipe);
                    self.state = State::ShuttingDown;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(moved)) => {
                    self.small_splices = if moved < SMALL_SPLICE { self.small_splices + 1 } else { 0 };
                }
                Poll::Ready(Err(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
                    // This kind of socket cannot be spliced.
                    self.stop_splicing();
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::Read(error))),
            }
        }
        while !pipe.is_empty() {
            match pipe.poll_drain(cx, to) {
                Poll::Pending => {
                    self.pipe = Some(pipe);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(moved)) => self.count(moved, observe),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::Write(error))),
            }
        }
        if self.small_splices >= SMALL_SPLICES {
            give_pipe(pipe);
            self.stop_splicing();
        } else {
            self.pipe = Some(pipe);
        }
        Poll::Ready(Ok(()))
    }

    fn stop_splicing(&mut self) {
        self.splicing = false;
        self.bulk = 0;
        self.small_splices = 0;
        self.class = 0;
    }
}

/// Turns "done" into "pending": the caller waits for something else that is registered already.
trait AndPending {
    fn and_pending(self) -> Self;
}

impl<E> AndPending for Poll<Result<(), E>> {
    fn and_pending(self) -> Self {
        match self {
            Poll::Ready(Ok(())) => Poll::Pending,
            other => other,
        }
    }
}
