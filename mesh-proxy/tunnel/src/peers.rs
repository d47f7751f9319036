//! Which nodes may connect, and where they are dialled. A view is immutable and swapped whole.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

use crate::path::{is_circuit, is_dialable};

/// One node of the registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Node name.
    pub node: String,
    /// Base58 peer id.
    pub peer_id: String,
    /// Multiaddrs without `/p2p`, best first.
    pub addresses: Vec<String>,
    /// Carries circuits of others.
    pub relay: bool,
    /// Circuit addresses at which the node listens: `…/p2p/RELAY/p2p-circuit`.
    pub reservations: Vec<String>,
    /// Kind of NAT that it says it is behind.
    pub nat: String,
}

/// A peer, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) node: Arc<str>,
    pub(crate) id: PeerId,
    /// Where it is reached straight, in the registry's order.
    pub(crate) addresses: Vec<Multiaddr>,
    /// Where it is reached through relays that it chose, whole: `…/p2p/RELAY/p2p-circuit/p2p/PEER`.
    pub(crate) circuits: Vec<Multiaddr>,
    pub(crate) relay: bool,
    pub(crate) nat: Box<str>,
    /// Of what it was made from.
    hash: u64,
}

impl Known {
    /// Whether it can be reached at the same places as `other`.
    pub(crate) fn same_places(&self, other: &Self) -> bool {
        self.addresses == other.addresses && self.circuits == other.circuits
    }
}

/// All peers at one moment.
#[derive(Debug, Default)]
pub(crate) struct View {
    by_node: HashMap<Arc<str>, Arc<Known>>,
    by_id: HashMap<PeerId, Arc<Known>>,
    relays: Vec<Arc<Known>>,
    hasher: RandomState,
}

/// Most addresses that are kept for a peer: more would only lengthen a dial.
const MAX_ADDRESSES: usize = 16;

impl View {
    /// Parses peers; gives also the ones that are left out, with the reason.
    #[cfg(test)]
    pub(crate) fn new(peers: &[Peer], own: &PeerId) -> (Self, Vec<(String, String)>) {
        Self::default().next(peers, own)
    }

    /// The view that follows this one. Peers that are as they were are not parsed again: in a large mesh some node's entry
    /// changes all the time, and every node hears of it.
    pub(crate) fn next(&self, peers: &[Peer], own: &PeerId) -> (Self, Vec<(String, String)>) {
        let (mut view, mut refused) = (Self { hasher: self.hasher.clone(), ..Self::default() }, Vec::new());
        for peer in peers {
            let hash = self.hasher.hash_one(peer);
            let known = self.by_node.get(peer.node.as_str());
            if let Some(known) = known.filter(|k| k.hash == hash && !view.by_id.contains_key(&k.id)) {
                view.add(known.clone());
                continue;
            }
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
            let (mut addresses, mut circuits) = (Vec::new(), Vec::new());
            let all = peer.addresses.iter().take(MAX_ADDRESSES);
            for text in all.chain(peer.reservations.iter().take(MAX_ADDRESSES)) {
                match text.parse::<Multiaddr>() {
                    Ok(address) if is_circuit(&address) => match circuit_to(address, id) {
                        Ok(whole) => circuits.push(whole),
                        Err(why) => refused.push((peer.node.clone(), format!("address {text:?}: {why}"))),
                    },
                    Ok(address) if is_dialable(&address) => addresses.push(address),
                    Ok(_) => refused.push((peer.node.clone(), format!("address {text:?}: leads nowhere"))),
                    Err(e) => refused.push((peer.node.clone(), format!("address {text:?}: {e}"))),
                }
            }
            view.add(Arc::new(Known {
                node: peer.node.as_str().into(),
                id,
                addresses,
                circuits,
                relay: peer.relay,
                nat: peer.nat.as_str().into(),
                hash,
            }));
        }
        (view, refused)
    }

    fn add(&mut self, known: Arc<Known>) {
        if known.relay {
            self.relays.push(known.clone());
        }
        self.by_node.insert(known.node.clone(), known.clone());
        self.by_id.insert(known.id, known);
    }

