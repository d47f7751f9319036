//! ServiceEntries and WorkloadEntries: hosts, addresses and endpoints that Kubernetes does not know.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use istio_compat::{
    translate::external,
    types::{ServiceEntry, ServicePort, ServiceResolution, WorkloadEntry, WorkloadEntrySpec},
};
use mesh_api::model;

use super::{Index, nodes};
use crate::{
    finding::Finding,
    kube::{self, IntOrString, Labels, Service},
    object::{Kind, Name, ObjectKey},
    protocol,
};

/// ServiceEntries by the host that they name.
#[derive(Debug, Default)]
pub(super) struct External {
    by_host: HashMap<Arc<str>, BTreeSet<Name>>,
    /// Namespaces beside the first that declare a host, as their addresses are kept.
    beside: HashMap<Arc<str>, BTreeSet<String>>,
}

impl External {
    fn change(&mut self, host: &str, name: &Name, present: bool) {
        if present {
            self.by_host.entry(host.into()).or_default().insert(name.clone());
        } else if let Some(set) = self.by_host.get_mut(host) {
            set.remove(name);
            if set.is_empty() {
                self.by_host.remove(host);
            }
        }
    }

    pub(super) fn hosts(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_host.keys()
    }
}

fn protocol_of(port: &ServicePort) -> model::Protocol {
    protocol::of_port(
        "TCP",
        Some(&port.protocol).filter(|p| !p.is_empty()).map(String::as_str),
        &port.name,
        port.number,
    )
}

/// The name under which the address of a host is kept: hosts have no name of their own among services. Namespaces beside
/// the first that declare it have addresses of their own.
fn address_name(host: &str, beside: Option<&str>) -> Name {
    match beside {
        None => Name::new("", host),
        Some(namespace) => Name::new("", &format!("{host}|{namespace}")),
    }
}

impl Index {
    pub(super) fn put_service_entry(&mut self, name: &Name, new: Option<ServiceEntry>) -> bool {
        if self.service_entries.get(name) == new.as_ref() {
            return false;
        }
        self.gateway_api.touch();
        let old = match &new {
            Some(object) => self.service_entries.insert(name.clone(), object.clone()),
            None => self.service_entries.remove(name),
        };
        let mut hosts = BTreeSet::new();
        for (object, present) in old.iter().map(|o| (o, false)).chain(new.iter().map(|o| (o, true))) {
            for host in external::hosts(object) {
                self.external.change(&host, name, present);
                hosts.insert(host);
            }
        }
        for host in hosts {
            self.settle_external(&host);
        }
        true
    }

    /// After a change of who names a host: whether it is known, which addresses it has, what is compiled again.
    pub(super) fn settle_external(&mut self, host: &str) {
        let by_kubernetes = self.kubernetes_service(host).is_some();
        let mut owners = self.owners(host);
        let known = by_kubernetes || !owners.is_empty();
        if by_kubernetes {
            owners.truncate(1);
        }
        let mut addresses: Vec<(Name, Vec<IpAddr>, bool)> = owners
            .iter()
            .enumerate()
            .map(|(i, makers)| {
                let beside = (i > 0).then(|| makers[0].meta.namespace.as_str());
                let stated = makers.iter().flat_map(|e| external::addresses(&e.spec)).collect();
                let allocate = external::wants_address(makers[0], host) && !by_kubernetes;
                (address_name(host, beside), stated, allocate)
            })
            .collect();
        if addresses.is_empty() {
            addresses.push((address_name(host, None), Vec::new(), false));
        }
        let now: BTreeSet<String> = owners.iter().skip(1).map(|g| g[0].meta.namespace.clone()).collect();
        let before = self.external.beside.remove(host).unwrap_or_default();
        let gone = before.difference(&now).map(|n| (address_name(host, Some(n)), Vec::new(), false));
        addresses.extend(gone);
        if !now.is_empty() {
            self.external.beside.insert(host.into(), now);
        }
        for (name, stated, allocate) in addresses {
            for other in self.vips.set_external(&name, stated, allocate) {
                let host = self.host_behind(&other);
                self.touched.services.insert(host);
            }
        }
        let changed = if known { self.registry.insert(host) } else { self.registry.remove(host) };
        if changed {
            self.touched.services.extend(self.claims.wildcards_over(host).cloned());
        }
        self.touched.services.insert(host.into());
        self.touched.endpoints.insert(host.into());
    }

