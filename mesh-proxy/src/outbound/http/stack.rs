//! What happens to a request, in the order in which it happens.
//!
//! ```text
//! record (metrics, access log) · refuse what is not well-formed · route · fault · cors · answer without an endpoint
//!   · edit · mirror · time limit ( retry ( limits · balance · pool or connect · endpoint ) ) · edit the response
//! ```
//!
//! Each step is a call into the module that does it; a step that refuses returns a [`FailureClass`] and the rest is
//! skipped. This is one function and not a stack of services because it stays on one thread: nothing is cloned,
//! boxed or made `Send` between two steps.

use std::{borrow::Cow, convert::Infallible, rc::Rc, sync::Arc, time::SystemTime};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use mesh_core::{
    Client, Cluster, HttpDecision, HttpOutcome, HttpRule, Protocol, Tables, actions::CorsOutcome,
    retry::RetryPolicy, route::WeightedDestination,
};

use super::{
    super::{cluster::Limit, failure::FailureClass, forward_proxy, l4, target::Target},
    HttpConnection, Version,
    client::Upstreams,
    edit, guard,
    mirror::Copies,
    record::Record,
    reply,
    response::{ResponseBody, Tail},
    retry::{self, Repeatable},
    upgrade,
    view::{self, View},
};
use crate::telemetry::Flags;

/// Answers one request, whatever happens.
pub(crate) async fn handle(
    conn: Rc<HttpConnection>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let record = begin(&conn, &request);
    // Most of the time a connection is between two requests: its memory is not held then.
    Ok(Box::pin(exchange(conn, record, request)).await)
}

/// What is known when the head has been read.
fn begin(conn: &Rc<HttpConnection>, request: &Request<Incoming>) -> Box<Record> {
    let mut record = Box::new(Record::new(Rc::clone(conn)));
    record.grpc = reply::is_grpc(request.headers());
    if let Some(entry) = &mut record.entry {
        let text = |name: header::HeaderName| {
            request.headers().get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
        };
        entry.start = Some(SystemTime::now());
        entry.method = request.method().to_string();
        entry.path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        entry.protocol = match request.version() {
            http::Version::HTTP_10 => "HTTP/1.0",
            http::Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        };
        entry.authority = view::authority(request.uri(), request.headers()).to_owned();
        entry.agent = text(header::USER_AGENT).unwrap_or_default();
        entry.forwarded_for = text(header::HeaderName::from_static("x-forwarded-for")).unwrap_or_default();
        entry.request_id = text(header::HeaderName::from_static("x-request-id")).unwrap_or_default();
        entry.destination = conn.connection.target.addr;
        entry.client = Some(conn.connection.client);
    }
    record
}

