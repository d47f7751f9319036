//! HTTP rules: conditions and actions.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use mesh_api::model::{self, http_rule::Action, redirect::PortSource, string_match::Kind};

use super::{
    retry,
    route::{Scope, gateways, is_gateway_api},
};
use crate::{
    names::is_claim,
    types::{
        CorsPolicy, Destination, Duration, HeaderOperations, Headers, HttpDirectResponse, HttpFaultInjection,
        HttpMatchRequest, HttpRedirect, HttpRewrite, HttpRoute, HttpRouteDestination, Percent,
        RedirectPortSelection, StringMatch, UnmatchedPreflights,
    },
};

const MILLION: u32 = 1_000_000;

/// One rule; nothing when it has no action that a node could take.
pub(super) fn rule(rule: &HttpRoute, index: u32, scope: Scope<'_>) -> Option<model::HttpRule> {
    let matches = rule.matches.iter().map(|m| http_match(m, scope)).collect();
    actions(rule, index, matches, scope)
}

/// The rule with conditions that are translated already.
pub(super) fn actions(
    rule: &HttpRoute,
    index: u32,
    matches: Vec<model::HttpMatch>,
    scope: Scope<'_>,
) -> Option<model::HttpRule> {
    let action = if let Some(redirect) = &rule.redirect {
        Action::Redirect(redirect_to(redirect))
    } else if let Some(direct) = &rule.direct_response {
        Action::DirectResponse(direct_response(direct))
    } else {
        Action::Forward(model::Forward { destinations: destinations(&rule.route, scope)? })
    };
    let (authority, headers) = split_authority(rule.headers.as_ref(), scope);
    Some(model::HttpRule {
        index,
        name: rule.name.clone(),
        matches,
        action: Some(action),
        rewrite: rewrite(rule.rewrite.as_ref(), authority),
        timeout: rule.timeout.as_ref().and_then(positive),
        retry: rule.retries.as_ref().map(|r| retry::policy(r, rule.route.len())),
        fault: rule.fault.as_ref().map(fault),
        headers,
        mirrors: mirrors(rule, scope),
        cors: rule.cors_policy.as_ref().map(cors),
        missing_status: if is_gateway_api(scope.meta) { 500 } else { 0 },
        source: String::new(),
    })
}

pub(super) fn positive(duration: &Duration) -> Option<model::Millis> {
    millis(duration).filter(|m| m.value > 0)
}

pub(super) fn millis(duration: &Duration) -> Option<model::Millis> {
    let nanos = duration.nanos().ok()?;
    Some(model::Millis { value: u64::try_from(nanos / 1_000_000).ok()? })
}

pub(super) fn string_match(m: &StringMatch) -> model::StringMatch {
    let kind = match (&m.exact, &m.prefix, &m.regex) {
        (Some(v), _, _) => Kind::Exact(v.clone()),
        (None, Some(v), _) => Kind::Prefix(v.clone()),
        (None, None, Some(v)) => Kind::Regex(v.clone()),
        (None, None, None) => Kind::Present(true),
    };
    model::StringMatch { kind: Some(kind) }
}

/// A prefix of Gateway API ends at a slash.
fn below(uri: model::StringMatch) -> model::StringMatch {
    match uri.kind {
        Some(Kind::Prefix(prefix)) => {
            let prefix = prefix.strip_suffix('/').unwrap_or(&prefix).to_owned();
            model::StringMatch { kind: Some(Kind::PathPrefix(prefix)) }
        }
        kind => model::StringMatch { kind },
    }
}

/// For headers and parameters `regex: "*"` is how some ask for presence; it is no regular expression.
fn value_match(m: Option<&StringMatch>) -> model::StringMatch {
    match m {
        Some(m) if m.exact.is_none() && m.prefix.is_none() && m.regex.as_deref() == Some("*") => {
            string_match(&StringMatch::default())
        }
        Some(m) => string_match(m),
        None => string_match(&StringMatch::default()),
    }
}

fn header_matches(map: &BTreeMap<String, Option<StringMatch>>) -> Vec<model::NamedMatch> {
    map.iter()
        .map(|(name, m)| model::NamedMatch {
            name: name.to_ascii_lowercase(),
            r#match: Some(value_match(m.as_ref())),
        })
        .collect()
}

/// Nobody looks at tokens here, so a claim is never there, and what asks for its absence always holds. (No header can have
/// the name of a claim: what asks for one never holds.)
fn without_matches(map: &BTreeMap<String, Option<StringMatch>>) -> Vec<model::NamedMatch> {
    let mut out = header_matches(map);
    for claim in out.iter_mut().filter(|m| is_claim(&m.name)) {
        claim.r#match = Some(value_match(None));
    }
    out
}

