//! Relays and peers: UDP and TCP, round trips, the largest datagram that passes.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    Check,
    ask::Node,
    probe::{Prober, SMALLEST},
};

/// Most peers that are asked; a mesh may have thousands.
const PEERS: usize = 20;
/// Addresses of each that are asked.
const ADDRESSES: usize = 4;
const TRIES: u32 = 2;
/// What an Ethernet passes, without IP and UDP headers.
const LARGEST: usize = 1472;
/// Headers of IPv4 and UDP.
const HEADERS: usize = 28;
/// Below this QUIC packets get small and bulk slow.
const SMALL_MTU: usize = 1400;

/// A node and where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Peer {
    name: String,
    relay: bool,
    udp: Vec<SocketAddr>,
    tcp: Vec<SocketAddr>,
}

/// What was found about one.
#[derive(Debug, Default)]
struct Reached {
    udp: Option<(SocketAddr, Duration)>,
    tcp: Option<(SocketAddr, Duration)>,
}

pub(super) fn all(node: &Node, wait: Duration) -> Vec<Check> {
    let peers = peers(&node.dump);
    if peers.is_empty() {
        let fix = "Other nodes appear here when they have joined and the controller has said so.";
        return vec![Check::warn("network", "no other node is known", fix)];
    }
    let reached: Vec<(Peer, Reached)> = std::thread::scope(|scope| {
        let tasks: Vec<_> = peers
            .into_iter()
            .map(|peer| {
                scope.spawn(move || {
                    let found = reach(&peer, wait);
                    (peer, found)
                })
            })
            .collect();
        tasks.into_iter().filter_map(|t| t.join().ok()).collect()
    });
    let mut out = vec![udp(&reached)];
    out.extend(relays(&reached));
    out.extend(others(&reached, &node.paths));
    let best = reached.iter().filter_map(|(p, r)| Some((p, r.udp?))).min_by_key(|(_, (_, took))| *took);
    if let Some((peer, (address, _))) = best {
        out.push(mtu(&peer.name, largest(address, wait)));
    }
    out
}

/// Nodes with addresses, relays first.
fn peers(dump: &Value) -> Vec<Peer> {
    let own = &dump["node"];
    let nodes = dump["nodes"].as_array().into_iter().flatten().filter(|n| n["name"] != *own);
    let mut all: Vec<Peer> = nodes
        .map(|n| {
            let addresses: Vec<&str> =
                n["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let of = |kind| addresses.iter().filter_map(|a| socket_of(a, kind)).take(ADDRESSES).collect();
            Peer {
                name: n["name"].as_str().unwrap_or_default().to_owned(),
                relay: n["relay"] == true,
                udp: of("udp"),
                tcp: of("tcp"),
            }
        })
        .filter(|p| !p.udp.is_empty() || !p.tcp.is_empty())
        .collect();
    all.sort_by(|a, b| (!a.relay, &a.name).cmp(&(!b.relay, &b.name)));
    all.truncate(PEERS);
    all
}

/// The socket of `/ip4/10.0.0.1/udp/15008/quic-v1`.
fn socket_of(multiaddr: &str, transport: &str) -> Option<SocketAddr> {
    let mut parts = multiaddr.split('/').skip(1);
    let family = parts.next()?;
    let ip: IpAddr = parts.next().filter(|_| family == "ip4" || family == "ip6")?.parse().ok()?;
    let port = (parts.next()? == transport).then(|| parts.next()?.parse().ok())??;
    // A circuit's address is the relay's.
    (!multiaddr.contains("p2p-circuit")).then(|| SocketAddr::new(ip, port))
}

fn reach(peer: &Peer, wait: Duration) -> Reached {
    let udp = peer.udp.iter().find_map(|a| {
        let took = Prober::new(*a).and_then(|p| p.ask(SMALLEST, TRIES, wait)).ok()?;
        Some((*a, took))
    });
    let tcp = peer.tcp.iter().find_map(|a| {
        let start = Instant::now();
        TcpStream::connect_timeout(a, wait).ok()?;
        Some((*a, start.elapsed()))
    });
    Reached { udp, tcp }
}

/// Whether UDP gets out of this network at all.
fn udp(reached: &[(Peer, Reached)]) -> Check {
    let by = |f: fn(&Reached) -> bool| reached.iter().filter(|(_, r)| f(r)).count();
    let (udp, tcp, all) = (by(|r| r.udp.is_some()), by(|r| r.tcp.is_some()), reached.len());
    let found = format!("{udp} of {all} nodes answer by UDP, {tcp} by TCP");
    match (udp, tcp) {
        (0, 0) => Check::fail(
            "udp",
            found,
            "No node answers at all: see this node's own connection, and open port 15008 (TCP and UDP) of a relay.",
        ),
        (0, _) => Check::warn(
            "udp",
            found,
            "A firewall drops UDP: open UDP port 15008 outwards, or calls take TCP and NATs are hard to punch.",
        ),
        _ => Check::ok("udp", found),
    }
}

fn relays(reached: &[(Peer, Reached)]) -> Vec<Check> {
    let relays: Vec<_> = reached.iter().filter(|(p, _)| p.relay).collect();
    if relays.is_empty() {
        let fix =
            "Give a node with a public address the relay role, so that nodes behind NATs find each other.";
        return vec![Check::warn("relay", "there is no relay", fix)];
    }
    let mut lost = 0;
    let mut out: Vec<Check> = relays
        .iter()
        .map(|(peer, r)| match (r.udp, r.tcp) {
            (Some((at, took)), _) => Check::ok("relay", format!("{} at {at} (udp) in {}", peer.name, ms(took))),
            (None, Some((at, took))) => Check::warn(
                "relay",
                format!("{} at {at} by TCP only, in {}", peer.name, ms(took)),
                "Open UDP port 15008 between this node and the relay.",
            ),
            (None, None) => {
                lost += 1;
                let fix = "See that it runs, and that its advertised addresses and port 15008 are reachable from here.";
                Check::warn("relay", format!("{} does not answer", peer.name), fix)
            }
        })
        .collect();
    if lost == out.len() {
        for check in &mut out {
            check.status = super::Status::Fail;
        }
    }
    out
}

/// Other nodes in one line: that a node behind a NAT does not answer strangers is as it should be.
fn others(reached: &[(Peer, Reached)], paths: &Value) -> Option<Check> {
    let peers: Vec<_> = reached.iter().filter(|(p, _)| !p.relay).collect();
    if peers.is_empty() {
        return None;
    }
    let connected = paths.as_array().map_or(0, Vec::len);
    let direct: Vec<String> = peers
        .iter()
        .filter_map(|(p, r)| r.udp.or(r.tcp).map(|(_, took)| format!("{} {}", p.name, ms(took))))
        .collect();
    let found = match direct.is_empty() {
        true => format!("none of {} peers answers directly; {connected} paths are open", peers.len()),
        false => format!(
            "{} of {} answer directly: {}; {connected} paths are open",
            direct.len(),
            peers.len(),
            direct.join(", ")
        ),
    };
    if direct.is_empty() && connected == 0 {
        let fix = "meshctl paths says why after the first call to a peer; nodes behind NATs need a relay.";
        return Some(Check::warn("peers", found, fix));
    }
    Some(Check::ok("peers", found))
}

fn ms(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1e3)
}

