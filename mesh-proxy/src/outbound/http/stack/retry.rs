//! Tries: how many, and when another one.

use std::{
    convert::Infallible,
    future::Future,
    pin::pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use mesh_core::{outlier::Exchange, retry::TryResult};
use tower::Service;

use super::{
    super::{
        super::{
            cluster::Limit,
            endpoint::{Lease, Response},
            failure::FailureClass,
        },
        client::{TryError, Upstreams, does_nothing},
        retry::Repeatable,
    },
    exchange::{Attempts, Tries, Try},
    step::{Boxed, Done},
};

/// Tries again what failed, as the policy and the budget allow.
#[derive(Clone)]
pub(crate) struct Retry<S>(pub(super) S);

impl<'a, S> Service<Attempts<'a>> for Retry<S>
where
    S: for<'b> Service<Try<'b>, Response = (Response, Lease), Error = TryError> + Clone + 'static,
{
    type Response = Tries;
    type Error = Infallible;
    type Future = Boxed<'a, Tries>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Whether there is an endpoint is a matter of each try.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, attempts: Attempts<'a>) -> Self::Future {
        Box::pin(run(self.0.clone(), attempts))
    }
}

/// Tries until one succeeds, the policy has enough, or the budget is spent.
pub(super) fn run<S>(mut endpoint: S, attempts: Attempts<'_>) -> impl Future<Output = Done<Tries>>
where
    S: for<'a> Service<Try<'a>, Response = (Response, Lease), Error = TryError>,
{
    let Attempts { upstreams, mut request, policy, grpc, .. } = attempts;
    async move {
        let mut retries = 0;
        if policy.is_some() {
            upstreams.state.on_request(Instant::now());
        }
        let mut _permit = None;
        loop {
            let Some(next) = request.next() else {
                return Ok(Tries::of(Err(FailureClass::UpstreamClosed)));
            };
            let limit = policy.and_then(|p| p.per_try_timeout);
            let again = does_nothing(next.method());
            let done = one(&mut endpoint, Try { upstreams: &mut *upstreams, request: next }, limit).await;
            // A pooled connection that broke before any answer says little of the endpoint: once, that costs no try.
            let again = again && matches!(&done, Some(Err(e)) if e.stale);
            if again && request.has_next() {
                upstreams.tried.pop();
                continue;
            }
            let (outcome, result) = judge(done, upstreams, &mut request, grpc);
            let Some(policy) = policy.filter(|p| p.retries(result)) else {
                return Ok(Tries::of(outcome));
            };
            if retries >= policy.attempts || !request.has_next() {
                let exhausted = retries > 0 && retries >= policy.attempts;
                return Ok(Tries { exhausted, ..Tries::of(outcome) });
            }
            let limit = upstreams.state.cluster.policy.pool.max_retries;
            match upstreams.state.limits.take(Limit::Retries, limit) {
                Ok(permit) if upstreams.state.may_retry() => _permit = permit,
                _ => {
                    upstreams.worker.shared.telemetry.edges.retries_denied.inc();
                    return Ok(Tries::of(outcome));
                }
            }
            upstreams.worker.shared.telemetry.edges.retries.inc();
            drop(outcome);
            retries += 1;
            let pause = policy.backoff_before(retries, &mut upstreams.worker.dice());
            tokio::time::sleep(pause).await;
            if policy.remote_localities {
                // The localities are chosen anew after every second try, as in Envoy.
                upstreams.choice.remote = upstreams.tried.len() >= 2;
            } else if !policy.avoids_previous_hosts(upstreams.state.cluster.policy.balancing.hash.is_some()) {
                upstreams.tried.clear();
            }
        }
    }
}

/// One try; none if its time was over.
async fn one<'a, S>(
    endpoint: &mut S,
    one: Try<'a>,
    limit: Option<Duration>,
) -> Option<Result<(Response, Lease), TryError>>
where
    S: Service<Try<'a>, Response = (Response, Lease), Error = TryError>,
{
    // Pinned here, because each move of it would be room in the request.
    let call = pin!(endpoint.call(one));
    match limit {
        None => Some(call.await),
        Some(limit) => tokio::time::timeout(limit, call).await.ok(),
    }
}

/// What a try means to the endpoint, and to a retry policy.
fn judge(
    done: Option<Result<(Response, Lease), TryError>>,
    upstreams: &Upstreams,
    request: &mut Repeatable,
    grpc: bool,
) -> (Result<(Response, Lease), FailureClass>, TryResult) {
    let failed = || {
        if let Some(tried) = upstreams.tried.last() {
            upstreams.state.exchanged(*tried, Exchange::LocalFailure);
        }
    };
    match done {
        None => {
            failed();
            (Err(FailureClass::TryTimeout), TryResult::Timeout)
        }
        Some(Ok((response, lease))) => {
            let status = response.status().as_u16();
            upstreams.state.answered(lease.endpoint().id, status);
            let result = meaning(&response, status, grpc);
            (Ok((response, lease)), result)
        }
        Some(Err(e)) => {
            if !matches!(e.result, TryResult::ConnectFailure | TryResult::Status(_)) {
                failed();
            }
            request.give_back(e.request);
            (Err(e.class), e.result)
        }
    }
}

fn meaning(response: &Response, status: u16, grpc: bool) -> TryResult {
    let headers = response.headers();
    if headers.contains_key("x-envoy-ratelimited") {
        return TryResult::RateLimited;
    }
    let code = || headers.get("grpc-status")?.to_str().ok()?.parse().ok();
    match (grpc, code()) {
        (true, Some(code)) => TryResult::Grpc(code),
        _ => TryResult::Status(status),
    }
}
