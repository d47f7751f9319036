//! Which addresses of a peer are dialled when: straight ones first, TCP before QUIC before WebSocket, then circuits
//! through relays, each group a little after the one before. Pure.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

use crate::{
    config::Timeouts,
    path::{Networks, Path, PathKind, PathTransport, path_of},
    peers::{Known, View, relay_of},
};

/// Most relays through which one peer is dialled.
const MAX_RELAYS: usize = 6;
/// Most relays that are asked for the same circuit again.
const MAX_REPEATED: usize = 2;

/// Addresses that are tried at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    /// Time after the begin of the dial.
    pub(crate) after: Duration,
    /// The best path that it may give.
    pub(crate) best: Path,
    pub(crate) addresses: Vec<Multiaddr>,
    /// Was started before; only worth its time while something else is still under way.
    pub(crate) repeat: bool,
}

/// What a plan looks at beside the peer.
pub(crate) struct Around<'a> {
    pub(crate) view: &'a View,
    pub(crate) networks: &'a Networks,
    pub(crate) timeouts: &'a Timeouts,
    pub(crate) own: PeerId,
}

/// All groups of a peer in the order of their start. `reached` says which relays have a connection already: they are
/// asked first.
pub(crate) fn plan(known: &Known, around: &Around<'_>, reached: impl Fn(&PeerId) -> bool) -> Vec<Group> {
    let mut groups = Vec::new();
    let timeouts = around.timeouts;
    for (transport, after) in [
        (PathTransport::Tcp, Duration::ZERO),
        (PathTransport::Quic, timeouts.quic_delay),
        (PathTransport::Ws, timeouts.ws_delay),
    ] {
        let of = |a: &&Multiaddr| PathTransport::of(a) == transport;
        let addresses: Vec<_> = known.addresses.iter().filter(of).cloned().collect();
        let best = addresses.iter().map(|a| path_of(a, around.networks, false)).min();
        if let Some(best) = best {
            // Nothing to wait for when there is nothing before it.
            let after = if groups.is_empty() { Duration::ZERO } else { after };
            groups.push(Group { after, best, addresses, repeat: false });
        }
    }
    let mut after = if groups.is_empty() { Duration::ZERO } else { timeouts.circuit_delay };
    for circuit in circuits(known, around, reached) {
        let best = path_of(&circuit, around.networks, false);
        groups.push(Group { after, best, addresses: vec![circuit], repeat: false });
        after += timeouts.circuit_stagger;
    }
    groups.sort_by_key(|g| g.after);
    groups
}

/// How long after its start a circuit is asked for again.
const REPEATS: [Duration; 3] =
    [Duration::from_millis(1_000), Duration::from_millis(2_000), Duration::from_millis(3_500)];

/// The circuits of a plan once more, and again. A relay that has not noticed yet that the peer's process is another one
/// waits for the old one, and a peer that has just started gets its reservation a moment later. `spread` is the jitter.
pub(crate) fn repeats(groups: &[Group], mut spread: impl FnMut() -> f64) -> Vec<Group> {
    let circuits = groups.iter().filter(|g| g.best.kind == PathKind::Relayed).take(MAX_REPEATED);
    let again = circuits.flat_map(|g| REPEATS.iter().map(move |pause| (g, *pause)));
    let mut all: Vec<Group> = again
        .map(|(g, pause)| Group { after: g.after + pause.mul_f64(spread()), repeat: true, ..g.clone() })
        .collect();
    all.sort_by_key(|g| g.after);
    all
}

