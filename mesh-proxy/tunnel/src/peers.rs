//! Which nodes may connect, and where they are dialled. A view is immutable and swapped whole.

use std::{collections::HashMap, sync::Arc};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

/// One node of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Node name.
    pub node: String,
    /// Base58 peer id.
    pub peer_id: String,
    /// Multiaddrs without `/p2p`, best first.
    pub addresses: Vec<String>,
}

/// How a connection reaches its peer, best first. A new stream takes the best one there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Path {
    /// Moves bulk at half the CPU of QUIC.
    Tcp,
    Quic,
    /// Through a relay.
    Relayed,
}

impl Path {
    pub(crate) fn of(address: &Multiaddr) -> Self {
        let mut path = Self::Tcp;
        for part in address.iter() {
            match part {
                Protocol::P2pCircuit => return Self::Relayed,
                Protocol::QuicV1 | Protocol::Quic => path = Self::Quic,
                _ => {}
            }
        }
        path
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Quic => "quic",
            Self::Relayed => "relayed",
        }
    }
}

/// A peer, parsed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) node: Arc<str>,
    pub(crate) id: PeerId,
    /// Groups that are tried one after the other: TCP, QUIC, relayed.
    pub(crate) addresses: Vec<Vec<Multiaddr>>,
}

/// All peers at one moment.
#[derive(Debug, Default)]
pub(crate) struct View {
    by_node: HashMap<Arc<str>, Arc<Known>>,
    by_id: HashMap<PeerId, Arc<Known>>,
}

/// Most addresses that are kept for a peer: more would only lengthen a dial.
const MAX_ADDRESSES: usize = 16;

impl View {
    /// Parses peers; gives also the ones that are left out, with the reason.
    pub(crate) fn new(peers: &[Peer], own: &PeerId) -> (Self, Vec<(String, String)>) {
        let (mut view, mut refused) = (Self::default(), Vec::new());
        for peer in peers {
            let id = match peer.peer_id.parse::<PeerId>() {
                Ok(id) if id == *own => continue,
                Ok(id) => id,
                Err(e) => {
                    refused.push((peer.node.clone(), format!("peer id: {e}")));
                    continue;
                }
            };
            if let Some(other) = view.by_id.get(&id) {
                refused.push((peer.node.clone(), format!("has the peer id of {}", other.node)));
                continue;
            }
            let mut groups = [Vec::new(), Vec::new(), Vec::new()];
            for text in peer.addresses.iter().take(MAX_ADDRESSES) {
                match text.parse::<Multiaddr>() {
                    Ok(address) => groups[Path::of(&address) as usize].push(address),
                    Err(e) => refused.push((peer.node.clone(), format!("address {text:?}: {e}"))),
                }
            }
            let addresses = groups.into_iter().filter(|g| !g.is_empty()).collect();
            let known = Arc::new(Known { node: peer.node.as_str().into(), id, addresses });
            view.by_node.insert(known.node.clone(), known.clone());
            view.by_id.insert(id, known);
        }
        (view, refused)
    }

    pub(crate) fn node(&self, name: &str) -> Option<&Arc<Known>> {
        self.by_node.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&PeerId, &Arc<Known>)> {
        self.by_id.iter()
    }

    pub(crate) fn peer(&self, id: &PeerId) -> Option<&Arc<Known>> {
        self.by_id.get(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::NodeKey;

    #[test]
    fn addresses_are_grouped_with_tcp_first_and_bad_ones_named() {
        let own: PeerId = NodeKey::generate().peer_id().parse().unwrap();
        let id = NodeKey::generate().peer_id();
        let peer = |node: &str, id: &str, addresses: &[&str]| Peer {
            node: node.into(),
            peer_id: id.into(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
        };
        let (view, refused) = View::new(
            &[
                peer("a", &id, &["/ip4/1.2.3.4/udp/1/quic-v1", "/ip4/1.2.3.4/tcp/1", "nonsense"]),
                peer("b", "not an id", &[]),
                peer("c", &id, &[]),
                peer("self", &own.to_base58(), &[]),
            ],
            &own,
        );
        let a = view.node("a").unwrap();
        let flat: Vec<Vec<String>> =
            a.addresses.iter().map(|g| g.iter().map(ToString::to_string).collect()).collect();
        assert_eq!(flat, [["/ip4/1.2.3.4/tcp/1"], ["/ip4/1.2.3.4/udp/1/quic-v1"]]);
        assert_eq!(refused.iter().map(|r| r.0.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(view.node("self").is_none() && view.node("b").is_none() && view.node("c").is_none());
    }
}
