//! DestinationRule: how a destination is called once it has been chosen.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    common::{Duration, PortSelector, WorkloadSelector, ZeroDuration},
    load_balancer::LoadBalancerSettings,
    virtual_service::{is_false, is_zero, is_zero_i},
};

/// Policy towards one host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["host"]))]
pub struct DestinationRuleSpec {
    /// Host of a known service, or a wildcard; a short name belongs to the namespace of this object.
    pub host: String,
    /// Policy for all of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named parts of the host's endpoints.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<Subset>,
    /// Namespaces that may use the rule: `.`, `*` or names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
    /// Clients that the rule is for; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<WorkloadSelector>,
}

/// A named part of a host's endpoints.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["name"]))]
pub struct Subset {
    /// Name that routes refer to.
    pub name: String,
    /// Labels that an endpoint must all have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Policy that replaces the host's, block by block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<TrafficPolicy>,
}

/// Policy towards a host or a subset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    /// How an endpoint is chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancerSettings>,
    /// Connections and their limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPoolSettings>,
    /// When an endpoint is left out for a while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTlsSettings>,
    /// Policies of single ports; each replaces the blocks above as a whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub port_level_settings: Vec<PortTrafficPolicy>,
    /// Tunnel through an HTTP proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<TunnelSettings>,
    /// PROXY protocol header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Limit of concurrent retries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<RetryBudget>,
}

/// Policy of one port.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PortTrafficPolicy {
    /// The port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<PortSelector>,
    /// How an endpoint is chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancerSettings>,
    /// Connections and their limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPoolSettings>,
    /// When an endpoint is left out for a while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTlsSettings>,
}

/// Tunnel through an HTTP proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["targetHost", "targetPort"]))]
pub struct TunnelSettings {
    /// `CONNECT` or `POST`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// Host asked for.
    pub target_host: String,
    /// Port asked for.
    pub target_port: u32,
}

/// PROXY protocol header.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyProtocol {
    /// Header version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<ProxyProtocolVersion>,
}

/// Version of the PROXY protocol header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProxyProtocolVersion {
    /// Text.
    #[default]
    V1,
    /// Binary.
    V2,
}

/// Limit of concurrent retries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    /// Share of active requests that may be retries.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100), extend("x-keep-nullable" = true))]
    pub percent: Option<f64>,
    /// Retries that are always allowed.
    #[serde(skip_serializing_if = "is_zero")]
    pub min_retry_concurrency: u32,
    /// Window over which requests are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_interval: Option<Duration>,
}

/// Connections and their limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionPoolSettings {
    /// For every connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpSettings>,
    /// For HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSettings>,
}

/// Connection settings of every protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpSettings {
    /// Most connections.
    #[serde(skip_serializing_if = "is_zero_i")]
    pub max_connections: i32,
    /// Limit for connecting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<Duration>,
    /// Keep-alive probes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Longest life of a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connection_duration: Option<Duration>,
    /// Longest silence of a connection; zero for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<ZeroDuration>,
}

/// TCP keep-alive probes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpKeepalive {
    /// Unanswered probes that end a connection.
    #[serde(skip_serializing_if = "is_zero")]
    pub probes: u32,
    /// Silence before the first probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Duration>,
    /// Time between probes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
}

/// Connection settings of HTTP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpSettings {
    /// Most requests that wait for a connection.
    #[serde(skip_serializing_if = "is_zero_i", rename = "http1MaxPendingRequests")]
    pub http1_max_pending_requests: i32,
    /// Most requests under way.
    #[serde(skip_serializing_if = "is_zero_i", rename = "http2MaxRequests")]
    pub http2_max_requests: i32,
    /// Most requests over one connection.
    #[serde(skip_serializing_if = "is_zero_i")]
    pub max_requests_per_connection: i32,
    /// Most retries under way.
    #[serde(skip_serializing_if = "is_zero_i")]
    pub max_retries: i32,
    /// Longest time without a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// Whether HTTP/1.1 requests travel over HTTP/2.
    #[serde(skip_serializing_if = "Option::is_none", rename = "h2UpgradePolicy")]
    pub h2_upgrade_policy: Option<H2UpgradePolicy>,
    /// The client's protocol towards the endpoint.
    #[serde(skip_serializing_if = "is_false")]
    pub use_client_protocol: bool,
    /// Most streams over one HTTP/2 connection.
    #[serde(skip_serializing_if = "is_zero_i")]
    pub max_concurrent_streams: i32,
    /// HTTP/2 pings.
    #[serde(skip_serializing_if = "Option::is_none", rename = "http2KeepAlive")]
    pub http2_keep_alive: Option<ConnectionKeepalive>,
}

/// Whether HTTP/1.1 requests travel over HTTP/2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum H2UpgradePolicy {
    /// The mesh default, no.
    #[default]
    Default,
    /// No.
    DoNotUpgrade,
    /// Yes.
    Upgrade,
}

/// HTTP/2 pings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionKeepalive {
    /// Time between pings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// Wait for the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// When an endpoint is left out for a while.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierDetection {
    /// Deprecated, without effect.
    #[serde(skip_serializing_if = "is_zero_i")]
    pub consecutive_errors: i32,
    /// Count connection failures apart from answers.
    #[serde(skip_serializing_if = "is_false")]
    pub split_external_local_origin_errors: bool,
    /// Connection failures in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-keep-nullable" = true))]
    pub consecutive_local_origin_failures: Option<u32>,
    /// Gateway errors (502, 503, 504, connection failures) in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-keep-nullable" = true))]
    pub consecutive_gateway_errors: Option<u32>,
    /// 5xx answers in a row; 5 when absent, 0 for off.
    #[serde(skip_serializing_if = "Option::is_none", rename = "consecutive5xxErrors")]
    #[schemars(extend("x-keep-nullable" = true))]
    pub consecutive_5xx_errors: Option<u32>,
    /// Time between sweeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// Length of the first ejection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_ejection_time: Option<Duration>,
    /// Most endpoints left out at a time, in percent.
    #[serde(skip_serializing_if = "is_zero_i")]
    pub max_ejection_percent: i32,
    /// Below this share of healthy endpoints all are used again.
    #[serde(skip_serializing_if = "is_zero_i")]
    pub min_health_percent: i32,
    /// Status codes that count as errors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(range(min = 100, max = 599)))]
    pub outlier_detection_http_error_codes: Vec<u32>,
}

/// TLS towards a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientTlsSettings {
    /// Kind of TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<TlsMode>,
    /// File with the client's certificate.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_certificate: String,
    /// File with the client's key.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub private_key: String,
    /// File with trusted certificates.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ca_certificates: String,
    /// Secret with key and certificates.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub credential_name: String,
    /// Names of which the server must show one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
    /// Server name sent.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sni: String,
    /// Accept any certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-keep-nullable" = true))]
    pub insecure_skip_verify: Option<bool>,
    /// File with revoked certificates.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ca_crl: String,
}

/// Kind of TLS towards a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// None.
    #[default]
    Disable,
    /// The server shows a certificate.
    Simple,
    /// Both sides do.
    Mutual,
    /// Both sides do, with the mesh's own.
    IstioMutual,
}
