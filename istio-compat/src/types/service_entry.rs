//! ServiceEntry, WorkloadEntry, WorkloadGroup: services and workloads that Kubernetes does not know.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Chooses workloads by label.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// Labels that a workload must all have.
    #[schemars(with = "super::common::SelectorLabels")]
    pub labels: BTreeMap<String, String>,
}

/// A service that Kubernetes does not know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["hosts"], "x-kubernetes-validations" = [
    { "rule": "(has(self.workloadSelector) ? 1 : 0) + (has(self.endpoints) ? 1 : 0) <= 1", "message": "only one of WorkloadSelector or Endpoints can be set" },
    { "rule": "!(has(self.addresses) && self.addresses.exists(k, k.contains('/')) && !(!has(self.resolution) || self.resolution == 'STATIC' || self.resolution == 'NONE'))", "message": "CIDR addresses are allowed only for NONE/STATIC resolution types" },
    { "rule": "(!has(self.resolution) || self.resolution == 'NONE') ? !has(self.endpoints) : true", "message": "NONE mode cannot set endpoints" },
    { "rule": "has(self.resolution) && self.resolution == 'DNS_ROUND_ROBIN' ? (!has(self.endpoints) || self.endpoints.size() <= 1) : true", "message": "DNS_ROUND_ROBIN mode cannot have multiple endpoints" },
]))]
pub struct ServiceEntrySpec {
    /// Names of the service.
    #[schemars(length(min = 1, max = 256))]
    pub hosts: Vec<String>,
    /// Virtual addresses or ranges.
    #[schemars(length(max = 256), inner(length(max = 64)))]
    pub addresses: Vec<String>,
    /// Ports.
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"], "x-kubernetes-validations" = [
        { "rule": "self.all(l1, self.exists_one(l2, l1.number == l2.number))", "message": "port number cannot be duplicated" },
    ]))]
    pub ports: Vec<ServicePort>,
    /// Inside or outside of the mesh.
    pub location: Option<ServiceLocation>,
    /// How addresses are found.
    pub resolution: Option<ServiceResolution>,
    /// Endpoints.
    #[schemars(length(max = 4096))]
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// Chooses pods and WorkloadEntries as endpoints.
    pub workload_selector: Option<LabelSelector>,
    /// Namespaces that may use the service: `.`, `*`, `~` or names.
    pub export_to: Vec<String>,
    /// Names of which the server must show one.
    pub subject_alt_names: Vec<String>,
}

/// A port of a service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["number", "name"]))]
pub struct ServicePort {
    /// Number.
    #[schemars(with = "super::common::PortNumber")]
    pub number: u32,
    /// HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS and others.
    #[schemars(length(max = 256))]
    pub protocol: String,
    /// Name.
    #[schemars(length(max = 256))]
    pub name: String,
    /// Port at the endpoint.
    #[schemars(with = "super::common::PortNumber")]
    pub target_port: u32,
}

/// Inside or outside of the mesh.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServiceLocation {
    /// Outside.
    #[default]
    MeshExternal,
    /// Inside.
    MeshInternal,
}

/// How addresses are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServiceResolution {
    /// The address that the client called.
    #[default]
    None,
    /// The addresses of the endpoints.
    Static,
    /// All addresses of the endpoints' names.
    Dns,
    /// One address of the endpoint's name.
    DnsRoundRobin,
    /// The name that the request asks for.
    DynamicDns,
}

/// A workload that Kubernetes does not know, or an endpoint of a service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "has(self.address) || has(self.network)", "message": "Address is required" },
    { "rule": "(has(self.address) && self.address.startsWith('unix://')) ? (!has(self.ports) || self.ports.size() == 0) : true", "message": "UDS may not include ports" },
]))]
pub struct WorkloadEntrySpec {
    /// IP address, name, or `unix://` socket.
    #[schemars(length(max = 256), extend("x-kubernetes-validations" = [
        { "rule": "self.startsWith('unix://') ? (self.substring(7, 8) == '/' || self.substring(7, 8) == '@') : true", "message": "UDS must be an absolute path or abstract socket" },
        { "rule": "self.startsWith('unix://') ? !self.endsWith('/') : true", "message": "UDS may not be a dir" },
    ]))]
    pub address: String,
    /// Port by name of the service's port.
    #[schemars(with = "super::common::PortMap")]
    pub ports: BTreeMap<String, u32>,
    /// Labels.
    #[schemars(length(max = 256))]
    pub labels: BTreeMap<String, String>,
    /// Network that the address is in.
    #[schemars(length(max = 2048))]
    pub network: String,
    /// `region/zone/sub-zone`
    #[schemars(length(max = 2048))]
    pub locality: String,
    /// Share among the endpoints.
    pub weight: u32,
    /// Service account.
    #[schemars(length(max = 253))]
    pub service_account: String,
}

