//! One endpoint as one worker knows it: its pooled connections and its load.
//!
//! Nothing here is shared between threads, so nothing here locks.

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};

use mesh_core::{balance::EndpointId, policy::Pool};

use super::http::body::RequestBody;

/// Most idle HTTP/1 connections that a worker keeps to one endpoint.
const MAX_IDLE: usize = 512;
/// Streams on one HTTP/2 connection before another is opened: what most servers allow.
const MAX_STREAMS: u32 = 100;
/// Servers give up connections that were idle for seconds; within this time nobody does.
const RESTED: Duration = Duration::from_millis(100);

pub(crate) type Request = http::Request<RequestBody>;
pub(crate) type Response = http::Response<Incoming>;

/// Whose connection it is. Connections through the tunnel carry the caller's identity, so only the same caller may
/// use one again; direct ones have none. Connections under TLS belong to the name in their handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Owner {
    pub(crate) caller: Option<IpAddr>,
    /// 0 = no TLS.
    pub(crate) tls: u64,
    /// Of the way to the node through the tunnel; none = straight. Connections made on a way before are left.
    pub(crate) generation: Option<u64>,
}

/// One endpoint.
pub(crate) struct Endpoint {
    pub(crate) addr: SocketAddr,
    pub(crate) node: Option<Arc<str>>,
    /// Both of it.
    pub(crate) id: EndpointId,
    /// Requests and connections in flight.
    load: Cell<u32>,
    idle: RefCell<Vec<IdleH1>>,
    h2: RefCell<Vec<Rc<H2>>>,
    /// Moves when connections through the tunnel should take no further requests: there is a better path to the
    /// owner's node, or its process leaves. Set with the first connection.
    generation: OnceCell<Option<Arc<AtomicU64>>>,
    /// Held while an HTTP/2 connection is being made, so that a burst makes one.
    pub(crate) dialling: tokio::sync::Mutex<()>,
}

/// An HTTP/1 connection between two requests.
struct IdleH1 {
    sender: http1::SendRequest<RequestBody>,
    owner: Owner,
    served: u32,
    born: Instant,
    since: Instant,
}

/// An HTTP/2 connection.
pub(crate) struct H2 {
    sender: http2::SendRequest<RequestBody>,
    owner: Owner,
    in_flight: Cell<u32>,
    served: Cell<u32>,
    born: Instant,
    idle_since: Cell<Instant>,
}

impl Endpoint {
    pub(crate) fn new(addr: SocketAddr, node: Option<Arc<str>>) -> Self {
        Self {
            id: EndpointId::new(addr, node.as_deref()),
            addr,
            node,
            load: Cell::new(0),
            idle: RefCell::default(),
            h2: RefCell::default(),
            generation: OnceCell::new(),
            dialling: tokio::sync::Mutex::new(()),
        }
    }

    /// The number that is part of the owner of connections made now. `find` gives the node's counter, once.
    pub(crate) fn generation(&self, find: impl FnOnce() -> Option<Arc<AtomicU64>>) -> u64 {
        self.generation.get_or_init(find).as_ref().map_or(0, |n| n.load(Ordering::Relaxed))
    }

    /// Whether a connection may take requests, as far as the tunnel is concerned.
    fn is_current(&self, owner: Owner) -> bool {
        owner.generation.is_none_or(|way| way == self.generation(|| None))
    }

    /// What least-request balancing compares.
    pub(crate) fn load(&self) -> u32 {
        self.load.get()
    }

    /// A pooled HTTP/1 connection, the most recently used first; only one that was made `after` a moment, if there is one.
    pub(crate) fn take_idle(
        self: &Rc<Self>,
        owner: Owner,
        after: Option<Instant>,
        now: Instant,
        pool: &Pool,
    ) -> Option<Lease> {
        let mut idle = self.idle.borrow_mut();
        // Looks only as far as it has to: there may be hundreds.
        let c = loop {
            let at = idle.iter().rposition(|c| c.owner == owner && after.is_none_or(|at| c.born > at))?;
            let c = idle.remove(at);
            let old =
                pool.max_connection_duration.is_some_and(|max| now.saturating_duration_since(c.born) >= max);
            if !c.sender.is_closed() && self.is_current(c.owner) && !old {
                break c;
            }
        };
        drop(idle);
        let rested = now.saturating_duration_since(c.since) > RESTED;
        let kind = LeaseKind::H1 { sender: c.sender, served: c.served, born: c.born };
        Some(Lease { busy: self.busy(), owner, reused: c.served > 0, rested, kind })
    }

