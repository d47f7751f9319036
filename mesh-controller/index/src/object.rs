//! Which objects the mesh reads, and the key under which each is known.

use std::{fmt, sync::Arc};

use istio_compat::gateway_api::GatewayKind;
use serde_json::Value;

/// The kinds of object that the mesh reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub enum Kind {
    /// Only known; nothing is compiled from it yet.
    Namespace,
    /// Labels give the locality.
    Node,
    /// A named set of endpoints.
    Service,
    /// The endpoints of a service.
    EndpointSlice,
    /// A workload: identity, labels, placement.
    Pod,
    /// Istio routing rules.
    VirtualService,
    /// Istio destination policy.
    DestinationRule,
    /// Keys and certificates.
    Secret,
    /// Istio listeners.
    Gateway,
    /// Istio services outside of Kubernetes.
    ServiceEntry,
    /// Istio workloads outside of Kubernetes.
    WorkloadEntry,
    /// Istio templates of those; no effect.
    WorkloadGroup,
    /// Istio scopes of calls.
    Sidecar,
    /// Istio telemetry.
    Telemetry,
    /// Istio acceptance of plaintext; no effect yet.
    PeerAuthentication,
    /// Istio tokens; no effect yet.
    RequestAuthentication,
    /// Istio access rules; no effect yet.
    AuthorizationPolicy,
    /// Patches to Envoy; refused.
    EnvoyFilter,
    /// Settings of Envoy; no effect.
    ProxyConfig,
    /// WebAssembly in Envoy; refused.
    WasmPlugin,
    /// CA certificates of backends.
    ConfigMap,
    /// Routes, listeners and policies of Gateway API.
    GatewayApi(GatewayKind),
}

impl Kind {
    /// All kinds, those that others refer to first.
    pub const ALL: [Self; 33] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::Secret,
        Self::WorkloadEntry,
        Self::ServiceEntry,
        Self::Gateway,
        Self::VirtualService,
        Self::DestinationRule,
        Self::Sidecar,
        Self::Telemetry,
        Self::WorkloadGroup,
        Self::PeerAuthentication,
        Self::RequestAuthentication,
        Self::AuthorizationPolicy,
        Self::EnvoyFilter,
        Self::ProxyConfig,
        Self::WasmPlugin,
        Self::ConfigMap,
        Self::GatewayApi(GatewayKind::ALL[0]),
        Self::GatewayApi(GatewayKind::ALL[1]),
        Self::GatewayApi(GatewayKind::ALL[2]),
        Self::GatewayApi(GatewayKind::ALL[3]),
        Self::GatewayApi(GatewayKind::ALL[4]),
        Self::GatewayApi(GatewayKind::ALL[5]),
        Self::GatewayApi(GatewayKind::ALL[6]),
        Self::GatewayApi(GatewayKind::ALL[7]),
        Self::GatewayApi(GatewayKind::ALL[8]),
        Self::GatewayApi(GatewayKind::ALL[9]),
        Self::GatewayApi(GatewayKind::ALL[10]),
        Self::GatewayApi(GatewayKind::ALL[11]),
    ];

    /// As in manifests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::Secret => "Secret",
            Self::Gateway => "Gateway",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::WorkloadGroup => "WorkloadGroup",
            Self::Sidecar => "Sidecar",
            Self::Telemetry => "Telemetry",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::EnvoyFilter => "EnvoyFilter",
            Self::ProxyConfig => "ProxyConfig",
            Self::WasmPlugin => "WasmPlugin",
            Self::ConfigMap => "ConfigMap",
            Self::GatewayApi(kind) => kind.as_str(),
        }
    }

    /// As in manifests, and different for each kind: two groups have a Gateway.
    pub const fn label(self) -> &'static str {
        match self {
            Self::GatewayApi(GatewayKind::Gateway) => "KubernetesGateway",
            other => other.as_str(),
        }
    }

    /// The API group; empty for the core group.
    pub fn group(self) -> &'static str {
        match self {
            Self::GatewayApi(kind) => kind.group(),
            Self::EndpointSlice => "discovery.k8s.io",
            other => other.of_istio().map_or("", |k| k.group),
        }
    }

    /// What is known of a kind of Istio's.
    pub fn of_istio(self) -> Option<&'static istio_compat::types::KindInfo> {
        match self {
            Self::GatewayApi(_) => None,
            other => istio_compat::types::kind_info(other.as_str()),
        }
    }

    /// Whether it comes by a CRD, and so may not be there.
    pub fn is_custom(self) -> bool {
        matches!(self, Self::GatewayApi(_)) || self.of_istio().is_some()
    }

    /// In URLs.
    pub fn plural(self) -> String {
        match (self, self.of_istio()) {
            (_, Some(info)) => info.plural.to_owned(),
            (_, None) if self.as_str().ends_with("Class") => {
                format!("{}es", self.as_str().to_ascii_lowercase())
            }
            (_, None) if self.as_str().ends_with("Policy") => {
                self.as_str().to_ascii_lowercase().replace("policy", "policies")
            }
            _ => format!("{}s", self.as_str().to_ascii_lowercase()),
        }
    }

    /// API versions that are read, newest first.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::GatewayApi(kind) => kind.versions(),
            other => other.of_istio().map_or(&["v1"], |k| k.versions),
        }
    }

    /// Whether objects of this kind belong to no namespace.
    pub const fn is_cluster_scoped(self) -> bool {
        matches!(self, Self::Namespace | Self::Node | Self::GatewayApi(GatewayKind::GatewayClass))
    }

    /// The kind of a manifest, if it is read at all.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Self::ALL
            .into_iter()
            .find(|k| k.as_str() == kind && k.group() == group && k.versions().contains(&version))
    }
}

