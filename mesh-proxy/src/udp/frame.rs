//! Datagrams on a byte stream: two bytes of length, big-endian, then the payload. A datagram may be empty.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use mesh_net::udp::MAX_DATAGRAM;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Bytes of the length.
pub(crate) const HEADER: usize = 2;
/// Read at a time when nothing says that more is coming.
const CHUNK: usize = 2048;

/// A datagram with its length before it, or nothing if it is longer than any datagram.
pub(crate) fn frame(data: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(data.len()).ok().filter(|_| data.len() <= MAX_DATAGRAM)?;
    let mut out = Vec::with_capacity(HEADER + data.len());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(data);
    Some(out)
}

/// Takes datagrams off a stream.
#[derive(Debug)]
pub(crate) struct Frames<R> {
    stream: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// The next datagram; nothing at the stream's end. An end within a datagram is an error. What has been read of a
    /// datagram is kept when the future is dropped.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let needed = match self.length()? {
                Some(length) if self.buffer.len() >= HEADER + length => {
                    self.buffer.advance(HEADER);
                    let datagram = self.buffer.split_to(length).freeze();
                    if self.buffer.is_empty() {
                        // Between two datagrams a session holds no memory.
                        self.buffer = BytesMut::new();
                    }
                    return Ok(Some(datagram));
                }
                Some(length) => HEADER + length - self.buffer.len(),
                None => CHUNK,
            };
            self.buffer.reserve(needed.max(CHUNK));
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }

    fn length(&self) -> io::Result<Option<usize>> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*header));
        if length > MAX_DATAGRAM {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than any datagram"));
        }
        Ok(Some(length))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn boundaries_survive_whatever_the_stream_does() {
        let sizes = [0, 1, 2, 1472, 0, 65_507, 3];
        let mut bytes = Vec::new();
        for (i, n) in sizes.iter().enumerate() {
            bytes.extend(frame(&vec![i as u8; *n]).unwrap());
        }
        for piece in [1, 2, 3, 1000, 1 << 20] {
            let (read, mut write) = tokio::io::duplex(4096);
            let all = bytes.clone();
            let writer = async move {
                for part in all.chunks(piece) {
                    write.write_all(part).await.unwrap();
                }
            };
            let reader = async {
                let mut frames = Frames::new(read);
                for (i, n) in sizes.iter().enumerate() {
                    let got = frames.next().await.unwrap().unwrap();
                    assert_eq!(
                        (got.len(), got.iter().all(|b| *b == i as u8)),
                        (*n, true),
                        "pieces of {piece}"
                    );
                }
                assert!(frames.next().await.unwrap().is_none());
            };
            tokio::join!(writer, reader);
        }
    }

    #[tokio::test]
    async fn garbage_and_cut_streams_are_errors() {
        let mut frames = Frames::new(&[0xff, 0xff, 0][..]);
        assert_eq!(frames.next().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        for cut in [&[0_u8][..], &[0, 3, 1, 2]] {
            let error = Frames::new(cut).next().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
        assert!(frame(&[0; MAX_DATAGRAM + 1]).is_none());
    }
}
