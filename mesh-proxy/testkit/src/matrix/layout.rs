//! The world of one transport, and what is expected of a pair.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde::Serialize;

use super::Args;
use crate::{
    lab::{Egress, Ipv6, LabError, Nat, NatSpec, Spec},
    mesh::{App, Mesh, Plan, manifest},
};

/// What is in front of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
#[value(rename_all = "kebab-case")]
pub enum MatrixKind {
    /// Nothing: the node is public.
    None,
    /// Whoever knows the outer port gets in.
    FullCone,
    /// Called addresses get in.
    AddressRestricted,
    /// Called addresses and ports get in.
    PortRestricted,
    /// Another outer port for each destination.
    Symmetric,
    /// The Linux kernel's own masquerade.
    Masquerade,
    /// A port-restricted router behind a port-restricted carrier.
    DoubleNat,
    /// A port-restricted router that lets no UDP out.
    UdpBlocked,
    /// A router that lets out TCP to port 443 only.
    Tcp443,
    /// A router that only an HTTP proxy leaves.
    Proxy,
    /// A site without IPv4.
    Ipv6Only,
}

/// What carries the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Over UDP.
    Quic,
    /// Over TCP.
    Tcp,
}

impl Transport {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }

    /// What a router lets out so that the tunnel has no other choice.
    fn egress(self) -> Egress {
        match self {
            Self::Quic => Egress::NoTcp,
            Self::Tcp => Egress::NoUdp,
        }
    }
}

/// The path that a pair should end on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expected {
    /// Straight, no hole needed.
    Direct,
    /// Straight; whether a hole was needed depends on who dials.
    Straight,
    /// Through a hole.
    Punched,
    /// Any path: nobody can do better than the relay for sure.
    Relayed,
}

impl Expected {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Straight => "direct|punched",
            Self::Punched => "punched",
            Self::Relayed => "relayed",
        }
    }

    /// Whether that path will do.
    #[must_use]
    pub fn is_met(self, path: &str) -> bool {
        match self {
            Self::Direct => matches!(path, "direct" | "lan"),
            Self::Straight | Self::Punched => matches!(path, "punched" | "direct" | "lan"),
            Self::Relayed => !path.is_empty(),
        }
    }
}

impl MatrixKind {
    /// Its name on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::FullCone => "full-cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::Symmetric => "symmetric",
            Self::Masquerade => "masquerade",
            Self::DoubleNat => "double-nat",
            Self::UdpBlocked => "udp-blocked",
            Self::Tcp443 => "tcp443",
            Self::Proxy => "proxy",
            Self::Ipv6Only => "ipv6-only",
        }
    }

    /// Shorter, for the names of nodes and devices.
    fn short(self) -> &'static str {
        match self {
            Self::None => "pub",
            Self::FullCone => "fc",
            Self::AddressRestricted => "ar",
            Self::PortRestricted => "pr",
            Self::Symmetric => "sym",
            Self::Masquerade => "masq",
            Self::DoubleNat => "dbl",
            Self::UdpBlocked => "noudp",
            Self::Tcp443 => "https",
            Self::Proxy => "proxy",
            Self::Ipv6Only => "six",
        }
    }

    /// The node with the client.
    #[must_use]
    pub fn client_node(self) -> String {
        format!("{}-a", self.short())
    }

    /// The node with the server.
    #[must_use]
    pub fn server_node(self) -> String {
        format!("{}-b", self.short())
    }

    /// The pod that calls.
    #[must_use]
    pub fn client(self) -> String {
        format!("{}-client", self.short())
    }

    /// The service that is called.
    #[must_use]
    pub fn service(self) -> String {
        format!("{}-service", self.short())
    }

    fn nat(self) -> Nat {
        match self {
            Self::None => Nat::None,
            Self::FullCone => Nat::FullCone,
            Self::AddressRestricted => Nat::AddressRestricted,
            Self::Symmetric => Nat::Symmetric,
            Self::Masquerade | Self::Proxy => Nat::Masquerade,
            Self::PortRestricted | Self::DoubleNat | Self::UdpBlocked | Self::Tcp443 | Self::Ipv6Only => {
                Nat::PortRestricted
            }
        }
    }

    fn is_limited(self) -> bool {
        matches!(self, Self::UdpBlocked | Self::Tcp443 | Self::Proxy)
    }

    /// Why this kind has no cell for that transport.
    #[must_use]
    pub fn skipped(self, transport: Transport) -> Option<&'static str> {
        match transport {
            Transport::Quic if self.is_limited() => Some("lets no UDP out"),
            _ => None,
        }
    }

    /// What a pair should come to.
    #[must_use]
    pub fn expected(self, other: Self) -> Expected {
        use MatrixKind::{AddressRestricted, FullCone, Ipv6Only, None, Proxy, Symmetric, Tcp443};
        let both = [self, other];
        let any = |k: Self| both.contains(&k);
        // What only a relay with port 443 or a proxy reaches, and what has no address in common.
        if any(Tcp443) || any(Proxy) || (any(Ipv6Only) && !any(None) && self != other) {
            return Expected::Relayed;
        }
        if both == [None, None] {
            return Expected::Direct;
        }
        if any(None) {
            return Expected::Straight;
        }
        if any(Symmetric) && !any(FullCone) && !any(AddressRestricted) {
            return Expected::Relayed;
        }
        Expected::Punched
    }
}

