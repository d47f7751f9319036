//! Load balancers: hashing and localities.

use super::Verdict;
use crate::types::{
    ConsistentHashLb, HttpCookie, LoadBalancerSettings, LocalityFailover, LocalityLbSetting,
    WarmupConfiguration,
};

/// Maglev tables are smaller than this.
const MAX_MAGLEV: u64 = 5_000_011;

pub(super) fn check(path: &str, lb: &LoadBalancerSettings, outlier: bool, out: &mut Verdict) {
    if lb.simple.is_some() && lb.consistent_hash.is_some() {
        out.error(format!("{path}.consistentHash"), "must not be together with simple");
    }
    if let Some(hash) = &lb.consistent_hash {
        consistent_hash(&format!("{path}.consistentHash"), hash, out);
    }
    if lb.locality_lb_setting.is_some() && lb.zone_aware_lb_setting.is_some() {
        out.error(format!("{path}.zoneAwareLbSetting"), "must not be together with localityLbSetting");
    }
    if let Some(l) = &lb.locality_lb_setting {
        locality(&format!("{path}.localityLbSetting"), l, outlier, out);
    }
    if let Some(z) = &lb.zone_aware_lb_setting {
        let path = format!("{path}.zoneAwareLbSetting");
        topology_labels(&path, &z.failover_priority, out);
        needs_outlier(&path, z.failover.is_empty() && z.failover_priority.is_empty(), outlier, out);
        failover(&path, &z.failover, out);
    }
    if let Some(w) = &lb.warmup {
        warmup(&format!("{path}.warmup"), w, out);
    }
}

fn warmup(path: &str, w: &WarmupConfiguration, out: &mut Verdict) {
    if w.duration.is_none() {
        out.error(format!("{path}.duration"), "is required");
    }
    out.duration(&format!("{path}.duration"), w.duration.as_ref());
    if let Some(p) = w.minimum_percent.filter(|p| *p > 100.0) {
        out.error(format!("{path}.minimumPercent"), format!("must be at most 100, is {p}"));
    }
    if let Some(a) = w.aggression.filter(|a| *a <= 0.0) {
        out.error(format!("{path}.aggression"), format!("must be greater than 0, is {a}"));
    }
}

fn consistent_hash(path: &str, h: &ConsistentHashLb, out: &mut Verdict) {
    let keys = [
        h.http_header_name.is_some(),
        h.http_cookie.is_some(),
        h.use_source_ip.is_some(),
        h.http_query_parameter_name.is_some(),
    ];
    if keys.iter().filter(|k| **k).count() > 1 {
        out.error(path, "only one key may be set");
    }
    if h.ring_hash.is_some() && h.maglev.is_some() {
        out.error(format!("{path}.maglev"), "must not be together with ringHash");
    }
    if h.minimum_ring_size != 0 {
        out.warn(format!("{path}.minimumRingSize"), "is deprecated; use ringHash.minimumRingSize");
        if h.ring_hash.is_some() || h.maglev.is_some() {
            out.error(format!("{path}.minimumRingSize"), "must not be together with ringHash or maglev");
        }
    }
    if let Some(c) = &h.http_cookie {
        cookie(&format!("{path}.httpCookie"), c, out);
    }
    if let Some(m) = &h.maglev {
        let path = format!("{path}.maglev.tableSize");
        match m.table_size {
            0 => out.error(path, "is required"),
            n if n >= MAX_MAGLEV => out.error(path, format!("must be less than {MAX_MAGLEV}, is {n}")),
            n if !is_prime(n) => out.error(path, format!("must be a prime number, is {n}")),
            _ => {}
        }
    }
}

fn is_prime(n: u64) -> bool {
    // 1 passes, as in Istio and Envoy.
    n >= 1 && (2..).take_while(|d| d * d <= n).all(|d: u64| !n.is_multiple_of(d))
}

