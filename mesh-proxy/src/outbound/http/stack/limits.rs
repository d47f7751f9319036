//! The state of the destination, and whether it takes one more request.

use std::{
    convert::Infallible,
    rc::Rc,
    task::{Context, Poll},
};

use mesh_core::{Cluster, Protocol, RequestView, Source, policy::H2Upgrade, sticky};
use tower::Service;

use super::{
    super::{
        super::{
            cluster::{Choice, ClusterState, Limit, Permit},
            external::Asked,
            failure::FailureClass,
            l4,
        },
        Version,
        client::{Begins, Upstreams},
        view::View,
    },
    exchange::{Exchange, Forwarding, Placed},
    step::{Answer, Step, answer, next, wait},
};
use crate::telemetry::trace::Beside;

/// Refuses what is too many.
#[derive(Clone)]
pub(crate) struct Limits<S>(pub(super) S);

impl<'t, S> Service<Placed<'t>> for Limits<S>
where
    S: Service<Forwarding<'t>, Response = Answer, Error = Infallible> + Clone + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Step<'t, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut placed: Placed<'t>) -> Self::Future {
        let worker = &placed.exchange.conn.connection.worker;
        if placed.cluster.source == Source::List {
            let state = worker.cluster(&placed.cluster);
            return match admit(&mut placed, &state) {
                Ok(permit) => next(self.0.call(forwarding(placed, state, permit))),
                Err(class) => answer(placed.exchange.failed(class)),
            };
        }
        let mut then = self.0.clone();
        wait(async move {
            let host = View::of(&placed.exchange.request).authority().to_owned();
            let asked = Asked { addr: placed.exchange.routed.target.addr, host: &host };
            let admitted = match l4::resolve(worker, &placed.cluster, asked).await {
                Ok(state) => admit(&mut placed, &state).map(|permit| (state, permit)),
                Err(class) => Err(class),
            };
            match admitted {
                Ok((state, permit)) => then.call(forwarding(placed, state, permit)).await,
                Err(class) => Ok(placed.exchange.failed(class)),
            }
        })
    }
}

fn admit(placed: &mut Placed<'_>, state: &Rc<ClusterState>) -> Result<Option<Permit>, FailureClass> {
    placed.exchange.record.parties.cluster = Some(Rc::clone(&state.cluster));
    let max = state.cluster.policy.pool.max_requests;
    state.limits.take(Limit::Requests, max).map_err(|_full| FailureClass::Overflow)
}

fn forwarding<'t>(placed: Placed<'t>, state: Rc<ClusterState>, permit: Option<Permit>) -> Forwarding<'t> {
    let Placed { mut exchange, to, cluster } = placed;
    let connection = &exchange.conn.connection;
    let view = View::of(&exchange.request);
    let mut choice = Choice::default();
    if let Some(policy) = &state.cluster.policy.balancing.hash {
        let source = Some(connection.client.ip());
        let key = sticky::key_of(policy, &view, source, &mut connection.worker.dice());
        choice.hash = key.hash;
        exchange.set_cookie = key.cookie.and_then(|c| c.try_into().ok()).map(Box::new);
    }
    let called = exchange.routed.target.addr;
    let own = exchange.routed.shown();
    let begins = Begins::of(&state, Some(connection.client), called, (view.authority(), own));
    let worker = &connection.worker;
    let traced = exchange.record.span.as_ref().zip(worker.shared.tracer.as_ref());
    let beside = traced.map(|(span, tracer)| {
        Beside::of(tracer, span, &worker.shared.node, connection.client.ip().to_canonical())
    });
    let upstreams = Upstreams {
        choice,
        begins,
        beside,
        worker: Rc::clone(&exchange.conn.connection.worker),
        source: exchange.routed.source.cloned(),
        pinned: exchange.routed.found.pinned(&cluster, to.is_some()),
        h2: speaks_h2(&cluster, client_speaks_h2(&exchange)),
        tried: Vec::new(),
        last: None,
        broke: None,
        now: exchange.record.start(),
        state,
    };
    Forwarding { exchange, to, upstreams, permit }
}

/// Whether the client's own protocol is HTTP/2. What browsers speak with a gateway says nothing about the service behind,
/// as in Istio; gRPC is nothing but HTTP/2.
fn client_speaks_h2(exchange: &Exchange<'_>) -> bool {
    let outside = exchange.conn.connection.gateway.is_some();
    matches!(exchange.conn.version, Version::Http2) && (!outside || exchange.record.grpc)
}

/// HTTP/2 where the rule or the port says so; where they say nothing, what the client speaks.
fn speaks_h2(cluster: &Cluster, client: bool) -> bool {
    match cluster.policy.pool.h2_upgrade {
        H2Upgrade::Upgrade => return true,
        H2Upgrade::Client => return client,
        H2Upgrade::ByPort => {}
    }
    match cluster.port.protocol {
        Protocol::Http2 | Protocol::Grpc => true,
        Protocol::Http | Protocol::Detect | Protocol::Tcp | Protocol::Tls | Protocol::Udp => client,
    }
}
