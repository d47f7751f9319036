//! The open message and its answer: a varint length, then protobuf, at most [`MAX_MESSAGE`] bytes.

use bytes::{Buf, Bytes, BytesMut};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use mesh_api::model::{TunnelAnswer, TunnelOpen, tunnel_answer::Code};
use prost::Message;

use crate::error::Refusal;

/// Protocol of a tunnel stream.
pub(crate) const PROTOCOL: &str = "/selvage/tunnel/1";
/// Version that this build writes into the open message.
pub(crate) const VERSION: u32 = 1;
/// Largest message, without its length.
pub(crate) const MAX_MESSAGE: usize = 4096;
/// Longest detail text that an owner sends.
const MAX_DETAIL: usize = 512;

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("stream ended before the message")]
    Ended,
    #[error("message is larger than {MAX_MESSAGE} bytes")]
    TooLarge,
    #[error("message is not understood")]
    Malformed,
    #[error("read message")]
    Io(#[source] std::io::Error),
}

/// Length prefix of a message: its value and its own size; `None` when more bytes are needed.
pub(crate) fn length(bytes: &[u8]) -> Result<Option<(usize, usize)>, ReadError> {
    let mut value = 0usize;
    for (i, b) in bytes.iter().take(2).enumerate() {
        value |= usize::from(b & 0x7f) << (7 * i);
        if b & 0x80 == 0 {
            return if value > MAX_MESSAGE { Err(ReadError::TooLarge) } else { Ok(Some((value, i + 1))) };
        }
    }
    // A third byte would mean 16 KiB or more (or a padded encoding, which nobody needs).
    if bytes.len() >= 2 { Err(ReadError::TooLarge) } else { Ok(None) }
}

/// Reads one message; gives the bytes that followed it.
pub(crate) async fn read<M: Message + Default>(
    io: &mut (impl AsyncRead + Unpin),
) -> Result<(M, Bytes), ReadError> {
    let mut buffer = BytesMut::with_capacity(512);
    loop {
        if let Some((len, prefix)) = length(&buffer)?
            && buffer.len() >= prefix + len
        {
            buffer.advance(prefix);
            let message = M::decode(buffer.split_to(len)).map_err(|_| ReadError::Malformed)?;
            return Ok((message, buffer.freeze()));
        }
        let filled = buffer.len();
        buffer.resize(filled + 512, 0);
        let n = io.read(&mut buffer[filled..]).await.map_err(ReadError::Io)?;
        buffer.truncate(filled + n);
        if n == 0 {
            return Err(ReadError::Ended);
        }
    }
}

/// Encodes an open message; `Err` carries its size when it is too large.
pub(crate) fn encode_open(open: &TunnelOpen) -> Result<Vec<u8>, usize> {
    let len = open.encoded_len();
    if len > MAX_MESSAGE { Err(len) } else { Ok(open.encode_length_delimited_to_vec()) }
}

/// Writes an answer and flushes it.
pub(crate) async fn answer(
    io: &mut (impl AsyncWrite + Unpin),
    code: Code,
    detail: &str,
) -> std::io::Result<()> {
    let cut = detail.char_indices().map(|(i, _)| i).take_while(|i| *i <= MAX_DETAIL).last().unwrap_or(0);
    let detail = if detail.len() <= MAX_DETAIL { detail } else { &detail[..cut] };
    let bytes =
        TunnelAnswer { code: code.into(), detail: detail.to_owned() }.encode_length_delimited_to_vec();
    io.write_all(&bytes).await?;
    io.flush().await
}

/// What an answer means; `None` when its code is not known to this build.
pub(crate) fn outcome(answer: &TunnelAnswer) -> Option<Result<(), Refusal>> {
    Some(match Code::try_from(answer.code).ok()? {
        Code::Unspecified => return None,
        Code::Ok => Ok(()),
        Code::NotOwner => Err(Refusal::NotOwner),
        Code::Forbidden => Err(Refusal::Forbidden),
        Code::ConnectRefused => Err(Refusal::ConnectRefused),
        Code::ConnectTimeout => Err(Refusal::ConnectTimeout),
        Code::Overloaded => Err(Refusal::Overloaded),
        Code::BadRequest => Err(Refusal::BadRequest),
        Code::Draining => Err(Refusal::Draining),
    })
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, io::Cursor};

    use super::*;

    #[tokio::test]
    async fn a_message_is_read_and_what_follows_is_kept() {
        let open = TunnelOpen { version: 1, address: "10.0.0.1".into(), port: 80, ..Default::default() };
        let mut bytes = encode_open(&open).unwrap();
        bytes.extend_from_slice(b"GET /");
        let (read_back, rest) = read::<TunnelOpen>(&mut Cursor::new(bytes)).await.unwrap();
        assert_eq!((read_back, &rest[..]), (open, &b"GET /"[..]));
    }

    #[tokio::test]
    async fn oversize_garbage_and_truncation_are_told_apart() {
        let too_large = read::<TunnelOpen>(&mut Cursor::new(vec![0x81, 0x20, 0])).await;
        assert!(matches!(too_large, Err(ReadError::TooLarge)), "{too_large:?}");
        let endless = read::<TunnelOpen>(&mut Cursor::new(vec![0xff; 64])).await;
        assert!(matches!(endless, Err(ReadError::TooLarge)), "{endless:?}");
        let garbage = read::<TunnelOpen>(&mut Cursor::new(vec![3, 0xff, 0xff, 0xff])).await;
        assert!(matches!(garbage, Err(ReadError::Malformed)), "{garbage:?}");
        let short = read::<TunnelOpen>(&mut Cursor::new(vec![9, 8, 1])).await;
        assert!(matches!(short, Err(ReadError::Ended)), "{short:?}");
        let large = TunnelOpen { host: "x".repeat(MAX_MESSAGE), ..Default::default() };
        assert!(encode_open(&large).is_err());
    }

    #[tokio::test]
    async fn a_long_detail_is_cut_at_a_character() {
        let mut out = Vec::new();
        answer(&mut out, Code::Forbidden, &"é".repeat(1000)).await.unwrap();
        let (back, _) = read::<TunnelAnswer>(&mut Cursor::new(out)).await.unwrap();
        assert_eq!(back.detail.len(), 512);
        assert_eq!(outcome(&back), Some(Err(Refusal::Forbidden)));
        assert_eq!(outcome(&TunnelAnswer { code: 99, detail: String::new() }), None);
    }

    #[test]
    fn fuzz_open_message() {
        let open = |name: &str| {
            encode_open(&TunnelOpen {
                address: "10.0.0.1".into(),
                source: Some(mesh_api::model::Workload { name: name.into(), ..Default::default() }),
                ..Default::default()
            })
            .unwrap()
        };
        let seeds = [open("a"), open(&"x".repeat(200)), [open("b"), b"GET / HTTP/1.1".to_vec()].concat()];
        mesh_testkit::fuzz::run("open_message", &seeds, |bytes| {
            let read = read::<TunnelOpen>(&mut Cursor::new(bytes)).now_or_never().unwrap();
            match read {
                Ok((message, rest)) => {
                    assert!(message.encoded_len() <= MAX_MESSAGE && rest.len() < bytes.len());
                    (0, rest.len().min(2), message.source.is_some())
                }
                Err(ReadError::Ended) => (1, 0, false),
                Err(ReadError::TooLarge) => (2, 0, false),
                Err(ReadError::Malformed) => (3, 0, false),
                Err(ReadError::Io(e)) => panic!("no I/O here: {e}"),
            }
        });
    }
}
