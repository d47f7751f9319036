//! Sidecar: what workloads may call.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    destination_rule::ConnectionPoolSettings, gateway::ServerTlsSettings, service_entry::LabelSelector,
    virtual_service::Destination,
};

/// What workloads may call, and how they are called.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarSpec {
    /// Workloads; all of the namespace when absent.
    pub workload_selector: Option<LabelSelector>,
    /// Ports on which they are called.
    pub ingress: Vec<IstioIngressListener>,
    /// What they may call.
    pub egress: Vec<IstioEgressListener>,
    /// Limits for calls to them.
    pub inbound_connection_pool: Option<ConnectionPoolSettings>,
    /// What happens to calls of hosts that nobody knows.
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// A port on which workloads are called.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["port"]))]
pub struct IstioIngressListener {
    /// Port and protocol.
    pub port: Option<SidecarPort>,
    /// Address.
    pub bind: String,
    /// How traffic is captured.
    pub capture_mode: Option<CaptureMode>,
    /// Where the workload listens.
    pub default_endpoint: String,
    /// TLS.
    pub tls: Option<ServerTlsSettings>,
    /// Limits.
    pub connection_pool: Option<ConnectionPoolSettings>,
}

/// What workloads may call.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["hosts"]))]
pub struct IstioEgressListener {
    /// Port and protocol; all ports when absent.
    pub port: Option<SidecarPort>,
    /// Address.
    pub bind: String,
    /// How traffic is captured.
    pub capture_mode: Option<CaptureMode>,
    /// `namespace/name` of services.
    pub hosts: Vec<String>,
}

/// Port and protocol.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarPort {
    /// Number.
    pub number: u32,
    /// HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS and others.
    pub protocol: String,
    /// Name.
    pub name: String,
    /// Deprecated, without effect.
    pub target_port: u32,
}

/// How traffic is captured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CaptureMode {
    /// As the mesh does.
    #[default]
    Default,
    /// By the kernel.
    Iptables,
    /// Not at all.
    None,
}

/// What happens to calls of hosts that nobody knows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundTrafficPolicy {
    /// Whether they are let through.
    pub mode: Option<OutboundMode>,
    /// Where they go.
    pub egress_proxy: Option<Destination>,
}

/// Whether calls of unknown hosts are let through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    /// No.
    #[default]
    RegistryOnly,
    /// Yes.
    AllowAny,
}
