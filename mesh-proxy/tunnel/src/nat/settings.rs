//! What a node sets for reaching and being reached through NATs. Everything has an off-switch; nothing of it is waited
//! for at start.

use std::time::Duration;

/// Settings of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatConfig {
    /// Name of this node, for what is said to people.
    pub node: String,
    /// This node serves circuits to others.
    pub relay: RelayConfig,
    /// Multiaddrs at which the operator says that this node is reached.
    pub external: Vec<String>,
    /// Reservations that are kept warm; 0 holds none.
    pub reservations: usize,
    /// Relays whose round trip is measured before some are chosen.
    pub measured_relays: usize,
    /// Upgrade relayed connections to direct ones.
    pub punch: bool,
    /// First pause after a failed punch; it doubles up to `punch_backoff_max`.
    pub punch_backoff: Duration,
    /// Longest pause after failed punches.
    pub punch_backoff_max: Duration,
    /// Ask the router for a port by UPnP.
    pub upnp: bool,
    /// Find peers on the same LAN.
    pub mdns: bool,
    /// Ask other nodes where a peer is when its known addresses lead nowhere.
    pub kad: bool,
    /// Ask other nodes whether this one is reached from outside, and answer them.
    pub autonat: bool,
}

impl Default for NatConfig {
    /// Quiet: holds reservations and punches, and sends nothing to anyone who is not a peer.
    fn default() -> Self {
        Self {
            node: "this node".to_owned(),
            relay: RelayConfig::default(),
            external: Vec::new(),
            reservations: 2,
            measured_relays: 6,
            punch: true,
            punch_backoff: Duration::from_secs(5),
            punch_backoff_max: Duration::from_secs(600),
            upnp: false,
            mdns: false,
            kad: false,
            autonat: false,
        }
    }
}

impl NatConfig {
    /// All means of finding peers and being found.
    pub fn all() -> Self {
        Self { upnp: true, mdns: true, kad: true, autonat: true, ..Self::default() }
    }
}

/// Limits of a relay. What is beyond one is refused at once and counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayConfig {
    /// Serve from the start; [`crate::Tunnel::set_relay`] changes it.
    pub enabled: bool,
    /// Nodes that hold a reservation.
    pub reservations: usize,
    /// Circuits in total.
    pub circuits: usize,
    /// Circuits that one node takes part in, on either side.
    pub circuits_per_peer: usize,
    /// Age at which a circuit is ended. None: never.
    pub duration: Option<Duration>,
    /// Bytes, both directions, after which a circuit is ended. None: never.
    pub bytes: Option<u64>,
    /// Bytes a second that the circuits of one node move together. None: as much as there is.
    pub rate_per_peer: Option<u64>,
    /// Requests that one peer may have unanswered.
    pub requests_per_peer: usize,
    /// Bytes that one direction of a circuit copies at a time.
    pub buffer: usize,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            reservations: 5_000,
            circuits: 16_384,
            circuits_per_peer: 1_024,
            duration: None,
            bytes: None,
            rate_per_peer: None,
            requests_per_peer: 64,
            buffer: 64 << 10,
        }
    }
}
