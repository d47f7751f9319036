//! The state of the destination, and whether it takes one more request.

use std::{
    convert::Infallible,
    rc::Rc,
    task::{Context, Poll},
};

use mesh_core::{Cluster, Protocol};
use tower::Service;

use super::{
    super::{
        super::{
            cluster::{ClusterState, Limit, Permit},
            failure::FailureClass,
            l4,
        },
        Version,
        client::Upstreams,
    },
    exchange::{Forwarding, Placed},
    step::{Answer, Step, answer, next, wait},
};

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
        if placed.cluster.external_name.is_none() {
            let state = worker.cluster(&placed.cluster);
            return match admit(&mut placed, &state) {
                Ok(permit) => next(self.0.call(forwarding(placed, state, permit))),
                Err(class) => answer(placed.exchange.failed(class)),
            };
        }
        let mut then = self.0.clone();
        wait(async move {
            let admitted = match l4::resolve(worker, &placed.cluster).await {
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
    let Placed { exchange, to, cluster } = placed;
    let upstreams = Upstreams {
        worker: Rc::clone(&exchange.conn.connection.worker),
        source: exchange.routed.source.cloned(),
        pinned: exchange.routed.found.pinned(&cluster, to.is_some()),
        h2: speaks_h2(&cluster, exchange.conn.version),
        tried: Vec::new(),
        last: None,
        now: exchange.record.start(),
        state,
    };
    Forwarding { exchange, to, upstreams, permit }
}

/// HTTP/2 where the port says so; where it says nothing, what the client speaks.
const fn speaks_h2(cluster: &Cluster, client: Version) -> bool {
    match cluster.port.protocol {
        Protocol::Http2 | Protocol::Grpc => true,
        Protocol::Http | Protocol::Detect | Protocol::Tcp | Protocol::Tls | Protocol::Udp => {
            matches!(client, Version::Http2)
        }
    }
}
