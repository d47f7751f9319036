//! One established connection: what is known of it, and what the connections of a peer share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use libp2p::{Multiaddr, PeerId, Stream, swarm::ConnectionId};
use prometheus::IntCounter;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{exec::Worker, path::Path};

/// Asks a connection for a stream. Dropping the receiver cancels it.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) reply: oneshot::Sender<Stream>,
    pub(crate) what: Asked,
}

/// What the stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// An endpoint of the peer.
    Tunnel,
    /// A word between the two nodes about the connection itself.
    Control,
}

/// Opens that wait for the connection task to notice them.
pub(crate) const OPEN_QUEUE: usize = 1024;

/// One established connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) id: ConnectionId,
    pub(crate) peer: PeerId,
    pub(crate) path: Path,
    /// The relay that carries it.
    pub(crate) relay: Option<PeerId>,
    pub(crate) remote: Multiaddr,
    pub(crate) dialled: bool,
    pub(crate) worker: Option<Worker>,
    pub(crate) opens: mpsc::Sender<Ask>,
    pub(crate) since: (SystemTime, Instant),
    /// Streams of both directions on this connection.
    pub(crate) streams: AtomicUsize,
    pub(crate) load: Arc<PeerLoad>,
    /// Smoothed round trip; 0 = not measured.
    pub(crate) rtt_us: AtomicU64,
    /// Probes that were sent, and those that had no answer in time.
    pub(crate) probes: (AtomicU32, AtomicU32),
    pub(crate) sent: Counted,
    pub(crate) received: Counted,
    /// Signs of life beside the bytes of streams.
    pub(crate) signs: AtomicU64,
    /// Signs of life of the socket below, which it may share with other connections to the same address.
    pub(crate) socket: Option<Arc<AtomicU64>>,
    pub(crate) closed: AtomicBool,
    /// The peer's process behind it takes no new streams, or a better connection has taken its place.
    pub(crate) retired: AtomicBool,
    /// The peer has heard that it takes no new streams.
    pub(crate) told: AtomicBool,
    /// It has not answered for a while; new streams prefer any other.
    pub(crate) suspect: AtomicBool,
    /// Moves when pooled streams to the node should be left for new ones.
    pub(crate) generation: Arc<AtomicU64>,
    /// Another connection to the same place has just broken: this one is asked with less patience.
    pub(crate) shaken: AtomicBool,
    /// A probe is under way.
    pub(crate) probing: AtomicBool,
    /// Tells opens that wait on it that it became suspect.
    pub(crate) doubt: Notify,
}

/// Bytes of one direction of one connection, counted for the node too.
#[derive(Debug)]
pub(crate) struct Counted {
    own: AtomicU64,
    all: IntCounter,
}

impl Counted {
    pub(crate) fn new(all: IntCounter) -> Self {
        Self { own: AtomicU64::new(0), all }
    }

    pub(crate) fn add(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.own.fetch_add(bytes, Ordering::Relaxed);
        self.all.inc_by(bytes);
    }

    pub(crate) fn get(&self) -> u64 {
        self.own.load(Ordering::Relaxed)
    }
}

impl Conn {
    /// Whether new streams may take it.
    pub(crate) fn is_usable(&self) -> bool {
        !self.closed.load(Ordering::Relaxed)
            && !self.retired.load(Ordering::Relaxed)
            // The connection's task has ended; the swarm says so a little later.
            && !self.opens.is_closed()
    }

    /// Notes that something came from the peer.
    pub(crate) fn heard(&self) {
        self.signs.fetch_add(1, Ordering::Relaxed);
    }

    /// Moves whenever something comes from the peer.
    pub(crate) fn life(&self) -> u64 {
        let socket = self.socket.as_ref().map_or(0, |s| s.load(Ordering::Relaxed));
        self.signs.load(Ordering::Relaxed).wrapping_add(self.received.get()).wrapping_add(socket)
    }

    /// Whether a pool should leave it at the next request: there is a better connection, or it takes no new streams.
    pub(crate) fn is_superseded(&self) -> bool {
        !self.is_usable() || self.load.best.load(Ordering::Relaxed) < self.path.rank()
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        match self.rtt_us.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    /// Takes a new measurement of the round trip.
    pub(crate) fn measured(&self, rtt: Duration) {
        let micros = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1);
        let before = self.rtt_us.load(Ordering::Relaxed);
        let smoothed = if before == 0 { micros } else { before - before / 4 + micros / 4 };
        self.rtt_us.store(smoothed.max(1), Ordering::Relaxed);
    }
}

/// No usable connection.
pub(super) const NO_PATH: u8 = u8::MAX;

/// What all connections of one peer share.
#[derive(Debug)]
pub(crate) struct PeerLoad {
    pub(crate) outbound: AtomicUsize,
    pub(crate) inbound: AtomicUsize,
    /// Rank of the best usable path.
    pub(super) best: AtomicU8,
}

impl Default for PeerLoad {
    fn default() -> Self {
        Self { outbound: AtomicUsize::new(0), inbound: AtomicUsize::new(0), best: AtomicU8::new(NO_PATH) }
    }
}
