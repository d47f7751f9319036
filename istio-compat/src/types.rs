//! Istio's resources, field by field. Nothing is resolved or defaulted here: a value says exactly what the user wrote,
//! so that validation can name it and nothing is lost.

mod common;
mod destination_rule;
mod extensions;
mod gateway;
mod http_actions;
mod load_balancer;
mod security;
mod service_entry;
mod sidecar;
mod telemetry;
mod virtual_service;

use std::{collections::BTreeMap, sync::LazyLock};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

pub use common::*;
pub use destination_rule::*;
pub use extensions::*;
pub use gateway::*;
pub use http_actions::*;
pub use load_balancer::*;
pub use security::*;
pub use service_entry::*;
pub use sidecar::*;
pub use telemetry::*;
pub use virtual_service::*;

/// API versions of most of the networking group, storage version first.
pub const NETWORKING_VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha3"];
/// The API group of VirtualService and DestinationRule.
pub const NETWORKING_GROUP: &str = "networking.istio.io";
/// The API group of policies for access.
pub const SECURITY_GROUP: &str = "security.istio.io";
/// The API group of Telemetry.
pub const TELEMETRY_GROUP: &str = "telemetry.istio.io";
/// The API group of WasmPlugin.
pub const EXTENSIONS_GROUP: &str = "extensions.istio.io";

/// The parts of object metadata that decide anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Object name.
    pub name: String,
    /// Namespace; `default` when the object has none.
    pub namespace: String,
    /// RFC 3339 in UTC, as the API server writes it; orders rules that compete for a host. Empty sorts first.
    pub creation_timestamp: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Generation, for status.
    pub generation: i64,
}

impl Meta {
    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The order in which Istio considers objects: oldest first, ties by name, then namespace.
    pub fn age_order(&self) -> (&str, &str, &str) {
        (&self.creation_timestamp, &self.name, &self.namespace)
    }
}

/// An object: metadata and spec.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Object<S> {
    /// Metadata.
    pub meta: Meta,
    /// What the user asks for.
    pub spec: S,
}

/// What is known of a kind beside its fields.
pub struct KindInfo {
    /// As in manifests.
    pub kind: &'static str,
    /// API group.
    pub group: &'static str,
    /// API versions, storage version first.
    pub versions: &'static [&'static str],
    /// In URLs.
    pub plural: &'static str,
    /// For kubectl.
    pub short: &'static [&'static str],
    /// Columns of kubectl: name, path, description.
    pub columns: &'static [(&'static str, &'static str, &'static str)],
    /// Structural schema of the spec.
    pub(crate) schema: fn() -> &'static Value,
    pub(crate) read: fn(Meta, Value) -> Result<Resource, serde_json::Error>,
}

fn object<S: DeserializeOwned>(meta: Meta, spec: Value) -> Result<Object<S>, serde_json::Error> {
    Ok(Object { meta, spec: serde_json::from_value(spec)? })
}