/// The largest datagram that passes unsplit and is answered.
fn largest(address: SocketAddr, wait: Duration) -> io::Result<usize> {
    let prober = Prober::new(address)?;
    prober.never_fragment()?;
    search(SMALLEST, LARGEST, |size| prober.ask(size, TRIES, wait).is_ok())
        .ok_or_else(|| io::Error::other("no datagram of 1200 bytes passes"))
}

/// The largest size that passes, if the smallest does.
fn search(smallest: usize, largest: usize, mut passes: impl FnMut(usize) -> bool) -> Option<usize> {
    if passes(largest) {
        return Some(largest);
    }
    if !passes(smallest) {
        return None;
    }
    let (mut good, mut bad) = (smallest, largest);
    while bad - good > 1 {
        let middle = usize::midpoint(good, bad);
        if passes(middle) {
            good = middle;
        } else {
            bad = middle;
        }
    }
    Some(good)
}

fn mtu(peer: &str, found: io::Result<usize>) -> Check {
    match found {
        Ok(size) if size + HEADERS >= SMALL_MTU => {
            Check::ok("mtu", format!("{} bytes to {peer}", size + HEADERS))
        }
        Ok(size) => Check::warn(
            "mtu",
            format!("{} bytes to {peer}", size + HEADERS),
            "A tunnel (VPN, PPPoE) on the way takes the rest; QUIC finds this out by itself, bulk is slower.",
        ),
        Err(error) => Check::fail(
            "mtu",
            format!("{error}, to {peer}"),
            "QUIC needs an MTU of 1280 bytes: raise it on the way, or the mesh uses TCP.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_of_peers_are_read() {
        let dump = json!({ "node": "me", "nodes": [
            { "name": "me", "addresses": ["/ip4/10.0.0.1/tcp/15008"] },
            { "name": "b", "addresses": ["/ip4/10.0.0.2/tcp/15008", "/ip4/10.0.0.2/udp/15008/quic-v1"] },
            { "name": "r", "relay": true, "addresses": ["/ip6/2001:db8::1/udp/15008/quic-v1", "/dns4/x/tcp/1"] },
            { "name": "hidden", "addresses": ["/ip4/10.0.0.9/udp/15008/quic-v1/p2p/Q/p2p-circuit"] },
        ] });
        let all = peers(&dump);
        assert_eq!(all.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["r", "b"]);
        assert_eq!(all[1].udp, ["10.0.0.2:15008".parse().unwrap()]);
        assert_eq!(all[1].tcp, all[1].udp);
        assert_eq!((all[0].udp.len(), all[0].tcp.len()), (1, 0));
    }

    #[test]
    fn the_largest_that_passes_is_found() {
        for limit in [1200, 1201, 1333, 1471, 1472, 2000] {
            assert_eq!(search(1200, 1472, |n| n <= limit), Some(limit.min(1472)));
        }
        assert_eq!(search(1200, 1472, |_| false), None);
    }
}
