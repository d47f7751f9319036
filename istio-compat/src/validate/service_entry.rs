//! ServiceEntries, WorkloadEntries, WorkloadGroups.

use std::collections::BTreeSet;

use super::{Verdict, text, text::Protocol};
use crate::types::{
    ReadinessProbe, ServiceEntry, ServiceEntrySpec, ServicePort, ServiceResolution, WorkloadEntry,
    WorkloadEntrySpec, WorkloadGroup,
};

pub(super) fn check(object: &ServiceEntry, out: &mut Verdict) {
    let spec = &object.spec;
    let resolution = spec.resolution.unwrap_or_default();
    hosts(spec, out);
    addresses(spec, resolution, out);
    ports(spec, out);
    endpoints(spec, resolution, out);
    let told_apart =
        spec.ports.iter().all(|p| Protocol::of(&p.protocol).is_some_and(|p| p.is_http() || p.is_tls()));
    if spec.hosts.len() > 1 && !told_apart && resolution != ServiceResolution::None {
        out.error("spec.hosts", "several hosts cannot be told apart on ports other than HTTP and TLS");
    }
    out.service_export_to(&spec.export_to, &object.meta.namespace);
    if let Some(selector) = &spec.workload_selector {
        out.selector("spec.workloadSelector", Some(&selector.labels));
        if !spec.endpoints.is_empty() {
            out.error("spec.endpoints", "must not be together with workloadSelector");
        }
        if resolution == ServiceResolution::None {
            out.warn("spec.workloadSelector", "has no effect with resolution NONE");
        }
    }
}

fn hosts(spec: &ServiceEntrySpec, out: &mut Verdict) {
    if spec.hosts.is_empty() {
        out.error("spec.hosts", "at least one host is required");
    }
    for (i, host) in spec.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{i}]");
        if host == "*" {
            out.error(path, "`*` alone is not allowed");
            continue;
        }
        out.check(&path, text::wildcard_domain(host));
        if host.contains('*') && !host.starts_with("*.") {
            out.warn(path, "has a wildcard within a label; it covers nothing");
        }
    }
}

fn addresses(spec: &ServiceEntrySpec, resolution: ServiceResolution, out: &mut Verdict) {
    for (i, address) in spec.addresses.iter().enumerate() {
        out.check(&format!("spec.addresses[{i}]"), text::subnet(address));
    }
    let ranges = spec.addresses.iter().any(|a| a.contains('/'));
    if ranges && !matches!(resolution, ServiceResolution::None | ServiceResolution::Static) {
        out.error("spec.addresses", "ranges are for resolution NONE and STATIC only");
    }
}

fn ports(spec: &ServiceEntrySpec, out: &mut Verdict) {
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (i, port) in spec.ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        if !names.insert(&port.name) {
            out.error(format!("{path}.name"), format!("{:?} is there twice", port.name));
        }
        if !numbers.insert(port.number) {
            out.error(format!("{path}.number"), format!("{} is there twice", port.number));
        }
        service_port(&path, port, out);
        let plain = Protocol::of(&port.protocol).is_none_or(|p| p == Protocol::Tcp);
        if spec.addresses.is_empty() && plain {
            out.warn(path, "a port that is neither HTTP nor TLS is told by address: it needs `addresses`, or an address that is allocated");
        }
    }
}

fn service_port(path: &str, port: &ServicePort, out: &mut Verdict) {
    out.check(&format!("{path}.name"), text::dns_label(&port.name, "port name"));
    out.check(&format!("{path}.protocol"), text::protocol(&port.protocol));
    out.check(&format!("{path}.number"), text::port(port.number));
    if port.target_port != 0 {
        out.check(&format!("{path}.targetPort"), text::port(port.target_port));
    }
}

fn endpoints(spec: &ServiceEntrySpec, resolution: ServiceResolution, out: &mut Verdict) {
    let each = |out: &mut Verdict, names: bool| {
        for (i, e) in spec.endpoints.iter().enumerate() {
            endpoint(&format!("spec.endpoints[{i}]"), e, &spec.ports, names, out);
        }
    };
    match resolution {
        ServiceResolution::None => {
            if !spec.endpoints.is_empty() {
                out.error("spec.endpoints", "must not be set with resolution NONE");
            }
        }
        ServiceResolution::Static => {
            each(out, false);
            let sockets = spec.endpoints.iter().any(|e| e.address.starts_with("unix://"));
            if sockets && spec.ports.len() != 1 {
                out.error("spec.ports", "exactly one port is needed for sockets");
            }
        }
        ServiceResolution::Dns | ServiceResolution::DnsRoundRobin => {
            if resolution == ServiceResolution::DnsRoundRobin && spec.endpoints.len() > 1 {
                out.error("spec.endpoints", "DNS_ROUND_ROBIN takes one endpoint at most");
            }
            each(out, true);
            if spec.endpoints.is_empty() {
                for (i, host) in spec.hosts.iter().enumerate() {
                    if text::fqdn(host).is_err() {
                        out.error(
                            format!("spec.hosts[{i}]"),
                            "is resolved when there are no endpoints, so must be a full name",
                        );
                    }
                }
            }
        }
        ServiceResolution::DynamicDns => dynamic(spec, out),
    }
}

