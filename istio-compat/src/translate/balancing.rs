//! Hashing, localities and warm-up.

use mesh_api::model::{self, consistent_hash};

use super::policy::length;
use crate::types::{ConsistentHashLb, HttpCookie, LoadBalancerSettings, LocalityFailover};

const DEFAULT_MINIMUM_PERCENT: f64 = 10.0;
const DEFAULT_AGGRESSION: f64 = 1.0;

pub(super) fn consistent_hash(c: &ConsistentHashLb) -> model::ConsistentHash {
    use consistent_hash::{Algorithm, Key};
    let key = match (&c.http_header_name, &c.http_cookie, c.use_source_ip, &c.http_query_parameter_name) {
        (Some(name), ..) => Some(Key::Header(name.to_ascii_lowercase())),
        (_, Some(c), ..) => Some(Key::Cookie(cookie(c))),
        (_, _, Some(true), _) => Some(Key::SourceIp(true)),
        (.., Some(name)) => Some(Key::Query(name.clone())),
        _ => None,
    };
    let algorithm = match (&c.maglev, &c.ring_hash, c.minimum_ring_size) {
        (Some(m), ..) => Some(Algorithm::Maglev(model::Maglev { table_size: m.table_size })),
        (_, Some(r), _) => Some(Algorithm::Ring(model::RingHash { min_size: r.minimum_ring_size })),
        (.., 0) => None,
        (.., min_size) => Some(Algorithm::Ring(model::RingHash { min_size })),
    };
    // Istio has no field for a bound.
    model::ConsistentHash { bound_percent: 0, key, algorithm }
}

fn cookie(c: &HttpCookie) -> model::HashCookie {
    model::HashCookie {
        name: c.name.clone(),
        path: c.path.clone(),
        // Zero has a meaning here: a cookie for the session.
        ttl: c
            .ttl
            .as_ref()
            .and_then(|d| u64::try_from(d.nanos().ok()? / 1_000_000).ok())
            .map(|value| model::Millis { value }),
        attributes: c
            .attributes
            .iter()
            .map(|a| model::CookieAttribute { name: a.name.clone(), value: a.value.clone() })
            .collect(),
    }
}

pub(super) fn locality(l: &LoadBalancerSettings) -> Option<model::LocalityPolicy> {
    let failover = |list: &[LocalityFailover]| {
        let one = |f: &LocalityFailover| model::locality_policy::Failover {
            from: f.from.clone(),
            to: f.to.clone(),
        };
        list.iter().map(one).collect()
    };
    if let Some(setting) = &l.locality_lb_setting {
        let distribute = setting
            .distribute
            .iter()
            .map(|d| model::locality_policy::Distribute { from: d.from.clone(), to: d.to.clone() })
            .collect();
        return Some(model::LocalityPolicy {
            enabled: setting.enabled.unwrap_or(true),
            distribute,
            failover: failover(&setting.failover),
            failover_priority: setting.failover_priority.clone(),
            min_cluster_size: 0,
        });
    }
    l.zone_aware_lb_setting.as_ref().map(|z| model::LocalityPolicy {
        enabled: z.enabled.unwrap_or(true),
        distribute: Vec::new(),
        failover: failover(&z.failover),
        failover_priority: z.failover_priority.clone(),
        min_cluster_size: z.min_cluster_size.unwrap_or(DEFAULT_MIN_CLUSTER_SIZE),
    })
}

const DEFAULT_MIN_CLUSTER_SIZE: u64 = 6;

pub(super) fn warmup(l: &LoadBalancerSettings) -> Option<model::Warmup> {
    let duration =
        length(l.warmup.as_ref().and_then(|w| w.duration.as_ref()).or(l.warmup_duration_secs.as_ref()))?;
    let (minimum, aggression) = l.warmup.as_ref().map_or((None, None), |w| (w.minimum_percent, w.aggression));
    Some(model::Warmup {
        duration: Some(duration),
        minimum_percent: minimum.unwrap_or(DEFAULT_MINIMUM_PERCENT),
        aggression: aggression.filter(|a| *a > 0.0).unwrap_or(DEFAULT_AGGRESSION),
    })
}
