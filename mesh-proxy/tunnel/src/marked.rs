//! Tells a clean end from an abort on transports whose streams do not: a QUIC stream that is dropped ends cleanly for
//! the peer. Bytes travel in chunks with a length of two bytes; a chunk of length 0 is the end, and an end of the
//! stream without it is an abort.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures::{AsyncRead, AsyncWrite};
use tokio::io::ReadBuf;

/// Largest chunk that is written; any length is read.
const MAX_CHUNK: usize = 32 * 1024;
/// A chunk of this size goes to the transport from where the caller has it; a smaller one is put behind its length, so
/// that both are one write.
const DIRECT: usize = 4 * 1024;
/// Writes wait while this much is not yet taken by the transport.
const MAX_PENDING: usize = 64 * 1024;

#[derive(Debug)]
pub(crate) struct Marked<S> {
    inner: S,
    /// Bytes that arrived with the open message or its answer.
    early: Bytes,
    head: Head,
    out: Vec<u8>,
    taken: usize,
    end_sent: bool,
}

/// Where the reader stands in the chunk format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    Length,
    LengthLow(u8),
    Body(u16),
    End,
}

impl Head {
    /// Moves the payload within `bytes` to its front; gives its size.
    fn compact(&mut self, bytes: &mut [u8]) -> usize {
        let (mut from, mut to) = (0, 0);
        while from < bytes.len() {
            match *self {
                Self::Length => {
                    *self = Self::LengthLow(bytes[from]);
                    from += 1;
                }
                Self::LengthLow(high) => {
                    let len = u16::from_be_bytes([high, bytes[from]]);
                    *self = if len == 0 { Self::End } else { Self::Body(len) };
                    from += 1;
                }
                Self::Body(left) => {
                    let n = usize::from(left).min(bytes.len() - from);
                    if from != to {
                        bytes.copy_within(from..from + n, to);
                    }
                    (from, to) = (from + n, to + n);
                    // `n` is at most `left`, so it fits.
                    let left = left - n as u16;
                    *self = if left == 0 { Self::Length } else { Self::Body(left) };
                }
                // Nothing follows the end.
                Self::End => break,
            }
        }
        to
    }
}

/// Bytes of a length.
const LENGTH: usize = 2;

/// What precedes a chunk of `len` bytes, which is not more than 65,535.
pub(crate) fn head(len: usize) -> [u8; LENGTH] {
    (len as u16).to_be_bytes()
}

impl<S: AsyncRead + AsyncWrite + Unpin> Marked<S> {
    /// The stream below, for what comes before the first chunk, and where to put the bytes that came with that.
    pub(crate) fn before_first(&mut self) -> (&mut S, &mut Bytes) {
        (&mut self.inner, &mut self.early)
    }

    pub(crate) fn new(inner: S, early: Bytes) -> Self {
        Self { inner, early, head: Head::Length, out: Vec::new(), taken: 0, end_sent: false }
    }

    pub(crate) fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.head == Head::End {
                return Poll::Ready(Ok(()));
            }
            let space = buf.initialize_unfilled();
            let n = if this.early.is_empty() {
                // Of what follows the chunk only the next length, which then need not be cut out of the middle.
                let most = match this.head {
                    Head::Body(left) => space.len().min(usize::from(left) + LENGTH),
                    _ => space.len(),
                };
                let space = &mut space[..most];
                match ready!(Pin::new(&mut this.inner).poll_read(cx, space))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                    n => n,
                }
            } else {
                let n = this.early.len().min(space.len());
                this.early.copy_to_slice(&mut space[..n]);
                n
            };
            let payload = this.head.compact(&mut space[..n]);
            buf.advance(payload);
            if payload > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    pub(crate) fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.end_sent {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let chunk = &buf[..buf.len().min(MAX_CHUNK)];
        if chunk.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if chunk.len() >= DIRECT || this.out.len() - this.taken >= MAX_PENDING {
            ready!(this.poll_drain(cx))?;
        }
        if chunk.len() >= DIRECT {
            this.write_direct(cx, chunk)?;
        } else {
            this.out.extend_from_slice(&head(chunk.len()));
            this.out.extend_from_slice(chunk);
            if let Poll::Ready(Err(e)) = this.poll_drain(cx) {
                return Poll::Ready(Err(e));
            }
        }
        Poll::Ready(Ok(chunk.len()))
    }

    /// Hands a chunk to the transport; what the transport has no room for is kept, because its length is already said.
    fn write_direct(&mut self, cx: &mut Context<'_>, chunk: &[u8]) -> io::Result<()> {
        for part in [&head(chunk.len())[..], chunk] {
            let mut taken = 0;
            while taken < part.len() && self.out.is_empty() {
                match Pin::new(&mut self.inner).poll_write(cx, &part[taken..])? {
                    Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(n) => taken += n,
                    Poll::Pending => break,
                }
            }
            self.out.extend_from_slice(&part[taken..]);
        }
        Ok(())
    }

    pub(crate) fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    pub(crate) fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.end_sent {
            this.end_sent = true;
            this.out.extend_from_slice(&[0, 0]);
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_close(cx)
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.taken < self.out.len() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &self.out[self.taken..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.taken += n,
            }
        }
        self.out.clear();
        self.taken = 0;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::io::Cursor;
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    async fn read_all<S: AsyncRead + AsyncWrite + Unpin>(
        marked: &mut Marked<S>,
        step: usize,
    ) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let mut space = vec![0; step];
            let mut buf = ReadBuf::new(&mut space);
            poll_fn(|cx| Pin::new(&mut *marked).poll_read(cx, &mut buf)).await?;
            if buf.filled().is_empty() {
                return Ok(all);
            }
            all.extend_from_slice(buf.filled());
        }
    }

    #[tokio::test]
    async fn bytes_and_the_end_survive_any_cut() {
        let sent: Vec<u8> = (0..100_000u32).map(|i| (i % 241) as u8).collect();
        for step in [1, 2, 3, 1000, 70_000] {
            let (near, far) = tokio::io::duplex(777);
            let (mut near, mut far) =
                (Marked::new(near.compat(), Bytes::new()), Marked::new(far.compat(), Bytes::new()));
            let sending = async {
                let mut at = 0;
                while at < sent.len() {
                    at += poll_fn(|cx| Pin::new(&mut near).poll_write(cx, &sent[at..])).await.unwrap();
                }
                poll_fn(|cx| Pin::new(&mut near).poll_shutdown(cx)).await.unwrap();
                let late = poll_fn(|cx| Pin::new(&mut near).poll_write(cx, b"late")).await;
                assert_eq!(late.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            };
            let ((), back) = tokio::join!(sending, read_all(&mut far, step));
            assert!(back.unwrap() == sent, "step {step}");
        }
    }

    #[tokio::test]
    async fn bytes_that_came_early_are_read_first_and_a_missing_end_is_a_reset() {
        let early = Bytes::from_static(&[0, 5, b'h', b'e']);
        let rest = |bytes: &'static [u8]| Cursor::new(bytes.to_vec());
        let mut whole = Marked::new(rest(b"llo\0\x01!\0\0ignored"), early.clone());
        assert_eq!(read_all(&mut whole, 4).await.unwrap(), b"hello!");
        for cut in [&b""[..], b"llo", b"llo\0", b"llo\0\x02x"] {
            let mut torn = Marked::new(rest(cut), early.clone());
            assert_eq!(
                read_all(&mut torn, 4).await.unwrap_err().kind(),
                io::ErrorKind::ConnectionReset,
                "{cut:?}"
            );
        }
    }
}
