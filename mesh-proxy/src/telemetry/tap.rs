//! HTTP as it goes by the node of the endpoint: what it says of requests, without serving them.
//!
//! The owner's node passes bytes on. This looks at the bytes of HTTP/1 and HTTP/2 that come through the tunnel and go to
//! a pod, and at the answers: where each message begins and ends, its status and its size. Requests are counted with
//! `reporter="destination"`, and a sampled request gets a server span, whose id is written over the caller's in the
//! headers, digit for digit, so that what the pod calls next is this hop's child. Lengths never change. What cannot be
//! understood passes as it is, and nothing more is said of that connection.

mod exchange;
mod h1;
mod h2;
mod hpack;

use std::{
    io,
    pin::Pin,
    task::{Context as Task, Poll, ready},
};

pub(crate) use exchange::{About, Counts, Traces};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a client of HTTP/2 says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Most bytes that a pod may say before its client has said anything.
const MOST_EARLY: usize = 16 << 10;

/// A pod's connection that is looked at.
pub(crate) struct Tapped<S> {
    inner: S,
    tap: Tap,
    /// Bytes at the front of what is offered next that were looked at already.
    seen: usize,
    /// Those bytes, if some digit of them has changed.
    changed: Option<Vec<u8>>,
}

/// Bytes to write at a place.
type Change = (usize, Vec<u8>);
/// Says where a part of the bytes that are looked at stands in them.
type Place<'p> = &'p dyn Fn(&[u8]) -> Option<usize>;

struct Tap {
    about: About,
    protocol: Protocol,
    /// The pod has said all that it will.
    pod_ended: bool,
}

enum Protocol {
    /// So many bytes of the client were the beginning of HTTP/2's, and this is what the pod has said.
    Unknown(usize, Vec<u8>),
    One(h1::Talk),
    Two(Box<h2::Talk>),
    /// Not to be understood.
    Off,
}

impl<S> Tapped<S> {
    pub(crate) fn new(inner: S, about: About) -> Self {
        let tap = Tap { about, protocol: Protocol::Unknown(0, Vec::new()), pod_ended: false };
        Self { inner, tap, seen: 0, changed: None }
    }
}

impl Tap {
    /// Looks at bytes to the pod; says which of them change.
    fn towards_pod(&mut self, bytes: &[u8]) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut rest = bytes;
        if let Protocol::Unknown(matched, early) = &mut self.protocol {
            let more = PREFACE[*matched..].iter().zip(bytes).take_while(|(a, b)| a == b).count();
            let before = *matched;
            *matched += more;
            let whole = *matched == PREFACE.len();
            if !whole && more == bytes.len() {
                return changes;
            }
            let early = std::mem::take(early);
            if whole {
                rest = &bytes[more..];
                self.protocol = Protocol::Two(Box::default());
            } else {
                let mut talk = h1::Talk::default();
                talk.before(&PREFACE[..before]);
                self.protocol = Protocol::One(talk);
            }
            self.back_from_pod(&early);
        }
        let place = |part: &[u8]| (part.as_ptr() as usize).checked_sub(bytes.as_ptr() as usize);
        let understood = match &mut self.protocol {
            Protocol::One(talk) => talk.towards_pod(rest, &self.about, (&place, &mut changes)),
            Protocol::Two(talk) => talk.towards_pod(rest, &self.about, (&place, &mut changes)),
            Protocol::Unknown(..) | Protocol::Off => Some(()),
        };
        self.unless(understood);
        changes
    }

    /// Looks at bytes from the pod.
    fn back_from_pod(&mut self, bytes: &[u8]) {
        let understood = match &mut self.protocol {
            Protocol::One(talk) => talk.back_from_pod(bytes, &self.about),
            Protocol::Two(talk) => talk.back_from_pod(bytes, &self.about),
            Protocol::Unknown(_, early) => {
                early.extend_from_slice(bytes);
                (early.len() <= MOST_EARLY).then_some(())
            }
            Protocol::Off => Some(()),
        };
        self.unless(understood);
    }

    fn unless(&mut self, understood: Option<()>) {
        if understood.is_none() {
            self.over();
        }
    }

    /// Nothing more is looked at.
    fn over(&mut self) {
        match std::mem::replace(&mut self.protocol, Protocol::Off) {
            Protocol::One(talk) => talk.over(&self.about, self.pod_ended),
            Protocol::Two(talk) => talk.over(&self.about, self.pod_ended),
            Protocol::Unknown(..) | Protocol::Off => {}
        }
    }
}

impl Drop for Tap {
    /// Requests without a whole answer end with the connection.
    fn drop(&mut self) {
        self.over();
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
                for (at, new) in changes {
                    changed[start + at..start + at + new.len()].copy_from_slice(&new);
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
        let (before, room) = (buf.filled().len(), buf.remaining());
        let read = ready!(Pin::new(&mut this.inner).poll_read(cx, buf));
        let bytes = &buf.filled()[before..];
        if read.is_err() || (bytes.is_empty() && room > 0) {
            this.tap.pod_ended = true;
        } else {
            this.tap.back_from_pod(bytes);
        }
        Poll::Ready(read)
    }
}

#[cfg(test)]
mod tests;
