//! Whether a request, a connection or a client satisfies a rule.

use std::net::IpAddr;

use super::{HttpRule, RouteMatch, TcpRule, TlsRule, VirtualHostEntry, index::Place};
use crate::{
    client::{Client, RequestView},
    path::split_query,
    strings::StringMatcher,
};

/// A request with what is needed more than once.
pub(crate) struct Split<'a, R> {
    pub(crate) request: &'a R,
    pub(crate) path: &'a str,
    pub(crate) query: &'a str,
}

impl<'a, R: RequestView> Split<'a, R> {
    pub(crate) fn new(request: &'a R) -> Self {
        let (path, query) = split_query(request.path_and_query());
        Self { request, path, query: query.strip_prefix('?').unwrap_or_default() }
    }
}

impl VirtualHostEntry {
    /// Whether clients of that namespace see this VirtualService.
    pub fn visible_to(&self, client: &Client<'_>) -> bool {
        self.visible_to.is_empty() || self.visible_to.iter().any(|n| **n == *client.namespace)
    }

    /// Whether it is bound to the client's gateway (`mesh` inside the mesh).
    fn bound(&self, client: &Client<'_>) -> bool {
        let name = client.gateway_name();
        if self.gateways.is_empty() { name == "mesh" } else { self.gateways.iter().any(|g| **g == *name) }
    }

    /// Whether any HTTP rule is left for that client at that port. If none is, the VirtualService counts for nothing.
    pub fn has_http_for(&self, client: &Client<'_>, port: u16) -> bool {
        let bound = self.bound(client);
        self.http.iter().any(|r| r.selected(client, port, bound))
    }

    /// The first rule that the request satisfies.
    pub(crate) fn find<R: RequestView>(&self, client: &Client<'_>, port: u16, request: &R) -> Option<Place> {
        let bound = self.bound(client);
        let split = Split::new(request);
        self.index.first(split.path, |place| {
            let rule = &self.http[place.rule as usize];
            match place.matched {
                None => bound,
                Some(m) => {
                    let m = &rule.matches[m as usize];
                    m.selector.fits_http(client, port, bound) && m.accepts(&split)
                }
            }
        })
    }

    /// The first rule for a request at a gateway, either among those for every path or among the others: several
    /// VirtualServices answer there together, and what takes every path comes last.
    pub(crate) fn find_gateway<R: RequestView>(
        &self,
        client: &Client<'_>,
        port: u16,
        request: &R,
        every_path: bool,
    ) -> Option<Place> {
        let bound = self.bound(client);
        let split = Split::new(request);
        self.index.first(split.path, |place| {
            let rule = &self.http[place.rule as usize];
            match place.matched.map(|m| &rule.matches[m as usize]) {
                None => bound && every_path,
                Some(m) => {
                    m.takes_every_path() == every_path
                        && m.selector.fits_http(client, port, bound)
                        && m.accepts(&split)
                }
            }
        })
    }

    /// Whether any TLS rule is left for that client at that port.
    pub(crate) fn has_tls_for(&self, client: &Client<'_>, port: u16) -> bool {
        let bound = self.bound(client);
        self.tls.iter().flat_map(|r| &r.matches).any(|m| m.selector.fits_l4(client, port, bound))
    }

    pub(crate) fn find_tls(
        &self,
        client: &Client<'_>,
        sni: &str,
        to: Option<IpAddr>,
        port: u16,
    ) -> Option<&TlsRule> {
        let bound = self.bound(client);
        self.tls.iter().find(|r| {
            r.matches.iter().any(|m| {
                m.selector.fits_l4(client, port, bound)
                    && m.sni.iter().any(|p| sni_fits(p, sni))
                    && in_subnets(&m.subnets, to)
            })
        })
    }

    pub(crate) fn find_tcp(&self, client: &Client<'_>, to: Option<IpAddr>, port: u16) -> Option<&TcpRule> {
        let bound = self.bound(client);
        self.tcp.iter().find(|r| {
            (r.matches.is_empty() && bound)
                || r.matches
                    .iter()
                    .any(|m| m.selector.fits_l4(client, port, bound) && in_subnets(&m.subnets, to))
        })
    }
}

