//! The snapshot that every decision reads. It never changes: a change gives a new one that shares all that it did not
//! touch, and only touched services are compiled again. A resource that cannot be used is rejected alone; what was
//! there before stays.

mod mesh;
mod vips;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use mesh_api::{Resource, ResourceType, model};

use crate::{
    dns::pods::Pods,
    endpoint::{EndpointEntry, EndpointSet, NodeEntry, WorkloadEntry},
    extras::Extras,
    service::{PortEntry, ServiceDef, ServiceEntry, ServiceKind},
    shards::Shards,
};

pub use mesh::MeshSettings;
use vips::{list, unlist};

/// One change to the mesh.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "short-lived: built, then moved into the tables")]
pub enum Change {
    /// There is this resource now.
    Set(Resource),
    /// The resource with that name is gone.
    Remove(ResourceType, String),
}

/// What a call of [`Tables::apply`] did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Hosts whose routes or endpoints are new or gone, sorted.
    pub hosts: Vec<Arc<str>>,
    /// Services whose rules were compiled.
    pub rules_compiled: usize,
    /// Services whose clusters were built.
    pub clusters_built: usize,
    /// Resources that were refused.
    pub rejected: Vec<Rejected>,
    /// The set of addresses to capture is another one.
    pub vips_changed: bool,
    /// Some node is another one.
    pub nodes_changed: bool,
    /// Some workload is another one.
    pub workloads_changed: bool,
}

/// A resource that was refused, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its type.
    pub kind: ResourceType,
    /// Its name.
    pub name: String,
    /// All reasons, with their fields.
    pub reason: String,
}

/// A service port behind a virtual address.
#[derive(Debug, Clone, Copy)]
pub struct VipMatch<'t> {
    /// The service.
    pub service: &'t Arc<ServiceEntry>,
    /// The port that was called.
    pub port: &'t PortEntry,
}

/// An endpoint that was called by its own address.
#[derive(Debug, Clone, Copy)]
pub struct EndpointMatch<'t> {
    /// A service that it belongs to.
    pub service: &'t Arc<ServiceEntry>,
    /// The service port that leads to the called port.
    pub port: &'t PortEntry,
    /// The endpoint.
    pub endpoint: &'t Arc<EndpointEntry>,
}

/// Services that have something at an address, sorted by host.
type Hosts = Arc<[Arc<str>]>;

/// The snapshot. A clone shares everything.
#[derive(Debug, Clone)]
pub struct Tables {
    mesh: Arc<MeshSettings>,
    services: Shards<Arc<str>, Arc<ServiceEntry>>,
    /// Endpoints also of hosts whose Service has not arrived.
    endpoints: Shards<Arc<str>, Arc<EndpointSet>>,
    vips: Shards<IpAddr, Hosts>,
    /// Hosts with an endpoint at that address.
    addresses: Shards<IpAddr, Hosts>,
    /// From NodeWorkloads resources.
    workloads: Shards<IpAddr, Arc<WorkloadEntry>>,
    node_workloads: Shards<Arc<str>, Arc<[Arc<WorkloadEntry>]>>,
    nodes: Shards<Arc<str>, Arc<NodeEntry>>,
    pub(crate) pods: Pods,
    pub(crate) wildcards: usize,
    pub(crate) extras: Extras,
    /// Address ranges of external services.
    ranges: Arc<[(IpNet, Arc<str>)]>,
}

impl Default for Tables {
    fn default() -> Self {
        Self::new()
    }
}

impl Tables {
    /// A mesh of nothing.
    pub fn new() -> Self {
        Self {
            mesh: Arc::default(),
            services: Shards::new(),
            endpoints: Shards::new(),
            vips: Shards::new(),
            addresses: Shards::new(),
            workloads: Shards::new(),
            node_workloads: Shards::new(),
            nodes: Shards::new(),
            pods: Pods::default(),
            wildcards: 0,
            extras: Extras::default(),
            ranges: Arc::default(),
        }
    }

    /// The snapshot with all changes made, in order, and what that took.
    pub fn apply(&self, changes: Vec<Change>) -> (Self, Applied) {
        let mut work = Work { tables: self.clone(), touched: BTreeSet::new(), applied: Applied::default() };
        for change in changes {
            match change {
                Change::Set(resource) => work.set(resource),
                Change::Remove(kind, name) => work.remove(kind, &name),
            }
        }
        work.done()
    }

    /// Mesh-wide settings.
    pub fn mesh(&self) -> &MeshSettings {
        &self.mesh
    }

    /// The service with that host (lower case, no trailing dot).
    pub fn service(&self, host: &str) -> Option<&Arc<ServiceEntry>> {
        self.services.get(host)
    }

