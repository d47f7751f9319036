//! From the wire form to compiled rules. What cannot be compiled refuses the whole service, with the field's path.

use std::time::Duration;

use ipnet::IpNet;
use mesh_api::model::{self, http_rule, redirect::PortSource};

use super::{
    Action, Cors, Destinations, DirectResponse, FaultAbort, FaultDelay, HeaderOp, HeaderOps, HeaderText,
    HttpRule, Mirror, Redirect, RedirectPort, Rewrite, RouteMatch, Selector, TcpMatch, TcpRule, TlsMatch,
    TlsRule, VirtualHostEntry, WeightedDestination, index::Index,
};
use crate::{
    policy::millis,
    retry::RetryPolicy,
    strings::{self, BadPattern, StringMatcher},
};

/// A rule that cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub(crate) struct BadRule {
    /// Field path inside the resource.
    pub(crate) path: String,
    /// What is wrong.
    pub(crate) reason: String,
}

impl BadRule {
    pub(crate) fn at(mut self, outer: &str) -> Self {
        self.path = if self.path.is_empty() { outer.to_owned() } else { format!("{outer}.{}", self.path) };
        self
    }

    fn new(path: &str, reason: impl Into<String>) -> Self {
        Self { path: path.to_owned(), reason: reason.into() }
    }
}

impl From<BadPattern> for BadRule {
    fn from(e: BadPattern) -> Self {
        Self { path: String::new(), reason: e.to_string() }
    }
}

type Result<T> = std::result::Result<T, BadRule>;

fn each<'a, T: 'a, U>(list: &'a [T], what: &str, f: impl Fn(&'a T) -> Result<U>) -> Result<Box<[U]>> {
    list.iter().enumerate().map(|(i, v)| f(v).map_err(|e| e.at(&format!("{what}[{i}]")))).collect()
}

impl VirtualHostEntry {
    pub(crate) fn compile(m: &model::VirtualHost) -> Result<Self> {
        let http = each(&m.http, "http", HttpRule::compile)?;
        Ok(Self {
            source: m.source.as_str().into(),
            visible_to: strs(&m.visible_to),
            gateways: strs(&m.gateways),
            index: Index::build(&http),
            http,
            tls: each(&m.tls, "tls", TlsRule::compile)?,
            tcp: each(&m.tcp, "tcp", TcpRule::compile)?,
        })
    }
}

fn strs(list: &[String]) -> Box<[Box<str>]> {
    list.iter().map(|s| s.as_str().into()).collect()
}

fn some(s: &str) -> Option<Box<str>> {
    (!s.is_empty()).then(|| s.into())
}

impl HttpRule {
    fn compile(m: &model::HttpRule) -> Result<Self> {
        let fault = m.fault.unwrap_or_default();
        Ok(Self {
            index: m.index,
            name: m.name.as_str().into(),
            matches: each(&m.matches, "matches", RouteMatch::compile)?,
            action: match &m.action {
                Some(http_rule::Action::Forward(f)) => {
                    Action::Forward(Destinations::compile(&f.destinations)?)
                }
                Some(http_rule::Action::Redirect(r)) => Action::Redirect(redirect(r)),
                Some(http_rule::Action::DirectResponse(d)) => Action::Direct(DirectResponse {
                    status: u16::try_from(d.status).unwrap_or(500),
                    body: d.body.as_slice().into(),
                }),
                None => return Err(BadRule::new("action", "is missing")),
            },
            rewrite: m.rewrite.as_ref().map(rewrite).transpose().map_err(|e| e.at("rewrite"))?,
            timeout: millis(m.timeout.as_ref()).filter(|t| !t.is_zero()),
            retry: m.retry.as_ref().map(RetryPolicy::compile),
            delay: fault.delay.as_ref().map(|d| FaultDelay {
                parts_per_million: d.parts_per_million,
                fixed: millis(d.fixed.as_ref()).unwrap_or(Duration::ZERO),
            }),
            abort: fault.abort.as_ref().map(|a| FaultAbort {
                parts_per_million: a.parts_per_million,
                http_status: u16::try_from(a.http_status).ok().filter(|s| *s >= 200).unwrap_or(503),
                grpc_status: a.grpc.as_ref().map(|model::fault::abort::Grpc::GrpcStatus(s)| *s),
            }),
            headers: HeaderOps::compile(m.headers.as_ref()),
            mirrors: m
                .mirrors
                .iter()
                .map(|x| Mirror {
                    destination: destination(x.destination.as_ref(), 1, None),
                    parts_per_million: x.parts_per_million,
                })
                .collect(),
            cors: m.cors.as_ref().map(cors).transpose().map_err(|e| e.at("cors"))?,
            missing_status: u16::try_from(m.missing_status).ok().filter(|s| *s != 0).unwrap_or(503),
        })
    }
}

