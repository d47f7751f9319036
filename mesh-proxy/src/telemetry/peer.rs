//! The labels of one side of a call, as Istio names them.

use std::sync::Arc;

use mesh_core::{ServiceEntry, WorkloadEntry};

/// What Istio prints for a value that nobody knows.
pub(crate) const UNKNOWN: &str = "unknown";

/// One side of a call: the workload that called, or the one that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The workload: a Deployment's name, not a pod's.
    pub workload: String,
    /// Its namespace.
    pub namespace: String,
    /// Its SPIFFE identity.
    pub principal: String,
    /// Label `app`.
    pub app: String,
    /// Label `version`.
    pub version: String,
    /// Istio's canonical service name.
    pub canonical_service: String,
    /// Istio's canonical revision.
    pub canonical_revision: String,
    /// The cluster it runs in.
    pub cluster: String,
}

impl Peer {
    /// A side that the mesh knows nothing of.
    pub fn unknown() -> Self {
        let unknown = || UNKNOWN.to_owned();
        Self {
            workload: unknown(),
            namespace: unknown(),
            principal: unknown(),
            app: unknown(),
            version: unknown(),
            canonical_service: unknown(),
            canonical_revision: "latest".to_owned(),
            cluster: unknown(),
        }
    }

    /// The labels of a workload.
    pub fn of(w: &WorkloadEntry, trust_domain: &str, cluster: &str) -> Self {
        let label = |name: &str| w.labels.get(name).filter(|v| !v.is_empty()).cloned();
        let or_unknown = |v: &str| if v.is_empty() { UNKNOWN.to_owned() } else { v.to_owned() };
        let workload = or_unknown(if w.owner.is_empty() { &w.name } else { &w.owner });
        let app = label("app").or_else(|| label("app.kubernetes.io/name"));
        let version = label("version").or_else(|| label("app.kubernetes.io/version"));
        let principal =
            if w.service_account.is_empty() { UNKNOWN.to_owned() } else { w.spiffe(trust_domain) };
        Self {
            canonical_service: label("service.istio.io/canonical-name")
                .or_else(|| app.clone())
                .unwrap_or_else(|| workload.clone()),
            canonical_revision: label("service.istio.io/canonical-revision")
                .or_else(|| version.clone())
                .unwrap_or_else(|| "latest".to_owned()),
            namespace: or_unknown(&w.namespace),
            principal,
            app: app.unwrap_or_else(|| UNKNOWN.to_owned()),
            version: version.unwrap_or_else(|| UNKNOWN.to_owned()),
            cluster: or_unknown(cluster),
            workload,
        }
    }
}

/// The service that was called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Host: `reviews.default.svc.cluster.local`.
    pub host: Arc<str>,
    /// Short name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
}

impl Destination {
    /// A service of the mesh.
    pub fn of(service: &ServiceEntry) -> Self {
        Self {
            host: Arc::clone(&service.host),
            name: Arc::clone(&service.name),
            namespace: Arc::clone(&service.namespace),
        }
    }

    /// A destination that is no service of the mesh: Istio's name for it.
    pub fn passthrough() -> Self {
        let name: Arc<str> = "PassthroughCluster".into();
        Self { host: Arc::clone(&name), name, namespace: UNKNOWN.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_fall_back_as_istio_does() {
        let mut w = WorkloadEntry {
            address: "10.1.0.1".parse().unwrap(),
            node: "edge".into(),
            namespace: "default".into(),
            name: "reviews-v1-abc".into(),
            owner: "reviews-v1".into(),
            service_account: "reviews".into(),
            labels: std::collections::BTreeMap::new(),
            host_network: false,
        };
        let bare = Peer::of(&w, "cluster.local", "");
        assert_eq!(bare.workload, "reviews-v1");
        assert_eq!(bare.principal, "spiffe://cluster.local/ns/default/sa/reviews");
        assert_eq!((bare.app.as_str(), bare.canonical_service.as_str()), ("unknown", "reviews-v1"));
        assert_eq!((bare.version.as_str(), bare.canonical_revision.as_str()), ("unknown", "latest"));
        w.labels.insert("app".into(), "reviews".into());
        w.labels.insert("version".into(), "v1".into());
        let labelled = Peer::of(&w, "cluster.local", "edge");
        assert_eq!((labelled.app.as_str(), labelled.canonical_service.as_str()), ("reviews", "reviews"));
        assert_eq!((labelled.version.as_str(), labelled.canonical_revision.as_str()), ("v1", "v1"));
        assert_eq!(labelled.cluster, "edge");
    }
}
