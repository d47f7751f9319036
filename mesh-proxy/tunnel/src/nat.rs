//! Reaching peers through NATs, and being reached: relays, reservations, hole punching, what others see of this node.
//!
//! - [`settings`]: what a node sets.
//! - `engine`: listens to the swarm and acts on it; all other parts are asked by it.
//! - `ports`: streams of the small protocols below, on every connection. `wire`: their messages.
//! - `relay`: serves circuits. `reserve`: chooses relays and holds reservations.
//! - `punch`: turns a relayed connection into a direct one. `candidates`: where two peers may meet.
//! - [`kind`]: what NAT a node is behind. [`knowledge`]: what status output says about all of it.

mod candidates;
mod engine;
pub mod kind;
pub mod knowledge;
mod metrics;
mod ports;
mod punch;
mod relay;
mod reserve;
pub mod settings;
mod wire;

use libp2p::swarm::NetworkBehaviour;

use self::settings::NatConfig;
pub(crate) use self::{engine::Engine, metrics::Metrics, ports::Ports};

/// The swarm's side of it.
#[derive(NetworkBehaviour)]
pub(crate) struct Parts {
    pub(crate) ports: Ports,
}

impl Parts {
    pub(crate) fn new(config: &NatConfig) -> Self {
        let _ = config;
        Self { ports: Ports::default() }
    }
}

/// What a node tells the controller about how it is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NatReport {
    /// Kind of NAT, in the words of [`kind::NatKind::as_str`].
    pub nat: String,
    /// Carries circuits of others.
    pub relay: bool,
    /// Circuit addresses at which it listens: `…/p2p/RELAY/p2p-circuit`, nearest relay first.
    pub reservations: Vec<String>,
    /// Addresses that its router has opened to everybody.
    pub addresses: Vec<String>,
}