    /// The service with that host as clients of a namespace know it.
    pub fn service_for(&self, host: &str, namespace: &str) -> Option<&Arc<ServiceEntry>> {
        let service = self.service(host)?;
        service.preferred(namespace, |_| true).or(Some(service))
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.services.iter().map(|(_, s)| s)
    }

    /// How many services there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// The node with that name.
    pub fn node(&self, name: &str) -> Option<&Arc<NodeEntry>> {
        self.nodes.get(name)
    }

    /// All nodes, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<NodeEntry>> {
        self.nodes.iter().map(|(_, n)| n)
    }

    /// Services that have this virtual address, by host.
    pub fn services_at(&self, vip: IpAddr) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        let hosts = self.vips.get(&vip).into_iter().flat_map(|h| h.iter());
        let services = hosts.filter_map(|h| self.services.get(h)).flat_map(ServiceEntry::owners);
        services.filter(move |s| s.vips.contains(&vip))
    }

    /// The service port behind a virtual address, or in a range of addresses.
    pub fn by_vip(&self, ip: IpAddr, port: u16) -> Option<VipMatch<'_>> {
        self.by_vip_for(ip, port, |_| true)
    }

    /// The same among the services that a client knows.
    pub fn by_vip_for<'t>(
        &'t self,
        ip: IpAddr,
        port: u16,
        knows: impl Fn(&ServiceEntry) -> bool,
    ) -> Option<VipMatch<'t>> {
        let at_port = |service: &'t Arc<ServiceEntry>| Some(VipMatch { service, port: service.port(port)? });
        let exact = self.services_at(ip).filter(|s| knows(s)).find_map(at_port);
        exact.or_else(|| {
            let around = self.ranges.iter().filter(|(net, _)| net.contains(&ip));
            let services = around.filter_map(|(_, h)| self.services.get(h)).flat_map(ServiceEntry::owners);
            let inside = |s: &&Arc<ServiceEntry>| s.ranges.iter().any(|net| net.contains(&ip));
            services.filter(inside).filter(|s| knows(s)).find_map(at_port)
        })
    }

    /// Whether this is a virtual address.
    pub fn is_vip(&self, ip: IpAddr) -> bool {
        self.vips.get(&ip).is_some() || self.is_pod_address(ip)
    }

    /// Every address whose traffic the mesh takes: virtual addresses, and endpoints of headless services, which are
    /// called one by one. An address may come more than once.
    pub fn vips(&self) -> impl Iterator<Item = IpAddr> {
        self.services().flat_map(|s| self.captured(s))
    }

    /// The endpoint that is called by its own address, or by the one that it has on this node. A headless service is
    /// preferred.
    pub fn endpoint_by_addr(&self, ip: IpAddr, port: u16) -> Option<EndpointMatch<'_>> {
        if self.is_pod_address(ip) {
            return self.pod_at(ip, port, false);
        }
        let mut found: Option<EndpointMatch<'_>> = None;
        for service in self.addresses.get(&ip)?.iter().filter_map(|h| self.services.get(h)) {
            let hit = service.endpoints.endpoints.iter().filter(|e| e.address == ip).find_map(|endpoint| {
                let port = service.port(endpoint.service_port(port)?)?;
                Some(EndpointMatch { service, port, endpoint })
            });
            match hit {
                Some(h) if h.service.kind == ServiceKind::Headless => return Some(h),
                Some(h) => found = found.or(Some(h)),
                None => {}
            }
        }
        found
    }

    /// Headless services that have an endpoint at that address.
    pub(crate) fn endpoint_services(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        let hosts = self.addresses.get(&ip).into_iter().flat_map(|h| h.iter());
        hosts.filter_map(|h| self.services.get(h)).filter(|s| s.kind == ServiceKind::Headless)
    }

    /// All endpoints with that address, of any service.
    pub fn endpoints_at(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<EndpointEntry>> {
        self.addresses
            .get(&ip)
            .into_iter()
            .flat_map(|h| h.iter())
            .filter_map(|h| self.endpoints.get(h))
            .flat_map(|s| s.endpoints.iter())
            .filter(move |e| e.address == ip)
    }

    /// The workload with that address: as its node's list says, else as some endpoint says.
    pub fn workload(&self, ip: IpAddr) -> Option<&Arc<WorkloadEntry>> {
        let listed = self.workloads.get(&ip);
        let own = |node: Option<&str>| node.is_some() && node == self.pods.node();
        // Pod networks of two sites may be the same: what calls from here is a pod of this node. Its own list says so;
        // only without that list all services at the address are looked through (one pod may have thousands).
        let listed_here = self.pods.node().is_some_and(|n| self.node_workloads.get(n).is_some());
        if !listed_here && !listed.is_some_and(|w| own(Some(&w.node))) {
            let here = self.endpoints_at(ip).find(|e| own(e.node.as_deref()));
            if let Some(here) = here {
                return Some(&here.workload);
            }
        }
        listed.or_else(|| self.endpoints_at(ip).next().map(|e| &e.workload))
    }

    /// The workloads of a node.
    pub fn workloads_of(&self, node: &str) -> impl Iterator<Item = &Arc<WorkloadEntry>> {
        self.node_workloads.get(node).into_iter().flat_map(|w| w.iter())
    }

    /// The node that owns an address.
    pub fn owner_of(&self, ip: IpAddr) -> Option<&Arc<str>> {
        match self.workloads.get(&ip) {
            Some(w) => Some(&w.node),
            None => self.endpoints_at(ip).find_map(|e| e.node.as_ref()),
        }
    }

    /// Whether a node owns an address. A host-network workload's address is owned by every node that lists it.
    pub fn owns(&self, node: &str, ip: IpAddr) -> bool {
        self.workloads_of(node).any(|w| w.address == ip)
            || self.endpoints_at(ip).any(|e| e.node.as_deref() == Some(node))
    }
}

