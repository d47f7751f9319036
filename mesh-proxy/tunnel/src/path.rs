//! How a connection reaches its peer, and which way is better: pure, so that the order can be tested by itself.

use std::{
    cmp::Ordering,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;
use libp2p::{Multiaddr, multiaddr::Protocol};

/// Where a connection runs, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathKind {
    /// The peer's address is in a network of this host.
    Lan,
    /// Straight to an address of the peer.
    Direct,
    /// Straight too, through a hole that both sides punched into their NATs.
    Punched,
    /// Through a relay.
    Relayed,
}

impl PathKind {
    /// Every kind, best first.
    pub const ALL: [Self; 4] = [Self::Lan, Self::Direct, Self::Punched, Self::Relayed];

    /// Label for metrics and status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Direct => "direct",
            Self::Punched => "punched",
            Self::Relayed => "relayed",
        }
    }
}

/// What carries a connection; for a relayed one, what carries it on the way to the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PathTransport {
    /// TLS on TCP.
    Tcp,
    /// QUIC.
    Quic,
    /// WebSocket in TLS, for networks that pass nothing else.
    Ws,
}

impl PathTransport {
    /// Every transport.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Quic, Self::Ws];

    /// Label for metrics and status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Quic => "quic",
            Self::Ws => "ws",
        }
    }

    /// The outermost transport that an address names.
    pub(crate) fn of(address: &Multiaddr) -> Self {
        let mut transport = Self::Tcp;
        for part in address {
            match part {
                Protocol::P2pCircuit => break,
                Protocol::QuicV1 | Protocol::Quic => transport = Self::Quic,
                Protocol::Ws(_) | Protocol::Wss(_) => transport = Self::Ws,
                _ => {}
            }
        }
        transport
    }
}

/// Kind and transport of a connection. Less is better; a new stream takes the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Path {
    /// Where it runs.
    pub kind: PathKind,
    /// What carries it.
    pub transport: PathTransport,
}

impl Path {
    pub(crate) const fn new(kind: PathKind, transport: PathTransport) -> Self {
        Self { kind, transport }
    }

    /// Position in the order, best first; fits a byte.
    pub(crate) const fn rank(self) -> u8 {
        // TCP with TLS moves bulk at half the CPU of QUIC; on the legs of a circuit that saves the relay as much. Through a
        // NAT the mapping of QUIC's one socket is shared by all peers and survives a change of address.
        let transport = match (self.kind, self.transport) {
            (PathKind::Lan | PathKind::Direct | PathKind::Relayed, PathTransport::Tcp)
            | (PathKind::Punched, PathTransport::Quic) => 0,
            (_, PathTransport::Ws) => 2,
            _ => 1,
        };
        (self.kind as u8) * 3 + transport
    }

    /// Whether streams end cleanly when they are dropped, so that a reset must be marked in the bytes: QUIC as libp2p
    /// gives it. Inside a circuit there is our own muxer, whatever carries the circuit.
    pub(crate) const fn needs_marks(self) -> bool {
        matches!(self.transport, PathTransport::Quic) && !matches!(self.kind, PathKind::Relayed)
    }
}

impl Ord for Path {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Path {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Whether a text is a multiaddr.
pub fn is_multiaddr(text: &str) -> bool {
    text.parse::<Multiaddr>().is_ok()
}

/// The networks that this host is part of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Networks(Vec<IpNet>);

impl Networks {
    /// Adds a network; tells whether it was not known.
    pub(crate) fn add(&mut self, net: IpNet) -> bool {
        let new = !self.0.contains(&net);
        if new {
            self.0.push(net);
        }
        new
    }

    /// Removes a network; tells whether it was known.
    pub(crate) fn remove(&mut self, net: IpNet) -> bool {
        let before = self.0.len();
        self.0.retain(|n| *n != net);
        self.0.len() != before
    }

    /// Whether a host of one of these networks has the address.
    pub(crate) fn contain(&self, ip: IpAddr) -> bool {
        let own = |net: &IpNet| net.prefix_len() < net.max_prefix_len() && net.contains(&ip);
        ip.is_loopback() || is_link_local(ip) || self.0.iter().any(own)
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The IP address that a multiaddr begins with.
pub(crate) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        // A socket for both families names IPv4 peers so.
        Protocol::Ip6(ip) => Some(ip.to_ipv4_mapped().map_or(ip.into(), Ipv4Addr::into)),
        _ => None,
    }
}

/// The TCP socket that a multiaddr begins with.
pub(crate) fn socket_of(address: &Multiaddr) -> Option<SocketAddr> {
    match address.iter().nth(1)? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip_of(address)?, port)),
        _ => None,
    }
}

