//! What is kept of a node.

use mesh_index::Registration;
use serde::{Deserialize, Serialize};

/// How a node has proved itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Origin {
    /// By a join token, made for it by an operator.
    #[default]
    JoinToken,
    /// As a pod on the node of that name.
    NodeServiceAccount,
    /// As the pod of that name.
    PodServiceAccount,
}

/// What is kept of a node. Fields that a newer controller writes are no error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRecord {
    /// Its name.
    pub node: String,
    /// libp2p peer id.
    pub peer_id: String,
    /// Multiaddrs, best first.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// It carries circuits of others.
    #[serde(default)]
    pub relay: bool,
    /// Kind of its NAT.
    #[serde(default)]
    pub nat: String,
    /// Circuit addresses at which it is reached.
    #[serde(default)]
    pub reservations: Vec<String>,
    /// What it runs.
    #[serde(default)]
    pub version: String,
    /// Seconds since 1970 of the first join.
    pub joined: u64,
    /// Seconds since 1970 of the last report that changed anything.
    #[serde(default)]
    pub reported: u64,
    /// How it has proved itself.
    #[serde(default)]
    pub origin: Origin,
    /// There was a Node object of this name when it joined: it leaves with it.
    #[serde(default)]
    pub in_cluster: bool,
    /// The machine on which it runs, as it says: host name, boot and network namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub machine: String,
    /// A second machine that came with the same key while the first was connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
}

/// A machine that is refused because another one with the same key is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refused {
    /// The machine.
    pub machine: String,
    /// The address of the one that stays.
    pub kept_address: String,
    /// Seconds since 1970.
    pub at: u64,
}

/// What is noted of a join.
#[derive(Debug, Clone, Default)]
pub(crate) struct Joined {
    pub peer_id: String,
    /// `None` for a renewal.
    pub origin: Option<Origin>,
    pub in_cluster: bool,
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub addresses: Vec<String>,
    pub relay: bool,
    pub nat: String,
    pub reservations: Vec<String>,
    pub version: String,
}

impl Said {
    /// A record with this in it.
    pub(super) fn on(&self, old: &NodeRecord) -> NodeRecord {
        let Self { addresses, relay, nat, reservations, version } = self.clone();
        NodeRecord { addresses, relay, nat, reservations, version, ..old.clone() }
    }
}

impl NodeRecord {
    pub(super) fn new(node: &str, now: u64) -> Self {
        Self {
            node: node.to_owned(),
            peer_id: String::new(),
            addresses: Vec::new(),
            relay: false,
            nat: String::new(),
            reservations: Vec::new(),
            version: String::new(),
            joined: now,
            reported: 0,
            origin: Origin::default(),
            in_cluster: false,
            machine: String::new(),
            refused: None,
        }
    }

    /// What the index has to know.
    pub(super) fn registration(&self) -> Registration {
        Registration {
            peer_id: self.peer_id.clone(),
            addresses: self.addresses.clone(),
            relay: self.relay,
            nat: self.nat.clone(),
            reservations: self.reservations.clone(),
        }
    }
}
