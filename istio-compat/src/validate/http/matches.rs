//! Conditions of HTTP rules.

use std::collections::BTreeMap;

use super::Context;
use crate::{
    names,
    types::{HttpMatchRequest, HttpRoute, StringMatch},
    validate::{Verdict, text, virtual_service},
};

pub(super) fn check(path: &str, rule: &HttpRoute, context: Context, out: &mut Verdict) {
    for (i, m) in rule.matches.iter().enumerate() {
        let path = format!("{path}.match[{i}]");
        one(&path, m, out);
        let claims = m.headers.keys().chain(m.without_headers.keys()).find(|k| names::is_claim(k));
        if let Some(claim) = claims.filter(|_| !context.behind_gateway) {
            out.error(format!("{path}.headers"), format!("{claim:?}: token claims are for gateways only"));
        }
        let prefix = m.uri.as_ref().is_none_or(|u| u.prefix.is_some());
        if rule.redirect.as_ref().is_some_and(|r| !r.prefix_rewrite.is_empty()) && !prefix {
            out.error(format!("{path}.uri"), "a redirect with prefixRewrite needs a prefix here");
        }
    }
}

fn one(path: &str, m: &HttpMatchRequest, out: &mut Verdict) {
    map(&format!("{path}.headers"), &m.headers, Map::Headers, out);
    map(&format!("{path}.withoutHeaders"), &m.without_headers, Map::Without, out);
    map(&format!("{path}.queryParams"), &m.query_params, Map::Parameters, out);
    if let Some(uri) = &m.uri {
        string(&format!("{path}.uri"), uri, true, out);
    }
    for (name, value) in [("scheme", &m.scheme), ("method", &m.method), ("authority", &m.authority)] {
        if let Some(value) = value {
            string(&format!("{path}.{name}"), value, false, out);
        }
    }
    if m.port != 0 {
        out.check(&format!("{path}.port"), text::port(m.port));
    }
    out.check(&format!("{path}.sourceLabels"), text::source_labels(&m.source_labels));
    virtual_service::gateways(&format!("{path}.gateways"), &m.gateways, out);
    if !m.source_namespace.is_empty() {
        out.check(&format!("{path}.sourceNamespace"), text::dns_label(&m.source_namespace, "namespace"));
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Map {
    Headers,
    Without,
    Parameters,
}

fn map(path: &str, map: &BTreeMap<String, Option<StringMatch>>, kind: Map, out: &mut Verdict) {
    for (name, m) in map {
        let path = format!("{path}[{name:?}]");
        if kind != Map::Parameters {
            out.check(&path, text::header_name(name));
        }
        match m {
            None if kind == Map::Headers => out.error(path, "must not be null; `{}` asks for presence"),
            None => {}
            // How some spell presence; it is no regular expression.
            Some(m) if kind == Map::Without && m.regex.as_deref() == Some("*") => {}
            Some(m) => string(&path, m, false, out),
        }
    }
}

/// One condition on a string. The empty prefix of a path is legal: it takes everything.
fn string(path: &str, m: &StringMatch, empty_prefix: bool, out: &mut Verdict) {
    let kinds = [m.exact.is_some(), m.prefix.is_some(), m.regex.is_some()];
    if kinds.iter().filter(|k| **k).count() > 1 {
        out.error(path, "only one of exact, prefix and regex may be set");
    }
    if m.prefix.as_deref() == Some("") && !empty_prefix {
        out.error(format!("{path}.prefix"), "a prefix must not be empty");
    }
    if let Some(regex) = &m.regex {
        out.check(&format!("{path}.regex"), text::regex(regex));
    }
}
