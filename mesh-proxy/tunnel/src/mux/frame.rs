//! Eight bytes before each frame: kind, length (24 bits), stream (32 bits), big endian.

/// Size of a header.
pub(crate) const HEADER: usize = 8;
/// Largest payload that a data frame carries when we write it: large enough for bulk, small enough that another
/// stream's frame does not wait long.
pub(crate) const MAX_PAYLOAD: usize = 32 << 10;
/// Largest length that fits.
pub(crate) const MAX_LENGTH: u32 = (1 << 24) - 1;

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Payload; may open the stream, may end this direction.
    Data {
        /// First frame of the stream.
        open: bool,
        /// Last frame of this direction.
        end: bool,
    },
    /// The sender is done with the stream, both directions, not cleanly.
    Reset,
    /// The length is what the receiver of this frame may send in addition.
    Credit,
    /// Asks for a pong; the stream field comes back.
    Ping,
    /// Answers a ping.
    Pong,
}

const OPEN: u8 = 1;
const END: u8 = 2;
const RESET: u8 = 4;
const CREDIT: u8 = 5;
const PING: u8 = 6;
const PONG: u8 = 7;

/// One header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    /// Payload bytes that follow (data), or the credit.
    pub(crate) length: u32,
    pub(crate) stream: u32,
}

impl Header {
    pub(crate) fn encode(self) -> [u8; HEADER] {
        let kind = match self.kind {
            Kind::Data { open, end } => u8::from(open) * OPEN + u8::from(end) * END,
            Kind::Reset => RESET,
            Kind::Credit => CREDIT,
            Kind::Ping => PING,
            Kind::Pong => PONG,
        };
        let ([_, l1, l2, l3], [s0, s1, s2, s3]) = (self.length.to_be_bytes(), self.stream.to_be_bytes());
        [kind, l1, l2, l3, s0, s1, s2, s3]
    }

    /// None for a kind that does not exist.
    pub(crate) fn decode(bytes: [u8; HEADER]) -> Option<Self> {
        let [kind, l1, l2, l3, s0, s1, s2, s3] = bytes;
        let kind = match kind {
            0..=3 => Kind::Data { open: kind & OPEN != 0, end: kind & END != 0 },
            RESET => Kind::Reset,
            CREDIT => Kind::Credit,
            PING => Kind::Ping,
            PONG => Kind::Pong,
            _ => return None,
        };
        let length = u32::from_be_bytes([0, l1, l2, l3]);
        Some(Self { kind, length, stream: u32::from_be_bytes([s0, s1, s2, s3]) })
    }
}
