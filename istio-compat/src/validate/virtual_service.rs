//! VirtualServices: hosts, gateways, and the rules for TLS and TCP.

use super::{Verdict, http, reach, text};
use crate::{
    names,
    types::{Destination, RouteDestination, TcpRoute, TlsMatchAttributes, TlsRoute, VirtualService},
};

pub(super) fn check(object: &VirtualService, out: &mut Verdict) {
    let spec = &object.spec;
    let delegate = spec.hosts.is_empty();
    if delegate {
        let lists = [
            ("gateways", spec.gateways.is_empty()),
            ("tls", spec.tls.is_empty()),
            ("tcp", spec.tcp.is_empty()),
        ];
        for (name, _) in lists.iter().filter(|(_, empty)| !empty) {
            out.error(
                format!("spec.{name}"),
                "a VirtualService without hosts is a delegate and must not have this",
            );
        }
    }
    gateways("spec.gateways", &spec.gateways, out);
    hosts(object, out);
    if spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty() {
        out.error("spec", "http, tls or tcp is required");
    }
    let names_mesh = spec.gateways.iter().any(|g| g == "mesh");
    let context = http::Context { delegate, behind_gateway: !spec.gateways.is_empty() && !names_mesh };
    for (i, rule) in spec.http.iter().enumerate() {
        http::rule(&format!("spec.http[{i}]"), rule, context, out);
    }
    let sni = Sni { hosts: &spec.hosts, routes_allowed: !names_mesh };
    for (i, rule) in spec.tls.iter().enumerate() {
        tls(&format!("spec.tls[{i}]"), rule, sni, out);
    }
    for (i, rule) in spec.tcp.iter().enumerate() {
        tcp(&format!("spec.tcp[{i}]"), rule, out);
    }
    out.export_to(&spec.export_to, &object.meta.namespace, false);
    reach::check(&spec.http, out);
}

fn hosts(object: &VirtualService, out: &mut Verdict) {
    let spec = &object.spec;
    let in_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|g| g == "mesh");
    let by_sni = spec.tls.iter().flat_map(|r| &r.matches).any(|m| !m.sni_hosts.is_empty());
    let mut usable = true;
    for (i, host) in spec.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{i}]");
        let sni_route = !in_mesh && by_sni && text::sni_route(host);
        match text::wildcard_domain(host) {
            Err(message) if !text::is_ip(host) && !sni_route => {
                out.error(path, message);
                usable = false;
            }
            Ok(()) if in_mesh && host == "*" => {
                out.error(path, "`*` is for gateways only, not for the mesh");
                usable = false;
            }
            _ => {}
        }
    }
    if !usable {
        return;
    }
    for (i, host) in spec.hosts.iter().enumerate() {
        let twin = spec.hosts[..i].iter().find(|other| overlap(other, host));
        if let Some(other) = twin {
            out.error(format!("spec.hosts[{i}]"), format!("{host:?} and {other:?} overlap"));
        }
    }
}

/// Whether one host covers the other.
fn overlap(a: &str, b: &str) -> bool {
    names::covers(a, b) || names::covers(b, a)
}

pub(super) fn gateways(path: &str, list: &[String], out: &mut Verdict) {
    for (i, gateway) in list.iter().enumerate() {
        let path = format!("{path}[{i}]");
        match gateway.split_once('/') {
            None => {
                let mut labels = gateway.split('.');
                if let (Some(name), Some(namespace)) = (labels.next(), labels.next()) {
                    out.warn(path.as_str(), format!("is an old spelling; write \"{namespace}/{name}\""));
                }
                out.check(&path, text::fqdn(gateway));
                // What follows a plain name is not looked at, as in Istio.
                return;
            }
            Some((namespace, name)) => {
                out.check(&path, text::dns_label(namespace, "namespace"));
                out.check(&path, text::dns_label(name, "gateway name"));
            }
        }
    }
}

