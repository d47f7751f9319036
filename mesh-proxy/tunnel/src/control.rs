//! Words between two nodes about a connection itself: is it alive, does its process leave, has a better connection
//! taken its place. One byte each way on a stream of its own, so that no open waits behind it.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{PeerId, Stream};
use tokio::sync::oneshot;

use crate::{
    path::{Path, PathKind, PathTransport, socket_of},
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
    let word = Word::of(byte[0]).ok_or(io::ErrorKind::InvalidData)?;
    if word != Word::Probe {
        conn.retired.store(true, Ordering::Relaxed);
        shared.table.refresh(conn.peer);
        conn.generation.fetch_add(1, Ordering::Relaxed);
    }
    if word == Word::Leaving {
        shared.departures.send_modify(|count| *count += 1);
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

/// So many waits without any sign of life end a connection while another way to its peer answers: the line is well, and
/// who waits on this one is better off there. Behind a relay a long upload on a slow leg may be silent for a while.
const fn patience_of(path: Path, shaken: bool, leg_is_silent: bool) -> u32 {
    match (path.kind, path.transport) {
        (PathKind::Relayed, _) if shaken => 4,
        _ if shaken || leg_is_silent => 3,
        (PathKind::Relayed, _) => 8,
        (_, PathTransport::Quic) => 3,
        _ => 5,
    }
}

/// So many waits in a row end a TCP connection whose bytes were all acknowledged: a box on the way takes them and delivers
/// nothing, or the peer's process is stuck. Waiting for a line to come back would be in vain.
const TAKEN: u32 = 3;
/// So many when nothing else answers: a link that comes back after ten seconds finds its streams as it left them. TCP
/// sends again after pauses that double where the kernel cannot bound them: it may need as long again.
const fn outage_of(path: Path) -> u32 {
    match (path.kind, path.transport) {
        (PathKind::Relayed, _) | (_, PathTransport::Tcp | PathTransport::Ws) => 26,
        (_, PathTransport::Quic) => 18,
    }
}

/// Whether a connection is in use and not silent.
fn answers(conn: &Conn) -> bool {
    conn.is_usable() && !conn.suspect.load(Ordering::Relaxed)
}

impl Shared {
    /// Probes a connection in the background, once at a time. Without an answer in time the connection is suspect: new
    /// streams take any other. How long it stays for the streams that it has says [`patience_of`], [`TAKEN`], [`outage_of`].
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

    async fn probe_now(self: &Arc<Self>, conn: &Arc<Conn>) {
        conn.probes.0.fetch_add(1, Ordering::Relaxed);
        let rtt = conn.rtt().unwrap_or_default();
        let said = say(conn, Word::Probe);
        tokio::pin!(said);
        // Waits without a sign of life; those of them in which others answered; and the last ones in which all was taken.
        let (mut silent, mut alone, mut taken, mut life) = (0_u32, 0_u32, 0_u32, conn.life());
        for _ in 0..MAX_WINDOWS {
            let shaken = conn.shaken.load(Ordering::Relaxed);
            let patience = if shaken {
                (rtt * SHAKEN_ROUND_TRIPS).max(self.timeouts.probe / 2)
            } else {
                (rtt * ROUND_TRIPS).max(self.timeouts.probe)
            };
            let (began, before) = (Instant::now(), silent);
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
                Err(_) if conn.life() != life => (silent, alone, taken) = (0, 0, 0),
                Err(_) => silent += 1,
            }
            life = conn.life();
            // After an outage our bytes may be taken a moment before the peer sends its own again.
            taken = if silent > before && self.is_taken(conn) { taken + 1 } else { 0 };
            match silent {
                n if n <= before => {}
                1 => {
                    conn.probes.1.fetch_add(1, Ordering::Relaxed);
                    conn.suspect.store(true, Ordering::Relaxed);
                    self.table.refresh(conn.peer);
                    // Requests on kept streams would wait for it as long as these do; new ones are told soon.
                    conn.generation.fetch_add(1, Ordering::Relaxed);
                    conn.doubt.notify_waiters();
                    // Perhaps it is the relay that is gone; or all that leads to the peer, or this host's own line.
                    let legs = conn.relay.map(|relay| self.table.connections_of(&relay)).unwrap_or_default();
                    legs.iter().chain(&self.others(conn)).for_each(|other| self.probe(other));
                    if conn.streams.load(Ordering::Relaxed) > 0 {
                        self.dial_silent(conn.peer);
                    }
                }
                n => {
                    alone += u32::from(shaken || self.others(conn).iter().any(|c| answers(c)));
                    let patience = patience_of(conn.path, shaken, self.is_leg_silent(conn));
                    // After an outage of all, the others may only be the first to be back.
                    let outage = if shaken { 0 } else { n.saturating_sub(alone) };
                    if alone + 1 >= patience.max(outage) {
                        return self.give_up(conn);
                    }
                    if n >= outage_of(conn.path) || taken >= TAKEN {
                        return self.give_up(conn);
                    }
                    self.poke(conn);
                }
            }
        }
        self.believe(conn);
    }

    /// Other ways to the peer of a connection; and, where that is a relay, to other relays: they tell whether it is this
    /// host's own line that is down.
    fn others(&self, conn: &Conn) -> Vec<Arc<Conn>> {
        let view = self.view();
        let is_relay = |peer: PeerId| view.relays().iter().any(|r| r.id == peer);
        let both = is_relay(conn.peer);
        let mut all = self.table.connections();
        all.retain(|c| c.id != conn.id && (c.peer == conn.peer || (both && is_relay(c.peer))));
        all
    }

    /// Whether the connection to the relay that carries this one is silent too.
    fn is_leg_silent(&self, conn: &Conn) -> bool {
        let legs = conn.relay.map(|relay| self.table.connections_of(&relay)).unwrap_or_default();
        conn.relay.is_some() && !legs.iter().any(|c| answers(c))
    }

    /// Whether the kernel says that the other end took all that was sent.
    fn is_taken(&self, conn: &Conn) -> bool {
        let straight = conn.path.kind != PathKind::Relayed && conn.path.transport != PathTransport::Quic;
        let to = socket_of(&conn.remote).filter(|_| straight);
        to.and_then(|at| self.kernel.has_delivered(at)) == Some(true)
    }

    /// Says one more word on a silent connection. QUIC repeats a lost packet ever more rarely; a new one goes at once, so
    /// that a line that is back is noticed.
    fn poke(&self, conn: &Arc<Conn>) {
        if conn.path.transport == PathTransport::Quic && conn.path.kind != PathKind::Relayed {
            let (conn, limit) = (conn.clone(), self.timeouts.negotiate);
            self.placement.control().spawn(async move {
                let _heard_as_a_sign_of_life = tokio::time::timeout(limit, say(&conn, Word::Probe)).await;
            });
        }
    }

    fn believe(&self, conn: &Conn) {
        conn.shaken.store(false, Ordering::Relaxed);
        if conn.suspect.swap(false, Ordering::Relaxed) {
            self.table.answered(conn.peer);
        }
    }

    /// Ends a connection that is of no use to anybody.
    pub(crate) fn give_up(&self, conn: &Conn) {
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
