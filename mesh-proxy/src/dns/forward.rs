//! Asks upstream servers, each question once at a time, through the cache.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError as Semantic, NetError};
use node_rt::Tasks;
use tokio::sync::{Semaphore, watch};

use super::DnsOptions;
use super::cache::{Cache, Found, Hit, Key};
use super::metrics::DnsMetrics;
use super::upstreams::{parse_resolv_conf, usable};

/// TTL of a stale answer, as RFC 8767 recommends.
const STALE_TTL: Duration = Duration::from_secs(30);
/// Life of a negative answer without an SOA.
const NEGATIVE_TTL: Duration = Duration::from_secs(10);

/// Questions without any answer in a row after which the servers count as gone.
const GONE_AFTER: u32 = 3;
/// While they are gone, one question in this time tries them; the others are told at once.
const PROBE: Duration = Duration::from_secs(1);

/// Bounds of forwarding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardLimits {
    /// Questions on their way at a time.
    pub in_flight: usize,
    /// Clients that wait for them at a time; one more is told at once.
    pub waiting: usize,
    /// One try at one server.
    pub attempt: Duration,
    /// All tries of a question.
    pub total: Duration,
    /// How long a client waits while a stale answer is at hand.
    pub patience: Duration,
}

impl Default for ForwardLimits {
    fn default() -> Self {
        Self {
            in_flight: 512,
            waiting: 2048,
            attempt: Duration::from_millis(1500),
            total: Duration::from_millis(4500),
            patience: Duration::from_millis(1800),
        }
    }
}

/// An answer, and the TTL to send with it when that is not the records' own.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Forwarded {
    pub(crate) found: Arc<Found>,
    /// Seconds by which TTLs have shrunk.
    pub(crate) age: Duration,
    /// TTLs are at most this; set when the answer is stale.
    pub(crate) at_most: Option<Duration>,
}

/// Nobody answered, or there is nobody to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoAnswer;

/// Whether the servers answer at all. Without it every foreign name takes seconds while the line is
/// cut, and resolvers try such names before ours when they go through a search list.
#[derive(Debug, Default)]
struct Health {
    silent: u32,
    last: Option<Instant>,
}

impl Health {
    /// Whether to send a question now.
    fn may_ask(&mut self, now: Instant) -> bool {
        let wait =
            self.silent >= GONE_AFTER && self.last.is_some_and(|last| now.duration_since(last) < PROBE);
        if !wait {
            self.last = Some(now);
        }
        !wait
    }

    fn answered(&mut self) {
        self.silent = 0;
    }

    fn silence(&mut self) {
        self.silent = self.silent.saturating_add(1);
    }
}

type Flight = watch::Receiver<Option<Result<Arc<Found>, NoAnswer>>>;

struct Inner {
    upstreams: ArcSwap<Upstreams>,
    cache: Mutex<Cache>,
    flights: Mutex<HashMap<Key, Flight>>,
    health: Mutex<Health>,
    waiting: Semaphore,
    limits: ForwardLimits,
    metrics: DnsMetrics,
    tasks: Tasks,
}

/// The servers in use.
struct Upstreams {
    servers: Vec<SocketAddr>,
    resolver: Option<TokioResolver>,
}

impl Upstreams {
    fn new(servers: Vec<SocketAddr>, limits: &ForwardLimits) -> Self {
        Self { resolver: resolver(&servers, limits), servers }
    }
}

#[derive(Clone)]
pub(crate) struct Forwarder {
    inner: Arc<Inner>,
}

impl Forwarder {
    pub(crate) fn new(options: &DnsOptions, metrics: DnsMetrics, tasks: Tasks) -> Self {
        let servers = if options.upstreams.is_empty() {
            parse_resolv_conf(&std::fs::read_to_string(&options.resolv_conf).unwrap_or_default())
        } else {
            options.upstreams.clone()
        };
        let inner = Inner {
            upstreams: ArcSwap::from_pointee(Upstreams::new(
                usable(&servers, options.listen),
                &options.forward,
            )),
            cache: Mutex::new(Cache::new(options.cache)),
            flights: Mutex::default(),
            health: Mutex::default(),
            waiting: Semaphore::new(options.forward.waiting),
            limits: options.forward,
            metrics,
            tasks,
        };
        Self { inner: Arc::new(inner) }
    }

