//! Between the tables and the tunnel: which peers there are, where this node is reached, the node's tunnel key, and
//! the outbound path's view of the tunnel.

use std::{
    collections::BTreeSet,
    fs, io,
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use mesh_api::model::TunnelOpen;
use mesh_core::Tables;
use mesh_tunnel::{NodeKey, OpenError, Peer, Refusal, Tunnel};
use tokio::sync::watch;

use crate::outbound::{Stream, TunnelError, TunnelOpener};

/// File in the state directory that holds the tunnel key.
const KEY_FILE: &str = "tunnel.key";

/// Multiaddrs that a tunnel on `address` listens on. `0.0.0.0` means every address of the host, so those of IPv6 too if
/// the host has any.
pub fn listen_on(address: SocketAddr) -> Vec<String> {
    let mut all = Vec::from(both_transports(address.ip(), address.port()));
    if address.ip() == Ipv4Addr::UNSPECIFIED && UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        all.extend(both_transports(Ipv6Addr::UNSPECIFIED.into(), address.port()));
    }
    all
}

/// TCP first: it moves bulk at less cost.
fn both_transports(ip: IpAddr, port: u16) -> [String; 2] {
    let family = if ip.is_ipv4() { "ip4" } else { "ip6" };
    [format!("/{family}/{ip}/tcp/{port}"), format!("/{family}/{ip}/udp/{port}/quic-v1")]
}

/// Most addresses that a node reports.
const MAX_REPORTED: usize = 16;

/// The addresses that this node reports: those set by the operator, else what the tunnel listens on without the ones
/// that lead nowhere from elsewhere. Best first.
pub fn reported(listening: &[String], advertise: &[IpAddr], port: u16) -> Vec<String> {
    let mut addresses: Vec<String> = if advertise.is_empty() {
        let distinct: BTreeSet<&String> = listening.iter().filter(|a| reachable(a)).collect();
        distinct.into_iter().cloned().collect()
    } else {
        advertise.iter().flat_map(|ip| both_transports(*ip, port)).collect()
    };
    addresses.sort_by_key(|a| a.contains("/quic"));
    addresses.truncate(MAX_REPORTED);
    addresses
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
            reservations: Vec::new(),
        })
        .collect();
    peers.sort_by(|a, b| a.node.cmp(&b.node));
    peers
}

/// Keeps the tunnel's view of peers equal to the tables' nodes. `changed` moves whenever some node is another one.
pub async fn follow_nodes(
    tunnel: Tunnel,
    tables: Arc<ArcSwap<Tables>>,
    node: Arc<str>,
    mut changed: watch::Receiver<u64>,
) {
    let mut view = Vec::new();
    loop {
        let now = peers(&tables.load(), &node);
        if now != view {
            tunnel.set_peers(&now).await;
            view = now;
        }
        if changed.changed().await.is_err() {
            return;
        }
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
        | OpenError::Lost(_)
        | OpenError::BadAnswer(_)
        | OpenError::Closed => TunnelError::Unreachable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            reported(&listening, &[], 15008),
            ["/ip4/10.0.0.4/tcp/15008", "/ip6/2001:db8::1/tcp/15008", "/ip4/10.0.0.4/udp/15008/quic-v1"]
        );
        assert_eq!(
            reported(&listening, &["203.0.113.7".parse().unwrap()], 15008),
            ["/ip4/203.0.113.7/tcp/15008", "/ip4/203.0.113.7/udp/15008/quic-v1"]
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
