//! Words between two nodes about a connection itself: is it alive, does its process leave, has a better connection
//! taken its place. One byte each way on a stream of its own, so that no open waits behind it.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::Stream;
use tokio::sync::oneshot;

use crate::{
    path::{Path, PathKind, PathTransport},
    table::{Ask, Asked, Conn},
    tunnel::Shared,
};

/// Protocol of a control stream.
pub(crate) const PROTOCOL: &str = "/selvage/control/1";

/// What a node says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// Are you there?
    Probe,
    /// This process takes no new streams any more; its successor may, on another connection.
    Leaving,
    /// This connection takes no new streams any more and closes when it is idle.
    Retire,
}

impl Word {
    const fn byte(self) -> u8 {
        match self {
            Self::Probe => 1,
            Self::Leaving => 2,
            Self::Retire => 3,
        }
    }

    const fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Probe),
            2 => Some(Self::Leaving),
            3 => Some(Self::Retire),
            _ => None,
        }
    }
}

/// Says a word and waits for its echo; gives the time that took. The caller bounds the wait.
pub(crate) async fn say(conn: &Conn, word: Word) -> io::Result<Duration> {
    let gone = || io::Error::from(io::ErrorKind::NotConnected);
    let (reply, stream) = oneshot::channel();
    conn.opens.send(Ask { reply, what: Asked::Control }).await.map_err(|_| gone())?;
    let mut stream = stream.await.map_err(|_| gone())?;
    let began = Instant::now();
    stream.write_all(&[word.byte()]).await?;
    stream.flush().await?;
    let mut echo = [0];
    stream.read_exact(&mut echo).await?;
    let took = began.elapsed();
    let _already_closed = stream.close().await;
    if echo[0] == word.byte() { Ok(took) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Hears one word of the peer.
pub(crate) async fn hear(shared: &Shared, conn: &Arc<Conn>, mut stream: Stream) -> io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    conn.heard();
    match Word::of(byte[0]) {
        Some(Word::Probe) => {}
        Some(Word::Leaving | Word::Retire) => {
            conn.retired.store(true, Ordering::Relaxed);
            shared.table.refresh(conn.peer);
            conn.generation.fetch_add(1, Ordering::Relaxed);
        }
        None => return Err(io::ErrorKind::InvalidData.into()),
    }
    stream.write_all(&byte).await?;
    stream.close().await
}

/// A probe without an answer for this many times the measured round trip is too late.
const ROUND_TRIPS: u32 = 6;
/// The same for a connection whose place has just lost another one.
const SHAKEN_ROUND_TRIPS: u32 = 2;
/// Most waits of one probe, on a connection that is alive but too busy to answer.
const MAX_WINDOWS: usize = 32;

/// So many waits without any sign of life end a connection. QUIC hides what the kernel would tell of TCP, where
/// unacknowledged bytes end a connection by themselves; only a middle box that takes them and delivers nothing is found
/// out here. Behind a relay a long upload on a slow leg may be silent for a while.
const fn patience_of(path: Path, shaken: bool) -> u32 {
    match (path.kind, path.transport) {
        (PathKind::Relayed, _) if shaken => 4,
        _ if shaken => 3,
        (PathKind::Relayed, _) => 8,
        (_, PathTransport::Quic) => 3,
        _ => 12,
    }
}

impl Shared {
    /// Probes a connection in the background, once at a time. Without an answer in time the connection is suspect: new
    /// streams take any other. Without one for three times as long it is given up, with its streams.
    pub(crate) fn probe(self: &Arc<Self>, conn: &Arc<Conn>) {
        if conn.probing.swap(true, Ordering::Relaxed) {
            return;
        }
        let (shared, conn) = (self.clone(), conn.clone());
        self.placement.control().spawn(async move {
            shared.probe_now(&conn).await;
            conn.probing.store(false, Ordering::Relaxed);
        });
    }

    /// Doubts a connection because another one to the same place has just broken: until it answers, new streams take
    /// any other, and pools leave it.
    pub(crate) fn shake(self: &Arc<Self>, conn: &Arc<Conn>) {
        tracing::debug!(peer = %conn.peer, address = %conn.remote, "its place lost a connection: probed");
        conn.shaken.store(true, Ordering::Relaxed);
        conn.suspect.store(true, Ordering::Relaxed);
        self.table.refresh(conn.peer);
        conn.generation.fetch_add(1, Ordering::Relaxed);
        conn.doubt.notify_waiters();
        self.probe(conn);
    }

    async fn probe_now(self: &Arc<Self>, conn: &Conn) {
        conn.probes.0.fetch_add(1, Ordering::Relaxed);
        let rtt = conn.rtt().unwrap_or_default();
        let said = say(conn, Word::Probe);
        tokio::pin!(said);
        let (mut silent, mut life) = (0, conn.life());
        for _ in 0..MAX_WINDOWS {
            let shaken = conn.shaken.load(Ordering::Relaxed);
            let patience = if shaken {
                (rtt * SHAKEN_ROUND_TRIPS).max(self.timeouts.probe / 2)
            } else {
                (rtt * ROUND_TRIPS).max(self.timeouts.probe)
            };
            let began = Instant::now();
            match tokio::time::timeout(patience, &mut said).await {
                Ok(Ok(rtt)) => {
                    conn.measured(rtt);
                    self.metrics.measured(conn.path, rtt);
                    return self.believe(conn);
                }
                // It is closing, or the peer answers that it does not speak this.
                Ok(Err(_)) => return,
                // A process that is late itself has heard nobody.
                Err(_) if began.elapsed() > patience.mul_f64(1.5) => {}
                // The answer waits behind much else.
                Err(_) if conn.life() != life => silent = 0,
                Err(_) => silent += 1,
            }
            life = conn.life();
            match silent {
                0 => {}
                1 => {
                    conn.probes.1.fetch_add(1, Ordering::Relaxed);
                    conn.suspect.store(true, Ordering::Relaxed);
                    self.table.refresh(conn.peer);
                    conn.doubt.notify_waiters();
                    // Perhaps it is the relay that is gone; its connection ends sooner than one that it carries.
                    let legs = conn.relay.map(|relay| self.table.connections_of(&relay)).unwrap_or_default();
                    legs.iter().for_each(|leg| self.probe(leg));
                }
                n if n >= patience_of(conn.path, shaken) => return self.give_up(conn),
                _ => {}
            }
        }
        self.believe(conn);
    }

    fn believe(&self, conn: &Conn) {
        conn.shaken.store(false, Ordering::Relaxed);
        if conn.suspect.swap(false, Ordering::Relaxed) {
            self.table.answered(conn.peer);
        }
    }

    fn give_up(&self, conn: &Conn) {
        tracing::info!(peer = %conn.peer, address = %conn.remote, "no answer: connection is closed");
        conn.closed.store(true, Ordering::Relaxed);
        self.table.refresh(conn.peer);
        self.metrics.lost(conn.path);
        self.close_connection(conn.id);
    }

    /// Tells every peer that this process takes no new streams any more.
    pub(crate) fn say_goodbye(self: &Arc<Self>) {
        for conn in self.table.connections() {
            if !conn.told.load(Ordering::Relaxed) {
                self.tell(conn, Word::Leaving);
            }
        }
    }

    /// Takes a connection out of use, on both sides.
    pub(crate) fn retire(self: &Arc<Self>, conn: &Arc<Conn>) {
        if !conn.retired.swap(true, Ordering::Relaxed) {
            self.table.refresh(conn.peer);
            self.tell(conn.clone(), Word::Retire);
        }
    }

    fn tell(&self, conn: Arc<Conn>, word: Word) {
        let limit = self.timeouts.negotiate;
        self.placement.control().spawn(async move {
            // A word that is lost is said again by upkeep, and refusals say it too.
            if let Ok(Ok(_)) = tokio::time::timeout(limit, say(&conn, word)).await {
                conn.told.store(true, Ordering::Relaxed);
            }
        });
    }
}
