//! AuthorizationPolicies.

use super::{Verdict, targets, text};
use crate::types::{
    AuthorizationAction as Action, AuthorizationPolicy, AuthorizationRule, Condition, Operation, Source,
};

const DRY_RUN: &str = "istio.io/dry-run";

pub(super) fn check(object: &AuthorizationPolicy, out: &mut Verdict) {
    let spec = &object.spec;
    targets::check(spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs, out);
    let action = spec.action.unwrap_or_default();
    if let Some(value) = object.meta.annotations.get(DRY_RUN) {
        let path = format!("metadata.annotations[{DRY_RUN:?}]");
        if !matches!(action, Action::Allow | Action::Deny) {
            out.error(path.as_str(), "is for ALLOW and DENY only");
        }
        let truth = ["1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"];
        if !truth.contains(&value.as_str()) {
            out.error(path, format!("{value:?} is neither true nor false"));
        }
    }
    let named = spec.provider.as_ref().is_some_and(|p| !p.name.is_empty());
    match action {
        Action::Custom if !named => out.error("spec.provider.name", "is required for CUSTOM"),
        Action::Custom => {}
        _ if spec.provider.is_some() => out.error("spec.provider", "is for CUSTOM only"),
        _ => {}
    }
    if spec.rules.is_none() && matches!(action, Action::Deny | Action::Custom) {
        out.error(
            "spec.rules",
            "without rules nothing is ever refused; write one empty rule to match everything",
        );
    }
    for (i, r) in spec.rules.iter().flatten().enumerate() {
        rule(&format!("spec.rules[{i}]"), r, action == Action::Custom, out);
    }
}

fn rule(path: &str, r: &AuthorizationRule, custom: bool, out: &mut Verdict) {
    if r.from.as_ref().is_some_and(Vec::is_empty) {
        out.error(format!("{path}.from"), "must not be empty");
    }
    for (i, from) in r.from.iter().flatten().enumerate() {
        let path = format!("{path}.from[{i}].source");
        match &from.source {
            None => out.error(path, "is required"),
            Some(s) => source(&path, s, custom, out),
        }
    }
    if r.to.as_ref().is_some_and(Vec::is_empty) {
        out.error(format!("{path}.to"), "must not be empty");
    }
    for (i, to) in r.to.iter().flatten().enumerate() {
        let path = format!("{path}.to[{i}].operation");
        match &to.operation {
            None => out.error(path, "is required"),
            Some(o) => operation(&path, o, out),
        }
    }
    for (i, c) in r.when.iter().enumerate() {
        condition(&format!("{path}.when[{i}]"), c, custom, out);
    }
}

type Lists<'a> = [(&'static str, &'a Option<Vec<String>>)];

/// Something must be set, and nothing must be empty.
fn lists(path: &str, lists: &Lists<'_>, out: &mut Verdict) {
    if lists.iter().all(|(_, l)| l.as_ref().is_none_or(Vec::is_empty)) {
        out.error(path, "needs at least one condition");
    }
    for (name, list) in lists {
        for (i, _) in list.iter().flatten().enumerate().filter(|(_, v)| v.is_empty()) {
            out.error(format!("{path}.{name}[{i}]"), "must not be empty");
        }
    }
}

