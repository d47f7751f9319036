//! What another try needs: a copy of the request, and a policy that may want it.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use http::{HeaderMap, Method, Uri, Version};
use hyper::body::{Body, Incoming};
use mesh_core::retry::{RetryPolicy, TryResult};

use super::{
    super::endpoint::Request,
    body::{Meter, Replay, RequestBody, Signal},
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
    pub(crate) fn next(&mut self) -> Option<Request> {
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
    pub(crate) fn has_next(&self) -> bool {
        self.ready.is_some()
            || (self.headers.is_some() && self.body.as_ref().is_none_or(|b| b.borrow().can_repeat()))
    }

    /// Takes back what came back unsent.
    pub(crate) fn give_back(&mut self, unsent: Option<Request>) {
        self.ready = unsent;
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
