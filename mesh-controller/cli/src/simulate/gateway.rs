//! Requests that come to a gateway: which of its servers take them, and what is answered before any rule. The listeners
//! are those that the proxy would open.

use std::{collections::BTreeMap, sync::Arc};

use mesh_api::model;
use mesh_core::{
    Tables,
    gateway::listener::{self, Listener, Nature},
};

use super::Request;

/// What takes a request at a gateway.
pub(super) struct Taken {
    /// Names under which its rules are found.
    pub(super) servers: Arc<[Arc<str>]>,
    /// Plaintext requests for the host are sent to https.
    pub(super) redirects: bool,
    /// The name by which bytes find their rule, where they go by name.
    pub(super) name: Option<String>,
    /// TLS stays closed and names its cluster itself.
    pub(super) auto: bool,
    /// The listener, where a server of it terminated TLS: hosts of others are not answered there.
    secure: Option<Arc<Listener>>,
}

impl Taken {
    const fn nothing(servers: Arc<[Arc<str>]>) -> Self {
        Self { servers, redirects: false, name: None, auto: false, secure: None }
    }

    /// Whether the host belongs to another server than the one that the handshake named.
    pub(super) fn is_misdirected(&self, authority: &str, unrouted: bool) -> bool {
        let host = listener::host_of(authority);
        self.secure.as_ref().is_some_and(|l| l.is_misdirected(host, &self.servers, unrouted))
    }
}

/// Gateways of the workload: the one that is named, and those whose selector takes its labels.
fn is_own(g: &model::Gateway, named: &str, labels: &BTreeMap<String, String>) -> bool {
    let selects = !labels.is_empty() && g.selector.iter().all(|(k, v)| labels.get(k) == Some(v));
    // Each listener of a Gateway of Gateway API is a Gateway here, with a name made from its own.
    let part = g.name.strip_prefix(named).is_some_and(|rest| rest.starts_with("~istio-"));
    g.name == named || part || selects
}

pub(super) fn taken(tables: &Tables, request: &Request, port: u16) -> Taken {
    let nothing = || Taken::nothing(Arc::new([]));
    let own = |g: &model::Gateway| is_own(g, &request.gateway, &request.source.labels);
    let (plan, _) = listener::plan(tables, own, &BTreeMap::new());
    let Some(listener) = plan.into_values().find(|l| l.port == port) else { return nothing() };
    let host = listener::host_of(&request.host).trim_end_matches('.').to_ascii_lowercase();
    let encrypted = request.protocol == "tls" || request.scheme == "https";
    match listener.nature {
        Nature::Http if encrypted || request.protocol == "tcp" => nothing(),
        Nature::Http => {
            Taken { redirects: listener.sends_away(&host), ..Taken::nothing(listener.keys_for(&host)) }
        }
        Nature::Tcp => Taken::nothing(Arc::clone(&listener.keys)),
        Nature::Tls => {
            let sni = if request.sni.is_empty() { host } else { request.sni.to_ascii_lowercase() };
            // Who asks for no name gets what is there for all.
            let Some(server) = listener.server(if sni.is_empty() { "*" } else { &sni }) else {
                return nothing();
            };
            Taken {
                name: server.routes_by_name().then_some(sni),
                auto: server.is_auto(),
                secure: (!server.passes_tls()).then(|| Arc::clone(&listener)),
                ..Taken::nothing(Arc::clone(&server.keys))
            }
        }
    }
}
