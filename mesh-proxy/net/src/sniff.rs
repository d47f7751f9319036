//! What the first bytes of a connection say. Pure: bytes in, verdict out, no panic on any input.

mod hello;
mod http1;

pub use hello::{ClientHello, HelloError, client_hello};
pub use http1::request_line;

/// The connection preface of HTTP/2.
pub const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// No verdict needs more bytes than this; with more, the connection is opaque.
pub const MAX_SNIFF: usize = 16 * 1024;

/// A yes, a no, or not enough bytes to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// It is.
    Yes,
    /// It is not, whatever follows.
    No,
    /// It may become a yes.
    NeedMore,
}

/// Verdict on the first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sniff {
    /// An HTTP/1.x request line.
    Http1,
    /// The HTTP/2 preface.
    Http2,
    /// A TLS ClientHello.
    Tls(ClientHello),
    /// None of these.
    Opaque,
    /// No verdict yet.
    NeedMore,
}

/// Whether the bytes begin with the HTTP/2 preface.
pub fn h2_preface(bytes: &[u8]) -> Match {
    let known = bytes.len().min(H2_PREFACE.len());
    if bytes[..known] != H2_PREFACE[..known] {
        Match::No
    } else if known == H2_PREFACE.len() {
        Match::Yes
    } else {
        Match::NeedMore
    }
}

/// Decides what a connection carries by its first bytes.
pub fn sniff(bytes: &[u8]) -> Sniff {
    if bytes.is_empty() {
        return Sniff::NeedMore;
    }
    match client_hello(bytes) {
        Ok(Some(hello)) => return Sniff::Tls(hello),
        Ok(None) => return need_more(bytes),
        Err(_not_tls) => {}
    }
    match h2_preface(bytes) {
        Match::Yes => return Sniff::Http2,
        Match::NeedMore => return need_more(bytes),
        Match::No => {}
    }
    match request_line(bytes) {
        Match::Yes => Sniff::Http1,
        Match::NeedMore => need_more(bytes),
        Match::No => Sniff::Opaque,
    }
}

fn need_more(bytes: &[u8]) -> Sniff {
    if bytes.len() >= MAX_SNIFF { Sniff::Opaque } else { Sniff::NeedMore }
}

#[cfg(test)]
mod tests;
