//! Endpoints of services: from EndpointSlices, or, where no cluster makes those, from the selector and the pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use mesh_api::model;

use super::{Index, apply::pod_of, nodes};
use crate::{
    kube::{self, EndpointSlice, IntOrString, Pod, Service, ServicePort, SliceEndpoint},
    object::Name,
};

impl Index {
    pub(super) fn compile_endpoints(&mut self, host: &Arc<str>) -> Option<model::Endpoints> {
        let endpoints = match self.kubernetes_service(host) {
            Some((name, service)) => self.endpoints(name, service),
            None => self.external_endpoints(host),
        };
        let nodes: BTreeSet<String> = endpoints.iter().flatten().map(|e| e.node.clone()).collect();
        let before = self.nodes_of.remove(host).unwrap_or_default();
        for node in before.difference(&nodes) {
            if let Some(hosts) = self.hosts_on.get_mut(node) {
                hosts.remove(host);
                if hosts.is_empty() {
                    self.hosts_on.remove(node);
                }
            }
        }
        for node in nodes.difference(&before) {
            self.hosts_on.entry(node.clone()).or_default().insert(host.clone());
        }
        if !nodes.is_empty() {
            self.nodes_of.insert(host.clone(), nodes);
        }
        Some(model::Endpoints { host: host.to_string(), endpoints: endpoints? })
    }

    pub(super) fn endpoints(&self, name: &Name, service: &Service) -> Option<Vec<model::Endpoint>> {
        if service.spec.kind == "ExternalName" {
            return None;
        }
        // By address: slices may repeat one while pods move between them. And by node: pod networks may be the same.
        let mut found: BTreeMap<(IpAddr, String), model::Endpoint> = BTreeMap::new();
        let mut add = |address: IpAddr, endpoint: model::Endpoint| match found
            .get_mut(&(address, endpoint.node.clone()))
        {
            None => {
                found.insert((address, endpoint.node.clone()), endpoint);
            }
            Some(old) => {
                for (old, new) in [(&mut old.ports, endpoint.ports), (&mut old.udp_ports, endpoint.udp_ports)]
                {
                    old.extend(new.into_iter().filter(|p| !old.contains(p)).collect::<Vec<_>>());
                }
                old.ready |= endpoint.ready;
            }
        };
        match self.slices_of.get(name) {
            Some(slices) => {
                for slice in slices.iter().filter_map(|s| self.slices.get(s)) {
                    self.add_slice(name, service, slice, &mut add);
                }
            }
            None if self.options.derive_endpoints => self.add_pods(name, service, &mut add),
            None => {}
        }
        self.add_workload_entries(name, service, &mut add);
        Some(found.into_values().collect())
    }

    fn add_slice(
        &self,
        service_name: &Name,
        service: &Service,
        slice: &EndpointSlice,
        add: &mut impl FnMut(IpAddr, model::Endpoint),
    ) {
        let ports = slice_ports(service, slice, false);
        let udp_ports = slice_ports(service, slice, true);
        for endpoint in &slice.endpoints {
            let pod_name = pod_of(endpoint, &service_name.namespace);
            let pod = pod_name.as_ref().and_then(|n| self.pods.get_key_value(n));
            // All addresses of one entry reach the same endpoint; consumers take the first.
            let Some(address) = endpoint.addresses.first().and_then(|a| a.parse::<IpAddr>().ok()) else {
                continue;
            };
            let node = node_of(endpoint, pod);
            let mut locality = self.locality_of(&node).unwrap_or_default();
            if locality.zone.is_empty() {
                locality.zone.clone_from(&endpoint.zone);
            }
            let mut workload = match pod {
                Some((name, pod)) => nodes::workload(name, pod, address.to_string()),
                None => model::Workload {
                    address: address.to_string(),
                    namespace: service_name.namespace.to_string(),
                    name: pod_name.map(|n| n.name.to_string()).unwrap_or_default(),
                    ..model::Workload::default()
                },
            };
            let mut ports = ports.clone();
            if let Some((_, pod)) = pod {
                self.map_ingress(&service_name.namespace, (&pod.metadata.labels, address), &mut ports);
            }
            add_locality_labels(&mut workload, &locality);
            let conditions = &endpoint.conditions;
            add(
                address,
                model::Endpoint {
                    address: address.to_string(),
                    ports,
                    udp_ports: udp_ports.clone(),
                    node,
                    workload: Some(workload),
                    ready: conditions.ready.unwrap_or(true),
                    terminating: conditions.terminating.unwrap_or(false),
                    hostname: endpoint.hostname.clone(),
                    locality: Some(locality),
                    weight: 0,
                    ..model::Endpoint::default()
                },
            );
        }
    }