fn dynamic(spec: &ServiceEntrySpec, out: &mut Verdict) {
    if !spec.addresses.is_empty() {
        out.error("spec.addresses", "must not be set with resolution DYNAMIC_DNS");
    }
    if !spec.endpoints.is_empty() {
        out.error("spec.endpoints", "must not be set with resolution DYNAMIC_DNS");
    }
    if spec.workload_selector.is_some() {
        out.error("spec.workloadSelector", "must not be set with resolution DYNAMIC_DNS");
    }
    for (i, _) in spec.hosts.iter().enumerate().filter(|(_, h)| !h.starts_with('*')) {
        out.error(format!("spec.hosts[{i}]"), "must be a wildcard with resolution DYNAMIC_DNS");
    }
    for (i, port) in spec.ports.iter().enumerate() {
        let fits = Protocol::of(&port.protocol).is_some_and(|p| p.is_http() || p.is_tls());
        if !fits {
            out.error(
                format!("spec.ports[{i}].protocol"),
                "must be HTTP, HTTP2, GRPC or TLS with resolution DYNAMIC_DNS",
            );
        }
    }
}

fn endpoint(path: &str, e: &WorkloadEntrySpec, ports: &[ServicePort], names: bool, out: &mut Verdict) {
    let at = format!("{path}.address");
    if let Some(socket) = e.address.strip_prefix("unix://").filter(|_| !names) {
        out.check(&at, text::unix_socket(socket));
        if !e.ports.is_empty() {
            out.error(format!("{path}.ports"), "must not be set for a socket");
        }
    } else if names {
        if !text::is_ip(&e.address) && text::fqdn(&e.address).is_err() {
            out.error(at, format!("{:?} is neither a full name nor an IP address", e.address));
        }
    } else if !text::is_ip(&e.address) && (!e.address.is_empty() || e.network.is_empty()) {
        out.error(at, format!("{:?} is not an IP address", e.address));
    }
    if !e.address.starts_with("unix://") {
        for (name, port) in &e.ports {
            let path = format!("{path}.ports[{name:?}]");
            if !ports.iter().any(|p| p.name == *name) {
                out.error(path.as_str(), "is not a port of the service");
            }
            out.check(&path, text::dns_label(name, "port name"));
            out.check(&path, text::port(*port));
        }
    }
    out.check(&format!("{path}.labels"), text::source_labels(&e.labels));
}

pub(super) fn check_entry(object: &WorkloadEntry, out: &mut Verdict) {
    let spec = &object.spec;
    if spec.address.is_empty() && spec.network.is_empty() {
        out.error("spec.address", "is required");
    }
    if let Some(socket) = spec.address.strip_prefix("unix://") {
        out.check("spec.address", text::unix_socket(socket));
        if !spec.ports.is_empty() {
            out.error("spec.ports", "must not be set for a socket");
        }
    } else if !spec.address.is_empty() && !text::is_ip(&spec.address) && text::fqdn(&spec.address).is_err() {
        out.error("spec.address", format!("{:?} is neither a full name nor an IP address", spec.address));
    }
    for (name, port) in &spec.ports {
        out.check(&format!("spec.ports[{name:?}]"), text::port(*port));
    }
    out.check("spec.labels", text::source_labels(&spec.labels));
}

pub(super) fn check_group(object: &WorkloadGroup, out: &mut Verdict) {
    let spec = &object.spec;
    match &spec.template {
        None => out.error("spec.template", "is required"),
        Some(t) => {
            out.check("spec.template.labels", text::source_labels(&t.labels));
            for (name, port) in &t.ports {
                out.check(&format!("spec.template.ports[{name:?}]"), text::port(*port));
            }
        }
    }
    if let Some(meta) = &spec.metadata {
        out.check("spec.metadata.labels", text::source_labels(&meta.labels));
    }
    if let Some(p) = &spec.probe {
        probe(p, out);
    }
}

fn probe(p: &ReadinessProbe, out: &mut Verdict) {
    let times = [
        ("initialDelaySeconds", p.initial_delay_seconds),
        ("timeoutSeconds", p.timeout_seconds),
        ("periodSeconds", p.period_seconds),
        ("successThreshold", p.success_threshold),
        ("failureThreshold", p.failure_threshold),
    ];
    for (name, n) in times.iter().filter(|(_, n)| *n < 0) {
        out.error(format!("spec.probe.{name}"), format!("must not be negative, is {n}"));
    }
    let port = |out: &mut Verdict, name: &str, port: u32| {
        out.check(&format!("spec.probe.{name}.port"), text::port(port));
    };
    match (&p.http_get, &p.tcp_socket, &p.exec, &p.grpc) {
        (Some(h), ..) => {
            port(out, "httpGet", h.port);
            if !matches!(h.scheme.to_ascii_lowercase().as_str(), "" | "http" | "https") {
                out.error("spec.probe.httpGet.scheme", format!("{:?} is neither http nor https", h.scheme));
            }
            for (i, _) in h.http_headers.iter().enumerate().filter(|(_, h)| h.name.is_empty()) {
                out.error(format!("spec.probe.httpGet.httpHeaders[{i}].name"), "is required");
            }
        }
        (_, Some(t), ..) => port(out, "tcpSocket", t.port),
        (_, _, Some(e), _) => {
            if e.command.is_empty() {
                out.error("spec.probe.exec.command", "is required");
            }
        }
        (.., Some(g)) => port(out, "grpc", g.port),
        _ => out.error("spec.probe", "needs httpGet, tcpSocket, exec or grpc"),
    }
}
