//! Where frames of HTTP/2 begin and end, and what those that matter here say.

use std::borrow::Cow;

/// Longest head that is looked at, as it comes: compressed.
const MAX_HEAD: usize = 64 << 10;
/// What comes before the content of each frame.
const HEADER: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const PUSH: u8 = 5;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// What the next bytes were.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen<'b> {
    /// Nothing that matters, or not enough to say.
    Nothing,
    /// Headers, compressed; borrowed if they stand whole in these bytes.
    Head { stream: u32, head: Cow<'b, [u8]>, last: bool },
    /// So many bytes of a body; the stream's last ones or not.
    Data { stream: u32, length: u64, last: bool },
    /// A stream was given up.
    Reset { stream: u32 },
    /// This is no HTTP/2, or nothing that is expected here.
    Broken,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(super) struct Frames {
    phase: Phase,
    /// What has come of a header, or of a content that is needed whole.
    kept: Vec<u8>,
    /// A head that goes on in the next frame: its stream, and whether that ends with it.
    open: Option<(u32, bool)>,
    head: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy)]
enum Phase {
    #[default]
    Header,
    /// The byte that says how much of a frame of data is padding.
    Padding(Frame),
    /// Content that nobody looks at; the stream that ends with it.
    Skip(usize, Option<u32>),
    /// Content that is needed whole.
    Whole(Frame),
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    length: usize,
}

impl Frame {
    /// What the first bytes say; none if they are too few.
    fn of(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, s @ ..] = bytes.get(..HEADER)? else { return None };
        let length = (usize::from(*a) << 16) | (usize::from(*b) << 8) | usize::from(*c);
        let stream = s.iter().fold(0_u32, |n, byte| (n << 8) | u32::from(*byte)) & 0x7fff_ffff;
        Some(Self { kind: *kind, flags: *flags, stream, length })
    }

    const fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The part of a HEADERS frame's content that is headers.
    fn headers(self, content: &[u8]) -> Option<&[u8]> {
        let (mut from, mut padding) = (0, 0);
        if self.has(PADDED) {
            padding = usize::from(*content.first()?);
            from += 1;
        }
        if self.has(PRIORITY) {
            from += 5;
        }
        content.get(from..content.len().checked_sub(padding)?)
    }
}

impl Frames {
    /// Whether what these bytes begin with is whole, if it is a frame's header or the beginning of a head.
    pub(super) fn has_whole(&self, bytes: &[u8]) -> bool {
        if !matches!(self.phase, Phase::Header) || !self.kept.is_empty() {
            return true;
        }
        let Some(frame) = Frame::of(bytes) else { return false };
        frame.kind != HEADERS || frame.length > MAX_HEAD || bytes.len() >= HEADER + frame.length
    }

    /// Looks at the first of these bytes; says how many that were, at least one.
    pub(super) fn feed<'b>(&mut self, bytes: &'b [u8]) -> (usize, Seen<'b>) {
        match self.phase {
            Phase::Header => {
                let taken = (HEADER - self.kept.len()).min(bytes.len());
                self.kept.extend_from_slice(&bytes[..taken]);
                (taken, if self.kept.len() == HEADER { self.header() } else { Seen::Nothing })
            }
            Phase::Padding(frame) => {
                let padding = usize::from(bytes[0]) + 1;
                if padding > frame.length {
                    return (1, Seen::Broken);
                }
                (1, self.data(frame, frame.length - padding, frame.length - 1))
            }
            Phase::Skip(left, last) => {
                let taken = left.min(bytes.len());
                if taken < left {
                    self.phase = Phase::Skip(left - taken, last);
                    return (taken, Seen::Nothing);
                }
                self.phase = Phase::Header;
                let seen = last.map(|stream| Seen::Data { stream, length: 0, last: true });
                (taken, seen.unwrap_or(Seen::Nothing))
            }
            Phase::Whole(frame) => self.whole(frame, bytes),
        }
    }

    fn header(&mut self) -> Seen<'static> {
        let Some(frame) = Frame::of(&self.kept) else { return Seen::Broken };
        let length = frame.length;
        self.kept.clear();
        if self.open.is_some() != (frame.kind == CONTINUATION) {
            return Seen::Broken;
        }
        match frame.kind {
            DATA if frame.has(PADDED) => {
                self.phase = Phase::Padding(frame);
                if length == 0 { Seen::Broken } else { Seen::Nothing }
            }
            DATA => self.data(frame, length, length),
            HEADERS | RESET | CONTINUATION if length > MAX_HEAD => Seen::Broken,
            HEADERS | RESET | CONTINUATION if length == 0 => self.content(frame, Cow::Borrowed(&[])),
            HEADERS | RESET | CONTINUATION => {
                self.phase = Phase::Whole(frame);
                Seen::Nothing
            }
            // Nobody who calls here has asked for that.
            PUSH => Seen::Broken,
            _ => {
                self.phase = if length == 0 { Phase::Header } else { Phase::Skip(length, None) };
                Seen::Nothing
            }
        }
    }

    /// A frame of data: so many bytes of a body, in so many bytes that are still to come.
    fn data(&mut self, frame: Frame, body: usize, left: usize) -> Seen<'static> {
        let last = frame.has(END_STREAM);
        self.phase = if left == 0 { Phase::Header } else { Phase::Skip(left, last.then_some(frame.stream)) };
        Seen::Data { stream: frame.stream, length: body as u64, last: last && left == 0 }
    }

    fn whole<'b>(&mut self, frame: Frame, bytes: &'b [u8]) -> (usize, Seen<'b>) {
        let missing = frame.length - self.kept.len();
        let taken = missing.min(bytes.len());
        if self.kept.is_empty() && taken == missing {
            self.phase = Phase::Header;
            return (taken, self.content(frame, Cow::Borrowed(&bytes[..taken])));
        }
        self.kept.extend_from_slice(&bytes[..taken]);
        if taken < missing {
            return (taken, Seen::Nothing);
        }
        self.phase = Phase::Header;
        let content = std::mem::take(&mut self.kept);
        (taken, self.content(frame, Cow::Owned(content)))
    }

    fn content<'b>(&mut self, frame: Frame, content: Cow<'b, [u8]>) -> Seen<'b> {
        let whole = frame.has(END_HEADERS);
        match frame.kind {
            RESET => Seen::Reset { stream: frame.stream },
            HEADERS => {
                let head = match content {
                    Cow::Borrowed(b) => frame.headers(b).map(Cow::Borrowed),
                    Cow::Owned(b) => frame.headers(&b).map(|h| Cow::Owned(h.to_vec())),
                };
                let Some(head) = head else { return Seen::Broken };
                let last = frame.has(END_STREAM);
                if whole {
                    return Seen::Head { stream: frame.stream, head, last };
                }
                self.head = head.into_owned();
                self.open = Some((frame.stream, last));
                Seen::Nothing
            }
            _ => {
                let Some((stream, last)) = self.open.filter(|o| o.0 == frame.stream) else {
                    return Seen::Broken;
                };
                self.head.extend_from_slice(&content);
                if self.head.len() > MAX_HEAD {
                    return Seen::Broken;
                }
                if !whole {
                    return Seen::Nothing;
                }
                self.open = None;
                Seen::Head { stream, head: Cow::Owned(std::mem::take(&mut self.head)), last }
            }
        }
    }
}
