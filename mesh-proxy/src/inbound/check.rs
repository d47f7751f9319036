//! May this peer reach that endpoint, in the name of that source? Decided from one snapshot and the open message;
//! nothing in the message is believed that the tables do not say too.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use mesh_api::model::{TunnelOpen, Workload, tunnel_open::Kind};
use mesh_core::{EndpointEntry, Tables, WorkloadEntry};
use mesh_tunnel::Refusal;

/// What an open message leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// Where to connect.
    pub endpoint: SocketAddr,
    /// The workload that is reached, if the tables know it.
    pub destination: Option<Arc<WorkloadEntry>>,
    /// The workload that calls; none for a caller that is no workload of the peer (a process of its host).
    pub source: Option<Arc<WorkloadEntry>>,
}

/// Why a stream is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Denied {
    /// Address or port do not parse.
    BadAddress,
    /// A kind of stream that this build does not carry.
    BadKind,
    /// The source's address does not parse.
    BadSource,
    /// Loopback, unspecified, multicast or broadcast.
    Loopback,
    /// Link-local.
    LinkLocal,
    /// A cloud's metadata service.
    Metadata,
    /// This node does not own the address.
    NotOwner,
    /// The pod shares the host's network, and no service leads to that port.
    HostPort,
    /// The proxy's own listener.
    OwnListener,
    /// The tables do not place that source on that peer.
    Impersonation,
    /// The endpoint refused the connection.
    ConnectRefused,
    /// The endpoint did not answer.
    ConnectTimeout,
    /// The peer has too many streams here.
    Overloaded,
    /// This node is shutting down.
    Draining,
}

impl Denied {
    /// Label for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadAddress => "bad_address",
            Self::BadKind => "bad_kind",
            Self::BadSource => "bad_source",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link_local",
            Self::Metadata => "metadata",
            Self::NotOwner => "not_owner",
            Self::HostPort => "host_port",
            Self::OwnListener => "own_listener",
            Self::Impersonation => "impersonation",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
        }
    }

    /// What the opener is told.
    pub const fn refusal(self) -> Refusal {
        match self {
            Self::BadAddress | Self::BadKind | Self::BadSource => Refusal::BadRequest,
            Self::Loopback
            | Self::LinkLocal
            | Self::Metadata
            | Self::HostPort
            | Self::OwnListener
            | Self::Impersonation => Refusal::Forbidden,
            Self::NotOwner => Refusal::NotOwner,
            Self::ConnectRefused => Refusal::ConnectRefused,
            Self::ConnectTimeout => Refusal::ConnectTimeout,
            Self::Overloaded => Refusal::Overloaded,
            Self::Draining => Refusal::Draining,
        }
    }

    /// Whether newer tables may say otherwise: a pod that has just started is known to its own node first.
    pub const fn may_change(self) -> bool {
        matches!(self, Self::NotOwner | Self::HostPort | Self::Impersonation)
    }
}

/// Who decides: this node, and the ports on which its proxy listens.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// This node's name.
    pub node: &'a str,
    /// Ports of the proxy itself; a stream to one would come back to it.
    pub own_ports: &'a [u16],
}

/// Decides about a stream that the node `peer` opened.
pub fn check(tables: &Tables, owner: Owner<'_>, peer: &str, open: &TunnelOpen) -> Result<Admission, Denied> {
    match Kind::try_from(open.kind) {
        Ok(Kind::Tcp | Kind::Http | Kind::Udp) => {}
        Ok(Kind::Unspecified) | Err(_) => return Err(Denied::BadKind),
    }
    let udp = open.kind == i32::from(Kind::Udp);
    let ip = open.address.parse::<IpAddr>().map_err(|_| Denied::BadAddress)?.to_canonical();
    let port = u16::try_from(open.port).ok().filter(|p| *p != 0).ok_or(Denied::BadAddress)?;
    address_class(ip)?;
    if !tables.owns(owner.node, ip) {
        return Err(Denied::NotOwner);
    }
    let destination = destination(tables, owner.node, ip, (port, udp));
    if destination.as_ref().is_some_and(|d| d.host_network) {
        if owner.own_ports.contains(&port) {
            return Err(Denied::OwnListener);
        }
        if !is_endpoint(tables, owner.node, ip, (port, udp)) {
            return Err(Denied::HostPort);
        }
    }
    let source = match &open.source {
        Some(claim) if !claim.address.is_empty() => Some(source(tables, peer, claim)?),
        _ => None,
    };
    Ok(Admission { endpoint: SocketAddr::new(ip, port), destination, source })
}

/// Refuses addresses that are never a pod's.
fn address_class(ip: IpAddr) -> Result<(), Denied> {
    // Addresses of metadata services outside the link-local range.
    const METADATA_V4: [Ipv4Addr; 3] =
        [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
    const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    match ip {
        IpAddr::V4(v4) if v4 == Ipv4Addr::new(169, 254, 169, 254) || METADATA_V4.contains(&v4) => {
            Err(Denied::Metadata)
        }
        IpAddr::V6(v6) if v6 == METADATA_V6 => Err(Denied::Metadata),
        IpAddr::V4(v4) if v4.is_link_local() => Err(Denied::LinkLocal),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Err(Denied::LinkLocal),
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.is_broadcast() => Err(Denied::Loopback),
        ip if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() => Err(Denied::Loopback),
        _ => Ok(()),
    }
}

/// The workload behind an address of this node; pods that share the host's address are told apart by port.
fn destination(tables: &Tables, node: &str, ip: IpAddr, port: (u16, bool)) -> Option<Arc<WorkloadEntry>> {
    let by_port = tables
        .endpoints_at(ip)
        .find(|e| e.node.as_deref() == Some(node) && serves(e, port))
        .map(|e| &e.workload);
    by_port.or_else(|| tables.workloads_of(node).find(|w| w.address == ip)).cloned()
}

fn is_endpoint(tables: &Tables, node: &str, ip: IpAddr, port: (u16, bool)) -> bool {
    tables.endpoints_at(ip).any(|e| e.node.as_deref() == Some(node) && serves(e, port))
}

/// Whether some service leads to that port of the endpoint; TCP and UDP have ports of their own.
fn serves(e: &EndpointEntry, (port, udp): (u16, bool)) -> bool {
    if udp { e.udp_service_port(port).is_some() } else { e.service_port(port).is_some() }
}

/// The workload that `claim` names, if the tables place it on `peer` under that very name.
fn source(tables: &Tables, peer: &str, claim: &Workload) -> Result<Arc<WorkloadEntry>, Denied> {
    let ip = claim.address.parse::<IpAddr>().map_err(|_| Denied::BadSource)?.to_canonical();
    let listed = tables.workloads_of(peer).filter(|w| w.address == ip);
    let endpoints = tables.endpoints_at(ip).filter(|e| e.node.as_deref() == Some(peer)).map(|e| &e.workload);
    let mut placed = listed.chain(endpoints);
    placed.find(|w| names(w, claim)).cloned().ok_or(Denied::Impersonation)
}

fn names(w: &WorkloadEntry, claim: &Workload) -> bool {
    *w.namespace == *claim.namespace && *w.name == *claim.name && *w.service_account == *claim.service_account
}
