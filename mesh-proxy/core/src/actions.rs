//! What a chosen rule does to a request and its response.

use std::{borrow::Cow, sync::Arc, time::Duration};

use crate::{
    Client,
    client::{Dice, DiceKind, RequestView},
    cluster::Cluster,
    decide::HttpDecision,
    host::without_port,
    path::split_query,
    retry::RetryPolicy,
    route::{Cors, HeaderOp, HttpRule, Mirror, Redirect, RedirectPort, RouteMatch, WeightedDestination},
    strings::{self, StringMatcher},
    tables::{MeshSettings, Tables},
};

/// A failure that a rule injects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InjectedAbort {
    /// Status for HTTP.
    pub http_status: u16,
    /// `grpc-status`, if the rule names one: for gRPC requests instead of the HTTP status.
    pub grpc_status: Option<u32>,
}

/// What cross-origin rules say to a request.
#[derive(Debug, PartialEq, Eq)]
pub enum CorsOutcome<'t> {
    /// Nothing.
    None,
    /// Answered here with 200 and these headers (none for an origin that is not allowed).
    Preflight(Vec<(&'static str, Cow<'t, str>)>),
    /// Sent on; these headers are set on the response.
    Actual(Vec<(&'static str, Cow<'t, str>)>),
}

impl HttpRule {
    /// Delay to inject. Drawn before the abort.
    pub fn delay(&self, dice: &mut impl Dice) -> Option<Duration> {
        let d = self.delay.as_ref()?;
        hit(d.parts_per_million, DiceKind::FaultDelay, dice).then_some(d.fixed)
    }

    /// Failure to inject.
    pub fn abort(&self, dice: &mut impl Dice) -> Option<InjectedAbort> {
        let a = self.abort.as_ref()?;
        hit(a.parts_per_million, DiceKind::FaultAbort, dice)
            .then_some(InjectedAbort { http_status: a.http_status, grpc_status: a.grpc_status })
    }

    /// The copies to send.
    pub fn mirrors<'t>(&'t self, dice: &mut impl Dice) -> impl Iterator<Item = &'t WeightedDestination> {
        self.mirrors
            .iter()
            .filter(move |m: &&Mirror| hit(m.parts_per_million, DiceKind::Mirror, dice))
            .map(|m| &m.destination)
    }

    /// Retries of this rule, or the mesh's default. None: there are none.
    pub fn retry_policy<'t>(&'t self, mesh: &'t MeshSettings) -> Option<&'t RetryPolicy> {
        Some(self.retry.as_ref().unwrap_or(&mesh.default_retry)).filter(|p| p.attempts > 0)
    }

    /// The path and query to send on, if the rule changes it.
    pub fn rewritten_path(&self, matched: Option<&RouteMatch>, path_and_query: &str) -> Option<String> {
        let rewrite = self.rewrite.as_ref()?;
        let (path, query) = split_query(path_and_query);
        if let Some((regex, replacement)) = &rewrite.regex {
            let new = regex.replace_all(path, &**replacement);
            return match new {
                Cow::Borrowed(_) => None,
                Cow::Owned(p) => Some(p + query),
            };
        }
        let new = rewrite.uri.as_deref()?;
        Some(match matched.and_then(|m| m.uri.as_ref()) {
            Some(StringMatcher::Exact(_) | StringMatcher::Regex(_) | StringMatcher::Present) => {
                [new, query].concat()
            }
            Some(StringMatcher::Prefix(p)) => [new, path.get(p.len()..).unwrap_or_default(), query].concat(),
            Some(StringMatcher::PathPrefix(p)) => moved(path, p, new) + query,
            // Without a condition on the path the prefix is "/".
            None => [new, path.strip_prefix('/').unwrap_or(path), query].concat(),
        })
    }

    /// The authority to send, if the rule or the destination changes it. The rule wins.
    pub fn rewritten_authority<'t>(&'t self, to: Option<&'t WeightedDestination>) -> Option<&'t str> {
        self.rewrite
            .as_ref()
            .and_then(|r| r.authority.as_deref())
            .or(self.headers.request.authority.as_deref())
            .or(to.and_then(|d| d.headers.request.authority.as_deref()))
    }

    /// What cross-origin rules say to the request.
    pub fn cors<'t>(&'t self, request: &impl RequestView) -> CorsOutcome<'t> {
        self.cors.as_ref().map_or(CorsOutcome::None, |c| cors(c, request))
    }
}

/// The levels of header changes of a decision, the rule's first. Apply all removals of both, then set and add of each.
pub fn header_ops<'t>(
    decision: &HttpDecision<'t>,
    to: Option<&'t WeightedDestination>,
    response: bool,
) -> [Option<&'t HeaderOp>; 2] {
    let of = |h: &'t crate::route::HeaderOps| if response { &h.response } else { &h.request };
    [decision.rule.map(|r| of(&r.headers)), to.map(|d| of(&d.headers))]
}

fn hit(parts_per_million: u32, what: DiceKind, dice: &mut impl Dice) -> bool {
    parts_per_million > 0 && dice.roll(what) * 1e6 < f64::from(parts_per_million)
}

