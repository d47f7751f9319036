//! What an operator sets. Every field has a default except the node's name; `validate` finds all that is wrong.

pub mod tunnel;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use ipnet::Ipv4Net;
use node_rt::{ConfigProblem, LogFormat, Secret, Validate};
use serde::{Deserialize, Serialize};

use crate::{
    gateway::GatewayConfig,
    identity::IdentityConfig,
    outbound::{OutboundConfig, check_proxy_address},
    telemetry::{AccessLogConfig, TelemetryConfig, TracingConfig},
    tunnel_glue::TunnelSettings,
    udp::UdpConfig,
};

/// The proxy's configuration: file, then environment (`MESH_PROXY_*`), then flags.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// This node's name, as the mesh knows it.
    pub node: String,
    /// Where key, certificate and snapshot are kept.
    #[serde(alias = "state_dir")]
    pub state_dir: PathBuf,
    /// `host:port` of the controller; several are separated by commas and tried in turn. Empty = those of the join
    /// token, and without one only the snapshot.
    pub controller: String,
    /// Join token, or `@FILE`. Needed until the first certificate is there.
    #[serde(alias = "join_token")]
    pub join_token: Secret<String>,
    /// How this node proves itself where it has no join token.
    pub identity: IdentityConfig,
    /// Trust domain of the mesh that this node joins.
    #[serde(alias = "trust_domain")]
    pub trust_domain: String,
    /// Data-plane threads; 0 = one for each core.
    pub workers: usize,
    /// Addresses of the proxy.
    pub listen: ListenConfig,
    /// The outbound path.
    pub outbound: OutboundConfig,
    /// The DNS server.
    pub dns: DnsConfig,
    /// Redirection of traffic.
    pub capture: CaptureConfig,
    /// Sessions of datagrams.
    pub udp: UdpConfig,
    /// The tunnel.
    pub tunnel: TunnelSettings,
    /// Ingress gateway; none = this proxy is none.
    pub gateway: Option<GatewayConfig>,
    /// Addresses at which other nodes reach this one; empty = those of the interfaces.
    pub advertise: Vec<IpAddr>,
    /// Seconds that connections get to end when the process stops.
    #[serde(alias = "drain_seconds")]
    pub drain_seconds: u64,
    /// A process whose successor serves waits for SIGTERM instead of ending: a kubelet would start it again beside the
    /// pod that has replaced it.
    #[serde(alias = "stay_after_handover")]
    pub stay_after_handover: bool,
    /// `text` or `json`.
    #[serde(alias = "log_format")]
    pub log_format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, or filters such as `info,mesh_proxy::dns=debug`.
    #[serde(alias = "log_level")]
    pub log_level: String,
    /// Access log.
    #[serde(alias = "access_log")]
    pub access_log: AccessLogConfig,
    /// Bounds of the metrics.
    pub telemetry: TelemetryConfig,
    /// Traces.
    pub tracing: TracingConfig,
}

/// Addresses of the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ListenConfig {
    /// Captured connections.
    pub outbound: SocketAddr,
    /// Tunnel, TCP and UDP.
    pub tunnel: SocketAddr,
    /// Admin pages; loopback only.
    pub admin: SocketAddr,
    /// `/metrics`.
    pub metrics: SocketAddr,
    /// `/healthz/ready`, `/healthz/live`.
    pub health: SocketAddr,
    /// HTTP CONNECT, absolute-form HTTP and SOCKS5 for applications, loopback only; none = off.
    pub proxy: Option<SocketAddr>,
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
    /// Addresses that this node gives to pods of other nodes, for itself: nobody may route them.
    #[serde(alias = "pod_range")]
    pub pod_range: Ipv4Net,
}

/// Redirection of traffic to the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct CaptureConfig {
    /// Write nftables rules. Needs NET_ADMIN.
    pub enabled: bool,
    /// The `nft` program.
    pub nft: PathBuf,
    /// Name of the table, for more than one proxy in a network namespace.
    pub table: String,
    /// Send all DNS queries of pods to this node's DNS server, whatever their resolver is.
    pub pod_dns: bool,
}

