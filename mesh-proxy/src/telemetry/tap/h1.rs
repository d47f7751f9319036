//! A conversation in HTTP/1.

mod framing;

use std::collections::VecDeque;

use framing::{Body, Framing, Seen};

use super::{
    Change, Place,
    exchange::{About, DIGITS, Exchange, Version, new_digits},
};
use crate::telemetry::Flags;

/// Requests of a connection that wait for their answers; a client that sends more is not looked at any longer.
const MAX_WAITING: usize = 64;
/// Most headers of a message.
const MAX_HEADERS: usize = 128;

#[derive(Default)]
pub(super) struct Talk {
    requests: Framing,
    responses: Framing,
    waiting: VecDeque<Exchange>,
    /// Status of the response under way.
    status: u16,
    /// The last response that goes on until the connection ends.
    endless: bool,
}

impl Talk {
    /// The first bytes of the first request.
    pub(super) fn before(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            let _only_part_of_a_line = self.requests.feed(bytes);
        }
    }

    /// Looks at bytes to the pod; none if they cannot be understood.
    pub(super) fn towards_pod(
        &mut self,
        mut bytes: &[u8],
        about: &About,
        (place, changes): (Place<'_>, &mut Vec<Change>),
    ) -> Option<()> {
        while !bytes.is_empty() {
            let now = bytes;
            let (taken, seen) = self.requests.feed(bytes);
            match seen {
                Seen::Nothing => {}
                Seen::Head { bytes: head, before } => {
                    // Where the head begins; what came earlier cannot change.
                    let start = place(now)?;
                    let at = |i: usize| (start + i).checked_sub(before);
                    let body = self.request(&head, about, (&at, changes))?;
                    self.requests.body(body);
                }
                Seen::Data(length) => {
                    if let Some(exchange) = self.waiting.back_mut() {
                        exchange.received += length;
                    }
                }
                Seen::Broken => return None,
            }
            bytes = &bytes[taken.min(bytes.len())..];
        }
        Some(())
    }

    /// The head of a request; none if it is not to be understood.
    fn request(
        &mut self,
        head: &[u8],
        about: &About,
        (place, changes): (&dyn Fn(usize) -> Option<usize>, &mut Vec<Change>),
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
        let find = |name: &str| text(request.headers, name);
        let body = framing::body_of(&find)?;
        let host = find("host").unwrap_or_default();
        let (exchange, hop) = about.begin(method, (host, path), &find, new_digits);
        self.waiting.push_back(exchange);
        for said in hop.iter().flat_map(|h| &h.said) {
            let Some(value) = find(said.header).and_then(|v| v.get(said.from..said.from + DIGITS)) else {
                continue;
            };
            let offset = (value.as_ptr() as usize).checked_sub(head.as_ptr() as usize);
            if let (Some(at), Some(hop)) = (offset.and_then(place), &hop) {
                changes.push((at, hop.own.to_vec()));
            }
        }
        Some(body)
    }

    /// Looks at bytes from the pod; none if they cannot be understood.
    pub(super) fn back_from_pod(&mut self, mut bytes: &[u8], about: &About) -> Option<()> {
        while !bytes.is_empty() {
            let (taken, seen) = self.responses.feed(bytes);
            match seen {
                Seen::Nothing => {}
                Seen::Head { bytes: head, .. } => {
                    let body = self.response(&head, about)?;
                    self.responses.body(body);
                }
                Seen::Data(length) => {
                    if let Some(exchange) = self.waiting.front_mut() {
                        exchange.sent += length;
                    }
                }
                Seen::Broken => return None,
            }
            if self.responses.at_start() && self.status >= 200 {
                self.answered(about, Flags::NONE);
            }
            bytes = &bytes[taken.min(bytes.len())..];
        }
        Some(())
    }

    fn response(&mut self, head: &[u8], about: &About) -> Option<Body> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        if !response.parse(head).is_ok_and(|s| s.is_complete()) {
            return None;
        }
        self.status = response.code?;
        let find = |name: &str| text(response.headers, name);
        match self.status {
            // The protocol changes; what follows is no HTTP, and what has followed already is no request.
            101 => {
                self.answered(about, Flags::NONE);
                self.waiting.clear();
                None
            }
            100..200 | 204 | 304 => Some(Body::None),
            _ if self.waiting.front()?.head => Some(Body::None),
            _ => match framing::body_of(&find)? {
                Body::None if find("content-length").is_none() => {
                    self.endless = true;
                    Some(Body::UntilEnd)
                }
                body => Some(body),
            },
        }
    }

    /// The response under way is over.
    fn answered(&mut self, about: &About, flags: Flags) {
        let status = std::mem::take(&mut self.status);
        if let Some(mut exchange) = self.waiting.pop_front() {
            exchange.status = status;
            about.ended(exchange, Version::One, flags);
        }
    }

    /// The connection has ended; it was the pod who ended it, or not.
    pub(super) fn over(mut self, about: &About, pod_ended: bool) {
        let cut = if pod_ended { Flags::UPSTREAM_CLOSED } else { Flags::CLIENT_CLOSED };
        while !self.waiting.is_empty() {
            let whole = std::mem::take(&mut self.endless) && self.status >= 200;
            self.answered(about, if whole { Flags::NONE } else { cut });
        }
    }
}

/// The first header of that name, if it is text.
fn text<'h>(headers: &[httparse::Header<'h>], name: &str) -> Option<&'h str> {
    let found = headers.iter().find(|h| h.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(found.value).ok()
}
