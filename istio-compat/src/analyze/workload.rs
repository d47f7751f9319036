//! Whether pods belong to the mesh, by Istio's labels of injection.

use serde_json::Value;

use super::world::{Labels, Object, World, list, map, text};

/// Container of the proxy.
pub(super) const PROXY: &str = "istio-proxy";
/// Label and annotation of pods.
pub(super) const INJECT: &str = "sidecar.istio.io/inject";
/// Label of namespaces.
pub(super) const INJECTION: &str = "istio-injection";
/// Label of namespaces and pods.
pub(super) const REVISION: &str = "istio.io/rev";
/// Label of namespaces without sidecars.
pub(super) const DATAPLANE: &str = "istio.io/dataplane-mode";

/// Containers and init containers of a pod's spec.
pub(super) fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    list(spec, "/containers").iter().chain(list(spec, "/initContainers"))
}

/// The image of the proxy in a pod's spec, if it has one.
pub(super) fn proxy_image(spec: &Value) -> Option<&str> {
    containers(spec).find(|c| text(c, "/name") == PROXY).map(|c| text(c, "/image")).filter(|i| !i.is_empty())
}

/// Whether a pod is in the mesh.
pub(super) fn pod_in_mesh(world: &World, pod: &Object) -> bool {
    in_mesh(world, pod.namespace(), &pod.labels(), &pod.annotations(), pod.value.get("spec"))
}

/// Whether the pods of a deployment are.
pub(super) fn deployment_in_mesh(world: &World, deployment: &Object) -> bool {
    let template = deployment.value.pointer("/spec/template").unwrap_or(&Value::Null);
    let (labels, annotations) = (map(template, "/metadata/labels"), map(template, "/metadata/annotations"));
    in_mesh(world, deployment.namespace(), &labels, &annotations, template.get("spec"))
}

fn in_mesh(
    world: &World,
    namespace: &str,
    labels: &Labels<'_>,
    annotations: &Labels<'_>,
    spec: Option<&Value>,
) -> bool {
    if spec.is_some_and(|s| proxy_image(s).is_some()) {
        return true;
    }
    match labels.get(INJECT).or_else(|| annotations.get(INJECT)) {
        Some(wanted) => *wanted == "true",
        None => world.namespace(namespace).is_some_and(|ns| ns.labels().get(INJECTION) == Some(&"enabled")),
    }
}

/// Whether a pod's traffic is taken by the node rather than by a sidecar.
pub(super) fn is_ambient_pod(pod: &Object) -> bool {
    pod.annotations().get("ambient.istio.io/redirection") == Some(&"enabled")
}

/// Whether that holds for a namespace.
pub(super) fn is_ambient_namespace(namespace: &Object) -> bool {
    let labels = namespace.labels();
    labels.get(INJECTION) != Some(&"enabled")
        && labels.get(REVISION).is_none_or(|r| r.is_empty())
        && labels.get(DATAPLANE) == Some(&"ambient")
}

/// Whether an object is a part of the control plane.
pub(super) fn is_control_plane(object: &Object) -> bool {
    let labels = object.labels();
    labels.contains_key("istio") || labels.get("release") == Some(&"istio")
}
