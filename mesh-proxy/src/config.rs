//! What an operator sets. Every field has a default except the node's name; `validate` finds all that is wrong.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

/// The proxy's configuration: file, then environment (`MESH_PROXY_*`), then flags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// This node's name, as the mesh knows it.
    pub node: String,
    /// Where key, certificate and snapshot are kept.
    pub state_dir: PathBuf,
    /// `host:port` of the controller; empty = run from the snapshot only.
    pub controller: String,
    /// Join token, or `@FILE`. Needed until the first certificate is there.
    pub join_token: String,
    /// Data-plane threads; 0 = one for each core.
    pub workers: usize,
    /// Where captured connections arrive.
    pub outbound: SocketAddr,
    /// Where connections for pods of this node arrive.
    pub inbound: SocketAddr,
    /// Tunnel, TCP and UDP.
    pub tunnel: SocketAddr,
    /// Admin; loopback only.
    pub admin: SocketAddr,
    /// `/metrics`.
    pub metrics: SocketAddr,
    /// `/healthz/ready`, `/healthz/live`.
    pub health: SocketAddr,
    /// HTTP CONNECT and SOCKS5 for applications; none = off.
    pub explicit: Option<SocketAddr>,
    /// The DNS server.
    pub dns: DnsConfig,
    /// Redirection of traffic.
    pub capture: CaptureConfig,
    /// Addresses at which other nodes reach this one; empty = those of the interfaces.
    pub advertise: Vec<IpAddr>,
    /// Namespace of callers that are no known workload.
    pub default_namespace: String,
    /// Seconds that connections get to end when the process stops.
    pub drain_seconds: u64,
    /// Milliseconds to wait for the first bytes of a connection whose protocol is not declared.
    pub detect_ms: u64,
    /// `text` or `json`.
    pub log_format: String,
    /// `error`, `warn`, `info`, `debug`, or filters such as `info,mesh_proxy::dns=debug`.
    pub log_level: String,
    /// One line for each request and connection.
    pub access_log: bool,
}

/// The DNS server's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct DnsConfig {
    /// Serve DNS at all.
    pub enabled: bool,
    /// Address, UDP and TCP. Put on a dummy link when `capture.enabled` and it is link-local.
    pub listen: SocketAddr,
    /// Servers for all other names; empty = those of `/etc/resolv.conf`.
    pub upstreams: Vec<SocketAddr>,
}

/// Redirection of traffic to the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct CaptureConfig {
    /// Write nftables rules. Needs NET_ADMIN.
    pub enabled: bool,
    /// The `nft` program.
    pub nft: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            node: String::new(),
            state_dir: PathBuf::from("/var/lib/selvage/mesh-proxy"),
            controller: String::new(),
            join_token: String::new(),
            workers: 0,
            outbound: any(15001),
            inbound: any(15006),
            tunnel: any(15008),
            admin: loopback(15000),
            metrics: any(15020),
            health: any(15021),
            explicit: None,
            dns: DnsConfig::default(),
            capture: CaptureConfig::default(),
            advertise: Vec::new(),
            default_namespace: "default".to_owned(),
            drain_seconds: 30,
            detect_ms: 100,
            log_format: "text".to_owned(),
            log_level: "info".to_owned(),
            access_log: false,
        }
    }
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: SocketAddr::from((Ipv4Addr::new(169, 254, 96, 16), 53)),
            upstreams: Vec::new(),
        }
    }
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self { enabled: true, nft: PathBuf::from("nft") }
    }
}
