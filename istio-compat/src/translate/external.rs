//! ServiceEntries and WorkloadEntries.

use std::{collections::BTreeMap, net::IpAddr};

use mesh_api::model::{
    self,
    service::{Kind, Location, Resolution},
};

use super::Context;
use crate::types::{
    Meta, ServiceEntry, ServiceEntrySpec, ServiceLocation, ServicePort, ServiceResolution, WorkloadEntrySpec,
};

/// What a port of a ServiceEntry speaks.
pub type ProtocolOf = fn(&ServicePort) -> model::Protocol;

/// The hosts of a ServiceEntry, lower case.
pub fn hosts(object: &ServiceEntry) -> Vec<String> {
    let mut out: Vec<String> =
        object.spec.hosts.iter().map(|h| h.trim_end_matches('.').to_ascii_lowercase()).collect();
    out.sort();
    out.dedup();
    out
}

/// Whether nobody may use it.
pub fn is_hidden(object: &ServiceEntry, ctx: &Context) -> bool {
    super::visible_to(&object.spec.export_to, &object.meta.namespace, ctx).is_none()
}

/// Addresses that are one each.
pub fn addresses(spec: &ServiceEntrySpec) -> Vec<IpAddr> {
    spec.addresses.iter().filter_map(|a| a.parse().ok()).collect()
}

/// Whether the host may get an address from us: it has none of its own, and what is called there can be told.
pub fn wants_address(object: &ServiceEntry, host: &str) -> bool {
    const OPT_OUT: &str = "networking.istio.io/enable-autoallocate-ip";
    object.spec.addresses.is_empty()
        && !host.starts_with('*')
        && object.spec.resolution.unwrap_or_default() != ServiceResolution::None
        && object.meta.labels.get(OPT_OUT).is_none_or(|v| v != "false")
}

/// A host as a service. `all` are the ServiceEntries that make it: the owner of the name first; others of its namespace
/// with the same resolution add ports. Rules and virtual addresses are left to the caller.
pub fn service(
    host: &str,
    all: &[&ServiceEntry],
    protocol: ProtocolOf,
    ctx: &Context,
) -> Option<model::Service> {
    let owner = all.first()?;
    let spec = &owner.spec;
    let mut ports: Vec<model::Port> = Vec::new();
    for port in all.iter().flat_map(|e| &e.spec.ports) {
        if !ports.iter().any(|p| p.number == port.number) {
            ports.push(model::Port {
                number: port.number,
                name: port.name.clone(),
                protocol: protocol(port).into(),
            });
        }
    }
    Some(model::Service {
        host: host.to_owned(),
        namespace: owner.meta.namespace.clone(),
        name: owner.meta.name.clone(),
        kind: Kind::External.into(),
        ports,
        visible_to: super::visible_to(&spec.export_to, &owner.meta.namespace, ctx).unwrap_or_default(),
        resolution: match spec.resolution.unwrap_or_default() {
            ServiceResolution::None => Resolution::None,
            ServiceResolution::Static => Resolution::Static,
            ServiceResolution::Dns => Resolution::Dns,
            ServiceResolution::DnsRoundRobin => Resolution::DnsRoundRobin,
            ServiceResolution::DynamicDns => Resolution::DynamicDns,
        }
        .into(),
        location: match spec.location.unwrap_or_default() {
            ServiceLocation::MeshExternal => Location::MeshExternal,
            ServiceLocation::MeshInternal => Location::MeshInternal,
        }
        .into(),
        cidrs: spec.addresses.iter().filter(|a| a.contains('/')).cloned().collect(),
        subject_alt_names: spec.subject_alt_names.clone(),
        source: owner.meta.key(),
        ..model::Service::default()
    })
}

