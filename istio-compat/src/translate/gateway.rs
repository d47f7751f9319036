//! Gateways: listeners, and what each of them does with requests for a domain.

use std::{cmp::Ordering, collections::BTreeMap};

use mesh_api::model::{self, GatewayProtocol, TlsVersion, server_tls::Mode};

use super::{Context, Delegates, route, secrets};
use crate::{
    names,
    types::{Gateway, Meta, Server, ServerTlsMode, ServerTlsSettings, TlsProtocol, VirtualService},
};

/// The annotation of what a Gateway of Gateway API becomes: the secret whose certificate it shows to backends.
pub const CLIENT_CERTIFICATE: &str = "internal.selvage.dev/client-certificate";

/// The listeners of a Gateway.
pub fn gateway(object: &Gateway) -> model::Gateway {
    let servers = object
        .spec
        .servers
        .iter()
        .zip(ids(object))
        .filter_map(|(server, id)| listener(server, id, &object.meta))
        .collect();
    model::Gateway {
        name: object.meta.key(),
        created: object.meta.creation_timestamp.clone(),
        selector: object.spec.selector.clone(),
        servers,
        client_secret: client_secret(object),
    }
}

/// Only what is derived has it: Gateways that users write cannot have such a name.
fn client_secret(object: &Gateway) -> String {
    let named = object.meta.annotations.get(CLIENT_CERTIFICATE).filter(|_| object.meta.name.contains('~'));
    named.map(|name| secrets::full_name(name, &object.meta.namespace)).unwrap_or_default()
}

/// Names of servers that stay when others come and go: their own, or port and position among those of the port.
fn ids(object: &Gateway) -> Vec<String> {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut id = |server: &Server| {
        let port = server.port.as_ref().map(|p| p.number).unwrap_or_default();
        let base = if server.name.is_empty() { port.to_string() } else { server.name.clone() };
        let n = seen.entry(base.clone()).or_default();
        *n += 1;
        if *n == 1 { base } else { format!("{base}#{n}") }
    };
    object.spec.servers.iter().map(&mut id).collect()
}

fn listener(server: &Server, id: String, meta: &Meta) -> Option<model::GatewayServer> {
    let port = server.port.as_ref()?;
    if server.bind.starts_with("unix://") {
        return None;
    }
    Some(model::GatewayServer {
        id,
        port: port.number,
        port_name: port.name.clone(),
        protocol: protocol(&port.protocol).into(),
        bind: server.bind.clone(),
        hosts: server_hosts(server, meta).into_iter().map(|h| h.name).collect(),
        tls: server.tls.as_ref().map(|t| tls(t, meta)),
    })
}

fn protocol(name: &str) -> GatewayProtocol {
    match name.to_ascii_lowercase().as_str() {
        "http" | "http2" | "grpc" | "grpc-web" | "http_proxy" => GatewayProtocol::GatewayHttp,
        "https" => GatewayProtocol::GatewayHttps,
        "tls" => GatewayProtocol::GatewayTls,
        _ => GatewayProtocol::GatewayTcp,
    }
}

