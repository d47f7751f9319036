//! Reaching peers through NATs, and being reached: relays, reservations, hole punching, what others see of this node.
//!
//! - [`settings`]: what a node sets.
//! - `engine`: listens to the swarm and acts on it; all other parts are asked by it.
//! - `ports`: streams of the small protocols below, on every connection. `wire`: their messages.
//! - `relay`: serves circuits. `reserve`: chooses relays and holds reservations.
//! - `punch`: turns a relayed connection into a direct one. `candidates`: where two peers may meet.
//! - `mapping`: has the router open ports. `probe`: measures the NAT with two relays. `dial_back`: tests of others, AutoNAT's. `discover`: peers on the LAN, and where others have seen a peer.
//! - [`kind`]: what NAT a node is behind. [`knowledge`]: what status output says about all of it.

mod candidates;
mod dial_back;
mod discover;
mod engine;
mod kademlia;
pub mod kind;
pub mod knowledge;
mod locals;
mod mapping;
mod metrics;
mod ports;
mod probe;
mod punch;
mod relay;
mod reserve;
pub mod settings;
mod wire;

use std::sync::Arc;

use libp2p::{
    PeerId, autonat, mdns,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};

pub use self::engine::outward;
use self::{dial_back::DialBacks, kademlia::Kademlia, settings::NatConfig};
pub(crate) use self::{engine::Engine, locals::Locals, metrics::Metrics, ports::Ports};
use crate::tunnel::Shared;

/// The swarm's side of it.
#[derive(NetworkBehaviour)]
pub(crate) struct Parts {
    pub(crate) ports: Ports,
    pub(crate) mdns: Toggle<mdns::tokio::Behaviour>,
    pub(crate) kad: Toggle<Kademlia>,
    pub(crate) autonat: Toggle<autonat::v2::client::Behaviour>,
    pub(crate) autonat_server: Toggle<DialBacks>,
}

impl Parts {
    pub(crate) fn new(config: &NatConfig, own: PeerId, shared: Arc<Shared>) -> Self {
        let mdns = config.mdns.then(|| discover::mdns(own)).and_then(|started| {
            let explain = |error: &_| tracing::warn!(%error, "peers on the LAN are not looked for");
            started.inspect_err(explain).ok()
        });
        let serves = config.autonat && config.relay.enabled;
        Self {
            ports: Ports::new(shared.clone()),
            mdns: Toggle::from(mdns),
            kad: Toggle::from(config.kad.then(|| Kademlia::new(discover::kad(own)))),
            autonat: Toggle::from((config.autonat && !serves).then(autonat::v2::client::Behaviour::default)),
            autonat_server: Toggle::from(serves.then(|| DialBacks::new(shared))),
        }
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
    /// Whether other nodes get in from outside, by AutoNAT; none: nobody has tried.
    pub reached: Option<bool>,
}
