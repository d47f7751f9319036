//! The time that a route has for all tries together.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use mesh_core::outlier::Exchange;
use tokio::time::Instant;
use tower::Service;

use super::{
    super::super::failure::FailureClass,
    exchange::{Attempts, Tries},
    step::{Step, next, wait},
};

/// Ends tries when the route's time is over.
#[derive(Clone)]
pub(crate) struct Timeout<S>(pub(super) S);

impl<'a, S> Service<Attempts<'a>> for Timeout<S>
where
    S: for<'b> Service<Attempts<'b>, Response = Tries, Error = Infallible> + Clone + 'static,
{
    type Response = Tries;
    type Error = Infallible;
    type Future = Step<'a, <S as Service<Attempts<'a>>>::Future, Tries>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, attempts: Attempts<'a>) -> Self::Future {
        let limit = attempts.routed.decision.rule.and_then(|r| r.timeout);
        let Some(limit) = limit else { return next(self.0.call(attempts)) };
        let at = Instant::now() + limit;
        let mut then = self.0.clone();
        wait(async move {
            let Attempts { routed, upstreams, request, policy, grpc } = attempts;
            let tries = then.call(Attempts { routed, upstreams: &mut *upstreams, request, policy, grpc });
            if let Ok(Ok(mut tries)) = tokio::time::timeout_at(at, tries).await {
                tries.deadline = Some(at);
                return Ok(tries);
            }
            if let Some(tried) = upstreams.tried.last() {
                upstreams.state.exchanged(*tried, Exchange::LocalFailure);
            }
            Ok(Tries::of(Err(FailureClass::RouteTimeout)))
        })
    }
}