    #[cfg(test)]
    pub(super) fn servers(&self) -> Vec<SocketAddr> {
        self.inner.upstreams.load().servers.clone()
    }

    /// Follows resolv.conf, which DHCP clients rewrite, when no servers are configured.
    pub(crate) fn watch_resolv_conf(&self, options: &DnsOptions, tasks: &Tasks) {
        if !options.upstreams.is_empty() {
            return;
        }
        let (path, listen, every) = (options.resolv_conf.clone(), options.listen, options.resolv_conf_every);
        let this = self.clone();
        let drain = tasks.drain().clone();
        tasks.spawn("dns upstreams", async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(every) => {}
                    () = drain.cancelled() => return,
                }
                // Unreadable or empty for a moment is no reason to forget the servers.
                let Ok(text) = tokio::fs::read_to_string(&path).await else { continue };
                let servers = usable(&parse_resolv_conf(&text), listen);
                if !servers.is_empty() && servers != this.inner.upstreams.load().servers {
                    tracing::info!(?servers, "upstream name servers changed");
                    this.inner.upstreams.store(Arc::new(Upstreams::new(servers, &this.inner.limits)));
                }
            }
        });
    }

    /// The answer to a question, from the cache or from a server.
    pub(crate) async fn lookup(&self, key: &Key) -> Result<Forwarded, NoAnswer> {
        let inner = &self.inner;
        let hit = inner.cache().get(key, Instant::now());
        let stale = match hit {
            Hit::Fresh(found, age) => {
                inner.metrics.cache_hits.inc();
                return Ok(Forwarded { found, age, at_most: None });
            }
            Hit::StaleNoRetry(found) => return Ok(stale(found)),
            Hit::Stale(found) => Some(found),
            Hit::Miss => None,
        };
        inner.metrics.cache_misses.inc();
        let (Ok(_place), Some(mut flight)) = (inner.waiting.try_acquire(), self.flight(key)) else {
            return stale.map(self::stale).ok_or(NoAnswer);
        };
        let landed = async {
            match flight.wait_for(Option::is_some).await.map(|result| result.clone()) {
                Ok(Some(result)) => result,
                // The task was cancelled with the process.
                Ok(None) | Err(_) => Err(NoAnswer),
            }
        };
        let patience = if stale.is_some() { inner.limits.patience } else { inner.limits.total * 2 };
        match (tokio::time::timeout(patience, landed).await, stale) {
            (Ok(Ok(found)), _) => Ok(Forwarded { found, age: Duration::ZERO, at_most: None }),
            (Ok(Err(NoAnswer)) | Err(_), Some(old)) => Ok(self::stale(old)),
            (Ok(Err(NoAnswer)) | Err(_), None) => Err(NoAnswer),
        }
    }

    /// Joins the question on its way, or sends it. It goes on when its client does not wait.
    fn flight(&self, key: &Key) -> Option<Flight> {
        let mut flights = self.inner.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(key) {
            return Some(flight.clone());
        }
        if flights.len() >= self.inner.limits.in_flight || !self.inner.health().may_ask(Instant::now()) {
            return None;
        }
        let (land, flight) = watch::channel(None);
        flights.insert(key.clone(), flight.clone());
        let (inner, key) = (Arc::clone(&self.inner), key.clone());
        self.inner.tasks.spawn("dns upstream", async move {
            let landing = Landing { inner, key, land, result: Err(NoAnswer) };
            landing.fly().await;
        });
        Some(flight)
    }
}

fn stale(found: Arc<Found>) -> Forwarded {
    Forwarded { found, age: Duration::ZERO, at_most: Some(STALE_TTL) }
}

