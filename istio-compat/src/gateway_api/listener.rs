//! One listener of a Gateway or ListenerSet: the server that it becomes, its conditions, the routes that it takes.

use serde_json::{Map, Value, json};

use super::{
    World,
    certificates::{self, INVALID_CA_KIND, INVALID_CA_REF, REF_NOT_PERMITTED, Referrer},
    conditions::{Clock, Conditions, Problem, join},
    grants::GroupKind,
    objects::GROUP,
    selector,
    types::{AllowedRoutes, FrontendTlsConfig, GatewaySpec, Listener, ListenerTls, RouteKind},
};
use crate::types::Meta;

/// Cipher suites of TLS 1.2 that a listener may ask for; others in its list are left out.
const CIPHER_SUITES: [&str; 15] = [
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
    "AES128-SHA",
    "AES256-GCM-SHA384",
    "AES256-SHA",
    "DES-CBC3-SHA",
];

/// Who owns a listener.
#[derive(Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) kind: &'static str,
    pub(crate) meta: &'a Meta,
    /// The Gateway (of a ListenerSet: its parent).
    pub(crate) gateway: &'a GatewaySpec,
}

/// What becomes of a listener.
pub(crate) struct Built {
    /// An Istio server; none where there is nothing to serve.
    pub(crate) server: Option<Value>,
    pub(crate) hosts: Vec<String>,
    pub(crate) conditions: Conditions,
    pub(crate) valid: bool,
}

fn fine() -> Conditions {
    let mut conditions = Conditions::default()
        .set("Accepted", "Accepted", "No errors found")
        .set("Programmed", "Programmed", "No errors found")
        .set("ResolvedRefs", "ResolvedRefs", "No errors found");
    conditions.put("Conflicted", false, "NoConflicts", "No errors found");
    conditions
}

/// Conditions of a listener that another one has forestalled.
pub(crate) fn conflicted(reason: &'static str) -> Conditions {
    let message = "Listener has a conflict with another listener attached to the same Gateway";
    let mut conditions = Conditions::default();
    conditions.put("Accepted", false, reason, message);
    conditions.put("Conflicted", true, reason, message);
    conditions.put("Programmed", false, reason, message);
    conditions
}

/// `port_problem`: a ListenerSet may leave the port to the protocol, which must have one then.
pub(crate) fn build(
    world: &World<'_>,
    owner: Owner<'_>,
    listener: &Listener,
    port_problem: Option<&str>,
) -> Built {
    let mut conditions = fine();
    let mut valid = true;
    let mut tls = None;
    match server_tls(world, owner, listener) {
        Ok(settings) => tls = settings,
        Err((settings, problem)) => {
            tls = settings.or(tls);
            conditions.fail("ResolvedRefs", &problem);
            conditions.fail("Programmed", &Problem::new("Invalid", "Bad TLS configuration"));
            if [INVALID_CA_REF, INVALID_CA_KIND, REF_NOT_PERMITTED].contains(&problem.reason) {
                conditions.fail("Accepted", &Problem::new("NoValidCACertificate", problem.message));
            }
            valid = false;
        }
    }
    let protocol = protocol(&listener.protocol);
    for why in port_problem.map(str::to_owned).into_iter().chain(protocol.as_ref().err().cloned()) {
        conditions.fail("Accepted", &Problem::new("UnsupportedProtocol", why));
        valid = false;
    }
    let hosts = hosts(world, &owner.meta.namespace, listener);
    let needs_tls = matches!(listener.protocol.as_str(), "HTTPS" | "TLS");
    let server = if tls.is_none() && needs_tls {
        if owner.kind == "ListenerSet" {
            valid = false;
            let why = format!("protocol is {} but no TLS section is defined", listener.protocol);
            conditions.fail("Accepted", &Problem::new("UnsupportedProtocol", why));
            conditions.fail("Programmed", &Problem::new("Invalid", "Bad TLS configuration"));
        }
        None
    } else {
        let mut server = json!({
            "hosts": hosts,
            "port": { "name": "default", "number": listener.port, "protocol": protocol.unwrap_or_default() },
        });
        if let Some(tls) = tls {
            server["tls"] = tls;
        }
        Some(server)
    };
    Built { server, hosts, conditions, valid }
}

