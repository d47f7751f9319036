//! VirtualServices against services, service entries, destination rules and each other.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    hosts::{self, EVERYBODY, Service, Services, full, scopes, service_name},
    report::{Report, bracketed},
    world::{Kind, Name, Object, World, list, number, text, texts},
};

/// A destination in a rule.
pub(super) struct Destination<'w> {
    value: &'w Value,
    path: String,
    is_mirror: bool,
}

impl<'w> Destination<'w> {
    fn host(&self) -> &'w str {
        text(self.value, "/host")
    }

    fn subset(&self) -> &'w str {
        text(self.value, "/subset")
    }
}

/// All destinations of routes and mirrors.
pub(super) fn destinations(rule: &Object) -> Vec<Destination<'_>> {
    let mut out = Vec::new();
    for protocol in ["tcp", "tls", "http"] {
        for (i, route) in rule.list(&format!("/spec/{protocol}")).iter().enumerate() {
            for (j, to) in list(route, "/route").iter().enumerate() {
                let path = format!("spec.{protocol}[{i}].route[{j}].destination.host");
                // One without a destination leads nowhere, which is said like any other host that is not there.
                let value = to.get("destination").unwrap_or(&Value::Null);
                out.push(Destination { value, path, is_mirror: false });
            }
        }
    }
    for (i, route) in rule.list("/spec/http").iter().enumerate() {
        let path = format!("spec.http[{i}].mirror.host");
        let mirror = route.get("mirror").filter(|m| m.is_object());
        out.extend(mirror.map(|value| Destination { value, path, is_mirror: true }));
        for (j, mirror) in list(route, "/mirrors").iter().enumerate() {
            let path = format!("spec.http[{i}].mirrors[{j}].destination.host");
            let value = mirror.get("destination").unwrap_or(&Value::Null);
            out.push(Destination { value, path, is_mirror: true });
        }
    }
    out
}

/// Hosts and ports of destinations exist.
pub(super) fn destination_hosts(world: &World, out: &mut Report) {
    let services = Services::of(world);
    let with_subsets = own_hosts_with_subsets(world);
    for rule in world.all(Kind::VirtualService) {
        for destination in destinations(rule) {
            let host = destination.host();
            let found = services.find(host, rule.namespace(), texts(&rule.value, "/spec/exportTo"));
            match found {
                Some(service) => port_exists(rule, &destination, service, out),
                None => {
                    let what = if destination.is_mirror { "mirror host" } else { "host" };
                    out.missing(rule, destination.path, what, host);
                }
            }
        }
        subsets_at_the_gateway(rule, &with_subsets, out);
    }
}

fn port_exists(rule: &Object, destination: &Destination<'_>, service: &Service<'_>, out: &mut Report) {
    let (host, path) = (destination.host(), destination.path.as_str());
    if destination.value.get("port").is_none_or(Value::is_null) {
        // The only port need not be named.
        if service.ports.len() > 1 {
            out.add(rule, "IST0112", path, &[&host, &bracketed(&service.ports)]);
        }
        return;
    }
    let port = number(destination.value, "/port/number");
    if !service.ports.contains(&port) {
        out.missing(rule, path, "host:port", &format!("{host}:{port}"));
    }
}

/// For each VirtualService: its own hosts to which it routes with a subset.
fn own_hosts_with_subsets(world: &World) -> BTreeMap<&Name, BTreeSet<&str>> {
    let mut out: BTreeMap<&Name, BTreeSet<&str>> = BTreeMap::new();
    for rule in world.all(Kind::VirtualService) {
        let own: Vec<&str> = texts(&rule.value, "/spec/hosts").collect();
        for route in rule.list("/spec/http") {
            for to in list(route, "/route") {
                let host = text(to, "/destination/host");
                if !text(to, "/destination/subset").is_empty() && own.contains(&host) {
                    out.entry(&rule.name).or_default().insert(host);
                }
            }
        }
    }
    out
}

/// A rule at a gateway that names no subset is not followed by the rule that picks one in the mesh.
fn subsets_at_the_gateway(rule: &Object, with_subsets: &BTreeMap<&Name, BTreeSet<&str>>, out: &mut Report) {
    if rule.list("/spec/gateways").is_empty() {
        return;
    }
    let mut said = BTreeSet::new();
    for (i, route) in rule.list("/spec/http").iter().enumerate() {
        for (j, to) in list(route, "/route").iter().enumerate() {
            if !text(to, "/destination/subset").is_empty() {
                continue;
            }
            let host = text(to, "/destination/host");
            for other in with_subsets.iter().filter(|(_, hosts)| hosts.contains(host)).map(|(name, _)| *name)
            {
                if said.insert(other) {
                    let path = format!("spec.http[{i}].route[{j}].destination.host");
                    out.add(rule, "IST0140", path, &[other, &rule.name]);
                }
            }
        }
    }
}

/// Subsets of destinations are in a destination rule.
pub(super) fn subsets(world: &World, out: &mut Report) {
    let mut known: BTreeSet<(Name, &str)> = BTreeSet::new();
    for rule in world.all(Kind::DestinationRule) {
        let host = service_name(rule.text("/spec/host"), rule.namespace());
        known.extend(rule.list("/spec/subsets").iter().map(|s| (host.clone(), text(s, "/name"))));
    }
    for rule in world.all(Kind::VirtualService) {
        for destination in destinations(rule) {
            let (host, subset) = (destination.host(), destination.subset());
            if subset.is_empty() || known.contains(&(service_name(host, rule.namespace()), subset)) {
                continue;
            }
            let what = if destination.is_mirror { "mirror+subset" } else { "host+subset" };
            let what = format!("{what} in destinationrule");
            out.missing(rule, destination.path, &what, &format!("{host}+{subset}"));
        }
    }
}

/// Two rules for the same host in the same place: in the mesh they are not merged, the older one counts.
pub(super) fn conflicting_hosts(world: &World, out: &mut Report) {
    let mut by_host: BTreeMap<(&str, String), Vec<&Object>> = BTreeMap::new();
    for rule in world.all(Kind::VirtualService) {
        let gateways = rule.list("/spec/gateways");
        if !gateways.is_empty() && !gateways.iter().any(|g| g == "mesh") {
            continue;
        }
        for scope in scopes(texts(&rule.value, "/spec/exportTo"), rule.namespace()) {
            for host in texts(&rule.value, "/spec/hosts") {
                by_host.entry((scope, full(host, rule.namespace()))).or_default().push(rule);
            }
        }
    }
    let mut said = BTreeSet::new();
    for ((scope, host), own) in &by_host {
        let mut rules = own.clone();
        if *scope != EVERYBODY {
            let public = by_host.iter().filter(|((s, h), _)| *s == EVERYBODY && hosts::overlap(host, h));
            rules.extend(public.flat_map(|(_, rules)| rules));
        }
        if rules.len() < 2 {
            continue;
        }
        let mut names: Vec<String> = rules.iter().map(|r| r.name.to_string()).collect();
        names.sort();
        for rule in rules {
            if said.insert(&rule.name) {
                out.add(rule, "IST0109", "metadata.name", &[&names.join(","), &format!("{scope}/{host}")]);
            }
        }
    }
}
