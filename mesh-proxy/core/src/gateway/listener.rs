//! From Gateway resources to listeners: what a snapshot asks for, which server a name belongs to, and what a listener
//! answers before any rule.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use mesh_api::model::{self, GatewayProtocol, ServerTls, server_tls::Mode};

use super::server_key;
use crate::{host::without_port, tables::Tables};

/// Most listeners of a gateway; others are not opened, and it is said.
const MAX: usize = 256;

/// Listeners by address.
pub type Plan = BTreeMap<SocketAddr, Arc<Listener>>;

/// One listener.
#[derive(Debug, PartialEq)]
pub struct Listener {
    /// The port as Gateways name it.
    pub port: u16,
    /// What its connections begin with.
    pub nature: Nature,
    /// The servers behind it, of the oldest Gateway first.
    pub servers: Box<[Server]>,
    /// Names under which their rules are found.
    pub keys: Arc<[Arc<str>]>,
    /// Some server sends its clients to https.
    pub redirects: bool,
    /// Plaintext servers of Gateway API: each keeps its hosts from the rules of less exact ones. Those of Istio answer
    /// together.
    isolates: bool,
}

/// What a listener's connections begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nature {
    /// Plaintext HTTP.
    Http,
    /// A TLS hello.
    Tls,
    /// Bytes.
    Tcp,
}

/// One server of a Gateway.
#[derive(Debug, PartialEq)]
pub struct Server {
    /// Where its rules are found.
    pub keys: Arc<[Arc<str>]>,
    hosts: Box<[Box<str>]>,
    /// Its settings of TLS.
    pub tls: Option<Arc<ServerTls>>,
    /// What is under TLS is HTTP.
    pub http: bool,
    redirect: bool,
}

impl Server {
    /// How specific the host is that covers a name.
    fn rank(&self, name: &str) -> Option<usize> {
        self.hosts.iter().filter_map(|h| rank(h, name)).max()
    }

    /// What becomes of TLS.
    pub fn mode(&self) -> Mode {
        self.tls.as_ref().map_or(Mode::Unspecified, |t| t.mode())
    }

    /// Whether connections stay closed and name their cluster themselves.
    pub fn is_auto(&self) -> bool {
        self.mode() == Mode::AutoPassthrough
    }

    /// Whether connections stay closed.
    pub fn passes_tls(&self) -> bool {
        matches!(self.mode(), Mode::Passthrough | Mode::AutoPassthrough)
    }

    /// Whether bytes go by the name of the handshake: where TLS stays closed, and with Gateway API also under TLS that
    /// ends here. Routes of Istio for what is under TLS are those for bytes.
    pub fn routes_by_name(&self) -> bool {
        self.passes_tls() || (!self.http && is_derived(&self.keys))
    }
}

impl Listener {
    /// Under which names the rules for a host are found.
    pub fn keys_for(&self, host: &str) -> Arc<[Arc<str>]> {
        if !self.isolates {
            return Arc::clone(&self.keys);
        }
        let best = self.servers.iter().filter_map(|s| s.rank(host)).max();
        let exact = self.servers.iter().filter(|s| best.is_some() && s.rank(host) == best);
        exact.flat_map(|s| s.keys.iter().cloned()).collect()
    }

    /// Whether a host is of another server than the one with these names, which terminated TLS. Listeners of Gateway API
    /// say so whatever rules they have; servers of Istio where no rule takes the host (`unrouted`).
    pub fn is_misdirected(&self, host: &str, keys: &[Arc<str>], unrouted: bool) -> bool {
        (unrouted || is_derived(keys))
            && self.servers.len() > 1
            && self.server(host).is_some_and(|s| *s.keys != *keys)
    }

    /// The server for a name: that of the most specific host that covers it; the older of two.
    pub fn server(&self, name: &str) -> Option<&Server> {
        let mut best: Option<(usize, &Server)> = None;
        for s in &self.servers {
            if let Some(rank) = s.rank(name)
                && best.is_none_or(|(b, _)| rank > b)
            {
                best = Some((rank, s));
            }
        }
        best.map(|(_, s)| s)
    }

    /// Whether requests for a host are sent to https.
    pub fn sends_away(&self, host: &str) -> bool {
        self.redirects && self.server(host).is_some_and(|s| s.redirect)
    }
}

/// The host of an authority.
pub fn host_of(authority: &str) -> &str {
    without_port(authority)
}

