//! Who calls what, and what the rules say. The tables are held from here on, for as long as the request lives.

use std::{
    borrow::Cow,
    convert::Infallible,
    future::Future,
    sync::Arc,
    task::{Context, Poll},
};

use http::Request;
use hyper::body::Incoming;
use mesh_core::{HttpOutcome, RequestView, actions::CorsOutcome};
use tower::Service;

use super::{
    super::{
        super::{failure::FailureClass, forward_proxy, target::Target},
        HttpConnection, reply,
        view::View,
    },
    exchange::{Call, Exchange, Routed},
    gateway, record,
    step::{Answer, Boxed, Done},
};

/// Asks the tables.
#[derive(Clone)]
pub(crate) struct Route<S>(pub(super) S);

impl<S> Service<Call> for Route<S>
where
    S: for<'t> Service<Exchange<'t>, Response = Answer, Error = Infallible> + Clone + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Boxed<'static, Answer>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        // Most of the time a connection is between two requests: its memory is not held then.
        Box::pin(route(self.0.clone(), call))
    }
}

pub(super) fn route<S>(mut next: S, call: Call) -> impl Future<Output = Done<Answer>>
where
    S: for<'t> Service<Exchange<'t>, Response = Answer, Error = Infallible>,
{
    let Call { conn, record: mut recorded, mut request } = call;
    async move {
        let worker = &conn.connection.worker;
        let target = match target_of(&conn, &request).await {
            Ok(target) => target,
            Err(class) => return Ok(reply::failed(class, recorded)),
        };
        let tables = worker.tables();
        let source = conn.connection.source(&tables);
        recorded.parties.source = conn.connection.party(source.as_ref());
        record::trace(&conn, &mut recorded, &mut request);
        let caller = conn.connection.caller(source.as_ref().map(|s| s.get()));
        let found = target.find(&tables, &caller);
        let vip = found.vip();
        let port = vip.map_or(target.port, |v| v.port.number);
        let servers;
        let mut dice = worker.dice();
        let decision = match &conn.connection.gateway {
            None => tables.route_http(&caller, port, vip.as_ref(), &View::of(&request), &mut dice),
            Some(binding) => {
                servers = binding.servers_for(gateway::host_of(View::of(&request).authority()));
                gateway::arrived(binding, conn.connection.client, &mut request);
                gateway::route(binding, &tables, &servers, port, &View::of(&request), &mut dice)
            }
        };
        if let Some(binding) = &conn.connection.gateway {
            let unrouted = matches!(decision.outcome, HttpOutcome::NoRoute);
            if binding.is_misdirected(gateway::host_of(View::of(&request).authority()), unrouted) {
                return Ok(reply::failed(FailureClass::Misdirected, recorded));
            }
        }
        let named = decision.matched.map(|(_, m)| &m.stat_prefix).filter(|name| !name.is_empty());
        recorded.stat_prefix = named.map(Arc::clone);
        if let (Some(entry), Some(rule)) = (&mut recorded.entry, decision.rule) {
            entry.route = rule.name.to_string();
        }
        let source = source.as_ref();
        let start = recorded.start();
        let routed = Routed {
            conn: &conn,
            start,
            tables: &tables,
            source,
            caller,
            target: &target,
            found,
            port,
            decision,
        };
        let cors = CorsOutcome::None;
        let record = recorded;
        next.call(Exchange { conn: &conn, routed: &routed, record, request, cors, set_cookie: None }).await
    }
}

/// What a request calls: what its connection called, or what its first line says at the proxy port.
async fn target_of<'a>(
    conn: &'a HttpConnection,
    request: &Request<Incoming>,
) -> Result<Cow<'a, Target>, FailureClass> {
    if !conn.connection.proxy {
        return Ok(Cow::Borrowed(&conn.connection.target));
    }
    // Only an absolute form says where to go; what is meant for this proxy itself it does not serve.
    let uri = request.uri();
    let (Some("http"), Some(host)) = (uri.scheme_str(), uri.host()) else {
        return Err(FailureClass::BadRequest);
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(80);
    let found = Box::pin(forward_proxy::target(&conn.connection.worker, host, port)).await;
    found.map(Cow::Owned).ok_or(FailureClass::Blackhole)
}