pub(super) fn http_match(m: &HttpMatchRequest, scope: Scope<'_>) -> model::HttpMatch {
    // An empty condition on a part that every request has says nothing.
    let part = |m: &Option<StringMatch>| {
        m.as_ref().filter(|m| m.exact.is_some() || m.prefix.is_some() || m.regex.is_some()).map(string_match)
    };
    // A condition with its own gateways is not tied to the client's workload.
    let by_source = m.gateways.is_empty();
    model::HttpMatch {
        name: m.name.clone(),
        uri: part(&m.uri).map(|uri| if is_gateway_api(scope.meta) { below(uri) } else { uri }),
        ignore_uri_case: m.ignore_uri_case,
        scheme: part(&m.scheme),
        method: part(&m.method),
        authority: part(&m.authority),
        headers: header_matches(&m.headers),
        without_headers: without_matches(&m.without_headers),
        query_params: m
            .query_params
            .iter()
            .map(|(name, m)| model::NamedMatch { name: name.clone(), r#match: Some(value_match(m.as_ref())) })
            .collect(),
        port: m.port,
        source_labels: if by_source { m.source_labels.clone() } else { BTreeMap::new() },
        source_namespace: if by_source { m.source_namespace.clone() } else { String::new() },
        gateways: gateways(&m.gateways, scope.meta),
        stat_prefix: m.stat_prefix.clone(),
        index: 0,
    }
}

pub(super) fn destination(d: &Destination, scope: Scope<'_>) -> model::Destination {
    model::Destination {
        host: scope.host(&d.host),
        subset: d.subset.clone(),
        port: d.port.map(|p| p.number).unwrap_or_default(),
    }
}

/// Nothing when no destination can be chosen; a node would refuse the whole service otherwise.
fn destinations(list: &[HttpRouteDestination], scope: Scope<'_>) -> Option<Vec<model::WeightedDestination>> {
    let out: Vec<_> = list
        .iter()
        .filter_map(|d| {
            Some(model::WeightedDestination {
                destination: Some(destination(d.destination.as_ref()?, scope)),
                weight: u32::try_from(d.weight).unwrap_or(0),
                headers: d.headers.as_ref().map(|h| header_ops(h, scope)),
            })
        })
        .collect();
    usable(out)
}

/// Drops lists from which nothing can be chosen.
pub(super) fn usable(mut list: Vec<model::WeightedDestination>) -> Option<Vec<model::WeightedDestination>> {
    match &mut list[..] {
        [] => None,
        [only] => {
            only.weight = only.weight.max(1);
            Some(list)
        }
        many if many.iter().all(|d| d.weight == 0) => None,
        _ => Some(list),
    }
}

fn redirect_to(r: &HttpRedirect) -> model::Redirect {
    let port_source = match (r.port, r.derive_port) {
        (Some(port), _) => Some(PortSource::Port(port)),
        (None, Some(RedirectPortSelection::FromRequestPort)) => Some(PortSource::FromRequestPort(true)),
        (None, Some(RedirectPortSelection::FromProtocolDefault)) => Some(PortSource::ProtocolDefault(true)),
        (None, None) => None,
    };
    model::Redirect {
        uri: r.uri.clone(),
        prefix_rewrite: r.prefix_rewrite.clone(),
        authority: r.authority.clone(),
        port_source,
        scheme: r.scheme.clone(),
        code: if r.redirect_code == 0 { 301 } else { r.redirect_code },
    }
}

fn direct_response(d: &HttpDirectResponse) -> model::DirectResponse {
    let body = d.body.as_ref().map_or_else(Vec::new, |b| match (&b.string, &b.bytes) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(encoded)) => STANDARD.decode(encoded).unwrap_or_default(),
        (None, None) => Vec::new(),
    });
    model::DirectResponse { status: d.status, body }
}

fn rewrite(r: Option<&HttpRewrite>, authority: Option<String>) -> Option<model::Rewrite> {
    let mut out = r.map_or_else(model::Rewrite::default, |r| model::Rewrite {
        uri: r.uri.clone(),
        authority: r.authority.clone(),
        regex: r.uri_regex_rewrite.as_ref().map(|x| x.pattern.clone()).unwrap_or_default(),
        regex_rewrite: r.uri_regex_rewrite.as_ref().map(|x| x.rewrite.clone()).unwrap_or_default(),
    });
    if out.authority.is_empty() {
        out.authority = authority.unwrap_or_default();
    }
    (r.is_some() || !out.authority.is_empty()).then_some(out)
}