/// The enum of all kinds, what is known of each, and the way from one to the other.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident($spec:ty) in $group:expr, $versions:expr, $plural:literal, $short:expr, $columns:expr;)*) => {
        $($(#[$doc])* pub type $kind = Object<$spec>;)*

        /// Any resource that this crate understands.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(clippy::large_enum_variant, reason = "one per applied object, moved once into the index")]
        pub enum Resource {
            $($(#[$doc])* $kind($kind),)*
        }

        impl Resource {
            /// The object's kind as Kubernetes spells it.
            pub const fn kind(&self) -> &'static str {
                match self {
                    $(Self::$kind(_) => stringify!($kind),)*
                }
            }

            /// The object's metadata.
            pub const fn meta(&self) -> &Meta {
                match self {
                    $(Self::$kind(o) => &o.meta,)*
                }
            }
        }

        /// All kinds, ordered by name.
        pub static KINDS: &[KindInfo] = &[
            $(KindInfo {
                kind: stringify!($kind),
                group: $group,
                versions: $versions,
                plural: $plural,
                short: $short,
                columns: $columns,
                schema: || {
                    static SCHEMA: LazyLock<Value> = LazyLock::new(crate::schema::structural::<$spec>);
                    &SCHEMA
                },
                read: |meta, spec| Ok(Resource::$kind(object(meta, spec)?)),
            },)*
        ];
    };
}

kinds! {
    /// Who may call what.
    AuthorizationPolicy(AuthorizationPolicySpec) in SECURITY_GROUP, &["v1", "v1beta1"], "authorizationpolicies", &["ap"],
        &[("Action", ".spec.action", "What happens when a rule matches")];
    /// Policy towards a destination.
    DestinationRule(DestinationRuleSpec) in NETWORKING_GROUP, &NETWORKING_VERSIONS, "destinationrules", &["dr"],
        &[("Host", ".spec.host", "Host that this policy is for")];
    /// Patches to Envoy's configuration.
    EnvoyFilter(EnvoyFilterSpec) in NETWORKING_GROUP, &["v1alpha3"], "envoyfilters", &[], &[];
    /// Listeners of gateway workloads.
    Gateway(GatewaySpec) in NETWORKING_GROUP, &NETWORKING_VERSIONS, "gateways", &["gw"], &[];
    /// Whether workloads accept plaintext.
    PeerAuthentication(PeerAuthenticationSpec) in SECURITY_GROUP, &["v1", "v1beta1"], "peerauthentications", &["pa"],
        &[("Mode", ".spec.mtls.mode", "Whether plaintext is accepted")];
    /// Settings of proxies.
    ProxyConfig(ProxyConfigSpec) in NETWORKING_GROUP, &["v1beta1"], "proxyconfigs", &[], &[];
    /// Tokens that requests may carry.
    RequestAuthentication(RequestAuthenticationSpec) in SECURITY_GROUP, &["v1", "v1beta1"], "requestauthentications", &["ra"], &[];
    /// A service that Kubernetes does not know.
    ServiceEntry(ServiceEntrySpec) in NETWORKING_GROUP, &NETWORKING_VERSIONS, "serviceentries", &["se"],
        &[("Hosts", ".spec.hosts", "Names of the service"), ("Location", ".spec.location", "Inside or outside of the mesh"),
          ("Resolution", ".spec.resolution", "How addresses are found")];
    /// What workloads may call.
    Sidecar(SidecarSpec) in NETWORKING_GROUP, &NETWORKING_VERSIONS, "sidecars", &[], &[];
    /// What is measured, logged and traced.
    Telemetry(TelemetrySpec) in TELEMETRY_GROUP, &["v1", "v1alpha1"], "telemetries", &["telemetry"], &[];
    /// Routing of requests and connections.
    VirtualService(VirtualServiceSpec) in NETWORKING_GROUP, &NETWORKING_VERSIONS, "virtualservices", &["vs"],
        &[("Gateways", ".spec.gateways", "Gateways and sidecars that use these routes"),
          ("Hosts", ".spec.hosts", "Hosts that these routes are for")];
    /// A WebAssembly filter.
    WasmPlugin(WasmPluginSpec) in EXTENSIONS_GROUP, &["v1alpha1"], "wasmplugins", &[], &[];
    /// A workload that Kubernetes does not know.
    WorkloadEntry(WorkloadEntrySpec) in NETWORKING_GROUP, &NETWORKING_VERSIONS, "workloadentries", &["we"],
        &[("Address", ".spec.address", "Address of the workload")];
    /// A template of WorkloadEntries.
    WorkloadGroup(WorkloadGroupSpec) in NETWORKING_GROUP, &NETWORKING_VERSIONS, "workloadgroups", &["wg"], &[];
}

/// What is known of a kind.
pub fn kind_info(kind: &str) -> Option<&'static KindInfo> {
    KINDS.iter().find(|k| k.kind == kind)
}
