//! HTTP rules.

mod actions;
mod matches;

use super::{Verdict, text, virtual_service};
use crate::types::{HeaderOperations, Headers, HttpRoute};

/// What a rule is part of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context {
    /// The object is a delegate of others.
    pub(super) delegate: bool,
    /// The object is for a gateway, perhaps among others.
    pub(super) behind_gateway: bool,
}

pub(super) fn rule(path: &str, rule: &HttpRoute, context: Context, out: &mut Verdict) {
    conflicts(path, rule, context, out);
    matches::check(path, rule, context, out);
    headers(&format!("{path}.headers"), rule.headers.as_ref(), out);
    authority(path, rule, out);
    destinations(&format!("{path}.route"), rule, out);
    actions::check(path, rule, out);
    out.duration(&format!("{path}.timeout"), rule.timeout.as_ref());
}

/// What excludes each other.
fn conflicts(path: &str, rule: &HttpRoute, context: Context, out: &mut Verdict) {
    let actions = [
        ("route", !rule.route.is_empty()),
        ("redirect", rule.redirect.is_some()),
        ("directResponse", rule.direct_response.is_some()),
    ];
    if rule.delegate.is_some() && context.delegate {
        out.error(format!("{path}.delegate"), "a delegate must not delegate further");
    } else if rule.delegate.is_some() {
        for (name, _) in actions[..2].iter().filter(|a| a.1) {
            out.error(format!("{path}.{name}"), "must not be together with delegate");
        }
        return;
    }
    let given: Vec<&str> = actions.iter().filter(|a| a.1).map(|a| a.0).collect();
    match given[..] {
        [] => out.error(path, "route, redirect or directResponse is required"),
        [_] => {}
        [first, ..] => {
            for name in &given[1..] {
                out.error(format!("{path}.{name}"), format!("must not be together with {first}"));
            }
        }
    }
    if let Some(answer) = given.iter().find(|n| **n != "route") {
        for (name, set) in [("fault", rule.fault.is_some()), ("rewrite", rule.rewrite.is_some())] {
            if set {
                out.error(format!("{path}.{name}"), format!("must not be together with {answer}"));
            }
        }
    }
    if rule.mirror.is_some() && !rule.mirrors.is_empty() {
        out.error(format!("{path}.mirrors"), "must not be together with mirror");
    }
}

fn destinations(path: &str, rule: &HttpRoute, out: &mut Verdict) {
    for (i, entry) in rule.route.iter().enumerate() {
        match &entry.destination {
            Some(d) => virtual_service::destination(&format!("{path}[{i}].destination"), d, out),
            None => out.error(format!("{path}[{i}].destination"), "is required"),
        }
        headers(&format!("{path}[{i}].headers"), entry.headers.as_ref(), out);
        let set = entry.headers.as_ref().and_then(|h| h.request.as_ref()).map_or(0, authorities);
        if set > 1 {
            out.warn(format!("{path}[{i}].headers.request"), "sets the authority more than once");
        }
    }
    virtual_service::weights(path, &rule.route.iter().map(|d| d.weight).collect::<Vec<_>>(), out);
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

/// How often an operation sets the authority.
fn authorities(op: &HeaderOperations) -> usize {
    op.set.keys().chain(op.add.keys()).filter(|name| is_authority(name)).count()
}

/// The authority is set in one place only.
fn authority(path: &str, rule: &HttpRoute, out: &mut Verdict) {
    let rewritten = usize::from(rule.rewrite.as_ref().is_some_and(|r| !r.authority.is_empty()));
    let set = rule.headers.as_ref().and_then(|h| h.request.as_ref()).map_or(0, authorities);
    if rewritten + set > 1 {
        out.error(path, "sets the authority more than once");
    }
}

fn headers(path: &str, headers: Option<&Headers>, out: &mut Verdict) {
    let Some(headers) = headers else { return };
    if let Some(op) = &headers.request {
        header_operations(&format!("{path}.request"), op, true, out);
    }
    if let Some(op) = &headers.response {
        header_operations(&format!("{path}.response"), op, false, out);
    }
}

fn header_operations(path: &str, op: &HeaderOperations, authority: bool, out: &mut Verdict) {
    let mut name = |path: &str, name: &str, authority: bool| {
        if name.is_empty() {
            out.error(path, "a header name must not be empty");
        } else if (name.starts_with(':') || name.eq_ignore_ascii_case("host"))
            && !(authority && is_authority(name))
        {
            out.error(path, format!("{name:?} cannot be changed here"));
        }
    };
    for (field, map) in [("set", &op.set), ("add", &op.add)] {
        for key in map.keys() {
            name(&format!("{path}.{field}"), key, authority);
        }
    }
    for (i, key) in op.remove.iter().enumerate() {
        name(&format!("{path}.remove[{i}]"), key, false);
    }
    for (field, map) in [("set", &op.set), ("add", &op.add)] {
        for (key, value) in map {
            out.check(&format!("{path}.{field}[{key:?}]"), text::header_value(value));
        }
    }
}
