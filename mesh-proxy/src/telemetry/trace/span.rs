//! A span that has ended, on its way to the collector.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use mesh_core::WorkloadEntry;

use super::TraceIds;
use crate::telemetry::{peer::Peer, rules::TraceRules};

/// Longest value of an attribute that a client chose.
const MAX_VALUE: usize = 256;

/// One hop of one request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Span {
    pub(in crate::telemetry) ids: TraceIds,
    pub(in crate::telemetry) parent: Option<u64>,
    /// Seen by the endpoint's node; else by the caller's.
    pub(in crate::telemetry) server: bool,
    pub(in crate::telemetry) name: String,
    pub(in crate::telemetry) reporter: Reporter,
    pub(in crate::telemetry) start: Option<SystemTime>,
    pub(in crate::telemetry) duration: Duration,
    pub(in crate::telemetry) error: bool,
    pub(in crate::telemetry) attributes: Vec<(Cow<'static, str>, Value)>,
}

/// A value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Number(i64),
}

/// The workload on whose behalf the proxy speaks: Istio's service name and what its dashboards ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Reporter {
    /// `reviews.default`.
    pub(super) service: String,
    pub(super) namespace: String,
    pub(super) revision: String,
    pub(super) pod: String,
}

impl Reporter {
    /// The workload, or the node's proxy for callers that are none.
    pub(crate) fn of(workload: Option<&WorkloadEntry>) -> Self {
        let Some(w) = workload else {
            return Self { service: "mesh-proxy".to_owned(), ..Self::default() };
        };
        let peer = Peer::of(w, "", "");
        Self {
            service: format!("{}.{}", peer.canonical_service, peer.namespace),
            namespace: peer.namespace,
            revision: peer.canonical_revision,
            pod: w.name.to_string(),
        }
    }
}

impl Span {
    /// Adds an attribute, unless there is nothing to say.
    pub(super) fn text(&mut self, name: impl Into<Cow<'static, str>>, value: &str) {
        if !value.is_empty() {
            self.attributes.push((name.into(), Value::Text(cut(value))));
        }
    }

    /// What is known at the end of a server span; a status of 0: the connection ended first.
    pub(in crate::telemetry) fn ended(
        &mut self,
        took: Duration,
        protocol: &str,
        (status, grpc): (u16, Option<u16>),
        (received, sent): (u64, u64),
    ) {
        self.duration = took;
        self.error = status == 0 || status >= 500 || grpc.is_some_and(|s| s != 0);
        self.text("http.protocol", protocol);
        self.number("http.status_code", status.into());
        if let Some(status) = grpc {
            self.number("grpc.status_code", status.into());
        }
        self.number("request_size", received);
        self.number("response_size", sent);
    }

    pub(super) fn number(&mut self, name: &'static str, value: u64) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.attributes.push((name.into(), Value::Number(value)));
    }
}

/// The first bytes of a text, without half a character.
pub(in crate::telemetry) fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_VALUE)].to_owned()
}

/// A request as the endpoint's node sees it.
#[derive(Debug)]
pub(crate) struct ServerCall {
    /// The span that called.
    parent: u64,
    /// This hop.
    ids: TraceIds,
    method: String,
    path: String,
    host: String,
    agent: String,
    request_id: String,
    /// Values of the headers that custom tags name.
    tags: Vec<(String, String)>,
    start: SystemTime,
}

/// Gives the value of a header.
type Find<'f, 'h> = &'f dyn Fn(&str) -> Option<&'h str>;

impl ServerCall {
    /// A request: its method, host and path, and its headers, which `find` gives.
    pub(in crate::telemetry) fn of<'h>(
        parent: u64,
        ids: TraceIds,
        (method, host, path): (&str, &str, &str),
        (find, rules): (Find<'_, 'h>, &TraceRules),
    ) -> Self {
        Self {
            parent,
            ids,
            method: cut(method),
            path: cut(path),
            host: cut(host),
            agent: cut(find("user-agent").unwrap_or_default()),
            request_id: cut(find("x-request-id").unwrap_or_default()),
            tags: rules.tags_of(find),
            start: SystemTime::now(),
        }
    }

    /// The span of this call; `to` is what the caller's node asked for.
    pub(in crate::telemetry) fn span(
        self,
        reporter: Reporter,
        (host, port): (&str, u32),
        node: &str,
        client: &str,
    ) -> Span {
        let mut span = Span {
            ids: self.ids,
            parent: Some(self.parent),
            server: true,
            name: format!("{host}:{port}/*"),
            start: Some(self.start),
            ..Span::default()
        };
        span.text("component", "proxy");
        span.text("node_id", node);
        span.text("http.method", &self.method);
        span.text("http.url", &format!("http://{}{}", self.host, self.path));
        span.text("user_agent", &self.agent);
        span.text("guid:x-request-id", &self.request_id);
        span.text("upstream_cluster", &format!("inbound|{port}||{host}"));
        span.text("peer.address", client);
        span.text("istio.canonical_service", reporter.service.split('.').next().unwrap_or_default());
        span.text("istio.canonical_revision", &reporter.revision);
        span.text("istio.namespace", &reporter.namespace);
        for (name, value) in self.tags {
            span.text(name, &value);
        }
        span.reporter = reporter;
        span
    }
}
