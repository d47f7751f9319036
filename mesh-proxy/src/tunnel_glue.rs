//! Between the tables and the tunnel: which peers there are, where this node is reached, the node's tunnel key, and
//! the outbound path's view of the tunnel.

mod settings;

use std::{
    collections::BTreeSet,
    fs, io,
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use mesh_api::model::{ReportRequest, TunnelOpen};
use mesh_core::Tables;
use mesh_tunnel::{NatReport, NodeKey, OpenError, Peer, Refusal, Tunnel};
use tokio::sync::watch;

pub use self::settings::TunnelSettings;
use crate::outbound::{Stream, TunnelError, TunnelOpener};

/// File in the state directory that holds the tunnel key.
const KEY_FILE: &str = "tunnel.key";

/// Multiaddrs that a tunnel on `address` listens on. `0.0.0.0` means every address of the host, so those of IPv6 too if
/// the host has any.
pub fn listen_on(address: SocketAddr) -> Vec<String> {
    let mut all = Vec::from(both_transports(address.ip(), address.port()));
    if address.ip() == Ipv4Addr::UNSPECIFIED && has_ipv6() {
        all.extend(both_transports(Ipv6Addr::UNSPECIFIED.into(), address.port()));
    }
    all
}

fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// TCP first: it moves bulk at less cost.
fn both_transports(ip: IpAddr, port: u16) -> [String; 2] {
    let family = if ip.is_ipv4() { "ip4" } else { "ip6" };
    [format!("/{family}/{ip}/tcp/{port}"), format!("/{family}/{ip}/udp/{port}/quic-v1")]
}

/// Most addresses that a node reports.
const MAX_REPORTED: usize = 16;

/// The addresses that this node reports: those set by the operator, else what the tunnel listens on without the ones
/// that lead nowhere from elsewhere. Best first; those that packets to elsewhere leave with (`leaves`) before those of
/// bridges to this node's own pods.
pub fn reported(
    listening: &[String],
    (advertise, leaves): (&[IpAddr], &[IpAddr]),
    port: u16,
    further: &[String],
) -> Vec<String> {
    let mut addresses: Vec<String> = if advertise.is_empty() {
        let distinct: BTreeSet<&String> = listening.iter().filter(|a| reachable(a)).collect();
        distinct.into_iter().cloned().collect()
    } else {
        advertised(advertise, port)
    };
    addresses.extend(further.iter().cloned());
    let is_inner = |a: &String| {
        let ip = a.split('/').nth(2).and_then(|ip| ip.parse::<IpAddr>().ok());
        advertise.is_empty() && ip.is_some_and(|ip| !leaves.contains(&ip))
    };
    addresses.sort_by_key(|a| (a.ends_with("/ws") || a.ends_with("/wss"), a.contains("/quic"), is_inner(a)));
    addresses.truncate(MAX_REPORTED);
    addresses
}

/// The operator's addresses of this node with the tunnel's port.
pub fn advertised(advertise: &[IpAddr], port: u16) -> Vec<String> {
    advertise.iter().flat_map(|ip| both_transports(*ip, port)).collect()
}

/// How this node is reached, as it tells the controller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Straight addresses, best first.
    pub addresses: Vec<String>,
    /// What NATs do to it, and what it does against that.
    pub nat: NatReport,
}

impl Reach {
    /// Of the straight addresses and what the tunnel says.
    pub fn new(mut addresses: Vec<String>, nat: &NatReport) -> Self {
        let given = nat.addresses.iter().filter(|a| reachable(a) && !addresses.contains(a)).cloned();
        addresses.extend(given.collect::<Vec<_>>());
        addresses.truncate(MAX_REPORTED);
        Self { addresses, nat: nat.clone() }
    }

    /// The report of a node.
    pub fn request(self, node: &str) -> ReportRequest {
        ReportRequest {
            node: node.to_owned(),
            addresses: self.addresses,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            relay: self.nat.relay,
            nat: self.nat.nat,
            reservations: self.nat.reservations,
        }
    }
}

fn reachable(multiaddr: &str) -> bool {
    let mut parts = multiaddr.split('/').skip(1);
    let (Some("ip4" | "ip6"), Some(Ok(ip))) = (parts.next(), parts.next().map(str::parse::<IpAddr>)) else {
        return false;
    };
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !ip.is_loopback() && !ip.is_unspecified() && !link_local
}

