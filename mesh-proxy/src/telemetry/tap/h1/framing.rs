//! Where messages of HTTP/1 begin and end.

use std::borrow::Cow;

/// The end of a head.
const END: &[u8] = b"\r\n\r\n";
/// Longest head that is looked at.
const MAX_HEAD: usize = 64 << 10;
/// Longest line of a chunk's size or of a trailer.
const MAX_LINE: usize = 8 << 10;

/// How long the body of a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    None,
    Length(u64),
    Chunked,
    /// As long as the connection.
    UntilEnd,
}

/// What the next bytes were.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen<'b> {
    /// Part of a head or of what stands between chunks.
    Nothing,
    /// A head is whole. Say next which body it has.
    Head(Cow<'b, [u8]>),
    /// So many bytes of a body.
    Data(u64),
    /// This is no HTTP/1.
    Broken,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(super) struct Framing {
    phase: Phase,
    /// A head that is not whole.
    head: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Head,
    Length(u64),
    UntilEnd,
    /// Of a chunk's size line: the digits so far, and how long it is; past them when the flag is set.
    Size(u64, usize, bool),
    Chunk(u64),
    /// The line feed after a chunk.
    AfterChunk,
    /// A line after the last chunk, and its length.
    Trailer(usize),
}

/// Longest method of which the end is waited for.
const MAX_METHOD: usize = 32;

/// Whether a head ends in these bytes, or they are none: too long, or no method begins them (a handshake of TLS, or what the
/// PROXY protocol says before one, is not to wait for an end that never comes).
pub(super) fn has_head(bytes: &[u8]) -> bool {
    bytes.len() >= MAX_HEAD || !begins_head(bytes) || memchr::memmem::find(bytes, END).is_some()
}

fn begins_head(bytes: &[u8]) -> bool {
    let blank = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    let method = bytes[blank..].split(|b| *b == b' ').next().unwrap_or_default();
    method.len() <= MAX_METHOD
        && method != b"PROXY"
        && method.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

/// What the headers say about a body.
pub(super) fn body_of<'h>(header: &impl Fn(&str) -> Option<&'h str>) -> Option<Body> {
    if let Some(coding) = header("transfer-encoding") {
        let last = coding.rsplit(',').next().unwrap_or_default().trim();
        return last.eq_ignore_ascii_case("chunked").then_some(Body::Chunked);
    }
    match header("content-length") {
        None => Some(Body::None),
        Some(text) => match text.trim().parse().ok()? {
            0 => Some(Body::None),
            n => Some(Body::Length(n)),
        },
    }
}

impl Framing {
    /// Nothing of the next message has come.
    pub(super) const fn at_start(&self) -> bool {
        matches!(self.phase, Phase::Head) && self.head.is_empty()
    }

    /// Says which body the head announced.
    pub(super) const fn body(&mut self, body: Body) {
        self.phase = match body {
            Body::None => Phase::Head,
            Body::Length(n) => Phase::Length(n),
            Body::Chunked => Phase::Size(0, 0, false),
            Body::UntilEnd => Phase::UntilEnd,
        };
    }

    /// Looks at the first of these bytes; says how many that were, at least one.
    pub(super) fn feed<'b>(&mut self, bytes: &'b [u8]) -> (usize, Seen<'b>) {
        let data = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        match self.phase {
            Phase::Head => self.head(bytes),
            Phase::UntilEnd => (bytes.len(), Seen::Data(bytes.len() as u64)),
            Phase::Length(left) => {
                let taken = data(left);
                let left = left - taken as u64;
                self.phase = if left == 0 { Phase::Head } else { Phase::Length(left) };
                (taken, Seen::Data(taken as u64))
            }
            Phase::Chunk(left) => {
                let taken = data(left);
                let left = left - taken as u64;
                self.phase = if left == 0 { Phase::AfterChunk } else { Phase::Chunk(left) };
                (taken, Seen::Data(taken as u64))
            }
            Phase::Size(..) | Phase::AfterChunk | Phase::Trailer(_) => (1, self.between(bytes[0])),
        }
    }

    fn head<'b>(&mut self, bytes: &'b [u8]) -> (usize, Seen<'b>) {
        let before = self.head.len();
        let room = MAX_HEAD.saturating_sub(before).min(bytes.len());
        if room == 0 {
            return (bytes.len(), Seen::Broken);
        }
        if before == 0
            && let Some(end) = memchr::memmem::find(&bytes[..room], END)
        {
            let length = end + END.len();
            return (length, Seen::Head(Cow::Borrowed(&bytes[..length])));
        }
        self.head.extend_from_slice(&bytes[..room]);
        // The end may have begun in what came before.
        let from = before.saturating_sub(END.len() - 1);
        let Some(end) = memchr::memmem::find(&self.head[from..], END) else {
            return (room, Seen::Nothing);
        };
        let length = from + end + END.len();
        self.head.truncate(length);
        let head = std::mem::take(&mut self.head);
        (length - before, Seen::Head(Cow::Owned(head)))
    }

    /// One byte between chunks.
    fn between(&mut self, byte: u8) -> Seen<'static> {
        let next = match (self.phase, byte) {
            (Phase::Size(n, length, past), _) if length < MAX_LINE => {
                match (byte, char::from(byte).to_digit(16)) {
                    (b'\n', _) if length == 0 => None,
                    (b'\n', _) if n == 0 => Some(Phase::Trailer(0)),
                    (b'\n', _) => Some(Phase::Chunk(n)),
                    (_, Some(digit)) if !past => {
                        n.checked_mul(16).map(|n| Phase::Size(n + u64::from(digit), length + 1, false))
                    }
                    // An extension, or the carriage return.
                    _ if length > 0 => Some(Phase::Size(n, length + 1, true)),
                    _ => None,
                }
            }
            (Phase::AfterChunk, b'\r') => Some(Phase::AfterChunk),
            (Phase::AfterChunk, b'\n') => Some(Phase::Size(0, 0, false)),
            (Phase::Trailer(0), b'\n') => Some(Phase::Head),
            (Phase::Trailer(length), b'\r') => Some(Phase::Trailer(length)),
            (Phase::Trailer(_), b'\n') => Some(Phase::Trailer(0)),
            (Phase::Trailer(length), _) if length < MAX_LINE => Some(Phase::Trailer(length + 1)),
            _ => None,
        };
        match next {
            Some(phase) => {
                self.phase = phase;
                Seen::Nothing
            }
            None => Seen::Broken,
        }
    }
}
