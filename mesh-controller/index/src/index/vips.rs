//! Addresses of services. An API server gives every service its own; a folder of manifests written by hand may leave them
//! out or give one twice. What is left out is filled in, always with the same address for the same name; what is given
//! twice belongs to the first service by name.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
};

use crate::{kube::Service, object::Name};

/// Addresses that nobody else uses: Istio gives out the same range for the same purpose.
const RANGE: [u8; 2] = [240, 240];
const RANGE_SIZE: u32 = 1 << 16;

#[derive(Debug, Default)]
pub(super) struct Vips {
    owners: HashMap<IpAddr, BTreeSet<Name>>,
    allocated: HashMap<Name, Ipv4Addr>,
    taken: HashMap<Ipv4Addr, Name>,
    /// Stated addresses of hosts that ServiceEntries name.
    external: HashMap<Name, Vec<IpAddr>>,
}

impl Vips {
    /// The addresses of a service as known here.
    pub(super) fn of(&self, name: &Name, service: &Service) -> Vec<IpAddr> {
        let mut out = stated(service);
        if out.is_empty()
            && let Some(address) = self.allocated.get(name)
        {
            out.push((*address).into());
        }
        out
    }

    /// The service that an address given twice belongs to.
    pub(super) fn owner(&self, address: &IpAddr) -> Option<&Name> {
        self.owners.get(address)?.first()
    }

    /// Notes a change of a service; returns services that share an address with it.
    pub(super) fn change(
        &mut self,
        name: &Name,
        old: Option<&Service>,
        new: Option<&Service>,
        allocate: bool,
    ) -> BTreeSet<Name> {
        let mut others = BTreeSet::new();
        for address in old.map(stated).unwrap_or_default() {
            let Some(owners) = self.owners.get_mut(&address) else { continue };
            owners.remove(name);
            others.extend(owners.iter().cloned());
            if owners.is_empty() {
                self.owners.remove(&address);
            }
        }
        for address in new.map(stated).unwrap_or_default() {
            let owners = self.owners.entry(address).or_default();
            others.extend(owners.iter().cloned());
            owners.insert(name.clone());
        }
        if allocate && new.is_some_and(wants_address) {
            self.allocate(name);
        } else if let Some(address) = self.allocated.remove(name) {
            self.taken.remove(&address);
        }
        others.remove(name);
        others
    }

    /// The addresses of a host that a ServiceEntry names, kept under a name without namespace.
    pub(super) fn of_external(&self, name: &Name) -> Vec<IpAddr> {
        match (self.external.get(name), self.allocated.get(name)) {
            (Some(stated), _) if !stated.is_empty() => {
                let own = |owner: &Name| owner == name || is_same_host(owner, name);
                stated.iter().copied().filter(|a| self.owner(a).is_none_or(own)).collect()
            }
            (_, Some(address)) => vec![(*address).into()],
            _ => Vec::new(),
        }
    }

    /// Notes a change of such a host; returns what shares an address with it.
    pub(super) fn set_external(
        &mut self,
        name: &Name,
        stated: Vec<IpAddr>,
        allocate: bool,
    ) -> BTreeSet<Name> {
        let mut others = BTreeSet::new();
        for address in self.external.remove(name).unwrap_or_default() {
            let Some(owners) = self.owners.get_mut(&address) else { continue };
            owners.remove(name);
            others.extend(owners.iter().cloned());
            if owners.is_empty() {
                self.owners.remove(&address);
            }
        }
        for address in &stated {
            let owners = self.owners.entry(*address).or_default();
            others.extend(owners.iter().cloned());
            owners.insert(name.clone());
        }
        if !stated.is_empty() {
            self.external.insert(name.clone(), stated);
        }
        if allocate {
            self.allocate(name);
        } else if let Some(address) = self.allocated.remove(name) {
            self.taken.remove(&address);
        }
        others.remove(name);
        others
    }

    fn allocate(&mut self, name: &Name) {
        if self.allocated.contains_key(name) || self.taken.len() >= RANGE_SIZE as usize - 2 {
            return;
        }
        let start = hash(name) % RANGE_SIZE;
        let candidates = (0..RANGE_SIZE).map(|i| (start + i) % RANGE_SIZE);
        // The first and the last address of a range look like network and broadcast addresses.
        let free = candidates.filter(|n| *n != 0 && *n != RANGE_SIZE - 1).map(|n| {
            let [_, _, high, low] = n.to_be_bytes();
            Ipv4Addr::new(RANGE[0], RANGE[1], high, low)
        });
        for address in free {
            if !self.taken.contains_key(&address) && !self.owners.contains_key(&address.into()) {
                self.taken.insert(address, name.clone());
                self.allocated.insert(name.clone(), address);
                return;
            }
        }
    }
}

/// Whether two names are of one host that several namespaces declare (`HOST`, `HOST|NAMESPACE`).
fn is_same_host(a: &Name, b: &Name) -> bool {
    let host = |n: &Name| n.name.split('|').next().map(str::to_owned);
    a.namespace.is_empty() && b.namespace.is_empty() && host(a) == host(b)
}

/// Cluster addresses as written; `None` and empty mean that there are none.
fn stated(service: &Service) -> Vec<IpAddr> {
    let spec = &service.spec;
    let mut out: Vec<IpAddr> = Vec::new();
    if spec.kind == "ExternalName" {
        return out;
    }
    for ip in std::iter::once(&spec.cluster_ip).chain(&spec.cluster_ips).filter_map(|t| t.parse().ok()) {
        if !out.contains(&ip) {
            out.push(ip);
        }
    }
    out
}

/// Headless services say `None`; a service that says nothing would get an address from an API server.
fn wants_address(service: &Service) -> bool {
    let spec = &service.spec;
    spec.kind != "ExternalName" && spec.cluster_ip.is_empty() && spec.cluster_ips.is_empty()
}

/// FNV-1a: the same address after every restart.
fn hash(name: &Name) -> u32 {
    let bytes = name.namespace.bytes().chain([b'/']).chain(name.name.bytes());
    bytes.fold(0x811c_9dc5, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
}