fn source(path: &str, s: &Source, custom: bool, out: &mut Verdict) {
    let identity: [(&'static str, &Option<Vec<String>>); 10] = [
        ("principals", &s.principals),
        ("notPrincipals", &s.not_principals),
        ("requestPrincipals", &s.request_principals),
        ("notRequestPrincipals", &s.not_request_principals),
        ("namespaces", &s.namespaces),
        ("notNamespaces", &s.not_namespaces),
        ("serviceAccounts", &s.service_accounts),
        ("notServiceAccounts", &s.not_service_accounts),
        ("trustDomains", &s.trust_domains),
        ("notTrustDomains", &s.not_trust_domains),
    ];
    let addresses: [(&'static str, &Option<Vec<String>>); 4] = [
        ("ipBlocks", &s.ip_blocks),
        ("notIpBlocks", &s.not_ip_blocks),
        ("remoteIpBlocks", &s.remote_ip_blocks),
        ("notRemoteIpBlocks", &s.not_remote_ip_blocks),
    ];
    let all: Vec<_> = identity.iter().chain(&addresses).copied().collect();
    lists(path, &all, out);
    for (name, list) in addresses {
        for (i, block) in list.iter().flatten().enumerate() {
            out.check(&format!("{path}.{name}[{i}]"), text::subnet(block));
        }
    }
    let set = |l: &Option<Vec<String>>| l.as_ref().is_some_and(|l| !l.is_empty());
    let accounts = set(&s.service_accounts) || set(&s.not_service_accounts);
    let others = [&s.principals, &s.not_principals, &s.namespaces, &s.not_namespaces];
    if accounts && others.into_iter().any(set) {
        out.error(format!("{path}.serviceAccounts"), "must not be together with principals or namespaces");
    }
    for (i, account) in s.service_accounts.iter().chain(&s.not_service_accounts).flatten().enumerate() {
        if account.matches('/').count() > 1 {
            out.error(format!("{path}.serviceAccounts[{i}]"), format!("{account:?} is not `namespace/name`"));
        }
    }
    if custom {
        for (name, _) in identity.iter().filter(|(_, l)| set(l)) {
            out.error(format!("{path}.{name}"), "must not be set for CUSTOM");
        }
    }
}

fn operation(path: &str, o: &Operation, out: &mut Verdict) {
    let all: [(&'static str, &Option<Vec<String>>); 8] = [
        ("hosts", &o.hosts),
        ("notHosts", &o.not_hosts),
        ("ports", &o.ports),
        ("notPorts", &o.not_ports),
        ("methods", &o.methods),
        ("notMethods", &o.not_methods),
        ("paths", &o.paths),
        ("notPaths", &o.not_paths),
    ];
    lists(path, &all, out);
    for (name, list) in [all[2], all[3]] {
        for (i, port) in list.iter().flatten().enumerate() {
            out.check(&format!("{path}.{name}[{i}]"), port_text(port));
        }
    }
    for (name, list) in [all[6], all[7]] {
        for (i, p) in list.iter().flatten().enumerate() {
            out.check(&format!("{path}.{name}[{i}]"), path_template(p));
        }
    }
}

fn port_text(port: &str) -> Result<(), String> {
    let number: u32 = port.parse().map_err(|_| format!("{port:?} is not a port number"))?;
    text::port(number)
}

/// A path with `{*}` or `{**}` for segments: these stand alone, `{**}` is the last of them, and `*` has no other use.
fn path_template(path: &str) -> Result<(), String> {
    if !path.contains(['{', '}']) {
        return Ok(());
    }
    let bad = |why: &str| Err(format!("{path:?} is not a path template: {why}"));
    let mut rest_taken = false;
    for segment in path.split('/') {
        match segment {
            "{*}" if rest_taken => return bad("`{*}` after `{**}`"),
            "{*}" => {}
            "{**}" if rest_taken => return bad("two `{**}`"),
            "{**}" => rest_taken = true,
            s if s.contains(['{', '}', '*']) => return bad("a segment is `{*}`, `{**}` or plain text"),
            _ => {}
        }
    }
    Ok(())
}

enum Values {
    Any,
    Addresses,
    Ports,
}

fn condition(path: &str, c: &Condition, custom: bool, out: &mut Verdict) {
    if c.key.is_empty() {
        out.error(format!("{path}.key"), "is required");
        return;
    }
    let values: Vec<_> = c.values.iter().flatten().chain(c.not_values.iter().flatten()).collect();
    if values.is_empty() {
        out.error(path, "values or notValues is required");
    }
    let Some(kind) = attribute(&c.key) else {
        out.error(format!("{path}.key"), format!("{:?} is not a known attribute", c.key));
        return;
    };
    for value in values {
        if value.is_empty() {
            out.error(path, "values must not be empty");
            continue;
        }
        let checked = match kind {
            Values::Any => Ok(()),
            Values::Addresses => text::subnet(value),
            Values::Ports => port_text(value),
        };
        out.check(path, checked);
    }
    let of_identity = c.key.starts_with("request.auth.")
        || matches!(
            c.key.as_str(),
            "source.namespace" | "source.principal" | "source.serviceAccount" | "source.trustDomain"
        );
    if custom && of_identity {
        out.error(format!("{path}.key"), format!("{} must not be used for CUSTOM", c.key));
    }
}

fn attribute(key: &str) -> Option<Values> {
    let in_brackets = |prefix: &str| {
        key.strip_prefix(prefix)
            .and_then(|rest| rest.strip_prefix('['))
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(|name| !name.is_empty())
    };
    match key {
        "source.ip" | "remote.ip" | "destination.ip" => Some(Values::Addresses),
        "destination.port" => Some(Values::Ports),
        "source.namespace"
        | "source.principal"
        | "source.serviceAccount"
        | "source.trustDomain"
        | "request.auth.principal"
        | "request.auth.audiences"
        | "request.auth.presenter"
        | "connection.sni" => Some(Values::Any),
        _ if in_brackets("request.headers") || in_brackets("request.auth.claims") => Some(Values::Any),
        _ if key.starts_with("experimental.envoy.filters.") => Some(Values::Any),
        _ => None,
    }
}
