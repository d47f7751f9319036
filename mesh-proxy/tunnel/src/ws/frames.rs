//! Bytes over the binary frames of a WebSocket. A frame has no meaning of its own.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures::{AsyncRead, AsyncWrite, Sink, Stream};
use tokio_tungstenite::{
    WebSocketStream, accept_async_with_config, client_async_with_config,
    tungstenite::{Error, Message, protocol::WebSocketConfig},
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

/// Largest frame that is sent.
const FRAME: usize = 64 << 10;
/// Largest frame that is taken; a larger one ends the connection.
const MAX_FRAME: usize = 256 << 10;
/// Frames that are not yet taken by TLS. Beyond it writes wait.
const MAX_UNSENT: usize = 512 << 10;

#[derive(Debug)]
pub(super) struct Frames<S> {
    socket: WebSocketStream<Compat<S>>,
    /// Of the last frame, not yet read.
    received: Bytes,
    ended: bool,
}

fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(FRAME)
        .write_buffer_size(FRAME)
        .max_write_buffer_size(MAX_UNSENT)
        .max_message_size(Some(MAX_FRAME))
        .max_frame_size(Some(MAX_FRAME))
}

fn failed(error: Error) -> io::Error {
    match error {
        Error::Io(e) => e,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::ConnectionAborted.into(),
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    pub(super) async fn dialled(io: S, host: &str) -> io::Result<Self> {
        let url = format!("wss://{host}/");
        let (socket, _) = client_async_with_config(url, io.compat(), Some(limits())).await.map_err(failed)?;
        Ok(Self { socket, received: Bytes::new(), ended: false })
    }

    pub(super) async fn accepted(io: S) -> io::Result<Self> {
        let socket = accept_async_with_config(io.compat(), Some(limits())).await.map_err(failed)?;
        Ok(Self { socket, received: Bytes::new(), ended: false })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Frames<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        while this.received.is_empty() && !this.ended {
            match ready!(Pin::new(&mut this.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => this.received = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => this.ended = true,
                Some(Ok(Message::Text(_))) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                Some(Err(e)) => return Poll::Ready(Err(failed(e))),
            }
        }
        let n = this.received.len().min(buf.len());
        this.received.copy_to_slice(&mut buf[..n]);
        Poll::Ready(Ok(n))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Frames<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut socket = Pin::new(&mut self.get_mut().socket);
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(socket.as_mut().poll_ready(cx)).map_err(failed)?;
        let n = buf.len().min(FRAME);
        socket.start_send(Message::Binary(Bytes::copy_from_slice(&buf[..n]))).map_err(failed)?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx).map_err(failed)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_close(cx).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt, AsyncWriteExt};
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    #[tokio::test]
    async fn bytes_come_through_and_what_is_no_such_frame_ends_it() {
        let (near, far) = tokio::io::duplex(4096);
        let (near, far) =
            tokio::join!(Frames::dialled(near.compat(), "edge.example"), Frames::accepted(far.compat()));
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        let sent: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        let send = async {
            near.write_all(&sent).await.unwrap();
            near.close().await.unwrap();
        };
        let mut back = Vec::new();
        let ((), read) = tokio::join!(send, far.read_to_end(&mut back));
        read.unwrap();
        assert!(back == sent, "{} bytes", back.len());

        for (what, message) in
            [("text", Message::text("hello")), ("too large", Message::binary(vec![0; MAX_FRAME + 1]))]
        {
            let (near, far) = tokio::io::duplex(1 << 20);
            let (near, far) = tokio::join!(
                client_async_with_config("wss://edge.example/", near, None),
                Frames::accepted(far.compat())
            );
            let (mut near, mut far) = (near.unwrap().0, far.unwrap());
            futures::SinkExt::send(&mut near, message).await.unwrap();
            let error = far.read(&mut [0; 10]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}: {error}");
        }
    }
}
