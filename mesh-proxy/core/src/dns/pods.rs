//! Addresses of single pods of other nodes. Pod networks of two sites may be the same, so the address that a pod has at
//! home says nothing elsewhere: every node gives each such pod an address of its own out of a range that nobody routes,
//! answers DNS with it, captures it, and knows which endpoint it stands for. Nothing of it leaves the node.
//!
//! A pod keeps its address for as long as some headless service lists it, and gets the same one again after a restart
//! unless another pod has taken it meanwhile. When the range is used up, DNS answers with the pod's own address.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::Ipv4Net;

use crate::{
    endpoint::EndpointEntry,
    hash::Fnv,
    service::{ServiceEntry, ServiceKind},
    shards::Shards,
    tables::{EndpointMatch, Tables, VipMatch},
};

/// Range that is used when nothing else is set: class E like the addresses of services without one, and beside them.
pub const POD_RANGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(240, 241, 0, 0), 16);

/// What a node has given out.
#[derive(Debug, Clone)]
pub(crate) struct Pods {
    /// This node and the range; none = nothing is given out.
    home: Option<(Arc<str>, Ipv4Net)>,
    by_key: Shards<Arc<str>, Ipv4Addr>,
    by_address: Shards<Ipv4Addr, Pod>,
    /// The pods that each headless service lists.
    listed: Shards<Arc<str>, Arc<[Arc<str>]>>,
}

#[derive(Debug, Clone)]
struct Pod {
    key: Arc<str>,
    /// Headless services that list it, sorted.
    hosts: Arc<[Arc<str>]>,
}

impl Default for Pods {
    fn default() -> Self {
        Self { home: None, by_key: Shards::new(), by_address: Shards::new(), listed: Shards::new() }
    }
}

impl Pods {
    pub(crate) fn of_node(node: &str, range: Ipv4Net) -> Self {
        Self { home: Some((node.into(), range)), ..Self::default() }
    }

    /// This node.
    pub(crate) fn node(&self) -> Option<&str> {
        self.home.as_ref().map(|(node, _)| &**node)
    }

    fn is_remote(&self, e: &EndpointEntry) -> bool {
        let own = self.node();
        own.is_some() && e.node.as_deref().is_some_and(|n| Some(n) != own)
    }

    /// The address that stands for an endpoint of another node.
    fn address_of(&self, e: &EndpointEntry) -> Option<Ipv4Addr> {
        if !self.is_remote(e) {
            return None;
        }
        self.by_key.get(&*key_of(e)).copied()
    }

    /// Follows the endpoints of a service; whether an address came or went.
    pub(crate) fn follow(&mut self, host: &Arc<str>, service: Option<&ServiceEntry>) -> bool {
        if self.home.is_none() {
            return false;
        }
        let mut keys: Vec<Arc<str>> = Vec::new();
        if let Some(s) = service.filter(|s| s.kind == ServiceKind::Headless) {
            let remote = s.endpoints.endpoints.iter().filter(|e| e.address.is_ipv4() && self.is_remote(e));
            keys.extend(remote.map(|e| Arc::from(key_of(e))));
            keys.sort();
            keys.dedup();
        }
        let old = self.listed.get(&**host).cloned().unwrap_or_default();
        if *old == *keys {
            return false;
        }
        for gone in old.iter().filter(|k| keys.binary_search(k).is_err()) {
            self.release(gone, host);
        }
        for new in keys.iter().filter(|k| old.binary_search(k).is_err()) {
            self.allocate(new, host);
        }
        if keys.is_empty() {
            self.listed.remove(&**host);
        } else {
            self.listed.insert(host.clone(), keys.into());
        }
        true
    }

    fn release(&mut self, key: &Arc<str>, host: &Arc<str>) {
        let Some(address) = self.by_key.get(&**key).copied() else { return };
        let Some(pod) = self.by_address.get(&address) else { return };
        let hosts: Arc<[Arc<str>]> = pod.hosts.iter().filter(|h| *h != host).cloned().collect();
        if hosts.is_empty() {
            self.by_key.remove(&**key);
            self.by_address.remove(&address);
        } else {
            self.by_address.insert(address, Pod { key: key.clone(), hosts });
        }
    }

    fn allocate(&mut self, key: &Arc<str>, host: &Arc<str>) {
        if let Some(address) = self.by_key.get(&**key).copied() {
            let mut hosts: Vec<_> =
                self.by_address.get(&address).map(|p| p.hosts.to_vec()).unwrap_or_default();
            if let Err(at) = hosts.binary_search(host) {
                hosts.insert(at, host.clone());
            }
            self.by_address.insert(address, Pod { key: key.clone(), hosts: hosts.into() });
            return;
        }
        let Some((_, range)) = &self.home else { return };
        let size = 1_u64 << (32 - range.prefix_len());
        // The first and the last address of a range look like network and broadcast addresses.
        let usable = size.saturating_sub(2);
        if self.by_address.len() as u64 >= usable {
            return;
        }
        let (first, start) = (u64::from(u32::from(range.network())) + 1, Fnv::of(&[key.as_bytes()]) % usable);
        let candidates = (0..usable).map(|i| first + (start + i) % usable);
        let mut addresses = candidates.filter_map(|n| u32::try_from(n).ok()).map(Ipv4Addr::from);
        let Some(address) = addresses.find(|a| self.by_address.get(a).is_none()) else { return };
        self.by_key.insert(key.clone(), address);
        self.by_address.insert(address, Pod { key: key.clone(), hosts: [host.clone()].into() });
    }

