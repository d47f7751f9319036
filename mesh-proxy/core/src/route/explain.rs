//! Why a match entry does not hold, in words. For people who ask; requests never come here.

use ipnet::IpNet;

use super::{
    RouteMatch, Selector, TcpRule, TlsRule,
    matching::{Split, fits, has_header, has_unwanted, query_param},
};
use crate::{
    client::{Client, RequestView},
    strings::StringMatcher,
};

impl RouteMatch {
    /// The first condition that the client, the port or the request does not fulfil. None: all hold.
    pub fn refusal<R: RequestView>(&self, client: &Client<'_>, port: u16, request: &R) -> Option<String> {
        let split = Split::new(request);
        self.static_refusal(client, port).or_else(|| self.request_refusal(&split))
    }

    fn static_refusal(&self, client: &Client<'_>, port: u16) -> Option<String> {
        let s = &self.selector;
        if s.port != 0 && s.port != port {
            return Some(format!("port is {port}, not {}", s.port));
        }
        if !s.gateways.is_empty() {
            let here = client.gateway_name();
            return (!s.gateways.iter().any(|g| **g == *here)).then(|| format!("not for {here}"));
        }
        if !s.namespace.is_empty() && *s.namespace != *client.namespace {
            return Some(format!("client is in namespace {}, not {}", client.namespace, s.namespace));
        }
        let missing = s.labels.iter().find(|(k, v)| client.labels.get(*k) != Some(v));
        missing.map(|(k, v)| format!("client has no label {k}={v}"))
    }

    fn request_refusal<R: RequestView>(&self, r: &Split<'_, R>) -> Option<String> {
        let part = |name: &str, m: &Option<StringMatcher>, value: &str| {
            let m = m.as_ref()?;
            (!m.matches(value)).then(|| format!("{name} {value:?} is not {}", m.describe()))
        };
        if !self.accepts_uri(r.path) {
            let wanted = self.uri.as_ref().map(StringMatcher::describe).unwrap_or_default();
            return Some(format!("path {:?} is not {wanted}", r.path));
        }
        part("method", &self.method, r.request.method())
            .or_else(|| part("scheme", &self.scheme, r.request.scheme()))
            .or_else(|| part("authority", &self.authority, r.request.authority()))
            .or_else(|| {
                let (name, m) = self.headers.iter().find(|(n, m)| !has_header(r, n, m))?;
                Some(format!("header {name} is not {}", m.describe()))
            })
            .or_else(|| {
                let (name, m) = self.without_headers.iter().find(|(n, m)| has_unwanted(r, n, m))?;
                Some(format!("header {name} is {}", m.describe()))
            })
            .or_else(|| {
                let holds = |n: &str, m| fits(Some(m), query_param(r.query, n).unwrap_or_default());
                let (name, m) = self
                    .query_params
                    .iter()
                    .find(|(n, m)| query_param(r.query, n).is_none() || !holds(n, m))?;
                Some(format!("query parameter {name} is not {}", m.describe()))
            })
    }
}

impl RouteMatch {
    /// All conditions in words; empty = every request.
    pub fn describe(&self) -> String {
        let mut all = Vec::new();
        let mut part = |name: &str, m: &Option<StringMatcher>| {
            all.extend(m.as_ref().map(|m| format!("{name} {}", m.describe())));
        };
        part(if self.ignore_uri_case { "path (any case)" } else { "path" }, &self.uri);
        part("method", &self.method);
        part("scheme", &self.scheme);
        part("authority", &self.authority);
        all.extend(self.headers.iter().map(|(n, m)| format!("header {n} {}", m.describe())));
        all.extend(self.without_headers.iter().map(|(n, m)| format!("header {n} not {}", m.describe())));
        all.extend(self.query_params.iter().map(|(n, m)| format!("query parameter {n} {}", m.describe())));
        self.selector.describe(&mut all);
        all.join(", ")
    }
}

impl Selector {
    fn describe(&self, all: &mut Vec<String>) {
        if self.port != 0 {
            all.push(format!("port {}", self.port));
        }
        if !self.namespace.is_empty() {
            all.push(format!("from namespace {}", self.namespace));
        }
        all.extend(self.labels.iter().map(|(k, v)| format!("from {k}={v}")));
        if !self.gateways.is_empty() {
            all.push(format!("at {}", self.gateways.join(" or ")));
        }
    }
}

impl TlsRule {
    /// Each set of conditions in words; any of them lets the rule take a connection.
    pub fn describe(&self) -> Vec<String> {
        self.matches.iter().map(|m| l4(&m.sni, &m.subnets, &m.selector)).collect()
    }
}

impl TcpRule {
    /// Each set of conditions in words; any of them lets the rule take a connection.
    pub fn describe(&self) -> Vec<String> {
        self.matches.iter().map(|m| l4(&[], &m.subnets, &m.selector)).collect()
    }
}

fn l4(sni: &[Box<str>], subnets: &[IpNet], selector: &Selector) -> String {
    let mut all = Vec::new();
    if !sni.is_empty() {
        all.push(format!("name {}", sni.join(" or ")));
    }
    if !subnets.is_empty() {
        let subnets: Vec<String> = subnets.iter().map(ToString::to_string).collect();
        all.push(format!("to {}", subnets.join(" or ")));
    }
    selector.describe(&mut all);
    all.join(", ")
}

impl StringMatcher {
    /// The condition in words.
    pub fn describe(&self) -> String {
        match self {
            Self::Exact(s) => format!("exactly {s:?}"),
            Self::Prefix(s) => format!("with prefix {s:?}"),
            Self::PathPrefix(s) => format!("{s:?} or below it"),
            Self::Regex(r) => format!("like {:?}", r.as_str()),
            Self::Present => "present".to_owned(),
        }
    }
}
