//! A request between two layers: the further in, the more is known.

use std::{borrow::Cow, rc::Rc, sync::Arc, time::Instant};

use http::{HeaderValue, Request};
use hyper::body::Incoming;
use mesh_core::{
    Client, Cluster, HttpDecision, Tables, WorkloadEntry, actions::CorsOutcome, retry::RetryPolicy,
    route::WeightedDestination,
};

use super::{
    super::{
        super::{
            cluster::Permit,
            endpoint::{self, Lease},
            failure::FailureClass,
            target::{Found, Target},
        },
        HttpConnection,
        client::Upstreams,
        edit,
        record::Record,
        reply,
        retry::Repeatable,
        said::{Call as Said, Kept},
    },
    step::Answer,
};
use crate::telemetry::local::Held;

/// A request as it came.
pub(crate) struct Call {
    pub(super) conn: Rc<HttpConnection>,
    pub(super) record: Box<Record>,
    pub(super) request: Request<Incoming>,
}

/// What the tables say about a request.
pub(crate) struct Routed<'t> {
    pub(super) conn: &'t HttpConnection,
    /// When the request's head was read.
    pub(super) start: Instant,
    pub(super) tables: &'t Tables,
    pub(super) source: Option<&'t Rc<Held<WorkloadEntry>>>,
    pub(super) caller: Client<'t>,
    pub(super) target: &'t Target,
    pub(super) found: Found<'t>,
    pub(super) port: u16,
    pub(super) decision: HttpDecision<'t>,
}

impl Routed<'_> {
    /// A response with the rule's changes.
    pub(super) fn edited(&self, mut response: Answer) -> Answer {
        edit::response(&mut response, None, self.call(None), None, &Kept::default());
        response
    }

    /// What headers are made of.
    pub(super) fn call<'a>(&'a self, cluster: Option<&'a Cluster>) -> Said<'a> {
        Said { conn: self.conn, decision: &self.decision, start: self.start, cluster }
    }

    /// Name of the secret whose certificate the gateway shows to endpoints; empty = none.
    pub(super) fn shown(&self) -> &str {
        let secret = self.decision.gateway.and_then(|gateway| self.tables.client_secret(gateway));
        secret.unwrap_or_default()
    }

    /// The policy for retries; none = there are none.
    pub(super) fn retry_policy(&self) -> Option<&RetryPolicy> {
        let mesh = self.tables.mesh();
        match self.decision.rule {
            Some(rule) => rule.retry_policy(mesh),
            None => Some(&mesh.default_retry).filter(|p| p.attempts > 0),
        }
    }
}

/// A request that the rules know.
pub(crate) struct Exchange<'t> {
    pub(super) conn: &'t Rc<HttpConnection>,
    pub(super) routed: &'t Routed<'t>,
    pub(super) record: Box<Record>,
    pub(super) request: Request<Incoming>,
    /// What a cross-origin rule says to the response.
    pub(super) cors: CorsOutcome<'t>,
    /// A cookie that keeps the client with its endpoint.
    pub(super) set_cookie: Option<Box<HeaderValue>>,
}

impl Exchange<'_> {
    /// The end of a request that no endpoint saw.
    pub(super) fn failed(self, class: FailureClass) -> Answer {
        reply::failed(class, self.record)
    }
}

/// A request that needs an endpoint.
pub(crate) struct Placed<'t> {
    pub(super) exchange: Exchange<'t>,
    /// The rule's destination; none = the service itself.
    pub(super) to: Option<&'t WeightedDestination>,
    pub(super) cluster: Cow<'t, Arc<Cluster>>,
}

/// A request on its way to an endpoint.
pub(crate) struct Forwarding<'t> {
    pub(super) exchange: Exchange<'t>,
    pub(super) to: Option<&'t WeightedDestination>,
    pub(super) upstreams: Upstreams,
    pub(super) permit: Option<Permit>,
}

/// A request as the endpoint is to see it.
pub(crate) struct Outgoing<'a> {
    pub(super) routed: &'a Routed<'a>,
    pub(super) upstreams: &'a mut Upstreams,
    pub(super) record: &'a Record,
    pub(super) request: Request<Incoming>,
    /// The client wants to change the protocol.
    pub(super) upgrading: bool,
}

/// A request that can be tried, perhaps more than once.
pub(crate) struct Attempts<'a> {
    pub(super) routed: &'a Routed<'a>,
    pub(super) upstreams: &'a mut Upstreams,
    pub(super) request: Repeatable,
    pub(super) policy: Option<&'a RetryPolicy>,
    pub(super) grpc: bool,
}

/// What came of all tries.
pub(crate) struct Tries {
    pub(super) outcome: Result<(endpoint::Response, Lease), FailureClass>,
    /// Tries were used up, and the last one failed in a way that would have been tried again.
    pub(super) exhausted: bool,
    /// When the route's time is over.
    pub(super) deadline: Option<tokio::time::Instant>,
}

impl Tries {
    pub(super) const fn of(outcome: Result<(endpoint::Response, Lease), FailureClass>) -> Self {
        Self { outcome, exhausted: false, deadline: None }
    }

    /// The route's time was over before an endpoint answered.
    pub(super) const fn is_late(&self) -> bool {
        matches!(self.outcome, Err(FailureClass::RouteTimeout))
    }
}

/// One try.
pub(crate) struct Try<'a> {
    pub(super) upstreams: &'a mut Upstreams,
    pub(super) request: endpoint::Request,
}