/// Namespace and name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl Name {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for kinds that have none.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key; the namespace of cluster-scoped kinds is dropped, that of others defaults to `default`.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        let namespace = match namespace {
            _ if kind.is_cluster_scoped() => "",
            "" => "default",
            given => given,
        };
        Self { kind, namespace: namespace.into(), name: name.into() }
    }

    /// The key of a manifest; `None` when it is not of a kind that the mesh reads, or has no name.
    pub fn of(object: &Value) -> Option<Self> {
        let text = |v: Option<&Value>| v.and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind = Kind::of(&text(object.get("apiVersion")), &text(object.get("kind")))?;
        let meta = object.get("metadata")?;
        let name = text(meta.get("name"));
        (!name.is_empty()).then(|| Self::new(kind, &text(meta.get("namespace")), &name))
    }

    pub(crate) fn full_name(&self) -> Name {
        Name { namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.as_str();
        if self.namespace.is_empty() {
            write!(f, "{kind} {}", self.name)
        } else {
            write!(f, "{kind} {}/{}", self.namespace, self.name)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_come_from_manifests() {
        let key = |v: Value| ObjectKey::of(&v).map(|k| k.to_string());
        let meta = json!({"name": "a"});
        assert_eq!(
            key(json!({"apiVersion": "v1", "kind": "Service", "metadata": meta})).unwrap(),
            "Service default/a"
        );
        assert_eq!(key(json!({"apiVersion": "v1", "kind": "Node", "metadata": meta})).unwrap(), "Node a");
        for v in ["v1", "v1beta1", "v1alpha3"] {
            let api = format!("networking.istio.io/{v}");
            assert!(key(json!({"apiVersion": api, "kind": "VirtualService", "metadata": meta})).is_some());
        }
        assert_eq!(
            key(json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": meta})),
            None
        );
        assert_eq!(key(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta})), None);
        assert_eq!(key(json!({"apiVersion": "v1", "kind": "Service", "metadata": {}})), None);
        assert_eq!(key(json!("text")), None);
    }
}