    /// A pooled HTTP/2 connection with room for one more stream, made `after` a moment as above.
    pub(crate) fn take_h2(
        self: &Rc<Self>,
        owner: Owner,
        after: Option<Instant>,
        pool: &Pool,
    ) -> Option<Lease> {
        let mut all = self.h2.borrow_mut();
        let now = Instant::now();
        // One that is left here ends with its last stream.
        let young =
            |born| pool.max_connection_duration.is_none_or(|max| now.saturating_duration_since(born) < max);
        all.retain(|c| !c.sender.is_closed() && self.is_current(c.owner) && young(c.born));
        let max = pool.max_requests_per_connection.unwrap_or(u32::MAX);
        let streams = pool.max_concurrent_streams.unwrap_or(MAX_STREAMS);
        let fits = |c: &&Rc<H2>| {
            c.owner == owner
                && after.is_none_or(|at| c.born > at)
                && c.served.get() < max
                && c.in_flight.get() < streams
        };
        let found = all.iter().find(fits)?;
        let found = Rc::clone(found);
        drop(all);
        Some(Lease::h2(self, found))
    }

    /// Adds a new HTTP/2 connection to the pool.
    pub(crate) fn add_h2(self: &Rc<Self>, sender: http2::SendRequest<RequestBody>, owner: Owner) -> Lease {
        let c = Rc::new(H2 {
            sender,
            owner,
            in_flight: Cell::new(0),
            served: Cell::new(0),
            born: Instant::now(),
            idle_since: Cell::new(Instant::now()),
        });
        self.h2.borrow_mut().push(Rc::clone(&c));
        Lease::h2(self, c)
    }

    /// Closes connections that have been idle for too long, and forgets closed ones.
    pub(crate) fn sweep(&self, now: Instant, pool: &Pool) {
        let fresh = |since: Instant| now.saturating_duration_since(since) < pool.http_idle_timeout;
        let young =
            |born| pool.max_connection_duration.is_none_or(|max| now.saturating_duration_since(born) < max);
        self.idle
            .borrow_mut()
            .retain(|c| !c.sender.is_closed() && fresh(c.since) && young(c.born) && self.is_current(c.owner));
        self.h2.borrow_mut().retain(|c| {
            let idle = c.in_flight.get() == 0;
            let stays = !idle || fresh(c.idle_since.get()) && young(c.born);
            !c.sender.is_closed() && self.is_current(c.owner) && stays
        });
    }

    /// Closes the connection that has been idle for longest; false if there is none.
    pub(crate) fn close_one_idle(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        if !idle.is_empty() {
            idle.remove(0);
            return true;
        }
        drop(idle);
        let mut h2 = self.h2.borrow_mut();
        let at = h2.iter().position(|c| c.in_flight.get() == 0);
        at.map(|at| h2.remove(at)).is_some()
    }

    /// Closes idle connections on a way that is left; those with requests under way end with the last of them.
    pub(crate) fn close_left(&self) {
        self.idle.borrow_mut().retain(|c| self.is_current(c.owner));
        self.h2.borrow_mut().retain(|c| self.is_current(c.owner));
    }

    /// Closes all idle connections: the endpoint is gone, or the worker drains.
    pub(crate) fn close_idle(&self) {
        self.idle.borrow_mut().clear();
        self.h2.borrow_mut().clear();
    }

    /// Counts a connection or request as load while the guard lives.
    pub(crate) fn busy(self: &Rc<Self>) -> Busy {
        self.load.set(self.load.get() + 1);
        Busy(Rc::clone(self))
    }
}