/// The peers that the tables name: nodes that have joined, without this one.
pub fn peers(tables: &Tables, own: &str) -> Vec<Peer> {
    let joined = tables.nodes().filter(|n| *n.name != *own && !n.peer_id.is_empty());
    let mut peers: Vec<Peer> = joined
        .map(|n| Peer {
            node: n.name.to_string(),
            peer_id: n.peer_id.to_string(),
            addresses: n.addresses.iter().map(ToString::to_string).collect(),
            relay: n.relay,
            reservations: n.reservations.iter().map(ToString::to_string).collect(),
            nat: n.nat.to_string(),
        })
        .collect();
    peers.sort_by(|a, b| a.node.cmp(&b.node));
    peers
}

/// Keeps the tunnel's view of peers equal to the tables' nodes. `serves` says whether this node is a relay. `changed`
/// moves whenever some node is another one.
pub async fn follow_nodes(
    tunnel: Tunnel,
    tables: Arc<ArcSwap<Tables>>,
    node: Arc<str>,
    serves: Option<bool>,
    mut changed: watch::Receiver<u64>,
) {
    let mut view = Vec::new();
    let mut crowd = Crowd::default();
    loop {
        let tables = tables.load_full();
        // Without a word of the operator's here the registry says which nodes are relays.
        tunnel.set_relay(serves.unwrap_or_else(|| tables.node(&node).is_some_and(|n| n.relay)));
        let now = peers(&tables, &node);
        if now != view {
            tunnel.set_peers(&now).await;
            view = now;
        }
        // What changes meanwhile is taken at once.
        tokio::time::sleep(crowd.pause(Instant::now())).await;
        if changed.changed().await.is_err() {
            return;
        }
    }
}

/// Nodes come and go in crowds, after the restart of a relay for one, and each look at the registry costs by its size.
/// A few looks follow changes at once, because calls to a node that is new wait for nothing; then they are spaced.
#[derive(Debug, Default)]
struct Crowd {
    /// When the looks so far would have been over, one each [`Self::SPACE`].
    over: Option<Instant>,
}

impl Crowd {
    const SPACE: Duration = Duration::from_millis(100);
    /// Looks that are not spaced.
    const FREE: u32 = 10;

    /// After a look: how long until the next one.
    fn pause(&mut self, now: Instant) -> Duration {
        let over = self.over.map_or(now, |over| over.max(now)) + Self::SPACE;
        self.over = Some(over);
        over.saturating_duration_since(now).saturating_sub(Self::SPACE * Self::FREE)
    }
}

/// The tunnel key of this node: made once, and then always the same.
pub fn node_key(state_dir: &Path) -> io::Result<NodeKey> {
    let path = state_dir.join(KEY_FILE);
    let invalid = |e: mesh_tunnel::KeyError| io::Error::new(io::ErrorKind::InvalidData, e);
    match fs::read(&path) {
        Ok(bytes) => return NodeKey::from_protobuf(&bytes).map_err(invalid),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    fs::create_dir_all(state_dir)?;
    let key = NodeKey::generate();
    let bytes = key.to_protobuf().map_err(invalid)?;
    // Written beside and renamed: a power cut leaves either no key or a whole one.
    let draft = state_dir.join(format!("{KEY_FILE}.new"));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&draft, &path)?;
    fs::File::open(state_dir)?.sync_all()?;
    Ok(key)
}

/// The outbound path's view of the tunnel.
#[derive(Debug, Clone)]
pub struct Opener(pub Tunnel);

impl TunnelOpener for Opener {
    fn open<'a>(
        &'a self,
        node: &'a str,
        open: TunnelOpen,
    ) -> BoxFuture<'a, Result<Box<dyn Stream>, TunnelError>> {
        Box::pin(async move {
            match self.0.open(node, open).await {
                Ok(stream) => Ok(Box::new(stream) as Box<dyn Stream>),
                Err(e) => Err(failure(e)),
            }
        })
    }

    fn open_with<'a>(
        &'a self,
        node: &'a str,
        open: TunnelOpen,
        early: &'a [u8],
    ) -> BoxFuture<'a, Result<(Box<dyn Stream>, usize), TunnelError>> {
        Box::pin(async move {
            let stream = self.0.open_with(node, open, early).await.map_err(failure)?;
            let sent = stream.early();
            Ok((Box::new(stream) as Box<dyn Stream>, sent))
        })
    }

    fn generation(&self, node: &str) -> Option<Arc<AtomicU64>> {
        Some(self.0.generation(node))
    }

    fn departures(&self) -> Option<watch::Receiver<u64>> {
        Some(self.0.departures())
    }
}

