//! What a site's router does: address translation of every common kind, and what it lets out.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, Serialize};

use super::mapping::PortMapping;

/// A network behind a router.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteSpec {
    /// The site's own prefix; its first host address is the router.
    pub lan: Ipv4Net,
    /// What the router does to packets that leave: a kind by name, or a kind with settings.
    #[serde(default)]
    pub nat: NatSpec,
    /// The router's outer address; chosen when absent.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// Ports of the router's outer address that lead to a node.
    #[serde(default)]
    pub forward: Vec<ForwardSpec>,
    /// The site whose LAN this router's outer side is in: a carrier's NAT, a campus. Absent: the public segment.
    #[serde(default)]
    pub behind: Option<String>,
    /// What the router lets out.
    #[serde(default)]
    pub egress: Egress,
    /// TCP ports that are let out whatever `egress` says: a controller's, for one.
    #[serde(default)]
    pub allow_tcp: Vec<u16>,
    /// Whether the site has IPv6.
    #[serde(default)]
    pub ipv6: Ipv6,
    /// The site's link goes up and down all the time.
    #[serde(default)]
    pub flap: Option<Flap>,
}

/// A forwarded port, TCP and UDP.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardSpec {
    /// Port on the router and on the node.
    pub port: u16,
    /// The node.
    pub to: String,
}

/// Address translation of a site's router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nat {
    /// The site's prefix is public and routed; the router translates nothing.
    None,
    /// The kernel's masquerade: keeps the port where it can, lets in only answers. The fastest kind.
    #[default]
    Masquerade,
    /// One outer port for each inner one; whoever knows it gets in.
    FullCone,
    /// One outer port for each inner one; lets in addresses that were called, from any of their ports.
    AddressRestricted,
    /// One outer port for each inner one; lets in only the very address and port that was called.
    PortRestricted,
    /// A new outer port for each address and port called; lets in only that one.
    Symmetric,
}

impl Nat {
    /// The kinds that a program of the lab does.
    pub const CONES_AND_SYMMETRIC: [Self; 4] =
        [Self::FullCone, Self::AddressRestricted, Self::PortRestricted, Self::Symmetric];

    /// Its name in WORLD.yaml.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Masquerade => "masquerade",
            Self::FullCone => "full-cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::Symmetric => "symmetric",
        }
    }

    /// Whether a program of the lab translates, and not the kernel.
    #[must_use]
    pub fn by_program(self) -> bool {
        Self::CONES_AND_SYMMETRIC.contains(&self)
    }
}

/// A kind of address translation with its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NatSpec {
    /// Which kind.
    pub kind: Nat,
    /// Whether two nodes of the site reach each other by the router's outer address.
    pub hairpin: bool,
    /// A mapping for UDP that nothing left through for that long is gone.
    pub udp_timeout_ms: u32,
    /// The same for an established TCP connection.
    pub tcp_timeout_ms: u32,
    /// Whether the outer port is the inner one where that is free; absent: as is usual for the kind.
    pub keep_ports: Option<bool>,
    /// How the router is asked to open ports.
    pub port_mapping: PortMapping,
}

/// RFC 4787 asks for two minutes at least.
const UDP_TIMEOUT_MS: u32 = 120_000;
/// RFC 5382 asks for two hours and four minutes at least.
const TCP_TIMEOUT_MS: u32 = 7_440_000;

impl From<Nat> for NatSpec {
    fn from(kind: Nat) -> Self {
        Self {
            kind,
            hairpin: false,
            udp_timeout_ms: UDP_TIMEOUT_MS,
            tcp_timeout_ms: TCP_TIMEOUT_MS,
            keep_ports: None,
            port_mapping: PortMapping::Off,
        }
    }
}

impl Default for NatSpec {
    fn default() -> Self {
        Nat::default().into()
    }
}

impl NatSpec {
    /// With hairpinning.
    #[must_use]
    pub fn hairpin(mut self) -> Self {
        self.hairpin = true;
        self
    }

    /// With that life of an idle UDP mapping.
    #[must_use]
    pub fn udp_timeout_ms(mut self, ms: u32) -> Self {
        self.udp_timeout_ms = ms;
        self
    }

    /// With a router that opens ports when asked so.
    #[must_use]
    pub fn port_mapping(mut self, how: PortMapping) -> Self {
        self.port_mapping = how;
        self
    }
}

/// Settings of a kind; `kind` alone may be written as a bare name.
pub(super) const NAT_KEYS: [&str; 6] =
    ["kind", "hairpin", "udp_timeout_ms", "tcp_timeout_ms", "keep_ports", "port_mapping"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Long {
    kind: Nat,
    #[serde(default)]
    hairpin: bool,
    #[serde(default)]
    udp_timeout_ms: Option<u32>,
    #[serde(default)]
    tcp_timeout_ms: Option<u32>,
    #[serde(default)]
    keep_ports: Option<bool>,
    #[serde(default)]
    port_mapping: PortMapping,
}

impl<'de> Deserialize<'de> for NatSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let value = serde_json::Value::deserialize(deserializer)?;
        if value.is_string() {
            return serde_json::from_value::<Nat>(value).map(Self::from).map_err(D::Error::custom);
        }
        let long: Long = serde_json::from_value(value).map_err(D::Error::custom)?;
        let usual = Self::from(long.kind);
        Ok(Self {
            hairpin: long.hairpin,
            udp_timeout_ms: long.udp_timeout_ms.unwrap_or(usual.udp_timeout_ms),
            tcp_timeout_ms: long.tcp_timeout_ms.unwrap_or(usual.tcp_timeout_ms),
            keep_ports: long.keep_ports,
            port_mapping: long.port_mapping,
            ..usual
        })
    }
}

/// What a router lets out of its site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Egress {
    /// Everything.
    #[default]
    Any,
    /// No UDP.
    NoUdp,
    /// No TCP.
    NoTcp,
    /// TCP to port 443 and nothing else.
    Tcp443,
    /// Nothing; an HTTP proxy (`CONNECT`, port 3128 of the router's inner address) is the only way.
    Proxy,
}

impl Egress {
    /// Its name in WORLD.yaml.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::NoUdp => "no-udp",
            Self::NoTcp => "no-tcp",
            Self::Tcp443 => "tcp443",
            Self::Proxy => "proxy",
        }
    }
}

/// Port of the HTTP proxy of a site whose egress is `proxy`.
pub const PROXY_PORT: u16 = 3128;

/// Whether a site has IPv6. Its prefix is public and routed; the router lets in only answers, unless the site is
/// without NAT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ipv6 {
    /// IPv4 only.
    #[default]
    Off,
    /// Both.
    Dual,
    /// The site's nodes have no IPv4 address. (Their pods have: those are inside the node.)
    Only,
}

/// A link that goes up and down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flap {
    /// Milliseconds during which packets pass.
    pub up_ms: u32,
    /// Milliseconds during which none does.
    pub down_ms: u32,
}

impl SiteSpec {
    /// A site behind that kind of router.
    #[must_use]
    pub fn new(lan: Ipv4Net, nat: NatSpec) -> Self {
        Self {
            lan,
            nat,
            address: None,
            forward: Vec::new(),
            behind: None,
            egress: Egress::Any,
            allow_tcp: Vec::new(),
            ipv6: Ipv6::Off,
            flap: None,
        }
    }

    /// Whether a program of the lab translates for this site.
    #[must_use]
    pub fn translated_by_program(&self) -> bool {
        // The router's own connections, those of its proxy, are the kernel's.
        self.nat.kind.by_program() && self.egress != Egress::Proxy
    }
}
