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
        failover(&format!("{path}.zoneAwareLbSetting"), &z.failover, out);
    }
    out.duration(&format!("{path}.warmupDurationSecs"), lb.warmup_duration_secs.as_ref());
    if let Some(w) = &lb.warmup {
        warmup(&format!("{path}.warmup"), w, out);
    }
}

fn warmup(path: &str, w: &WarmupConfiguration, out: &mut Verdict) {
    if w.duration.is_none() {
        out.error(format!("{path}.duration"), "is required");
    }
    out.duration(&format!("{path}.duration"), w.duration.as_ref());
    if let Some(p) = w.minimum_percent.filter(|p| !(0.0..=100.0).contains(p)) {
        out.error(format!("{path}.minimumPercent"), format!("must be from 0 to 100, is {p}"));
    }
    if let Some(a) = w.aggression.filter(|a| *a < 1.0) {
        out.error(format!("{path}.aggression"), format!("must be at least 1, is {a}"));
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
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d: u64| !n.is_multiple_of(d))
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
        } else if c.attributes[..i].iter().any(|a| a.name.eq_ignore_ascii_case(&attribute.name)) {
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
    if (!l.failover.is_empty() || !l.failover_priority.is_empty()) && !outlier {
        out.warn(path, "has no effect without outlierDetection: failing endpoints are not noticed");
    }
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

/// Each is `region/zone/sub-zone` or a part, `*` only at the end, and none is within another.
fn localities(path: &str, list: &[&str], out: &mut Verdict) {
    for (i, locality) in list.iter().enumerate() {
        let parts: Vec<&str> = locality.split('/').collect();
        let early_star = parts[..parts.len() - 1].iter().any(|p| p.contains('*'));
        let last_star = parts.last().is_some_and(|p| p.contains('*') && *p != "*");
        if parts.len() > 3 || parts.iter().any(|p| p.is_empty()) || early_star || last_star {
            out.error(path, format!("{locality:?} is not a locality"));
            continue;
        }
        let plain = |l: &str| l.trim_end_matches('*').trim_end_matches('/').to_owned();
        let within = |a: &str, b: &str| {
            a == b || a.is_empty() || b.strip_prefix(a).is_some_and(|r| r.starts_with('/'))
        };
        let this = plain(locality);
        if let Some(other) = list[..i].iter().find(|o| {
            let other = plain(o);
            within(&this, &other) || within(&other, &this)
        }) {
            out.error(path, format!("{locality:?} and {other:?} overlap"));
        }
    }
}
