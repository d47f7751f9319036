//! Rules of HTTP and gRPC routes to rules of a VirtualService, one for each match, and their order.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{
    World,
    backends::{self, From},
    conditions::{Problem, join},
    types::{
        BackendFilter, BackendRef, Cors, Filter, GrpcMatch, GrpcRule, HeaderModifier, HttpMatch, HttpRule,
        NamedValue, RequestMirror, RequestRedirect, Retry, Timeouts, UrlRewrite,
    },
};
use crate::{
    duration,
    types::{
        CorsPolicy, Duration, HeaderOperations, Headers, HttpDirectResponse, HttpMatchRequest,
        HttpMirrorPolicy, HttpRedirect, HttpRetry, HttpRewrite, HttpRoute, HttpRouteDestination, Meta,
        Percent, RedirectPortSelection, RegexRewrite, StringMatch, UnmatchedPreflights,
    },
};

/// A rule with a problem that leaves it as it is, or a problem that ends the route.
pub(crate) type Converted<T> = Result<(T, Option<Problem>), Problem>;

const INVALID_FILTER: &str = "InvalidFilter";
const INVALID: &str = "InvalidConfiguration";

fn exact(value: impl Into<String>) -> StringMatch {
    StringMatch { exact: Some(value.into()), ..StringMatch::default() }
}

fn prefix(value: impl Into<String>) -> StringMatch {
    StringMatch { prefix: Some(value.into()), ..StringMatch::default() }
}

fn regex(value: impl Into<String>) -> StringMatch {
    StringMatch { regex: Some(value.into()), ..StringMatch::default() }
}

/// A duration as the API of Istio writes it.
pub(crate) fn seconds(text: &str) -> Option<Duration> {
    let nanos = duration::parse(text).ok().filter(|n| *n != 0)?;
    let (sign, nanos) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let (whole, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let fraction = match rest {
        0 => String::new(),
        n if n % 1_000_000 == 0 => format!(".{:03}", n / 1_000_000),
        n if n % 1_000 == 0 => format!(".{:06}", n / 1_000),
        n => format!(".{n:09}"),
    };
    Some(Duration(format!("{sign}{whole}{fraction}s")))
}

/// Where a rule stands.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) meta: &'a Meta,
    pub(crate) index: usize,
    pub(crate) from: From<'a>,
}

impl Place<'_> {
    fn name(&self, given: Option<&String>) -> String {
        given.cloned().unwrap_or_else(|| format!("{}.{}.{}", self.meta.namespace, self.meta.name, self.index))
    }
}

/// One rule of an HTTPRoute with one of its matches.
pub(crate) fn rule(
    world: &World<'_>,
    rule: &HttpRule,
    condition: Option<&HttpMatch>,
    place: Place<'_>,
) -> Converted<HttpRoute> {
    let mut out = HttpRoute { name: place.name(rule.name.as_ref()), ..HttpRoute::default() };
    if let Some(condition) = condition {
        out.matches.push(http_match(condition)?);
    }
    let mirror_problem = filters(world, &rule.filters, place, true, &mut out)?;
    out.retries = rule.retry.as_ref().map(retries);
    if let Some(timeouts) = &rule.timeouts {
        apply_timeouts(timeouts, &mut out);
    }
    let problem = forward(world, &rule.backend_refs, place, &mut out)?;
    Ok((out, join(problem, mirror_problem)))
}

/// One rule of a GRPCRoute with one of its matches.
pub(crate) fn grpc_rule(
    world: &World<'_>,
    rule: &GrpcRule,
    condition: Option<&GrpcMatch>,
    place: Place<'_>,
) -> Converted<HttpRoute> {
    let mut out = HttpRoute { name: place.name(rule.name.as_ref()), ..HttpRoute::default() };
    if let Some(condition) = condition {
        out.matches.push(HttpMatchRequest {
            uri: grpc_path(condition)?,
            headers: named_values(&condition.headers, "HeaderMatch")?,
            ..HttpMatchRequest::default()
        });
    }
    let mirror_problem = filters(world, &rule.filters, place, false, &mut out)?;
    if let Some(problem) = mirror_problem {
        return Err(problem);
    }
    let problem = forward(world, &rule.backend_refs, place, &mut out)?;
    Ok((out, problem))
}

