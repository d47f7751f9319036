//! The server span of a request that stays on its node. Between nodes the endpoint's node sees requests come and makes it
//! (`telemetry::tap`); here the caller's node is the endpoint's, and nobody else sees them.

use std::{net::IpAddr, sync::Arc, time::Instant};

use http::Request;
use mesh_core::WorkloadEntry;

use super::{OpenSpan, Reporter, ServerCall, TraceIds, Tracer, context::Forms, new_span};
use crate::telemetry::rules::TraceRules;

/// A sampled request while it is tried: a try at a pod of this node has a span of its own, and the pod hears of that one.
#[derive(Debug)]
pub(crate) struct Beside {
    tracer: Arc<Tracer>,
    node: Arc<str>,
    caller: IpAddr,
    /// The client span, which the request speaks of when it comes here.
    client: TraceIds,
    parent: Option<u64>,
    forms: Forms,
    /// The last try, if it was at a pod of this node.
    served: Option<Box<Served>>,
}

/// A try at a pod of this node, as far as it has come.
#[derive(Debug)]
struct Served {
    call: ServerCall,
    began: Instant,
    callee: Callee,
    status: u16,
    grpc_status: Option<u16>,
    /// Bytes of both bodies.
    sizes: (u64, u64),
}

/// At whom a try is.
#[derive(Debug)]
pub(crate) struct Callee {
    pub(crate) reporter: Reporter,
    /// The service, and the port of the pod.
    pub(crate) service: (String, u32),
    pub(crate) protocol: &'static str,
}

impl Callee {
    pub(crate) fn new(workload: &WorkloadEntry, host: &str, port: u16, h2: bool) -> Self {
        Self {
            reporter: Reporter::of(Some(workload)),
            service: (host.to_owned(), port.into()),
            protocol: if h2 { "HTTP/2" } else { "HTTP/1.1" },
        }
    }
}

impl Beside {
    /// For a request that has a client span.
    pub(crate) fn of(tracer: &Arc<Tracer>, span: &OpenSpan, node: &Arc<str>, caller: IpAddr) -> Box<Self> {
        let (client, parent, forms) = span.said();
        let (tracer, node) = (Arc::clone(tracer), Arc::clone(node));
        Box::new(Self { tracer, node, caller, client, parent, forms, served: None })
    }

    /// The next try is at a pod of this node.
    pub(crate) fn here<B>(&mut self, request: &mut Request<B>, callee: Callee, rules: &TraceRules) {
        self.elsewhere(request);
        if !rules.reports {
            return;
        }
        let ids = TraceIds { span: new_span(), ..self.client };
        let call = {
            let find = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok());
            let host = request.uri().authority().map_or_else(|| find("host"), |a| Some(a.as_str()));
            let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
            let about = (request.method().as_str(), host.unwrap_or_default(), path);
            ServerCall::of(self.client.span, ids, about, (&find, rules))
        };
        self.forms.write(ids, Some(self.client.span), request.headers_mut());
        let served =
            Served { call, began: Instant::now(), callee, status: 0, grpc_status: None, sizes: (0, 0) };
        self.served = Some(Box::new(served));
    }

    /// The next try is at another node.
    pub(crate) fn elsewhere<B>(&mut self, request: &mut Request<B>) {
        if let Some(before) = self.served.take() {
            self.say(*before);
            self.forms.write(self.client, self.parent, request.headers_mut());
        }
    }

    /// The head of the answer has come.
    pub(crate) const fn answered(&mut self, status: u16) {
        if let Some(served) = &mut self.served {
            served.status = status;
        }
    }

    /// The answer has gone to its end, or will not come.
    pub(crate) fn ended(mut self, grpc_status: Option<u16>, sizes: (u64, u64)) {
        if let Some(served) = &mut self.served {
            (served.grpc_status, served.sizes) = (grpc_status, sizes);
        }
    }

    fn say(&self, served: Served) {
        let Served { call, began, callee, status, grpc_status, sizes } = served;
        let (host, port) = &callee.service;
        let mut span = call.span(callee.reporter, (host, *port), &self.node, &self.caller.to_string());
        span.ended(began.elapsed(), callee.protocol, (status, grpc_status), sizes);
        self.tracer.queue().push(span);
    }
}

impl Drop for Beside {
    /// Also of a request that was given up.
    fn drop(&mut self) {
        if let Some(served) = self.served.take() {
            self.say(*served);
        }
    }
}
