//! Kubernetes objects for a world: what an API server, a scheduler and a kubelet would have written.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::App;
use crate::lab::{Kind, LabError, World};

/// The documents of a manifest.
///
/// # Errors
/// When it is not YAML.
pub fn documents(text: &str) -> Result<Vec<Value>, LabError> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text)
        .map_err(|e| LabError::Invalid(vec![format!("a manifest is not YAML: {e}")]))?;
    Ok(all.into_iter().filter(|d| !d.is_null()).collect())
}

/// The manifest with an address for each Service that has none. The same name always gets the same address.
///
/// # Errors
/// When it is not YAML.
pub fn with_addresses(text: &str) -> Result<String, LabError> {
    let mut all = documents(text)?;
    for doc in all.iter_mut().filter(|d| d["kind"] == "Service") {
        let name = doc["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let namespace = doc["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
        let is_external = doc["spec"]["type"] == "ExternalName";
        if doc["spec"]["clusterIP"].is_null() && !is_external {
            doc["spec"]["clusterIP"] = vip(&namespace, &name).to_string().into();
        }
    }
    Ok(join(&all))
}

/// The address that a Service without one gets.
#[must_use]
pub fn vip(namespace: &str, name: &str) -> Ipv4Addr {
    // FNV-1a: spreads names over 10.96.0.0/16 without a table.
    let hash = format!("{namespace}/{name}")
        .bytes()
        .fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    let [a, b, ..] = (hash ^ (hash >> 16)).to_le_bytes();
    Ipv4Addr::new(10, 96, a, b.clamp(2, 250))
}

fn join(documents: &[Value]) -> String {
    // JSON is YAML.
    documents.iter().map(|d| format!("---\n{d:#}\n")).collect()
}

/// A Node object for each node.
#[must_use]
pub fn nodes(world: &World) -> String {
    let nodes = world.places().values().filter(|p| p.kind == Kind::Node);
    let all: Vec<Value> = nodes
        .map(|n| {
            let site = n.site.as_deref().unwrap_or("public");
            let v6 = n.address6.filter(|_| n.address.is_unspecified()).map(|a| a.to_string());
            let address = v6.unwrap_or_else(|| n.address.to_string());
            json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": { "name": n.name, "labels": {
                    "topology.kubernetes.io/region": "lab",
                    "topology.kubernetes.io/zone": site,
                    "selvage.io/site": site,
                } },
                "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
            })
        })
        .collect();
    join(&all)
}

/// A Pod object for each pod of the world; those without an application are clients.
#[must_use]
pub fn pods(world: &World, apps: &[App]) -> String {
    let pods = world.places().values().filter(|p| p.kind == Kind::Pod);
    let all: Vec<Value> = pods
        .map(|p| {
            let app = apps.iter().find(|a| a.pod == p.name);
            let (label, version) = app.map_or((p.name.as_str(), "v1"), |a| (&a.app, &a.version));
            let ready = if app.is_none_or(|a| a.ready) { "True" } else { "False" };
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": p.name,
                    "namespace": p.namespace,
                    "labels": { "app": label, "version": version },
                },
                "spec": { "nodeName": p.node, "serviceAccountName": format!("bookinfo-{label}") },
                "status": {
                    "phase": "Running",
                    "podIP": p.address, "podIPs": [{ "ip": p.address }],
                    "conditions": [{ "type": "Ready", "status": ready }],
                },
            })
        })
        .collect();
    join(&all)
}

/// A Service of that name and ports; `ports` are (name, number, protocol).
#[must_use]
pub fn service(name: &str, app: &str, ports: &[(&str, u16, &str)]) -> String {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, port, protocol)| json!({ "name": name, "port": port, "protocol": protocol }))
        .collect();
    let doc = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "selector": { "app": app }, "ports": ports },
    });
    join(&[doc])
}

/// A headless Service whose pods have names of their own, as a StatefulSet's: `POD.NAME.default.svc…`.
///
/// # Errors
/// When there is no such pod.
pub fn headless(
    world: &World,
    name: &str,
    pods: &[&str],
    ports: &[(&str, u16, &str)],
) -> Result<String, LabError> {
    let endpoint = |pod: &&str| {
        let info = world.pod(pod)?.info();
        Ok(json!({
            "addresses": [info.address], "nodeName": info.node, "hostname": pod,
            "targetRef": { "kind": "Pod", "name": pod, "namespace": "default" },
            "conditions": { "ready": true },
        }))
    };
    let endpoints = pods.iter().map(endpoint).collect::<Result<Vec<Value>, LabError>>()?;
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, port, protocol)| json!({ "name": name, "port": port, "protocol": protocol }))
        .collect();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
        "spec": { "clusterIP": "None", "ports": ports },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-1"), "namespace": "default", "labels": { "kubernetes.io/service-name": name },
        },
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
    });
    Ok(join(&[service, slice]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_get_an_address_once() {
        let text = service("a", "a", &[("http", 80, "TCP")])
            + "---\nkind: Service\nmetadata: {name: b}\nspec: {clusterIP: None}\n---\n";
        let first = with_addresses(&text).unwrap();
        let docs = documents(&first).unwrap();
        assert_eq!(docs[0]["spec"]["clusterIP"], vip("default", "a").to_string());
        assert_eq!(docs[1]["spec"]["clusterIP"], "None");
        assert_eq!(with_addresses(&first).unwrap(), first);
        assert_ne!(vip("default", "reviews"), vip("default", "ratings"));
    }
}
