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
    /// Bytes that the writer has given away and the pod has not got: because some digit of them has changed, or because a
    /// head begins with them that is not whole.
    held: Vec<u8>,
    /// So many of them may go.
    ready: usize,
}

struct Tap {
    about: About,
    protocol: Protocol,
    /// The pod has said all that it will.
    pod_ended: bool,
}

enum Protocol {
    /// The client has said nothing yet, and the pod this.
    Unknown(Vec<u8>),
    Known(Box<dyn Talk>),
    /// Not to be understood.
    Off,
}

/// A conversation in one of the versions of HTTP. A step without a result cannot be understood, nor can what follows it.
trait Talk {
    /// Looks at bytes to the pod. Says how many: what is left begins something that has to be seen whole, and comes again
    /// with more behind it.
    fn towards_pod(&mut self, bytes: &[u8], about: &About, changes: &mut Changes<'_>) -> Option<usize>;
    /// Looks at bytes from the pod.
    fn back_from_pod(&mut self, bytes: &[u8], about: &About) -> Option<()>;
    /// The connection has ended, by the pod or not; or nothing more of it is looked at.
    fn over(self: Box<Self>, about: &About, pod_ended: bool);
}

/// Bytes that are written over others on their way to the pod, and from where on.
type Change = (usize, Vec<u8>);

/// What changes of the bytes that are looked at.
struct Changes<'b> {
    bytes: &'b [u8],
    all: Vec<Change>,
}

impl Changes<'_> {
    /// Writes over a part of the bytes, from the `at`th of the part on.
    fn put(&mut self, part: &[u8], at: usize, new: Vec<u8>) {
        let start = (part.as_ptr() as usize).checked_sub(self.bytes.as_ptr() as usize);
        self.all.extend(start.map(|start| (start + at, new)));
    }
}

fn apply(changes: Vec<Change>, bytes: &mut [u8]) {
    for (at, new) in changes {
        if let Some(old) = bytes.get_mut(at..at + new.len()) {
            old.copy_from_slice(&new);
        }
    }
}

impl<S> Tapped<S> {
    pub(crate) fn new(inner: S, about: About) -> Self {
        let tap = Tap { about, protocol: Protocol::Unknown(Vec::new()), pod_ended: false };
        Self { inner, tap, seen: 0, held: Vec::new(), ready: 0 }
    }

    /// Looks at what is offered and was not seen yet. False: it is held now, and goes from there.
    fn look(&mut self, offered: &[u8]) -> bool {
        if self.held.is_empty() {
            let (whole, changes) = self.tap.towards_pod(&offered[self.seen..]);
            if self.seen + whole == offered.len() && changes.is_empty() {
                self.seen = offered.len();
                return true;
            }
            self.held.extend_from_slice(offered);
            self.ready = self.seen + whole;
            apply(changes, &mut self.held[self.seen..]);
        } else {
            self.held.extend_from_slice(offered);
            let (whole, changes) = self.tap.towards_pod(&self.held);
            self.ready = whole;
            apply(changes, &mut self.held);
        }
        self.seen = 0;
        false
    }
}

impl<S: AsyncWrite + Unpin> Tapped<S> {
    /// Writes what is held and may go.
    fn poll_ready(&mut self, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        while self.ready > 0 {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.held[..self.ready]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..written);
            self.ready -= written;
        }
        if self.held.is_empty() {
            self.held = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl Tap {
    /// Looks at bytes to the pod. Says how many, and what changes of them: what is left is to come again.
    fn towards_pod(&mut self, bytes: &[u8]) -> (usize, Vec<Change>) {
        let mut begin = 0;
        if let Protocol::Unknown(early) = &mut self.protocol {
            if bytes.len() < PREFACE.len() && PREFACE.starts_with(bytes) {
                return (0, Vec::new());
            }
            let early = std::mem::take(early);
            if bytes.starts_with(PREFACE) {
                begin = PREFACE.len();
                self.protocol = Protocol::Known(Box::<h2::Conversation>::default());
            } else {
                self.protocol = Protocol::Known(Box::<h1::Conversation>::default());
            }
            self.back_from_pod(&early);
        }
        let Protocol::Known(talk) = &mut self.protocol else { return (bytes.len(), Vec::new()) };
        let mut changes = Changes { bytes, all: Vec::new() };
        let whole = talk.towards_pod(&bytes[begin..], &self.about, &mut changes);
        let whole = self.unless(whole).map_or(bytes.len(), |whole| begin + whole);
        (whole, changes.all)
    }

    /// Looks at bytes from the pod.
    fn back_from_pod(&mut self, bytes: &[u8]) {
        let understood = match &mut self.protocol {
            Protocol::Known(talk) => talk.back_from_pod(bytes, &self.about),
            Protocol::Unknown(early) => {
                early.extend_from_slice(bytes);
                (early.len() <= MOST_EARLY).then_some(())
            }
            Protocol::Off => Some(()),
        };
        self.unless(understood);
    }

    fn unless<T>(&mut self, understood: Option<T>) -> Option<T> {
        if understood.is_none() {
            self.over();
        }
        understood
    }

    /// Nothing more is looked at.
    fn over(&mut self) {
        if let Protocol::Known(talk) = std::mem::replace(&mut self.protocol, Protocol::Off) {
            talk.over(&self.about, self.pod_ended);
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
        ready!(this.poll_ready(cx))?;
        if buf.len() > this.seen && !this.look(buf) {
            // What cannot go at once goes with the next write or flush.
            if let Poll::Ready(written) = this.poll_ready(cx) {
                written?;
            }
            return Poll::Ready(Ok(buf.len()));
        }
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, buf))?;
        this.seen -= written;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_ready(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // A head that nobody ends goes as it is.
        this.ready = this.held.len();
        ready!(this.poll_ready(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
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