/// How specific a host is that covers a name.
fn rank(host: &str, name: &str) -> Option<usize> {
    match host.strip_prefix('*') {
        Some("") => Some(0),
        Some(suffix) => {
            let (s, n) = (suffix.as_bytes(), name.as_bytes());
            (n.len() > s.len() && n[n.len() - s.len()..].eq_ignore_ascii_case(s)).then_some(s.len())
        }
        None => host.eq_ignore_ascii_case(name).then_some(usize::MAX),
    }
}

/// The listeners that a snapshot asks a gateway for, and what of it cannot be. `selected` says whether a Gateway is
/// this gateway's; `ports` are listened on instead of those that Gateways name.
pub fn plan(
    tables: &Tables,
    selected: impl Fn(&model::Gateway) -> bool,
    ports: &BTreeMap<u16, u16>,
) -> (Plan, Vec<String>) {
    let mut gateways: Vec<_> = tables.gateways().filter(|g| selected(g)).collect();
    gateways.sort_by(|a, b| (&a.created, &a.name).cmp(&(&b.created, &b.name)));
    let mut drafts: BTreeMap<SocketAddr, (u16, Nature, Vec<Server>)> = BTreeMap::new();
    let mut problems = Vec::new();
    for g in gateways {
        for s in &g.servers {
            let Ok(port) = u16::try_from(s.port) else { continue };
            let bind =
                if s.bind.is_empty() { Some(Ipv4Addr::UNSPECIFIED.into()) } else { s.bind.parse().ok() };
            let Some(bind): Option<IpAddr> = bind else { continue };
            let at = SocketAddr::new(bind, ports.get(&port).copied().unwrap_or(port));
            let (nature, server) = server(&g.name, s);
            if drafts.len() >= MAX && !drafts.contains_key(&at) {
                problems.push(format!("{} port {port}: more than {MAX} listeners", g.name));
                continue;
            }
            if drafts.iter().any(|(a, _)| a.port() == at.port() && a.ip() != at.ip()) {
                problems.push(format!("{} port {port}: an older Gateway binds it elsewhere", g.name));
                continue;
            }
            let (_, has, servers) = drafts.entry(at).or_insert_with(|| (port, nature, Vec::new()));
            if *has == nature {
                servers.push(server);
            } else {
                problems.push(format!("{} port {port}: an older Gateway has {has:?} there", g.name));
            }
        }
    }
    (drafts.into_iter().map(|(at, draft)| (at, Arc::new(listener(draft)))).collect(), problems)
}

/// Whether servers come from Gateway API: they are called so, and nothing else can be.
fn is_derived(keys: &[Arc<str>]) -> bool {
    keys.iter().all(|k| k.contains('~'))
}

fn listener((port, nature, servers): (u16, Nature, Vec<Server>)) -> Listener {
    let mut keys: Vec<Arc<str>> = servers.iter().flat_map(|s| s.keys.iter().cloned()).collect();
    keys.dedup();
    let redirects = servers.iter().any(|s| s.redirect);
    let isolates = nature == Nature::Http && keys.len() > 1 && is_derived(&keys);
    Listener { port, nature, servers: servers.into(), keys: keys.into(), redirects, isolates }
}

fn server(gateway: &str, s: &model::GatewayServer) -> (Nature, Server) {
    // Settings of a plaintext server only say where its clients are sent.
    let plain = matches!(s.protocol(), GatewayProtocol::GatewayHttp | GatewayProtocol::Unspecified);
    let tls = s.tls.as_ref().filter(|t| !plain && t.mode() != Mode::Unspecified).cloned().map(Arc::new);
    let nature = match (s.protocol(), &tls) {
        (GatewayProtocol::GatewayHttp | GatewayProtocol::Unspecified, _) => Nature::Http,
        (GatewayProtocol::GatewayTcp, None) => Nature::Tcp,
        (GatewayProtocol::GatewayTcp | GatewayProtocol::GatewayHttps | GatewayProtocol::GatewayTls, _) => {
            Nature::Tls
        }
    };
    let server = Server {
        keys: [server_key(gateway, &s.id)].into(),
        hosts: s.hosts.iter().map(|h| h.as_str().into()).collect(),
        redirect: nature == Nature::Http && s.tls.as_ref().is_some_and(|t| t.https_redirect),
        http: matches!(
            s.protocol(),
            GatewayProtocol::GatewayHttp | GatewayProtocol::GatewayHttps | GatewayProtocol::Unspecified
        ),
        tls,
    };
    (nature, server)
}

#[cfg(test)]
mod tests;
