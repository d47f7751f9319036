//! The body of a response on its way to the client. Its end is the end of the request: metrics, access log, and the
//! connection's way back into the pool hang on it.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::{
    super::{
        cluster::{ClusterState, Permit},
        endpoint::Lease,
    },
    HttpConnection,
    record::Record,
};
use crate::telemetry::Flags;

/// Why a response ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResponseError {
    /// The endpoint's side.
    #[error("read the response's body")]
    Upstream(#[source] hyper::Error),
    /// The route's time is over.
    #[error("the route's time is over")]
    Timeout,
}

/// The body of a response.
pub(crate) struct ResponseBody {
    kind: Kind,
}

enum Kind {
    /// Answered here; the record counts when the body has gone.
    Local { bytes: Option<Bytes>, record: Option<Box<Record>> },
    /// From an endpoint.
    Upstream { body: Incoming, tail: Option<Box<Tail>> },
}

/// What ends with the response.
pub(crate) struct Tail {
    pub(crate) record: Box<Record>,
    pub(crate) lease: Lease,
    pub(crate) state: Rc<ClusterState>,
    pub(crate) connection: Rc<HttpConnection>,
    pub(crate) permit: Option<Permit>,
    /// When the route's time is over.
    pub(crate) deadline: Option<Pin<Box<Sleep>>>,
}

impl Tail {
    fn complete(mut self) {
        self.record.complete = true;
        self.connection.scan.message_ended();
        let pool = &self.state.cluster.policy.pool;
        // A request whose body is still on its way holds its connection: it cannot serve another one.
        if self.record.received.ended.get() && self.state.keeps_connection() {
            self.lease.release(pool);
            self.state.connection_idle();
        }
        drop(self.permit);
    }
}

impl ResponseBody {
    /// A body that is all there.
    pub(crate) fn local(bytes: Bytes, mut record: Box<Record>) -> Self {
        record.sent = bytes.len() as u64;
        if bytes.is_empty() {
            record.complete = true;
            return Self { kind: Kind::Local { bytes: None, record: None } };
        }
        Self { kind: Kind::Local { bytes: Some(bytes), record: Some(record) } }
    }

    /// A body from an endpoint.
    pub(crate) fn upstream(body: Incoming, tail: Box<Tail>) -> Self {
        if body.is_end_stream() {
            tail.complete();
            return Self { kind: Kind::Upstream { body, tail: None } };
        }
        Self { kind: Kind::Upstream { body, tail: Some(tail) } }
    }

    /// Nothing, and nothing to count: the request goes on as a tunnel.
    pub(crate) const fn none() -> Self {
        Self { kind: Kind::Local { bytes: None, record: None } }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = ResponseError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
        match &mut self.get_mut().kind {
            Kind::Local { bytes, record } => {
                if let Some(mut record) = record.take() {
                    record.complete = true;
                }
                Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b))))
            }
            Kind::Upstream { body, tail } => poll_upstream(body, tail, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Local { bytes, .. } => bytes.is_none(),
            Kind::Upstream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Local { bytes, .. } => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Kind::Upstream { body, .. } => body.size_hint(),
        }
    }
}

fn poll_upstream(
    body: &mut Incoming,
    tail: &mut Option<Box<Tail>>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
    let Some(open) = tail else { return Poll::Ready(None) };
    if let Some(deadline) = &mut open.deadline
        && deadline.as_mut().poll(cx).is_ready()
    {
        open.record.flags = open.record.flags.with(Flags::UPSTREAM_TIMEOUT);
        open.record.details = "response_timeout";
        open.record.complete = true;
        *tail = None;
        return Poll::Ready(Some(Err(ResponseError::Timeout)));
    }
    let frame = match ready!(Pin::new(&mut *body).poll_frame(cx)) {
        Some(Ok(frame)) => frame,
        Some(Err(e)) => {
            open.record.flags = open.record.flags.with(Flags::UPSTREAM_CLOSED);
            open.record.details = "upstream_reset_after_response_started";
            open.record.complete = true;
            *tail = None;
            return Poll::Ready(Some(Err(ResponseError::Upstream(e))));
        }
        None => {
            if let Some(tail) = tail.take() {
                tail.complete();
            }
            return Poll::Ready(None);
        }
    };
    if let Some(data) = frame.data_ref() {
        open.record.sent += data.len() as u64;
    } else if let Some(trailers) = frame.trailers_ref() {
        open.record.see_trailers(trailers);
    }
    // The HTTP library does not ask again after the last frame when it knows that it was the last.
    if (frame.is_trailers() || body.is_end_stream())
        && let Some(tail) = tail.take()
    {
        tail.complete();
    }
    Poll::Ready(Some(Ok(frame)))
}
