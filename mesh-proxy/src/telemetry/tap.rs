//! Server spans, seen in the bytes of HTTP/1 that come through the tunnel and go to a pod.
//!
//! The owner's node passes bytes on; it does not serve requests. For a node that traces, this looks at the heads that go
//! by: a sampled request gets a span of its own, and the span's id is written over the caller's in the headers, digit
//! for digit, so that what the pod calls next is this hop's child. Lengths never change. What is no HTTP/1, or cannot be
//! understood, passes as it is from there on; HTTP/2 has no server spans (its headers are compressed over the whole
//! connection).

mod framing;

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context as Task, Poll, ready},
    time::{Instant, SystemTime},
};

use framing::{Body, Framing, Seen};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    TraceIds, Tracer,
    context::{B3, B3_SPAN, Context, TRACEPARENT},
    open::new_span,
    span::{Reporter, ServerCall, cut},
};
use crate::telemetry::rules::TraceRules;

/// Requests of a connection that wait for their answers; a client that sends more is not looked at any longer.
const MAX_WAITING: usize = 64;
/// Most headers of a message.
const MAX_HEADERS: usize = 128;

/// For whom and about what spans are made.
pub(crate) struct About {
    pub(crate) tracer: std::sync::Arc<Tracer>,
    pub(crate) rules: Rc<TraceRules>,
    pub(crate) reporter: Reporter,
    /// The service and port that the caller's node asked for.
    pub(crate) service: (String, u32),
    pub(crate) node: std::sync::Arc<str>,
    /// Who calls.
    pub(crate) client: String,
}

/// A pod's connection that is looked at.
pub(crate) struct Tapped<S> {
    inner: S,
    tap: Tap,
    /// Bytes at the front of what is offered next that were looked at already.
    seen: usize,
    /// Those bytes, if some digit of them has changed.
    changed: Option<Vec<u8>>,
}

struct Tap {
    about: About,
    requests: Framing,
    responses: Framing,
    waiting: VecDeque<Waiting>,
    /// Status of the response under way.
    status: u16,
    off: bool,
}

/// A request without its whole answer.
struct Waiting {
    began: Instant,
    head: bool,
    call: Option<Box<ServerCall>>,
}

/// Digits to write at a place.
type Change = (usize, [u8; 16]);

impl<S> Tapped<S> {
    pub(crate) fn new(inner: S, about: About) -> Self {
        let (requests, responses) = (Framing::default(), Framing::default());
        let tap = Tap { about, requests, responses, waiting: VecDeque::new(), status: 0, off: false };
        Self { inner, tap, seen: 0, changed: None }
    }
}

impl Tap {
    /// Looks at bytes to the pod; says which digits of them change.
    fn towards_pod(&mut self, mut bytes: &[u8]) -> Vec<Change> {
        let mut changes = Vec::new();
        let whole = bytes.len();
        while !self.off && !bytes.is_empty() {
            let at = whole - bytes.len();
            let (taken, seen) = self.requests.feed(bytes);
            match seen {
                Seen::Nothing => {}
                Seen::Head { bytes: head, before } => {
                    // Where the head begins, counted from the first of these bytes; what came earlier cannot change.
                    let place = |i: usize| (at + i).checked_sub(before);
                    match self.request(&head, &place, &mut changes) {
                        Some(body) => self.requests.body(body),
                        None => self.off = true,
                    }
                }
                Seen::Data(length) => {
                    if let Some(call) = self.waiting.back_mut().and_then(|w| w.call.as_mut()) {
                        call.received += length;
                    }
                }
                Seen::Broken => self.off = true,
            }
            bytes = &bytes[taken.min(bytes.len())..];
        }
        changes
    }

