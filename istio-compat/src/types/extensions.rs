//! Kinds that change Envoy itself. They are read so that it can be said that they have no effect.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{
    common::{PolicyTargetReference, WorkloadSelector},
    service_entry::LabelSelector,
    telemetry::WorkloadMode,
};

/// Any object.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AnyObject(pub serde_json::Value);

impl JsonSchema for AnyObject {
    fn schema_name() -> Cow<'static, str> {
        "AnyObject".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
    }
}

/// Patches to Envoy's configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "(has(self.workloadSelector) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1", "message": "only one of targetRefs or workloadSelector can be set" },
]))]
pub struct EnvoyFilterSpec {
    /// Workloads.
    pub workload_selector: Option<LabelSelector>,
    /// Objects instead of workloads.
    #[schemars(length(max = 16))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// The patches.
    pub config_patches: Vec<ConfigPatch>,
    /// Order among filters.
    pub priority: i32,
}

/// A patch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigPatch {
    /// What is patched.
    pub apply_to: Option<ApplyTo>,
    /// Where.
    #[serde(rename = "match")]
    pub selector: Option<PatchMatch>,
    /// How.
    pub patch: Option<Patch>,
}

/// What is patched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ApplyTo {
    /// Nothing.
    #[default]
    Invalid,
    /// A listener.
    Listener,
    /// A filter chain.
    FilterChain,
    /// A network filter.
    NetworkFilter,
    /// An HTTP filter.
    HttpFilter,
    /// A route configuration.
    RouteConfiguration,
    /// A virtual host.
    VirtualHost,
    /// A route.
    HttpRoute,
    /// A cluster.
    Cluster,
    /// An extension's configuration.
    ExtensionConfig,
    /// The bootstrap.
    Bootstrap,
    /// A listener filter.
    ListenerFilter,
}

/// Where something is patched.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-one-of" = [["listener", "routeConfiguration", "cluster", "waypoint"]], "x-kubernetes-validations" = [
    { "rule": "has(self.context) ? ((self.context == 'WAYPOINT') ? has(self.waypoint) : !has(self.waypoint)) : !has(self.waypoint)", "message": "only support waypointMatch when context is WAYPOINT" },
]))]
pub struct PatchMatch {
    /// Kind of traffic.
    pub context: Option<PatchContext>,
    /// Properties of the proxy.
    pub proxy: Option<AnyObject>,
    /// In a listener.
    pub listener: Option<AnyObject>,
    /// In a route configuration.
    pub route_configuration: Option<AnyObject>,
    /// In a cluster.
    pub cluster: Option<AnyObject>,
    /// In a waypoint.
    pub waypoint: Option<AnyObject>,
}

/// Kind of traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PatchContext {
    /// All.
    #[default]
    Any,
    /// To a workload.
    SidecarInbound,
    /// From a workload.
    SidecarOutbound,
    /// At a gateway.
    Gateway,
    /// At a waypoint.
    Waypoint,
}

/// How something is patched.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Patch {
    /// Operation.
    pub operation: Option<PatchOperation>,
    /// Value.
    pub value: Option<AnyObject>,
    /// Place among filters.
    pub filter_class: Option<FilterClass>,
}

/// Operation of a patch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PatchOperation {
    /// None.
    #[default]
    Invalid,
    /// Merge.
    Merge,
    /// Add.
    Add,
    /// Remove.
    Remove,
    /// Insert before.
    InsertBefore,
    /// Insert after.
    InsertAfter,
    /// Insert first.
    InsertFirst,
    /// Replace.
    Replace,
    /// Merge, with lists replaced.
    MergeAndReplaceList,
}

/// Place among filters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FilterClass {
    /// Any.
    #[default]
    Unspecified,
    /// With authentication.
    Authn,
    /// With authorization.
    Authz,
    /// With statistics.
    Stats,
}