/// Whether an address leads through a relay.
pub(crate) fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|p| p == Protocol::P2pCircuit)
}

/// The path of a connection whose remote address is this. `punched` says that both sides dialled at once for it.
pub(crate) fn path_of(remote: &Multiaddr, networks: &Networks, punched: bool) -> Path {
    let kind = if is_circuit(remote) {
        PathKind::Relayed
    } else if ip_of(remote).is_some_and(|ip| networks.contain(ip)) {
        PathKind::Lan
    } else if punched {
        PathKind::Punched
    } else {
        PathKind::Direct
    };
    Path::new(kind, PathTransport::of(remote))
}

/// Whether an address can be dialled from elsewhere at all.
pub(crate) fn is_dialable(address: &Multiaddr) -> bool {
    let unspecified = |ip: IpAddr| {
        ip == IpAddr::V4(Ipv4Addr::UNSPECIFIED)
            || ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
            || ip.is_multicast()
    };
    ip_of(address).is_none_or(|ip| !unspecified(ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str, nets: &[&str], punched: bool) -> (PathKind, PathTransport) {
        let mut networks = Networks::default();
        for net in nets {
            networks.add(net.parse().unwrap());
        }
        let path = path_of(&address.parse().unwrap(), &networks, punched);
        (path.kind, path.transport)
    }

    #[test]
    fn an_address_says_its_path() {
        use PathKind::{Direct, Lan, Punched, Relayed};
        use PathTransport::{Quic, Tcp, Ws};
        let relay = libp2p::PeerId::random();
        let nets = ["10.1.2.0/24", "fd00::/64", "203.0.113.9/32"];
        for (address, punched, expected) in [
            ("/ip4/10.1.2.7/tcp/1", false, (Lan, Tcp)),
            ("/ip4/10.1.3.7/tcp/1", false, (Direct, Tcp)),
            ("/ip4/127.0.0.1/udp/1/quic-v1", false, (Lan, Quic)),
            ("/ip6/fd00::7/udp/1/quic-v1", false, (Lan, Quic)),
            ("/ip6/fe80::7/tcp/1", false, (Lan, Tcp)),
            ("/ip6/::ffff:10.1.2.7/tcp/1", false, (Lan, Tcp)),
            ("/ip4/203.0.113.9/tcp/443/tls/ws", false, (Direct, Ws)),
            ("/ip4/203.0.113.9/udp/1/quic-v1", true, (Punched, Quic)),
            ("/ip4/10.1.2.7/udp/1/quic-v1", true, (Lan, Quic)),
            ("/dns4/edge.example/tcp/443/wss", false, (Direct, Ws)),
            (&format!("/ip4/10.1.2.7/udp/1/quic-v1/p2p/{relay}/p2p-circuit"), true, (Relayed, Quic)),
        ] {
            assert_eq!(at(address, &nets, punched), expected, "{address}");
        }
        assert!(!is_dialable(&"/ip4/0.0.0.0/tcp/1".parse().unwrap()));
    }

    #[test]
    fn kinds_come_before_transports_and_tcp_leads_except_through_a_hole() {
        use PathTransport::{Quic, Tcp, Ws};
        let mut all: Vec<Path> = PathKind::ALL
            .into_iter()
            .flat_map(|kind| PathTransport::ALL.map(|transport| Path::new(kind, transport)))
            .collect();
        all.sort();
        let order = all.iter().map(|p| (p.kind, p.transport)).collect::<Vec<_>>();
        let expected: Vec<_> = PathKind::ALL
            .into_iter()
            .flat_map(|kind| {
                let punched = kind == PathKind::Punched;
                let transports = if punched { [Quic, Tcp, Ws] } else { [Tcp, Quic, Ws] };
                transports.map(|t| (kind, t))
            })
            .collect();
        assert_eq!(order, expected);
        assert!(all.windows(2).all(|w| w[0].rank() < w[1].rank()));
    }

    #[test]
    fn networks_come_and_go() {
        let mut networks = Networks::default();
        let net: IpNet = "192.168.7.0/24".parse().unwrap();
        assert!(networks.add(net) && !networks.add(net));
        assert!(networks.contain("192.168.7.9".parse().unwrap()));
        assert!(networks.remove(net) && !networks.remove(net));
        assert!(!networks.contain("192.168.7.9".parse().unwrap()));
    }
}