/// A snapshot in the making.
struct Work {
    tables: Tables,
    touched: BTreeSet<Arc<str>>,
    applied: Applied,
}

impl Work {
    fn reject(&mut self, kind: ResourceType, name: &str, reason: String) {
        self.applied.rejected.push(Rejected { kind, name: name.to_owned(), reason });
    }

    fn set(&mut self, resource: Resource) {
        let (kind, name) = (resource.kind(), resource.name().to_owned());
        let problems = mesh_api::check(&name, &resource);
        if !problems.is_empty() {
            let text: Vec<_> = problems.iter().take(20).map(ToString::to_string).collect();
            return self.reject(kind, &name, text.join("; "));
        }
        match resource {
            Resource::MeshConfig(m) => self.set_mesh(MeshSettings::compile(&m)),
            Resource::Node(n) => {
                let node = Arc::new(NodeEntry::compile(&n));
                let old = self.tables.nodes.insert(node.name.clone(), node.clone());
                self.applied.nodes_changed |= old.is_none_or(|o| o != node);
            }
            Resource::NodeWorkloads(w) => self.set_workloads(&w),
            Resource::Service(s) => match ServiceDef::compile(&s) {
                Ok(def) => self.set_service(Arc::new(def)),
                Err(e) => self.reject(kind, &name, e.to_string()),
            },
            Resource::Endpoints(e) => {
                let set = Arc::new(EndpointSet::compile(&e, &|ip| self.tables.workload(ip)));
                let host: Arc<str> = e.host.as_str().into();
                self.set_endpoints(&host, Some(set));
            }
            other => {
                if let Err(e) = self.tables.extras.set(other) {
                    self.reject(kind, &name, e.to_string());
                }
            }
        }
    }

    fn remove(&mut self, kind: ResourceType, name: &str) {
        match kind {
            ResourceType::MeshConfig => self.set_mesh(MeshSettings::default()),
            ResourceType::Node => self.applied.nodes_changed |= self.tables.nodes.remove(name).is_some(),
            ResourceType::NodeWorkloads => self.drop_workloads(name),
            ResourceType::Service => {
                if let Some(old) = self.tables.services.remove(name) {
                    self.unlist_vips(&old);
                    self.set_ranges(&old.host, &[]);
                    self.tables.wildcards -= usize::from(old.host.starts_with('*'));
                    self.applied.vips_changed |= self.tables.captured(&old).next().is_some();
                    self.tables.pods.follow(&old.host, None);
                    self.touched.remove(name);
                    self.applied.hosts.push(old.host.clone());
                }
            }
            ResourceType::Endpoints => self.set_endpoints(&Arc::from(name), None),
            other => self.tables.extras.remove(other, name),
        }
    }

    fn set_service(&mut self, def: Arc<ServiceDef>) {
        self.applied.rules_compiled += 1;
        let host = def.host.clone();
        let old = self.tables.services.get(&*host).cloned();
        let same_vips = old.as_ref().is_some_and(|o| {
            let ports = |d: &ServiceDef| d.udp_ports().map(|p| p.number).collect::<Vec<_>>();
            o.all_vips().eq(def.all_vips())
                && o.kind == def.kind
                && o.uncaptured == def.uncaptured
                && ports(o) == ports(&def)
        });
        if !same_vips {
            self.applied.vips_changed = true;
            if let Some(o) = &old {
                self.unlist_vips(o);
            }
            for vip in def.all_vips() {
                list(&mut self.tables.vips, vip, &host);
            }
        }
        let ranges = def.all_ranges();
        if old.as_ref().is_some_and(|o| !o.all_ranges().is_empty()) || !ranges.is_empty() {
            self.set_ranges(&host, &ranges);
        }
        if old.is_none() && host.starts_with('*') {
            self.tables.wildcards += 1;
        }
        // Clusters are built once, when all changes are known.
        let endpoints = old.as_ref().map(|o| o.endpoints.clone()).unwrap_or_default();
        let entry = ServiceEntry::staged(def, endpoints, old.as_deref());
        self.tables.services.insert(host.clone(), Arc::new(entry));
        self.touched.insert(host);
    }