/// Settings of proxies.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfigSpec {
    /// Workloads.
    pub selector: Option<WorkloadSelector>,
    /// Threads.
    #[schemars(range(min = 0), extend("x-keep-nullable" = true))]
    pub concurrency: Option<i32>,
    /// Environment.
    pub environment_variables: BTreeMap<String, String>,
    /// Image.
    pub image: Option<ProxyImage>,
}

/// Image of a proxy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyImage {
    /// Kind of image.
    pub image_type: String,
}

/// A WebAssembly filter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["url"], "x-kubernetes-validations" = [
    { "rule": "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1", "message": "only one of targetRefs or selector can be set" },
]))]
pub struct WasmPluginSpec {
    /// Workloads.
    pub selector: Option<WorkloadSelector>,
    /// An object instead of workloads.
    pub target_ref: Option<PolicyTargetReference>,
    /// Objects instead of workloads.
    #[schemars(length(max = 16))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Where the code is.
    #[schemars(length(min = 1), extend("x-kubernetes-validations" = [
        { "rule": "isURL(self) ? (url(self).getScheme() in ['', 'http', 'https', 'oci', 'file']) : (isURL('http://' + self) && url('http://' + self).getScheme() in ['', 'http', 'https', 'oci', 'file'])", "message": "url must have schema one of [http, https, file, oci]" },
    ]))]
    pub url: String,
    /// Checksum.
    #[schemars(regex(pattern = r"(^$|^[a-f0-9]{64}$)"))]
    pub sha256: String,
    /// When the image is pulled.
    pub image_pull_policy: Option<PullPolicy>,
    /// Secret for pulling.
    #[schemars(length(min = 1, max = 253))]
    pub image_pull_secret: Option<String>,
    /// Key for verifying.
    pub verification_key: String,
    /// Configuration.
    pub plugin_config: Option<AnyObject>,
    /// Name.
    #[schemars(length(min = 1, max = 256))]
    pub plugin_name: Option<String>,
    /// Place among filters.
    pub phase: Option<PluginPhase>,
    /// Order within the place.
    #[schemars(extend("x-keep-nullable" = true))]
    pub priority: Option<i32>,
    /// What happens when it fails.
    pub fail_strategy: Option<FailStrategy>,
    /// Settings of the machine.
    pub vm_config: Option<VmConfig>,
    /// Which traffic.
    #[serde(rename = "match")]
    pub selectors: Vec<TrafficSelector>,
    /// Kind of filter.
    #[serde(rename = "type")]
    pub plugin_type: Option<PluginType>,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// As Kubernetes does.
    #[default]
    #[serde(rename = "UNSPECIFIED_POLICY")]
    Unspecified,
    /// When it is not there.
    IfNotPresent,
    /// Always.
    Always,
}

/// Place among filters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PluginPhase {
    /// At the end.
    #[default]
    UnspecifiedPhase,
    /// Before authentication.
    Authn,
    /// Before authorization.
    Authz,
    /// Before statistics.
    Stats,
}

/// What happens when a filter fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FailStrategy {
    /// Requests fail.
    #[default]
    FailClose,
    /// Requests pass.
    FailOpen,
    /// It is loaded again.
    FailReload,
}

/// Kind of filter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PluginType {
    /// HTTP.
    #[default]
    UnspecifiedPluginType,
    /// HTTP.
    Http,
    /// Bytes.
    Network,
}

/// Settings of the machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VmConfig {
    /// Environment.
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<EnvVar>,
}

/// An environment variable.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["name"]))]
pub struct EnvVar {
    /// Name.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// Where the value comes from.
    pub value_from: Option<EnvValueSource>,
    /// Value.
    #[schemars(length(max = 2048))]
    pub value: String,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EnvValueSource {
    /// Written here.
    #[default]
    Inline,
    /// From the proxy's environment.
    Host,
}

/// Which traffic.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficSelector {
    /// Client, server or both.
    pub mode: Option<WorkloadMode>,
    /// Ports.
    pub ports: Vec<SelectedPort>,
}

/// A port.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-required" = ["number"]))]
pub struct SelectedPort {
    /// Number.
    #[schemars(range(min = 1, max = 65535))]
    pub number: u32,
}
