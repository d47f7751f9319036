//! DestinationRules compiled: which one applies to a client, and what results for a subset and a port.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_api::model;

use crate::client::Client;

/// How a client picks an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoadBalancing {
    /// The less busy of two random ones. The default, as in Istio.
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The address that the client called.
    Passthrough,
}

/// TLS towards the endpoint, as a DestinationRule orders it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientTlsMode {
    /// Nothing ordered: the mesh chooses.
    #[default]
    Auto,
    /// Plaintext.
    Disable,
    /// Server authentication only.
    Simple,
    /// With own certificate.
    Mutual,
    /// With the mesh's certificate.
    IstioMutual,
}

/// Limits on connections and requests. None = no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// How long a connection attempt may take.
    pub connect_timeout: Duration,
    /// Open connections to the cluster.
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection.
    pub max_pending_requests: Option<u32>,
    /// Requests in flight.
    pub max_requests: Option<u32>,
    /// Requests that one connection serves.
    pub max_requests_per_connection: Option<u32>,
    /// Retries in flight.
    pub max_retries: Option<u32>,
    /// After which idle time a pooled connection is closed.
    pub http_idle_timeout: Duration,
    /// After which idle time a proxied TCP connection is closed. Zero = never.
    pub tcp_idle_timeout: Duration,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            max_connections: None,
            max_pending_requests: None,
            max_requests: None,
            max_requests_per_connection: None,
            max_retries: None,
            http_idle_timeout: Duration::from_secs(3600),
            tcp_idle_timeout: Duration::from_secs(3600),
        }
    }
}

/// When an endpoint is left out because of its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutlierPolicy {
    /// Ejection after so many 5xx in a row; 0 = off.
    pub consecutive_5xx: u32,
    /// Ejection after so many 502, 503, 504 or connection failures in a row; 0 = off.
    pub consecutive_gateway: u32,
    /// How often ejected endpoints are looked at.
    pub interval: Duration,
    /// First ejection; the n-th takes n times as long, at most 300 s.
    pub base_ejection: Duration,
    /// Share that may be ejected at once; one endpoint always may.
    pub max_ejection_percent: u32,
    /// Below this healthy share ejections are ignored; 0 = never.
    pub min_health_percent: u32,
}

/// What applies to one destination.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EffectivePolicy {
    /// `namespace/name` of the DestinationRule; empty = none.
    pub source: Arc<str>,
    /// Balancing.
    pub lb: LoadBalancing,
    /// Limits.
    pub pool: Pool,
    /// Ejection; none = off.
    pub outlier: Option<OutlierPolicy>,
    /// TLS mode.
    pub tls: ClientTlsMode,
    /// Name to send as SNI; empty = default.
    pub sni: Box<str>,
}

impl EffectivePolicy {
    /// How long a connection attempt may take.
    pub fn connect_timeout(&self) -> Duration {
        self.pool.connect_timeout
    }
}

/// One DestinationRule.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyEntry {
    /// `namespace/name`
    pub source: Arc<str>,
    visible_to: Box<[Box<str>]>,
    selector: BTreeMap<String, String>,
    policy: Blocks,
    ports: Box<[(u16, Blocks)]>,
    /// Named groups of endpoints.
    pub subsets: Box<[SubsetEntry]>,
}

/// A named group of endpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct SubsetEntry {
    /// Its name.
    pub name: Arc<str>,
    /// Labels that its endpoints carry.
    pub labels: BTreeMap<String, String>,
    policy: Blocks,
    ports: Box<[(u16, Blocks)]>,
}

/// The four blocks that inheritance treats as wholes.
#[derive(Debug, Clone, PartialEq, Default)]
struct Blocks {
    lb: Option<LoadBalancing>,
    pool: Option<Pool>,
    outlier: Option<OutlierPolicy>,
    tls: Option<(ClientTlsMode, Box<str>)>,
}

impl PolicyEntry {
    pub(crate) fn compile(m: &model::DestinationPolicy) -> Self {
        let subset = |s: &model::Subset| SubsetEntry {
            name: s.name.as_str().into(),
            labels: s.labels.clone(),
            policy: Blocks::compile(s.policy.as_ref()),
            ports: ports(&s.ports),
        };
        Self {
            source: m.source.as_str().into(),
            visible_to: m.visible_to.iter().map(|v| v.as_str().into()).collect(),
            selector: m.workload_selector.clone(),
            policy: Blocks::compile(m.policy.as_ref()),
            ports: ports(&m.ports),
            subsets: m.subsets.iter().map(subset).collect(),
        }
    }

