//! Moves bytes between two TCP sockets inside the kernel, through a pipe.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What the pipe should hold; a smaller one works as well, only slower.
const CAPACITY: i32 = 256 * 1024;

#[cfg(test)]
thread_local! {
    /// Bytes that this thread has spliced, so that tests know the method.
    pub(super) static SPLICED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// A pipe and the number of bytes in it.
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
}

impl Pipe {
    pub(super) fn new() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Refusal (the user's limit on pipe pages) leaves the default size, which works too.
        let _smaller = fcntl(&write, FcntlArg::F_SETPIPE_SZ(CAPACITY));
        Ok(Self { read, write, held: 0 })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes what the socket has into the empty pipe; 0 = end of stream.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(from.poll_read_ready(cx))?;
            // The pipe is empty, so "would block" can only mean that the socket is.
            match from.try_io(Interest::READABLE, || splice(from, &self.write, CAPACITY as usize)) {
                Ok(moved) => {
                    #[cfg(test)]
                    SPLICED.set(SPLICED.get() + moved);
                    self.held += moved;
                    return Poll::Ready(Ok(moved));
                }
                Err(error) if would_wait(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Gives what the pipe holds to the socket; says how much it took.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || splice(&self.read, to, self.held)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(moved) => {
                    self.held -= moved.min(self.held);
                    return Poll::Ready(Ok(moved));
                }
                Err(error) if would_wait(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

fn would_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn splice(from: impl AsFd, to: impl AsFd, length: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(nix::fcntl::splice(from, None, to, None, length, flags)?)
}
