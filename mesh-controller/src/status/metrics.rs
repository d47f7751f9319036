//! Counts of what is written, of fields without effect, and of objects with errors.

use std::collections::{BTreeMap, BTreeSet};

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

use super::{conditions::Known, desk::Key};

/// Objects with errors that have a series of their own; more share one.
const MOST_OBJECTS: usize = 500;

/// The metrics of status and admission.
#[derive(Debug, Clone)]
pub(crate) struct StatusMetrics {
    ignored: IntGaugeVec,
    errors: IntGaugeVec,
    pub(super) writes: IntCounterVec,
    /// Reviews of the webhook.
    pub(crate) reviews: IntCounterVec,
}

impl StatusMetrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            ignored: IntGaugeVec::new(
                Opts::new("selvage_ignored_fields", "Objects that set a field without effect here."),
                &["kind", "field"],
            )?,
            errors: IntGaugeVec::new(
                Opts::new("selvage_resource_errors", "Errors of an object, whose last good state stays."),
                &["kind", "namespace", "name"],
            )?,
            writes: IntCounterVec::new(
                Opts::new("selvage_status_writes_total", "Statuses written to the cluster."),
                &["outcome"],
            )?,
            reviews: IntCounterVec::new(
                Opts::new("selvage_webhook_requests_total", "Reviews of the admission webhook."),
                &["kind", "result"],
            )?,
        };
        registry.register(Box::new(metrics.ignored.clone()))?;
        registry.register(Box::new(metrics.errors.clone()))?;
        registry.register(Box::new(metrics.writes.clone()))?;
        registry.register(Box::new(metrics.reviews.clone()))?;
        Ok(metrics)
    }
}

/// Keeps the gauges at what is known.
#[derive(Debug)]
pub(super) struct Gauges {
    metrics: StatusMetrics,
    ignored: BTreeMap<(String, String), i64>,
    errors: BTreeMap<Key, usize>,
    shown: BTreeSet<Key>,
}

impl Gauges {
    pub(super) fn new(metrics: StatusMetrics) -> Self {
        Self { metrics, ignored: BTreeMap::new(), errors: BTreeMap::new(), shown: BTreeSet::new() }
    }

    /// An object is known in place of another state of it.
    pub(super) fn change(&mut self, key: &Key, old: Option<&Known>, new: Option<&Known>) {
        for (known, step) in [(old, -1), (new, 1)] {
            let Some(known) = known else { continue };
            let fields: BTreeSet<String> = known
                .judgement
                .unsupported
                .iter()
                .chain(&known.judgement.unknown)
                .map(|f| without_positions(&f.path))
                .collect();
            for field in fields {
                self.count(&key.kind, field, step);
            }
        }
    }

    fn count(&mut self, kind: &str, field: String, step: i64) {
        let entry = (kind.to_owned(), field);
        let now = self.ignored.get(&entry).copied().unwrap_or_default() + step;
        let labels = [entry.0.as_str(), entry.1.as_str()];
        if now > 0 {
            self.metrics.ignored.with_label_values(&labels).set(now);
            self.ignored.insert(entry, now);
        } else {
            self.metrics.ignored.remove_label_values(&labels).ok();
            self.ignored.remove(&entry);
        }
    }

    /// How many errors an object has now.
    pub(super) fn errors(&mut self, key: &Key, count: usize) {
        let labels = [key.kind.as_str(), key.namespace.as_str(), key.name.as_str()];
        if count > 0 {
            self.errors.insert(key.clone(), count);
            if self.shown.len() < MOST_OBJECTS || self.shown.contains(key) {
                self.shown.insert(key.clone());
                self.metrics.errors.with_label_values(&labels).set(count as i64);
            }
        } else if self.errors.remove(key).is_some() && self.shown.remove(key) {
            self.metrics.errors.remove_label_values(&labels).ok();
        }
        let others = self.errors.len().saturating_sub(self.shown.len());
        if others > 0 {
            self.metrics.errors.with_label_values(&["other", "", ""]).set(others as i64);
        } else {
            self.metrics.errors.remove_label_values(&["other", "", ""]).ok();
        }
    }
}

/// A path without positions and keys, so that labels come from the schema and not from users.
fn without_positions(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('[') {
        out.push_str(before);
        let is_key = after.starts_with('"');
        let end = if is_key { after.find("\"]").map(|i| i + 2) } else { after.find(']').map(|i| i + 1) };
        out.push_str(if is_key { "{}" } else { "[]" });
        rest = end.and_then(|end| after.get(end..)).unwrap_or_default();
    }
    out.push_str(rest);
    // Names that nobody knows are text of users.
    out.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key {
            group: String::new(),
            kind: "VirtualService".into(),
            namespace: "shop".into(),
            name: name.into(),
        }
    }

    /// Values of the series of a family.
    fn shown(registry: &Registry, name: &str) -> Vec<i64> {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let series = text.lines().filter(|l| l.starts_with(name));
        series.map(|l| l.rsplit(' ').next().unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn positions_are_left_out() {
        assert_eq!(without_positions("spec.http[12].match[0].uri"), "spec.http[].match[].uri");
        assert_eq!(without_positions("spec.a[\"x.y]\"].b[1]"), "spec.a{}.b[]");
        assert_eq!(without_positions("spec.a["), "spec.a[]");
    }

    #[test]
    fn gauges_follow_objects() {
        let registry = Registry::new();
        let mut gauges = Gauges::new(StatusMetrics::new(&registry).unwrap());
        let mut known = Known::default();
        known.judgement.unsupported = vec![
            istio_compat::Finding::new("spec.http[0].x", "no"),
            istio_compat::Finding::new("spec.http[1].x", "no"),
        ];
        gauges.change(&key("a"), None, Some(&known));
        gauges.change(&key("b"), None, Some(&known));
        assert_eq!(shown(&registry, "selvage_ignored_fields"), [2]);
        gauges.change(&key("a"), Some(&known), Some(&Known::default()));
        gauges.change(&key("b"), Some(&known), None);
        assert_eq!(shown(&registry, "selvage_ignored_fields"), [0; 0]);
        for i in 0..MOST_OBJECTS + 3 {
            gauges.errors(&key(&i.to_string()), 1);
        }
        assert_eq!(shown(&registry, "selvage_resource_errors").len(), MOST_OBJECTS + 1);
        for i in 0..MOST_OBJECTS + 3 {
            gauges.errors(&key(&i.to_string()), 0);
        }
        assert_eq!(shown(&registry, "selvage_resource_errors"), [0; 0]);
    }
}
