//! Streams that other nodes open to this one, admitted and waiting for the owner's decision.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures::AsyncWriteExt;
use libp2p::Stream;
use mesh_api::model::{TunnelOpen, tunnel_answer::Code};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    error::Refusal,
    path::Path,
    stream::{StreamGuard, TunnelStream},
    wire,
};

/// Gives the streams that other nodes opened. There is one for each data worker; a stream comes out of the acceptor
/// of the worker that runs its connection.
#[derive(Debug)]
pub struct Acceptor {
    queue: mpsc::Receiver<Incoming>,
    closed: CancellationToken,
}

impl Acceptor {
    pub(crate) fn new(queue: mpsc::Receiver<Incoming>, closed: CancellationToken) -> Self {
        Self { queue, closed }
    }

    /// The next stream; `None` once the tunnel is closed. Streams that wait here are held, never lost.
    pub async fn accept(&mut self) -> Option<Incoming> {
        tokio::select! {
            biased;
            () = self.closed.cancelled() => None,
            incoming = self.queue.recv() => incoming,
        }
    }
}

/// A stream that waits for an answer. Dropping it resets the stream.
#[derive(Debug)]
pub struct Incoming {
    peer: Arc<str>,
    open: TunnelOpen,
    admitted: Admitted,
}

#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) stream: Stream,
    /// Bytes that came with the open message.
    pub(crate) rest: Bytes,
    pub(crate) path: Path,
    pub(crate) guard: StreamGuard,
}

impl Incoming {
    pub(crate) fn new(peer: Arc<str>, open: TunnelOpen, admitted: Admitted) -> Self {
        Self { peer, open, admitted }
    }

    /// Name of the node that opened the stream, by its authenticated key.
    pub fn peer(&self) -> &Arc<str> {
        &self.peer
    }

    /// What it asks for.
    pub fn open(&self) -> &TunnelOpen {
        &self.open
    }

    /// Answers OK; the stream then carries the endpoint's bytes.
    pub async fn accept(self) -> io::Result<TunnelStream> {
        let Admitted { mut stream, rest, path, guard } = self.admitted;
        wire::answer(&mut stream, Code::Ok, "").await?;
        Ok(TunnelStream::new(stream, rest, path, guard))
    }

    /// Answers why not, and ends the stream.
    pub async fn refuse(self, refusal: Refusal, detail: &str) -> io::Result<()> {
        let mut stream = self.admitted.stream;
        wire::answer(&mut stream, refusal.code(), detail).await?;
        stream.close().await
    }
}