fn in_subnets(subnets: &[ipnet::IpNet], to: Option<IpAddr>) -> bool {
    subnets.is_empty() || to.is_some_and(|ip| subnets.iter().any(|n| n.contains(&ip)))
}

fn sni_fits(pattern: &str, sni: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some("") => true,
        // `*.example.com`: at least one label in front.
        Some(suffix) => {
            let (s, x) = (sni.as_bytes(), suffix.as_bytes());
            s.len() > x.len() && s[s.len() - x.len()..].eq_ignore_ascii_case(x)
        }
        None => pattern.eq_ignore_ascii_case(sni),
    }
}

impl HttpRule {
    fn selected(&self, client: &Client<'_>, port: u16, bound: bool) -> bool {
        (self.matches.is_empty() && bound)
            || self.matches.iter().any(|m| m.selector.fits_http(client, port, bound))
    }
}

impl RouteMatch {
    pub(crate) fn accepts<R: RequestView>(&self, r: &Split<'_, R>) -> bool {
        self.accepts_uri(r.path)
            && fits(self.method.as_ref(), r.request.method())
            && fits(self.scheme.as_ref(), r.request.scheme())
            && fits(self.authority.as_ref(), r.request.authority())
            && self.headers.iter().all(|(n, m)| has_header(r, n, m))
            && !self.without_headers.iter().any(|(n, m)| has_unwanted(r, n, m))
            && self.query_params.iter().all(|(n, m)| query_param(r.query, n).is_some_and(|v| m.matches(v)))
    }

    /// Whether it has no condition but one that every path fulfils.
    fn takes_every_path(&self) -> bool {
        let every = match &self.uri {
            None | Some(StringMatcher::Present) => true,
            Some(StringMatcher::Prefix(p) | StringMatcher::PathPrefix(p)) => matches!(&**p, "" | "/"),
            Some(StringMatcher::Regex(r)) => r.as_str() == r"\A(?:.*)\z",
            Some(StringMatcher::Exact(_)) => false,
        };
        every
            && self.method.is_none()
            && self.scheme.is_none()
            && self.authority.is_none()
            && self.headers.is_empty()
            && self.without_headers.is_empty()
            && self.query_params.is_empty()
    }

    pub(super) fn accepts_uri(&self, path: &str) -> bool {
        match &self.uri {
            None => true,
            Some(m) if self.ignore_uri_case => m.matches_ignoring_case(path),
            Some(m) => m.matches(path),
        }
    }
}

pub(super) fn fits(m: Option<&StringMatcher>, value: &str) -> bool {
    m.is_none_or(|m| m.matches(value))
}

/// A header, or a part of the request that rules may name like one.
fn values<R: RequestView>(r: &Split<'_, R>, name: &str, f: &mut dyn FnMut(&str) -> bool) -> bool {
    match name {
        ":method" => f(r.request.method()),
        ":authority" | "host" => f(r.request.authority()),
        ":path" => f(r.request.path_and_query()),
        ":scheme" => f(r.request.scheme()),
        // What a token says, which nobody looks at; not a header that a client may send.
        _ if name.starts_with('@') => false,
        _ => r.request.header_values(name, f),
    }
}

pub(super) fn has_header<R: RequestView>(r: &Split<'_, R>, name: &str, m: &StringMatcher) -> bool {
    values(r, name, &mut |v| m.matches(v))
}

/// A header that is not there counts as empty, except for presence.
pub(super) fn has_unwanted<R: RequestView>(r: &Split<'_, R>, name: &str, m: &StringMatcher) -> bool {
    let mut present = false;
    let hit = values(r, name, &mut |v| {
        present = true;
        m.matches(v)
    });
    hit || (!present && !matches!(m, StringMatcher::Present) && m.matches(""))
}

/// The first value of a parameter, as sent.
pub(super) fn query_param<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    if query.is_empty() {
        return None;
    }
    query.split('&').find_map(|pair| match pair.split_once('=') {
        Some((n, v)) => (n == name).then_some(v),
        None => (pair == name).then_some(""),
    })
}