/// Destinations; without any that gets traffic the answer is 500.
fn forward(
    world: &World<'_>,
    backends: &[BackendRef],
    place: Place<'_>,
    out: &mut HttpRoute,
) -> Result<Option<Problem>, Problem> {
    if backends::total(backends) == 0 && out.redirect.is_none() {
        out.direct_response = Some(HttpDirectResponse { status: 500, body: None });
        return Ok(None);
    }
    let mut problem = None;
    for (backend, weight) in backends::weighted(backends) {
        let (destination, why) = backends::destination(world, backend, place.from)?;
        problem = why.or(problem);
        let headers = backend_headers(&backend.filters)?;
        out.route.push(HttpRouteDestination { destination: Some(destination), weight, headers });
    }
    Ok(problem)
}

fn backend_headers(filters: &[BackendFilter]) -> Result<Option<Headers>, Problem> {
    let mut headers = None;
    for filter in filters {
        modify(
            &filter.kind,
            filter.request_header_modifier.as_ref(),
            filter.response_header_modifier.as_ref(),
            &mut headers,
        )?;
    }
    Ok(headers)
}

fn modify(
    kind: &str,
    request: Option<&HeaderModifier>,
    response: Option<&HeaderModifier>,
    headers: &mut Option<Headers>,
) -> Result<(), Problem> {
    match kind {
        "RequestHeaderModifier" => {
            if let Some(modifier) = request {
                headers.get_or_insert_default().request = Some(header_operations(modifier)?);
            }
        }
        "ResponseHeaderModifier" => {
            if let Some(modifier) = response {
                headers.get_or_insert_default().response = Some(header_operations(modifier)?);
            }
        }
        other => return Err(Problem::new(INVALID_FILTER, format!("unsupported filter type {other:?}"))),
    }
    Ok(())
}

/// Filters of a rule; a mirror that goes nowhere is left out and told.
fn filters(
    world: &World<'_>,
    filters: &[Filter],
    place: Place<'_>,
    http: bool,
    out: &mut HttpRoute,
) -> Result<Option<Problem>, Problem> {
    let mut problem = None;
    for filter in filters {
        match filter.kind.as_str() {
            "RequestMirror" => {
                let Some(wanted) = &filter.request_mirror else { continue };
                match mirror(world, wanted, place) {
                    Ok(policy) => out.mirrors.push(policy),
                    Err(why) => problem = Some(why),
                }
            }
            "RequestRedirect" if http => out.redirect = filter.request_redirect.as_ref().map(redirect),
            "URLRewrite" if http => out.rewrite = filter.url_rewrite.as_ref().and_then(rewrite),
            "CORS" if http => out.cors_policy = filter.cors.as_ref().map(cors),
            kind => modify(
                kind,
                filter.request_header_modifier.as_ref(),
                filter.response_header_modifier.as_ref(),
                &mut out.headers,
            )?,
        }
    }
    Ok(problem)
}

fn mirror(world: &World<'_>, wanted: &RequestMirror, place: Place<'_>) -> Result<HttpMirrorPolicy, Problem> {
    let (destination, problem) = backends::destination(world, &wanted.backend_ref, place.from)?;
    if let Some(problem) = problem {
        return Err(problem);
    }
    let percentage = match (&wanted.fraction, wanted.percent) {
        (Some(f), _) => Some(100.0 * f64::from(f.numerator) / f64::from(f.denominator.unwrap_or(100).max(1))),
        (None, percent) => percent.map(f64::from),
    };
    Ok(HttpMirrorPolicy {
        destination: Some(destination),
        percentage: percentage.map(|value| Percent { value }),
    })
}

