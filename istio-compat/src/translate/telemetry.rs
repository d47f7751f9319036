//! Telemetry.

use mesh_api::model::{self, telemetry::Mode, tracing_tag::Source};

use super::Context;
use crate::types::{
    AccessLogging, CustomTag, IstioMetric, MetricsOverrides, SideMatch, TagOperation, Telemetry, Tracing,
    WorkloadMode,
};

/// A Telemetry object as nodes evaluate it. `None` for one that is for an object instead of workloads.
pub fn telemetry(object: &Telemetry, ctx: &Context) -> Option<model::Telemetry> {
    let (meta, spec) = (&object.meta, &object.spec);
    if spec.target_ref.is_some() || !spec.target_refs.is_empty() {
        return None;
    }
    let selector = spec.selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default();
    Some(model::Telemetry {
        name: meta.key(),
        namespace: meta.namespace.clone(),
        created: meta.creation_timestamp.clone(),
        mesh_default: meta.namespace == ctx.root_namespace && selector.is_empty(),
        selector,
        metrics: spec.metrics.iter().flat_map(|m| &m.overrides).map(metric).collect(),
        access_logs: spec.access_logging.iter().map(access_log).collect(),
        tracing: spec.tracing.iter().map(tracing).collect(),
    })
}

fn mode(m: Option<WorkloadMode>) -> i32 {
    match m.unwrap_or_default() {
        WorkloadMode::ClientAndServer => Mode::ClientAndServer,
        WorkloadMode::Client => Mode::Client,
        WorkloadMode::Server => Mode::Server,
    }
    .into()
}

fn side(m: Option<&SideMatch>) -> i32 {
    mode(m.and_then(|m| m.mode))
}

fn metric(o: &MetricsOverrides) -> model::MetricOverride {
    let selector = o.selector.as_ref();
    let name = match selector {
        None => String::new(),
        Some(s) => match &s.custom_metric {
            Some(custom) => custom.clone(),
            None => metric_name(s.metric.unwrap_or_default()).to_owned(),
        },
    };
    model::MetricOverride {
        metric: name,
        mode: mode(selector.and_then(|s| s.mode)),
        disabled: o.disabled == Some(true),
        enabled: o.disabled == Some(false),
        tags: o
            .tag_overrides
            .iter()
            .map(|(name, t)| model::TagOverride {
                name: name.clone(),
                remove: t.operation == Some(TagOperation::Remove),
                value: t.value.clone(),
            })
            .collect(),
    }
}

/// Empty = all.
fn metric_name(metric: IstioMetric) -> &'static str {
    match metric {
        IstioMetric::AllMetrics => "",
        IstioMetric::RequestCount => "istio_requests_total",
        IstioMetric::RequestDuration => "istio_request_duration_milliseconds",
        IstioMetric::RequestSize => "istio_request_bytes",
        IstioMetric::ResponseSize => "istio_response_bytes",
        IstioMetric::TcpOpenedConnections => "istio_tcp_connections_opened_total",
        IstioMetric::TcpClosedConnections => "istio_tcp_connections_closed_total",
        IstioMetric::TcpSentBytes => "istio_tcp_sent_bytes_total",
        IstioMetric::TcpReceivedBytes => "istio_tcp_received_bytes_total",
        IstioMetric::GrpcRequestMessages => "istio_request_messages_total",
        IstioMetric::GrpcResponseMessages => "istio_response_messages_total",
    }
}

fn access_log(a: &AccessLogging) -> model::AccessLog {
    model::AccessLog {
        mode: side(a.selector.as_ref()),
        disabled: a.disabled == Some(true),
        filter: a.filter.as_ref().map(|f| f.expression.clone()).unwrap_or_default(),
        providers: a.providers.iter().map(|p| p.name.clone()).collect(),
    }
}

fn tracing(t: &Tracing) -> model::Tracing {
    model::Tracing {
        mode: side(t.selector.as_ref()),
        providers: t.providers.iter().map(|p| p.name.clone()).collect(),
        sampling_percent: t.random_sampling_percentage,
        disable_span_reporting: t.disable_span_reporting == Some(true),
        enable_span_reporting: t.disable_span_reporting == Some(false),
        tags: t.custom_tags.iter().map(|(name, tag)| tracing_tag(name, tag)).collect(),
    }
}

fn tracing_tag(name: &str, t: &CustomTag) -> model::TracingTag {
    let named = t.environment.as_ref().or(t.header.as_ref());
    let source = match (&t.literal, &t.environment, &t.header, &t.formatter) {
        (Some(l), ..) => Some(Source::Literal(l.value.clone())),
        (_, Some(e), ..) => Some(Source::Environment(e.name.clone())),
        (_, _, Some(h), _) => Some(Source::Header(h.name.to_ascii_lowercase())),
        (.., Some(f)) => Some(Source::Formatter(f.value.clone())),
        _ => None,
    };
    model::TracingTag {
        name: name.to_owned(),
        source,
        default_value: named.map(|n| n.default_value.clone()).unwrap_or_default(),
    }
}