    /// Nodes that carry circuits of others.
    pub(crate) fn relays(&self) -> &[Arc<Known>] {
        &self.relays
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

/// The relay that a circuit address leads through.
pub(crate) fn relay_of(address: &Multiaddr) -> Option<PeerId> {
    let mut relay = None;
    for part in address {
        match part {
            Protocol::P2p(id) => relay = Some(id),
            Protocol::P2pCircuit => return relay,
            _ => {}
        }
    }
    None
}

/// A circuit address with the peer at its end.
fn circuit_to(address: Multiaddr, peer: PeerId) -> Result<Multiaddr, &'static str> {
    match relay_of(&address) {
        None => return Err("names no relay"),
        Some(relay) if relay == peer => return Err("is its own relay"),
        Some(_) => {}
    }
    match address.iter().last() {
        Some(Protocol::P2p(id)) if id == peer => Ok(address),
        Some(Protocol::P2pCircuit) => Ok(address.with(Protocol::P2p(peer))),
        _ => Err("ends at somebody else"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::NodeKey;

    #[test]
    fn a_view_keeps_what_can_be_dialled_and_names_the_rest() {
        let id = || NodeKey::generate().peer_id();
        let (own, of_a, relay) = (id(), id(), id());
        let peer = |node: &str, id: &str, addresses: &[&str]| Peer {
            node: node.into(),
            peer_id: id.into(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            ..Peer::default()
        };
        let mut a = peer("a", &of_a, &["/ip4/1.2.3.4/udp/1/quic-v1", "/ip4/1.2.3.4/tcp/1", "nonsense"]);
        let circuit = format!("/ip4/9.9.9.9/tcp/1/p2p/{relay}/p2p-circuit");
        a.reservations = vec![
            circuit.clone(),
            format!("{circuit}/p2p/{of_a}"),
            format!("{circuit}/p2p/{relay}"),
            format!("/ip4/9.9.9.9/tcp/1/p2p/{of_a}/p2p-circuit"),
            "/ip4/9.9.9.9/tcp/1/p2p-circuit".into(),
        ];
        let r = Peer { relay: true, ..peer("r", &relay, &["/ip4/9.9.9.9/tcp/1", "/ip4/0.0.0.0/tcp/1"]) };
        let others = [peer("b", "not an id", &[]), peer("c", &of_a, &[]), peer("self", &own, &[])];
        let all: Vec<Peer> = [a, r].into_iter().chain(others).collect();
        let (view, refused) = View::new(&all, &own.parse().unwrap());
        let a = view.node("a").unwrap();
        let text = |all: &[Multiaddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(&a.addresses), ["/ip4/1.2.3.4/udp/1/quic-v1", "/ip4/1.2.3.4/tcp/1"]);
        let whole = format!("{circuit}/p2p/{of_a}");
        assert_eq!(text(&a.circuits), [whole.clone(), whole]);
        assert_eq!(relay_of(&a.circuits[0]).unwrap().to_base58(), relay);
        let names = refused.iter().map(|r| r.0.as_str()).collect::<Vec<_>>();
        assert_eq!(names, ["a", "a", "a", "a", "r", "b", "c"], "{refused:?}");
        assert_eq!(view.relays().iter().map(|k| &*k.node).collect::<Vec<_>>(), ["r"]);
        assert!(view.node("self").is_none() && view.node("b").is_none() && view.node("c").is_none());
    }

    #[test]
    fn a_peer_that_is_as_it_was_is_not_parsed_again() {
        let id = || NodeKey::generate().peer_id();
        let own = id().parse().unwrap();
        let peer = |node: &str| Peer {
            node: node.into(),
            peer_id: id(),
            addresses: vec!["/ip4/1.2.3.4/tcp/1".into()],
            ..Peer::default()
        };
        let mut peers = vec![peer("a"), peer("b"), peer("c")];
        let (first, _) = View::new(&peers, &own);
        peers[1].relay = true;
        // Another node with the id of one that stays.
        peers[2].peer_id = peers[0].peer_id.clone();
        let (second, refused) = first.next(&peers, &own);
        let same = |name| Arc::ptr_eq(first.node(name).unwrap(), second.node(name).unwrap());
        assert!(same("a") && !same("b") && second.node("b").unwrap().relay);
        assert_eq!(second.relays().len(), 1);
        assert!(second.node("c").is_none() && refused[0].0 == "c", "{refused:?}");
        let (third, refused) = second.next(&peers[..1], &own);
        assert!(third.iter().count() == 1 && third.relays().is_empty() && refused.is_empty());
    }
}
