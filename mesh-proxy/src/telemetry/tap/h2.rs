//! A conversation in HTTP/2, gRPC among it.

mod frames;

use std::{borrow::Cow, collections::HashMap};

use frames::{Frames, Seen};

use super::{
    Changes, Talk,
    exchange::{About, DIGITS, Exchange, Hop, Version},
    hpack::{Decoder, Field, Literal, alike},
};
use crate::telemetry::Flags;

/// Requests under way on one connection; a client that has more is not looked at any longer.
const MAX_STREAMS: usize = 1024;

#[derive(Default)]
pub(super) struct Conversation {
    requests: Side,
    responses: Side,
    streams: HashMap<u32, Exchange>,
    /// The last stream that the client has begun.
    newest: u32,
}

#[derive(Default)]
struct Side {
    frames: Frames,
    headers: Decoder,
}

/// A header of a sampled request, kept until its head is read.
struct Kept {
    name: String,
    value: String,
    literal: Option<Literal>,
}

impl Talk for Conversation {
    fn towards_pod(&mut self, bytes: &[u8], about: &About, changes: &mut Changes<'_>) -> Option<usize> {
        let mut rest = bytes;
        while !rest.is_empty() && self.requests.frames.has_whole(rest) {
            let (taken, seen) = self.requests.frames.feed(rest);
            match seen {
                Seen::Nothing => {}
                Seen::Head { stream, head, .. } => self.request(stream, head, about, changes)?,
                Seen::Data { stream, length, .. } => {
                    if let Some(exchange) = self.streams.get_mut(&stream) {
                        exchange.received += length;
                    }
                }
                Seen::Reset { stream } => {
                    if let Some(exchange) = self.streams.remove(&stream) {
                        about.ended(exchange, Version::Two, Flags::CLIENT_CLOSED);
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
            let (taken, seen) = self.responses.frames.feed(bytes);
            match seen {
                Seen::Nothing => {}
                Seen::Head { stream, head, last } => {
                    self.response(stream, &head)?;
                    self.over_if(last, stream, about);
                }
                Seen::Data { stream, length, last } => {
                    if let Some(exchange) = self.streams.get_mut(&stream) {
                        exchange.sent += length;
                    }
                    self.over_if(last, stream, about);
                }
                Seen::Reset { stream } => {
                    if let Some(exchange) = self.streams.remove(&stream) {
                        about.ended(exchange, Version::Two, Flags::UPSTREAM_RESET);
                    }
                }
                Seen::Broken => return None,
            }
            bytes = &bytes[taken.min(bytes.len())..];
        }
        Some(())
    }

    fn over(self: Box<Self>, about: &About, pod_ended: bool) {
        let flags = if pod_ended { Flags::UPSTREAM_CLOSED } else { Flags::CLIENT_CLOSED };
        for exchange in self.streams.into_values() {
            about.ended(exchange, Version::Two, flags);
        }
    }
}

impl Conversation {
    fn request(
        &mut self,
        stream: u32,
        head: Cow<'_, [u8]>,
        about: &About,
        changes: &mut Changes<'_>,
    ) -> Option<()> {
        // Trailers, or what is left of a stream that has been answered already.
        if stream <= self.newest {
            return self.requests.headers.decode(&head, |_| {});
        }
        self.newest = stream;
        if self.streams.len() >= MAX_STREAMS {
            return None;
        }
        let mut all = Vec::new();
        let traced = about.traces.as_ref().is_some_and(|t| t.rules.reports);
        self.requests.headers.decode(&head, |field| {
            if traced || matches!(field.name, b":method" | b"content-type") {
                all.extend(Kept::of(field));
            }
        })?;
        let find = |name: &str| all.iter().find(|k| k.name == name).map(|k| k.value.as_str());
        let (method, path) = (find(":method")?, find(":path").unwrap_or_default());
        let host = find(":authority").or_else(|| find("host")).unwrap_or_default();
        let (exchange, hop) = about.begin(method, (host, path), &find, like);
        self.streams.insert(stream, exchange);
        // Of a head in several frames, more than 16 KiB, the first have gone by.
        if let (Some(hop), Cow::Borrowed(head)) = (&hop, head) {
            for (at, new) in all.iter().filter_map(|kept| kept.with(hop)) {
                changes.put(head, at, new);
            }
        }
        Some(())
    }

    fn response(&mut self, stream: u32, head: &[u8]) -> Option<()> {
        let (mut status, mut grpc) = (None, None);
        self.responses.headers.decode(head, |field| {
            let number = || std::str::from_utf8(field.value).ok()?.parse::<u16>().ok();
            match field.name {
                b":status" => status = number(),
                b"grpc-status" => grpc = number(),
                _ => {}
            }
        })?;
        if let Some(exchange) = self.streams.get_mut(&stream) {
            // What comes before the answer is none.
            exchange.status = status.filter(|s| *s >= 200).unwrap_or(exchange.status);
            exchange.grpc_status = grpc.or(exchange.grpc_status);
        }
        Some(())
    }

    fn over_if(&mut self, last: bool, stream: u32, about: &About) {
        if last && let Some(exchange) = self.streams.remove(&stream) {
            about.ended(exchange, Version::Two, Flags::NONE);
        }
    }
}

impl Kept {
    /// None if it is no text.
    fn of(field: &Field<'_>) -> Option<Self> {
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
        Some(Self { name: text(field.name)?, value: text(field.value)?, literal: field.literal })
    }

    /// What changes in its head when it is to say this hop's span, and where.
    fn with(&self, hop: &Hop) -> Option<(usize, Vec<u8>)> {
        let said = hop.said.iter().find(|s| s.header == self.name)?;
        // One that only its number stands for cannot change; our own nodes write each one out.
        let literal = self.literal?;
        let mut value = self.value.clone().into_bytes();
        value.get_mut(said.from..said.from + DIGITS)?.copy_from_slice(&hop.own);
        Some((literal.at, literal.instead(&value)?))
    }
}

/// Digits of a new span whose Huffman codes are as long as those of the old one. Each has six or ten choices: two spans
/// of a trace are the same once in 2^41 at most.
fn like(old: &[u8; DIGITS]) -> [u8; DIGITS] {
    const ALL: &[u8; 16] = b"0123456789abcdef";
    loop {
        let mut new = *old;
        for digit in &mut new {
            let fitting: Vec<u8> = ALL.iter().copied().filter(|d| alike(*d, *digit)).collect();
            *digit = fitting[rand::random_range(0..fitting.len())];
        }
        if new != *old && new.iter().any(|d| *d != b'0') {
            return new;
        }
    }
}

#[cfg(test)]
mod tests;