impl Inner {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, key: &Key) -> Result<Found, NoAnswer> {
        let upstreams = self.upstreams.load_full();
        let Some(resolver) = &upstreams.resolver else { return Err(NoAnswer) };
        let name = Name::from(key.0.clone());
        let result = tokio::time::timeout(self.limits.total, resolver.lookup(name, key.1)).await;
        // A refusal is an answer too: the servers are there.
        match &result {
            Ok(Ok(_) | Err(NetError::Dns(_))) => self.health().answered(),
            Ok(Err(_)) | Err(_) => self.health().silence(),
        }
        match result {
            Ok(Ok(lookup)) => {
                let answers = lookup.answers().to_vec();
                let code = lookup.message().metadata.response_code;
                let ttl = Duration::from_secs(
                    answers.iter().map(|record| u64::from(record.ttl)).min().unwrap_or(0),
                );
                Ok(Found { code, answers, authorities: Vec::new(), ttl })
            }
            Ok(Err(NetError::Dns(Semantic::NoRecordsFound(none)))) => {
                let ttl = none.negative_ttl.map_or(NEGATIVE_TTL, |ttl| Duration::from_secs(u64::from(ttl)));
                let soa: Option<Record> = none.soa.map(|soa| soa.into_record_of_rdata());
                Ok(Found {
                    code: none.response_code,
                    answers: Vec::new(),
                    authorities: Vec::from_iter(soa),
                    ttl,
                })
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, name = %key.0, kind = %key.1, "no upstream answer");
                Err(NoAnswer)
            }
            Err(_late) => Err(NoAnswer),
        }
    }
}

/// A question on its way; whatever happens to it, those who wait are told and the place is freed.
struct Landing {
    inner: Arc<Inner>,
    key: Key,
    land: watch::Sender<Option<Result<Arc<Found>, NoAnswer>>>,
    result: Result<Arc<Found>, NoAnswer>,
}

impl Landing {
    async fn fly(mut self) {
        let start = Instant::now();
        self.result = self.inner.ask(&self.key).await.map(Arc::new);
        self.inner.metrics.upstream_seconds.observe(start.elapsed().as_secs_f64());
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let now = Instant::now();
        {
            let mut cache = self.inner.cache();
            match &self.result {
                Ok(found) => cache.put(self.key.clone(), Arc::clone(found), now),
                Err(NoAnswer) => {
                    self.inner.metrics.upstream_failures.inc();
                    cache.failed(&self.key, now);
                }
            }
            self.inner.metrics.cache_entries.set(cache.len() as i64);
        }
        self.inner.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        self.land.send_replace(Some(self.result.clone()));
    }
}

/// A resolver without cache (ours knows stale answers), hosts file or search list.
fn resolver(servers: &[SocketAddr], limits: &ForwardLimits) -> Option<TokioResolver> {
    if servers.is_empty() {
        tracing::warn!("no upstream name servers: only names of the mesh are answered");
        return None;
    }
    let server = |address: &SocketAddr| {
        let connection = |protocol| {
            let mut connection = ConnectionConfig::new(protocol);
            connection.port = address.port();
            connection
        };
        let both = vec![connection(ProtocolConfig::Udp), connection(ProtocolConfig::Tcp)];
        NameServerConfig::new(address.ip(), true, both)
    };
    let config = ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(server).collect());
    let mut options = ResolverOpts::default();
    options.timeout = limits.attempt;
    options.attempts = 2;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.try_tcp_on_error = true;
    options.max_active_requests = limits.in_flight;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    match builder.build() {
        Ok(resolver) => Some(resolver),
        Err(error) => {
            tracing::error!(%error, "no resolver for other names");
            None
        }
    }
}

/// Which types are passed on: not those that ask for everything or for a zone.
pub(crate) fn may_forward(kind: RecordType) -> bool {
    !matches!(
        kind,
        RecordType::ANY | RecordType::AXFR | RecordType::IXFR | RecordType::OPT | RecordType::ZERO
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_are_gone_are_tried_once_in_a_while() {
        let (mut health, start) = (Health::default(), Instant::now());
        for _ in 0..GONE_AFTER {
            assert!(health.may_ask(start));
            health.silence();
        }
        assert!(!health.may_ask(start + PROBE / 2));
        assert!(health.may_ask(start + PROBE));
        assert!(!health.may_ask(start + PROBE + PROBE / 2));
        health.answered();
        assert!(health.may_ask(start + PROBE + PROBE / 2));
    }
}