fn tls(t: &ServerTlsSettings, meta: &Meta) -> model::ServerTls {
    let mode = match t.mode.unwrap_or_default() {
        ServerTlsMode::Passthrough => Mode::Passthrough,
        ServerTlsMode::Simple => Mode::Simple,
        ServerTlsMode::Mutual => Mode::Mutual,
        ServerTlsMode::AutoPassthrough => Mode::AutoPassthrough,
        ServerTlsMode::IstioMutual => Mode::IstioMutual,
        ServerTlsMode::OptionalMutual => Mode::OptionalMutual,
    };
    let version = |v: Option<TlsProtocol>| match v.unwrap_or_default() {
        TlsProtocol::Auto => TlsVersion::TlsAuto,
        TlsProtocol::V1_0 => TlsVersion::Tlsv10,
        TlsProtocol::V1_1 => TlsVersion::Tlsv11,
        TlsProtocol::V1_2 => TlsVersion::Tlsv12,
        TlsProtocol::V1_3 => TlsVersion::Tlsv13,
    };
    let alone = t.server_certificate.is_empty();
    let first = t.tls_certificates.first();
    let file =
        |own: &String, of: Option<&String>| if own.is_empty() { of.cloned() } else { Some(own.clone()) };
    model::ServerTls {
        mode: mode.into(),
        https_redirect: t.https_redirect,
        secrets: secret_names(t, meta),
        ca_secret: secrets::full_name(&t.ca_cert_credential_name, &meta.namespace),
        server_certificate: file(&t.server_certificate, first.map(|c| &c.server_certificate))
            .unwrap_or_default(),
        private_key: file(&t.private_key, first.map(|c| &c.private_key)).unwrap_or_default(),
        ca_certificates: file(&t.ca_certificates, first.map(|c| &c.ca_certificates)).unwrap_or_default(),
        ca_crl: t.ca_crl.clone(),
        subject_alt_names: t.subject_alt_names.clone(),
        verify_certificate_spki: t.verify_certificate_spki.clone(),
        verify_certificate_hash: t.verify_certificate_hash.clone(),
        min_version: version(t.min_protocol_version).into(),
        max_version: version(t.max_protocol_version).into(),
        cipher_suites: t.cipher_suites.clone(),
        insecure_skip_verify: t.insecure_skip_verify == Some(true),
        more_files: t
            .tls_certificates
            .iter()
            .skip(usize::from(alone))
            .map(|c| model::server_tls::KeyFiles {
                certificate: c.server_certificate.clone(),
                private_key: c.private_key.clone(),
            })
            .collect(),
    }
}

fn secret_names(t: &ServerTlsSettings, meta: &Meta) -> Vec<String> {
    let single = Some(&t.credential_name).filter(|n| !n.is_empty());
    single.into_iter().chain(&t.credential_names).map(|n| secrets::full_name(n, &meta.namespace)).collect()
}

/// Secrets that the listeners of a Gateway name, as `namespace/name`.
pub fn secrets_of(object: &Gateway) -> Vec<String> {
    let settings = object.spec.servers.iter().filter_map(|s| s.tls.as_ref());
    let mut out: Vec<String> = settings
        .flat_map(|t| {
            let mut names = secret_names(t, &object.meta);
            names.push(secrets::full_name(&t.ca_cert_credential_name, &object.meta.namespace));
            names
        })
        .chain([client_secret(object)])
        .filter(|n| !n.is_empty())
        .collect();
    out.sort();
    out.dedup();
    out
}

/// The Gateways (`namespace/name`) that a VirtualService is bound to.
pub fn gateways_of(object: &VirtualService) -> Vec<String> {
    let mut out = route::gateways(&object.spec.gateways, &object.meta);
    out.retain(|g| g != "mesh");
    out.sort();
    out.dedup();
    out
}

/// Whether a VirtualService has rules for the mesh, beside those for gateways.
pub fn is_for_mesh(object: &VirtualService) -> bool {
    object.spec.gateways.is_empty() || object.spec.gateways.iter().any(|g| g == "mesh")
}

/// A host of a server, with the namespace that VirtualServices must be of.
struct ServerHost {
    namespace: Option<String>,
    name: String,
}

fn server_hosts(server: &Server, meta: &Meta) -> Vec<ServerHost> {
    let one = |host: &String| {
        let (namespace, name) = host.split_once('/').map_or((None, host.as_str()), |(n, h)| (Some(n), h));
        ServerHost {
            namespace: match namespace {
                None | Some("*") => None,
                Some(".") => Some(meta.namespace.clone()),
                Some(other) => Some(other.to_owned()),
            },
            name: name.trim_end_matches('.').to_ascii_lowercase(),
        }
    };
    server.hosts.iter().map(one).collect()
}

/// Whether TLS passes through a server unopened.
fn passes_tls(server: &Server) -> bool {
    let tls = server.tls.as_ref().filter(|_| {
        server
            .port
            .as_ref()
            .is_some_and(|p| matches!(p.protocol.to_ascii_uppercase().as_str(), "HTTPS" | "TLS"))
    });
    tls.is_some_and(|t| {
        matches!(t.mode.unwrap_or_default(), ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough)
    })
}

/// What the rules of a VirtualService are for at a server: its hosts, or, where TLS passes through, the server names.
fn claimed(server: &Server, object: &VirtualService, ctx: &Context) -> Vec<String> {
    if !passes_tls(server) {
        return route::hosts_of(object, ctx);
    }
    let matches = object.spec.tls.iter().flat_map(|r| &r.matches);
    matches.flat_map(|m| &m.sni_hosts).map(|h| h.to_ascii_lowercase()).collect()
}

