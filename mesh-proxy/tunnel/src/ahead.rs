//! Reads ahead on a circuit: TLS asks for 4 KiB at a time, and each question to a stream of QUIC or of the muxer takes a
//! lock. A buffer is held only while there are bytes in it.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite};

/// Bytes that one question asks for.
const AHEAD: usize = 64 << 10;
/// Buffers that a thread keeps.
const KEPT: usize = 4;

thread_local! {
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
pub(crate) struct Ahead<C> {
    io: C,
    buffer: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl<C> Ahead<C> {
    pub(crate) fn new(io: C) -> Self {
        Self { io, buffer: None, start: 0, end: 0 }
    }

    fn take(&mut self, buf: &mut [u8]) -> usize {
        let Some(buffer) = &self.buffer else { return 0 };
        let n = buf.len().min(self.end - self.start);
        buf[..n].copy_from_slice(&buffer[self.start..self.start + n]);
        self.start += n;
        if self.start == self.end {
            give(self.buffer.take());
        }
        n
    }
}

fn give(buffer: Option<Box<[u8]>>) {
    BUFFERS.with_borrow_mut(|kept| {
        if kept.len() < KEPT {
            kept.extend(buffer);
        }
    });
}

impl<C: AsyncRead + Unpin> AsyncRead for Ahead<C> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.buffer.is_none() {
            let kept = BUFFERS.with_borrow_mut(Vec::pop);
            let mut buffer = kept.unwrap_or_else(|| vec![0; AHEAD].into_boxed_slice());
            let read = Pin::new(&mut this.io).poll_read(cx, &mut buffer);
            match read {
                Poll::Ready(Ok(n)) if n > 0 => (this.buffer, this.start, this.end) = (Some(buffer), 0, n),
                _ => {
                    give(Some(buffer));
                    ready!(read)?;
                }
            }
        }
        Poll::Ready(Ok(this.take(buf)))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Ahead<C> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt, AsyncWriteExt, executor::block_on, io::Cursor};

    use super::*;

    /// Counts what it is asked.
    struct Asked(Cursor<Vec<u8>>, usize);

    impl AsyncRead for Asked {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            self.1 += 1;
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    #[test]
    fn small_reads_become_large_ones_and_the_end_is_seen() {
        let all: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        let mut ahead = Ahead::new(Asked(Cursor::new(all.clone()), 0));
        let (mut got, mut small) = (Vec::new(), [0; 4096]);
        loop {
            match block_on(ahead.read(&mut small)).unwrap() {
                0 => break,
                n => got.extend_from_slice(&small[..n]),
            }
        }
        assert!(got == all);
        assert_eq!(ahead.io.1, 6, "five reads and the end");
        assert!(ahead.buffer.is_none(), "an idle circuit holds none");
        let mut ahead = Ahead::new(Cursor::new(Vec::new()));
        block_on(ahead.write_all(b"passes")).unwrap();
        assert_eq!(ahead.io.into_inner(), b"passes");
    }
}