fn cors<'t>(c: &'t Cors, request: &impl RequestView) -> CorsOutcome<'t> {
    let mut origin = None;
    request.header_values("origin", &mut |v| {
        origin = Some(v.to_owned());
        true
    });
    let Some(origin) = origin else { return CorsOutcome::None };
    let allowed = c.allow_origins.iter().any(|m| m.matches(&origin));
    let preflight = request.method() == "OPTIONS"
        && request.header_values("access-control-request-method", &mut |_| true);
    match (preflight, allowed) {
        (true, false) if c.ignore_unmatched_preflights => return CorsOutcome::Preflight(Vec::new()),
        (_, false) => return CorsOutcome::None,
        (_, true) => {}
    }
    let mut headers = vec![("access-control-allow-origin", Cow::Owned(origin))];
    if c.allow_credentials {
        headers.push(("access-control-allow-credentials", Cow::Borrowed("true")));
    }
    let mut list = |name, value: &'t str| {
        if !value.is_empty() {
            headers.push((name, Cow::Borrowed(value)));
        }
    };
    list("access-control-expose-headers", &c.expose_headers);
    if !preflight {
        return CorsOutcome::Actual(headers);
    }
    let asked = |name: &str| -> Option<String> {
        let mut all = Vec::new();
        request.header_values(name, &mut |v| {
            all.push(v.to_owned());
            false
        });
        (!all.is_empty()).then(|| all.join(","))
    };
    for (name, allowed, question) in [
        ("access-control-allow-methods", &c.allow_methods, "access-control-request-method"),
        ("access-control-allow-headers", &c.allow_headers, "access-control-request-headers"),
    ] {
        // With credentials browsers take a star for a name: what is asked for is said instead.
        let all = c.allow_credentials && **allowed == *"*";
        match asked(question).filter(|_| all) {
            Some(echoed) => headers.push((name, Cow::Owned(echoed))),
            None if !allowed.is_empty() => headers.push((name, Cow::Borrowed(allowed))),
            None => {}
        }
    }
    if let Some(age) = c.max_age {
        headers.push(("access-control-max-age", Cow::Owned(age.to_string())));
    }
    CorsOutcome::Preflight(headers)
}

impl Redirect {
    /// The value of `Location`. `port` is the one that the client called.
    pub fn location(&self, matched: Option<&RouteMatch>, request: &impl RequestView, port: u16) -> String {
        let old_scheme = request.scheme();
        let scheme = self.scheme.as_deref().unwrap_or(old_scheme);
        let host = self.authority.as_deref().unwrap_or(request.authority());
        let number = match self.port {
            RedirectPort::Number(n) => Some(n),
            RedirectPort::FromRequest => Some(port),
            RedirectPort::ProtocolDefault => None,
            RedirectPort::Keep => {
                let kept = host.get(bare(host).len()..).and_then(|p| p.strip_prefix(':')?.parse().ok());
                // A change of scheme makes the old scheme's port meaningless.
                kept.filter(|p| scheme == old_scheme || !matches!(p, 80 | 443))
            }
        };
        let number = number.filter(|n| !matches!((scheme, n), ("http", 80) | ("https", 443)));
        let mut out = format!("{scheme}://{}", bare(host));
        if let Some(n) = number {
            out.push(':');
            out.push_str(&n.to_string());
        }
        self.push_path(&mut out, matched, request.path_and_query());
        out
    }

    fn push_path(&self, out: &mut String, matched: Option<&RouteMatch>, path_and_query: &str) {
        let (path, query) = split_query(path_and_query);
        if let Some(uri) = self.uri.as_deref() {
            if !uri.starts_with('/') {
                out.push('/');
            }
            out.push_str(uri);
            if !uri.contains('?') {
                out.push_str(query);
            }
            return;
        }
        match (&self.prefix_rewrite, matched.and_then(|m| m.uri.as_ref())) {
            (Some(new), Some(StringMatcher::Prefix(p))) => {
                out.push_str(new);
                out.push_str(path.get(p.len()..).unwrap_or_default());
            }
            (Some(new), Some(StringMatcher::PathPrefix(p))) => out.push_str(&moved(path, p, new)),
            (Some(new), None) => {
                out.push_str(new);
                out.push_str(path.strip_prefix('/').unwrap_or(path));
            }
            _ => out.push_str(path),
        }
        out.push_str(query);
    }
}

/// A path below `prefix` as one below `new`, with one slash between them; never empty.
fn moved(path: &str, prefix: &str, new: &str) -> String {
    let rest = strings::below(path, prefix).unwrap_or_default();
    let new = new.strip_suffix('/').unwrap_or(new);
    if new.is_empty() && rest.is_empty() { "/".to_owned() } else { [new, rest].concat() }
}

/// Host without port, an IPv6 literal with its brackets.
fn bare(authority: &str) -> &str {
    if authority.starts_with('[') {
        return authority.find(']').map_or(authority, |at| &authority[..=at]);
    }
    without_port(authority)
}

impl Tables {
    /// The clusters that get a copy of a request.
    pub fn mirror_clusters<'t>(
        &'t self,
        rule: &'t HttpRule,
        client: &Client<'_>,
        port: u16,
        dice: &mut impl Dice,
    ) -> impl Iterator<Item = &'t Arc<Cluster>> {
        rule.mirrors(dice)
            .filter_map(move |to| self.cluster_of(client, to, port, client.gateway.is_some()).ok())
    }
}

#[cfg(test)]
mod tests;