async fn exchange(
    conn: Rc<HttpConnection>,
    mut record: Box<Record>,
    mut request: Request<Incoming>,
) -> Response<ResponseBody> {
    let worker = &conn.connection.worker;

    // 1. Refuse what no rule should see.
    if let Err(class) = guard::check(&conn, &request) {
        return reply::failed(class, record);
    }
    guard::normalize(&mut request);

    // 2. Who calls what, and what do the rules say?
    let target = match target_of(&conn, &request).await {
        Ok(target) => target,
        Err(class) => return reply::failed(class, record),
    };
    let tables = worker.tables();
    let source = conn.connection.source(&tables);
    record.parties.source.clone_from(&source);
    let caller = conn.connection.caller(source.as_ref().map(|s| s.get()));
    let found = target.find(&tables, caller.namespace);
    let vip = found.vip();
    let port = vip.map_or(target.port, |v| v.port.number);
    let request_view = View::of(&request);
    let decision = tables.route_http(&caller, port, vip.as_ref(), &request_view, &mut worker.dice());
    let route = Route { tables: &tables, caller, port, decision };
    route.note(&mut record);

    // 3. Injected faults come before everything that the rule does with the request.
    if let Some(class) = inject_fault(&conn, route.decision.rule, &mut record).await {
        return route.edited(reply::failed(class, record));
    }

    // 4. Cross-origin preflights.
    let cors = route.decision.rule.map_or(CorsOutcome::None, |r| r.cors(&View::of(&request)));
    if matches!(cors, CorsOutcome::Preflight(_)) {
        return reply::preflight(&cors, record);
    }

    // 5. Answers that need no endpoint.
    let (to, cluster) = match route.destination(&conn, &target) {
        Ok(found) => found,
        Err(Answer::Failed(class)) => return reply::failed(class, record),
        Err(Answer::Redirect(r)) => {
            let location = r.location(route.decision.matched.map(|m| m.1), &View::of(&request), port);
            return route.edited(reply::redirect(r.code, &location, record));
        }
        Err(Answer::Direct(d)) => {
            record.details = "direct_response";
            let body = Bytes::copy_from_slice(&d.body);
            return route.edited(reply::with_body(d.status, body, record));
        }
    };

    // 6. The rest happens with an endpoint.
    let state = match l4::resolve(worker, &cluster).await {
        Ok(state) => state,
        Err(class) => return reply::failed(class, record),
    };
    record.parties.cluster = Some(Rc::clone(&state.cluster));
    let max = state.cluster.policy.pool.max_requests;
    let Ok(permit) = state.limits.take(Limit::Requests, max) else {
        return reply::failed(FailureClass::Overflow, record);
    };
    let forwarding = Forwarding {
        upstreams: Upstreams {
            worker: Rc::clone(worker),
            source: source.clone(),
            pinned: found.pinned(&cluster, to.is_some()),
            h2: speaks_h2(&cluster, conn.version),
            tried: Vec::new(),
            last: None,
            now: record.start(),
            state,
        },
        permit,
    };
    let mut response = forwarding.run(&conn, &route, to, record, request).await;
    if let CorsOutcome::Actual(list) = &cors {
        reply::set(response.headers_mut(), list);
    }
    response
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

/// What the tables say about a request.
struct Route<'t, 'c> {
    tables: &'t Tables,
    caller: Client<'c>,
    port: u16,
    decision: HttpDecision<'t>,
}

/// An answer that needs no endpoint.
enum Answer<'t> {
    Failed(FailureClass),
    Redirect(&'t mesh_core::route::Redirect),
    Direct(&'t mesh_core::route::DirectResponse),
}

impl<'t> Route<'t, '_> {
    /// Says in the access log which rule it was.
    fn note(&self, record: &mut Record) {
        if let (Some(entry), Some(rule)) = (&mut record.entry, self.decision.rule) {
            entry.route = rule.name.to_string();
        }
    }

    /// A response with the rule's changes.
    fn edited(&self, mut response: Response<ResponseBody>) -> Response<ResponseBody> {
        edit::response(response.headers_mut(), &self.decision, None);
        response
    }

    /// Where the request goes.
    fn destination(
        &self,
        conn: &HttpConnection,
        target: &Target,
    ) -> Result<(Option<&'t WeightedDestination>, Cow<'t, Arc<Cluster>>), Answer<'t>> {
        let worker = &conn.connection.worker;
        match &self.decision.outcome {
            HttpOutcome::Forward { destination, cluster } => Ok((*destination, Cow::Borrowed(*cluster))),
            HttpOutcome::Passthrough(Some(cluster)) => Ok((None, Cow::Borrowed(*cluster))),
            HttpOutcome::Passthrough(None) => match target.addr {
                Some(addr) if worker.connector.is_own(addr) => {
                    Err(Answer::Failed(FailureClass::ConnectFailure))
                }
                Some(addr) if !self.tables.is_vip(addr.ip()) => {
                    Ok((None, Cow::Owned(worker.externals.passthrough(addr))))
                }
                Some(_) | None => Err(Answer::Failed(FailureClass::NoRoute)),
            },
            HttpOutcome::Redirect(r) => Err(Answer::Redirect(r)),
            HttpOutcome::Direct(d) => Err(Answer::Direct(d)),
            HttpOutcome::NoRoute => Err(Answer::Failed(FailureClass::NoRoute)),
            HttpOutcome::UnknownCluster(_) => Err(Answer::Failed(FailureClass::ClusterNotFound)),
            HttpOutcome::Blackhole => Err(Answer::Failed(FailureClass::Blackhole)),
        }
    }

    /// The policy for retries; none = there are none.
    fn retry_policy(&self) -> Option<&RetryPolicy> {
        let mesh = self.tables.mesh();
        match self.decision.rule {
            Some(rule) => rule.retry_policy(mesh),
            None => Some(&mesh.default_retry).filter(|p| p.attempts > 0),
        }
    }
}