    /// The host of a service, or of an address that belongs to a ServiceEntry.
    pub(super) fn host_behind(&self, name: &Name) -> Arc<str> {
        match name.namespace.is_empty() {
            true => name.name.split('|').next().unwrap_or_default().into(),
            false => self.host_of(name),
        }
    }

    /// The ServiceEntries that make a host, by namespace, the owner of the name first. A service of Kubernetes comes before
    /// all.
    pub(super) fn owners(&self, host: &str) -> Vec<Vec<&ServiceEntry>> {
        let Some(names) = self.external.by_host.get(host) else { return Vec::new() };
        external::owners(names.iter().filter_map(|n| self.service_entries.get(n)).collect(), &self.context)
    }

    /// Those of the first namespace.
    pub(super) fn makers(&self, host: &str) -> Vec<&ServiceEntry> {
        self.owners(host).into_iter().next().unwrap_or_default()
    }

    /// Whether several namespaces declare a host.
    pub(super) fn has_several_owners(&self, host: &str) -> bool {
        self.external.beside.contains_key(host) && self.kubernetes_service(host).is_none()
    }

    pub(super) fn external_service(&self, host: &str) -> Option<model::Service> {
        let owners = self.owners(host);
        let mut service = self.owned(host, owners.first()?, None)?;
        for makers in &owners[1..] {
            let other = self.owned(host, makers, Some(&makers[0].meta.namespace));
            let endpoints = self.endpoints_of(host, makers).unwrap_or_default();
            service.others.push(model::service::OtherOwner {
                service: other,
                endpoints: Some(model::Endpoints { host: host.to_owned(), endpoints }),
            });
        }
        Some(service)
    }

    /// A host as one namespace declares it.
    fn owned(&self, host: &str, makers: &[&ServiceEntry], beside: Option<&str>) -> Option<model::Service> {
        let mut service = external::service(host, makers, protocol_of, &self.context)?;
        let vips = self.vips.of_external(&address_name(host, beside));
        service.vips = vips.iter().map(ToString::to_string).collect();
        service.virtual_hosts = self.virtual_hosts(host, true);
        service.policies = self.policies_for(host, &service.namespace);
        Some(service)
    }

    /// ServiceEntries whose host belongs to another object.
    pub(super) fn shadowed(&self, host: &str) -> Option<Finding> {
        let names = self.external.by_host.get(host)?;
        let owners = self.owners(host);
        let by_kubernetes = self.kubernetes_service(host).is_some();
        let makes = |n: &&Name| {
            self.service_entries.get(*n).is_some_and(|e| {
                external::is_hidden(e, &self.context)
                    || (!by_kubernetes && owners.iter().flatten().any(|m| m.meta.key() == e.meta.key()))
            })
        };
        let loser = names.iter().find(|n| !makes(n))?;
        let object = ObjectKey::new(Kind::ServiceEntry, &loser.namespace, &loser.name);
        let own = owners.iter().find(|makers| *makers[0].meta.namespace == *loser.namespace);
        let owner = match own.and_then(|makers| makers.first()) {
            Some(owner) if !by_kubernetes => format!("ServiceEntry {}", owner.meta.key()),
            _ => "a service of Kubernetes".to_owned(),
        };
        Some(Finding::warning(&object, "spec.hosts", format!("{host} belongs to {owner} already")))
    }

    pub(super) fn external_endpoints(&self, host: &str) -> Option<Vec<model::Endpoint>> {
        self.endpoints_of(host, &self.makers(host))
    }

    /// The endpoints of a host as one namespace declares it.
    fn endpoints_of(&self, host: &str, makers: &[&ServiceEntry]) -> Option<Vec<model::Endpoint>> {
        let owner = makers.first()?;
        if matches!(
            owner.spec.resolution.unwrap_or_default(),
            ServiceResolution::None | ServiceResolution::DynamicDns
        ) {
            return None;
        }
        let mut out = Vec::new();
        for entry in makers {
            out.extend(external::endpoints(host, entry));
            if let Some(selector) = &entry.spec.workload_selector {
                self.selected(entry, &selector.labels, &mut out);
            }
        }
        for e in &mut out {
            let node = self.locality_of(&e.node);
            if let Some(place) =
                node.filter(|_| e.locality.as_ref().is_none_or(|l| l.region.is_empty() && l.zone.is_empty()))
            {
                e.locality = Some(place);
            }
        }
        Some(out)
    }

