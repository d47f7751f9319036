//! DestinationRules compiled: which one applies to a client, and what results for a subset and a port.

mod balancing;
mod defaults;
mod pool;
mod tls;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_api::model;

pub use balancing::{
    Balancing, CookieKey, Distribute, HashKey, HashPolicy, HashTableKind, LabelWanted, LoadBalancing,
    LocalityPolicy, Warmup,
};
pub use defaults::PolicyDefaults;
pub use pool::{ConnectTunnel, H2Keepalive, H2Upgrade, Pool, ProxyProtocol, RetryBudgetPolicy, TcpKeepalive};
pub use tls::{ClientTls, ClientTlsMode};

use crate::{client::Client, outlier::Exchange};
use defaults::Said;

/// When an endpoint is left out because of its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierPolicy {
    /// Ejection after so many 5xx in a row; 0 = off.
    pub consecutive_5xx: u32,
    /// Ejection after so many 502, 503, 504 or connection failures in a row; 0 = off.
    pub consecutive_gateway: u32,
    /// Failures to connect, and no answers in time, count for themselves.
    pub split_local_origin: bool,
    /// Ejection after so many of them in a row; 0 = off. Only with the split.
    pub consecutive_local_origin: u32,
    /// The statuses that count as 5xx; empty = 500 to 599.
    pub error_codes: Box<[u16]>,
    /// How often ejected endpoints are looked at.
    pub interval: Duration,
    /// First ejection; the n-th takes n times as long, at most 300 s.
    pub base_ejection: Duration,
    /// Share that may be ejected at once; one endpoint always may.
    pub max_ejection_percent: u32,
    /// Below this healthy share ejections are ignored; 0 = never.
    pub min_health_percent: u32,
}

impl OutlierPolicy {
    fn compile(m: &model::OutlierDetection) -> Self {
        Self {
            consecutive_5xx: m.consecutive_5xx,
            consecutive_gateway: m.consecutive_gateway,
            split_local_origin: m.split_local_origin,
            consecutive_local_origin: m.consecutive_local_origin,
            error_codes: m.error_codes.iter().filter_map(|c| u16::try_from(*c).ok()).collect(),
            interval: millis(m.interval.as_ref()).unwrap_or(Duration::from_secs(10)),
            base_ejection: millis(m.base_ejection.as_ref()).unwrap_or(Duration::from_secs(30)),
            max_ejection_percent: m.max_ejection_percent,
            min_health_percent: m.min_health_percent,
        }
    }

    /// What a status says about the endpoint.
    pub fn exchange(&self, status: u16) -> Exchange {
        if self.error_codes.is_empty() {
            return Exchange::of_status(status);
        }
        match (self.error_codes.contains(&status), status) {
            (true, 502..=504) => Exchange::GatewayError,
            (true, _) => Exchange::ServerError,
            (false, _) => Exchange::Ok,
        }
    }
}

/// What applies to one destination.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EffectivePolicy {
    /// `namespace/name` of the DestinationRule; empty = none.
    pub source: Arc<str>,
    /// Balancing.
    pub balancing: Balancing,
    /// Limits.
    pub pool: Pool,
    /// Ejection; none = off.
    pub outlier: Option<OutlierPolicy>,
    /// TLS towards the endpoint.
    pub tls: Arc<ClientTls>,
    /// Says to the endpoint who the client is.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Connections go through an HTTP proxy.
    pub tunnel: Option<Arc<ConnectTunnel>>,
    /// Bounds retries; none = the built-in one.
    pub retry_budget: Option<RetryBudgetPolicy>,
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
    kept: Kept,
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
    kept: Kept,
    ports: Box<[(u16, Blocks)]>,
}

/// The four blocks that a port's entry replaces as wholes.
#[derive(Debug, Clone, PartialEq, Default)]
struct Blocks {
    balancing: Option<Balancing>,
    pool: Option<(Pool, Said)>,
    outlier: Option<OutlierPolicy>,
    tls: Option<Arc<ClientTls>>,
}