impl RouteMatch {
    fn compile(m: &model::HttpMatch) -> Result<Self> {
        let one = |f: &Option<model::StringMatch>, what: &str| {
            f.as_ref().map(StringMatcher::compile).transpose().map_err(|e| BadRule::from(e).at(what))
        };
        let named = |list: &[model::NamedMatch], what: &str, lower: bool| {
            each(list, what, |n| {
                let name = if lower { n.name.to_ascii_lowercase() } else { n.name.clone() };
                let empty = model::StringMatch::default();
                Ok((name.into(), StringMatcher::compile(n.r#match.as_ref().unwrap_or(&empty))?))
            })
        };
        Ok(Self {
            name: m.name.as_str().into(),
            stat_prefix: m.stat_prefix.as_str().into(),
            uri: one(&m.uri, "uri")?,
            ignore_uri_case: m.ignore_uri_case,
            scheme: one(&m.scheme, "scheme")?,
            method: one(&m.method, "method")?,
            authority: one(&m.authority, "authority")?,
            headers: named(&m.headers, "headers", true)?,
            without_headers: named(&m.without_headers, "without_headers", true)?,
            query_params: named(&m.query_params, "query_params", false)?,
            selector: Selector {
                port: port(m.port, "port")?,
                labels: m.source_labels.clone(),
                namespace: m.source_namespace.as_str().into(),
                gateways: strs(&m.gateways),
            },
        })
    }
}

fn port(n: u32, what: &str) -> Result<u16> {
    u16::try_from(n).map_err(|_| BadRule::new(what, format!("{n} is not a port number")))
}

impl Destinations {
    fn compile(list: &[model::WeightedDestination]) -> Result<Self> {
        if list.is_empty() {
            return Err(BadRule::new("destinations", "is empty"));
        }
        let all = each(list, "destinations", |d| {
            port(d.destination.as_ref().map_or(0, |d| d.port), "port")?;
            Ok(destination(d.destination.as_ref(), d.weight, d.headers.as_ref()))
        })?;
        let total = all.iter().map(|d| u64::from(d.weight)).sum();
        Ok(Self { all, total })
    }
}

#[cfg(test)]
impl Destinations {
    /// Destinations with these weights.
    pub(crate) fn for_test(weights: &[u32]) -> Self {
        let all: Box<[_]> = weights.iter().map(|w| destination(None, *w, None)).collect();
        Self { total: weights.iter().map(|w| u64::from(*w)).sum(), all }
    }
}

fn destination(
    m: Option<&model::Destination>,
    weight: u32,
    headers: Option<&model::HeaderOps>,
) -> WeightedDestination {
    let m = m.cloned().unwrap_or_default();
    WeightedDestination {
        host: m.host.into(),
        subset: m.subset.into(),
        port: u16::try_from(m.port).unwrap_or(0),
        weight,
        headers: HeaderOps::compile(headers),
    }
}

impl HeaderOps {
    fn compile(m: Option<&model::HeaderOps>) -> Self {
        let Some(m) = m else { return Self::default() };
        Self { request: header_op(m.request.as_ref()), response: header_op(m.response.as_ref()) }
    }
}

pub(crate) fn header_op(m: Option<&model::HeaderOp>) -> HeaderOp {
    let Some(m) = m else { return HeaderOp::default() };
    let is_host = |n: &str| n.eq_ignore_ascii_case("host") || n.eq_ignore_ascii_case(":authority");
    let values = |list: &[model::HeaderValue]| {
        list.iter()
            .filter(|h| !is_host(&h.name))
            .map(|h| (h.name.to_ascii_lowercase().into(), HeaderText::compile(&h.value)))
            .collect()
    };
    HeaderOp {
        set: values(&m.set),
        add: values(&m.add),
        remove: m.remove.iter().map(|n| n.to_ascii_lowercase().into()).collect(),
        authority: m.set.iter().chain(&m.add).find(|h| is_host(&h.name)).map(|h| h.value.as_str().into()),
    }
}

fn redirect(m: &model::Redirect) -> Redirect {
    Redirect {
        uri: some(&m.uri),
        prefix_rewrite: some(&m.prefix_rewrite),
        authority: some(&m.authority),
        port: match &m.port_source {
            Some(PortSource::Port(n)) => u16::try_from(*n).map_or(RedirectPort::Keep, RedirectPort::Number),
            Some(PortSource::FromRequestPort(true)) => RedirectPort::FromRequest,
            Some(PortSource::ProtocolDefault(true)) => RedirectPort::ProtocolDefault,
            _ => RedirectPort::Keep,
        },
        scheme: some(&m.scheme),
        code: u16::try_from(m.code).ok().filter(|c| *c != 0).unwrap_or(301),
    }
}

fn rewrite(m: &model::Rewrite) -> Result<Rewrite> {
    let regex = if m.regex.is_empty() {
        None
    } else {
        let regex = strings::anywhere(&m.regex).map_err(|e| BadRule::from(e).at("regex"))?;
        Some((regex, groups(&m.regex_rewrite).into()))
    };
    Ok(Rewrite { uri: some(&m.uri), authority: some(&m.authority), regex })
}

/// RE2's `\1` is `${1}` here, and a dollar sign is only a dollar sign.
fn groups(replacement: &str) -> String {
    let mut out = String::with_capacity(replacement.len() + 8);
    let mut chars = replacement.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some(d @ '0'..='9') => {
                    out.push_str("${");
                    out.push(d);
                    out.push('}');
                }
                Some(other) => out.push(other),
                None => out.push('\\'),
            },
            c => out.push(c),
        }
    }
    out
}

