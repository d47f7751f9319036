//! Telemetry: what is measured, logged and traced.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{Duration, PolicyTargetReference, WorkloadSelector};

/// What is measured, logged and traced.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1", "message": "only one of targetRefs or selector can be set" },
]))]
pub struct TelemetrySpec {
    /// Workloads; all of the namespace when absent.
    pub selector: Option<WorkloadSelector>,
    /// An object instead of workloads.
    pub target_ref: Option<PolicyTargetReference>,
    /// Objects instead of workloads.
    #[schemars(length(max = 16))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Traces.
    pub tracing: Vec<Tracing>,
    /// Metrics.
    pub metrics: Vec<Metrics>,
    /// Access logs.
    pub access_logging: Vec<AccessLogging>,
}

/// Traces.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Tracing {
    /// Which side.
    #[serde(rename = "match")]
    pub selector: Option<SideMatch>,
    /// Where spans go.
    pub providers: Vec<ProviderRef>,
    /// Share of requests that are traced.
    #[schemars(range(min = 0, max = 100), extend("x-keep-nullable" = true))]
    pub random_sampling_percentage: Option<f64>,
    /// No spans.
    #[schemars(extend("x-keep-nullable" = true))]
    pub disable_span_reporting: Option<bool>,
    /// Tags of spans.
    pub custom_tags: BTreeMap<String, CustomTag>,
    /// Whether the request's id decides.
    #[schemars(extend("x-keep-nullable" = true))]
    pub use_request_id_for_trace_sampling: Option<bool>,
    /// Whether Istio's own tags are set.
    #[schemars(extend("x-keep-nullable" = true))]
    pub enable_istio_tags: Option<bool>,
    /// Whether trace headers are left alone.
    #[schemars(extend("x-keep-nullable" = true))]
    pub disable_context_propagation: Option<bool>,
}

/// Which side of a call.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SideMatch {
    /// Client, server or both.
    pub mode: Option<WorkloadMode>,
}

/// Client, server or both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WorkloadMode {
    /// Both.
    #[default]
    ClientAndServer,
    /// Client.
    Client,
    /// Server.
    Server,
}

/// A provider by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["name"]))]
pub struct ProviderRef {
    /// Its name.
    #[schemars(length(min = 1))]
    pub name: String,
}

/// A tag of spans.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-one-of" = [["literal", "environment", "header", "formatter"]]))]
pub struct CustomTag {
    /// Fixed.
    pub literal: Option<Literal>,
    /// From the environment.
    pub environment: Option<NamedSource>,
    /// From a header.
    pub header: Option<NamedSource>,
    /// From a format string.
    pub formatter: Option<Literal>,
}

/// A value.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["value"]))]
pub struct Literal {
    /// The value.
    #[schemars(length(min = 1))]
    pub value: String,
}

/// A value by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["name"]))]
pub struct NamedSource {
    /// The name.
    #[schemars(length(min = 1))]
    pub name: String,
    /// When there is none.
    pub default_value: String,
}

/// Metrics.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Metrics {
    /// Where they go.
    pub providers: Vec<ProviderRef>,
    /// Changes.
    pub overrides: Vec<MetricsOverrides>,
    /// Between two reports.
    pub reporting_interval: Option<Duration>,
}

/// A change to metrics.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricsOverrides {
    /// Which.
    #[serde(rename = "match")]
    pub selector: Option<MetricSelector>,
    /// Not measured.
    #[schemars(extend("x-keep-nullable" = true))]
    pub disabled: Option<bool>,
    /// Changes to labels.
    pub tag_overrides: BTreeMap<String, TagOverride>,
}

/// Which metrics.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-one-of" = [["metric", "customMetric"]]))]
pub struct MetricSelector {
    /// One of Istio's.
    pub metric: Option<IstioMetric>,
    /// One by name.
    #[schemars(length(min = 1))]
    pub custom_metric: Option<String>,
    /// Client, server or both.
    pub mode: Option<WorkloadMode>,
}

/// Istio's metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum IstioMetric {
    /// All.
    #[default]
    AllMetrics,
    /// `istio_requests_total`
    RequestCount,
    /// `istio_request_duration_milliseconds`
    RequestDuration,
    /// `istio_request_bytes`
    RequestSize,
    /// `istio_response_bytes`
    ResponseSize,
    /// `istio_tcp_connections_opened_total`
    TcpOpenedConnections,
    /// `istio_tcp_connections_closed_total`
    TcpClosedConnections,
    /// `istio_tcp_sent_bytes_total`
    TcpSentBytes,
    /// `istio_tcp_received_bytes_total`
    TcpReceivedBytes,
    /// `istio_request_messages_total`
    GrpcRequestMessages,
    /// `istio_response_messages_total`
    GrpcResponseMessages,
}

/// A change to a label.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "((has(self.operation) ? self.operation : '') == 'UPSERT') ? ((has(self.value) ? self.value : '') != '') : true", "message": "value must be set when operation is UPSERT" },
    { "rule": "((has(self.operation) ? self.operation : '') == 'REMOVE') ? !has(self.value) : true", "message": "value must not be set when operation is REMOVE" },
]))]
pub struct TagOverride {
    /// Set or remove.
    pub operation: Option<TagOperation>,
    /// Expression.
    pub value: String,
}

/// What happens to a label.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TagOperation {
    /// Set.
    #[default]
    Upsert,
    /// Remove.
    Remove,
}

/// Access logs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessLogging {
    /// Which side.
    #[serde(rename = "match")]
    pub selector: Option<SideMatch>,
    /// Where they go.
    pub providers: Vec<ProviderRef>,
    /// None.
    #[schemars(extend("x-keep-nullable" = true))]
    pub disabled: Option<bool>,
    /// Which requests.
    pub filter: Option<AccessLogFilter>,
}

/// Which requests are logged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessLogFilter {
    /// CEL.
    pub expression: String,
}
