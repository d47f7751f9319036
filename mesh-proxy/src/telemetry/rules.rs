//! Telemetry resources: which metrics a workload's calls have, with which labels, and which calls are logged.
//!
//! Those of the root namespace hold first, then those of the workload's namespace, then the one whose selector fits; a
//! later one overrides what it says. A label that is taken away is empty, which Prometheus treats as absent.

use std::collections::BTreeMap;

use mesh_api::model;
use mesh_core::{
    Tables, WorkloadEntry,
    expression::{Attribute, Attributes, Expression, Value},
};

use super::access_log::Entry;

/// All Telemetry resources of a snapshot, compiled.
#[derive(Debug)]
pub(crate) struct RuleTable(Vec<Compiled>);

#[derive(Debug)]
struct Compiled {
    namespace: String,
    rank: u8,
    created: String,
    selector: BTreeMap<String, String>,
    metrics: Vec<model::MetricOverride>,
    logs: Vec<LogRule>,
}

#[derive(Debug, Clone)]
struct LogRule {
    disabled: bool,
    filter: Option<Expression>,
}

/// What holds for the metrics of one workload.
#[derive(Debug, Default)]
pub(crate) struct MetricRules {
    overrides: Vec<model::MetricOverride>,
}

impl RuleTable {
    /// What a snapshot says; none if it says nothing.
    pub(crate) fn of(tables: &Tables) -> Option<Self> {
        let mut all: Vec<_> = tables.telemetry().map(|m| Compiled::new(m)).collect();
        all.sort_by(|a, b| (a.rank, &a.created).cmp(&(b.rank, &b.created)));
        (!all.is_empty()).then_some(Self(all))
    }

    /// The ones that hold for a workload: of each rank the oldest, in the order in which they override.
    fn holding<'a>(&'a self, workload: Option<&'a WorkloadEntry>) -> impl Iterator<Item = &'a Compiled> {
        let fits = move |c: &&Compiled| {
            let labels = |w: &WorkloadEntry| c.selector.iter().all(|(k, v)| w.labels.get(k) == Some(v));
            match workload {
                _ if c.rank == 0 => c.selector.is_empty() || workload.is_some_and(labels),
                Some(w) => *c.namespace == *w.namespace && labels(w),
                None => false,
            }
        };
        (0..3).filter_map(move |rank| self.0.iter().filter(|c| c.rank == rank).find(fits))
    }

    /// What holds for the metrics of a caller's calls.
    pub(crate) fn metrics(&self, workload: Option<&WorkloadEntry>) -> MetricRules {
        let client = |m: &&model::MetricOverride| m.mode() != model::telemetry::Mode::Server;
        let overrides = self.holding(workload).flat_map(|c| c.metrics.iter().filter(client)).cloned();
        MetricRules { overrides: overrides.collect() }
    }

    /// Whether a caller's call is logged.
    pub(crate) fn logs(&self, workload: Option<&WorkloadEntry>, entry: &Entry) -> bool {
        let rule = self.holding(workload).filter_map(|c| c.logs.last()).last();
        match rule {
            None => true,
            Some(rule) => !rule.disabled && rule.filter.as_ref().is_none_or(|f| f.holds(entry)),
        }
    }
}

impl Compiled {
    fn new(m: &model::Telemetry) -> Self {
        let client = |l: &&model::AccessLog| l.mode() != model::telemetry::Mode::Server;
        let log = |l: &model::AccessLog| {
            LogRule {
            disabled: l.disabled,
            filter: match l.filter.as_str() {
                "" => None,
                text => Expression::compile(text)
                    .inspect_err(|error| {
                        tracing::warn!(telemetry = %m.name, %error, "filter not understood: everything is logged");
                    })
                    .ok(),
            },
        }
        };
        Self {
            namespace: m.namespace.clone(),
            rank: match (m.mesh_default, m.selector.is_empty()) {
                (true, _) => 0,
                (false, true) => 1,
                (false, false) => 2,
            },
            created: m.created.clone(),
            selector: m.selector.clone(),
            metrics: m.metrics.clone(),
            logs: m.access_logs.iter().filter(client).map(log).collect(),
        }
    }
}

impl MetricRules {
    fn of<'a>(&'a self, metric: &'a str) -> impl Iterator<Item = &'a model::MetricOverride> {
        self.overrides.iter().filter(move |o| o.metric.is_empty() || o.metric == metric)
    }

    /// Whether the metric is not to be counted.
    pub(crate) fn disables(&self, metric: &str) -> bool {
        self.of(metric).filter(|o| o.disabled || o.enabled).last().is_some_and(|o| o.disabled)
    }

    /// Changes the labels of a metric.
    pub(crate) fn relabel<'v>(&'v self, metric: &str, names: &[&str], values: &mut [&'v str]) {
        for tag in
            self.overrides.iter().filter(|o| o.metric.is_empty() || o.metric == metric).flat_map(|o| &o.tags)
        {
            let Some(value) = names.iter().position(|n| *n == tag.name).and_then(|i| values.get_mut(i))
            else {
                continue;
            };
            if tag.remove {
                *value = "";
            } else if let Some(text) = constant(&tag.value) {
                *value = text;
            }
        }
    }

    /// Whether labels stay as they are.
    pub(crate) fn is_plain(&self) -> bool {
        self.overrides.is_empty()
    }
}

