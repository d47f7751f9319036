//! Nodes and the workloads on them.

use mesh_api::model;

use super::Index;
use crate::{
    kube::{Labels, Pod},
    object::Name,
};

pub(super) const REGION: &str = "topology.kubernetes.io/region";
pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
const SITE: &str = "selvage.io/site";
const NETWORK: &str = "topology.istio.io/network";
const RELAY: &str = "selvage.io/relay";

impl Index {
    pub(super) fn compile_node(&self, name: &str) -> Option<model::Node> {
        let (node, registration) = (self.nodes.get(name), self.registrations.get(name));
        if node.is_none() && registration.is_none() {
            return None;
        }
        let labels = node.map(|n| n.metadata.labels.clone()).unwrap_or_default();
        let registration = registration.cloned().unwrap_or_default();
        Some(model::Node {
            name: name.to_owned(),
            peer_id: registration.peer_id,
            addresses: registration.addresses,
            locality: Some(locality(&labels)),
            relay: registration.relay || labels.get(RELAY).is_some_and(|v| v == "true"),
            nat: registration.nat,
            reservations: registration.reservations,
            labels,
            gateways: self.gateways_on(name),
        })
    }

    /// Where a node is, when anything is known about that.
    pub(super) fn locality_of(&self, node: &str) -> Option<model::Locality> {
        self.nodes.get(node).map(|n| locality(&n.metadata.labels))
    }

    pub(super) fn compile_workloads(&self, node: &str) -> Option<model::NodeWorkloads> {
        let pods = self.pods_on.get(node)?.iter().filter_map(|name| Some((name, self.pods.get(name)?)));
        let mut workloads = Vec::new();
        for (name, pod) in pods.filter(|(_, pod)| !pod.has_ended()) {
            workloads.extend(pod.addresses().into_iter().map(|a| workload(name, pod, a.to_string())));
        }
        (!workloads.is_empty()).then(|| model::NodeWorkloads { node: node.to_owned(), workloads })
    }
}

pub(super) fn locality(labels: &Labels) -> model::Locality {
    let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
    model::Locality { region: label(REGION), zone: label(ZONE), site: label(SITE), network: label(NETWORK) }
}

pub(super) fn workload(name: &Name, pod: &Pod, address: String) -> model::Workload {
    model::Workload {
        address,
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        owner: pod.owner(&name.name),
        labels: pod.metadata.labels.clone(),
        service_account: pod.service_account().to_owned(),
        host_network: pod.spec.host_network,
    }
}
