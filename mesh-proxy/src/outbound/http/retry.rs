//! Tries: how many, of what, and with which copy of the request.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Instant};

use http::{HeaderMap, Method, Uri, Version};
use hyper::body::{Body, Incoming};
use mesh_core::{
    outlier::Exchange,
    retry::{RetryPolicy, TryResult},
};

use super::{
    super::{
        cluster::Limit,
        endpoint::{Lease, Request, Response},
        failure::FailureClass,
    },
    body::{Meter, Replay, RequestBody, Signal},
    client::Upstreams,
};

/// A request that can be made again, as far as its body allows.
pub(crate) struct Repeatable {
    method: Method,
    uri: Uri,
    version: Version,
    /// There only if a rule may want another try after the request has been sent.
    headers: Option<HeaderMap>,
    body: Option<Rc<RefCell<Replay>>>,
    meter: Rc<Meter>,
    /// The first, or one that came back unsent.
    ready: Option<Request>,
}

impl Repeatable {
    /// Prepares a request. `keep`: it may have to be sent again after it was sent.
    pub(crate) fn new(request: http::Request<Incoming>, keep: bool, meter: Rc<Meter>) -> Self {
        let (parts, body) = request.into_parts();
        let (method, uri, version) = (parts.method.clone(), parts.uri.clone(), parts.version);
        let headers = keep.then(|| parts.headers.clone());
        let kept = (keep && !body.is_end_stream()).then_some(());
        let (body, replay) = match kept {
            Some(()) => {
                let replay = Replay::new(body);
                (RequestBody::replay(&replay, Rc::clone(&meter)), Some(replay))
            }
            None => (RequestBody::direct(body, Rc::clone(&meter)), None),
        };
        let ready = Some(http::Request::from_parts(parts, body));
        Self { method, uri, version, headers, body: replay, meter, ready }
    }

    /// The request of the next try; none if its body cannot be sent again.
    fn next(&mut self) -> Option<Request> {
        if let Some(ready) = self.ready.take() {
            return Some(ready);
        }
        let headers = self.headers.clone()?;
        let body = match &self.body {
            Some(replay) if replay.borrow().can_repeat() => {
                RequestBody::replay(replay, Rc::clone(&self.meter))
            }
            Some(_) => return None,
            None => RequestBody::empty(Rc::clone(&self.meter)),
        };
        let mut request = http::Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = headers;
        Some(request)
    }

    /// Whether there would be another request.
    fn has_next(&self) -> bool {
        self.ready.is_some()
            || (self.headers.is_some() && self.body.as_ref().is_none_or(|b| b.borrow().can_repeat()))
    }

    /// Holds the first try's body until the endpoint asks for it.
    pub(crate) fn hold_body(&mut self) {
        if let Some(ready) = &mut self.ready {
            let signal: Arc<Signal> = Arc::default();
            ready.body_mut().held_by(Arc::clone(&signal));
            hyper::ext::on_informational(ready, move |response| {
                if response.status() == http::StatusCode::CONTINUE {
                    signal.set();
                }
            });
        }
    }

    /// The body that was kept, for a mirror.
    pub(crate) const fn kept(&self) -> Option<&Rc<RefCell<Replay>>> {
        self.body.as_ref()
    }
}

/// Whether the policy may want another try after the request has been sent.
pub(crate) fn after_sending(policy: Option<&RetryPolicy>, grpc: bool, h2: bool) -> bool {
    let Some(p) = policy else { return false };
    p.per_try_timeout.is_some() && p.retries(TryResult::Timeout)
        || p.retries(TryResult::Reset { before_request: false })
        || p.retries(TryResult::RateLimited)
        || p.retries(TryResult::Status(500))
        || p.retries(TryResult::Status(503))
        || p.retries(TryResult::Status(409))
        || !p.status_codes.is_empty()
        || (h2 && p.retries(TryResult::RefusedStream))
        || (grpc && [1, 4, 8, 13, 14].into_iter().any(|code| p.retries(TryResult::Grpc(code))))
}

/// What came of all tries.
pub(crate) struct Tries {
    pub(crate) outcome: Result<(Response, Lease), FailureClass>,
    /// Tries were used up, and the last one failed in a way that would have been tried again.
    pub(crate) exhausted: bool,
}

/// Tries until one succeeds, the policy has enough, or the budget is spent.
pub(crate) async fn run(
    upstreams: &mut Upstreams,
    request: &mut Repeatable,
    policy: Option<&RetryPolicy>,
    grpc: bool,
) -> Tries {
    let mut retries = 0;
    if policy.is_some() {
        upstreams.state.on_request(Instant::now());
    }
    let mut _permit = None;
    loop {
        let Some(next) = request.next() else {
            return Tries { outcome: Err(FailureClass::UpstreamClosed), exhausted: false };
        };
        let (outcome, result) = one(upstreams, request, next, policy, grpc).await;
        let Some(policy) = policy.filter(|p| p.retries(result)) else {
            return Tries { outcome, exhausted: false };
        };
        if retries >= policy.attempts || !request.has_next() {
            return Tries { outcome, exhausted: retries > 0 && retries >= policy.attempts };
        }
        let limit = upstreams.state.cluster.policy.pool.max_retries;
        match upstreams.state.limits.take(Limit::Retries, limit) {
            Ok(permit) if upstreams.state.may_retry() => _permit = permit,
            _ => {
                upstreams.worker.shared.telemetry.edges.retries_denied.inc();
                return Tries { outcome, exhausted: false };
            }
        }
        upstreams.worker.shared.telemetry.edges.retries.inc();
        drop(outcome);
        retries += 1;
        let pause = policy.backoff_before(retries, &mut upstreams.worker.dice());
        tokio::time::sleep(pause).await;
        if !policy.ignore_previous_hosts {
            upstreams.tried.clear();
        }
    }
}

/// One try, and what it means to a retry policy.
async fn one(
    upstreams: &mut Upstreams,
    request: &mut Repeatable,
    next: Request,
    policy: Option<&RetryPolicy>,
    grpc: bool,
) -> (Result<(Response, Lease), FailureClass>, TryResult) {
    let call = upstreams.call(next);
    let done = match policy.and_then(|p| p.per_try_timeout) {
        None => call.await,
        Some(limit) => match tokio::time::timeout(limit, call).await {
            Ok(done) => done,
            Err(_late) => {
                if let Some(addr) = upstreams.tried.last() {
                    upstreams.state.exchanged(*addr, Exchange::GatewayError);
                }
                return (Err(FailureClass::TryTimeout), TryResult::Timeout);
            }
        },
    };
    match done {
        Ok((response, lease)) => {
            let status = response.status().as_u16();
            upstreams.state.exchanged(lease.endpoint().addr, Exchange::of_status(status));
            let result = meaning(&response, status, grpc);
            (Ok((response, lease)), result)
        }
        Err(e) => {
            if !matches!(e.result, TryResult::ConnectFailure | TryResult::Status(_))
                && let Some(addr) = upstreams.tried.last()
            {
                upstreams.state.exchanged(*addr, Exchange::GatewayError);
            }
            request.ready = e.request;
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
