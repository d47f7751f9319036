//! libp2p behind open and accept, with bounds. The only crate that knows libp2p: addresses, peer ids and keys cross
//! its border as text and bytes.
//!
//! - [`config`]: what a node sets, and every limit with its default.
//! - [`identity`]: the node's tunnel key, its peer id, the join signature.
//! - [`peers`]: which nodes may connect, and where they are dialled.
//! - [`tunnel`]: the handle: open a stream to a node, change the peers, drain, close.
//! - [`accept`]: streams that other nodes open to this one.
//! - [`stream`]: the byte stream itself: half-close and reset travel through it.
//! - [`error`]: the closed set of reasons why a stream does not open.
//!
//! Inside: `driver` runs the swarm and dials, `table` knows the connections of each peer and picks one, `behaviour`
//! and `handler` open and admit streams on a connection, `transport` stacks TCP (`socket`), TLS (`security`) and
//! the muxer (`mux`), `ahead` reads ahead on circuits, `quic` is QUIC and `ws` WebSocket, `wire` is the open message and its answer, `marked` gives QUIC streams a reset.
#![deny(missing_docs)]

pub mod accept;
mod ahead;
mod behaviour;
mod certificate;
pub mod config;
mod control;
mod driver;
pub mod error;
mod exec;
mod foreign;
mod handler;
pub mod identity;
mod kernel;
mod marked;
mod metrics;
mod mux;
pub mod nat;
mod numbers;
mod open;
pub mod path;
pub mod peers;
mod plan;
mod quic;
mod security;
mod socket;
pub mod status;
pub mod stream;
mod table;
mod transport;
pub mod tunnel;
mod wire;
mod ws;

pub use accept::{Acceptor, Incoming};
pub use config::{Congestion, Limits, NatConfig, RelayConfig, Timeouts, TunnelConfig};
pub use error::{OpenError, Refusal, StartError};
pub use exec::Executors;
pub use identity::{KeyError, NodeKey, peer_id_of, verify_join};
pub use nat::{
    NatReport,
    kind::NatKind,
    knowledge::{PeerKnowledge, Punch, PunchOutcome},
};
pub use open::MAX_EARLY;
pub use path::{Path, PathKind, PathTransport, is_multiaddr};
pub use peers::Peer;
pub use status::{PathStatus, PeerStatus};
pub use stream::{Place, TunnelStream};
pub use tunnel::Tunnel;
pub use ws::proxy::{Proxy, ProxyError};