/// Delays the request and says whether it is to be refused, as the rule and chance want.
async fn inject_fault(
    conn: &HttpConnection,
    rule: Option<&HttpRule>,
    record: &mut Record,
) -> Option<FailureClass> {
    let rule = rule?;
    let worker = &conn.connection.worker;
    if let Some(delay) = rule.delay(&mut worker.dice()) {
        record.flags = record.flags.with(Flags::DELAY_INJECTED);
        tokio::time::sleep(delay).await;
    }
    let abort = rule.abort(&mut worker.dice())?;
    let grpc = abort.grpc_status.and_then(|s| u16::try_from(s).ok());
    // A gRPC status for a caller that does not speak gRPC has no HTTP status of its own.
    let status = if abort.http_status == 0 { 200 } else { abort.http_status };
    Some(FailureClass::FaultAbort { status, grpc })
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

/// A request on its way to an endpoint.
struct Forwarding {
    upstreams: Upstreams,
    permit: Option<super::super::cluster::Permit>,
}

impl Forwarding {
    async fn run(
        mut self,
        conn: &Rc<HttpConnection>,
        route: &Route<'_, '_>,
        to: Option<&WeightedDestination>,
        mut record: Box<Record>,
        mut request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        // 7. Edit: what the rule changes, and what belongs to this connection only.
        let upgrade = self.edit(&mut request, route, to);
        let h2 = self.upstreams.h2;
        let client_upgrade = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));

        // 8. Copies for mirrors, and for retries.
        let copies = self.copies(conn, route, &request);
        let policy = route.retry_policy().filter(|_| upgrade.is_none());
        let keep = copies.is_some() || retry::after_sending(policy, record.grpc, h2);
        let expects = !h2 && request.headers().contains_key(header::EXPECT);
        let mut request = Repeatable::new(request, keep, Rc::clone(&record.received));
        if expects {
            request.hold_body();
        }

        // 9. Try, again if need be, within the route's time.
        let timeout = route.decision.rule.and_then(|r| r.timeout);
        let deadline = timeout.map(|t| tokio::time::Instant::now() + t);
        let tries = retry::run(&mut self.upstreams, &mut request, policy, record.grpc);
        let tries = match deadline {
            None => tries.await,
            Some(at) => match tokio::time::timeout_at(at, tries).await {
                Ok(tries) => tries,
                Err(_late) => return self.late(route, record),
            },
        };
        if let Some(copies) = copies {
            copies.send(request.kept());
        }
        if tries.exhausted {
            record.flags = record.flags.with(Flags::RETRY_LIMIT);
        }
        let (response, lease) = match tries.outcome {
            Ok(done) => done,
            Err(class) => return self.failed(class, record),
        };

        // 10. Edit the response, and hang the request's end on the end of its body.
        self.note(&mut record, lease.endpoint().addr);
        record.code = response.status().as_u16();
        record.details = "via_upstream";
        if record.grpc {
            record.see_grpc(response.headers());
        }
        let tail = Box::new(Tail {
            record,
            lease,
            state: self.upstreams.state,
            connection: Rc::clone(conn),
            permit: self.permit,
            deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
        });
        let mut response = finish(response, tail, client_upgrade);
        edit::response(response.headers_mut(), &route.decision, to);
        response
    }

    /// Edits a request; returns the protocol that the client wants to change to.
    fn edit(
        &mut self,
        request: &mut Request<Incoming>,
        route: &Route<'_, '_>,
        to: Option<&WeightedDestination>,
    ) -> Option<http::HeaderValue> {
        let upgrade = edit::upgrade_wanted(request);
        edit::hop_by_hop(request.headers_mut());
        if let Some(protocol) = &upgrade {
            // Only HTTP/1 can change its protocol.
            self.upstreams.h2 = false;
            edit::ask_upgrade(request.headers_mut(), protocol.clone());
        }
        edit::request(request, &route.decision, to);
        edit::travel_form(request, self.upstreams.h2);
        upgrade
    }

    fn copies(
        &self,
        conn: &HttpConnection,
        route: &Route<'_, '_>,
        request: &Request<Incoming>,
    ) -> Option<Copies> {
        let rule = route.decision.rule.filter(|r| !r.mirrors.is_empty())?;
        let worker = &conn.connection.worker;
        let mut dice = worker.dice();
        let clusters = route.tables.mirror_clusters(rule, &route.caller, route.port, &mut dice);
        let clusters = clusters.map(Arc::clone).collect();
        Copies::of(worker, clusters, self.upstreams.source.as_ref(), request, self.upstreams.h2)
    }

    /// Says in record and log which endpoint it was.
    fn note(&self, record: &mut Record, addr: std::net::SocketAddr) {
        let state = &self.upstreams.state;
        record.parties.destination = self.upstreams.last.map(|at| Rc::clone(&state.workloads[at]));
        let elapsed = record.entry.is_some().then(|| record.elapsed());
        if let Some(entry) = &mut record.entry {
            entry.upstream = Some(addr);
            entry.upstream_time = elapsed;
            entry.cluster = super::super::cluster_name(&state.cluster);
        }
    }

    fn failed(&self, class: FailureClass, mut record: Box<Record>) -> Response<ResponseBody> {
        if let Some(addr) = self.upstreams.tried.last() {
            self.note(&mut record, *addr);
        }
        reply::failed(class, record)
    }

    fn late(&self, route: &Route<'_, '_>, record: Box<Record>) -> Response<ResponseBody> {
        if let Some(addr) = self.upstreams.tried.last() {
            self.upstreams.state.exchanged(*addr, mesh_core::outlier::Exchange::GatewayError);
        }
        route.edited(self.failed(FailureClass::RouteTimeout, record))
    }
}

/// The response as the client gets it.
fn finish(
    mut response: Response<Incoming>,
    tail: Box<Tail>,
    client: Option<OnUpgrade>,
) -> Response<ResponseBody> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let upstream = hyper::upgrade::on(&mut response);
        let protocol = response.headers().get(header::UPGRADE).cloned();
        let (mut parts, _) = response.into_parts();
        match (client, protocol) {
            (Some(client), Some(protocol)) => {
                edit::hop_by_hop(&mut parts.headers);
                edit::ask_upgrade(&mut parts.headers, protocol);
                upgrade::start(client, upstream, tail);
                return Response::from_parts(parts, ResponseBody::none());
            }
            // Nobody asked for it.
            _ => return reply::failed(FailureClass::UpstreamProtocol, tail.record),
        }
    }
    let (mut parts, body) = response.into_parts();
    edit::hop_by_hop(&mut parts.headers);
    parts.version = http::Version::HTTP_11;
    Response::from_parts(parts, ResponseBody::upstream(body, tail))
}

#[cfg(test)]
pub(crate) fn exchange_size() -> usize {
    fn size<A, B, C, F>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }
    size(exchange)
}