    fn add_pods(&self, name: &Name, service: &Service, add: &mut impl FnMut(IpAddr, model::Endpoint)) {
        if service.spec.selector.is_empty() {
            return;
        }
        let vips = self.vips.of(name, service);
        let first = Name { namespace: name.namespace.clone(), name: "".into() };
        let pods = self.pods.range(first..).take_while(|(n, _)| n.namespace == name.namespace);
        let chosen =
            pods.filter(|(_, p)| !p.has_ended() && kube::selects(&service.spec.selector, &p.metadata.labels));
        for (pod_name, pod) in chosen {
            let ready = service.spec.publish_not_ready_addresses || (pod.is_ready() && !pod.is_terminating());
            let locality = self.locality_of(&pod.spec.node_name).unwrap_or_default();
            let named = pod.spec.subdomain == *name.name;
            for address in pod.addresses().into_iter().filter(|a| serves_family(service, &vips, pod, *a)) {
                let mut workload = nodes::workload(pod_name, pod, address.to_string());
                let mut ports = pod_ports(service, pod, false);
                self.map_ingress(&name.namespace, (&pod.metadata.labels, address), &mut ports);
                add_locality_labels(&mut workload, &locality);
                add(
                    address,
                    model::Endpoint {
                        address: address.to_string(),
                        ports,
                        udp_ports: pod_ports(service, pod, true),
                        node: pod.spec.node_name.clone(),
                        workload: Some(workload),
                        ready,
                        terminating: pod.is_terminating(),
                        hostname: if named { pod.spec.hostname.clone() } else { String::new() },
                        locality: Some(locality.clone()),
                        weight: 0,
                        ..model::Endpoint::default()
                    },
                );
            }
        }
    }
}

fn node_of(endpoint: &SliceEndpoint, pod: Option<(&Name, &Pod)>) -> String {
    match pod {
        Some((_, pod)) if endpoint.node_name.is_empty() => pod.spec.node_name.clone(),
        _ => endpoint.node_name.clone(),
    }
}

/// Subsets may select by where an endpoint is, as if its pod had the labels of its node.
pub(super) fn add_locality_labels(workload: &mut model::Workload, locality: &model::Locality) {
    for (key, value) in [(nodes::REGION, &locality.region), (nodes::ZONE, &locality.zone)] {
        if !value.is_empty() {
            workload.labels.entry(key.to_owned()).or_insert_with(|| value.clone());
        }
    }
}

fn slice_ports(service: &Service, slice: &EndpointSlice, udp: bool) -> Vec<model::PortMap> {
    let same = |p: &ServicePort, s: &kube::SlicePort| {
        let transport = if s.protocol.is_empty() { "TCP" } else { &s.protocol };
        p.name == s.name && p.transport() == transport
    };
    let map = |p: &ServicePort| {
        let target = slice.ports.iter().find(|s| same(p, s))?.port.unwrap_or(p.port);
        Some(model::PortMap { service_port: p.port.into(), target_port: target.into() })
    };
    service.spec.ports.iter().filter(|p| p.is_udp() == udp).filter_map(map).collect()
}

fn pod_ports(service: &Service, pod: &Pod, udp: bool) -> Vec<model::PortMap> {
    let map = |p: &ServicePort| {
        let target = match &p.target_port {
            None => p.port,
            Some(IntOrString::Int(number)) => *number,
            Some(IntOrString::String(name)) => match name.parse() {
                Ok(number) => number,
                Err(_) => pod.container_port(name, p.transport())?,
            },
        };
        Some(model::PortMap { service_port: p.port.into(), target_port: target.into() })
    };
    service.spec.ports.iter().filter(|p| p.is_udp() == udp).filter_map(map).collect()
}

/// A service has endpoints of its own address families only; without any statement, of the pod's first.
fn serves_family(service: &Service, vips: &[IpAddr], pod: &Pod, address: IpAddr) -> bool {
    let family = |a: IpAddr| if a.is_ipv6() { "IPv6" } else { "IPv4" };
    let stated = &service.spec.ip_families;
    if !stated.is_empty() {
        return stated.iter().any(|f| f == family(address));
    }
    if !vips.is_empty() {
        return vips.iter().any(|v| family(*v) == family(address));
    }
    pod.addresses().first().is_some_and(|a| family(*a) == family(address))
}