fn failure(error: OpenError) -> TunnelError {
    match error {
        OpenError::Refused { code, detail, .. } => match code {
            Refusal::NotOwner | Refusal::Forbidden | Refusal::BadRequest => {
                TunnelError::Refused(format!("{}: {detail}", code.as_str()))
            }
            Refusal::ConnectRefused => TunnelError::ConnectRefused,
            Refusal::ConnectTimeout => TunnelError::Timeout,
            Refusal::Overloaded => TunnelError::Overloaded(detail),
            Refusal::Draining => TunnelError::Unreachable("the node is shutting down".to_owned()),
        },
        OpenError::Limit(limit) => TunnelError::Overloaded(limit.to_owned()),
        OpenError::Timeout(_) => TunnelError::Timeout,
        OpenError::TooLarge(_) => TunnelError::Refused(error.to_string()),
        OpenError::UnknownNode(_)
        | OpenError::NoAddress(_)
        | OpenError::Dial { .. }
        | OpenError::Backoff { .. }
        | OpenError::Silent { .. }
        | OpenError::Lost(_)
        | OpenError::Spoken(_)
        | OpenError::BadAnswer(_)
        | OpenError::Closed => TunnelError::Unreachable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_looks_are_free_and_a_crowd_is_spaced() {
        let (mut crowd, start) = (Crowd::default(), Instant::now());
        for _ in 0..10 {
            assert_eq!(crowd.pause(start), Duration::ZERO);
        }
        assert_eq!(crowd.pause(start), Crowd::SPACE);
        let later = start + Crowd::SPACE;
        assert_eq!(crowd.pause(later), Crowd::SPACE, "ten a second from then on");
        assert_eq!(
            crowd.pause(later + Duration::from_secs(60)),
            Duration::ZERO,
            "and free again after a rest"
        );
    }

    #[test]
    fn what_cannot_be_reached_from_elsewhere_is_not_reported() {
        let listening = [
            "/ip4/10.0.0.4/udp/15008/quic-v1",
            "/ip4/127.0.0.1/tcp/15008",
            "/ip4/10.0.0.4/tcp/15008",
            "/ip4/169.254.96.16/tcp/15008",
            "/ip6/fe80::1/tcp/15008",
            "/ip6/2001:db8::1/tcp/15008",
        ]
        .map(str::to_owned);
        assert_eq!(
            reported(&listening, (&[], &["2001:db8::1".parse().unwrap()]), 15008, &[]),
            ["/ip6/2001:db8::1/tcp/15008", "/ip4/10.0.0.4/tcp/15008", "/ip4/10.0.0.4/udp/15008/quic-v1"],
            "the way out comes before a bridge of pods"
        );
        assert_eq!(
            reported(&listening, (&[], &[]), 15008, &[]),
            ["/ip4/10.0.0.4/tcp/15008", "/ip6/2001:db8::1/tcp/15008", "/ip4/10.0.0.4/udp/15008/quic-v1"]
        );
        assert_eq!(
            reported(
                &listening,
                (&["203.0.113.7".parse().unwrap()], &[]),
                15008,
                &["/dns4/edge.example/tcp/443/wss".to_owned()]
            ),
            [
                "/ip4/203.0.113.7/tcp/15008",
                "/ip4/203.0.113.7/udp/15008/quic-v1",
                "/dns4/edge.example/tcp/443/wss"
            ]
        );
    }

    #[test]
    fn the_key_is_made_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let first = node_key(&state).unwrap().peer_id();
        assert_eq!(node_key(&state).unwrap().peer_id(), first);
        let mode = fs::metadata(state.join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(state.join(KEY_FILE), b"garbage").unwrap();
        assert_eq!(node_key(&state).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
