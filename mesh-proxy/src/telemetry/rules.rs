//! Telemetry resources: which metrics a workload's calls have, with which labels, and which calls are logged.
//!
//! Those of the root namespace hold first, then those of the workload's namespace, then the one whose selector fits; a
//! later one overrides what it says. A label that is taken away is empty, which Prometheus treats as absent.

mod tracing;

use std::collections::BTreeMap;

pub(crate) use self::tracing::TraceRules;
use mesh_api::model;
use mesh_core::{
    Tables, WorkloadEntry,
    expression::{Attribute, Attributes, Expression, Value},
};

use super::access_log::{AccessLog, Entry};

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
    tracing: Vec<model::Tracing>,
}

/// Which side of calls a workload is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// It calls.
    Client,
    /// It is called.
    Server,
}

impl Side {
    /// Whether a rule of this mode is for this side.
    const fn is_meant(self, mode: model::telemetry::Mode) -> bool {
        use model::telemetry::Mode;
        match mode {
            Mode::ClientAndServer => true,
            Mode::Client => matches!(self, Self::Client),
            Mode::Server => matches!(self, Self::Server),
        }
    }
}

#[derive(Debug, Clone)]
struct LogRule {
    mode: model::telemetry::Mode,
    disabled: bool,
    providers: Vec<String>,
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

    /// What holds for the metrics of a workload's calls.
    pub(crate) fn metrics(&self, workload: Option<&WorkloadEntry>, side: Side) -> MetricRules {
        let meant = |m: &&model::MetricOverride| side.is_meant(m.mode());
        let overrides = self.holding(workload).flat_map(|c| c.metrics.iter().filter(meant)).cloned();
        MetricRules { overrides: overrides.collect() }
    }

    /// Whether a workload's call is logged to this log.
    pub(crate) fn logs(
        &self,
        workload: Option<&WorkloadEntry>,
        side: Side,
        (log, entry): (&AccessLog, &Entry),
    ) -> bool {
        let meant = |l: &&LogRule| side.is_meant(l.mode);
        // Of one resource the last rule holds; one without providers is about those that others named.
        let rules = self.holding(workload).filter_map(|c| c.logs.iter().rfind(meant));
        let (mut on, mut last) = (log.by_default(), None);
        for rule in rules {
            if !rule.providers.is_empty() {
                on = rule.means(log.provider());
            }
            last = Some(rule);
        }
        on && last.is_none_or(|r| !r.disabled && r.filter.as_ref().is_none_or(|f| f.holds(entry)))
    }

    /// Whether some rule switches a log on that is off by default.
    pub(crate) fn asks_for_log(&self, provider: &str) -> bool {
        self.0.iter().flat_map(|c| &c.logs).any(|l| !l.disabled && l.means(provider))
    }
}

impl LogRule {
    fn means(&self, provider: &str) -> bool {
        self.providers.iter().any(|p| p == provider)
    }
}