/// A destination of any rule.
pub(super) fn destination(path: &str, destination: &Destination, out: &mut Verdict) {
    let host = &destination.host;
    if host == "*" {
        out.error(format!("{path}.host"), "`*` is not a destination");
    } else {
        out.check(&format!("{path}.host"), text::wildcard_domain(host));
    }
    if !destination.subset.is_empty() {
        out.check(&format!("{path}.subset"), text::dns_label(&destination.subset, "subset name"));
    }
    if let Some(port) = &destination.port {
        out.check(&format!("{path}.port.number"), text::port(port.number));
    }
}

/// Weights of a rule's destinations.
pub(super) fn weights(path: &str, weights: &[i32], out: &mut Verdict) {
    for (i, weight) in weights.iter().enumerate().filter(|(_, w)| **w < 0) {
        out.error(format!("{path}[{i}].weight"), format!("must not be negative, is {weight}"));
    }
    if weights.len() > 1 && weights.iter().all(|w| *w == 0) {
        out.error(path, "all weights are 0");
    }
}

fn destinations(path: &str, list: &[RouteDestination], out: &mut Verdict) {
    if list.is_empty() {
        out.error(path, "is required");
    }
    for (i, entry) in list.iter().enumerate() {
        match &entry.destination {
            Some(d) => destination(&format!("{path}[{i}].destination"), d, out),
            None => out.error(format!("{path}[{i}].destination"), "is required"),
        }
    }
    weights(path, &list.iter().map(|d| d.weight).collect::<Vec<_>>(), out);
}

/// What server names of an object are held against.
#[derive(Clone, Copy)]
struct Sni<'a> {
    hosts: &'a [String],
    /// Names of the form `outbound_.80_._.host` are allowed.
    routes_allowed: bool,
}

fn tls(path: &str, rule: &TlsRoute, sni: Sni<'_>, out: &mut Verdict) {
    if rule.matches.is_empty() {
        out.error(format!("{path}.match"), "is required");
    }
    for (i, m) in rule.matches.iter().enumerate() {
        tls_match(&format!("{path}.match[{i}]"), m, sni, out);
    }
    destinations(&format!("{path}.route"), &rule.route, out);
}

fn tls_match(path: &str, m: &TlsMatchAttributes, context: Sni<'_>, out: &mut Verdict) {
    if m.sni_hosts.is_empty() {
        out.error(format!("{path}.sniHosts"), "is required");
    }
    for (i, sni) in m.sni_hosts.iter().enumerate() {
        let path = format!("{path}.sniHosts[{i}]");
        if text::is_ip(sni) {
            out.warn(path, "is an address; clients do not send addresses as server names");
            continue;
        }
        let covered = context.hosts.iter().any(|h| names::covers(h, sni));
        match text::wildcard_domain(sni) {
            Err(message) if !(context.routes_allowed && text::sni_route(sni)) => out.error(path, message),
            _ if !covered => {
                out.error(path, format!("{sni:?} is outside of the hosts of the VirtualService"))
            }
            _ => {}
        }
    }
    for (i, subnet) in m.destination_subnets.iter().enumerate() {
        out.check(&format!("{path}.destinationSubnets[{i}]"), text::subnet(subnet));
    }
    if m.port != 0 {
        out.check(&format!("{path}.port"), text::port(m.port));
    }
    out.check(&format!("{path}.sourceLabels"), text::source_labels(&m.source_labels));
    gateways(&format!("{path}.gateways"), &m.gateways, out);
}

fn tcp(path: &str, rule: &TcpRoute, out: &mut Verdict) {
    for (i, m) in rule.matches.iter().enumerate() {
        let path = format!("{path}.match[{i}]");
        for (j, subnet) in m.destination_subnets.iter().enumerate() {
            out.check(&format!("{path}.destinationSubnets[{j}]"), text::subnet(subnet));
        }
        if m.port != 0 {
            out.check(&format!("{path}.port"), text::port(m.port));
        }
        out.check(&format!("{path}.sourceLabels"), text::source_labels(&m.source_labels));
        gateways(&format!("{path}.gateways"), &m.gateways, out);
    }
    destinations(&format!("{path}.route"), &rule.route, out);
}
