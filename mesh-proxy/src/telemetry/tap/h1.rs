//! A conversation in HTTP/1.

mod framing;

use std::collections::VecDeque;

use framing::{Body, Framing, Seen};

use super::{
    Changes, Talk,
    exchange::{About, Exchange, Version, new_digits},
};
use crate::telemetry::Flags;

/// Requests of a connection that wait for their answers; a client that sends more is not looked at any longer.
const MAX_WAITING: usize = 64;
/// Most headers of a message.
const MAX_HEADERS: usize = 128;

#[derive(Default)]
pub(super) struct Conversation {
    requests: Framing,
    responses: Framing,
    waiting: VecDeque<Exchange>,
    /// Status of the response under way.
    status: u16,
    /// The last response that goes on until the connection ends.
    endless: bool,
}

impl Talk for Conversation {
    fn towards_pod(&mut self, bytes: &[u8], about: &About, changes: &mut Changes<'_>) -> Option<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.requests.at_start() && !framing::has_head(rest) {
                break;
            }
            let (taken, seen) = self.requests.feed(rest);
            match seen {
                Seen::Nothing => {}
                Seen::Head(head) => {
                    let body = self.request(&head, about, changes)?;
                    self.requests.body(body);
                }
                Seen::Data(length) => {
                    if let Some(exchange) = self.waiting.back_mut() {
                        exchange.received += length;
                    }
                }
                Seen::Broken => return None,
            }
            rest = &rest[taken.min(rest.len())..];
        }
        Some(bytes.len() - rest.len())
    }

    fn back_from_pod(&mut self, mut bytes: &[u8], about: &About) -> Option<()> {
        while !bytes.is_empty() {
            let (taken, seen) = self.responses.feed(bytes);
            match seen {
                Seen::Nothing => {}
                Seen::Head(head) => {
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

    fn over(mut self: Box<Self>, about: &About, pod_ended: bool) {
        let cut = if pod_ended { Flags::UPSTREAM_CLOSED } else { Flags::CLIENT_CLOSED };
        while !self.waiting.is_empty() {
            let whole = std::mem::take(&mut self.endless) && self.status >= 200;
            self.answered(about, if whole { Flags::NONE } else { cut });
        }
    }
}

impl Conversation {
    /// The head of a request; none if it is not to be understood.
    fn request(&mut self, head: &[u8], about: &About, changes: &mut Changes<'_>) -> Option<Body> {
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
        if let Some(hop) = &hop {
            for (value, from) in hop.said.iter().filter_map(|said| Some((find(said.header)?, said.from))) {
                changes.put(value.as_bytes(), from, hop.own.to_vec());
            }
        }
        Some(body)
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
}

/// The first header of that name, if it is text.
fn text<'h>(headers: &[httparse::Header<'h>], name: &str) -> Option<&'h str> {
    let found = headers.iter().find(|h| h.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(found.value).ok()
}