    fn at(&self, ip: IpAddr) -> Option<&Pod> {
        match ip {
            IpAddr::V4(v4) => self.by_address.get(&v4),
            IpAddr::V6(_) => None,
        }
    }

    fn in_range(&self, ip: IpAddr) -> bool {
        match (ip, &self.home) {
            (IpAddr::V4(v4), Some((_, range))) => range.contains(&v4),
            _ => false,
        }
    }
}

/// What tells pods apart: their name, which a StatefulSet's pod keeps when it comes back elsewhere; without one, where
/// they are.
fn key_of(e: &EndpointEntry) -> String {
    let w = &e.workload;
    if w.name.is_empty() {
        return format!("{}|{}", e.node.as_deref().unwrap_or_default(), e.address);
    }
    format!("{}/{}", w.namespace, w.name)
}

impl Tables {
    /// A mesh of nothing, as the node with that name sees it. Pods of other nodes get addresses out of `range`.
    pub fn of_node(node: &str, range: Ipv4Net) -> Self {
        let mut tables = Self::new();
        tables.pods = Pods::of_node(node, range);
        tables
    }

    /// The address by which an endpoint is called on this node.
    pub fn address_here(&self, e: &EndpointEntry) -> IpAddr {
        self.pods.address_of(e).map_or(e.address, IpAddr::from)
    }

    /// How many pods of other nodes have an address here.
    pub fn pod_addresses(&self) -> usize {
        self.pods.by_address.len()
    }

    /// Whether an address stands for a pod of another node, now or at some time.
    pub(crate) fn is_pod_address(&self, ip: IpAddr) -> bool {
        self.pods.in_range(ip)
    }

    /// Headless services whose pod is called by that address on this node.
    pub(crate) fn services_of_pod(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.pods.at(ip).into_iter().flat_map(|p| p.hosts.iter()).filter_map(|h| self.service(h))
    }

    /// The endpoint of another node that `ip` stands for here.
    pub(crate) fn pod_at(&self, ip: IpAddr, port: u16, udp: bool) -> Option<EndpointMatch<'_>> {
        let key = &*self.pods.at(ip)?.key;
        self.services_of_pod(ip).find_map(|service| {
            let mut pods = service.endpoints.endpoints.iter();
            pods.find_map(|endpoint| {
                let own_port =
                    if udp { endpoint.udp_service_port(port) } else { endpoint.service_port(port) };
                let port = if udp { service.udp_port(own_port?) } else { service.port(own_port?) };
                let port = port.filter(|_| self.pods.is_remote(endpoint) && key_of(endpoint) == key)?;
                Some(EndpointMatch { service, port, endpoint })
            })
        })
    }

    /// The addresses of one service whose traffic the mesh takes.
    pub(crate) fn captured(&self, s: &ServiceEntry) -> impl Iterator<Item = IpAddr> {
        let headless = s.kind == ServiceKind::Headless;
        let members = s.endpoints.endpoints.iter().filter(move |_| headless);
        // Without an address of its own here, a pod that shares its node's address cannot be told from the node.
        let members = members.filter_map(|e| match self.pods.address_of(e) {
            Some(address) => Some(address.into()),
            None => (!e.workload.host_network).then_some(e.address),
        });
        s.all_vips().chain(members).filter(|_| !s.uncaptured)
    }

    /// Every address and port whose datagrams the mesh takes: ports of services, and of pods of other nodes. Pods of
    /// this node are reached without it.
    pub fn udp_vips(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        self.services().filter(|s| !s.uncaptured && s.udp_ports().next().is_some()).flat_map(|s| {
            let ports = move |ip: IpAddr| s.udp_ports().map(move |p| (ip, p.number));
            let headless = s.kind == ServiceKind::Headless;
            let members = s.endpoints.endpoints.iter().filter(move |_| headless);
            let pods = members.filter_map(|e| Some((self.pods.address_of(e)?, e)));
            let pods = pods.flat_map(move |(ip, e)| {
                let open = e.udp_ports.iter().filter(move |(p, _)| s.udp_port(*p).is_some());
                open.map(move |(_, target)| (IpAddr::V4(ip), *target))
            });
            s.vips.iter().copied().flat_map(ports).chain(pods)
        })
    }

    /// The service port for datagrams behind a virtual address.
    pub fn udp_by_vip(&self, ip: IpAddr, port: u16) -> Option<VipMatch<'_>> {
        self.services_at(ip).find_map(|service| Some(VipMatch { service, port: service.udp_port(port)? }))
    }

    /// The pod of another node that takes datagrams at that address here.
    pub fn udp_pod(&self, ip: IpAddr, port: u16) -> Option<EndpointMatch<'_>> {
        self.pod_at(ip, port, true)
    }
}

#[cfg(test)]
mod tests;
