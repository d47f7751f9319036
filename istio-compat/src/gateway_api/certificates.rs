//! Certificates that listeners and policies refer to: whether they may, whether they exist, whether they are any. Nothing
//! is verified beyond the form; a node that cannot use a certificate says so itself.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    World,
    conditions::Problem,
    grants::{self, GroupKind},
    types::ObjectReference,
};

pub(crate) const INVALID_CERTIFICATE_REF: &str = "InvalidCertificateRef";
pub(crate) const INVALID_CA_REF: &str = "InvalidCACertificateRef";
pub(crate) const INVALID_CA_KIND: &str = "InvalidCACertificateKind";
pub(crate) const INVALID_CLIENT_REF: &str = "InvalidClientCertificateRef";
pub(crate) const REF_NOT_PERMITTED: &str = "RefNotPermitted";

/// Blocks of a PEM text that can be read: label, and whether it holds DER.
fn pem_blocks(text: &str) -> Vec<(String, bool)> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        let Some((label, body)) = after.split_once("-----") else { break };
        let Some((body, tail)) = body.split_once(&format!("-----END {label}-----")) else {
            rest = after;
            continue;
        };
        let compact: String = body.chars().filter(|c| !c.is_whitespace()).collect();
        let der = STANDARD.decode(compact).is_ok_and(|der| der.first() == Some(&0x30));
        out.push((label.to_owned(), der));
        rest = tail;
    }
    out
}

fn has_certificate(text: &[u8]) -> bool {
    pem_blocks(&String::from_utf8_lossy(text)).iter().any(|(label, der)| label == "CERTIFICATE" && *der)
}

/// What is wrong with a certificate and its key, in the words that users of Istio know.
fn malformed_pair(certificate: &[u8], key: &[u8]) -> Option<String> {
    let certificates = pem_blocks(&String::from_utf8_lossy(certificate));
    if certificates.is_empty() {
        return Some("tls: failed to find any PEM data in certificate input".to_owned());
    }
    let Some((_, der)) = certificates.iter().find(|(label, _)| label == "CERTIFICATE") else {
        let labels: Vec<_> = certificates.iter().map(|(label, _)| label.as_str()).collect();
        if labels.iter().any(|l| l.ends_with("PRIVATE KEY")) {
            return Some(
                "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs \
                 may have been switched"
                    .to_owned(),
            );
        }
        return Some(format!(
            "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the \
             following types: [{}]",
            labels.join(" ")
        ));
    };
    let keys = pem_blocks(&String::from_utf8_lossy(key));
    if keys.is_empty() {
        return Some("tls: failed to find any PEM data in key input".to_owned());
    }
    if !keys.iter().any(|(label, _)| label == "PRIVATE KEY" || label.ends_with(" PRIVATE KEY")) {
        return Some("tls: found a certificate rather than a key in the PEM for the private key".to_owned());
    }
    (!der).then(|| "x509: malformed certificate".to_owned())
}

fn found_keys<'a>(keys: impl Iterator<Item = &'a String>) -> String {
    let keys: Vec<_> = keys.map(String::as_str).collect();
    if keys.len() < 3 {
        return keys.join(", ");
    }
    format!("{}, and {} more...", keys[..3].join(", "), keys.len() - 3)
}

/// Certificate and key of a Secret in one of the two layouts.
fn pair(data: &BTreeMap<String, Vec<u8>>) -> Result<(&[u8], &[u8]), String> {
    let layouts = [("cert", "key"), ("tls.crt", "tls.key")];
    for (certificate, key) in layouts {
        if let (Some(c), Some(k)) = (data.get(certificate), data.get(key))
            && !c.is_empty()
            && !k.is_empty()
        {
            return Ok((c, k));
        }
    }
    for (certificate, key) in layouts {
        if data.contains_key(certificate) && data.contains_key(key) {
            return Err(format!("found keys {certificate:?} and {key:?}, but they were empty"));
        }
    }
    Err(format!(
        "found secret, but didn't have expected keys (cert and key) or (tls.crt and tls.key); found: {}",
        found_keys(data.keys())
    ))
}

/// The CA certificates of a Secret or ConfigMap in one of the two layouts.
fn root(data: &BTreeMap<String, Vec<u8>>) -> Result<&[u8], String> {
    for key in ["cacert", "ca.crt"] {
        if let Some(value) = data.get(key).filter(|v| !v.is_empty()) {
            return Ok(value);
        }
    }
    for key in ["cacert", "ca.crt"] {
        if data.contains_key(key) {
            return Err(format!("found key {key:?}, but it was empty"));
        }
    }
    Err(format!(
        "found secret, but didn't have expected keys cacert or ca.crt; found: {}",
        found_keys(data.keys())
    ))
}

fn bytes(data: BTreeMap<String, String>) -> BTreeMap<String, Vec<u8>> {
    data.into_iter().map(|(k, v)| (k, v.into_bytes())).collect()
}

/// Whether a ConfigMap holds CA certificates, as far as policies ask.
pub(crate) fn config_map_root(data: BTreeMap<String, String>) -> Result<(), String> {
    root(&bytes(data)).map(|_| ())
}

/// A reference as messages spell it.
fn spelled(reference: &ObjectReference) -> String {
    format!(
        "{}/{}/{}.{}",
        reference.group.as_deref().unwrap_or_default(),
        reference.kind.as_deref().unwrap_or_default(),
        reference.name,
        reference.namespace.as_deref().unwrap_or_default()
    )
}

