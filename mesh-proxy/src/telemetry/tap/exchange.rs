//! A request and its answer as they go by the endpoint's node, and what is said of them at the end.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::telemetry::{
    Flags, RequestProtocol,
    local::{Local, Measured, Parties, RequestEnd},
    rules::TraceRules,
    trace::{
        Reporter, ServerCall, TraceIds, Tracer,
        context::{B3, B3_SPAN, Context, TRACEPARENT},
        new_span,
    },
};

/// What is said of the requests of a connection.
#[derive(Default)]
pub(crate) struct About {
    pub(crate) traces: Option<Traces>,
    pub(crate) counts: Option<Counts>,
}

/// For whom and about what spans are made.
pub(crate) struct Traces {
    pub(crate) tracer: Arc<Tracer>,
    pub(crate) rules: Rc<TraceRules>,
    pub(crate) reporter: Reporter,
    /// The service and port that the caller's node asked for.
    pub(crate) service: (String, u32),
    pub(crate) node: Arc<str>,
    /// Who calls.
    pub(crate) client: String,
}

/// Who is counted, and where.
pub(crate) struct Counts {
    pub(crate) local: Rc<Local>,
    pub(crate) parties: Parties,
    pub(crate) trust_domain: Arc<str>,
}

/// The version of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// A request without its whole answer.
pub(super) struct Exchange {
    began: Instant,
    /// A HEAD: the answer has no body.
    pub(super) head: bool,
    grpc: bool,
    pub(super) received: u64,
    pub(super) sent: u64,
    /// 0 = there is none yet.
    pub(super) status: u16,
    pub(super) grpc_status: Option<u16>,
    call: Option<Box<ServerCall>>,
}

/// A header that says which span called, and its digits in it.
pub(super) struct Said {
    pub(super) header: &'static str,
    /// Where in the value the digits of the span begin.
    pub(super) from: usize,
}

/// The span of this hop and the one that called, as digits.
pub(super) struct Hop {
    pub(super) said: Vec<Said>,
    pub(super) own: [u8; DIGITS],
}

/// Digits of a span.
pub(super) const DIGITS: usize = 16;

impl About {
    /// The head of a request, whose headers `find` gives. With a sampled one the span of this hop: its digits are
    /// `fitting` the place of the old ones.
    pub(super) fn begin<'h>(
        &self,
        method: &str,
        (host, path): (&str, &str),
        find: &dyn Fn(&str) -> Option<&'h str>,
        fitting: impl Fn(&[u8; DIGITS]) -> [u8; DIGITS],
    ) -> (Exchange, Option<Hop>) {
        let mut exchange = Exchange {
            began: Instant::now(),
            head: method == "HEAD",
            grpc: find("content-type").is_some_and(|t| t.starts_with("application/grpc")),
            received: 0,
            sent: 0,
            status: 0,
            grpc_status: None,
            call: None,
        };
        let Some(traces) = self.traces.as_ref().filter(|t| t.rules.reports) else { return (exchange, None) };
        let context = Context::find(find).filter(|c| c.sampled == Some(true));
        let Some(parent) = context.and_then(|c| c.ids) else { return (exchange, None) };
        let old = digits(parent.span);
        let own = fitting(&old);
        let span = std::str::from_utf8(&own).ok().and_then(|d| u64::from_str_radix(d, 16).ok());
        let ids = TraceIds { trace: parent.trace, span: span.unwrap_or_else(new_span) };
        // `00-` and 32 digits come first; of B3 the trace has 16 or 32.
        let places = [
            (TRACEPARENT, Some(36)),
            (B3, find(B3).and_then(|v| Some(v.find('-')? + 1))),
            (B3_SPAN, Some(0)),
        ];
        let says = |header: &'static str, from: usize| {
            let there = find(header)?.as_bytes().get(from..from + DIGITS)? == old.as_slice();
            there.then_some(Said { header, from })
        };
        let said = places.into_iter().filter_map(|(header, from)| says(header, from?)).collect();
        let call = ServerCall::of(parent.span, ids, (method, host, path), (find, &traces.rules));
        exchange.call = Some(Box::new(call));
        (exchange, Some(Hop { said, own }))
    }

    /// An exchange is over.
    pub(super) fn ended(&self, exchange: Exchange, version: Version, flags: Flags) {
        let Exchange { status, received, sent, call, grpc, grpc_status, .. } = exchange;
        let elapsed: Duration = exchange.began.elapsed();
        let grpc_status = grpc_status.filter(|_| grpc);
        if let Some(counts) = &self.counts {
            let protocol = if grpc { RequestProtocol::Grpc } else { RequestProtocol::Http };
            let end = RequestEnd { protocol, flags, code: status, grpc_status };
            let measured = Measured { elapsed, received, sent };
            counts.local.request(&counts.parties, end, measured, || counts.trust_domain.clone());
        }
        if let (Some(call), Some(traces)) = (call, &self.traces) {
            let Traces { tracer, reporter, service: (host, port), node, client, .. } = traces;
            let mut span = call.span(reporter.clone(), (host, *port), node, client);
            let protocol = match version {
                Version::One => "HTTP/1.1",
                Version::Two => "HTTP/2",
            };
            span.ended(elapsed, protocol, (status, grpc_status), (received, sent));
            tracer.queue().push(span);
        }
    }
}

/// A span as its headers say it.
pub(super) fn digits(span: u64) -> [u8; DIGITS] {
    let mut out = [b'0'; DIGITS];
    for (i, digit) in out.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(span >> (60 - 4 * i)) as usize & 0xf];
    }
    out
}

/// Digits of a new span.
pub(super) fn new_digits(_old: &[u8; DIGITS]) -> [u8; DIGITS] {
    digits(new_span())
}