/// Environment variables are this and the key in upper case, with `_` between words and `__` for dots.
pub const ENV_PREFIX: &str = "MESH_PROXY_";

impl Default for Config {
    fn default() -> Self {
        Self {
            node: String::new(),
            state_dir: PathBuf::from("/var/lib/selvage/mesh-proxy"),
            controller: String::new(),
            join_token: Secret::default(),
            identity: IdentityConfig::default(),
            trust_domain: "cluster.local".to_owned(),
            workers: 0,
            listen: ListenConfig::default(),
            outbound: OutboundConfig::default(),
            dns: DnsConfig::default(),
            capture: CaptureConfig::default(),
            udp: UdpConfig::default(),
            tunnel: TunnelSettings::default(),
            gateway: None,
            advertise: Vec::new(),
            drain_seconds: 30,
            stay_after_handover: false,
            log_format: LogFormat::Text,
            log_level: "info".to_owned(),
            access_log: AccessLogConfig::default(),
            telemetry: TelemetryConfig::default(),
            tracing: TracingConfig::default(),
        }
    }
}

impl Default for ListenConfig {
    fn default() -> Self {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            outbound: any(15001),
            tunnel: any(15008),
            admin: loopback(15000),
            metrics: any(15020),
            health: any(15021),
            proxy: Some(loopback(15080)),
        }
    }
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: SocketAddr::from((Ipv4Addr::new(169, 254, 96, 16), 53)),
            upstreams: Vec::new(),
            pod_range: mesh_core::dns::pods::POD_RANGE,
        }
    }
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self { enabled: true, nft: PathBuf::from("nft"), table: "selvage".to_owned(), pod_dns: false }
    }
}

impl Config {
    /// Controllers to try, in order.
    pub fn controllers(&self) -> Vec<String> {
        self.controller.split(',').map(str::trim).filter(|c| !c.is_empty()).map(str::to_owned).collect()
    }

    /// Data-plane threads to start.
    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS),
            n => n,
        }
    }
}

/// More threads than this help nobody on the machines that this is made for.
const MAX_WORKERS: usize = 64;

impl Validate for Config {
    fn validate(&self) -> Vec<ConfigProblem> {
        let mut out = Vec::new();
        let mut bad = |key: &str, value: &dyn std::fmt::Display, reason: &str| {
            out.push(ConfigProblem::new(key, value, reason));
        };
        let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        if self.node.is_empty() || self.node.len() > 253 || !self.node.bytes().all(label) {
            bad("node", &self.node, "is not a node name (lower-case letters, digits, '-' and '.')");
        }
        if self.state_dir.as_os_str().is_empty() {
            bad("stateDir", &"", "is empty");
        }
        if self.trust_domain.is_empty() || !self.trust_domain.bytes().all(label) {
            bad("trustDomain", &self.trust_domain, "is not a trust domain");
        }
        for controller in self.controllers() {
            let port = controller
                .rsplit_once(':')
                .and_then(|(host, p)| (!host.is_empty()).then(|| p.parse::<u16>()));
            if !matches!(port, Some(Ok(1..))) {
                bad("controller", &controller, "is not host:port");
            }
        }
        if let Some(reason) = self.identity.validate() {
            bad("identity.caFile", &"", reason);
        }
        if self.workers > MAX_WORKERS {
            bad("workers", &self.workers, "is more than 64");
        }
        if !self.listen.admin.ip().is_loopback() {
            bad(
                "listen.admin",
                &self.listen.admin,
                "is not a loopback address: the admin pages change the proxy",
            );
        }
        if let Some(Err(reason)) = self.listen.proxy.map(check_proxy_address) {
            bad("listen.proxy", &"", &reason);
        }
        for (key, reason) in self.outbound.validate() {
            bad(&format!("outbound.{key}"), &"", &reason);
        }
        for (key, reason) in self.tunnel.validate() {
            bad(&format!("tunnel.{key}"), &"", &reason);
        }
        for (key, reason) in self.gateway.iter().flat_map(GatewayConfig::validate) {
            bad(&format!("gateway.{key}"), &"", &reason);
        }
        for (key, reason) in self.udp.validate() {
            bad(&format!("udp.{key}"), &"", &reason);
        }
        if self.dns.pod_range.prefix_len() > 30 || self.dns.pod_range.addr().is_loopback() {
            bad("dns.podRange", &self.dns.pod_range, "is no range that can be given out");
        }
        if self.capture.table.is_empty()
            || !self.capture.table.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        {
            bad("capture.table", &self.capture.table, "is not a table name (letters, digits and '_')");
        }
        if self.drain_seconds > 3600 {
            bad("drainSeconds", &self.drain_seconds, "is more than an hour");
        }
        if self.dns.upstreams.contains(&self.dns.listen) {
            bad("dns.upstreams", &self.dns.listen, "is the DNS server itself");
        }
        for reason in self.access_log.validate() {
            out.push(ConfigProblem::new("accessLog", "", reason));
        }
        for reason in self.tracing.validate() {
            out.push(ConfigProblem::new("tracing", "", reason));
        }
        out.extend(self.shared_ports());
        out
    }
}

