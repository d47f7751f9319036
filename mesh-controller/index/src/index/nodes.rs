//! Nodes and the workloads on them.

use std::net::{IpAddr, SocketAddr};

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
            addresses: node
                .map(|n| stated_addresses(&n.metadata.annotations.addresses))
                .into_iter()
                .flatten()
                .chain(registration.addresses)
                .collect(),
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

/// Port of the tunnel where an address states none.
const TUNNEL: u16 = 15008;
/// More addresses than this help nobody.
const MAX_STATED: usize = 8;

/// Multiaddrs of addresses that an operator has written, separated by commas: `192.0.2.1`, `192.0.2.1:443`,
/// `relay.example.com`, or multiaddrs. What is none of these is left out.
fn stated_addresses(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
        let (kind, host, port) = match (word.parse::<IpAddr>(), word.parse::<SocketAddr>()) {
            _ if word.starts_with('/') => {
                out.push(word.to_owned());
                continue;
            }
            (Ok(ip), _) => (if ip.is_ipv4() { "ip4" } else { "ip6" }, ip.to_string(), TUNNEL),
            (_, Ok(at)) => (if at.is_ipv4() { "ip4" } else { "ip6" }, at.ip().to_string(), at.port()),
            _ => match word.split_once(':').map_or(Some((word, TUNNEL)), |(h, p)| Some((h, p.parse().ok()?)))
            {
                Some((host, port)) if is_name(host) => ("dns", host.to_owned(), port),
                _ => continue,
            },
        };
        out.push(format!("/{kind}/{host}/udp/{port}/quic-v1"));
        out.push(format!("/{kind}/{host}/tcp/{port}"));
    }
    out.truncate(MAX_STATED);
    out
}

fn is_name(host: &str) -> bool {
    host.starts_with(|c: char| c.is_ascii_alphanumeric())
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_an_operator_writes_become_multiaddrs() {
        let quic_and_tcp =
            |at: &str, port: u16| [format!("{at}/udp/{port}/quic-v1"), format!("{at}/tcp/{port}")];
        assert_eq!(stated_addresses("192.0.2.1"), quic_and_tcp("/ip4/192.0.2.1", 15008));
        assert_eq!(stated_addresses(" [2001:db8::1]:443 "), quic_and_tcp("/ip6/2001:db8::1", 443));
        assert_eq!(stated_addresses("relay.example.com:443,"), quic_and_tcp("/dns/relay.example.com", 443));
        assert_eq!(stated_addresses("/dns4/a/tcp/443/wss"), ["/dns4/a/tcp/443/wss"]);
        assert_eq!(stated_addresses("not an address, a:b, :1, ,"), [""; 0]);
        assert_eq!(stated_addresses(&"192.0.2.1,".repeat(100)).len(), MAX_STATED);
    }
}