fn protocol(protocol: &str) -> Result<&str, String> {
    const KNOWN: [&str; 4] = ["HTTP", "HTTPS", "TLS", "TCP"];
    if KNOWN.contains(&protocol) {
        return Ok(protocol);
    }
    if protocol == "HBONE" {
        return Err(format!("protocol {protocol:?} is only supported for waypoint proxies"));
    }
    let upper = protocol.to_uppercase();
    if KNOWN.contains(&upper.as_str()) || upper == "HBONE" {
        return Err(format!(
            "protocol {protocol:?} is unsupported. hint: {upper:?} (uppercase) may be supported"
        ));
    }
    Err(format!("protocol {protocol:?} is unsupported"))
}

/// `namespace/host` for each namespace whose routes may attach; `~/host` when there is none.
fn hosts(world: &World<'_>, namespace: &str, listener: &Listener) -> Vec<String> {
    let host = listener.hostname.as_deref().unwrap_or("*");
    let names = namespaces(world, namespace, listener.allowed_routes.as_ref());
    if names.is_empty() {
        return vec![format!("~/{host}")];
    }
    names.iter().map(|ns| format!("{ns}/{host}")).collect()
}

fn namespaces(world: &World<'_>, own: &str, allowed: Option<&AllowedRoutes>) -> Vec<String> {
    let Some(choice) = allowed.and_then(|a| a.namespaces.as_ref()) else { return vec![own.to_owned()] };
    match (choice.from.as_deref(), &choice.selector) {
        (None | Some("Same"), _) => vec![own.to_owned()],
        (Some("All"), _) | (_, None) => vec!["*".to_owned()],
        (Some(_), Some(selector)) => {
            let all = world.facts.namespaces();
            all.into_iter()
                .filter(|(name, labels)| !name.is_empty() && selector::selects(selector, name, labels))
                .map(|(name, _)| name)
                .collect()
        }
    }
}

/// Kinds of routes that a listener takes, and whether all that it lists are possible.
pub(crate) fn route_kinds(listener: &Listener) -> (Vec<&'static str>, bool) {
    let possible: &[&'static str] = match listener.protocol.as_str() {
        "HTTP" | "HTTPS" => &["HTTPRoute", "GRPCRoute"],
        "TCP" => &["TCPRoute"],
        "TLS" => {
            let terminates = listener.tls.as_ref().and_then(|t| t.mode.as_deref()) == Some("Terminate");
            if terminates { &["TLSRoute", "TCPRoute"] } else { &["TLSRoute"] }
        }
        _ => &[],
    };
    let listed = listener.allowed_routes.as_ref().map(|a| a.kinds.as_slice()).unwrap_or_default();
    if listed.is_empty() {
        return (possible.to_vec(), true);
    }
    let wanted =
        |kind: &&&str| listed.iter().any(|k| GroupKind::of_route(k) == GroupKind { group: GROUP, kind });
    let both: Vec<_> = possible.iter().filter(wanted).copied().collect();
    let all = both.len() == listed.len();
    (both, all)
}

/// The status of one listener.
pub(crate) fn status(
    listener: &Listener,
    mut conditions: Conditions,
    existing: Option<&Value>,
    attached: usize,
    clock: Clock<'_>,
) -> Value {
    let (kinds, all) = route_kinds(listener);
    if !all {
        conditions.put("ResolvedRefs", false, "InvalidRouteKinds", "Invalid route kinds");
    }
    let kinds: Vec<_> = kinds
        .into_iter()
        .map(|kind| RouteKind { group: Some(GROUP.to_owned()), kind: kind.to_owned() })
        .collect();
    let old = existing
        .and_then(Value::as_array)
        .and_then(|list| list.iter().find(|l| l.get("name").and_then(Value::as_str) == Some(&listener.name)))
        .and_then(|l| l.get("conditions"));
    json!({
        "attachedRoutes": attached,
        "conditions": conditions.merged(old, clock),
        "name": listener.name,
        "supportedKinds": kinds,
    })
}

type BadTls = (Option<Value>, Problem);

fn server_tls(world: &World<'_>, owner: Owner<'_>, listener: &Listener) -> Result<Option<Value>, BadTls> {
    let Some(tls) = &listener.tls else { return Ok(None) };
    let mut out = Map::new();
    let result = match tls.mode.as_deref() {
        None | Some("Terminate") => terminate(world, owner, listener, tls, &mut out),
        Some("Passthrough") => {
            if auto_passthrough(owner.meta, listener, tls) {
                out.insert("mode".into(), "AUTO_PASSTHROUGH".into());
            }
            Ok(())
        }
        Some(_) => Ok(()),
    };
    if let Err(problem) = result {
        return Err((Some(Value::Object(out)), problem));
    }
    let builtin = matches!(option(tls, "tls-terminate-mode"), Some("ISTIO_SIMPLE" | "ISTIO_MUTUAL"));
    if let Some(suites) = option(tls, "tls-cipher-suites").filter(|_| !builtin) {
        let mut known: Vec<&str> = Vec::new();
        for suite in suites.split(',').map(str::trim) {
            if CIPHER_SUITES.contains(&suite) && !known.contains(&suite) {
                known.push(suite);
            }
        }
        if !known.is_empty() {
            out.insert("cipherSuites".into(), json!(known));
        }
    }
    Ok(Some(Value::Object(out)))
}