    /// The head of a request; none if it is not to be understood.
    fn request(
        &mut self,
        head: &[u8],
        place: &dyn Fn(usize) -> Option<usize>,
        changes: &mut Vec<Change>,
    ) -> Option<Body> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        if !request.parse(head).is_ok_and(|s| s.is_complete()) || self.waiting.len() >= MAX_WAITING {
            return None;
        }
        let (method, path) = (request.method?, request.path?);
        if matches!(method, "CONNECT" | "PRI") {
            return None;
        }
        let find = |name: &str| {
            let found = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(found.value).ok()
        };
        let body = framing::body_of(&find)?;
        let context = Context::find(find).filter(|c| c.sampled == Some(true) && self.about.rules.reports);
        let call = context.and_then(|context| Some((context, context.ids?))).map(|(context, parent)| {
            let ids = TraceIds { trace: parent.trace, span: new_span() };
            for digits in [
                // `00-` and 32 digits come first.
                find(TRACEPARENT).and_then(|v| v.get(36..52)),
                find(B3).and_then(|v| v.split('-').nth(1)),
                find(B3_SPAN),
            ] {
                let Some(digits) = digits.filter(|d| u64::from_str_radix(d, 16) == Ok(parent.span)) else {
                    continue;
                };
                let offset = (digits.as_ptr() as usize).checked_sub(head.as_ptr() as usize);
                if let (Some(at), 16) = (offset.and_then(place), digits.len()) {
                    let mut new = [0; 16];
                    new.copy_from_slice(format!("{:016x}", ids.span).as_bytes());
                    changes.push((at, new));
                }
            }
            let tags = &self.about.rules.tags;
            Box::new(ServerCall {
                context,
                ids,
                method: cut(method),
                path: cut(path),
                host: cut(find("host").unwrap_or_default()),
                agent: cut(find("user-agent").unwrap_or_default()),
                request_id: cut(find("x-request-id").unwrap_or_default()),
                tags: tags.iter().filter_map(|t| Some((t.name.clone(), t.of_lines(find)?))).collect(),
                start: SystemTime::now(),
                took: std::time::Duration::ZERO,
                received: 0,
                sent: 0,
                status: 0,
            })
        });
        self.waiting.push_back(Waiting { began: Instant::now(), head: method == "HEAD", call });
        Some(body)
    }

    /// Looks at bytes from the pod.
    fn back_from_pod(&mut self, mut bytes: &[u8]) {
        while !self.off && !bytes.is_empty() {
            let (taken, seen) = self.responses.feed(bytes);
            match seen {
                Seen::Nothing => {}
                Seen::Head { bytes: head, .. } => match self.response(&head) {
                    Some(body) => self.responses.body(body),
                    None => self.off = true,
                },
                Seen::Data(length) => {
                    if let Some(call) = self.waiting.front_mut().and_then(|w| w.call.as_mut()) {
                        call.sent += length;
                    }
                }
                Seen::Broken => self.off = true,
            }
            if self.responses.at_start() && self.status >= 200 {
                self.answered();
            }
            bytes = &bytes[taken.min(bytes.len())..];
        }
    }

    fn response(&mut self, head: &[u8]) -> Option<Body> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        if !response.parse(head).is_ok_and(|s| s.is_complete()) {
            return None;
        }
        self.status = response.code?;
        let find = |name: &str| {
            let found = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(found.value).ok()
        };
        match self.status {
            // The protocol changes; what follows is no HTTP.
            101 => {
                self.answered();
                None
            }
            100..200 | 204 | 304 => Some(Body::None),
            _ if self.waiting.front()?.head => Some(Body::None),
            _ => match framing::body_of(&find)? {
                Body::None if find("content-length").is_none() => Some(Body::UntilEnd),
                body => Some(body),
            },
        }
    }

    /// The response under way is over.
    fn answered(&mut self) {
        let status = std::mem::take(&mut self.status);
        let Some(Waiting { began, call: Some(mut call), .. }) = self.waiting.pop_front() else { return };
        call.status = status;
        call.took = began.elapsed();
        let About { tracer, reporter, service: (host, port), node, client, .. } = &self.about;
        tracer.queue().push(call.span(reporter.clone(), (host, *port), node, client));
    }
}

impl Drop for Tap {
    /// Requests without a whole answer end with the connection.
    fn drop(&mut self) {
        while !self.waiting.is_empty() {
            self.answered();
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tapped<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Task<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.len() > this.seen {
            let fresh = &buf[this.seen..];
            let changes = this.tap.towards_pod(fresh);
            if this.changed.is_some() || !changes.is_empty() {
                let changed = this.changed.get_or_insert_with(|| buf[..this.seen].to_vec());
                let start = changed.len();
                changed.extend_from_slice(fresh);
                for (at, digits) in changes {
                    changed[start + at..start + at + digits.len()].copy_from_slice(&digits);
                }
            }
            this.seen = buf.len();
        }
        let data = this.changed.as_deref().unwrap_or(buf);
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, &data[..data.len().min(buf.len())]))?;
        this.seen -= written;
        if let Some(changed) = &mut this.changed {
            changed.drain(..written);
            if changed.is_empty() {
                this.changed = None;
            }
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tapped<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Task<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        this.tap.back_from_pod(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
