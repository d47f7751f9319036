//! Answers for names of the mesh. Names come in lower case, with or without their last dot; short forms are expanded
//! by the client's resolver, so only full names are known here.

pub mod pods;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    client::Client,
    endpoint::EndpointEntry,
    host::Name,
    service::{ServiceEntry, ServiceKind},
    tables::Tables,
};

/// The types of question that are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryType {
    /// IPv4 address.
    A,
    /// IPv6 address.
    Aaaa,
    /// Named port.
    Srv,
    /// Name of an address.
    Ptr,
    /// Everything else: the name may exist, the record does not.
    Other,
}

/// One record. Names have no last dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// IPv4 address.
    A(Ipv4Addr),
    /// IPv6 address.
    Aaaa(Ipv6Addr),
    /// Named port.
    Srv {
        /// Lower is first.
        priority: u16,
        /// Share among equals.
        weight: u16,
        /// Port.
        port: u16,
        /// Name that has the address.
        target: String,
    },
    /// Name of an address.
    Ptr(String),
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These records.
    Records(Vec<Record>),
    /// The name is an alias of that one, which is to be resolved. It may be one of the mesh.
    Cname(String),
    /// The name exists, a record of that type does not.
    NoData,
    /// The name does not exist, and nobody else could know it.
    NxDomain,
    /// Not a name of the mesh: ask elsewhere.
    NotOurs,
}

/// Seconds that an answer holds: endpoints come and go.
pub const TTL: u32 = 5;
/// Most records in an answer. More would not fit a UDP answer of 1,232 bytes by far, and no client uses them.
pub const MAX_RECORDS: usize = 128;

/// Answers a question. `name` is lower case.
pub fn answer(tables: &Tables, name: &str, query: QueryType) -> Answer {
    answer_in(tables, "", name, query)
}

/// The same for clients of a namespace.
fn answer_in(tables: &Tables, namespace: &str, name: &str, query: QueryType) -> Answer {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.ends_with(".in-addr.arpa") || name.ends_with(".ip6.arpa") {
        return reverse(tables, name, query);
    }
    if let Some(service) = tables.service_for(name, namespace).filter(|s| s.kind != ServiceKind::RouteOnly) {
        return of_service(tables, service, query);
    }
    // Under a wildcard outside, every name has the wildcard's address.
    if let Some(service) = outside(tables, namespace, name) {
        return of_service(tables, service, query);
    }
    let ours =
        name.strip_suffix(&*tables.mesh().cluster_domain).is_some_and(|p| p.is_empty() || p.ends_with('.'));
    if let Some(found) = below(tables, name, query) {
        return found;
    }
    match ours {
        true if is_inner(tables, name) => Answer::NoData,
        true => Answer::NxDomain,
        false => Answer::NotOurs,
    }
}

/// The same for a workload: a host outside that it may not know means to it what it means outside.
pub fn answer_for(tables: &Tables, from: IpAddr, name: &str, query: QueryType) -> Answer {
    let plain = name.strip_suffix('.').unwrap_or(name);
    let workload = tables.workload(from.to_canonical());
    let namespace = workload.map(|w| &*w.namespace).unwrap_or_default();
    if let Some(service) = outside(tables, namespace, plain)
        && let Some(workload) = workload
    {
        let client = Client::of(workload);
        let known = service.visible_to(client.namespace)
            && tables.scope_of(&client).is_none_or(|scope| scope.sees_any(service));
        if !known {
            return Answer::NotOurs;
        }
    }
    answer_in(tables, namespace, name, query)
}

/// The host outside that a name is, or is covered by.
fn outside<'t>(tables: &'t Tables, namespace: &str, name: &str) -> Option<&'t ServiceEntry> {
    let external = |s: &ServiceEntry| s.kind == ServiceKind::External;
    match tables.service_for(name, namespace) {
        Some(s) => external(s).then_some(&**s),
        None => tables.wildcard(name, namespace, &|s| external(s) && !s.vips.is_empty()).map(|s| &**s),
    }
}

/// Names between the domain and a service: they exist because something is below them.
fn is_inner(tables: &Tables, name: &str) -> bool {
    let domain = tables.mesh().cluster_domain.as_str();
    if name == domain || name.strip_suffix(domain) == Some("svc.") {
        return true;
    }
    let Some(namespace) = name.strip_suffix(domain).and_then(|n| n.strip_suffix(".svc.")) else {
        return false;
    };
    !namespace.contains('.')
        && tables.services().any(|s| *s.namespace == *namespace && s.host.ends_with(name))
}

fn of_service(tables: &Tables, s: &ServiceEntry, query: QueryType) -> Answer {
    match s.kind {
        ServiceKind::ExternalName => match &s.external_name {
            Some(target) => Answer::Cname(target.to_string()),
            None => Answer::NoData,
        },
        ServiceKind::ClusterIp => addresses(s.vips.iter().copied(), query),
        // Without an address of ours the name means what it means outside.
        ServiceKind::External if s.vips.is_empty() => Answer::NotOurs,
        ServiceKind::External => addresses(s.vips.iter().copied(), query),
        ServiceKind::Headless => addresses(members(s).map(|e| tables.address_here(e)), query),
        ServiceKind::RouteOnly => Answer::NotOurs,
    }
}