fn header_operations(modifier: &HeaderModifier) -> Result<HeaderOperations, Problem> {
    let legal = |byte: u8| byte == 0x09 || byte >= 0x20 && byte != 0x7f;
    for header in modifier.set.iter().chain(&modifier.add) {
        if !header.value.bytes().all(legal) {
            return Err(Problem::new(
                INVALID_FILTER,
                format!("header {:?} value contains invalid characters", header.name),
            ));
        }
    }
    // Of several entries for one name the first one counts.
    let map = |list: &[NamedValue]| {
        let mut out = BTreeMap::new();
        for header in list {
            out.entry(header.name.to_lowercase()).or_insert_with(|| header.value.clone());
        }
        out
    };
    Ok(HeaderOperations { set: map(&modifier.set), add: map(&modifier.add), remove: modifier.remove.clone() })
}

fn redirect(filter: &RequestRedirect) -> HttpRedirect {
    let mut out = HttpRedirect {
        redirect_code: filter.status_code.unwrap_or_default(),
        authority: filter.hostname.clone().unwrap_or_default(),
        scheme: filter.scheme.clone().unwrap_or_default(),
        port: filter.port,
        ..HttpRedirect::default()
    };
    if filter.port.is_none() {
        out.derive_port = Some(match filter.scheme {
            Some(_) => RedirectPortSelection::FromProtocolDefault,
            None => RedirectPortSelection::FromRequestPort,
        });
    }
    if let Some(path) = &filter.path {
        match path.kind.as_str() {
            "ReplaceFullPath" => out.uri = path.replace_full_path.clone().unwrap_or_default(),
            "ReplacePrefixMatch" => {
                out.prefix_rewrite = path.replace_prefix_match.clone().unwrap_or_default();
            }
            _ => {}
        }
    }
    out
}

fn rewrite(filter: &UrlRewrite) -> Option<HttpRewrite> {
    let mut out =
        HttpRewrite { authority: filter.hostname.clone().unwrap_or_default(), ..HttpRewrite::default() };
    match filter.path.as_ref().map(|p| (p.kind.as_str(), p)) {
        Some(("ReplacePrefixMatch", path)) => {
            let new = path.replace_prefix_match.as_deref().unwrap_or_default();
            let new = new.strip_suffix('/').unwrap_or(new);
            // `/` takes the prefix away.
            new.clone_into(&mut out.uri);
            if new.is_empty() {
                "/".clone_into(&mut out.uri);
            }
        }
        Some(("ReplaceFullPath", path)) => {
            out.uri_regex_rewrite = Some(RegexRewrite {
                pattern: "/.*".to_owned(),
                rewrite: path.replace_full_path.clone().unwrap_or_default(),
            });
        }
        _ => {}
    }
    (out != HttpRewrite::default()).then_some(out)
}

/// The characters that have a meaning in a regular expression, each made literal.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn origin(text: &str) -> StringMatch {
    if text == "*" {
        // What an origin looks like, so that `null` is none.
        return regex(r"^[a-zA-Z][a-zA-Z0-9+.-]*://[^/\s?#]+$");
    }
    match text.strip_suffix('*') {
        Some(start) if !start.contains('*') => prefix(start),
        None if !text.contains('*') => exact(text),
        _ => regex(format!("^{}$", quote(text).replace(r"\*", ".*"))),
    }
}

fn cors(filter: &Cors) -> CorsPolicy {
    CorsPolicy {
        allow_origins: filter.allow_origins.iter().filter(|o| !o.is_empty()).map(|o| origin(o)).collect(),
        allow_methods: filter.allow_methods.clone(),
        allow_headers: filter.allow_headers.clone(),
        expose_headers: filter.expose_headers.clone(),
        max_age: filter.max_age.filter(|age| *age > 0).map(|age| Duration(format!("{age}s"))),
        allow_credentials: filter.allow_credentials.filter(|allow| *allow),
        unmatched_preflights: Some(UnmatchedPreflights::Ignore),
        ..CorsPolicy::default()
    }
}

fn retries(retry: &Retry) -> HttpRetry {
    let attempts = retry.attempts.unwrap_or(2);
    let mut on: Vec<String> =
        ["connect-failure", "refused-stream", "unavailable", "cancelled"].map(str::to_owned).into();
    on.extend(retry.codes.iter().map(i32::to_string));
    HttpRetry {
        attempts,
        retry_on: if attempts == 0 { String::new() } else { on.join(",") },
        backoff: retry.backoff.as_deref().map(|b| seconds(b).unwrap_or_else(|| Duration("0s".to_owned()))),
        ..HttpRetry::default()
    }
}

