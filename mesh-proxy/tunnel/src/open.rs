//! Opening streams: over the best connection there is, again over another one while nothing of the caller's has been
//! sent, and with the caller's first bytes in the open message's packet.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::AsyncWriteExt;
use libp2p::Stream;
use mesh_api::model::{TunnelAnswer, TunnelOpen};
use tokio::sync::oneshot;

use crate::{
    driver::Command,
    error::{OpenError, Refusal},
    marked,
    peers::Known,
    stream::{Direction, StreamGuard, TunnelStream},
    table::{Ask, Asked, Conn, Step},
    tunnel::Tunnel,
    wire,
};

/// Connections that one open tries.
const ATTEMPTS: usize = 4;

/// Pause before the next one: the end of a connection is noticed a little after its streams fail.
const AGAIN: Duration = Duration::from_millis(5);

/// Most bytes that travel with the open message; a stream's first window has room for them and the message.
pub const MAX_EARLY: usize = 32 << 10;

/// How an attempt failed.
struct Failed {
    error: OpenError,
    /// Bytes of the caller may have reached the endpoint.
    spoken: bool,
}

impl From<OpenError> for Failed {
    fn from(error: OpenError) -> Self {
        Self { error, spoken: false }
    }
}

/// A stream whose open message is under way.
struct Asking {
    stream: Stream,
    conn: Arc<Conn>,
    guard: StreamGuard,
    /// How long it is waited for, if the connection does not answer.
    until: Option<Instant>,
}

impl Tunnel {
    /// Opens a stream to an endpoint of `node`. Dials when there is no connection; concurrent opens share that dial.
    pub async fn open(&self, node: &str, open: TunnelOpen) -> Result<TunnelStream, OpenError> {
        self.open_with(node, open, &[]).await
    }

    /// Opens a stream and sends `early` with the open message, at most [`MAX_EARLY`] bytes of it: the stream's `sent`
    /// says how many. The endpoint gets them without a further round trip; the open itself still waits for the owner's
    /// answer. After a refusal none of them has reached the endpoint. After [`OpenError::Spoken`] they may have.
    pub async fn open_with(
        &self,
        node: &str,
        open: TunnelOpen,
        early: &[u8],
    ) -> Result<TunnelStream, OpenError> {
        let early = &early[..early.len().min(MAX_EARLY)];
        let result = self.in_time(node, open, early, false).await;
        self.shared.metrics.opened(result.as_ref().map_or_else(OpenError::as_str, |_| "ok"));
        result
    }

    /// Opens a stream that takes bytes at once, before the owner has answered: they travel with the open message. The
    /// first read waits for the answer; a refusal is its error, with the [`OpenError`] inside, and then no byte has
    /// reached the endpoint.
    pub async fn open_early(&self, node: &str, open: TunnelOpen) -> Result<TunnelStream, OpenError> {
        let result = self.in_time(node, open, &[], true).await;
        self.shared.metrics.opened(result.as_ref().map_or_else(OpenError::as_str, |_| "early"));
        result
    }

    async fn in_time(
        &self,
        node: &str,
        mut open: TunnelOpen,
        early: &[u8],
        at_once: bool,
    ) -> Result<TunnelStream, OpenError> {
        open.version = wire::VERSION;
        let message = wire::encode_open(&open).map_err(OpenError::TooLarge)?;
        let view = self.shared.view();
        let known = view.node(node).ok_or_else(|| OpenError::UnknownNode(node.to_owned()))?;
        let attempts = self.attempts(known, &message, early, at_once);
        match tokio::time::timeout(self.shared.timeouts.open, attempts).await {
            Ok(result) => result,
            Err(_) => Err(OpenError::Timeout(known.node.clone())),
        }
    }