    /// Whether this rule is for that client.
    pub fn applies_to(&self, client: &Client<'_>) -> bool {
        (self.visible_to.is_empty() || self.visible_to.iter().any(|n| **n == *client.namespace))
            && self.selector.iter().all(|(k, v)| client.labels.get(k) == Some(v))
    }

    /// The policy for a subset (none = the whole service) and a port. A port-level entry replaces all four blocks,
    /// also with nothing; a subset replaces the blocks that it sets.
    pub fn effective(&self, subset: Option<&SubsetEntry>, port: u16) -> EffectivePolicy {
        let at = |list: &[(u16, Blocks)]| list.iter().find(|(p, _)| *p == port).map(|(_, b)| b.clone());
        let mut blocks = at(&self.ports).unwrap_or_else(|| self.policy.clone());
        if let Some(s) = subset {
            blocks = match at(&s.ports) {
                Some(replaced) => replaced,
                None => blocks.overlaid(&s.policy),
            };
        }
        let (tls, sni) = blocks.tls.unwrap_or_default();
        EffectivePolicy {
            source: self.source.clone(),
            lb: blocks.lb.unwrap_or_default(),
            pool: blocks.pool.unwrap_or_default(),
            outlier: blocks.outlier,
            tls,
            sni,
        }
    }
}

fn ports(list: &[model::PortPolicy]) -> Box<[(u16, Blocks)]> {
    list.iter()
        .filter_map(|p| Some((u16::try_from(p.port).ok()?, Blocks::compile(p.policy.as_ref()))))
        .collect()
}

impl Blocks {
    fn compile(m: Option<&model::TrafficPolicy>) -> Self {
        let Some(m) = m else { return Self::default() };
        Self {
            lb: m.load_balancer.as_ref().map(|l| lb(l.simple())),
            pool: m.connection_pool.as_ref().map(pool),
            outlier: m.outlier.as_ref().map(outlier),
            tls: m.tls.as_ref().map(|t| (tls(t.mode()), t.sni.as_str().into())),
        }
    }

    fn overlaid(self, over: &Self) -> Self {
        Self {
            lb: over.lb.or(self.lb),
            pool: over.pool.clone().or(self.pool),
            outlier: over.outlier.or(self.outlier),
            tls: over.tls.clone().or(self.tls),
        }
    }
}

fn lb(simple: model::load_balancer::Simple) -> LoadBalancing {
    use model::load_balancer::Simple;
    match simple {
        Simple::Unspecified | Simple::LeastRequest => LoadBalancing::LeastRequest,
        Simple::RoundRobin => LoadBalancing::RoundRobin,
        Simple::Random => LoadBalancing::Random,
        Simple::Passthrough => LoadBalancing::Passthrough,
    }
}

fn tls(mode: model::client_tls::Mode) -> ClientTlsMode {
    use model::client_tls::Mode;
    match mode {
        Mode::Unspecified => ClientTlsMode::Auto,
        Mode::Disable => ClientTlsMode::Disable,
        Mode::Simple => ClientTlsMode::Simple,
        Mode::Mutual => ClientTlsMode::Mutual,
        Mode::IstioMutual => ClientTlsMode::IstioMutual,
    }
}

pub(crate) fn millis(m: Option<&model::Millis>) -> Option<Duration> {
    m.map(|m| Duration::from_millis(m.value))
}

fn pool(m: &model::ConnectionPool) -> Pool {
    let limit = |n: u32| (n > 0).then_some(n);
    let default = Pool::default();
    let tcp_idle = millis(m.tcp_idle_timeout.as_ref());
    Pool {
        connect_timeout: millis(m.connect_timeout.as_ref()).unwrap_or(default.connect_timeout),
        max_connections: limit(m.max_connections),
        max_pending_requests: limit(m.max_pending_requests),
        max_requests: limit(m.max_requests),
        max_requests_per_connection: limit(m.max_requests_per_connection),
        max_retries: limit(m.max_retries),
        http_idle_timeout: millis(m.http_idle_timeout.as_ref())
            .or(tcp_idle.filter(|t| !t.is_zero()))
            .unwrap_or(default.http_idle_timeout),
        tcp_idle_timeout: tcp_idle.unwrap_or(default.tcp_idle_timeout),
    }
}

fn outlier(m: &model::OutlierDetection) -> OutlierPolicy {
    OutlierPolicy {
        consecutive_5xx: m.consecutive_5xx,
        consecutive_gateway: m.consecutive_gateway,
        interval: millis(m.interval.as_ref()).unwrap_or(Duration::from_secs(10)),
        base_ejection: millis(m.base_ejection.as_ref()).unwrap_or(Duration::from_secs(30)),
        max_ejection_percent: m.max_ejection_percent,
        min_health_percent: m.min_health_percent,
    }
}