/// One unit of load.
pub(crate) struct Busy(Rc<Endpoint>);

impl Busy {
    pub(crate) const fn endpoint(&self) -> &Rc<Endpoint> {
        &self.0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.load.set(self.0.load.get().saturating_sub(1));
    }
}

/// A connection lent to one request. Dropping it gives nothing back; [`Lease::release`] does.
pub(crate) struct Lease {
    busy: Busy,
    owner: Owner,
    /// Served at least one request before: a failure may only mean that it went stale.
    pub(crate) reused: bool,
    /// Was idle for so long that the endpoint may just have given it up.
    pub(crate) rested: bool,
    kind: LeaseKind,
}

enum LeaseKind {
    H1 { sender: http1::SendRequest<RequestBody>, served: u32, born: Instant },
    H2(Stream),
}

/// One stream of an HTTP/2 connection.
struct Stream(Rc<H2>);

impl Stream {
    fn open(c: Rc<H2>) -> Self {
        c.in_flight.set(c.in_flight.get() + 1);
        Self(c)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get().saturating_sub(1));
        self.0.idle_since.set(Instant::now());
    }
}

impl Lease {
    pub(crate) fn h1(
        endpoint: &Rc<Endpoint>,
        sender: http1::SendRequest<RequestBody>,
        owner: Owner,
        served: u32,
    ) -> Self {
        let kind = LeaseKind::H1 { sender, served, born: Instant::now() };
        Self { busy: endpoint.busy(), owner, reused: served > 0, rested: false, kind }
    }

    fn h2(endpoint: &Rc<Endpoint>, c: Rc<H2>) -> Self {
        let served = c.served.get();
        c.served.set(served.saturating_add(1));
        let (owner, kind) = (c.owner, LeaseKind::H2(Stream::open(c)));
        Self { busy: endpoint.busy(), owner, reused: served > 0, rested: false, kind }
    }

    pub(crate) const fn endpoint(&self) -> &Rc<Endpoint> {
        self.busy.endpoint()
    }

    /// Whether the connection speaks HTTP/2.
    pub(crate) const fn is_h2(&self) -> bool {
        matches!(self.kind, LeaseKind::H2(_))
    }

    /// Sends a request. The error gives the request back when nothing of it was sent.
    pub(crate) async fn send(&mut self, request: Request) -> Result<Response, TrySendError<Request>> {
        match &mut self.kind {
            LeaseKind::H1 { sender, .. } => {
                // The connection's task may not have noticed yet that the last response is over. An error shows
                // again when sending.
                if !sender.is_ready() {
                    let _ = sender.ready().await;
                }
                sender.try_send_request(request).await
            }
            LeaseKind::H2(stream) => {
                let mut sender = stream.0.sender.clone();
                let _ = sender.ready().await;
                sender.try_send_request(request).await
            }
        }
    }

    pub(crate) const fn is_tunnelled(&self) -> bool {
        self.owner.generation.is_some()
    }

    /// The connection broke. If it led through the tunnel, the idle ones beside it end too: their path is the same.
    pub(crate) fn forget_path(&self) {
        if self.is_tunnelled() {
            self.endpoint().idle.borrow_mut().retain(|c| c.owner != self.owner);
        }
    }

    /// The exchange is over and whole: the connection may serve the next request, unless it served enough.
    pub(crate) fn release(self, pool: &Pool) {
        let LeaseKind::H1 { sender, served, born } = self.kind else { return };
        let served = served + 1;
        let old = pool.max_connection_duration.is_some_and(|max| born.elapsed() >= max)
            || !self.busy.endpoint().is_current(self.owner);
        if old || sender.is_closed() || pool.max_requests_per_connection.is_some_and(|max| served >= max) {
            return;
        }
        let mut idle = self.busy.endpoint().idle.borrow_mut();
        if idle.len() < MAX_IDLE {
            idle.push(IdleH1 { sender, owner: self.owner, served, born, since: Instant::now() });
        }
    }
}