fn option<'a>(tls: &'a ListenerTls, name: &str) -> Option<&'a str> {
    tls.options.get(&format!("gateway.istio.io/{name}")).map(String::as_str)
}

fn terminate(
    world: &World<'_>,
    owner: Owner<'_>,
    listener: &Listener,
    tls: &ListenerTls,
    out: &mut Map<String, Value>,
) -> Result<(), Problem> {
    let mode = option(tls, "tls-terminate-mode");
    out.insert(
        "mode".into(),
        match mode {
            Some(mode @ ("MUTUAL" | "OPTIONAL_MUTUAL" | "ISTIO_MUTUAL")) => mode.into(),
            _ => "SIMPLE".into(),
        },
    );
    match mode {
        Some("ISTIO_SIMPLE") => {
            out.insert("credentialName".into(), "builtin://".into());
            return Ok(());
        }
        Some("ISTIO_MUTUAL") => return Ok(()),
        _ => {}
    }
    if tls.certificate_refs.len() > 2 {
        return Err(Problem::new(
            certificates::INVALID_CERTIFICATE_REF,
            "TLS mode can only support up to 2 server certificates",
        ));
    }
    let by = Referrer { kind: owner.kind, namespace: &owner.meta.namespace };
    let mut names = Vec::new();
    let mut problem = None;
    for reference in &tls.certificate_refs {
        match certificates::server(world, reference, by) {
            Ok(name) => names.push(name),
            Err(p) => problem = join(problem, Some(p)),
        }
    }
    match &names[..] {
        [] => return problem.map_or(Ok(()), Err),
        [one] => {
            out.insert("credentialName".into(), one.as_str().into());
        }
        several => {
            out.insert("credentialNames".into(), json!(several));
        }
    }
    match frontend(owner.gateway, listener.port) {
        Some(config) => client_certificates(world, by, config, mode, out),
        None => Ok(()),
    }
}

/// How client certificates are asked for on a port.
fn frontend(gateway: &GatewaySpec, port: u32) -> Option<&FrontendTlsConfig> {
    let frontend = gateway.tls.as_ref()?.frontend.as_ref()?;
    let of_port = frontend.per_port.iter().find(|p| p.port == port).map(|p| &p.tls);
    Some(of_port.unwrap_or(&frontend.default))
}

fn client_certificates(
    world: &World<'_>,
    by: Referrer<'_>,
    config: &FrontendTlsConfig,
    mode: Option<&str>,
    out: &mut Map<String, Value>,
) -> Result<(), Problem> {
    let Some(validation) = &config.validation else { return Ok(()) };
    let reference = match &validation.ca_certificate_refs[..] {
        [] => return Ok(()),
        [one] => one,
        _ => return Err(Problem::new(INVALID_CA_REF, "only one caCertificateRef is supported")),
    };
    let ca = certificates::client_ca(world, reference, by)?;
    let (mut wanted, mut skip) = ("MUTUAL", false);
    if validation.mode.as_deref() == Some("AllowInsecureFallback") {
        (wanted, skip) = ("OPTIONAL_MUTUAL", true);
    }
    if let Some(mode @ ("MUTUAL" | "OPTIONAL_MUTUAL")) = mode {
        (wanted, skip) = (mode, false);
    }
    out.insert("mode".into(), wanted.into());
    out.insert("insecureSkipVerify".into(), skip.into());
    out.insert("caCertCredentialName".into(), ca.into());
    Ok(())
}

/// Whether TLS is passed to the service that the SNI names: the east-west gateway between networks.
fn auto_passthrough(meta: &Meta, listener: &Listener, tls: &ListenerTls) -> bool {
    if option(tls, "listener-protocol") == Some("auto-passthrough") {
        return true;
    }
    if !meta.labels.contains_key("topology.istio.io/network") {
        return false;
    }
    let port = meta.labels.get("networking.istio.io/gatewayPort").map_or("15443", String::as_str);
    listener.port.to_string() == port
}