/// The narrower of two hosts, when one covers the other.
fn narrower<'a>(server: &'a str, rule: &'a str) -> Option<&'a str> {
    match () {
        () if names::covers(server, rule) => Some(rule),
        () if names::covers(rule, server) => Some(server),
        () => None,
    }
}

/// Domains of each server (by id) at which a VirtualService answers.
pub fn domains(gateway: &Gateway, object: &VirtualService, ctx: &Context) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for (server, id) in gateway.spec.servers.iter().zip(ids(gateway)) {
        for domain in server_domains(server, &gateway.meta, object, ctx) {
            out.push((id.clone(), domain));
        }
    }
    out.sort();
    out.dedup();
    out
}

fn server_domains(server: &Server, meta: &Meta, object: &VirtualService, ctx: &Context) -> Vec<String> {
    let rules = claimed(server, object, ctx);
    let hosts = server_hosts(server, meta);
    let usable = hosts.iter().filter(|h| h.namespace.as_ref().is_none_or(|n| *n == object.meta.namespace));
    usable.flat_map(|s| rules.iter().filter_map(|r| narrower(&s.name, r)).map(str::to_owned)).collect()
}

/// Domains of each server (by id) at which rules for a host or server name may answer, whoever they belong to.
pub fn domains_of_claim(gateway: &Gateway, claim: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for (server, id) in gateway.spec.servers.iter().zip(ids(gateway)) {
        let hosts = server_hosts(server, &gateway.meta);
        out.extend(hosts.iter().filter_map(|s| narrower(&s.name, claim)).map(|d| (id.clone(), d.to_owned())));
    }
    out
}

/// What a server does with requests for a domain. `candidates` are VirtualServices of which some may be bound to the
/// Gateway and answer at the domain; others are left out.
pub fn gateway_host(
    gateway: &Gateway,
    (server_id, domain): (&str, &str),
    candidates: &[&VirtualService],
    ctx: &Context,
    delegates: Delegates<'_>,
) -> Option<model::GatewayHost> {
    let name = gateway.meta.key();
    let at = ids(gateway).iter().position(|id| id == server_id)?;
    let server = gateway.spec.servers.get(at)?;
    let mut bound: Vec<_> = candidates
        .iter()
        .filter(|v| gateways_of(v).contains(&name))
        .filter(|v| server_domains(server, &gateway.meta, v, ctx).iter().any(|d| d == domain))
        .copied()
        .collect();
    bound.sort_by(|a, b| order(a, b, ctx));
    let parts: Vec<_> = bound
        .into_iter()
        .filter_map(|v| {
            let part = route::rules(v, ctx, delegates)?;
            Some(fitting(part, server, route::is_gateway_api(&v.meta)))
        })
        .filter(|p| !p.http.is_empty() || !p.tls.is_empty() || !p.tcp.is_empty())
        .collect();
    let (server, domain) = (server_id.to_owned(), domain.to_owned());
    (!parts.is_empty()).then_some(model::GatewayHost { gateway: name, server, domain, parts })
}

fn order(a: &VirtualService, b: &VirtualService, ctx: &Context) -> Ordering {
    let key = |v: &VirtualService| {
        let list = super::exported(&v.spec.export_to, &ctx.exports.virtual_service);
        route::Visibility::of(list, &v.meta.namespace).group(&v.meta.namespace)
    };
    key(a).cmp(&key(b)).then_with(|| a.meta.age_order().cmp(&b.meta.age_order()))
}

/// The rules that a server of this kind asks. Where TLS ends at the server, Istio's rules for what is inside are those for
/// bytes; those of Gateway API may go by the name of the handshake.
fn fitting(mut part: model::VirtualHost, server: &Server, by_name: bool) -> model::VirtualHost {
    let kind = server.port.as_ref().map(|p| protocol(&p.protocol));
    if passes_tls(server) {
        part.http.clear();
        part.tcp.clear();
    } else if matches!(kind, Some(GatewayProtocol::GatewayHttp | GatewayProtocol::GatewayHttps)) {
        part.tls.clear();
        part.tcp.clear();
    } else {
        part.http.clear();
        if !(by_name && kind == Some(GatewayProtocol::GatewayTls)) {
            part.tls.clear();
        }
    }
    part
}
