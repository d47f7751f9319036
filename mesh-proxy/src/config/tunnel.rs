//! How this node reaches others through NATs, and is reached; and what it does as a relay.

use std::time::Duration;

use mesh_tunnel::{NatConfig, RelayConfig};
use serde::{Deserialize, Serialize};

/// What this node does as a relay. 0 means no limit where that is possible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RelaySettings {
    /// Serve circuits; none = when the node's label `selvage.io/relay` says so.
    pub enabled: Option<bool>,
    /// Nodes that hold a reservation.
    pub reservations: usize,
    /// Circuits in total.
    pub circuits: usize,
    /// Circuits that one node takes part in.
    #[serde(alias = "circuits_per_peer")]
    pub circuits_per_peer: usize,
    /// Seconds after which a circuit is ended; 0 = never.
    #[serde(alias = "duration_seconds")]
    pub duration_seconds: u64,
    /// Bytes after which a circuit is ended; 0 = never.
    pub bytes: u64,
    /// Bytes a second that the circuits of one node move together; 0 = as much as there is.
    #[serde(alias = "rate_per_peer")]
    pub rate_per_peer: u64,
    /// Bytes that one direction of a circuit copies at a time.
    #[serde(alias = "buffer_bytes")]
    pub buffer_bytes: usize,
}

/// Ways through NATs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct NatSettings {
    /// Relays through which this node is reached; 0 = none. A relay holds none.
    pub reservations: usize,
    /// Upgrade relayed connections to direct ones.
    pub punch: bool,
    /// Ask the router for a port by UPnP.
    pub upnp: bool,
    /// Find peers on the same LAN.
    pub mdns: bool,
    /// Ask other nodes where a peer is when its known addresses lead nowhere.
    pub kademlia: bool,
    /// Ask relays whether this node is reached from outside, and answer others.
    pub autonat: bool,
}

impl Default for RelaySettings {
    fn default() -> Self {
        let limits = RelayConfig::default();
        Self {
            enabled: None,
            reservations: limits.reservations,
            circuits: limits.circuits,
            circuits_per_peer: limits.circuits_per_peer,
            duration_seconds: 0,
            bytes: 0,
            rate_per_peer: 0,
            buffer_bytes: limits.buffer,
        }
    }
}

impl Default for NatSettings {
    fn default() -> Self {
        let all = NatConfig::all();
        Self {
            reservations: all.reservations,
            punch: all.punch,
            upnp: all.upnp,
            mdns: all.mdns,
            kademlia: all.kad,
            autonat: all.autonat,
        }
    }
}

/// Sizes of the buffers of a circuit.
const BUFFERS: std::ops::RangeInclusive<usize> = 4 << 10..=4 << 20;

impl RelaySettings {
    /// Everything that is wrong, by key.
    pub fn validate(&self) -> Vec<(&'static str, String)> {
        let mut out = Vec::new();
        let mut check = |key, bad: bool, reason: &str| {
            if bad {
                out.push((key, reason.to_owned()));
            }
        };
        check(
            "relay.reservations",
            !(1..=100_000).contains(&self.reservations),
            "is not between 1 and 100000",
        );
        check("relay.circuits", !(1..=1_000_000).contains(&self.circuits), "is not between 1 and 1000000");
        let of_peer = self.circuits_per_peer == 0 || self.circuits_per_peer > self.circuits;
        check("relay.circuitsPerPeer", of_peer, "is 0 or more than relay.circuits");
        check("relay.durationSeconds", self.duration_seconds > 31_536_000, "is more than a year");
        check(
            "relay.ratePerPeer",
            (1..1024).contains(&self.rate_per_peer),
            "is less than 1024 bytes a second",
        );
        check("relay.bufferBytes", !BUFFERS.contains(&self.buffer_bytes), "is not between 4 KiB and 4 MiB");
        out
    }

    /// The same for the tunnel.
    pub fn limits(&self) -> RelayConfig {
        RelayConfig {
            enabled: self.enabled == Some(true),
            reservations: self.reservations,
            circuits: self.circuits,
            circuits_per_peer: self.circuits_per_peer,
            duration: (self.duration_seconds > 0).then(|| Duration::from_secs(self.duration_seconds)),
            bytes: (self.bytes > 0).then_some(self.bytes),
            rate_per_peer: (self.rate_per_peer > 0).then_some(self.rate_per_peer),
            buffer: self.buffer_bytes,
            ..RelayConfig::default()
        }
    }
}

impl NatSettings {
    /// Everything that is wrong, by key.
    pub fn validate(&self) -> Vec<(&'static str, String)> {
        let many = self.reservations > 8;
        if many { vec![("nat.reservations", "is more than 8".to_owned())] } else { Vec::new() }
    }

    /// The same for the tunnel of `node`, which is reached at `external` as the operator says.
    pub fn apply(&self, node: &str, external: Vec<String>, relay: RelayConfig) -> NatConfig {
        NatConfig {
            node: node.to_owned(),
            relay,
            external,
            reservations: self.reservations,
            punch: self.punch,
            upnp: self.upnp,
            mdns: self.mdns,
            kad: self.kademlia,
            autonat: self.autonat,
            ..NatConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_wrong_is_named_and_the_defaults_are_right() {
        assert_eq!(RelaySettings::default().validate(), []);
        assert_eq!(NatSettings::default().validate(), []);
        let bad = RelaySettings {
            reservations: 0,
            circuits: 0,
            circuits_per_peer: 0,
            duration_seconds: u64::MAX,
            rate_per_peer: 1,
            buffer_bytes: 1,
            ..RelaySettings::default()
        };
        let keys: Vec<&str> = bad.validate().into_iter().map(|(k, _)| k).collect();
        assert_eq!(
            keys,
            [
                "relay.reservations",
                "relay.circuits",
                "relay.circuitsPerPeer",
                "relay.durationSeconds",
                "relay.ratePerPeer",
                "relay.bufferBytes"
            ]
        );
        assert_eq!(NatSettings { reservations: 9, ..NatSettings::default() }.validate().len(), 1);
    }

    #[test]
    fn zero_is_no_limit() {
        let relay = RelaySettings::default().limits();
        assert_eq!((relay.duration, relay.bytes, relay.rate_per_peer), (None, None, None));
        assert!(relay.buffer >= 64 << 10 && relay.reservations >= 5_000 && !relay.enabled);
    }
}