/// The relay's node.
pub(super) const RELAY: &str = "relay";
/// The one TCP port that every site may call.
const CONTROLLER_PORT: u16 = 15012;

/// Brings up the world and the mesh of one transport.
///
/// # Errors
/// When a part does not come up.
pub fn up(args: &Args, transport: Transport) -> Result<Mesh, LabError> {
    let kinds: Vec<MatrixKind> =
        args.chosen_kinds().into_iter().filter(|k| k.skipped(transport).is_none()).collect();
    let mut world = Spec::named(&format!("matrix-{}", transport.as_str()))
        .node("cloud", None, None)
        .node(RELAY, None, None);
    let (mut apps, mut manifests, mut node_settings) = (Vec::new(), Vec::new(), BTreeMap::new());
    // For sites that let nothing else out.
    node_settings.insert(RELAY.to_owned(), vec!["tunnel.websocket=0.0.0.0:443".to_owned()]);
    for (i, kind) in kinds.iter().enumerate() {
        for (j, node) in [kind.client_node(), kind.server_node()].into_iter().enumerate() {
            let site = format!("{node}-site");
            world = add_site(world, *kind, &site, j, transport);
            let pods = format!("10.{}.{}.0/24", 100 + i, 1 + j);
            let pods = pods.parse().map_err(|_| LabError::Invalid(vec![format!("{pods} is no prefix")]))?;
            world = world.node(&node, Some(&site), Some(pods));
            let settings = proxy_settings(&world, *kind, &site);
            node_settings.insert(node, settings);
        }
        let server = format!("{}-server", kind.short());
        world = world.pod(&kind.client(), &kind.client_node()).pod(&server, &kind.server_node());
        apps.push(App::new(&server, &kind.service(), "v1", &["--http", "8080"]));
        manifests.push(manifest::service(&kind.service(), &kind.service(), &[("http", 8080, "TCP")]));
    }
    Mesh::up(&Plan {
        world,
        controller: "cloud".to_owned(),
        apps,
        manifests,
        node_settings,
        proxy_settings: args.log_level.iter().map(|level| format!("log_level={level}")).collect(),
        relays: vec![RELAY.to_owned()],
        unprivileged: args.unprivileged,
        ..Plan::default()
    })
}

fn add_site(mut world: Spec, kind: MatrixKind, site: &str, side: usize, transport: Transport) -> Spec {
    let lan = |text: &str| text.parse().unwrap_or_default();
    // Also a public node is behind a router, which lets out only what the transport needs.
    let public = ["198.51.100.64/28", "198.51.100.80/28"];
    let prefix = if kind == MatrixKind::None { public[side % 2] } else { "192.168.1.0/24" };
    world = world.site(site, lan(prefix), NatSpec::from(kind.nat())).site_with(site, |s| {
        s.allow_tcp = vec![CONTROLLER_PORT];
        s.egress = match kind {
            MatrixKind::UdpBlocked => Egress::NoUdp,
            MatrixKind::Tcp443 => Egress::Tcp443,
            MatrixKind::Proxy => Egress::Proxy,
            _ => transport.egress(),
        };
        s.ipv6 = match kind {
            MatrixKind::Ipv6Only => Ipv6::Only,
            MatrixKind::None => Ipv6::Dual,
            _ => Ipv6::Off,
        };
    });
    if kind == MatrixKind::DoubleNat {
        let carrier = format!("{site}-carrier");
        world = world
            .site(&carrier, lan("100.64.0.0/24"), Nat::PortRestricted)
            .site_with(site, |s| s.behind = Some(carrier.clone()));
    }
    world
}

/// What an operator would set for a node in such a place.
fn proxy_settings(world: &Spec, kind: MatrixKind, site: &str) -> Vec<String> {
    match (kind, world.sites.get(site)) {
        (MatrixKind::Proxy, Some(site)) => {
            let router = site.lan.hosts().next();
            let proxy = router.map(|r| format!("tunnel.proxy=http://{r}:{}", crate::lab::site::PROXY_PORT));
            proxy.into_iter().collect()
        }
        _ => Vec::new(),
    }
}
