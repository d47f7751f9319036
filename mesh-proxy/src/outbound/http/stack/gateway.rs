//! A request at a gateway: what it is told about its client, and what the rules of the listener say.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use http::{HeaderName, HeaderValue, Request};
use hyper::body::Incoming;
pub(super) use mesh_core::gateway::listener::host_of;
use mesh_core::{
    Dice, HttpDecision, HttpOutcome, RequestView, Tables,
    route::{Redirect, RedirectPort},
};

use super::super::view::{Secure, View};
use crate::gateway::Binding;

static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Says whom the request comes from: what clients outside write about themselves is not believed.
pub(super) fn arrived(binding: &Binding, client: SocketAddr, request: &mut Request<Incoming>) {
    let secure = binding.is_secure();
    if secure {
        request.extensions_mut().insert(Secure);
    }
    let proto = HeaderValue::from_static(if secure { "https" } else { "http" });
    request.headers_mut().insert(FORWARDED_PROTO.clone(), proto);
    if let Ok(address) = HeaderValue::try_from(client.ip().to_string()) {
        request.headers_mut().insert(FORWARDED_FOR.clone(), address);
    }
}

/// What the rules say.
pub(super) fn route<'t>(
    binding: &Binding,
    tables: &'t Tables,
    servers: &'t [Arc<str>],
    port: u16,
    request: &View<'_>,
    dice: &mut impl Dice,
) -> HttpDecision<'t> {
    let host = host_of(request.authority());
    if binding.sends_away(host) {
        let outcome = HttpOutcome::Redirect(to_https());
        return HttpDecision {
            service: None,
            virtual_host: None,
            rule: None,
            matched: None,
            gateway: None,
            outcome,
        };
    }
    tables.route_gateway_http(&binding.client(), servers, port, request, dice)
}

fn to_https() -> &'static Redirect {
    static REDIRECT: OnceLock<Redirect> = OnceLock::new();
    REDIRECT.get_or_init(|| Redirect {
        uri: None,
        prefix_rewrite: None,
        authority: None,
        port: RedirectPort::Keep,
        scheme: Some("https".into()),
        code: 301,
    })
}
