//! What a node sets for its tunnel, and every bound with its default.

use std::{str::FromStr, sync::Arc, time::Duration};

use crate::{identity::NodeKey, ws::proxy::Proxy};

pub use crate::nat::settings::{NatConfig, RelayConfig};

/// Settings of one tunnel.
#[derive(Debug, Clone)]
pub struct TunnelConfig {
    /// The node's key.
    pub key: NodeKey,
    /// Multiaddrs to listen on: `/ip4/0.0.0.0/tcp/15008`, `/ip4/0.0.0.0/udp/15008/quic-v1`. Empty: dial only.
    pub listen: Vec<String>,
    /// Through which addresses of WebSockets are dialled.
    pub proxy: Option<Proxy>,
    /// Congestion control of all connections.
    pub congestion: Congestion,
    /// Reaching peers through NATs, and being reached.
    pub nat: NatConfig,
    /// Bounds.
    pub limits: Limits,
    /// Waits.
    pub timeouts: Timeouts,
}

impl TunnelConfig {
    /// Defaults, with TCP and QUIC listeners on one port of all IPv4 addresses.
    pub fn new(key: NodeKey, port: u16) -> Self {
        let listen = vec![format!("/ip4/0.0.0.0/tcp/{port}"), format!("/ip4/0.0.0.0/udp/{port}/quic-v1")];
        Self {
            key,
            listen,
            proxy: None,
            congestion: Congestion::default(),
            nat: NatConfig::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// How fast connections send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Congestion {
    /// By the rate that the line shows: BBR on TCP where the kernel has it, one of our own on QUIC.
    #[default]
    Auto,
    /// By one of the kernel's that the operator names. QUIC then does the same where it can, for `cubic` and `reno`.
    Named(Arc<str>),
}

impl Congestion {
    /// Its name for the kernel, if there is one.
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self::Auto => None,
            Self::Named(name) => Some(name),
        }
    }
}

/// The name is none that a kernel has.
#[derive(Debug, thiserror::Error)]
#[error("is neither auto nor a name of the kernel's, such as cubic, reno, bbr")]
pub struct NoCongestion;

impl FromStr for Congestion {
    type Err = NoCongestion;

    fn from_str(text: &str) -> Result<Self, NoCongestion> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        match text {
            "" | "auto" => Ok(Self::Auto),
            // The kernel's names have at most 15 bytes.
            name if name.len() < 16 && name.bytes().all(fits) => Ok(Self::Named(name.into())),
            _ => Err(NoCongestion),
        }
    }
}

/// Bounds. What is beyond one is refused at once and counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Streams with one peer, for each direction of opening.
    pub streams_per_peer: usize,
    /// Streams of this node in total, both directions.
    pub streams: usize,
    /// Streams that wait to be accepted, for each acceptor. Beyond it the opener gets `OVERLOADED`.
    pub accept_queue: usize,
    /// Streams of one connection that still read their open message. Beyond it the muxer holds new ones back.
    pub negotiating: usize,
    /// TCP connections that this node dials to one peer; more than one only when there are several workers.
    pub connections_per_peer: usize,
    /// Connections of one peer, whoever dialled; what is beyond is cut at once.
    pub connections_of_a_peer: u32,
    /// Incoming connections that have not yet proved who they are.
    pub handshakes: u32,
    /// A further connection is dialled when the ones there carry this many streams each.
    pub spread_at: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams_per_peer: 16_384,
            streams: 65_536,
            accept_queue: 16_384,
            negotiating: 4_096,
            connections_per_peer: 4,
            connections_of_a_peer: 32,
            handshakes: 256,
            spread_at: 4,
        }
    }
}

/// Waits. Each has an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// One attempt to connect to one address, handshake included.
    pub dial: Duration,
    /// QUIC addresses are tried beside TCP ones after this head start.
    pub quic_delay: Duration,
    /// WebSocket addresses are tried after this head start of the others.
    pub ws_delay: Duration,
    /// Circuits through relays are tried after this head start of the straight addresses.
    pub circuit_delay: Duration,
    /// Between the first circuit and the next one, through another relay.
    pub circuit_stagger: Duration,
    /// An open that has no answer for this long has its connection probed.
    pub suspect: Duration,
    /// A probe without an answer for this long: new streams take another connection. Without one for three times
    /// as long the connection is given up. A slow path gets more: six of its round trips.
    pub probe: Duration,
    /// A connection that is worse than another one takes no new streams any more after this, and closes when idle.
    pub linger: Duration,
    /// First pause before better addresses of a peer on a worse path are dialled again; it doubles up to `upgrade_max`.
    pub upgrade_min: Duration,
    /// Longest pause between two such attempts.
    pub upgrade_max: Duration,
    /// A whole open: dial, open message, the owner's connect to the endpoint, answer.
    pub open: Duration,
    /// Protocol negotiation and the open message, on either side.
    pub negotiate: Duration,
    /// A connection without streams is closed after this.
    pub idle: Duration,
    /// First pause after a failed dial; it doubles up to `backoff_max`.
    pub backoff_min: Duration,
    /// Longest pause after failed dials.
    pub backoff_max: Duration,
    /// Interval of liveness probes on a connection.
    pub ping: Duration,
    /// A probe without an answer for this long closes the connection.
    pub ping_timeout: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            dial: Duration::from_secs(5),
            quic_delay: Duration::from_millis(300),
            ws_delay: Duration::from_millis(600),
            circuit_delay: Duration::from_millis(150),
            circuit_stagger: Duration::from_millis(250),
            suspect: Duration::from_millis(500),
            probe: Duration::from_millis(800),
            linger: Duration::from_secs(30),
            upgrade_min: Duration::from_secs(2),
            upgrade_max: Duration::from_secs(120),
            open: Duration::from_secs(10),
            negotiate: Duration::from_secs(5),
            idle: Duration::from_secs(300),
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(15),
            ping: Duration::from_secs(15),
            ping_timeout: Duration::from_secs(25),
        }
    }
}
