//! PeerAuthentications and RequestAuthentications.

use super::{Verdict, targets, text};
use crate::types::{JwtRule, PeerAuthentication, RequestAuthentication};

pub(super) fn check_peer(object: &PeerAuthentication, out: &mut Verdict) {
    let spec = &object.spec;
    let labels = spec.selector.as_ref().map(|s| &s.match_labels);
    if let Some(labels) = labels {
        out.selector("spec.selector", Some(labels));
    }
    if !spec.port_level_mtls.is_empty() && labels.is_none_or(std::collections::BTreeMap::is_empty) {
        out.error("spec.portLevelMtls", "needs a selector");
    }
    for port in spec.port_level_mtls.keys() {
        let number: Option<u32> = port.parse().ok();
        if number.is_none_or(|n| text::port(n).is_err()) {
            out.error(format!("spec.portLevelMtls[{port:?}]"), "is not a port number (1 to 65535)");
        }
    }
}

pub(super) fn check_request(object: &RequestAuthentication, out: &mut Verdict) {
    let spec = &object.spec;
    targets::check(spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs, out);
    for (i, rule) in spec.jwt_rules.iter().enumerate() {
        jwt_rule(&format!("spec.jwtRules[{i}]"), rule, out);
    }
}

fn jwt_rule(path: &str, r: &JwtRule, out: &mut Verdict) {
    let uri = r.jwks_uri.as_deref().unwrap_or_default();
    if r.issuer.as_deref().unwrap_or_default().is_empty() && uri.is_empty() {
        out.error(format!("{path}.issuer"), "issuer or jwksUri is required");
    }
    if !uri.is_empty() {
        out.check(&format!("{path}.jwksUri"), http_uri(uri));
    }
    if !r.jwks.is_empty() && !uri.is_empty() {
        out.warn(format!("{path}.jwks"), "only one of jwks and jwksUri should be set");
    }
    if !r.jwks.is_empty() {
        out.check(&format!("{path}.jwks"), key_set(&r.jwks));
    }
    let lists = [
        ("audiences", &r.audiences),
        ("fromParams", &r.from_params),
        ("fromCookies", &r.from_cookies),
        ("spaceDelimitedClaims", &r.space_delimited_claims),
    ];
    for (name, list) in lists {
        for (i, _) in list.iter().enumerate().filter(|(_, v)| v.is_empty()) {
            out.error(format!("{path}.{name}[{i}]"), "must not be empty");
        }
    }
    for (i, _) in r.from_headers.iter().enumerate().filter(|(_, h)| h.name.is_empty()) {
        out.error(format!("{path}.fromHeaders[{i}].name"), "is required");
    }
    for (i, c) in r.output_claim_to_headers.iter().enumerate() {
        let path = format!("{path}.outputClaimToHeaders[{i}]");
        if c.header.is_empty() || c.claim.is_empty() {
            out.error(path, "header and claim are required");
        } else {
            let plain = c.header.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            if !plain {
                out.error(format!("{path}.header"), format!("{:?} is not a header name", c.header));
            }
        }
    }
    out.duration(&format!("{path}.timeout"), r.timeout.as_ref());
}

fn http_uri(uri: &str) -> Result<(), String> {
    let rest = uri
        .split_once("://")
        .filter(|(scheme, _)| matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https"))
        .map(|(_, rest)| rest)
        .ok_or_else(|| format!("{uri:?} is not a URL with scheme http or https"))?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let bad =
        authority.is_empty() || authority.bytes().any(|b| b <= b' ' || b == b'\\' || b == b'<' || b == b'>');
    let port = authority.rsplit_once(':').map(|(_, p)| p).filter(|p| !p.ends_with(']'));
    let bad_port = port.is_some_and(|p| !p.is_empty() && p.parse::<u16>().is_err());
    text::require(!bad && !bad_port, || format!("{uri:?} has no valid host"))
}

/// A set of keys: an object with a list of keys that have a type.
fn key_set(text: &str) -> Result<(), String> {
    let set: serde_json::Value =
        serde_json::from_str(text).map_err(|e| format!("is not a set of keys: {e}"))?;
    let keys = set.get("keys").and_then(serde_json::Value::as_array);
    let typed = |k: &serde_json::Value| k.get("kty").is_some_and(serde_json::Value::is_string);
    let fits = keys.map_or_else(|| typed(&set), |list| list.iter().all(typed));
    text::require(fits, || "is not a set of keys: a key has no type".to_owned())
}
