//! Rules that continue in another VirtualService: each pair of conditions that can hold together becomes one rule.

use std::collections::BTreeMap;

use mesh_api::model;

use super::{
    Delegates, http,
    route::{Scope, Visibility, gateways},
};
use crate::types::{Delegate, HttpMatchRequest, HttpRoute, Meta, StringMatch};

pub(super) fn namespace_of<'a>(delegate: &'a Delegate, root: &'a Meta) -> &'a str {
    if delegate.namespace.is_empty() { &root.namespace } else { &delegate.namespace }
}

/// The rules that stand for a root rule. None when the delegate is missing or not visible to the root's namespace.
pub(super) fn rules(
    root: &HttpRoute,
    index: u32,
    delegate: &Delegate,
    scope: Scope<'_>,
    delegates: Delegates<'_>,
) -> Vec<model::HttpRule> {
    let Some(leaf) = delegates(namespace_of(delegate, scope.meta), &delegate.name) else { return Vec::new() };
    let visibility = Visibility::of(
        super::exported(&leaf.spec.export_to, &scope.ctx.exports.virtual_service),
        &leaf.meta.namespace,
    );
    if !leaf.spec.hosts.is_empty() || !visibility.sees(&scope.meta.namespace) {
        return Vec::new();
    }
    // Names in the delegate are relative to the delegate's namespace; what comes from the root, to the root's.
    let leaf_scope = Scope { meta: &leaf.meta, ctx: scope.ctx };
    let root_matches = with_full_gateways(&root.matches, scope);
    let root = with_full_mirrors(root, scope);
    let mut out = Vec::new();
    for rule in leaf.spec.http.iter().filter(|r| r.delegate.is_none()) {
        let leaf_matches = with_full_gateways(&rule.matches, leaf_scope);
        let Some(matches) = merge_matches(&root_matches, &leaf_matches) else { continue };
        let matches = matches.iter().map(|m| http::http_match(m, leaf_scope)).collect();
        out.extend(http::actions(&merge_rule(&root, rule), index, matches, leaf_scope));
    }
    out
}

/// Conditions whose gateways have their full names, so that those of both sides compare.
fn with_full_gateways(matches: &[HttpMatchRequest], scope: Scope<'_>) -> Vec<HttpMatchRequest> {
    let full =
        |m: &HttpMatchRequest| HttpMatchRequest { gateways: gateways(&m.gateways, scope.meta), ..m.clone() };
    matches.iter().map(full).collect()
}

/// The rule with mirrors by their full names, before they are read in the delegate's namespace.
fn with_full_mirrors(rule: &HttpRoute, scope: Scope<'_>) -> HttpRoute {
    let mut rule = rule.clone();
    let own = rule.mirror.iter_mut();
    let list = rule.mirrors.iter_mut().filter_map(|m| m.destination.as_mut());
    for destination in own.chain(list) {
        destination.host = scope.host(&destination.host);
    }
    rule
}

/// The delegate's value as a whole where it has one, else the root's.
fn merge_rule(root: &HttpRoute, leaf: &HttpRoute) -> HttpRoute {
    fn either<T: Clone>(leaf: &Option<T>, root: &Option<T>) -> Option<T> {
        leaf.clone().or_else(|| root.clone())
    }
    HttpRoute {
        name: joined(&root.name, &leaf.name),
        matches: Vec::new(),
        route: leaf.route.clone(),
        redirect: leaf.redirect.clone(),
        direct_response: either(&leaf.direct_response, &root.direct_response),
        delegate: None,
        rewrite: either(&leaf.rewrite, &root.rewrite),
        timeout: either(&leaf.timeout, &root.timeout),
        retries: either(&leaf.retries, &root.retries),
        fault: either(&leaf.fault, &root.fault),
        mirror: either(&leaf.mirror, &root.mirror),
        mirrors: if leaf.mirrors.is_empty() { root.mirrors.clone() } else { leaf.mirrors.clone() },
        mirror_percent: either(&leaf.mirror_percent, &root.mirror_percent),
        mirror_percentage: either(&leaf.mirror_percentage, &root.mirror_percentage),
        cors_policy: either(&leaf.cors_policy, &root.cors_policy),
        headers: either(&leaf.headers, &root.headers),
    }
}

fn joined(root: &str, leaf: &str) -> String {
    match (root, leaf) {
        ("", leaf) => leaf.to_owned(),
        (root, "") => root.to_owned(),
        (root, leaf) => format!("{root}-{leaf}"),
    }
}