/// A template of WorkloadEntries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["template"]))]
pub struct WorkloadGroupSpec {
    /// Metadata of the entries.
    pub metadata: Option<GroupMetadata>,
    /// Content of the entries.
    pub template: Option<WorkloadTemplate>,
    /// Health check.
    pub probe: Option<ReadinessProbe>,
}

/// Metadata of entries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupMetadata {
    /// Labels.
    #[schemars(length(max = 256))]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[schemars(length(max = 256))]
    pub annotations: BTreeMap<String, String>,
}

/// As a WorkloadEntry, without rules for the address.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadTemplate {
    /// IP address, name, or `unix://` socket.
    #[schemars(length(max = 256))]
    pub address: String,
    /// Port by name of the service's port.
    #[schemars(with = "super::common::PortMap")]
    pub ports: BTreeMap<String, u32>,
    /// Labels.
    #[schemars(length(max = 256))]
    pub labels: BTreeMap<String, String>,
    /// Network that the address is in.
    #[schemars(length(max = 2048))]
    pub network: String,
    /// `region/zone/sub-zone`
    #[schemars(length(max = 2048))]
    pub locality: String,
    /// Share among the endpoints.
    pub weight: u32,
    /// Service account.
    #[schemars(length(max = 253))]
    pub service_account: String,
}

/// A health check.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-one-of" = [["httpGet", "tcpSocket", "exec", "grpc"]]))]
pub struct ReadinessProbe {
    /// Before the first check.
    #[schemars(range(min = 0))]
    pub initial_delay_seconds: i32,
    /// Limit for a check.
    #[schemars(range(min = 0))]
    pub timeout_seconds: i32,
    /// Between checks.
    #[schemars(range(min = 0))]
    pub period_seconds: i32,
    /// Successes in a row that make it ready.
    #[schemars(range(min = 0))]
    pub success_threshold: i32,
    /// Failures in a row that make it unready.
    #[schemars(range(min = 0))]
    pub failure_threshold: i32,
    /// By HTTP.
    pub http_get: Option<HttpProbe>,
    /// By connecting.
    pub tcp_socket: Option<TcpProbe>,
    /// By command.
    pub exec: Option<ExecProbe>,
    /// By gRPC.
    pub grpc: Option<GrpcProbe>,
}

/// A check by HTTP.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["port"]))]
pub struct HttpProbe {
    /// Path.
    pub path: String,
    /// Port.
    #[schemars(with = "super::common::PortNumber")]
    pub port: u32,
    /// Host.
    pub host: String,
    /// Scheme.
    pub scheme: String,
    /// Headers.
    pub http_headers: Vec<ProbeHeader>,
}

/// A header of a check.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProbeHeader {
    /// Name.
    #[schemars(regex(pattern = r"^[-_A-Za-z0-9]+$"))]
    pub name: String,
    /// Value.
    pub value: String,
}

/// A check by connecting.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["port"]))]
pub struct TcpProbe {
    /// Host.
    pub host: String,
    /// Port.
    #[schemars(with = "super::common::PortNumber")]
    pub port: u32,
}

/// A check by command.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["command"]))]
pub struct ExecProbe {
    /// The command.
    #[schemars(inner(length(min = 1)))]
    pub command: Vec<String>,
}

/// A check by gRPC.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcProbe {
    /// Port.
    #[schemars(with = "super::common::PortNumber")]
    pub port: u32,
    /// Service.
    pub service: String,
}
