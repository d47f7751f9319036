//! One try: an endpoint, a connection to it from the pool or new, the request, the head of the response.

use std::{
    error::Error,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_api::model::tunnel_open::Kind;
use mesh_core::{WorkloadEntry, balance::EndpointId, policy::H2Keepalive, retry::TryResult};

use super::{
    super::{
        cluster::{Choice, ClusterState, Full, Permit, Place, Tried},
        connect::{self, Connected, Wanted},
        connector::{ConnectError, Purpose, TunnelError},
        endpoint::{Endpoint, Lease, Owner, Request, Response},
        failure::FailureClass,
        prologue::Ends,
        stream::Upstream,
        tls::{self, Alpn},
        worker::WorkerState,
    },
    H2_CONNECTION_WINDOW, H2_STREAM_WINDOW, LocalExec,
    body::{BodyError, RequestBody},
};
use crate::telemetry::{
    local::Held,
    trace::{Beside, Callee},
};

/// A destination as one request uses it.
pub(crate) struct Upstreams {
    pub(crate) worker: Rc<WorkerState>,
    pub(crate) state: Rc<ClusterState>,
    pub(crate) source: Option<Rc<Held<WorkloadEntry>>>,
    /// The only endpoint that may be used.
    pub(crate) pinned: Option<EndpointId>,
    /// Speak HTTP/2 to the endpoint.
    pub(crate) h2: bool,
    /// Endpoints that this request has tried.
    pub(crate) tried: Tried,
    /// The position of the last of them.
    pub(crate) last: Option<usize>,
    /// When a pooled connection broke under the request: only those made since are taken now.
    pub(crate) broke: Option<Instant>,
    /// When the request came: near enough to now for judging idle connections.
    pub(crate) now: Instant,
    /// What the request says about its endpoint.
    pub(crate) choice: Choice,
    /// What the connection belongs to, beside its endpoint; none = nothing begins it.
    pub(crate) begins: Option<Box<Begins>>,
    /// Only of a sampled trace: server spans of tries that stay on this node.
    pub(crate) beside: Option<Box<Beside>>,
}

/// What the beginning of a connection needs to know of its request.
#[derive(Debug, Default)]
pub(crate) struct Begins {
    pub(crate) client: Option<SocketAddr>,
    pub(crate) called: Option<SocketAddr>,
    pub(crate) host: String,
    /// By the name in the handshake, and by what is shown in it.
    pub(crate) tls: u64,
    /// Secret with the certificate that the gateway shows; empty = none.
    pub(crate) own: Box<str>,
}

impl Begins {
    /// For a request to a cluster; none if connections to it begin with nothing.
    pub(crate) fn of(
        state: &ClusterState,
        client: Option<SocketAddr>,
        called: Option<SocketAddr>,
        (host, own): (&str, &str),
    ) -> Option<Box<Self>> {
        let prologue = state.prologue.as_ref()?;
        let tls = prologue.tls().map_or(0, |policy| tls::name_of(policy, host, own));
        Some(Box::new(Self { client, called, host: host.to_owned(), tls, own: own.into() }))
    }
}

/// Why a try gave no response.
pub(crate) struct TryError {
    pub(crate) class: FailureClass,
    pub(crate) result: TryResult,
    /// It was on a connection that had served others before, and nothing came back: that says little about the endpoint.
    pub(crate) stale: bool,
    /// The request, if nothing of it was sent.
    pub(crate) request: Option<Request>,
}

impl Upstreams {
    /// Sends a request to one endpoint.
    pub(crate) async fn call(&mut self, mut request: Request) -> Result<(Response, Lease), TryError> {
        let repeatable = is_safe(&request);
        loop {
            let mut lease = match self.obtain().await {
                Ok(lease) => lease,
                Err(e) => return Err(self.not_connected(&e, request)),
            };
            self.trace(&lease, &mut request);
            // Kept where a break is likely, as it costs: after a rest, and where a path may die under the connection.
            let fragile = lease.rested || lease.reused && lease.is_tunnelled();
            let stale_copy = (repeatable && fragile).then(|| head_of(&request));
            let mut failure = match lease.send(request).await {
                Ok(response) => {
                    if let Some(beside) = &mut self.beside {
                        beside.answered(response.status().as_u16());
                    }
                    return Ok((response, lease));
                }
                Err(failure) => failure,
            };
            let unsent = failure.take_message();
            let error = failure.into_error();
            tracing::debug!(error = &error as &dyn Error, reused = lease.reused, "try failed");
            // The other pooled ones may have gone with it: the next one is new, and so nothing here is asked for ever.
            let first = lease.reused && self.broke.is_none();
            if lease.reused {
                self.broke = Some(Instant::now());
                lease.forget_path();
            }
            // A pooled connection that the endpoint closed meanwhile says nothing about the endpoint: ask again on
            // another one, if the request did nothing or may be repeated.
            request = match (unsent, stale_copy) {
                (Some(unsent), _) if first => unsent,
                (None, Some(copy)) if first && is_closed(&error) => copy,
                (unsent, _) => {
                    let stale = first && is_closed(&error);
                    return Err(TryError { stale, ..broken(&error, unsent, lease.is_h2()) });
                }
            };
        }
    }

    /// Says in a sampled request which span the endpoint's calls belong to.
    fn trace(&mut self, lease: &Lease, request: &mut Request) {
        let Some(beside) = &mut self.beside else { return };
        let (worker, state) = (&self.worker, &self.state);
        let is_here = lease.endpoint().node.as_deref() == Some(&*worker.shared.node);
        match (self.last.filter(|_| is_here), &worker.shared.tracer) {
            (Some(index), Some(tracer)) => {
                let workload = state.workloads[index].get();
                let rules = worker.telemetry.traces_beside(workload, &tracer.config().provider);
                let port = lease.endpoint().addr.port();
                let callee = Callee::new(workload, &state.cluster.key.host, port, lease.is_h2());
                beside.here(request, callee, &rules);
            }
            _ => beside.elsewhere(request),
        }
    }

    fn not_connected(&self, error: &ConnectError, request: Request) -> TryError {
        tracing::debug!(error = error as &dyn Error, host = %self.state.cluster.key.host, "no connection");
        let result = match error {
            // Another try would find the same.
            ConnectError::NoEndpoint
            | ConnectError::Overflow
            | ConnectError::Tunnel(_, TunnelError::Refused(_)) => TryResult::Status(0),
            _ => TryResult::ConnectFailure,
        };
        TryError { class: error.class(), result, stale: false, request: Some(request) }
    }

    /// A connection from the pool of the endpoint that is next, or a new one to it or another.
    async fn obtain(&mut self) -> Result<Lease, ConnectError> {
        let pool = &self.state.cluster.policy.pool;
        let index = match self.pinned {
            Some(id) => self.state.position(id),
            None => self.state.pick_for(&self.worker, self.choice, &self.tried, true),
        };
        let index = index.ok_or(ConnectError::NoEndpoint)?;
        self.last = Some(index);
        let endpoint = Rc::clone(&self.state.endpoints[index]);
        let broke = self.broke;
        let pooled = |owner: Owner| {
            if self.h2 {
                endpoint.take_h2(owner, broke, pool)
            } else {
                endpoint.take_idle(owner, broke, self.now, pool)
            }
        };
        let owner = self.owner(&endpoint);
        if let Some(lease) = pooled(owner) {
            self.tried.push(endpoint.id);
            return Ok(lease);
        }
        // A burst of streams makes one connection, not many.
        let dialling = if self.h2 { Some(endpoint.dialling.lock().await) } else { None };
        if self.h2
            && let Some(lease) = pooled(owner)
        {
            drop(dialling);
            self.tried.push(endpoint.id);
            return Ok(lease);
        }
        let permit = match self.state.place(|| pooled(owner)).await {
            Ok(Place::New(permit)) => permit,
            Ok(Place::Pooled(lease)) => {
                drop(dialling);
                self.tried.push(endpoint.id);
                return Ok(lease);
            }
            Err(Full) => return Err(ConnectError::Overflow),
        };
        // Rare beside pooled connections: its state is not part of every request's.
        Box::pin(self.dial(index, permit)).await
    }

    async fn dial(&mut self, index: usize, permit: Option<Permit>) -> Result<Lease, ConnectError> {
        let key = &self.state.cluster.key;
        let purpose = Purpose {
            source: self.source.as_ref().map(|s| s.get()),
            host: &key.host,
            subset: &key.subset,
            kind: Kind::Http,
            early: None,
        };
        let wanted = Wanted {
            worker: &self.worker,
            state: &self.state,
            purpose,
            pinned: self.pinned,
            first: Some(index),
            choice: self.choice,
            ends: self.begins.as_ref().map_or_else(Ends::default, |b| Ends {
                client: b.client,
                called: b.called,
                host: &b.host,
                alpn: if self.h2 { Alpn::H2 } else { Alpn::Http1 },
                own: &b.own,
            }),
        };
        let Connected { index, stream, generation } = connect::connect(wanted, &mut self.tried).await?;
        self.last = Some(index);
        let endpoint = &self.state.endpoints[index];
        let owner = Owner { generation, ..self.owner(endpoint) };
        if self.h2 {
            shake_h2(endpoint, stream, owner, permit, self.state.cluster.policy.pool.h2_keepalive).await
        } else {
            shake_h1(endpoint, stream, owner, permit).await
        }
    }

    /// Connections through the tunnel carry the caller's identity.
    fn owner(&self, endpoint: &Endpoint) -> Owner {
        let tls = self.begins.as_ref().map_or(0, |b| b.tls);
        let generation = self.worker.connector.generation(endpoint);
        let caller = self.source.as_ref().filter(|_| generation.is_some()).map(|s| s.address);
        Owner { caller, tls, generation }
    }
}

async fn shake_h1(
    endpoint: &Rc<Endpoint>,
    stream: Upstream,
    owner: Owner,
    permit: Option<Permit>,
) -> Result<Lease, ConnectError> {
    let mut builder = http1::Builder::new();
    let shaken = builder.max_header_size(MAX_RESPONSE_HEAD).handshake(TokioIo::new(stream)).await;
    let (sender, connection) = shaken.map_err(|e| handshake_failed(endpoint, e))?;
    tokio::task::spawn_local(async move {
        if let Err(e) = connection.with_upgrades().await {
            tracing::debug!(error = &e as &dyn Error, "connection to an endpoint ended");
        }
        drop(permit);
    });
    Ok(Lease::h1(endpoint, sender, owner, 0))
}

async fn shake_h2(
    endpoint: &Rc<Endpoint>,
    stream: Upstream,
    owner: Owner,
    permit: Option<Permit>,
    keepalive: Option<H2Keepalive>,
) -> Result<Lease, ConnectError> {
    let shaken = http2::Builder::new(LocalExec)
        .timer(TokioTimer::new())
        // An endpoint that vanished without a word has to be noticed while streams wait for it.
        .keep_alive_interval(keepalive.map_or(PROBE_EVERY, |k| k.interval))
        .keep_alive_timeout(keepalive.map_or(PROBE_WAIT, |k| k.timeout))
        .keep_alive_while_idle(keepalive.is_some())
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_header_list_size(MAX_RESPONSE_HEAD as u32)
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, connection) = shaken.map_err(|e| handshake_failed(endpoint, e))?;
    tokio::task::spawn_local(async move {
        if let Err(e) = connection.await {
            tracing::debug!(error = &e as &dyn Error, "connection to an endpoint ended");
        }
        drop(permit);
    });
    Ok(endpoint.add_h2(sender, owner))
}

