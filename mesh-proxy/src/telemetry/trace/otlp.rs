//! Spans as OTLP says them (opentelemetry-proto 1.x, `collector/trace/v1`): only the fields that are written, with their
//! numbers. A test reads them with the official definitions.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use super::span::{Reporter, Span, Value};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

/// What the collector answers.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PartialSuccess {
    #[prost(int64, tag = "1")]
    pub(super) rejected_spans: i64,
    #[prost(string, tag = "2")]
    pub(super) error_message: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<WireSpan>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

const KIND_SERVER: i32 = 2;
const KIND_CLIENT: i32 = 3;
const STATUS_ERROR: i32 = 2;
/// The span was sampled.
const SAMPLED: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnyValue {
    #[prost(oneof = "OneValue", tags = "1, 3")]
    value: Option<OneValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum OneValue {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

fn pair(key: impl Into<String>, value: Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => OneValue::Text(text),
        Value::Number(number) => OneValue::Number(number),
    };
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }) }
}

/// The export of a batch: spans of one workload share a resource.
pub(super) fn request(batch: &[Span], node: &str) -> ExportRequest {
    let mut by_reporter: BTreeMap<&Reporter, Vec<WireSpan>> = BTreeMap::new();
    for span in batch {
        by_reporter.entry(&span.reporter).or_default().push(wire(span));
    }
    let resource_spans = by_reporter.into_iter().map(|(reporter, spans)| ResourceSpans {
        resource: Some(resource(reporter, node)),
        scope_spans: vec![ScopeSpans {
            scope: Some(Scope { name: "selvage".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }),
            spans,
        }],
    });
    ExportRequest { resource_spans: resource_spans.collect() }
}

fn resource(reporter: &Reporter, node: &str) -> Resource {
    let all = [
        ("service.name", &*reporter.service),
        ("service.namespace", &*reporter.namespace),
        ("service.version", &*reporter.revision),
        ("k8s.namespace.name", &*reporter.namespace),
        ("k8s.pod.name", &*reporter.pod),
        ("k8s.node.name", node),
        ("host.name", node),
        ("telemetry.sdk.name", "selvage"),
        ("telemetry.sdk.language", "rust"),
        ("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
    ];
    let known = all.into_iter().filter(|(_, value)| !value.is_empty());
    Resource { attributes: known.map(|(key, value)| pair(key, Value::Text(value.to_owned()))).collect() }
}

fn wire(span: &Span) -> WireSpan {
    let start = span.start.and_then(|s| s.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
    let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
    WireSpan {
        trace_id: span.ids.trace.to_be_bytes().to_vec(),
        span_id: span.ids.span.to_be_bytes().to_vec(),
        parent_span_id: span.parent.map(|p| p.to_be_bytes().to_vec()).unwrap_or_default(),
        name: span.name.clone(),
        kind: if span.server { KIND_SERVER } else { KIND_CLIENT },
        start_time_unix_nano: nanos(start),
        end_time_unix_nano: nanos(start + span.duration),
        attributes: span.attributes.iter().map(|(key, value)| pair(key.clone(), value.clone())).collect(),
        status: span.error.then_some(Status { code: STATUS_ERROR }),
        flags: SAMPLED,
    }
}
