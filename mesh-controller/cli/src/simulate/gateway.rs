//! Requests that come to a gateway: which of its servers take them, and what is answered before any rule.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use mesh_api::model::{self, GatewayProtocol, server_tls::Mode};
use mesh_core::{Tables, gateway::server_key};

use super::Request;

/// The servers of a gateway workload that take a request.
pub(super) struct Listener {
    /// Names under which their rules are found.
    pub(super) servers: Vec<Arc<str>>,
    /// Plaintext requests for the host are sent to https.
    pub(super) redirects: bool,
    /// TLS is passed through.
    pub(super) passes_tls: bool,
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
        None => pattern == host,
    }
}

/// How well a server's hosts fit; more is better.
fn fit(server: &model::GatewayServer, host: &str) -> Option<(bool, usize)> {
    server.hosts.iter().filter(|h| covers(h, host)).map(|h| (!h.starts_with('*'), h.len())).max()
}

/// All Gateways of the workload: the one that is named, and those whose selector takes its labels.
fn gateways<'t>(
    tables: &'t Tables,
    named: &str,
    labels: &BTreeMap<String, String>,
) -> Vec<&'t Arc<model::Gateway>> {
    let selects =
        |g: &model::Gateway| !labels.is_empty() && g.selector.iter().all(|(k, v)| labels.get(k) == Some(v));
    // Each listener of a Gateway of Gateway API is a Gateway here, with a name made from its own.
    let listener =
        |g: &model::Gateway| g.name.strip_prefix(named).is_some_and(|rest| rest.starts_with("~istio-"));
    let mut all: Vec<_> =
        tables.gateways().filter(|g| g.name == named || listener(g) || selects(g)).collect();
    all.sort_by(|a, b| (&a.created, &a.name).cmp(&(&b.created, &b.name)));
    all
}

pub(super) fn listener(tables: &Tables, request: &Request, port: u16) -> Listener {
    let mut out = Listener { servers: Vec::new(), redirects: false, passes_tls: false };
    let all = gateways(tables, &request.gateway, &request.source.labels);
    let servers: Vec<_> = all
        .iter()
        .flat_map(|g| g.servers.iter().map(move |s| (&g.name, s)))
        .filter(|(_, s)| s.port == u32::from(port))
        .collect();
    let host = without_port(&request.host).trim_end_matches('.').to_ascii_lowercase();
    let plain =
        servers.iter().filter(|(_, s)| s.protocol() == GatewayProtocol::GatewayHttp).collect::<Vec<_>>();
    let encrypted = request.protocol == "tls" || request.scheme == "https";
    if !plain.is_empty() && !encrypted && request.protocol != "tcp" {
        out.servers = plain.iter().map(|(g, s)| server_key(g, &s.id)).collect();
        let best = plain.iter().filter_map(|(_, s)| Some((fit(s, &host)?, s))).max_by_key(|(fit, _)| *fit);
        out.redirects = best.is_some_and(|(_, s)| s.tls.as_ref().is_some_and(|t| t.https_redirect));
        return out;
    }
    let mut fitting: Vec<_> = servers
        .iter()
        .filter(|(_, s)| s.protocol() != GatewayProtocol::GatewayHttp)
        .filter_map(|(g, s)| {
            let tcp = s.protocol() == GatewayProtocol::GatewayTcp;
            Some((if tcp { (false, 0) } else { fit(s, &host)? }, *g, *s))
        })
        .collect();
    fitting.sort_by_key(|(fit, ..)| Reverse(*fit));
    if let Some((_, gateway, server)) = fitting.first() {
        out.servers.push(server_key(gateway, &server.id));
        let mode = server.tls.as_ref().map(|t| t.mode());
        out.passes_tls = matches!(mode, Some(Mode::Passthrough | Mode::AutoPassthrough));
    }
    out
}
