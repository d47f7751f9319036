//! Metrics and the access log of every request, however it ends.

use std::{
    rc::Rc,
    task::{Context, Poll},
    time::SystemTime,
};

use http::Request;
use hyper::body::Incoming;
use tower::Service;

use super::{
    super::{HttpConnection, record::Record, reply},
    exchange::Call,
};
use crate::telemetry::{access_log::Entry, trace::OpenSpan};

/// Begins the record of each request; it counts when it is dropped.
#[derive(Clone)]
pub(crate) struct Measure<S> {
    conn: Rc<HttpConnection>,
    next: S,
}

impl<S> Measure<S> {
    pub(super) const fn new(conn: Rc<HttpConnection>, next: S) -> Self {
        Self { conn, next }
    }
}

impl<S: Service<Call>> Service<Request<Incoming>> for Measure<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.next.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> S::Future {
        let record = begin(&self.conn, &request);
        self.next.call(Call { conn: Rc::clone(&self.conn), record, request })
    }
}

/// What is known when the head has been read.
fn begin(conn: &Rc<HttpConnection>, request: &Request<Incoming>) -> Box<Record> {
    let mut record = Box::new(Record::new(Rc::clone(conn)));
    record.grpc = reply::is_grpc(request.headers());
    if let Some(entry) = &mut record.entry {
        describe(entry, conn, request);
    }
    record
}

/// What a line says of the request's head.
fn describe(entry: &mut Entry, conn: &HttpConnection, request: &Request<Incoming>) {
    entry.start = Some(SystemTime::now());
    entry.http = conn.connection.worker.shared.access_log.http(request);
    entry.protocol = match request.version() {
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    };
    entry.destination = conn.connection.target.addr;
    entry.client = Some(conn.connection.client);
}

/// Decides whether the request belongs to a trace, once it is known who calls.
pub(super) fn trace(conn: &HttpConnection, record: &mut Record, request: &mut Request<Incoming>) {
    let worker = &conn.connection.worker;
    let Some(tracer) = &worker.shared.tracer else { return };
    let rules = worker.telemetry.traces(record.parties.source.as_ref(), &tracer.config().provider);
    record.span = OpenSpan::begin(tracer, rules, || worker.roll(), request);
    if record.span.is_some() && record.entry.is_none() {
        let mut entry = Box::default();
        describe(&mut entry, conn, request);
        record.entry = Some(entry);
    }
}
