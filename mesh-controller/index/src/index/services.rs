//! Services with their ports, addresses and rules.

use std::net::IpAddr;

use istio_compat::{
    names,
    translate::{self, gateway::is_for_mesh},
    types::{DestinationRule, VirtualService},
};
use mesh_api::model::{self, service::Kind};

use super::Index;
use crate::{
    finding::Finding,
    kube::Service,
    object::{Name, ObjectKey},
    protocol,
};

impl Index {
    pub(super) fn compile_service(&self, host: &str) -> Option<model::Service> {
        match self.kubernetes_service(host) {
            Some((name, service)) => Some(self.registered(host, name, service)),
            None => self.external_service(host).or_else(|| self.route_only(host)),
        }
    }

    fn registered(&self, host: &str, name: &Name, service: &Service) -> model::Service {
        let stated = self.vips.of(name, service);
        let kind = if service.spec.kind == "ExternalName" {
            Kind::ExternalName
        } else if stated.is_empty() {
            Kind::Headless
        } else {
            Kind::ClusterIp
        };
        let is_own = |vip: &IpAddr| self.vips.owner(vip).is_none_or(|owner| owner == name);
        let vips: Vec<_> = stated.into_iter().filter(is_own).collect();
        let external = if kind == Kind::ExternalName { external_name(service) } else { String::new() };
        model::Service {
            host: host.to_owned(),
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            kind: kind.into(),
            vips: vips.iter().map(ToString::to_string).collect(),
            ports: service.spec.ports.iter().map(port).collect(),
            external_name: external,
            virtual_hosts: self.virtual_hosts(host, true),
            policies: self.policies_for(host, &name.namespace),
            publish_not_ready: service.spec.publish_not_ready_addresses,
            uncaptured: service.is_left_to_others(&name.namespace, &name.name),
            visible_to: self.seen_by(service, name),
            traffic_distribution: service.prefers_near(),
            ..model::Service::default()
        }
    }

    /// Client namespaces that know a service, as the model has them. One that is for nobody is for its own namespace here:
    /// its pods would not find each other otherwise.
    fn seen_by(&self, service: &Service, name: &Name) -> Vec<String> {
        let list = translate::visible_to(&service.export_to(), &name.namespace, &self.context);
        list.unwrap_or_else(|| vec![name.namespace.to_string()])
    }

    /// What is wrong with the addresses of a service.
    pub(super) fn address_conflict(&self, host: &str) -> Option<Finding> {
        let (name, service) = self.kubernetes_service(host)?;
        let vips = self.vips.of(name, service);
        let (vip, owner) =
            vips.iter().filter_map(|v| Some((v, self.vips.owner(v)?))).find(|(_, o)| *o != name)?;
        let object = ObjectKey::new(crate::Kind::Service, &name.namespace, &name.name);
        let message = format!("{vip} belongs to service {}/{} already", owner.namespace, owner.name);
        Some(Finding::error(&object, "spec.clusterIP", message))
    }

    /// A host that only rules know: a virtual host on port 80. A wildcard that covers services is no host of its own.
    fn route_only(&self, host: &str) -> Option<model::Service> {
        if !self.claims.names_exactly(host) || self.registry.covered_by(host).next().is_some() {
            return None;
        }
        let virtual_hosts = self.virtual_hosts(host, false);
        if virtual_hosts.is_empty() {
            return None;
        }
        let http =
            model::Port { number: 80, name: "http".to_owned(), protocol: model::Protocol::Http.into() };
        Some(model::Service {
            host: host.to_owned(),
            kind: Kind::RouteOnly.into(),
            ports: vec![http],
            virtual_hosts,
            ..model::Service::default()
        })
    }

    pub(super) fn virtual_hosts(&self, host: &str, registered: bool) -> Vec<model::VirtualHost> {
        let claims = self.claims.covering(host);
        let candidates: Vec<&VirtualService> = claims
            .into_iter()
            .filter_map(|name| self.virtual_services.get(name))
            .filter(|v| is_for_mesh(v))
            .collect();
        if candidates.is_empty() {
            return Vec::new();
        }
        let delegates = |namespace: &str, name: &str| self.virtual_services.get(&Name::new(namespace, name));
        translate::virtual_hosts(host, registered, &candidates, &self.context, &delegates)
    }

    pub(super) fn policies_for(&self, host: &str, namespace: &str) -> Vec<model::DestinationPolicy> {
        let rules = self.policies.covering(host);
        let candidates: Vec<&DestinationRule> =
            rules.into_iter().filter_map(|name| self.destination_rules.get(name)).collect();
        if candidates.is_empty() {
            return Vec::new();
        }
        translate::policies(host, namespace, &candidates, &self.context)
    }
}

fn port(port: &crate::kube::ServicePort) -> model::Port {
    let number = u32::from(port.port);
    let protocol = protocol::of_port(port.transport(), port.app_protocol.as_deref(), &port.name, number);
    model::Port { number, name: port.name.clone(), protocol: protocol.into() }
}

fn external_name(service: &Service) -> String {
    // A name is taken as it is: the DNS of Kubernetes does not complete it either.
    names::resolve(&format!("{}.", service.spec.external_name.trim_end_matches('.')), "", "")
}