    /// Pods and WorkloadEntries of the entry's namespace that its selector chooses.
    fn selected(&self, entry: &ServiceEntry, selector: &Labels, out: &mut Vec<model::Endpoint>) {
        let namespace: Arc<str> = entry.meta.namespace.as_str().into();
        let first = Name { namespace: namespace.clone(), name: "".into() };
        let pods = self.pods.range(first.clone()..).take_while(|(n, _)| n.namespace == namespace);
        for (name, pod) in pods.filter(|(_, p)| !p.has_ended() && kube::selects(selector, &p.metadata.labels))
        {
            let Some(address) = pod.addresses().first().map(ToString::to_string) else { continue };
            let ports = entry.spec.ports.iter().map(|p| model::PortMap {
                service_port: p.number,
                target_port: if p.target_port == 0 { p.number } else { p.target_port },
            });
            let locality = self.locality_of(&pod.spec.node_name).unwrap_or_default();
            let mut workload = nodes::workload(name, pod, address.clone());
            super::endpoints::add_locality_labels(&mut workload, &locality);
            out.push(model::Endpoint {
                address,
                ports: ports.collect(),
                node: pod.spec.node_name.clone(),
                workload: Some(workload),
                ready: pod.is_ready() && !pod.is_terminating(),
                terminating: pod.is_terminating(),
                locality: Some(locality),
                ..model::Endpoint::default()
            });
        }
        for object in self.workload_entries_of(&namespace, selector) {
            out.extend(external::endpoint(&object.spec, &object.meta, &entry.spec));
        }
    }

    fn workload_entries_of<'a>(
        &'a self,
        namespace: &'a Arc<str>,
        selector: &'a Labels,
    ) -> impl Iterator<Item = &'a WorkloadEntry> {
        let first = Name { namespace: namespace.clone(), name: "".into() };
        self.workload_entries
            .range(first..)
            .take_while(move |(n, _)| n.namespace == *namespace)
            .map(|(_, w)| w)
            .filter(move |w| kube::selects(selector, &w.spec.labels))
    }

    /// WorkloadEntries that the selector of a service of Kubernetes chooses.
    pub(super) fn add_workload_entries(
        &self,
        name: &Name,
        service: &Service,
        add: &mut impl FnMut(IpAddr, model::Endpoint),
    ) {
        if service.spec.selector.is_empty() {
            return;
        }
        for object in self.workload_entries_of(&name.namespace, &service.spec.selector) {
            let Ok(address) = object.spec.address.parse::<IpAddr>() else { continue };
            let ports = service.spec.ports.iter().filter(|p| !p.is_udp()).map(|p| {
                let target = match (object.spec.ports.get(&p.name), &p.target_port) {
                    (Some(port), _) => *port,
                    (None, Some(IntOrString::Int(port))) => u32::from(*port),
                    (None, _) => u32::from(p.port),
                };
                model::PortMap { service_port: p.port.into(), target_port: target }
            });
            add(
                address,
                model::Endpoint {
                    address: address.to_string(),
                    ports: ports.collect(),
                    workload: Some(external::workload(&object.spec, &object.meta, address.to_string())),
                    ready: true,
                    locality: Some(external::locality(&object.spec)),
                    weight: object.spec.weight,
                    ..model::Endpoint::default()
                },
            );
        }
    }

    pub(super) fn put_workload_entry(&mut self, name: &Name, new: Option<WorkloadEntry>) -> bool {
        if self.workload_entries.get(name) == new.as_ref() {
            return false;
        }
        let old = match &new {
            Some(object) => self.workload_entries.insert(name.clone(), object.clone()),
            None => self.workload_entries.remove(name),
        };
        for WorkloadEntrySpec { labels, .. } in [&old, &new].into_iter().flatten().map(|o| &o.spec) {
            self.touch_selecting(&name.namespace, labels);
            let services = self.selecting(&name.namespace, labels);
            let hosts: Vec<_> = services.iter().map(|s| self.host_of(s)).collect();
            self.touched.endpoints.extend(hosts);
        }
        true
    }

    /// Hosts of ServiceEntries of a namespace whose selector takes these labels.
    pub(super) fn touch_selecting(&mut self, namespace: &Arc<str>, labels: &Labels) {
        let first = Name { namespace: namespace.clone(), name: "".into() };
        let entries = self.service_entries.range(first..).take_while(|(n, _)| n.namespace == *namespace);
        let selecting = entries.filter(|(_, e)| {
            e.spec.workload_selector.as_ref().is_some_and(|s| kube::selects(&s.labels, labels))
        });
        let hosts: Vec<Arc<str>> =
            selecting.flat_map(|(_, e)| external::hosts(e)).map(|h| h.as_str().into()).collect();
        self.touched.endpoints.extend(hosts);
    }
}