/// The endpoints that DNS shows.
fn members(s: &ServiceEntry) -> impl Iterator<Item = &EndpointEntry> {
    let all = s.publish_not_ready;
    s.endpoints.endpoints.iter().map(|e| &**e).filter(move |e| all || (e.ready && !e.terminating))
}

fn addresses(list: impl Iterator<Item = IpAddr>, query: QueryType) -> Answer {
    let mut records = Vec::new();
    for ip in list {
        let record = match (ip, query) {
            (IpAddr::V4(ip), QueryType::A) => Record::A(ip),
            (IpAddr::V6(ip), QueryType::Aaaa) => Record::Aaaa(ip),
            _ => continue,
        };
        if !records.contains(&record) {
            records.push(record);
        }
        if records.len() == MAX_RECORDS {
            break;
        }
    }
    if records.is_empty() { Answer::NoData } else { Answer::Records(records) }
}

/// Names in front of a service: `_port._proto`, or a member of a headless service.
fn below(tables: &Tables, name: &str, query: QueryType) -> Option<Answer> {
    let (first, rest) = name.split_once('.')?;
    if let Some(port) = first.strip_prefix('_') {
        let (proto, host) = rest.split_once('.')?;
        let proto = proto.strip_prefix('_')?;
        return named_port(tables.service(host)?, port, proto, query);
    }
    let service = tables.service(rest).filter(|s| s.kind == ServiceKind::Headless)?;
    let mut found = members(service).filter(|e| label_of(e) == first).peekable();
    found.peek()?;
    Some(addresses(found.map(|e| tables.address_here(e)), query))
}

/// The label of a member: its host name, else its address with dashes.
fn label_of(e: &EndpointEntry) -> String {
    match &e.hostname {
        Some(h) => h.to_string(),
        None => e.address.to_string().replace(['.', ':'], "-"),
    }
}

fn named_port(s: &ServiceEntry, port: &str, proto: &str, query: QueryType) -> Option<Answer> {
    use crate::service::Protocol;
    let port = s.port_named(port)?;
    if proto != (if port.protocol == Protocol::Udp { "udp" } else { "tcp" }) {
        return None;
    }
    if query != QueryType::Srv {
        return Some(Answer::NoData);
    }
    let target = |e: &EndpointEntry| match port.protocol {
        Protocol::Udp => e.udp_target_port(port.number),
        _ => e.target_port(port.number),
    };
    let srv = |port, target| Record::Srv { priority: 0, weight: 1, port, target };
    let records: Vec<_> = match s.kind {
        ServiceKind::ClusterIp | ServiceKind::External => vec![srv(port.number, s.host.to_string())],
        ServiceKind::Headless => members(s)
            .filter_map(|e| Some(srv(target(e)?, format!("{}.{}", label_of(e), s.host))))
            .take(MAX_RECORDS)
            .collect(),
        ServiceKind::ExternalName | ServiceKind::RouteOnly => Vec::new(),
    };
    Some(if records.is_empty() { Answer::NoData } else { Answer::Records(records) })
}

fn reverse(tables: &Tables, name: &str, query: QueryType) -> Answer {
    let Some(ip) = address_of(name) else { return Answer::NotOurs };
    let mut names: Vec<String> = tables.services_at(ip).map(|s| s.host.to_string()).collect();
    for m in tables.endpoint_services(ip).chain(tables.services_of_pod(ip)) {
        names.extend(
            members(m)
                .filter(|e| tables.address_here(e) == ip)
                .map(|e| format!("{}.{}", label_of(e), m.host)),
        );
    }
    names.dedup();
    names.truncate(MAX_RECORDS);
    match (names.is_empty(), query) {
        (true, _) => Answer::NotOurs,
        (false, QueryType::Ptr) => Answer::Records(names.into_iter().map(Record::Ptr).collect()),
        (false, _) => Answer::NoData,
    }
}

/// The address that a reverse name stands for.
fn address_of(name: &str) -> Option<IpAddr> {
    let lower = Name::lower(name)?;
    let name = lower.as_str();
    if let Some(v4) = name.strip_suffix(".in-addr.arpa") {
        let mut bytes = [0u8; 4];
        let mut labels = v4.split('.');
        for b in bytes.iter_mut().rev() {
            *b = labels.next()?.parse().ok()?;
        }
        return labels.next().is_none().then(|| IpAddr::from(bytes));
    }
    let v6 = name.strip_suffix(".ip6.arpa")?;
    let mut bits: u128 = 0;
    let mut count = 0;
    for label in v6.split('.') {
        let digit = (label.len() == 1).then(|| u128::from_str_radix(label, 16).ok()).flatten()?;
        bits |= digit.checked_shl(4 * count)?;
        count += 1;
    }
    (count == 32).then(|| IpAddr::from(bits.to_be_bytes()))
}

#[cfg(test)]
mod tests;