/// Who refers: kind (of Gateway API) and namespace.
#[derive(Clone, Copy)]
pub(crate) struct Referrer<'a> {
    pub(crate) kind: &'a str,
    pub(crate) namespace: &'a str,
}

/// What a Secret with a key pair is called in messages, and which reason is given.
struct Wording {
    reason: &'static str,
    what: &'static str,
}

fn key_pair(
    world: &World<'_>,
    reference: &ObjectReference,
    namespace: &str,
    wording: &Wording,
) -> Result<String, Problem> {
    let Wording { reason, what } = wording;
    let bad = |why: String| Problem::new(reason, format!("invalid {what} {}, {why}", spelled(reference)));
    let kind = GroupKind::of(reference.group.as_ref(), reference.kind.as_ref(), GroupKind::SECRET);
    if kind != GroupKind::SECRET {
        return Err(bad("only secret is allowed".to_owned()));
    }
    let namespace = reference.namespace.as_deref().unwrap_or(namespace);
    let name = &reference.name;
    let secret = world
        .facts
        .secret(namespace, name)
        .ok_or_else(|| bad(format!("secret {namespace}/{name} not found")))?;
    let (certificate, key) = pair(&secret).map_err(bad)?;
    if let Some(why) = malformed_pair(certificate, key) {
        return Err(bad(format!("the certificate is malformed: {why}")));
    }
    Ok(format!("kubernetes-gateway://{namespace}/{name}"))
}

/// The name of a listener's certificate, or why it cannot be used. Leave is asked for before anything is looked up, so
/// that a status never tells what exists in a namespace of others.
pub(crate) fn server(
    world: &World<'_>,
    reference: &ObjectReference,
    by: Referrer<'_>,
) -> Result<String, Problem> {
    let namespace = reference.namespace.as_deref().unwrap_or(by.namespace);
    let may =
        grants::allowed(world.objects, by.kind, by.namespace, GroupKind::SECRET, namespace, &reference.name);
    if namespace != by.namespace && !may {
        return Err(Problem::new(
            REF_NOT_PERMITTED,
            format!(
                "certificateRef {}/{namespace} not accessible to a Gateway in namespace {:?} (missing a \
                 ReferenceGrant?)",
                reference.name, by.namespace
            ),
        ));
    }
    let wording = Wording { reason: INVALID_CERTIFICATE_REF, what: "certificate reference" };
    key_pair(world, reference, by.namespace, &wording)
}

/// The name of the certificate that a Gateway shows to backends, or why it cannot be used.
pub(crate) fn client(
    world: &World<'_>,
    reference: &ObjectReference,
    namespace: &str,
) -> Result<String, Problem> {
    let wording = Wording { reason: INVALID_CLIENT_REF, what: "clientCertificateRef" };
    let name = key_pair(world, reference, namespace, &wording)?;
    let target = reference.namespace.as_deref().unwrap_or(namespace);
    let may =
        grants::allowed(world.objects, "Gateway", namespace, GroupKind::SECRET, target, &reference.name);
    if target != namespace && !may {
        return Err(Problem::new(
            REF_NOT_PERMITTED,
            format!(
                "clientCertificateRef {}/{target} not accessible to a Gateway in namespace {namespace:?} (missing a \
                 ReferenceGrant?)",
                reference.name
            ),
        ));
    }
    Ok(name)
}

/// The name of the CA certificates for clients, or why they cannot be used.
pub(crate) fn client_ca(
    world: &World<'_>,
    reference: &ObjectReference,
    by: Referrer<'_>,
) -> Result<String, Problem> {
    let none = GroupKind { group: "", kind: "" };
    let kind = GroupKind::of(reference.group.as_ref(), reference.kind.as_ref(), none);
    let namespace = reference.namespace.as_deref().unwrap_or(by.namespace);
    let name = &reference.name;
    let target = if kind == GroupKind::SECRET { kind } else { GroupKind::CONFIG_MAP };
    if namespace != by.namespace
        && !grants::allowed(world.objects, by.kind, by.namespace, target, namespace, name)
    {
        return Err(Problem::new(
            REF_NOT_PERMITTED,
            format!(
                "caCertificateRef {namespace}/{name} not accessible to a Gateway in namespace {:?} (missing a \
                 ReferenceGrant?)",
                by.namespace
            ),
        ));
    }
    let bad = |reason: &'static str, why: &str| {
        Problem::new(reason, format!("invalid CA certificate reference {}, {why}", spelled(reference)))
    };
    let (scheme, data) = if kind == GroupKind::CONFIG_MAP {
        let map = world.facts.config_map(namespace, name);
        let map =
            map.ok_or_else(|| bad(INVALID_CA_REF, &format!("configmap {namespace}/{name} not found")))?;
        ("configmap", bytes(map))
    } else if kind == GroupKind::SECRET {
        let secret = world.facts.secret(namespace, name);
        let secret =
            secret.ok_or_else(|| bad(INVALID_CA_REF, &format!("secret {namespace}/{name} not found")))?;
        ("kubernetes-gateway", secret)
    } else {
        return Err(bad(INVALID_CA_KIND, "only secret and configmap are allowed"));
    };
    let certificates = root(&data).map_err(|why| bad(INVALID_CA_REF, &why))?;
    if !has_certificate(certificates) {
        return Err(bad(INVALID_CA_REF, "the bundle is malformed"));
    }
    Ok(format!("{scheme}://{namespace}/{name}-cacert"))
}
