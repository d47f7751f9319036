//! A span that has ended, on its way to the collector.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use mesh_core::WorkloadEntry;

use super::{TraceIds, context::Context};
use crate::telemetry::peer::Peer;

/// Longest value of an attribute that a client chose.
const MAX_VALUE: usize = 256;

/// One hop of one request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Span {
    pub(super) ids: TraceIds,
    pub(super) parent: Option<u64>,
    /// Seen by the endpoint's node; else by the caller's.
    pub(super) server: bool,
    pub(super) name: String,
    pub(super) reporter: Reporter,
    pub(super) start: Option<SystemTime>,
    pub(super) duration: Duration,
    pub(super) error: bool,
    pub(super) attributes: Vec<(Cow<'static, str>, Value)>,
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

    pub(super) fn number(&mut self, name: &'static str, value: u64) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.attributes.push((name.into(), Value::Number(value)));
    }
}

/// The first bytes of a text, without half a character.
pub(super) fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_VALUE)].to_owned()
}

/// A request as the endpoint's node saw it.
#[derive(Debug, Clone)]
pub(crate) struct ServerCall {
    pub(super) context: Context,
    /// This hop.
    pub(super) ids: TraceIds,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) host: String,
    pub(super) agent: String,
    pub(super) request_id: String,
    /// Values of the headers that custom tags name.
    pub(super) tags: Vec<(String, String)>,
    pub(super) start: SystemTime,
    pub(super) took: Duration,
    pub(super) received: u64,
    pub(super) sent: u64,
    /// 0: the connection ended first.
    pub(super) status: u16,
}

impl ServerCall {
    /// The span of this call; `to` is what the caller's node asked for.
    pub(super) fn span(
        self,
        reporter: Reporter,
        (host, port): (&str, u32),
        node: &str,
        client: &str,
    ) -> Span {
        let mut span = Span {
            ids: self.ids,
            parent: self.context.ids.map(|i| i.span),
            server: true,
            name: format!("{host}:{port}/*"),
            start: Some(self.start),
            duration: self.took,
            error: self.status == 0 || self.status >= 500,
            ..Span::default()
        };
        span.text("component", "proxy");
        span.text("node_id", node);
        span.text("http.method", &self.method);
        span.text("http.url", &format!("http://{}{}", self.host, self.path));
        span.text("http.protocol", "HTTP/1.1");
        span.number("http.status_code", self.status.into());
        span.number("request_size", self.received);
        span.number("response_size", self.sent);
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