fn cookie(path: &str, c: &HttpCookie, out: &mut Verdict) {
    if c.name.is_empty() {
        out.error(format!("{path}.name"), "is required");
    }
    if let Some(Err(e)) = c.ttl.as_ref().map(|t| t.nanos()) {
        out.error(format!("{path}.ttl"), e.to_string());
    }
    for (i, attribute) in c.attributes.iter().enumerate() {
        let path = format!("{path}.attributes[{i}].name");
        if attribute.name.is_empty() {
            out.error(path, "is required");
        } else if c.attributes[..i].iter().any(|a| a.name == attribute.name) {
            out.error(path, format!("{:?} is there twice", attribute.name));
        }
    }
}

fn locality(path: &str, l: &LocalityLbSetting, outlier: bool, out: &mut Verdict) {
    if !l.distribute.is_empty() && !l.failover.is_empty() {
        out.error(format!("{path}.failover"), "must not be together with distribute");
    }
    let sources: Vec<&str> = l.distribute.iter().map(|d| d.from.as_str()).collect();
    localities(&format!("{path}.distribute"), &sources, out);
    for (i, d) in l.distribute.iter().enumerate() {
        let path = format!("{path}.distribute[{i}].to");
        for (to, weight) in d.to.iter().filter(|(_, w)| !(1..=100).contains(*w)) {
            out.error(format!("{path}[{to:?}]"), format!("must be from 1 to 100, is {weight}"));
        }
        let total: u64 = d.to.values().map(|w| u64::from(*w)).sum();
        if total != 100 {
            out.error(path.as_str(), format!("weights must sum to 100, sum to {total}"));
        }
        localities(&path, &d.to.keys().map(String::as_str).collect::<Vec<_>>(), out);
    }
    if !l.failover.is_empty() {
        topology_labels(path, &l.failover_priority, out);
    }
    needs_outlier(path, l.failover.is_empty() && l.failover_priority.is_empty(), outlier, out);
    failover(path, &l.failover, out);
}

fn failover(path: &str, list: &[LocalityFailover], out: &mut Verdict) {
    for (i, f) in list.iter().enumerate() {
        let path = format!("{path}.failover[{i}]");
        if f.from == f.to {
            out.error(path.as_str(), "must lead to another region");
        }
        if [&f.from, &f.to].iter().any(|r| r.contains(['/', '*'])) {
            out.error(path, "must name regions, without `/` and `*`");
        }
    }
}

fn needs_outlier(path: &str, empty: bool, outlier: bool, out: &mut Verdict) {
    if !empty && !outlier {
        out.warn(path, "has no effect without outlierDetection: failing endpoints are not noticed");
    }
}

/// Region, zone and sub-zone have an order of their own.
fn topology_labels(path: &str, priority: &[String], out: &mut Verdict) {
    const TOPOLOGY: [&str; 3] =
        ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];
    for (i, label) in priority.iter().enumerate().filter(|(_, l)| TOPOLOGY.contains(&l.as_str())) {
        out.error(format!("{path}.failoverPriority[{i}]"), format!("{label} must not be here"));
    }
}

/// Each is `region/zone/sub-zone` or a part, with one `*` at most, at the end, and none is within an earlier one.
fn localities(path: &str, list: &[&str], out: &mut Verdict) {
    for (i, locality) in list.iter().enumerate() {
        let stars = locality.matches('*').count();
        let misplaced = stars > 1 || (stars == 1 && !locality.ends_with('*'));
        if misplaced || locality.splitn(3, '/').any(str::is_empty) {
            out.error(path, format!("{locality:?} is not a locality"));
        } else if let Some(other) =
            list[..i].iter().find(|other| covers(other, locality) || is_part(locality, other))
        {
            out.error(path, format!("{locality:?} and {other:?} overlap"));
        }
    }
}

/// Whether an earlier locality takes in another one.
fn covers(earlier: &str, locality: &str) -> bool {
    if earlier == "*" || earlier == locality {
        return true;
    }
    let whole = earlier.strip_suffix("/*").unwrap_or(earlier);
    locality.strip_prefix(whole).is_some_and(|rest| rest.starts_with('/'))
}

/// Whether a plain region or zone comes after a part of it.
fn is_part(locality: &str, earlier: &str) -> bool {
    earlier.strip_prefix(locality).is_some_and(|rest| rest.starts_with('/'))
}
