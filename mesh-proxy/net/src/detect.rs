//! Reads the first bytes of a connection until it is clear what it carries, but only for so long.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::Instant;

use crate::Prefixed;
use crate::sniff::{ClientHello, MAX_SNIFF, Sniff, sniff};

/// Most clients say what they are in the first segment.
const FIRST_READ: usize = 2 * 1024;

/// What a connection carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detected {
    /// HTTP/1.x.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// TLS, to be routed by its names.
    Tls(ClientHello),
    /// Bytes that are none of these, or that did not become clear in time.
    Opaque,
    /// The client said nothing in time: it probably waits for the server to speak first.
    ServerFirst,
    /// The client closed its side without a byte.
    Closed,
}

/// Waits at most `wait` for a verdict. The bytes read are given back by the returned stream.
pub async fn detect<S: AsyncRead + Unpin>(
    mut stream: S,
    wait: Duration,
) -> io::Result<(Detected, Prefixed<S>)> {
    let deadline = Instant::now() + wait;
    let mut read = BytesMut::with_capacity(FIRST_READ);
    let verdict = loop {
        match sniff(&read) {
            Sniff::Http1 => break Detected::Http1,
            Sniff::Http2 => break Detected::Http2,
            Sniff::Tls(hello) => break Detected::Tls(hello),
            Sniff::Opaque => break Detected::Opaque,
            Sniff::NeedMore => {}
        }
        if read.len() == read.capacity() {
            read.reserve((MAX_SNIFF - read.len().min(MAX_SNIFF)).clamp(1, read.len().max(1)));
        }
        match tokio::time::timeout_at(deadline, stream.read_buf(&mut read)).await {
            Ok(Ok(0)) if read.is_empty() => break Detected::Closed,
            // The client has closed its side: what is there is all there will be.
            Ok(Ok(0)) => break Detected::Opaque,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_late) if read.is_empty() => break Detected::ServerFirst,
            Err(_late) => break Detected::Opaque,
        }
    };
    Ok((verdict, Prefixed::new(read.freeze(), stream)))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn verdict(pieces: &[&[u8]], close: bool) -> (Detected, Vec<u8>) {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        for piece in pieces {
            far.write_all(piece).await.unwrap();
        }
        if close {
            far.shutdown().await.unwrap();
        }
        let (detected, stream) = detect(near, Duration::from_millis(300)).await.unwrap();
        (detected, stream.prefix().to_vec())
    }

    #[tokio::test]
    async fn verdicts_and_replay() {
        let request = b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n";
        assert_eq!(verdict(&[request], false).await, (Detected::Http1, request.to_vec()));
        let preface = crate::sniff::H2_PREFACE;
        assert_eq!(verdict(&[preface], false).await, (Detected::Http2, preface.to_vec()));
        assert_eq!(verdict(&[b"\0\x01binary"], false).await.0, Detected::Opaque);
        assert_eq!(verdict(&[b"GET key\r\n"], false).await.0, Detected::Opaque);
        assert_eq!(verdict(&[], true).await.0, Detected::Closed);
        assert_eq!(verdict(&[b"GET /"], true).await, (Detected::Opaque, b"GET /".to_vec()));
    }

    #[tokio::test]
    async fn a_silent_or_slow_client_waits_no_longer_than_the_limit() {
        let start = Instant::now();
        assert_eq!(verdict(&[], false).await.0, Detected::ServerFirst);
        assert_eq!(verdict(&[b"GET /slow"], false).await, (Detected::Opaque, b"GET /slow".to_vec()));
        let waited = start.elapsed();
        assert!(waited >= Duration::from_millis(600) && waited < Duration::from_secs(10), "{waited:?}");
    }

    #[tokio::test]
    async fn the_bytes_kept_are_bounded() {
        let long = [b"GET /".to_vec(), vec![b'a'; 1 << 17]].concat();
        let (detected, kept) = verdict(&[&long], false).await;
        assert_eq!(detected, Detected::Opaque);
        assert!(kept.len() >= MAX_SNIFF && kept.len() < 4 * MAX_SNIFF, "{}", kept.len());
    }
}