/// A rule that sets the host header rewrites the authority; that beats what a destination says, unlike other headers.
fn split_authority(
    headers: Option<&Headers>,
    scope: Scope<'_>,
) -> (Option<String>, Option<model::HeaderOps>) {
    let Some(headers) = headers else { return (None, None) };
    let mut ops = header_ops(headers, scope);
    let mut authority = None;
    if let Some(request) = &mut ops.request {
        for list in [&mut request.set, &mut request.add] {
            if let Some(at) = list.iter().position(|h| h.name == "host") {
                authority.get_or_insert(list.remove(at).value.replace("%%", "%"));
            }
        }
    }
    (authority, Some(ops))
}

pub(super) fn header_ops(headers: &Headers, scope: Scope<'_>) -> model::HeaderOps {
    // Gateway API has no operators: a percent sign is one.
    let literal = is_gateway_api(scope.meta);
    model::HeaderOps {
        request: headers.request.as_ref().map(|op| header_op(op, literal)),
        response: headers.response.as_ref().map(|op| header_op(op, literal)),
    }
}

fn header_op(op: &HeaderOperations, literal: bool) -> model::HeaderOp {
    let value = |v: &String| if literal { v.replace('%', "%%") } else { v.clone() };
    let name = |n: &str| match n.to_ascii_lowercase() {
        n if n == ":authority" => "host".to_owned(),
        n => n,
    };
    let values = |map: &BTreeMap<String, String>| {
        map.iter().map(|(n, v)| model::HeaderValue { name: name(n), value: value(v) }).collect::<Vec<_>>()
    };
    model::HeaderOp {
        set: values(&op.set),
        add: values(&op.add),
        remove: op.remove.iter().map(|n| name(n)).collect(),
    }
}

/// Parts per million of a percentage; the smallest step is one ten-thousandth of a percent.
fn parts_per_million(p: Percent) -> u32 {
    let parts = (p.value * 10_000.0).round();
    if parts.is_finite() && parts > 0.0 { (parts as u64).min(u64::from(MILLION)) as u32 } else { 0 }
}

fn whole_percent(percent: u32) -> u32 {
    percent.min(100) * 10_000
}

/// A fault without a percentage never happens, unlike a mirror without one.
fn fault(f: &HttpFaultInjection) -> model::Fault {
    let delay = f.delay.as_ref().and_then(|d| {
        let parts = match d.percentage {
            Some(p) => parts_per_million(p),
            None => whole_percent(u32::try_from(d.percent).unwrap_or(0)),
        };
        Some(model::fault::Delay {
            parts_per_million: parts,
            fixed: Some(positive(d.fixed_delay.as_ref()?)?),
        })
    });
    let abort = f.abort.as_ref().and_then(|a| {
        let grpc = a.grpc_status.as_deref().and_then(retry::grpc_code);
        let http_status = match grpc {
            // For requests that are not gRPC.
            Some((_, http)) => http,
            None => a.http_status.and_then(|s| u32::try_from(s).ok()).unwrap_or(0),
        };
        (http_status > 0).then(|| model::fault::Abort {
            parts_per_million: a.percentage.map_or(0, parts_per_million),
            http_status,
            grpc: grpc.map(|(code, _)| model::fault::abort::Grpc::GrpcStatus(code)),
        })
    });
    model::Fault { delay, abort }
}

fn mirrors(rule: &HttpRoute, scope: Scope<'_>) -> Vec<model::Mirror> {
    let one = |d: &Destination, parts: u32| {
        (parts > 0)
            .then(|| model::Mirror { destination: Some(destination(d, scope)), parts_per_million: parts })
    };
    let parts = match (rule.mirror_percentage, rule.mirror_percent) {
        (Some(p), _) => parts_per_million(p),
        (None, Some(p)) => whole_percent(p),
        (None, None) => MILLION,
    };
    let single = rule.mirror.as_ref().and_then(|d| one(d, parts));
    // Both are there only when a delegate brings one and its root the other.
    let list = rule
        .mirrors
        .iter()
        .filter_map(|m| one(m.destination.as_ref()?, m.percentage.map_or(MILLION, parts_per_million)));
    single.into_iter().chain(list).collect()
}

fn cors(c: &CorsPolicy) -> model::Cors {
    let exact = |o: &String| model::StringMatch { kind: Some(Kind::Exact(o.clone())) };
    model::Cors {
        allow_origins: c
            .allow_origins
            .iter()
            .map(string_match)
            .chain(c.allow_origin.iter().map(exact))
            .collect(),
        allow_methods: c.allow_methods.clone(),
        allow_headers: c.allow_headers.clone(),
        expose_headers: c.expose_headers.clone(),
        max_age: c.max_age.as_ref().and_then(millis),
        allow_credentials: c.allow_credentials == Some(true),
        ignore_unmatched_preflights: c.unmatched_preflights == Some(UnmatchedPreflights::Ignore),
    }
}
