//! A worker's cache of resolved series: a request looks up a few pointers and formats no label.
//!
//! Keys are the addresses of the table entries involved. Each cached entry holds those entries, so an address is
//! not reused while it is a key. A cache that is full is emptied: what is still in use comes back at its next call.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use mesh_core::{Cluster, WorkloadEntry};

use super::{
    flags::Flags,
    istio::{Call, Reporter, RequestProtocol, RequestSeries, Security, TcpSeries, Telemetry},
    peer::{Destination, Peer},
};

/// Most series that one worker keeps at hand.
const CAPACITY: usize = 4096;

/// The two sides of a call as table entries.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parties {
    /// Who called.
    pub(crate) source: Option<Arc<WorkloadEntry>>,
    /// The destination; none = passthrough.
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// The endpoint that was chosen.
    pub(crate) destination: Option<Arc<WorkloadEntry>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct PartyKey(usize, usize, usize);

impl Parties {
    fn key(&self) -> PartyKey {
        fn address<T>(arc: Option<&Arc<T>>) -> usize {
            arc.map_or(0, |a| Arc::as_ptr(a) as usize)
        }
        PartyKey(
            address(self.source.as_ref()),
            address(self.cluster.as_ref()),
            address(self.destination.as_ref()),
        )
    }
}

/// How a request ended, as far as labels go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RequestEnd {
    pub(crate) protocol: RequestProtocol,
    pub(crate) flags: Flags,
    pub(crate) code: u16,
    pub(crate) grpc_status: Option<u16>,
}

struct Cached<T> {
    series: Rc<T>,
    /// Keeps the key's addresses taken.
    _parties: Parties,
}

/// One worker's view of the metrics.
pub(crate) struct Local {
    shared: Arc<Telemetry>,
    requests: RefCell<HashMap<(PartyKey, RequestEnd), Cached<RequestSeries>>>,
    tcp: RefCell<HashMap<(PartyKey, Flags), Cached<TcpSeries>>>,
}

impl Local {
    pub(crate) fn new(shared: Arc<Telemetry>) -> Self {
        Self { shared, requests: RefCell::default(), tcp: RefCell::default() }
    }

    /// The counters for a request that ended like this. None only if the metrics library refuses the labels.
    pub(crate) fn request(
        &self,
        parties: &Parties,
        end: RequestEnd,
        trust_domain: impl FnOnce() -> Arc<str>,
    ) -> Option<Rc<RequestSeries>> {
        let key = (parties.key(), end);
        let mut cache = self.requests.borrow_mut();
        if let Some(hit) = cache.get(&key) {
            return Some(Rc::clone(&hit.series));
        }
        let labels = Labels::of(parties, &trust_domain(), self.shared.cluster());
        let series =
            self.shared.request_series(&labels.call(), end.protocol, end.flags, end.code, end.grpc_status);
        let series = Rc::new(series.ok()?);
        if cache.len() >= CAPACITY {
            cache.clear();
        }
        cache.insert(key, Cached { series: Rc::clone(&series), _parties: parties.clone() });
        Some(series)
    }

    /// The counters for a connection.
    pub(crate) fn tcp(
        &self,
        parties: &Parties,
        flags: Flags,
        trust_domain: impl FnOnce() -> Arc<str>,
    ) -> Option<Rc<TcpSeries>> {
        let key = (parties.key(), flags);
        let mut cache = self.tcp.borrow_mut();
        if let Some(hit) = cache.get(&key) {
            return Some(Rc::clone(&hit.series));
        }
        let labels = Labels::of(parties, &trust_domain(), self.shared.cluster());
        let series = Rc::new(self.shared.tcp_series(&labels.call(), flags).ok()?);
        if cache.len() >= CAPACITY {
            cache.clear();
        }
        cache.insert(key, Cached { series: Rc::clone(&series), _parties: parties.clone() });
        Some(series)
    }
}

struct Labels {
    source: Peer,
    destination: Peer,
    service: Destination,
}

impl Labels {
    fn of(parties: &Parties, trust_domain: &str, cluster: &str) -> Self {
        let peer = |w: Option<&Arc<WorkloadEntry>>| {
            w.map_or_else(Peer::unknown, |w| Peer::of(w, trust_domain, cluster))
        };
        let service = parties.cluster.as_ref().map_or_else(Destination::passthrough, |c| Destination {
            host: Arc::clone(&c.key.host),
            name: Arc::clone(&c.service_name),
            namespace: Arc::clone(&c.service_namespace),
        });
        Self {
            source: peer(parties.source.as_ref()),
            destination: peer(parties.destination.as_ref()),
            service,
        }
    }

    const fn call(&self) -> Call<'_> {
        Call {
            reporter: Reporter::Source,
            source: &self.source,
            destination: &self.destination,
            service: &self.service,
            security: Security::Unknown,
        }
    }
}
