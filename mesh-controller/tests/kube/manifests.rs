//! The manifests that the cluster tests apply: our CRDs, Istio's samples or our own, and the bookshop's pods.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use mesh_testkit::kube::{KubeCluster, eventually};
use serde_json::{Value, json};

/// The project's folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The folder of third-party test data, if one is named.
pub(crate) fn vectors() -> Option<PathBuf> {
    std::env::var_os("CONFORMANCE_VECTORS").map(PathBuf::from)
}

/// Installs the CRDs as a user does, and waits until they serve.
pub(crate) fn install_crds(cluster: &KubeCluster) {
    let dir = root().join("charts/crds");
    cluster.kubectl(&["apply", "-f", dir.to_str().unwrap()]).unwrap();
    eventually(Duration::from_secs(60), Duration::from_millis(100), || {
        cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=5s"]).map(drop)
    })
    .unwrap();
}

/// The folder with the bookshop's rules: Istio's own when the vectors hold all of `names`, else ours.
pub(crate) fn rules(names: &[&str]) -> (PathBuf, &'static str) {
    let ours = root().join("examples/bookinfo/networking");
    let Some(vectors) = vectors() else { return (ours, "our examples") };
    let theirs = vectors.join("samples/bookinfo/networking");
    match names.iter().find(|n| !theirs.join(n).exists()) {
        None => (theirs, "Istio's samples"),
        Some(missing) => {
            println!("{missing} is not in {}: our own examples are used", theirs.display());
            (ours, "our examples")
        }
    }
}

/// A pod of the bookshop.
pub(crate) struct Pod<'a> {
    pub(crate) app: &'a str,
    pub(crate) version: &'a str,
    pub(crate) node: &'a str,
    pub(crate) address: IpAddr,
    pub(crate) host: IpAddr,
}

impl Pod<'_> {
    pub(crate) fn name(&self) -> String {
        format!("{}-{}", self.app, self.version)
    }

    fn manifest(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": self.name(), "labels": { "app": self.app, "version": self.version } },
            "spec": {
                "nodeName": self.node,
                "serviceAccountName": format!("bookinfo-{}", self.app),
                "containers": [{ "name": self.app, "image": "selvage/echo", "ports": [{ "containerPort": 9080 }] }],
            },
        })
    }
}

/// Applies nodes, the bookshop's services and its pods, and plays the kubelet: pods get their addresses and are ready.
/// Returns when the real controller has made the EndpointSlices.
pub(crate) fn apply_bookshop(cluster: &KubeCluster, nodes: &[(&str, &str)], pods: &[Pod<'_>]) {
    let nodes: Vec<Value> = nodes
        .iter()
        .map(|(name, zone)| {
            json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name,
                "labels": { "topology.kubernetes.io/region": "test", "topology.kubernetes.io/zone": zone } } })
        })
        .collect();
    apply_list(cluster, nodes);
    let services = root().join("examples/bookinfo/bookinfo.yaml");
    cluster.kubectl(&["apply", "-f", services.to_str().unwrap()]).unwrap();
    apply_list(cluster, pods.iter().map(Pod::manifest).collect());
    for pod in pods {
        cluster.set_pod_ready("default", &pod.name(), pod.address, pod.host).unwrap();
    }
    eventually(Duration::from_secs(20), Duration::from_millis(100), || {
        let slices = cluster.kubectl(&["get", "endpointslices", "-n", "default", "-o", "json"]).unwrap();
        match pods.iter().find(|p| !slices.contains(&format!("\"{}\"", p.address))) {
            None => Ok(()),
            Some(pod) => Err(format!("{} is in no EndpointSlice:\n{slices}", pod.name())),
        }
    })
    .unwrap();
}

/// `kubectl apply` of objects.
pub(crate) fn apply_list(cluster: &KubeCluster, items: Vec<Value>) {
    cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()).unwrap();
}
