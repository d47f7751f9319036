//! A QUIC connection and its streams as libp2p wants them.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
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
    allowance: Allowance,
}

impl Connection {
    /// `streams`: those that the peer may open at first, and at most.
    pub(super) fn new(connection: quinn::Connection, streams: (u32, u32)) -> Self {
        Self { connection, inbound: None, outbound: None, allowance: Allowance::new(streams) }
    }
}

/// How many streams the peer may have open: twice as many each time that half of them are, up to a limit. Being told
/// takes half a round trip, so it comes before the peer needs it.
#[derive(Debug)]
struct Allowance {
    open: Arc<AtomicU32>,
    allowed: u32,
    most: u32,
}

impl Allowance {
    fn new((first, most): (u32, u32)) -> Self {
        Self { open: Arc::default(), allowed: first, most }
    }

    /// A stream has come: its place, and how many the peer may have from now on if that changes.
    fn take(&mut self) -> (Place, Option<u32>) {
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        let place = Place(self.open.clone());
        if self.allowed >= self.most || open < self.allowed / 2 {
            return (place, None);
        }
        self.allowed = self.allowed.saturating_mul(2).min(self.most);
        (place, Some(self.allowed))
    }
}

/// Of a stream among those that the peer has open.
#[derive(Debug)]
struct Place(Arc<AtomicU32>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
    Poll::Ready(Ok(Stream { send, receive, finished: false, place: None }))
}

impl StreamMuxer for Connection {
    type Substream = Stream;
    type Error = Error;

    fn poll_inbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Stream, Error>> {
        let this = self.get_mut();
        let connection = &this.connection;
        let mut stream = ready!(poll_opening(&mut this.inbound, cx, || {
            let connection = connection.clone();
            async move { connection.accept_bi().await }.boxed()
        }))?;
        let (place, more) = this.allowance.take();
        stream.place = Some(place);
        if let Some(allowed) = more {
            connection.set_max_concurrent_bi_streams(VarInt::from_u32(allowed));
        }
        Poll::Ready(Ok(stream))
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
    /// Of one that the peer has opened.
    place: Option<Place>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_may_open_more_when_it_uses_half_and_never_more_than_the_limit() {
        let mut allowance = Allowance::new((8, 20));
        let mut places: Vec<Place> = Vec::new();
        let mut told = Vec::new();
        for _ in 0..20 {
            let (place, more) = allowance.take();
            places.push(place);
            told.extend(more.map(|m| (places.len(), m)));
        }
        assert_eq!(told, [(4, 16), (8, 20)]);
        places.clear();
        assert_eq!(allowance.open.load(Ordering::Relaxed), 0, "what ended is counted no more");
        assert_eq!(allowance.take().1, None);
    }

    #[test]
    fn streams_one_after_the_other_need_no_more_room() {
        let mut allowance = Allowance::new((8, 20));
        assert!((0..1_000).all(|_| allowance.take().1.is_none()));
    }
}
