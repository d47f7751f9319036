//! Rules of VirtualServices that are never used, as Istio's validation finds them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    report::Report,
    world::{Object, list, map, number, text},
};

/// Every pair of prefixes is compared; above this, none is.
const MAX_PREFIXES: usize = 2_000;

/// Says what is never used in a VirtualService.
pub(super) fn rules(rule: &Object, out: &mut Report) {
    for protocol in ["http", "tcp", "tls"] {
        one(rule, protocol, out);
    }
}

fn one(rule: &Object, protocol: &str, out: &mut Report) {
    let routes = rule.list(&format!("/spec/{protocol}"));
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut catches_all = false;
    let mut prefixes = Vec::new();
    let unreachable = |out: &mut Report, i: usize, reason: &str| {
        out.add(rule, "IST0130", format!("spec.{protocol}[{i}]"), &[&name(routes, i), &reason]);
    };
    for (i, route) in routes.iter().enumerate() {
        let conditions = list(route, "/match");
        if conditions.is_empty() {
            if catches_all {
                unreachable(out, i, "only the last rule can have no matches");
            }
            catches_all = true;
            continue;
        }
        let mut repeated = 0;
        for (j, condition) in conditions.iter().enumerate() {
            if catches_all {
                unreachable(out, i, "route without matches defined before");
                continue;
            }
            let key = canonical(condition);
            if let Some(first) = seen.get(&key) {
                repeated += 1;
                let path = format!("spec.{protocol}[{i}].match[{j}]");
                out.add(
                    rule,
                    "IST0131",
                    path,
                    &[&name(routes, i), &name(conditions, j), &name(routes, *first)],
                );
                continue;
            }
            seen.insert(key, i);
            if protocol == "http" {
                prefixes.extend(Prefix::of(routes, i, conditions, j));
            }
        }
        if repeated == conditions.len() {
            unreachable(out, i, "all matches used by prior rules");
        }
    }
    if prefixes.len() <= MAX_PREFIXES {
        covered(rule, &prefixes, out);
    }
}

/// A name in quotes, or a position.
fn name(items: &[Value], i: usize) -> String {
    match items.get(i).map(|item| text(item, "/name")).unwrap_or_default() {
        "" => format!("#{i}"),
        name => format!("{name:?}"),
    }
}

/// A condition without its name and without what is not set.
fn canonical(condition: &Value) -> String {
    let mut condition = condition.clone();
    if let Some(fields) = condition.as_object_mut() {
        fields.remove("name");
        fields.retain(|_, v| !v.is_null());
    }
    condition.to_string()
}

/// A condition on a prefix of the path.
struct Prefix {
    place: (usize, usize),
    rule: String,
    condition: String,
    prefix: String,
    port: u64,
    method: String,
    authority: String,
    maps: [BTreeMap<String, String>; 3],
}

impl Prefix {
    fn of(routes: &[Value], i: usize, conditions: &[Value], j: usize) -> Option<Self> {
        let condition = conditions.get(j)?;
        let prefix = text(condition, "/uri/prefix").to_owned();
        if prefix.is_empty() {
            return None;
        }
        let matcher = |value: Option<&Value>| value.map(string_match).unwrap_or_default();
        let fields = |field: &str| {
            let all = condition.get(field).and_then(Value::as_object).into_iter().flatten();
            all.map(|(k, v)| (k.clone(), string_match(v))).collect()
        };
        let method = matcher(condition.get("method"));
        Some(Self {
            place: (i, j),
            rule: name(routes, i),
            condition: name(conditions, j),
            prefix,
            port: number(condition, "/port"),
            method: if method.is_empty() { "exact:GET".to_owned() } else { method },
            authority: matcher(condition.get("authority")),
            maps: [fields("headers"), fields("queryParams"), fields("withoutHeaders")],
        })
    }

    /// Whether what `other` takes is taken by this one already.
    fn covers(&self, other: &Self) -> bool {
        let maps = self.maps.iter().zip(&other.maps);
        other.prefix.starts_with(&self.prefix)
            && self.port == other.port
            && self.method.starts_with(&other.method)
            && self.authority.starts_with(&other.authority)
            && maps.into_iter().all(|(a, b)| {
                a.len() == b.len()
                    && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| v.starts_with(w.as_str())))
            })
    }
}

fn string_match(value: &Value) -> String {
    let fields = map(value, "");
    match (fields.get("exact"), fields.get("prefix")) {
        (Some(exact), _) if !exact.is_empty() => format!("exact:{exact}"),
        (_, Some(prefix)) if !prefix.is_empty() => format!("prefix:{prefix}"),
        _ => String::new(),
    }
}

fn covered(rule: &Object, prefixes: &[Prefix], out: &mut Report) {
    for (n, wide) in prefixes.iter().enumerate() {
        for narrow in prefixes.iter().skip(n + 1).filter(|p| p.prefix != wide.prefix && wide.covers(p)) {
            let (i, j) = narrow.place;
            let own = format!("{} of prefix {}", narrow.condition, narrow.prefix);
            let by = format!("{} of prefix {} on {}", wide.condition, wide.prefix, wide.rule);
            out.add(rule, "IST0131", format!("spec.http[{i}].match[{j}]"), &[&narrow.rule, &own, &by]);
        }
    }
}
