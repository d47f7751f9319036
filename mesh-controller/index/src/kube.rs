//! The parts of Kubernetes objects that the mesh reads, and nothing else: a controller holds every pod of the cluster
//! in memory.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Deserializer};
use serde_json::Value;

pub(crate) type Labels = BTreeMap<String, String>;

/// Go writes `null` for an empty list or map.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Meta {
    #[serde(deserialize_with = "nullable")]
    pub(crate) labels: Labels,
    #[serde(deserialize_with = "nullable")]
    pub(crate) owner_references: Vec<OwnerReference>,
    pub(crate) deletion_timestamp: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct OwnerReference {
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) controller: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Service {
    pub(crate) metadata: ServiceMeta,
    pub(crate) spec: ServiceSpec,
}

/// Labels by which a Service is left to others. Ours says `"false"`; the others are there or not: that of EdgeMesh, and
/// that by which Kubernetes gives a Service to another proxy than kube-proxy.
const CAPTURE: &str = "selvage.io/capture";
const OTHER_PROXY: [&str; 2] =
    ["service.edgemesh.kubeedge.io/service-proxy-name", "service.kubernetes.io/service-proxy-name"];

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceMeta {
    #[serde(deserialize_with = "nullable")]
    pub(crate) labels: Labels,
    #[serde(deserialize_with = "nullable")]
    annotations: ServiceAnnotations,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct ServiceAnnotations {
    /// The namespaces for which it is.
    #[serde(rename = "networking.istio.io/exportTo")]
    export_to: String,
    #[serde(rename = "networking.istio.io/traffic-distribution")]
    traffic_distribution: String,
}

impl Service {
    /// Whether near endpoints are preferred without further ado.
    pub(crate) fn prefers_near(&self) -> bool {
        let near = |word: &str| matches!(word, "PreferClose" | "PreferSameZone" | "PreferSameNode");
        near(&self.spec.traffic_distribution) || near(&self.metadata.annotations.traffic_distribution)
    }

    /// The namespaces for which it is, as written; empty = it does not say.
    pub(crate) fn export_to(&self) -> Vec<String> {
        let list = self.metadata.annotations.export_to.split(',').map(str::trim);
        list.filter(|n| !n.is_empty()).map(str::to_owned).collect()
    }

    /// Whether calls to its addresses are to be left alone. Without a word of its own the API server's are: the mesh must
    /// not be on the way of what it is made of.
    pub(crate) fn is_left_to_others(&self, namespace: &str, name: &str) -> bool {
        let labels = &self.metadata.labels;
        match labels.get(CAPTURE) {
            Some(word) => word == "false",
            None => {
                (namespace, name) == ("default", "kubernetes")
                    || OTHER_PROXY.iter().any(|key| labels.contains_key(*key))
            }
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceSpec {
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub(crate) kind: String,
    #[serde(rename = "clusterIP", deserialize_with = "nullable")]
    pub(crate) cluster_ip: String,
    #[serde(rename = "clusterIPs", deserialize_with = "nullable")]
    pub(crate) cluster_ips: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) ip_families: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) external_name: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) selector: Labels,
    #[serde(deserialize_with = "nullable")]
    pub(crate) ports: Vec<ServicePort>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) publish_not_ready_addresses: bool,
    #[serde(deserialize_with = "nullable")]
    traffic_distribution: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServicePort {
    #[serde(deserialize_with = "nullable")]
    pub(crate) name: String,
    pub(crate) port: u16,
    #[serde(deserialize_with = "nullable")]
    pub(crate) protocol: String,
    pub(crate) app_protocol: Option<String>,
    pub(crate) target_port: Option<IntOrString>,
}

impl ServicePort {
    pub(crate) fn transport(&self) -> &str {
        if self.protocol.is_empty() { "TCP" } else { &self.protocol }
    }

    pub(crate) fn is_udp(&self) -> bool {
        self.transport().eq_ignore_ascii_case("UDP")
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(crate) enum IntOrString {
    Int(u16),
    String(String),
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct EndpointSlice {
    pub(crate) metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    pub(crate) address_type: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) endpoints: Vec<SliceEndpoint>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) ports: Vec<SlicePort>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SliceEndpoint {
    #[serde(deserialize_with = "nullable")]
    pub(crate) addresses: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) conditions: EndpointConditions,
    #[serde(deserialize_with = "nullable")]
    pub(crate) hostname: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) node_name: String,
    pub(crate) target_ref: Option<TargetRef>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) zone: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct EndpointConditions {
    pub(crate) ready: Option<bool>,
    pub(crate) terminating: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct TargetRef {
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct SlicePort {
    #[serde(deserialize_with = "nullable")]
    pub(crate) name: String,
    pub(crate) port: Option<u16>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) protocol: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Pod {
    pub(crate) metadata: Meta,
    pub(crate) spec: PodSpec,
    #[serde(deserialize_with = "nullable")]
    pub(crate) status: PodStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    #[serde(deserialize_with = "nullable")]
    pub(crate) node_name: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) service_account_name: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) host_network: bool,
    #[serde(deserialize_with = "nullable")]
    pub(crate) hostname: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) subdomain: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) containers: Vec<Container>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Container {
    #[serde(deserialize_with = "nullable")]
    pub(crate) ports: Vec<ContainerPort>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerPort {
    #[serde(deserialize_with = "nullable")]
    pub(crate) name: String,
    pub(crate) container_port: u16,
    #[serde(deserialize_with = "nullable")]
    pub(crate) protocol: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodStatus {
    #[serde(deserialize_with = "nullable")]
    pub(crate) phase: String,
    #[serde(rename = "podIP", deserialize_with = "nullable")]
    pub(crate) pod_ip: String,
    #[serde(rename = "podIPs", deserialize_with = "nullable")]
    pub(crate) pod_ips: Vec<PodIp>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) conditions: Vec<PodCondition>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct PodIp {
    #[serde(deserialize_with = "nullable")]
    pub(crate) ip: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct PodCondition {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) status: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    pub(crate) metadata: NodeMeta,
}

/// Of annotations, which may be many and large, only what is read.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct NodeMeta {
    #[serde(deserialize_with = "nullable")]
    pub(crate) labels: Labels,
    #[serde(deserialize_with = "nullable")]
    pub(crate) annotations: NodeAnnotations,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct NodeAnnotations {
    /// Where others reach the node's tunnel, beside what the node knows by itself: IP addresses, names, multiaddrs.
    #[serde(rename = "selvage.io/addresses")]
    pub(crate) addresses: String,
}

/// Keys and certificates, PEM. Of other secrets nothing is kept.
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(from = "RawSecret")]
pub(crate) struct Secret {
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
    pub(crate) ca: Vec<u8>,
    pub(crate) crl: Vec<u8>,
}

impl Secret {
    pub(crate) fn is_empty(&self) -> bool {
        self.certificate.is_empty() && self.key.is_empty() && self.ca.is_empty()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct RawSecret {
    #[serde(deserialize_with = "nullable")]
    data: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    string_data: BTreeMap<String, String>,
}

impl From<RawSecret> for Secret {
    fn from(raw: RawSecret) -> Self {
        use base64::{Engine, engine::general_purpose::STANDARD};
        // The names of `kubectl create secret tls`, and those that Istio takes beside them.
        let get = |names: [&str; 2]| {
            names.into_iter().find_map(|name| match raw.string_data.get(name) {
                Some(text) => Some(text.clone().into_bytes()),
                None => STANDARD.decode(raw.data.get(name)?.trim()).ok(),
            })
        };
        Self {
            certificate: get(["tls.crt", "cert"]).unwrap_or_default(),
            key: get(["tls.key", "key"]).unwrap_or_default(),
            ca: get(["ca.crt", "cacert"]).unwrap_or_default(),
            crl: get(["ca.crl", "crl"]).unwrap_or_default(),
        }
    }
}

impl Pod {
    /// Addresses in order of preference, without duplicates.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let mut out = Vec::new();
        let all = std::iter::once(&self.status.pod_ip).chain(self.status.pod_ips.iter().map(|p| &p.ip));
        for ip in all.filter_map(|text| text.parse().ok()) {
            if !out.contains(&ip) {
                out.push(ip);
            }
        }
        out
    }

    /// Whether it has ended: its address may belong to another pod already.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    pub(crate) fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// The Ready condition; a hand-written pod without conditions is ready when it runs.
    pub(crate) fn is_ready(&self) -> bool {
        match self.status.conditions.iter().find(|c| c.kind == "Ready") {
            Some(ready) => ready.status == "True",
            None => matches!(self.status.phase.as_str(), "" | "Running"),
        }
    }

    pub(crate) fn container_port(&self, name: &str, transport: &str) -> Option<u16> {
        let protocol =
            |p: &ContainerPort| if p.protocol.is_empty() { "TCP".to_owned() } else { p.protocol.clone() };
        let ports = self.spec.containers.iter().flat_map(|c| &c.ports);
        ports.into_iter().find(|p| p.name == name && protocol(p) == transport).map(|p| p.container_port)
    }

    /// The name of the workload that the pod belongs to, as dashboards show it: the Deployment's rather than the
    /// ReplicaSet's, the CronJob's rather than the Job's.
    pub(crate) fn owner(&self, name: &str) -> String {
        let owners = &self.metadata.owner_references;
        let Some(owner) = owners.iter().find(|o| o.controller == Some(true)) else { return name.to_owned() };
        match owner.kind.as_str() {
            "ReplicaSet" => {
                let hash = self.metadata.labels.get("pod-template-hash");
                let stripped = hash.and_then(|h| owner.name.strip_suffix(h.as_str())?.strip_suffix('-'));
                stripped.unwrap_or(&owner.name).to_owned()
            }
            "Job" => match owner.name.rsplit_once('-') {
                // CronJobs append the scheduled minute.
                Some((cron, minute)) if minute.len() >= 8 && minute.bytes().all(|b| b.is_ascii_digit()) => {
                    cron.to_owned()
                }
                _ => owner.name.clone(),
            },
            _ => owner.name.clone(),
        }
    }

    pub(crate) fn service_account(&self) -> &str {
        if self.spec.service_account_name.is_empty() { "default" } else { &self.spec.service_account_name }
    }
}

/// Reads an object, or says which field is wrong and how.
pub(crate) fn read<'a, T: Deserialize<'a>>(object: &'a Value) -> Result<T, (String, String)> {
    serde_path_to_error::deserialize(object).map_err(|e| {
        let path = e.path().to_string();
        (if path == "." { String::new() } else { path }, e.into_inner().to_string())
    })
}

/// Whether `labels` carry everything that `selector` asks for.
pub(crate) fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_name_the_field() {
        let bad = json!({"spec": {"ports": [{"port": "http"}]}});
        let (path, reason) = read::<Service>(&bad).unwrap_err();
        assert_eq!(path, "spec.ports[0].port");
        assert!(reason.contains("invalid type"), "{reason}");
        let nulls = json!({"spec": {"selector": null, "ports": null, "clusterIPs": null}});
        assert_eq!(read::<Service>(&nulls).unwrap(), Service::default());
    }

    #[test]
    fn owners_are_what_people_deployed() {
        let pod = |kind: &str, name: &str| {
            let owner = json!([{"kind": kind, "name": name, "controller": true}]);
            let labels = json!({"pod-template-hash": "6d4f5"});
            read::<Pod>(&json!({"metadata": {"labels": labels, "ownerReferences": owner}}))
                .unwrap()
                .owner("pod-1")
        };
        assert_eq!(pod("ReplicaSet", "reviews-v1-6d4f5"), "reviews-v1");
        assert_eq!(pod("ReplicaSet", "by-hand"), "by-hand");
        assert_eq!(pod("StatefulSet", "db"), "db");
        assert_eq!(pod("Job", "backup-29012345"), "backup");
        assert_eq!(pod("Job", "once"), "once");
        assert_eq!(Pod::default().owner("pod-1"), "pod-1");
    }
}
