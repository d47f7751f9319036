//! What an operator sets for the tunnel beside its port: ways out of narrow networks, the role of a relay, and how
//! much is done to get through NATs.

use std::{
    fmt::Display,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use mesh_tunnel::{Congestion, Proxy, TunnelConfig};
use node_rt::Secret;
use serde::{Deserialize, Serialize};

use crate::config::tunnel::{NatSettings, RelaySettings};

/// The tunnel's configuration.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct TunnelSettings {
    /// HTTP CONNECT proxy through which WebSocket addresses are dialled: `http://[user:password@]host:port`. Empty =
    /// that of the environment (`HTTPS_PROXY`), `none` = none.
    pub proxy: Secret<String>,
    /// Address for WebSockets in TLS, usually port 443; none = off.
    pub websocket: Option<SocketAddr>,
    /// Further multiaddrs at which other nodes reach this one, such as `/dns4/edge.example/tcp/443/wss`.
    pub addresses: Vec<String>,
    /// Congestion control of the tunnel's connections: `auto`, or one of the kernel's: `cubic`, `reno`, `bbr`.
    pub congestion: String,
    /// Circuits of other nodes through this one.
    pub relay: RelaySettings,
    /// Ways through NATs.
    pub nat: NatSettings,
}

/// Most further addresses: more would push others out of what is reported.
const MAX_ADDRESSES: usize = 8;

impl TunnelSettings {
    /// All that is wrong, by key. Values are not repeated: a proxy may carry a password.
    pub fn validate(&self) -> Vec<(&'static str, String)> {
        let mut out = Vec::new();
        let mut bad = |key, reason: &dyn Display| out.push((key, reason.to_string()));
        // An odd value of the environment, which others read too, is no reason not to start.
        if !self.proxy.expose().trim().is_empty()
            && let Err(e) = self.proxy()
        {
            bad("proxy", &e);
        }
        if self.addresses.len() > MAX_ADDRESSES {
            bad("addresses", &format!("are more than {MAX_ADDRESSES}"));
        }
        if let Some(wrong) = self.addresses.iter().find(|a| !mesh_tunnel::is_multiaddr(a)) {
            bad("addresses", &format!("{wrong:?} is no multiaddr"));
        }
        if let Err(e) = self.congestion.parse::<Congestion>() {
            bad("congestion", &e);
        }
        out.extend(self.relay.validate());
        out.extend(self.nat.validate());
        out
    }

    /// The proxy of the configuration or the environment.
    fn proxy(&self) -> Result<Option<Proxy>, mesh_tunnel::ProxyError> {
        match self.proxy.expose().trim() {
            "" => Proxy::from_env(),
            "none" => Ok(None),
            text => Proxy::parse(text).map(Some),
        }
    }

    /// What others are told beside the addresses of the tunnel's port. The WebSocket listener says its addresses by
    /// itself, unless the operator says which IP addresses this node has.
    pub fn further(&self, advertise: &[IpAddr]) -> Vec<String> {
        let at = |w: &SocketAddr| advertise.iter().map(|ip| websocket_at(*ip, w.port())).collect::<Vec<_>>();
        self.websocket.iter().flat_map(at).chain(self.addresses.iter().cloned()).collect()
    }

    /// Puts it into the configuration of the tunnel of `node`. `advertise`: what the operator says of this node's IP
    /// addresses.
    pub fn apply(&self, node: &str, advertise: &[String], to: &mut TunnelConfig) {
        // Looked at when the configuration was loaded; the environment's own may still be odd.
        to.proxy = self.proxy().unwrap_or_else(|error| {
            tracing::warn!(%error, "the proxy is not used");
            None
        });
        to.congestion = self.congestion.parse().unwrap_or_default();
        to.listen.extend(self.websocket.into_iter().flat_map(websocket));
        let external = advertise.iter().chain(&self.addresses).cloned().collect();
        to.nat = self.nat.apply(node, external, self.relay.limits());
    }
}

fn websocket_at(ip: IpAddr, port: u16) -> String {
    let family = if ip.is_ipv4() { "ip4" } else { "ip6" };
    format!("/{family}/{ip}/tcp/{port}/tls/ws")
}

/// Multiaddrs of a WebSocket listener.
fn websocket(at: SocketAddr) -> Vec<String> {
    let mut all = vec![websocket_at(at.ip(), at.port())];
    if at.ip() == Ipv4Addr::UNSPECIFIED && super::has_ipv6() {
        all.push(websocket_at(std::net::Ipv6Addr::UNSPECIFIED.into(), at.port()));
    }
    all
}

#[cfg(test)]
mod tests {
    use mesh_tunnel::NodeKey;

    use super::*;

    #[test]
    fn settings_reach_the_tunnel_and_errors_show_no_password() {
        let mut settings = TunnelSettings {
            proxy: Secret::new("http://u:hush@proxy.corp:3128".to_owned()),
            websocket: Some("127.0.0.1:443".parse().unwrap()),
            addresses: vec!["/dns4/edge.example/tcp/443/wss".to_owned()],
            congestion: "cubic".to_owned(),
            relay: RelaySettings { enabled: Some(true), ..RelaySettings::default() },
            ..TunnelSettings::default()
        };
        assert_eq!(settings.validate(), []);
        let mut config = TunnelConfig::new(NodeKey::generate(), 0);
        settings.apply("a", &["/ip4/203.0.113.1/tcp/15008".to_owned()], &mut config);
        assert_eq!(config.listen.last().unwrap(), "/ip4/127.0.0.1/tcp/443/tls/ws");
        assert_eq!(config.proxy.unwrap().to_string(), "http://***@proxy.corp:3128");
        assert!(config.nat.relay.enabled);
        assert_eq!(config.congestion, "cubic".parse().unwrap());
        assert_eq!(config.nat.external, ["/ip4/203.0.113.1/tcp/15008", "/dns4/edge.example/tcp/443/wss"]);

        assert_eq!(
            settings.further(&["203.0.113.1".parse().unwrap()]),
            ["/ip4/203.0.113.1/tcp/443/tls/ws", "/dns4/edge.example/tcp/443/wss"]
        );

        settings.proxy = Secret::new("https://u:hush@proxy.corp".to_owned());
        settings.addresses = vec!["edge.example:443".to_owned()];
        settings.congestion = "Cubic; rm".to_owned();
        settings.nat.reservations = 99;
        let wrong = settings.validate();
        assert_eq!(
            wrong.iter().map(|w| w.0).collect::<Vec<_>>(),
            ["proxy", "addresses", "congestion", "nat.reservations"]
        );
        assert!(!format!("{wrong:?} {settings:?}").contains("hush"));
    }
}