/// Which of the ServiceEntries that name a host make it, by namespace, that of the oldest one first: in each namespace the
/// oldest, and those with its resolution.
pub fn owners<'a>(mut all: Vec<&'a ServiceEntry>, ctx: &Context) -> Vec<Vec<&'a ServiceEntry>> {
    all.retain(|e| !is_hidden(e, ctx));
    all.sort_by(|a, b| a.meta.age_order().cmp(&b.meta.age_order()));
    let resolution = |e: &ServiceEntry| e.spec.resolution.unwrap_or_default();
    let mut out: Vec<Vec<&ServiceEntry>> = Vec::new();
    for entry in all {
        match out.iter_mut().find(|group| group[0].meta.namespace == entry.meta.namespace) {
            None => out.push(vec![entry]),
            Some(group) if resolution(group[0]) == resolution(entry) => group.push(entry),
            Some(_) => {}
        }
    }
    out
}

/// The endpoints that a ServiceEntry lists itself. With a resolution by DNS and none listed, its host is the endpoint.
pub fn endpoints(host: &str, object: &ServiceEntry) -> Vec<model::Endpoint> {
    let spec = &object.spec;
    let by_name = matches!(spec.resolution, Some(ServiceResolution::Dns | ServiceResolution::DnsRoundRobin));
    let named: Vec<WorkloadEntrySpec>;
    let list = if by_name && spec.endpoints.is_empty() && spec.workload_selector.is_none() {
        named = vec![WorkloadEntrySpec { address: host.to_owned(), ..WorkloadEntrySpec::default() }];
        &named
    } else {
        &spec.endpoints
    };
    let mut out: Vec<_> = list.iter().filter_map(|e| endpoint(e, &object.meta, spec)).collect();
    // Among names an address is one more name, which is its own answer.
    if by_name && out.iter().any(|e| !e.fqdn.is_empty()) {
        for e in out.iter_mut().filter(|e| e.fqdn.is_empty() && e.address.contains('.')) {
            e.fqdn = std::mem::take(&mut e.address);
        }
    }
    out
}

/// One listed endpoint, or a WorkloadEntry that the selector chooses. `None` for sockets and for what has no address.
pub fn endpoint(e: &WorkloadEntrySpec, meta: &Meta, spec: &ServiceEntrySpec) -> Option<model::Endpoint> {
    let address: Option<IpAddr> = e.address.parse().ok();
    if address.is_none() && (e.address.is_empty() || e.address.starts_with("unix://")) {
        return None;
    }
    let port = |p: &ServicePort| model::PortMap {
        service_port: p.number,
        target_port: match (e.ports.get(&p.name), p.target_port) {
            (Some(port), _) => *port,
            (None, 0) => p.number,
            (None, port) => port,
        },
    };
    let text = address.map(|a| a.to_string()).unwrap_or_default();
    Some(model::Endpoint {
        address: text.clone(),
        fqdn: if address.is_none() {
            e.address.trim_end_matches('.').to_ascii_lowercase()
        } else {
            String::new()
        },
        ports: spec.ports.iter().map(port).collect(),
        workload: Some(workload(e, meta, text)),
        ready: true,
        locality: Some(locality(e)),
        weight: e.weight,
        ..model::Endpoint::default()
    })
}

/// Who a WorkloadEntry is.
pub fn workload(e: &WorkloadEntrySpec, meta: &Meta, address: String) -> model::Workload {
    let mut labels: BTreeMap<String, String> = e.labels.clone();
    let place = locality(e);
    for (key, value) in
        [("topology.kubernetes.io/region", place.region), ("topology.kubernetes.io/zone", place.zone)]
    {
        if !value.is_empty() {
            labels.entry(key.to_owned()).or_insert(value);
        }
    }
    model::Workload {
        address,
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        owner: meta.name.clone(),
        labels,
        service_account: e.service_account.clone(),
        host_network: false,
    }
}

/// `region/zone/sub-zone`; the last is our site.
pub fn locality(e: &WorkloadEntrySpec) -> model::Locality {
    let mut parts = e.locality.splitn(3, '/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    model::Locality { region: next(), zone: next(), site: next(), network: e.network.clone() }
}
