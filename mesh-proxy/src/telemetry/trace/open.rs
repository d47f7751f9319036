//! A client span while its request is under way.

use std::rc::Rc;

use http::Request;
use mesh_core::{Cluster, command::Operator};

use super::{
    TraceIds, Tracer,
    context::{Context, Forms},
    span::{Reporter, Span},
};
use crate::telemetry::{
    access_log::{Entry, Host, Http, View, Wanted},
    rules::TraceRules,
};

/// A sampled request.
#[derive(Debug)]
pub(crate) struct OpenSpan {
    ids: TraceIds,
    parent: Option<u64>,
    forms: Forms,
    rules: Rc<TraceRules>,
    /// Tags that the head says.
    tags: Vec<(String, String)>,
    /// What texts with operators need of the head.
    kept: Option<Box<Http>>,
}

/// What operators of tags need.
#[derive(Debug)]
pub(crate) struct TagNeeds {
    wanted: Wanted,
    host: Host,
}

impl TagNeeds {
    pub(crate) fn of(operators: &[&Operator]) -> Self {
        let mut host = Host::default().named_by(operators.iter().copied());
        host.look();
        Self { wanted: Wanted::by(operators.iter().copied()), host }
    }
}

impl OpenSpan {
    /// Decides about a request, and if it is sampled says so in its headers.
    pub(crate) fn begin<B>(
        tracer: &Tracer,
        rules: Rc<TraceRules>,
        roll: impl FnOnce() -> f64,
        request: &mut Request<B>,
    ) -> Option<Box<Self>> {
        if !rules.reports {
            return None;
        }
        let context = Context::read(request.headers());
        let percent = rules.sampling.unwrap_or(tracer.config().sampling_percent);
        let sampled = context.and_then(|c| c.sampled).unwrap_or_else(|| roll() * 100.0 < percent);
        if !sampled {
            return None;
        }
        let before = context.and_then(|c| c.ids);
        let fresh = || rand::random::<u128>().max(1);
        let ids = TraceIds { trace: before.map_or_else(fresh, |b| b.trace), span: new_span() };
        let parent = before.map(|b| b.span);
        let forms = context.map_or_else(|| Forms::from(tracer.config().propagation), |c| c.forms());
        let said = |t: &super::Tag| Some((t.name.clone(), t.of_head(request.headers())?));
        let tags = rules.tags.iter().filter_map(said).collect();
        let kept = rules.needs.as_ref().map(|n| Box::new(Http::of(request, &n.wanted)));
        forms.write(ids, parent, request.headers_mut());
        Some(Box::new(Self { ids, parent, forms, rules, tags, kept }))
    }

    pub(crate) const fn ids(&self) -> TraceIds {
        self.ids
    }

    /// What the request says of it: the span, its parent, and the forms in which it is said.
    pub(super) const fn said(&self) -> (TraceIds, Option<u64>, Forms) {
        (self.ids, self.parent, self.forms)
    }

    /// The request has ended as its entry says.
    pub(crate) fn end(
        self,
        tracer: &Tracer,
        reporter: Reporter,
        (entry, cluster): (&mut Entry, Option<&Cluster>),
        node: &str,
    ) {
        let authority = entry.http.as_ref().map(|h| h.authority().to_owned()).unwrap_or_default();
        let key = cluster.map(|c| &c.key);
        let name = key.map_or_else(|| format!("{authority}/*"), |k| format!("{}:{}/*", k.host, k.port));
        let mut span = Span {
            ids: self.ids,
            parent: self.parent,
            server: false,
            name,
            start: entry.start,
            duration: entry.duration,
            error: entry.status == 0 || entry.status >= 500,
            ..Span::default()
        };
        span.text("component", "proxy");
        span.text("node_id", node);
        if let Some(http) = &entry.http {
            span.text("http.method", http.method.as_str());
            span.text("http.url", &format!("http://{authority}{}", http.path()));
            span.text("user_agent", http.agent());
            span.text("guid:x-request-id", http.request_id());
        }
        span.text("http.protocol", entry.protocol);
        span.number("http.status_code", entry.status.into());
        if let Some(status) = entry.grpc_status {
            span.number("grpc.status_code", status.into());
            span.error |= status != 0;
        }
        span.number("request_size", entry.received);
        span.number("response_size", entry.sent);
        span.text("response_flags", &entry.flags.letters());
        span.text("upstream_cluster", &entry.cluster);
        if let Some(upstream) = entry.upstream {
            span.text("upstream_address", &upstream.to_string());
        }
        if let Some(client) = entry.client {
            span.text("peer.address", &client.to_string());
        }
        span.text("istio.canonical_service", reporter.service.split('.').next().unwrap_or_default());
        span.text("istio.canonical_revision", &reporter.revision);
        span.text("istio.namespace", &reporter.namespace);
        for (name, value) in self.tags {
            span.text(name, &value);
        }
        if let (Some(needs), Some(kept)) = (&self.rules.needs, self.kept) {
            // The line of the log is written; what it kept of the head gives way to what the tags kept.
            entry.http = Some(kept);
            let view = View { entry, wanted: &needs.wanted, host: &needs.host, plain: false };
            for tag in &self.rules.tags {
                if let Some(format) = tag.format() {
                    span.text(tag.name.clone(), &format.text(&view, "-"));
                }
            }
        }
        span.reporter = reporter;
        tracer.queue().push(span);
    }
}

/// A new span's id.
pub(crate) fn new_span() -> u64 {
    rand::random::<u64>().max(1)
}
