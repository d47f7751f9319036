//! How endpoints are chosen: the balancer, the key of a consistent hash, localities, warm-up.

use std::{sync::Arc, time::Duration};

use mesh_api::model::{
    self,
    consistent_hash::{Algorithm, Key},
};

use super::millis;

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

/// The load balancer of one destination.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Balancing {
    /// The kind; what a request without a hash key gets is [`LoadBalancing::Random`].
    pub kind: LoadBalancing,
    /// Requests with the same key go to the same endpoint.
    pub hash: Option<Arc<HashPolicy>>,
    /// What the rule says about localities; none = failover by default, once there is outlier detection.
    pub locality: Option<Arc<LocalityPolicy>>,
    /// New endpoints get their share by and by.
    pub warmup: Option<Warmup>,
}

/// Consistent hashing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashPolicy {
    /// What is hashed.
    pub key: HashKey,
    /// The table.
    pub table: HashTableKind,
    /// An endpoint takes at most so many percent of the average load; 0 = no bound.
    pub bound_percent: u32,
}

/// What is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKey {
    /// A header's value; the name is lower case.
    Header(Box<str>),
    /// A cookie's value.
    Cookie(CookieKey),
    /// The client's address.
    SourceIp,
    /// A parameter of the query.
    Query(Box<str>),
}

/// A cookie that keeps a client with its endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CookieKey {
    /// Name.
    pub name: Box<str>,
    /// Path; may be empty.
    pub path: Box<str>,
    /// How long it holds; none = it is never made here; zero = for the session.
    pub ttl: Option<Duration>,
    /// `; name=value` for each attribute.
    pub attributes: Box<str>,
}

/// Kind and size of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashTableKind {
    /// Points on a ring.
    Ring {
        /// Fewest points.
        minimum: u32,
    },
    /// Maglev.
    Maglev {
        /// Slots; a prime.
        size: u32,
    },
}

/// Preference for near endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalityPolicy {
    /// Off: localities do not count.
    pub enabled: bool,
    /// Shares for localities, by the client's own.
    pub distribute: Box<[Distribute]>,
    /// Where a region's clients go when their own fails.
    pub failover: Box<[(Box<str>, Box<str>)]>,
    /// Labels that order endpoints: those with more equal labels, from the front, come first. A value replaces the
    /// client's own.
    pub failover_priority: Box<[LabelWanted]>,
    /// Fewest endpoints for which localities count.
    pub min_cluster_size: usize,
}

/// A label's key, and its value unless it is the client's own.
pub type LabelWanted = (Box<str>, Option<Box<str>>);

/// Shares for the clients of one locality.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribute {
    /// `region/zone/site`; `*` stands for all below.
    pub from: Box<str>,
    /// Locality and share.
    pub to: Box<[(Box<str>, u32)]>,
}

/// A new endpoint gets `max(minimum, (age/duration)^(1/aggression))` of its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warmup {
    /// Until it has all.
    pub duration: Duration,
    /// Share at the start, in thousandths.
    pub minimum: u32,
    /// Shape of the curve, in thousandths; 1000 is a straight line.
    pub aggression: u32,
}

impl Balancing {
    pub(super) fn compile(m: &model::LoadBalancer) -> Self {
        let hash = m.consistent_hash.as_ref().and_then(HashPolicy::compile).map(Arc::new);
        Self {
            kind: if hash.is_some() { LoadBalancing::Random } else { kind(m.simple()) },
            hash,
            locality: m.locality.as_ref().map(|l| Arc::new(LocalityPolicy::compile(l))),
            warmup: m.warmup.as_ref().and_then(Warmup::compile),
        }
    }
}

fn kind(simple: model::load_balancer::Simple) -> LoadBalancing {
    use model::load_balancer::Simple;
    match simple {
        Simple::Unspecified | Simple::LeastRequest => LoadBalancing::LeastRequest,
        Simple::RoundRobin => LoadBalancing::RoundRobin,
        Simple::Random => LoadBalancing::Random,
        Simple::Passthrough => LoadBalancing::Passthrough,
    }
}

impl HashPolicy {
    fn compile(m: &model::ConsistentHash) -> Option<Self> {
        let key = match m.key.as_ref()? {
            Key::Header(name) => HashKey::Header(name.to_ascii_lowercase().into()),
            Key::Cookie(c) => HashKey::Cookie(CookieKey {
                name: c.name.as_str().into(),
                path: c.path.as_str().into(),
                ttl: millis(c.ttl.as_ref()),
                attributes: attributes(&c.attributes),
            }),
            Key::SourceIp(_) => HashKey::SourceIp,
            Key::Query(name) => HashKey::Query(name.as_str().into()),
        };
        let or = |n: u64, default: u32| match u32::try_from(n).unwrap_or(u32::MAX) {
            0 => default,
            n => n,
        };
        let table = match &m.algorithm {
            Some(Algorithm::Maglev(t)) => HashTableKind::Maglev { size: or(t.table_size, 65_537) },
            Some(Algorithm::Ring(r)) => HashTableKind::Ring { minimum: or(r.min_size, 1024) },
            None => HashTableKind::Ring { minimum: 1024 },
        };
        Some(Self { key, table, bound_percent: m.bound_percent })
    }
}

fn attributes(list: &[model::CookieAttribute]) -> Box<str> {
    let one = |a: &model::CookieAttribute| match a.value.as_str() {
        "" => format!("; {}", a.name),
        value => format!("; {}={value}", a.name),
    };
    list.iter().map(one).collect::<String>().into()
}

impl LocalityPolicy {
    pub(super) fn compile(m: &model::LocalityPolicy) -> Self {
        let distribute = m.distribute.iter().map(|d| Distribute {
            from: d.from.as_str().into(),
            to: d.to.iter().map(|(to, share)| (to.as_str().into(), *share)).collect(),
        });
        let label = |text: &String| match text.split_once('=') {
            Some((key, value)) => (key.into(), Some(value.into())),
            None => (text.as_str().into(), None),
        };
        Self {
            enabled: m.enabled,
            distribute: distribute.collect(),
            failover: m.failover.iter().map(|f| (f.from.as_str().into(), f.to.as_str().into())).collect(),
            failover_priority: m.failover_priority.iter().map(label).collect(),
            min_cluster_size: usize::try_from(m.min_cluster_size).unwrap_or(usize::MAX),
        }
    }
}

impl Warmup {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to a small positive range"
    )]
    fn compile(m: &model::Warmup) -> Option<Self> {
        let thousandths = |x: f64, default: f64, max: f64| {
            let x = if x > 0.0 { x } else { default };
            (x * 1000.0).clamp(1.0, max * 1000.0) as u32
        };
        Some(Self {
            duration: millis(m.duration.as_ref()).filter(|d| !d.is_zero())?,
            minimum: thousandths(m.minimum_percent / 100.0, 0.1, 1.0),
            aggression: thousandths(m.aggression, 1.0, 1000.0),
        })
    }

    /// The share of an endpoint of that age, in thousandths.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the value lies in [0, 1000]")]
    pub fn share(&self, age: Duration) -> u32 {
        if age >= self.duration {
            return 1000;
        }
        let part = age.as_secs_f64() / self.duration.as_secs_f64();
        let share = part.powf(1000.0 / f64::from(self.aggression)) * 1000.0;
        (share as u32).clamp(self.minimum.clamp(1, 1000), 1000)
    }
}
