//! Gateways, and the TLS settings of servers that Sidecars share.

use std::collections::BTreeSet;

use super::{Verdict, hosts, text, text::Protocol};
use crate::types::{Gateway, GatewayPort, Server, ServerTlsMode, ServerTlsSettings};

pub(super) fn check(object: &Gateway, out: &mut Verdict) {
    out.check("metadata.name", text::dns_label(&object.meta.name, "gateway name"));
    if object.spec.servers.is_empty() {
        out.error("spec.servers", "at least one server is required");
    }
    let mut names = BTreeSet::new();
    for (i, server) in object.spec.servers.iter().enumerate() {
        let path = format!("spec.servers[{i}]");
        check_server(&path, server, out);
        let Some(port) = &server.port else { continue };
        if !port.name.is_empty() && !names.insert(&port.name) {
            out.error(format!("{path}.port.name"), format!("{:?} is there twice", port.name));
        }
        let redirects = server.tls.as_ref().is_some_and(|t| t.https_redirect);
        if redirects && !Protocol::of(&port.protocol).is_some_and(Protocol::is_http) {
            out.warn(format!("{path}.tls.httpsRedirect"), "is for plaintext HTTP servers only");
        }
    }
    out.labels("spec.selector", &object.spec.selector);
}

fn check_server(path: &str, server: &Server, out: &mut Verdict) {
    if server.hosts.is_empty() {
        out.error(format!("{path}.hosts"), "at least one host is required");
    }
    for (i, host) in server.hosts.iter().enumerate() {
        out.check(&format!("{path}.hosts[{i}]"), hosts::gateway_host(host));
    }
    let socket = server.bind.strip_prefix("unix://");
    match socket {
        Some(socket) => out.check(&format!("{path}.bind"), text::unix_socket(socket)),
        None if !server.bind.is_empty() && !text::is_ip(&server.bind) => {
            out.error(format!("{path}.bind"), format!("{:?} is not an IP address", server.bind));
        }
        None => {}
    }
    let Some(port) = &server.port else {
        out.error(format!("{path}.port"), "is required");
        return;
    };
    check_port(&format!("{path}.port"), port, socket.is_some(), out);
    if let Some(t) = &server.tls {
        tls(&format!("{path}.tls"), t, out);
    }
    let Some(protocol) = Protocol::of(&port.protocol) else { return };
    match &server.tls {
        None if protocol.is_tls() => {
            out.error(format!("{path}.tls"), format!("is required for {}", port.protocol));
        }
        Some(t) if !protocol.is_tls() && protocol.is_http() => {
            // A redirect is all that a plaintext server may say of TLS.
            let opens = !matches!(mode(t), ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough);
            let files = [&t.ca_certificates, &t.private_key, &t.server_certificate];
            if opens || files.iter().any(|f| !f.is_empty()) {
                out.error(format!("{path}.tls"), "plaintext HTTP servers have no TLS settings");
            }
        }
        Some(_) if !protocol.is_tls() => {
            out.error(format!("{path}.tls"), "is for HTTPS and TLS servers only");
        }
        _ => {}
    }
}

fn check_port(path: &str, port: &GatewayPort, by_socket: bool, out: &mut Verdict) {
    if Protocol::of(&port.protocol).is_none() {
        out.error(format!("{path}.protocol"), format!("{:?} is not a known protocol", port.protocol));
    }
    if port.number > 0 || !by_socket {
        out.check(&format!("{path}.number"), text::port(port.number));
    }
    if port.name.is_empty() {
        out.error(format!("{path}.name"), "is required");
    }
}

fn mode(t: &ServerTlsSettings) -> ServerTlsMode {
    t.mode.unwrap_or_default()
}

const CIPHERS: [&str; 15] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "DES-CBC3-SHA",
];

/// TLS settings of a server.
pub(super) fn tls(path: &str, t: &ServerTlsSettings, out: &mut Verdict) {
    for (i, cipher) in t.cipher_suites.iter().enumerate() {
        let path = format!("{path}.cipherSuites[{i}]");
        if !CIPHERS.contains(&cipher.as_str()) {
            out.warn(path, format!("{cipher:?} is not a cipher suite; it is left out"));
        } else if t.cipher_suites[..i].contains(cipher) {
            out.warn(path, format!("{cipher:?} is there twice"));
        }
    }
    let files = [
        ("serverCertificate", &t.server_certificate),
        ("privateKey", &t.private_key),
        ("caCertificates", &t.ca_certificates),
    ];
    match mode(t) {
        ServerTlsMode::IstioMutual => {
            let credential = ("credentialName", &t.credential_name);
            for (name, _) in files.iter().chain([&credential]).filter(|(_, v)| !v.is_empty()) {
                out.error(format!("{path}.{name}"), "must not be set for ISTIO_MUTUAL");
            }
            if !t.credential_names.is_empty() {
                out.error(format!("{path}.credentialNames"), "must not be set for ISTIO_MUTUAL");
            }
        }
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => {
            let any = files.iter().any(|(_, v)| !v.is_empty())
                || !t.credential_name.is_empty()
                || !t.credential_names.is_empty()
                || !t.tls_certificates.is_empty();
            if any {
                out.warn(path, "certificates have no effect where TLS is passed through");
            }
        }
        ServerTlsMode::Simple => certificates(path, t, false, out),
        ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => certificates(path, t, true, out),
    }
}

fn certificates(path: &str, t: &ServerTlsSettings, mutual: bool, out: &mut Verdict) {
    let secret = !t.credential_name.is_empty() || !t.credential_names.is_empty();
    let sources = [
        !t.credential_name.is_empty(),
        !t.credential_names.is_empty(),
        !t.server_certificate.is_empty(),
        !t.tls_certificates.is_empty(),
    ];
    if sources.iter().filter(|s| **s).count() > 1 {
        out.error(
            path,
            "only one of credentialName, credentialNames, serverCertificate and tlsCertificates may be set",
        );
        return;
    }
    if secret {
        if t.credential_names.len() > 2 {
            out.warn(format!("{path}.credentialNames"), "more than 2 certificates are not supported");
        }
        return;
    }
    if mutual && t.ca_certificates.is_empty() && t.ca_cert_credential_name.is_empty() {
        out.error(format!("{path}.caCertificates"), "is required for MUTUAL");
    }
    if t.tls_certificates.is_empty() {
        for (name, value) in [("serverCertificate", &t.server_certificate), ("privateKey", &t.private_key)] {
            if value.is_empty() {
                out.error(format!("{path}.{name}"), "is required");
            }
        }
        return;
    }
    if t.tls_certificates.len() > 2 {
        out.warn(format!("{path}.tlsCertificates"), "more than 2 certificates are not supported");
    }
    for (i, c) in t.tls_certificates.iter().enumerate() {
        for (name, value) in [("serverCertificate", &c.server_certificate), ("privateKey", &c.private_key)] {
            if value.is_empty() {
                out.error(format!("{path}.tlsCertificates[{i}].{name}"), "is required");
            }
        }
    }
}