    /// The longest prefix first.
    fn set_ranges(&mut self, host: &Arc<str>, ranges: &[IpNet]) {
        let mut all: Vec<_> = self.tables.ranges.iter().filter(|(_, h)| h != host).cloned().collect();
        all.extend(ranges.iter().map(|r| (*r, host.clone())));
        all.sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
        self.tables.ranges = all.into();
    }

    fn unlist_vips(&mut self, old: &ServiceEntry) {
        for vip in old.all_vips() {
            unlist(&mut self.tables.vips, vip, &old.host);
        }
    }

    fn set_endpoints(&mut self, host: &Arc<str>, set: Option<Arc<EndpointSet>>) {
        let old = match &set {
            Some(s) => self.tables.endpoints.insert(host.clone(), s.clone()),
            None => self.tables.endpoints.remove(&**host),
        };
        if old == set {
            return;
        }
        let addresses = |s: &Option<Arc<EndpointSet>>| -> BTreeSet<IpAddr> {
            s.iter().flat_map(|s| s.endpoints.iter()).map(|e| e.address).collect()
        };
        let (before, after) = (addresses(&old), addresses(&set));
        for ip in before.difference(&after) {
            unlist(&mut self.tables.addresses, *ip, host);
        }
        for ip in after.difference(&before) {
            list(&mut self.tables.addresses, *ip, host);
        }
        let headless = self.tables.services.get(&**host).is_some_and(|s| s.kind == ServiceKind::Headless);
        self.applied.vips_changed |= headless && before != after;
        self.applied.workloads_changed = true;
        self.touched.insert(host.clone());
    }

    fn set_workloads(&mut self, m: &model::NodeWorkloads) {
        let node: Arc<str> = m.node.as_str().into();
        let compile = |w: &model::Workload| {
            let new = WorkloadEntry::compile(w.address.parse().ok()?, &node, w);
            // Endpoints know most workloads already.
            let known =
                self.tables.endpoints_at(new.address).map(|e| &e.workload).find(|w| ***w == new).cloned();
            Some(known.unwrap_or_else(|| Arc::new(new)))
        };
        let new: Arc<[Arc<WorkloadEntry>]> = m.workloads.iter().filter_map(compile).collect();
        if self.tables.node_workloads.get(&*node).is_some_and(|old| *old == new) {
            return;
        }
        self.drop_workloads(&node);
        self.applied.workloads_changed = true;
        let own: Option<Arc<str>> = self.tables.pods.node().map(Arc::from);
        let own = own.as_deref();
        for w in new.iter() {
            // Several host-network pods share an address: the first one speaks for it.
            let taken = self
                .tables
                .workloads
                .get(&w.address)
                .is_some_and(|o| o.node == w.node || Some(&*o.node) == own);
            if !taken {
                self.tables.workloads.insert(w.address, w.clone());
            }
        }
        self.tables.node_workloads.insert(node, new);
    }

    fn drop_workloads(&mut self, node: &str) {
        let Some(old) = self.tables.node_workloads.remove(node) else { return };
        self.applied.workloads_changed = true;
        for w in old.iter() {
            if self.tables.workloads.get(&w.address).is_some_and(|o| *o.node == *node) {
                self.tables.workloads.remove(&w.address);
            }
        }
    }

    fn done(mut self) -> (Tables, Applied) {
        let touched = std::mem::take(&mut self.touched);
        for host in touched {
            if let Some(entry) = self.tables.services.get(&*host) {
                let endpoints = self.tables.endpoints.get(&*host).cloned().unwrap_or_default();
                let headless = entry.kind == ServiceKind::Headless;
                self.applied.vips_changed |= headless && entry.endpoints != endpoints;
                let defaults = &self.tables.mesh.defaults;
                let new = ServiceEntry::build(entry.def.clone(), endpoints, Some(entry), defaults);
                self.applied.vips_changed |= self.tables.pods.follow(&host, Some(&new));
                self.tables.services.insert(host.clone(), Arc::new(new));
                self.applied.clusters_built += 1;
            }
            self.applied.hosts.push(host);
        }
        self.applied.hosts.sort();
        self.applied.hosts.dedup();
        (self.tables, self.applied)
    }
}

#[cfg(test)]
mod tests;