    async fn attempts(
        &self,
        known: &Known,
        message: &[u8],
        early: &[u8],
        at_once: bool,
    ) -> Result<TunnelStream, OpenError> {
        let (mut left, mut draining) = (ATTEMPTS, None);
        loop {
            left -= 1;
            let failed = match self.attempt(known, message, early, at_once).await {
                Ok(stream) => return Ok(stream),
                Err(failed) => failed,
            };
            match (failed.error, &draining) {
                (OpenError::Lost(node), _) if failed.spoken => return Err(OpenError::Spoken(node)),
                // A connection may close for idleness, or fall silent, just when a stream is asked for.
                (OpenError::Lost(_), _) if left > 0 => tokio::time::sleep(AGAIN).await,
                // Behind a process that is leaving there may be its successor, with the same key, on a connection of
                // its own.
                (e @ OpenError::Refused { code: Refusal::Draining, .. }, _) if left > 0 => draining = Some(e),
                // There is none.
                (
                    OpenError::Dial { .. } | OpenError::Backoff { .. } | OpenError::Silent { .. },
                    Some(said),
                ) => return Err(said.clone()),
                (error, _) => return Err(error),
            }
        }
    }

    async fn attempt(
        &self,
        known: &Known,
        message: &[u8],
        early: &[u8],
        at_once: bool,
    ) -> Result<TunnelStream, Failed> {
        let lost = || OpenError::Lost(known.node.clone());
        let mut asking = self.ask(known).await?;
        let marks = asking.conn.path.needs_marks();
        let first = first_packet(message, early, marks);
        // Nothing of it counts as sent before the whole open message is.
        send(&mut asking.stream, &first)
            .await
            .map_err(|_| Failed { error: lost(), spoken: !early.is_empty() })?;
        asking.conn.sent.add(early.len());
        let Asking { stream, conn, guard, until } = asking;
        if at_once {
            return Ok(TunnelStream::awaiting(stream, known.node.clone(), conn.path, guard));
        }
        self.answer(known, (stream, until), guard, early.len()).await
    }

    /// Takes the best connection and asks it for a stream.
    async fn ask(&self, known: &Known) -> Result<Asking, OpenError> {
        let lost = || OpenError::Lost(known.node.clone());
        let (conn, until) = self.connection(known).await?;
        let guard = self.shared.admit(&conn, Direction::Outbound).map_err(OpenError::Limit)?;
        let (reply, stream) = oneshot::channel();
        let asked = async {
            conn.opens.send(Ask { reply, what: Asked::Tunnel }).await.map_err(|_| lost())?;
            stream.await.map_err(|_| lost())
        };
        let stream = self.unless_silent(&conn, until, asked).await.unwrap_or_else(|| Err(lost()))?;
        Ok(Asking { stream, conn, guard, until })
    }

    async fn answer(
        &self,
        known: &Known,
        (mut stream, until): (Stream, Option<Instant>),
        guard: StreamGuard,
        early: usize,
    ) -> Result<TunnelStream, Failed> {
        let conn = guard.conn.clone();
        let lost = || Failed { error: OpenError::Lost(known.node.clone()), spoken: early > 0 };
        let read = wire::read::<TunnelAnswer>(&mut stream);
        let read = if early > 0 {
            // Asking elsewhere too could say the bytes twice.
            in_time(until, read).await.ok_or_else(lost)?
        } else {
            self.unless_silent(&conn, until, read).await.ok_or_else(lost)?
        };
        let (answer, rest) = match read {
            Ok(read) => read,
            Err(wire::ReadError::Io(_) | wire::ReadError::Ended) => return Err(lost()),
            Err(wire::ReadError::TooLarge | wire::ReadError::Malformed) => {
                return Err(OpenError::BadAnswer(known.node.clone()).into());
            }
        };
        conn.judge(&known.node, &answer, &self.shared.table)?;
        Ok(TunnelStream::new(stream, rest, conn.path, guard).with_early(early))
    }

