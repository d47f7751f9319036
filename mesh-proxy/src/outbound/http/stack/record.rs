//! Metrics and the access log of every request, however it ends.

use std::{
    rc::Rc,
    task::{Context, Poll},
    time::SystemTime,
};

use http::{Request, header};
use hyper::body::Incoming;
use tower::Service;

use super::{
    super::{HttpConnection, record::Record, reply, view},
    exchange::Call,
};

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
        let text = |name: header::HeaderName| {
            request.headers().get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
        };
        entry.start = Some(SystemTime::now());
        entry.method = request.method().to_string();
        entry.path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        entry.protocol = match request.version() {
            http::Version::HTTP_10 => "HTTP/1.0",
            http::Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        };
        entry.authority = view::authority(request.uri(), request.headers()).to_owned();
        entry.agent = text(header::USER_AGENT).unwrap_or_default();
        entry.forwarded_for = text(header::HeaderName::from_static("x-forwarded-for")).unwrap_or_default();
        entry.request_id = text(header::HeaderName::from_static("x-request-id")).unwrap_or_default();
        entry.destination = conn.connection.target.addr;
        entry.client = Some(conn.connection.client);
    }
    record
}