fn apply_timeouts(timeouts: &Timeouts, out: &mut HttpRoute) {
    if let Some(request) = timeouts.request.as_deref().and_then(seconds) {
        out.timeout = Some(request);
    }
    if let Some(backend) = timeouts.backend_request.as_deref().and_then(seconds) {
        match &mut out.retries {
            Some(retries) => retries.per_try_timeout = Some(backend),
            None => out.timeout = Some(backend),
        }
    }
}

fn named_values(list: &[NamedValue], what: &str) -> Result<BTreeMap<String, Option<StringMatch>>, Problem> {
    let mut out = BTreeMap::new();
    for item in list {
        let value = match item.kind.as_deref() {
            None | Some("Exact") => exact(&item.value),
            Some("RegularExpression") => regex(&item.value),
            Some(other) => {
                return Err(Problem::new(
                    INVALID,
                    format!("unknown type: {other:?} is not supported {what} type"),
                ));
            }
        };
        out.insert(item.name.clone(), Some(value));
    }
    Ok(out)
}

fn http_match(condition: &HttpMatch) -> Result<HttpMatchRequest, Problem> {
    let path = condition.path.as_ref();
    let value = path.and_then(|p| p.value.as_deref()).unwrap_or("/");
    let uri = match path.and_then(|p| p.kind.as_deref()) {
        // A trailing slash says nothing.
        None | Some("PathPrefix") if value == "/" => prefix("/"),
        None | Some("PathPrefix") => prefix(value.strip_suffix('/').unwrap_or(value)),
        Some("Exact") => exact(value),
        Some("RegularExpression") => regex(value),
        Some(other) => {
            return Err(Problem::new(
                INVALID,
                format!("unknown type: {other:?} is not supported Path match type"),
            ));
        }
    };
    Ok(HttpMatchRequest {
        uri: Some(uri),
        headers: named_values(&condition.headers, "HeaderMatch")?,
        query_params: named_values(&condition.query_params, "QueryParams")?,
        method: condition.method.as_ref().map(exact),
        ..HttpMatchRequest::default()
    })
}

fn grpc_path(condition: &GrpcMatch) -> Result<Option<StringMatch>, Problem> {
    let Some(wanted) = &condition.method else { return Ok(None) };
    let is_regex = match wanted.kind.as_deref() {
        None | Some("Exact") => false,
        Some("RegularExpression") => true,
        Some(other) => {
            return Err(Problem::new(
                INVALID,
                format!("unknown type: {other:?} is not supported Path match type"),
            ));
        }
    };
    Ok(Some(match (&wanted.service, &wanted.method, is_regex) {
        (None, None, _) => {
            return Err(Problem::new(INVALID, "gRPC match must have method or service defined"));
        }
        (Some(service), None, false) => prefix(format!("/{service}/")),
        (Some(service), None, true) => regex(format!("/{service}/.+")),
        (None, Some(method), _) => regex(format!("/[^/]+/{method}")),
        (Some(service), Some(method), false) => exact(format!("/{service}/{method}")),
        (Some(service), Some(method), true) => regex(format!("/{service}/{method}")),
    }))
}

/// The order in which rules are tried: exact paths, then longer prefixes, then regular expressions; a method; more
/// headers; more query parameters. Rules without a condition come last; what is equal stays in the order it has.
pub(crate) fn sort(rules: &mut [HttpRoute]) {
    rules.sort_by_key(|rule| {
        let Some(condition) = rule.matches.first() else { return (true, None) };
        let (rank, length) = match &condition.uri {
            Some(StringMatch { exact: Some(path), .. }) => (3, path.len()),
            Some(StringMatch { prefix: Some(path), .. }) => (2, path.len()),
            Some(StringMatch { regex: Some(path), .. }) => (1, path.len()),
            _ => (-1, 0),
        };
        let more = (condition.headers.len(), condition.query_params.len());
        (false, Some(Reverse((rank, length, condition.method.is_some(), more))))
    });
}
