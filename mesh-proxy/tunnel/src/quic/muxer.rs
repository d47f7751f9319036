//! A QUIC connection and its streams as libp2p wants them.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite, FutureExt, future::BoxFuture};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use quinn::{ConnectionError, RecvStream, SendStream, VarInt};

use super::Error;

type Opening = BoxFuture<'static, Result<(SendStream, RecvStream), ConnectionError>>;

pub(crate) struct Connection {
    connection: quinn::Connection,
    inbound: Option<Opening>,
    outbound: Option<Opening>,
}

impl Connection {
    pub(super) fn new(connection: quinn::Connection) -> Self {
        Self { connection, inbound: None, outbound: None }
    }
}

/// Polls an opening, made when there is none.
fn poll_opening(
    slot: &mut Option<Opening>,
    cx: &mut Context<'_>,
    make: impl FnOnce() -> Opening,
) -> Poll<Result<Stream, Error>> {
    let opened = ready!(slot.get_or_insert_with(make).poll_unpin(cx));
    *slot = None;
    let (send, receive) = opened.map_err(Error::Connection)?;
    Poll::Ready(Ok(Stream { send, receive, finished: false }))
}

impl StreamMuxer for Connection {
    type Substream = Stream;
    type Error = Error;

    fn poll_inbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Stream, Error>> {
        let this = self.get_mut();
        let connection = &this.connection;
        poll_opening(&mut this.inbound, cx, || {
            let connection = connection.clone();
            async move { connection.accept_bi().await }.boxed()
        })
    }

    fn poll_outbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Stream, Error>> {
        let this = self.get_mut();
        let connection = &this.connection;
        poll_opening(&mut this.outbound, cx, || {
            let connection = connection.clone();
            async move { connection.open_bi().await }.boxed()
        })
    }

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Error>> {
        Poll::Pending
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.connection.close(VarInt::from_u32(0), b"");
        Poll::Ready(Ok(()))
    }
}

/// A stream. Dropped before its end it ends cleanly for the peer: other protocols than ours rely on that.
#[derive(Debug)]
pub(crate) struct Stream {
    send: SendStream,
    receive: RecvStream,
    finished: bool,
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.get_mut().receive.poll_read(cx, buf).map_err(Into::into)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().send).poll_write(cx, buf).map_err(Into::into)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.finished, true) {
            this.send.finish()?;
        }
        Poll::Ready(Ok(()))
    }
}