/// One address for each relay: the peer's own choices, then relays that both know.
fn circuits(known: &Known, around: &Around<'_>, reached: impl Fn(&PeerId) -> bool) -> Vec<Multiaddr> {
    let mut all: Vec<(bool, bool, PeerId, Multiaddr)> = Vec::new();
    let mut add = |reserved: bool, relay: PeerId, address: Multiaddr| {
        if relay != around.own && relay != known.id && !all.iter().any(|(_, _, r, _)| *r == relay) {
            all.push((!reserved, !reached(&relay), relay, address));
        }
    };
    for address in &known.circuits {
        if let Some(relay) = relay_of(address) {
            add(true, relay, address.clone());
        }
    }
    for relay in around.view.relays() {
        for address in relay.addresses.iter().take(1) {
            let circuit = address
                .clone()
                .with(Protocol::P2p(relay.id))
                .with(Protocol::P2pCircuit)
                .with(Protocol::P2p(known.id));
            add(false, relay.id, circuit);
        }
    }
    all.sort_by_key(|(unreserved, unreached, ..)| (*unreserved, *unreached));
    all.truncate(MAX_RELAYS);
    all.into_iter().map(|(.., address)| address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{identity::NodeKey, peers::Peer};

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn straight_addresses_have_a_head_start_and_known_relays_come_first() {
        let id = || NodeKey::generate().peer_id();
        let (own, far, r1, r2, r3) = (id(), id(), id(), id(), id());
        let relay = |node: &str, id: &str, at: &str| Peer {
            node: node.into(),
            peer_id: id.into(),
            addresses: vec![format!("/ip4/{at}/tcp/1"), format!("/ip4/{at}/udp/1/quic-v1")],
            relay: true,
            ..Peer::default()
        };
        let mut peer = Peer {
            node: "far".into(),
            peer_id: far.clone(),
            addresses: ["/ip4/1.1.1.1/udp/1/quic-v1", "/ip4/1.1.1.1/tcp/443/tls/ws", "/ip4/10.0.0.1/tcp/1"]
                .map(str::to_owned)
                .to_vec(),
            relay: true,
            reservations: vec![format!("/ip4/3.3.3.3/tcp/1/p2p/{r3}/p2p-circuit")],
            ..Peer::default()
        };
        let groups = |peer: &Peer, timeouts: &Timeouts| {
            let all = [peer.clone(), relay("r1", &r1, "2.2.2.1"), relay("r2", &r2, "2.2.2.2")];
            let (view, refused) = View::new(&all, &own.parse().unwrap());
            assert!(refused.is_empty(), "{refused:?}");
            let networks = Networks::default();
            let around = Around { view: &view, networks: &networks, timeouts, own: own.parse().unwrap() };
            let groups = plan(view.node("far").unwrap(), &around, |r| r.to_base58() == r2);
            groups.into_iter().map(|g| (g.after, g.addresses[0].to_string())).collect::<Vec<_>>()
        };
        let timeouts = Timeouts::default();
        let circuit = |at: &str, relay: &str| format!("/ip4/{at}/tcp/1/p2p/{relay}/p2p-circuit/p2p/{far}");
        assert_eq!(
            groups(&peer, &timeouts),
            [
                (ms(0), "/ip4/10.0.0.1/tcp/1".to_owned()),
                (ms(150), circuit("3.3.3.3", &r3)),
                (ms(300), "/ip4/1.1.1.1/udp/1/quic-v1".to_owned()),
                (ms(400), circuit("2.2.2.2", &r2)),
                (ms(600), "/ip4/1.1.1.1/tcp/443/tls/ws".to_owned()),
                (ms(650), circuit("2.2.2.1", &r1)),
            ]
        );
        let group = |kind, after| Group {
            after: ms(after),
            best: Path::new(kind, PathTransport::Tcp),
            addresses: Vec::new(),
            repeat: false,
        };
        let again = repeats(&[group(PathKind::Direct, 0), group(PathKind::Relayed, 100)], || 1.0);
        assert!(again.iter().all(|g| g.repeat && g.best.kind == PathKind::Relayed));
        assert_eq!(again.iter().map(|g| g.after).collect::<Vec<_>>(), [ms(1_100), ms(2_100), ms(3_600)]);
        peer.addresses.clear();
        let only_circuits = groups(&peer, &timeouts);
        assert_eq!(only_circuits[0], (ms(0), circuit("3.3.3.3", &r3)));
        assert_eq!(only_circuits.len(), 3, "{only_circuits:?}");
    }
}