impl Config {
    /// Two TCP listeners on one address.
    fn shared_ports(&self) -> Vec<ConfigProblem> {
        let l = &self.listen;
        let mut listeners = vec![
            ("listen.outbound", l.outbound),
            ("listen.tunnel", l.tunnel),
            ("listen.admin", l.admin),
            ("listen.metrics", l.metrics),
            ("listen.health", l.health),
        ];
        listeners.extend(l.proxy.map(|p| ("listen.proxy", p)));
        listeners.extend(self.tunnel.websocket.map(|w| ("tunnel.websocket", w)));
        let clash = |a: SocketAddr, b: SocketAddr| {
            a.port() != 0
                && a.port() == b.port()
                && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
        };
        let mut out = Vec::new();
        for (i, (name, a)) in listeners.iter().enumerate() {
            if let Some((other, _)) = listeners[..i].iter().find(|(_, b)| clash(*a, *b)) {
                out.push(ConfigProblem::new(*name, a, format!("is also the address of {other}")));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use node_rt::{Layers, load_from};

    use super::*;

    fn load(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, String> {
        let own = |l: &[(&str, &str)]| l.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        load_from(Layers {
            file: Some(("mesh-proxy.yaml".into(), file.to_owned())),
            env_prefix: ENV_PREFIX.to_owned(),
            env: own(env),
            env_ignore: Vec::new(),
            flags: own(flags),
        })
        .map_err(|e| e.to_string())
    }

    #[test]
    fn later_layers_win() {
        let c = load(
            "node: a\ncontroller: c1:15012, c2:15012\ndns: {listen: '127.0.0.1:5353'}\n",
            &[("MESH_PROXY_NODE", "b"), ("MESH_PROXY_DNS__ENABLED", "false"), ("MESH_PROXY_STATE_DIR", "/x")],
            &[("node", "c")],
        )
        .unwrap();
        assert_eq!((c.node.as_str(), c.dns.enabled, c.dns.listen.port()), ("c", false, 5353));
        assert_eq!(c.controllers(), ["c1:15012", "c2:15012"]);
        assert_eq!(c.state_dir, PathBuf::from("/x"));
    }

    #[test]
    fn all_errors_come_at_once() {
        let e = load(
            "node: Bad_Name\nlisten: {admin: '0.0.0.0:15000', metrics: '0.0.0.0:15001'}\ncontroller: nowhere\ntypo: 1\n",
            &[("MESH_PROXY_WORKERS", "1000")],
            &[],
        )
        .unwrap_err();
        for part in [
            "node",
            "admin",
            "controller",
            "metrics",
            "also the address of listen.outbound",
            "typo",
            "workers",
        ] {
            assert!(e.contains(part), "{part} is missing in: {e}");
        }
    }

    #[test]
    fn a_token_is_never_printed() {
        let c = load("node: a\njoinToken: selvage1.secret\n", &[], &[]).unwrap();
        assert_eq!(c.join_token.expose(), "selvage1.secret");
        assert!(!serde_saphyr::to_string(&c).unwrap().contains("secret\""));
        assert!(!format!("{c:?}").contains("selvage1"));
    }
}