/// The blocks that survive a port's entry.
#[derive(Debug, Clone, PartialEq, Default)]
struct Kept {
    proxy_protocol: Option<ProxyProtocol>,
    tunnel: Option<Arc<ConnectTunnel>>,
    retry_budget: Option<RetryBudgetPolicy>,
}

impl PolicyEntry {
    pub(crate) fn compile(m: &model::DestinationPolicy) -> Self {
        let subset = |s: &model::Subset| SubsetEntry {
            name: s.name.as_str().into(),
            labels: s.labels.clone(),
            policy: Blocks::compile(s.policy.as_ref()),
            kept: Kept::compile(s.policy.as_ref()),
            ports: ports(&s.ports),
        };
        Self {
            source: m.source.as_str().into(),
            visible_to: m.visible_to.iter().map(|v| v.as_str().into()).collect(),
            selector: m.workload_selector.clone(),
            policy: Blocks::compile(m.policy.as_ref()),
            kept: Kept::compile(m.policy.as_ref()),
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
    /// also with nothing; a subset replaces the blocks that it sets. What is then left open is the mesh's to say.
    pub fn effective(
        &self,
        subset: Option<&SubsetEntry>,
        port: u16,
        defaults: &PolicyDefaults,
    ) -> EffectivePolicy {
        let at = |list: &[(u16, Blocks)]| list.iter().find(|(p, _)| *p == port).map(|(_, b)| b.clone());
        let mut blocks = at(&self.ports).unwrap_or_else(|| self.policy.clone());
        let mut kept = self.kept.clone();
        if let Some(s) = subset {
            blocks = match at(&s.ports) {
                Some(replaced) => replaced,
                None => blocks.overlaid(&s.policy),
            };
            kept = kept.overlaid(&s.kept);
        }
        EffectivePolicy {
            source: self.source.clone(),
            balancing: defaults.balancing(blocks.balancing),
            pool: defaults.pool(blocks.pool),
            outlier: blocks.outlier.or_else(|| defaults.outlier.clone()),
            tls: blocks.tls.unwrap_or_default(),
            proxy_protocol: kept.proxy_protocol,
            tunnel: kept.tunnel,
            retry_budget: kept.retry_budget,
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
            balancing: m.load_balancer.as_ref().map(Balancing::compile),
            pool: m.connection_pool.as_ref().map(|m| (Pool::compile(m), Said::of(m))),
            outlier: m.outlier.as_ref().map(OutlierPolicy::compile),
            tls: m.tls.as_ref().map(|t| Arc::new(ClientTls::compile(t))),
        }
    }

    fn overlaid(self, over: &Self) -> Self {
        Self {
            balancing: over.balancing.clone().or(self.balancing),
            pool: over.pool.clone().or(self.pool),
            outlier: over.outlier.clone().or(self.outlier),
            tls: over.tls.clone().or(self.tls),
        }
    }
}

impl Kept {
    fn compile(m: Option<&model::TrafficPolicy>) -> Self {
        let Some(m) = m else { return Self::default() };
        Self {
            proxy_protocol: m.proxy_protocol.as_ref().map(|p| ProxyProtocol::compile(*p)),
            tunnel: m.tunnel.as_ref().and_then(ConnectTunnel::compile).map(Arc::new),
            retry_budget: m.retry_budget.as_ref().map(RetryBudgetPolicy::compile),
        }
    }

    fn overlaid(self, over: &Self) -> Self {
        Self {
            proxy_protocol: over.proxy_protocol.or(self.proxy_protocol),
            tunnel: over.tunnel.clone().or(self.tunnel),
            retry_budget: over.retry_budget.or(self.retry_budget),
        }
    }
}

pub(crate) fn millis(m: Option<&model::Millis>) -> Option<Duration> {
    m.map(|m| Duration::from_millis(m.value))
}