impl Compiled {
    fn new(m: &model::Telemetry) -> Self {
        let log = |l: &model::AccessLog| {
            LogRule {
            mode: l.mode(),
            disabled: l.disabled,
            providers: l.providers.clone(),
            filter: match l.filter.as_str() {
                "" => None,
                text => Expression::compile(text)
                    .inspect_err(|error| {
                        ::tracing::warn!(telemetry = %m.name, %error, "filter not understood: everything is logged");
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
            logs: m.access_logs.iter().map(log).collect(),
            tracing: m.tracing.clone(),
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
        let http = self.http.as_deref();
        match attribute {
            Attribute::ResponseCode if http.is_none() => Value::Absent,
            Attribute::ResponseCode => Value::Number(self.status.into()),
            Attribute::ResponseFlags => Value::Number(i64::from(!self.flags.is_empty())),
            Attribute::ResponseCodeDetails => text(self.details),
            Attribute::ResponseSize => number(self.sent),
            Attribute::RequestSize => number(self.received),
            Attribute::RequestDuration => {
                number(u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX))
            }
            Attribute::RequestMethod => http.map_or(Value::Absent, |h| text(h.method.as_str())),
            Attribute::RequestPath => http.map_or(Value::Absent, |h| text(h.path())),
            Attribute::RequestUrlPath => http.map_or(Value::Absent, |h| text(h.uri.path())),
            Attribute::RequestHost => http.map_or(Value::Absent, |h| text(h.authority())),
            Attribute::RequestProtocol => text(self.protocol),
            Attribute::RequestUserAgent => http.map_or(Value::Absent, |h| text(h.agent())),
            Attribute::RequestId => http.map_or(Value::Absent, |h| text(h.request_id())),
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
    use crate::telemetry::access_log::{AccessLogConfig, Format};

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
        let on = AccessLogConfig { format: Format::Text, ..AccessLogConfig::default() };
        let on = AccessLog::start(&on, std::io::sink()).unwrap();
        let entry = |status| {
            let http = on.http(&http::Request::get("/").body(()).unwrap());
            Entry { http, status, ..Entry::default() }
        };
        let logs = |ns: &str, app: &str, status| {
            t.logs(Some(&workload(ns, app)), Side::Client, (&on, &entry(status)))
        };
        assert!(!logs("other", "x", 500), "the mesh's");
        assert!(logs("shop", "x", 500) && !logs("shop", "x", 200), "the namespace's");
        assert!(logs("shop", "web", 200), "the workload's");
        assert!(!t.logs(None, Side::Client, (&on, &entry(500))), "callers that nobody knows");
    }

    #[test]
    fn a_log_that_is_off_is_switched_on_by_its_name() {
        let named = |name: &str, mode| model::AccessLog {
            providers: vec![name.into()],
            mode: i32::from(mode),
            ..Default::default()
        };
        let t = table(vec![
            model::Telemetry {
                access_logs: vec![named("envoy", model::telemetry::Mode::Server)],
                ..telemetry("shop/t", "shop", false, "")
            },
            model::Telemetry {
                access_logs: vec![named("stackdriver", model::telemetry::Mode::ClientAndServer)],
                ..telemetry("shop/web", "shop", false, "web")
            },
        ]);
        let start = |format| {
            let config = AccessLogConfig { format, ..AccessLogConfig::default() };
            AccessLog::start(&config, std::io::sink()).unwrap()
        };
        let (on, off) = (start(Format::Json), start(Format::Off));
        let entry = Entry::default();
        let logs =
            |log: &AccessLog, app: &str, side| t.logs(Some(&workload("shop", app)), side, (log, &entry));
        assert!(logs(&off, "x", Side::Server) && !logs(&off, "x", Side::Client), "by its mode");
        assert!(!logs(&off, "web", Side::Server) && !logs(&on, "web", Side::Client), "another provider's");
        assert!(logs(&on, "x", Side::Client), "on by default, and nobody said otherwise");
        assert!(t.asks_for_log("envoy") && !t.asks_for_log("otel"));
    }

    #[test]
    fn traces_follow_the_narrowest_word() {
        let tag = |name: &str, source| model::TracingTag {
            name: name.into(),
            source: Some(source),
            default_value: "none".into(),
        };
        let t = table(vec![
            model::Telemetry {
                tracing: vec![model::Tracing {
                    sampling_percent: Some(5.0),
                    providers: vec!["otel".into()],
                    tags: vec![
                        tag("a", model::tracing_tag::Source::Literal("x".into())),
                        tag("b", model::tracing_tag::Source::Formatter("%RESPONSE_CODE%".into())),
                        tag("bad", model::tracing_tag::Source::Formatter("%NOTHING%".into())),
                    ],
                    ..Default::default()
                }],
                ..telemetry("root/t", "root", true, "")
            },
            model::Telemetry {
                tracing: vec![
                    model::Tracing {
                        sampling_percent: Some(100.0),
                        mode: model::telemetry::Mode::Client.into(),
                        ..Default::default()
                    },
                    model::Tracing {
                        disable_span_reporting: true,
                        mode: model::telemetry::Mode::Server.into(),
                        ..Default::default()
                    },
                ],
                ..telemetry("shop/t", "shop", false, "")
            },
        ]);
        let of = |ns: &str, side, provider: &str| t.traces(Some(&workload(ns, "web")), side, provider);
        let root = of("other", Side::Client, "otel");
        assert!(root.reports && root.needs.is_some());
        assert_eq!(
            (root.sampling, root.tags.len()),
            (Some(5.0), 2),
            "the tag that is not understood is left out"
        );
        let shop = of("shop", Side::Client, "otel");
        assert_eq!((shop.reports, shop.sampling, shop.tags.len()), (true, Some(100.0), 2));
        assert!(!of("shop", Side::Server, "otel").reports);
        assert!(!of("shop", Side::Client, "zipkin").reports, "the root names another collector");
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
        let rules = t.metrics(None, Side::Client);
        assert!(rules.disables("istio_request_bytes") && !rules.disables("istio_requests_total"));
        let mut values = ["source", "web", "200"];
        rules.relabel("istio_requests_total", &["reporter", "source_app", "response_code"], &mut values);
        assert_eq!(values, ["edge", "", "200"], "an expression that is no constant changes nothing");
    }
}