/// The conditions of both sides together; `None` when a condition of the delegate fits none of the root's, which
/// drops the whole rule.
fn merge_matches(root: &[HttpMatchRequest], leaf: &[HttpMatchRequest]) -> Option<Vec<HttpMatchRequest>> {
    if root.is_empty() {
        return Some(leaf.to_vec());
    }
    if leaf.is_empty() {
        return Some(root.to_vec());
    }
    let mut out = Vec::new();
    for l in leaf {
        let before = out.len();
        out.extend(root.iter().filter(|r| !conflict(r, l)).map(|r| merge_match(r, l)));
        if out.len() == before {
            return None;
        }
    }
    Some(out)
}

fn merge_match(root: &HttpMatchRequest, leaf: &HttpMatchRequest) -> HttpMatchRequest {
    let part = |leaf: &Option<StringMatch>, root: &Option<StringMatch>| leaf.clone().or_else(|| root.clone());
    HttpMatchRequest {
        name: joined(&root.name, &leaf.name),
        uri: part(&leaf.uri, &root.uri),
        scheme: part(&leaf.scheme, &root.scheme),
        method: part(&leaf.method, &root.method),
        authority: part(&leaf.authority, &root.authority),
        headers: merged(&root.headers, &leaf.headers),
        port: if leaf.port == 0 { root.port } else { leaf.port },
        source_labels: merged(&root.source_labels, &leaf.source_labels),
        gateways: if leaf.gateways.is_empty() { root.gateways.clone() } else { leaf.gateways.clone() },
        query_params: merged(&root.query_params, &leaf.query_params),
        ignore_uri_case: leaf.ignore_uri_case || root.ignore_uri_case,
        without_headers: merged(&root.without_headers, &leaf.without_headers),
        source_namespace: first_set(&leaf.source_namespace, &root.source_namespace),
        stat_prefix: first_set(&leaf.stat_prefix, &root.stat_prefix),
    }
}

fn first_set(leaf: &str, root: &str) -> String {
    if leaf.is_empty() { root.to_owned() } else { leaf.to_owned() }
}

fn merged<V: Clone>(root: &BTreeMap<String, V>, leaf: &BTreeMap<String, V>) -> BTreeMap<String, V> {
    root.iter().chain(leaf).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn conflict(root: &HttpMatchRequest, leaf: &HttpMatchRequest) -> bool {
    root.ignore_uri_case != leaf.ignore_uri_case
        || (root.port > 0 && leaf.port > 0 && root.port != leaf.port)
        || (!root.source_namespace.is_empty() && root.source_namespace != leaf.source_namespace)
        || root.source_labels.iter().any(|(k, v)| leaf.source_labels.get(k).is_some_and(|l| l != v))
        || (!root.gateways.is_empty()
            && (leaf.gateways.len() > root.gateways.len()
                || leaf.gateways.iter().any(|g| !root.gateways.contains(g))))
        || strings_conflict(root.uri.as_ref(), leaf.uri.as_ref())
        || strings_conflict(root.scheme.as_ref(), leaf.scheme.as_ref())
        || strings_conflict(root.method.as_ref(), leaf.method.as_ref())
        || strings_conflict(root.authority.as_ref(), leaf.authority.as_ref())
        || maps_conflict(&root.headers, &leaf.headers)
        || maps_conflict(&root.without_headers, &leaf.without_headers)
        || maps_conflict(&root.query_params, &leaf.query_params)
}

fn maps_conflict(
    root: &BTreeMap<String, Option<StringMatch>>,
    leaf: &BTreeMap<String, Option<StringMatch>>,
) -> bool {
    root.iter().any(|(k, r)| leaf.get(k).is_some_and(|l| strings_conflict(r.as_ref(), l.as_ref())))
}

/// Whether two conditions on one string cannot be told to hold together. An empty condition conflicts with any, as in
/// Istio.
fn strings_conflict(root: Option<&StringMatch>, leaf: Option<&StringMatch>) -> bool {
    fn set(value: &Option<String>) -> Option<&str> {
        value.as_deref().filter(|v| !v.is_empty())
    }
    let (Some(root), Some(leaf)) = (root, leaf) else { return false };
    if set(&root.regex).is_some() || set(&leaf.regex).is_some() {
        return true;
    }
    match (set(&root.exact), set(&root.prefix)) {
        (Some(exact), _) => set(&leaf.prefix).is_some() || set(&leaf.exact) != Some(exact),
        (None, Some(prefix)) => {
            set(&leaf.prefix).or(set(&leaf.exact)).is_none_or(|value| !value.starts_with(prefix))
        }
        (None, None) => true,
    }
}