/// The text of an expression that is only a quoted text.
fn constant(expression: &str) -> Option<&str> {
    let text = expression.trim();
    let inner = |quote| text.strip_prefix(quote)?.strip_suffix(quote).filter(|t| !t.contains(quote));
    inner('\'').or_else(|| inner('"'))
}

impl Attributes for Entry {
    fn get(&self, attribute: Attribute) -> Value<'_> {
        fn text(t: &str) -> Value<'_> {
            if t.is_empty() { Value::Absent } else { Value::Text(t) }
        }
        let number = |n: u64| Value::Number(i64::try_from(n).unwrap_or(i64::MAX));
        match attribute {
            Attribute::ResponseCode if self.method.is_empty() => Value::Absent,
            Attribute::ResponseCode => Value::Number(self.status.into()),
            Attribute::ResponseFlags => Value::Number(i64::from(!self.flags.is_empty())),
            Attribute::ResponseCodeDetails => text(self.details),
            Attribute::ResponseSize => number(self.sent),
            Attribute::RequestSize => number(self.received),
            Attribute::RequestDuration => {
                number(u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX))
            }
            Attribute::RequestMethod => text(&self.method),
            Attribute::RequestPath => text(&self.path),
            Attribute::RequestUrlPath => text(self.path.split('?').next().unwrap_or_default()),
            Attribute::RequestHost => text(&self.authority),
            Attribute::RequestProtocol => text(self.protocol),
            Attribute::RequestUserAgent => text(&self.agent),
            Attribute::RequestId => text(&self.request_id),
            Attribute::ConnectionServerName => text(&self.server_name),
            // Addresses are not kept as text; expressions on them do not hold.
            Attribute::SourceAddress | Attribute::UpstreamAddress => Value::Absent,
            Attribute::ClusterName => text(&self.cluster),
            Attribute::RouteName => text(&self.route),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use mesh_api::Resource;
    use mesh_core::Change;

    use super::*;

    fn workload(namespace: &str, app: &str) -> WorkloadEntry {
        WorkloadEntry {
            address: Ipv4Addr::LOCALHOST.into(),
            node: "n".into(),
            namespace: namespace.into(),
            name: app.into(),
            owner: app.into(),
            service_account: "".into(),
            labels: [("app".to_owned(), app.to_owned())].into(),
            host_network: false,
        }
    }

    fn telemetry(name: &str, namespace: &str, root: bool, app: &str) -> model::Telemetry {
        model::Telemetry {
            name: name.into(),
            namespace: namespace.into(),
            mesh_default: root,
            selector: if app.is_empty() {
                BTreeMap::new()
            } else {
                [("app".to_owned(), app.to_owned())].into()
            },
            ..Default::default()
        }
    }

    fn table(list: Vec<model::Telemetry>) -> RuleTable {
        let changes = list.into_iter().map(|t| Change::Set(Resource::Telemetry(t))).collect();
        let (tables, applied) = Tables::new().apply(changes);
        assert!(applied.rejected.is_empty(), "{:?}", applied.rejected);
        RuleTable::of(&tables).unwrap()
    }

    fn log(filter: &str, disabled: bool) -> Vec<model::AccessLog> {
        vec![model::AccessLog { filter: filter.into(), disabled, ..Default::default() }]
    }

    #[test]
    fn the_narrower_rule_overrides() {
        let t = table(vec![
            model::Telemetry { access_logs: log("", true), ..telemetry("root/t", "root", true, "") },
            model::Telemetry {
                access_logs: log("response.code >= 400", false),
                ..telemetry("shop/t", "shop", false, "")
            },
            model::Telemetry { access_logs: log("", false), ..telemetry("shop/web", "shop", false, "web") },
        ]);
        let entry = |status| Entry { method: "GET".into(), status, ..Entry::default() };
        let logs = |ns: &str, app: &str, status| t.logs(Some(&workload(ns, app)), &entry(status));
        assert!(!logs("other", "x", 500), "the mesh's");
        assert!(logs("shop", "x", 500) && !logs("shop", "x", 200), "the namespace's");
        assert!(logs("shop", "web", 200), "the workload's");
        assert!(!t.logs(None, &entry(500)), "callers that nobody knows");
    }

    #[test]
    fn metrics_are_disabled_and_labels_changed() {
        let tag = |name: &str, remove, value: &str| model::TagOverride {
            name: name.into(),
            remove,
            value: value.into(),
        };
        let t = table(vec![model::Telemetry {
            metrics: vec![
                model::MetricOverride {
                    disabled: true,
                    metric: "istio_request_bytes".into(),
                    ..Default::default()
                },
                model::MetricOverride {
                    tags: vec![
                        tag("source_app", true, ""),
                        tag("reporter", false, "'edge'"),
                        tag("response_code", false, "request.host"),
                    ],
                    ..Default::default()
                },
            ],
            ..telemetry("root/t", "root", true, "")
        }]);
        let rules = t.metrics(None);
        assert!(rules.disables("istio_request_bytes") && !rules.disables("istio_requests_total"));
        let mut values = ["source", "web", "200"];
        rules.relabel("istio_requests_total", &["reporter", "source_app", "response_code"], &mut values);
        assert_eq!(values, ["edge", "", "200"], "an expression that is no constant changes nothing");
    }
}