fn cors(m: &model::Cors) -> Result<Cors> {
    let origin = |o| {
        let m = StringMatcher::compile(o)?;
        // A star as exact value allows every origin.
        Ok(if matches!(&m, StringMatcher::Exact(s) if &**s == "*") { StringMatcher::Present } else { m })
    };
    Ok(Cors {
        allow_origins: each(&m.allow_origins, "allow_origins", origin)?,
        allow_methods: m.allow_methods.join(",").into(),
        allow_headers: m.allow_headers.join(",").into(),
        expose_headers: m.expose_headers.join(",").into(),
        max_age: m.max_age.as_ref().map(|a| a.value / 1000),
        allow_credentials: m.allow_credentials,
        ignore_unmatched_preflights: m.ignore_unmatched_preflights,
    })
}

fn subnets(list: &[String]) -> Result<Box<[IpNet]>> {
    each(list, "destination_subnets", |s| {
        s.parse::<IpNet>()
            .or_else(|_| s.parse::<std::net::IpAddr>().map(IpNet::from))
            .map_err(|_| BadRule::new("", format!("{s:?} is not a network")))
    })
}

impl TlsRule {
    fn compile(m: &model::TlsRule) -> Result<Self> {
        let matches = each(&m.matches, "matches", |t| {
            Ok(TlsMatch {
                sni: t.sni_hosts.iter().map(|h| h.to_ascii_lowercase().into()).collect(),
                subnets: subnets(&t.destination_subnets)?,
                selector: Selector {
                    port: port(t.port, "port")?,
                    labels: t.source_labels.clone(),
                    namespace: t.source_namespace.as_str().into(),
                    gateways: strs(&t.gateways),
                },
            })
        })?;
        Ok(Self { index: m.index, matches, destinations: Destinations::compile(&m.destinations)? })
    }
}

impl TcpRule {
    fn compile(m: &model::TcpRule) -> Result<Self> {
        let matches = each(&m.matches, "matches", |t| {
            Ok(TcpMatch {
                subnets: subnets(&t.destination_subnets)?,
                selector: Selector {
                    port: port(t.port, "port")?,
                    labels: t.source_labels.clone(),
                    namespace: t.source_namespace.as_str().into(),
                    gateways: strs(&t.gateways),
                },
            })
        })?;
        Ok(Self { index: m.index, matches, destinations: Destinations::compile(&m.destinations)? })
    }
}
