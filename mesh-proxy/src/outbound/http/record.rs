//! What is said of one request when it ends, however it ends: metrics and the access log.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::HeaderMap;

use super::{HttpConnection, body::Meter};
use crate::telemetry::{
    Flags, RequestProtocol,
    access_log::Entry,
    local::{Measured, Parties, RequestEnd},
    trace::{Beside, OpenSpan, Reporter},
};

/// Collects over the life of a request; counts when it is dropped, so that a cancelled request counts too.
pub(crate) struct Record {
    conn: Rc<HttpConnection>,
    start: Instant,
    pub(crate) parties: Parties,
    pub(crate) flags: Flags,
    pub(crate) code: u16,
    pub(crate) details: &'static str,
    pub(crate) grpc: bool,
    pub(crate) grpc_status: Option<u16>,
    pub(crate) received: Rc<Meter>,
    pub(crate) sent: u64,
    /// The response went out whole.
    pub(crate) complete: bool,
    /// What the rule's match calls it in statistics.
    pub(crate) stat_prefix: Option<Arc<str>>,
    /// Only while the access log is on, or for a sampled trace.
    pub(crate) entry: Option<Box<Entry>>,
    /// Only of a sampled trace.
    pub(crate) span: Option<Box<OpenSpan>>,
    /// The same, at an endpoint of this node.
    pub(crate) beside: Option<Box<Beside>>,
    dice: f64,
}

impl Record {
    pub(crate) fn new(conn: Rc<HttpConnection>) -> Self {
        let worker = &conn.connection.worker;
        let logged = worker.shared.access_log.enabled();
        let dice = if logged { worker.roll() } else { 1.0 };
        conn.watch.active.set(conn.watch.active.get() + 1);
        Self {
            conn,
            start: Instant::now(),
            parties: Parties::default(),
            flags: Flags::NONE,
            code: 0,
            details: "",
            grpc: false,
            grpc_status: None,
            received: Rc::default(),
            sent: 0,
            complete: false,
            stat_prefix: None,
            entry: logged.then(Box::default),
            span: None,
            beside: None,
            dice,
        }
    }

    /// When the request's head was read.
    pub(crate) const fn start(&self) -> Instant {
        self.start
    }

    /// Since the request's head was read.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Takes the gRPC status out of response headers or trailers.
    pub(crate) fn see_grpc(&mut self, headers: &HeaderMap) {
        if let Some(status) =
            headers.get("grpc-status").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok())
        {
            self.grpc_status = Some(status);
        }
    }

    /// Keeps of the response's head what the access log says.
    pub(crate) fn see_head(&mut self, headers: &HeaderMap) {
        if let Some(http) = self.entry.as_mut().and_then(|e| e.http.as_mut()) {
            self.conn.connection.worker.shared.access_log.see_response(http, headers);
        }
    }

    /// Takes out of trailers what metrics and the access log say.
    pub(crate) fn see_trailers(&mut self, headers: &HeaderMap) {
        self.see_grpc(headers);
        if let Some(http) = self.entry.as_mut().and_then(|e| e.http.as_mut()) {
            self.conn.connection.worker.shared.access_log.see_trailers(http, headers);
        }
    }

    fn finish(&mut self) {
        if !self.complete {
            self.flags = self.flags.with(Flags::CLIENT_CLOSED);
        }
        let end = RequestEnd {
            protocol: if self.grpc { RequestProtocol::Grpc } else { RequestProtocol::Http },
            flags: self.flags,
            code: self.code,
            grpc_status: self.grpc_status,
        };
        let elapsed = self.start.elapsed();
        let worker = &self.conn.connection.worker;
        let trust_domain = || worker.trust_domain();
        let measured = Measured { elapsed, received: self.received.bytes.get(), sent: self.sent };
        worker.telemetry.request(&self.parties, end, measured, trust_domain);
        if let Some(name) = &self.stat_prefix {
            worker.shared.telemetry.routes.ended(name, self.code, elapsed);
        }
        if let Some(entry) = self.entry.take() {
            self.say(entry, elapsed);
        }
    }

    /// The line of the access log, and the span.
    fn say(&mut self, mut entry: Box<Entry>, elapsed: Duration) {
        let worker = &self.conn.connection.worker;
        entry.status = self.code;
        entry.grpc_status = self.grpc_status.filter(|_| self.grpc);
        entry.flags = self.flags;
        entry.details = self.details;
        entry.received = self.received.bytes.get();
        entry.sent = self.sent;
        entry.duration = elapsed;
        entry.trace = self.span.as_ref().map(|s| s.ids());
        let source = self.parties.source.as_ref().map(|s| s.get());
        let log = &worker.shared.access_log;
        if log.wants(self.dice, self.code, self.flags) && worker.telemetry.logs(source, log, &entry) {
            log.write(&entry);
        }
        if let Some(beside) = self.beside.take() {
            beside.ended(entry.grpc_status, (entry.received, entry.sent));
        }
        if let (Some(span), Some(tracer)) = (self.span.take(), &worker.shared.tracer) {
            let reporter = Reporter::of(source);
            let cluster = self.parties.cluster.as_ref().map(|c| c.get());
            span.end(tracer, reporter, (&mut entry, cluster), &worker.shared.node);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.finish();
        self.conn.watch.active.set(self.conn.watch.active.get().saturating_sub(1));
    }
}
