//! Addresses at which two peers try to meet: which of the own ones are told, which of the told ones are dialled. Pure.

use std::net::{IpAddr, SocketAddr};

use libp2p::{Multiaddr, multiaddr::Protocol};

/// Most candidates that are told, and looked at.
pub(crate) const MAX_CANDIDATES: usize = 12;

/// What carries a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Carrier {
    Udp,
    Tcp,
}

/// The address of a plain QUIC or TCP multiaddr.
pub(crate) fn socket_of(address: &Multiaddr) -> Option<(Carrier, SocketAddr)> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let found = match (parts.next()?, parts.next()) {
        (Protocol::Udp(port), Some(Protocol::QuicV1)) => (Carrier::Udp, SocketAddr::new(ip, port)),
        (Protocol::Tcp(port), None | Some(Protocol::P2p(_))) => {
            return Some((Carrier::Tcp, SocketAddr::new(ip, port)));
        }
        _ => return None,
    };
    match parts.next() {
        None | Some(Protocol::P2p(_)) => Some(found),
        _ => None,
    }
}

/// The multiaddr of an address.
pub(crate) fn multiaddr(carrier: Carrier, at: SocketAddr) -> Multiaddr {
    let ip = Multiaddr::from(at.ip());
    match carrier {
        Carrier::Udp => ip.with(Protocol::Udp(at.port())).with(Protocol::QuicV1),
        Carrier::Tcp => ip.with(Protocol::Tcp(at.port())),
    }
}

/// Whether packets may be sent to an address that somebody names: private ones yes, the host itself and what only
/// means something on one link no.
pub(crate) fn may_be_dialled(at: SocketAddr, loopback: bool) -> bool {
    let ip = at.ip().to_canonical();
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    at.port() != 0
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && !link_local
        && (loopback || !ip.is_loopback())
}

/// What a peer is told: the outer addresses of the listen ports, then those that the operator and the router gave,
/// then the ones on this host's networks. Each once.
pub(crate) fn own(
    outer: impl IntoIterator<Item = Multiaddr>,
    given: impl IntoIterator<Item = Multiaddr>,
    listening: impl IntoIterator<Item = Multiaddr>,
    loopback: bool,
) -> Vec<Multiaddr> {
    let mut all: Vec<Multiaddr> = Vec::new();
    for address in outer.into_iter().chain(given).chain(listening) {
        let Some((carrier, at)) = socket_of(&address) else { continue };
        let address = multiaddr(carrier, at);
        if may_be_dialled(at, loopback) && !all.contains(&address) && all.len() < MAX_CANDIDATES {
            all.push(address);
        }
    }
    all
}

/// What is dialled of the addresses that a peer told.
pub(crate) fn told(raw: &[Vec<u8>], loopback: bool) -> Vec<(Carrier, SocketAddr)> {
    let mut all = Vec::new();
    for bytes in raw.iter().take(MAX_CANDIDATES) {
        let Ok(address) = Multiaddr::try_from(bytes.clone()) else { continue };
        let Some(found) = socket_of(&address) else { continue };
        if may_be_dialled(found.1, loopback) && !all.contains(&found) {
            all.push(found);
        }
    }
    all
}

/// Of those, the ones that everybody gets in at, by the bits of `open`.
pub(crate) fn told_open(raw: &[Vec<u8>], open: u32) -> Vec<(Carrier, SocketAddr)> {
    let addresses = raw.iter().take(MAX_CANDIDATES).enumerate().filter(|(i, _)| open & (1 << i) != 0);
    addresses.filter_map(|(_, raw)| socket_of(&Multiaddr::try_from(raw.clone()).ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(all: &[&str]) -> Vec<Multiaddr> {
        all.iter().map(|a| a.parse().unwrap()).collect()
    }

    #[test]
    fn private_addresses_are_told_and_useless_ones_are_not() {
        let told = own(
            addresses(&["/ip4/100.64.3.4/udp/7/quic-v1"]),
            addresses(&["/ip4/203.0.113.1/tcp/15008", "/dns4/edge.example/tcp/1"]),
            addresses(&[
                "/ip4/127.0.0.1/tcp/15008",
                "/ip4/169.254.169.254/tcp/80",
                "/ip6/fe80::1/tcp/15008",
                "/ip4/10.0.0.2/udp/15008/quic-v1",
                "/ip4/203.0.113.1/tcp/15008",
                "/ip4/10.0.0.2/tcp/0",
            ]),
            false,
        );
        assert_eq!(
            told,
            addresses(&[
                "/ip4/100.64.3.4/udp/7/quic-v1",
                "/ip4/203.0.113.1/tcp/15008",
                "/ip4/10.0.0.2/udp/15008/quic-v1"
            ])
        );
    }

    #[test]
    fn what_a_peer_tells_is_bounded_and_checked() {
        let mut raw: Vec<Vec<u8>> = addresses(&[
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/224.0.0.1/udp/1/quic-v1",
            "/ip4/198.51.100.1/udp/1/quic-v1",
            "/ip4/198.51.100.1/udp/1/quic-v1",
            "/ip4/198.51.100.1/tcp/1/ws",
            "/ip4/198.51.100.1/tcp/1/p2p-circuit",
            "/ip6/::ffff:127.0.0.1/tcp/1",
        ])
        .iter()
        .map(Multiaddr::to_vec)
        .collect();
        raw.push(vec![0xff; 40]);
        let found = told(&raw, false);
        assert_eq!(found, [(Carrier::Udp, "198.51.100.1:1".parse().unwrap())]);
        let many: Vec<Vec<u8>> = (1..100u16)
            .map(|p| multiaddr(Carrier::Tcp, SocketAddr::new("192.0.2.1".parse().unwrap(), p)).to_vec())
            .collect();
        assert_eq!(told(&many, false).len(), MAX_CANDIDATES);
    }

    #[test]
    fn open_addresses_are_told_by_their_place() {
        let raw: Vec<Vec<u8>> = addresses(&["/ip4/10.0.0.2/tcp/1", "/ip4/192.0.2.1/tcp/2", "/dns4/a/tcp/3"])
            .iter()
            .map(Multiaddr::to_vec)
            .collect();
        let at = |text: &str| (Carrier::Tcp, text.parse().unwrap());
        assert_eq!(told_open(&raw, 0b110), [at("192.0.2.1:2")]);
        assert_eq!(told_open(&raw, u32::MAX), [at("10.0.0.2:1"), at("192.0.2.1:2")]);
        assert!(told_open(&raw, 0).is_empty() && told_open(&[], u32::MAX).is_empty());
    }

    #[test]
    fn multiaddrs_are_read_back() {
        for at in ["192.0.2.1:5", "[2001:db8::1]:5"] {
            let at: SocketAddr = at.parse().unwrap();
            for carrier in [Carrier::Udp, Carrier::Tcp] {
                assert_eq!(socket_of(&multiaddr(carrier, at)), Some((carrier, at)));
            }
        }
    }
}
