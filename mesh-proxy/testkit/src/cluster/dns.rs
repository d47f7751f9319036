//! The cluster's name server, as a plain cluster has it: CoreDNS behind the Service `kube-dns`.

use std::time::Duration;

use serde_json::json;

use super::{Cluster, ClusterError, images::COREDNS};
use crate::kube::eventually;

/// The Service's address, where pods look for it.
pub(super) const ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 96, 0, 10);

const COREFILE: &str = "\
.:53 {
    errors
    health
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    prometheus :9153
    cache 30
    loop
    reload
}
";

/// Runs it and waits until it answers.
pub(super) fn install(cluster: &Cluster) -> Result<(), ClusterError> {
    cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": manifests() }).to_string())?;
    let ready = || {
        let path = "jsonpath={.status.availableReplicas}";
        match cluster.kubectl(&["get", "deployment", "coredns", "-n", "kube-system", "-o", path]) {
            Ok(count) if count == "1" => Ok(()),
            Ok(count) => Err(format!("{count:?} replicas are available")),
            Err(e) => Err(e.to_string()),
        }
    };
    eventually(Duration::from_secs(120), Duration::from_millis(200), ready).map(drop).map_err(|(_, why)| {
        ClusterError::Node { node: "coredns".to_owned(), reason: format!("{why}\n{}", cluster.report()) }
    })
}

fn manifests() -> Vec<serde_json::Value> {
    let meta =
        |name: &str| json!({ "name": name, "namespace": "kube-system", "labels": { "k8s-app": "kube-dns" } });
    let select = json!({ "k8s-app": "kube-dns" });
    let rules = json!([
        { "apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"] },
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
    ]);
    let probe =
        |path: &str, port: u16| json!({ "httpGet": { "path": path, "port": port }, "periodSeconds": 1 });
    vec![
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("coredns") }),
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": "system:coredns" }, "rules": rules }),
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": { "name": "system:coredns" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns" },
            "subjects": [{ "kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system" }] }),
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("coredns"), "data": { "Corefile": COREFILE } }),
        json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta("coredns"), "spec": {
            "replicas": 1, "selector": { "matchLabels": select },
            "template": { "metadata": { "labels": select }, "spec": {
                "serviceAccountName": "coredns",
                "dnsPolicy": "Default",
                "priorityClassName": "system-cluster-critical",
                "tolerations": [{ "operator": "Exists" }],
                "containers": [{
                    "name": "coredns", "image": COREDNS, "imagePullPolicy": "IfNotPresent",
                    "args": ["-conf", "/etc/coredns/Corefile"],
                    "readinessProbe": probe("/ready", 8181),
                    "livenessProbe": { "httpGet": { "path": "/health", "port": 8080 }, "periodSeconds": 10 },
                    "volumeMounts": [{ "name": "config", "mountPath": "/etc/coredns", "readOnly": true }],
                }],
                "volumes": [{ "name": "config", "configMap": { "name": "coredns" } }],
            } },
        } }),
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": meta("kube-dns"), "spec": {
            "clusterIP": ADDRESS, "selector": select,
            "ports": [
                { "name": "dns", "port": 53, "protocol": "UDP" },
                { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
                { "name": "metrics", "port": 9153, "protocol": "TCP" },
            ],
        } }),
    ]
}