/// How often an HTTP/2 connection with streams under way is probed, and how long the answer may take.
const PROBE_EVERY: Duration = Duration::from_secs(20);
const PROBE_WAIT: Duration = Duration::from_secs(10);

/// Largest head of a response.
const MAX_RESPONSE_HEAD: usize = 128 << 10;

fn handshake_failed(endpoint: &Endpoint, error: hyper::Error) -> ConnectError {
    ConnectError::Tcp(endpoint.addr, std::io::Error::other(error))
}

/// Whether doing it twice does no harm, and it has no body: then a lost answer may be asked for again.
fn is_safe(request: &Request) -> bool {
    does_nothing(request.method()) && request.body().is_empty()
}

pub(crate) fn does_nothing(method: &http::Method) -> bool {
    matches!(*method, http::Method::GET | http::Method::HEAD | http::Method::OPTIONS)
}

/// A copy of a request that has no body.
fn head_of(request: &Request) -> Request {
    let mut copy = http::Request::new(RequestBody::empty(Rc::default()));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

fn is_closed(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_canceled() || error.is_closed() || io_error(error)
}

fn io_error(error: &hyper::Error) -> bool {
    let mut source = error.source();
    while let Some(e) = source {
        if e.is::<std::io::Error>() {
            return true;
        }
        source = e.source();
    }
    false
}

/// What a broken exchange means.
fn broken(error: &hyper::Error, request: Option<Request>, h2: bool) -> TryError {
    let before_request = request.is_some();
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(e) = source {
        if let Some(e) = e.downcast_ref::<h2::Error>() {
            let refused = e.reason() == Some(h2::Reason::REFUSED_STREAM);
            let result = if refused { TryResult::RefusedStream } else { TryResult::Reset { before_request } };
            let class = if e.is_io() { FailureClass::UpstreamClosed } else { FailureClass::UpstreamReset };
            return TryError { class, result, stale: false, request };
        }
        if e.is::<BodyError>() {
            // The client's fault; nobody is left to read the answer.
            let result = TryResult::Status(0);
            return TryError { class: FailureClass::BadRequest, result, stale: false, request: None };
        }
        source = e.source();
    }
    let class =
        if error.is_parse() && !h2 { FailureClass::UpstreamProtocol } else { FailureClass::UpstreamClosed };
    TryError { class, result: TryResult::Reset { before_request }, stale: false, request }
}
