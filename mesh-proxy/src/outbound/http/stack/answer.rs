//! Answers that need no endpoint.

use std::{
    borrow::Cow,
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use mesh_core::{
    Cluster, HttpOutcome,
    route::{DirectResponse, Redirect, WeightedDestination},
};
use tower::Service;

use super::{
    super::{
        super::{failure::FailureClass, worker::WorkerState},
        reply,
        view::View,
    },
    exchange::{Exchange, Placed, Routed},
    step::{Answer, Step, answer, next},
};
use crate::telemetry::local::Held;

/// Answers redirects, direct responses and what has no route; all else has a cluster.
#[derive(Clone)]
pub(crate) struct Answers<S>(pub(super) S);

impl<'t, S> Service<Exchange<'t>> for Answers<S>
where
    S: Service<Placed<'t>, Response = Answer, Error = Infallible>,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Step<'t, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut exchange: Exchange<'t>) -> Self::Future {
        let routed = exchange.routed;
        match destination(routed, &exchange.conn.connection.worker) {
            Destination::Cluster(to, cluster) => next(self.0.call(Placed { exchange, to, cluster })),
            Destination::Failed(class) => {
                if class == FailureClass::Blackhole {
                    let nowhere = exchange.conn.connection.worker.externals.blackhole();
                    exchange.record.parties.cluster = Some(Held::new(&nowhere));
                }
                answer(exchange.failed(class))
            }
            Destination::Redirect(r) => {
                let matched = routed.decision.matched.map(|m| m.1);
                let location = r.location(matched, &View::of(&exchange.request), routed.port);
                answer(routed.edited(reply::redirect(r.code, &location, exchange.record)))
            }
            Destination::Direct(d) => {
                exchange.record.details = "direct_response";
                let body = Bytes::copy_from_slice(&d.body);
                answer(routed.edited(reply::with_body(d.status, body, exchange.record)))
            }
        }
    }
}

/// Where a request goes.
enum Destination<'t> {
    Cluster(Option<&'t WeightedDestination>, Cow<'t, Arc<Cluster>>),
    Failed(FailureClass),
    Redirect(&'t Redirect),
    Direct(&'t DirectResponse),
}

fn destination<'t>(routed: &'t Routed<'t>, worker: &WorkerState) -> Destination<'t> {
    match &routed.decision.outcome {
        HttpOutcome::Forward { destination, cluster } => {
            Destination::Cluster(*destination, Cow::Borrowed(*cluster))
        }
        HttpOutcome::Passthrough(Some(cluster)) => Destination::Cluster(None, Cow::Borrowed(*cluster)),
        HttpOutcome::Passthrough(None) => match routed.target.addr {
            Some(addr) if worker.connector.is_own(addr) => Destination::Failed(FailureClass::ConnectFailure),
            Some(addr) if !routed.target.leads_nowhere(routed.tables, &routed.caller) => {
                Destination::Cluster(None, Cow::Owned(worker.externals.passthrough(addr)))
            }
            Some(_) | None => Destination::Failed(FailureClass::NoRoute),
        },
        HttpOutcome::Redirect(r) => Destination::Redirect(r),
        HttpOutcome::Direct(d) => Destination::Direct(d),
        HttpOutcome::NoRoute => Destination::Failed(FailureClass::NoRoute),
        HttpOutcome::UnknownCluster(_) if routed.decision.rule.is_some_and(|r| r.missing_status == 500) => {
            Destination::Failed(FailureClass::BackendNotFound)
        }
        HttpOutcome::UnknownCluster(_) => Destination::Failed(FailureClass::ClusterNotFound),
        HttpOutcome::Blackhole => Destination::Failed(FailureClass::Blackhole),
    }
}
