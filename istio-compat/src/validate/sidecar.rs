//! Sidecars.

use std::collections::BTreeSet;

use super::{Verdict, destination_rule, gateway, hosts, text, text::Protocol, virtual_service};
use crate::types::{
    CaptureMode, IstioEgressListener, IstioIngressListener, OutboundMode, ServerTlsMode, ServerTlsSettings,
    Sidecar, SidecarPort,
};

pub(super) fn check(object: &Sidecar, out: &mut Verdict) {
    let spec = &object.spec;
    if let Some(selector) = &spec.workload_selector {
        out.selector("spec.workloadSelector", Some(&selector.labels));
    }
    let nothing = spec.egress.is_empty()
        && spec.ingress.is_empty()
        && spec.outbound_traffic_policy.is_none()
        && spec.inbound_connection_pool.is_none();
    if nothing {
        out.error("spec", "must not be empty");
    }
    if let Some(pool) = &spec.inbound_connection_pool {
        destination_rule::connection_pool("spec.inboundConnectionPool", pool, out);
    }
    let mut ports = BTreeSet::new();
    for (i, listener) in spec.ingress.iter().enumerate() {
        let path = format!("spec.ingress[{i}]");
        ingress(&path, listener, out);
        if listener.port.as_ref().is_some_and(|p| !ports.insert(p.number)) {
            out.error(format!("{path}.port.number"), "is there twice");
        }
    }
    egress_listeners(&spec.egress, out);
    if let Some(policy) = &spec.outbound_traffic_policy
        && let Some(proxy) = &policy.egress_proxy
    {
        let path = "spec.outboundTrafficPolicy.egressProxy";
        if policy.mode.unwrap_or_default() != OutboundMode::AllowAny {
            out.error(path, "is for mode ALLOW_ANY only");
        }
        virtual_service::destination(path, proxy, out);
    }
}

fn ingress(path: &str, listener: &IstioIngressListener, out: &mut Verdict) {
    let Some(port) = &listener.port else {
        out.error(format!("{path}.port"), "is required");
        return;
    };
    named_port(&format!("{path}.port"), port, out);
    out.check(&format!("{path}.port.number"), text::port(port.number));
    if !listener.bind.is_empty() && !text::is_ip(&listener.bind) {
        out.error(format!("{path}.bind"), format!("{:?} is not an IP address", listener.bind));
    }
    if !listener.default_endpoint.is_empty() {
        out.check(&format!("{path}.defaultEndpoint"), default_endpoint(&listener.default_endpoint));
    }
    let protocol = Protocol::of(&port.protocol);
    if let Some(t) = &listener.tls {
        tls(&format!("{path}.tls"), t, protocol, out);
    }
    if let Some(pool) = &listener.connection_pool {
        destination_rule::connection_pool(&format!("{path}.connectionPool"), pool, out);
        if pool.http.is_some() && !protocol.is_some_and(Protocol::is_http) {
            out.warn(format!("{path}.connectionPool.http"), "has no effect: the port's protocol is not HTTP");
        }
    }
}

fn default_endpoint(text: &str) -> Result<(), String> {
    if let Some(socket) = text.strip_prefix("unix://") {
        return text::unix_socket(socket);
    }
    let form =
        || format!("{text:?} is none of 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT, unix://PATH");
    let (host, port) = text.rsplit_once(':').ok_or_else(form)?;
    text::require(matches!(host, "127.0.0.1" | "0.0.0.0" | "[::1]" | "[::]"), form)?;
    let port: u32 = port.parse().map_err(|_| format!("{port:?} is not a port number"))?;
    text::port(port)
}

fn tls(path: &str, t: &ServerTlsSettings, protocol: Option<Protocol>, out: &mut Verdict) {
    let unsupported = [
        ("httpsRedirect", t.https_redirect),
        ("subjectAltNames", !t.subject_alt_names.is_empty()),
        ("credentialName", !t.credential_name.is_empty()),
        ("credentialNames", !t.credential_names.is_empty()),
        ("tlsCertificates", !t.tls_certificates.is_empty()),
    ];
    for (name, _) in unsupported.iter().filter(|(_, set)| *set) {
        out.error(format!("{path}.{name}"), "must not be set in a Sidecar");
    }
    if matches!(t.mode, Some(ServerTlsMode::IstioMutual | ServerTlsMode::AutoPassthrough)) {
        out.error(format!("{path}.mode"), "must not be ISTIO_MUTUAL or AUTO_PASSTHROUGH in a Sidecar");
    }
    if !protocol.is_some_and(Protocol::is_tls) {
        out.error(path, "is for HTTPS and TLS ports only");
    }
    gateway::tls(path, t, out);
}

fn named_port(path: &str, port: &SidecarPort, out: &mut Verdict) {
    if !port.name.is_empty() {
        out.check(&format!("{path}.name"), text::dns_label(&port.name, "port name"));
    }
    out.check(&format!("{path}.protocol"), text::protocol(&port.protocol));
}

fn egress_listeners(list: &[IstioEgressListener], out: &mut Verdict) {
    let (mut ports, mut sockets) = (BTreeSet::new(), BTreeSet::new());
    for (i, listener) in list.iter().enumerate() {
        let path = format!("spec.egress[{i}]");
        match &listener.port {
            None if i + 1 < list.len() => {
                out.error(format!("{path}.port"), "a listener without port must be the last one");
            }
            None => {}
            Some(port) => {
                egress_port(&path, port, listener, out);
                let twice = if port.number == 0 {
                    !sockets.insert(&listener.bind)
                } else {
                    !ports.insert(port.number)
                };
                if twice {
                    out.error(format!("{path}.port.number"), "is there twice");
                }
            }
        }
        egress_hosts(&path, &listener.hosts, out);
    }
}

fn egress_port(path: &str, port: &SidecarPort, listener: &IstioEgressListener, out: &mut Verdict) {
    named_port(&format!("{path}.port"), port, out);
    if port.number > 0 {
        out.check(&format!("{path}.port.number"), text::port(port.number));
        if !listener.bind.is_empty() && !text::is_ip(&listener.bind) {
            out.error(format!("{path}.bind"), format!("{:?} is not an IP address", listener.bind));
        }
        return;
    }
    match listener.bind.strip_prefix("unix://") {
        None => {
            out.error(format!("{path}.bind"), "must be a socket (unix://PATH) when the port has no number")
        }
        Some(socket) => out.check(&format!("{path}.bind"), text::unix_socket(socket)),
    }
    if listener.capture_mode == Some(CaptureMode::Iptables) {
        out.error(format!("{path}.captureMode"), "must be DEFAULT or NONE for a socket");
    }
}

fn egress_hosts(path: &str, list: &[String], out: &mut Verdict) {
    if list.is_empty() {
        out.error(format!("{path}.hosts"), "at least one host is required");
    }
    for (i, host) in list.iter().enumerate() {
        let path = format!("{path}.hosts[{i}]");
        out.check(&path, hosts::sidecar_host(host));
        let covered = host.split_once('/').is_some_and(|(namespace, _)| {
            let all = format!("{namespace}/*");
            list.iter().enumerate().any(|(j, h)| j != i && *h == all && *host != all)
        });
        if covered || list[..i].contains(host) {
            out.warn(path, format!("{host:?} is covered by another host already"));
        }
    }
}
