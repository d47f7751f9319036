//! Why a match entry does not hold, in words. For people who ask; requests never come here.

use super::{
    RouteMatch,
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