    /// Waits for `what`, which needs the connection; gives up when the connection falls silent meanwhile and there is
    /// a chance elsewhere, or is silent `until` then.
    async fn unless_silent<T>(
        &self,
        conn: &Arc<Conn>,
        until: Option<Instant>,
        what: impl Future<Output = T>,
    ) -> Option<T> {
        let what = in_time(until, what);
        tokio::pin!(what);
        // Every other way was tried before a silent one was taken.
        let only_way = conn.suspect.load(Ordering::Relaxed);
        let patience = self.shared.timeouts.suspect.max(conn.rtt().unwrap_or(Duration::ZERO) * 4);
        let doubt = conn.doubt.notified();
        tokio::pin!(doubt);
        tokio::select! {
            done = &mut what => return done,
            () = tokio::time::sleep(patience) => {}
            () = &mut doubt, if !only_way => return None,
        }
        self.shared.probe(conn);
        if only_way {
            return what.await;
        }
        if conn.suspect.load(Ordering::Relaxed) {
            return None;
        }
        tokio::select! {
            done = &mut what => done,
            () = doubt => None,
        }
    }

    /// The best connection to a peer, dialled if there is none; and until when it is worth waiting for, if it is silent.
    async fn connection(&self, known: &Known) -> Result<(Arc<Conn>, Option<Instant>), OpenError> {
        let worker = self.shared.placement.current();
        loop {
            if self.shared.closed.is_cancelled() {
                return Err(OpenError::Closed);
            }
            match self.shared.table.step(known.id, worker, self.shared.spread(), Instant::now()) {
                Step::Use { conn, spread, until } => {
                    if spread && self.commands.try_send(Command::Dial(known.id)).is_err() {
                        self.shared.table.dialled(known.id, Ok(()), Instant::now(), |_| Duration::ZERO);
                    }
                    return Ok((conn, until));
                }
                Step::Held { wait, reason } => {
                    return Err(OpenError::Backoff { node: known.node.clone(), wait, reason });
                }
                Step::Silent { since } => {
                    return Err(OpenError::Silent { node: known.node.clone(), since });
                }
                Step::Wait { mut end, start, until } => {
                    if start {
                        self.commands.send(Command::Dial(known.id)).await.map_err(|_| OpenError::Closed)?;
                    }
                    // Too late, or the dial is another one by now: the table knows.
                    let ended = match in_time(until, end.wait_for(Option::is_some)).await {
                        Some(Ok(ended)) => ended.clone(),
                        Some(Err(_)) | None => None,
                    };
                    if let Some(Err(reason)) = ended
                        && self.shared.table.path(&known.id).is_none()
                    {
                        return Err(OpenError::Dial { node: known.node.clone(), reason });
                    }
                }
            }
        }
    }
}

async fn in_time<T>(until: Option<Instant>, what: impl Future<Output = T>) -> Option<T> {
    match until {
        Some(until) => tokio::time::timeout_at(until.into(), what).await.ok(),
        None => Some(what.await),
    }
}

/// The open message and the caller's first bytes, in the form of the stream that follows.
fn first_packet(message: &[u8], early: &[u8], marks: bool) -> Bytes {
    let mut packet = Vec::with_capacity(message.len() + early.len() + 2);
    packet.extend_from_slice(message);
    if marks && !early.is_empty() {
        packet.extend_from_slice(&marked::head(early.len()));
    }
    packet.extend_from_slice(early);
    packet.into()
}

async fn send(stream: &mut Stream, message: &[u8]) -> std::io::Result<()> {
    stream.write_all(message).await?;
    stream.flush().await
}

impl Conn {
    /// What the owner's answer means for the stream, and for the connection.
    pub(crate) fn judge(
        &self,
        node: &Arc<str>,
        answer: &TunnelAnswer,
        table: &crate::table::Table,
    ) -> Result<(), OpenError> {
        self.heard();
        match wire::outcome(answer) {
            Some(Ok(())) => Ok(()),
            Some(Err(code)) => {
                if code == Refusal::Draining {
                    self.retired.store(true, Ordering::Relaxed);
                    table.refresh(self.peer);
                    self.generation.fetch_add(1, Ordering::Relaxed);
                }
                Err(OpenError::Refused { node: node.clone(), code, detail: answer.detail.clone() })
            }
            None => Err(OpenError::BadAnswer(node.clone())),
        }
    }
}
