//! Watches the raw bytes of an HTTP/1 client for heads that two readers could take for different messages.
//!
//! The HTTP library resolves `Content-Length` beside `Transfer-Encoding` by dropping the first, which is safe but
//! silent. A mesh refuses such a request and counts it, so this scanner follows the lines of each head. It costs a
//! look at the start of each header line.

/// Follows heads through the byte stream of one connection.
#[derive(Debug)]
pub(crate) struct HeadScanner {
    state: State,
    /// The start of the current line; longer than the names looked for.
    line: [u8; LINE],
    line_len: usize,
    /// A line of the current head has come.
    begun: bool,
    has_te: bool,
    has_cl: bool,
    length: u64,
    heads: u64,
    bad_head: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At a byte of a head.
    Head,
    /// Inside a body of so many more bytes.
    Body(u64),
    /// Inside something without a known length; a new head begins when the connection says so.
    Opaque,
}

const LINE: usize = 40;
const TE: &[u8] = b"transfer-encoding";
const CL: &[u8] = b"content-length";

impl HeadScanner {
    /// A connection from which nothing has been read.
    pub(crate) const fn new() -> Self {
        Self {
            state: State::Head,
            line: [0; LINE],
            line_len: 0,
            begun: false,
            has_te: false,
            has_cl: false,
            length: 0,
            heads: 0,
            bad_head: None,
        }
    }

    /// The number (from 0) of the first head that was ambiguous.
    pub(crate) const fn bad_head(&self) -> Option<u64> {
        self.bad_head
    }

    /// The number of the head of which a part has come, and the rest has not.
    pub(crate) fn partial_head(&self) -> Option<u64> {
        (self.state == State::Head && (self.begun || self.line_len > 0)).then_some(self.heads)
    }

    /// The body of unknown length is over: what comes next is a head.
    pub(crate) fn message_ended(&mut self) {
        if self.state == State::Opaque {
            self.state = State::Head;
            self.line_len = 0;
        }
    }

    /// Looks at bytes in the order in which they arrive.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.state {
                State::Opaque => return,
                State::Body(left) => {
                    let skip = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    bytes = &bytes[skip..];
                    let left = left - skip as u64;
                    self.state = if left == 0 { State::Head } else { State::Body(left) };
                }
                State::Head => bytes = self.head(bytes),
            }
        }
    }

    /// Takes bytes up to the end of a line; returns the rest.
    fn head<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            self.push(bytes);
            return &[];
        };
        // Most lines arrive whole: look at them where they are.
        if self.line_len == 0 {
            self.line_ended(&bytes[..end]);
        } else {
            self.push(&bytes[..end]);
            let (line, len) = (self.line, self.line_len);
            self.line_ended(&line[..len]);
        }
        self.line_len = 0;
        &bytes[end + 1..]
    }

    fn push(&mut self, bytes: &[u8]) {
        let take = bytes.len().min(LINE - self.line_len);
        self.line[self.line_len..self.line_len + take].copy_from_slice(&bytes[..take]);
        self.line_len += take;
    }

    fn line_ended(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // Empty lines before a request are to be passed over (RFC 9112).
        if line.is_empty() && !self.begun {
            return;
        }
        self.begun = true;
        match line.first() {
            None => self.head_ended(),
            Some(b't' | b'T') if names(line, TE) => self.has_te = true,
            Some(b'c' | b'C') if names(line, CL) => {
                self.has_cl = true;
                self.length = number(&line[CL.len() + 1..]);
            }
            Some(_) => {}
        }
    }

    fn head_ended(&mut self) {
        if self.has_te && self.has_cl && self.bad_head.is_none() {
            self.bad_head = Some(self.heads);
        }
        self.state = match (self.has_te, self.length) {
            (true, _) => State::Opaque,
            (false, 0) => State::Head,
            (false, n) => State::Body(n),
        };
        self.heads += 1;
        self.begun = false;
        self.has_te = false;
        self.has_cl = false;
        self.length = 0;
    }
}

/// Whether a header line has that name, whatever its case. White space before the colon is not a name to us; the
/// HTTP library refuses such a line anyway.
fn names(line: &[u8], name: &[u8]) -> bool {
    line.len() > name.len() && line[name.len()] == b':' && line[..name.len()].eq_ignore_ascii_case(name)
}

/// The library refuses lengths that are not numbers; what cannot be read here counts as none.
fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).ok().and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad(chunks: &[&[u8]]) -> Option<u64> {
        let mut scanner = HeadScanner::new();
        for c in chunks {
            scanner.feed(c);
        }
        scanner.bad_head
    }

    #[test]
    fn both_lengths_in_one_head_are_found_in_any_order_case_and_split() {
        let cl_te: &[u8] =
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n";
        let te_cl: &[u8] = b"POST / HTTP/1.1\r\ntransfer-encoding:chunked\r\nCONTENT-LENGTH:4\r\n\r\n";
        assert_eq!(bad(&[cl_te]), Some(0));
        assert_eq!(bad(&[te_cl]), Some(0));
        for at in 1..cl_te.len() {
            assert_eq!(bad(&[&cl_te[..at], &cl_te[at..]]), Some(0), "split at {at}");
        }
    }

    #[test]
    fn bodies_are_not_taken_for_heads() {
        let body: &[u8] = b"POST / HTTP/1.1\r\nContent-Length: 51\r\n\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n..";
        assert_eq!(body.len(), 39 + 51);
        assert_eq!(bad(&[body, b"GET / HTTP/1.1\r\n\r\n"]), None);
        let chunked: &[u8] = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(bad(&[chunked, b"Content-Length: 3\r\nTransfer-Encoding: x\r\n\r\n"]), None);
    }

    #[test]
    fn pipelined_heads_are_numbered() {
        let ok: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let with_body: &[u8] = b"PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab";
        let evil: &[u8] = b"PUT / HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n";
        let all = [ok, with_body, ok, evil].concat();
        let mut scanner = HeadScanner::new();
        scanner.feed(&all);
        assert_eq!(scanner.bad_head(), Some(3));
    }

    #[test]
    fn where_the_bytes_are_cut_makes_no_difference() {
        let parts: [&[u8]; 9] = [
            b"GET / HTTP/1.1\r\n",
            b"Host: a\r\n",
            b"content-length: 7\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"\r\n",
            b"\n",
            b"x",
            b"Content-Length: x\r\n",
            b"\xff\x00\r",
        ];
        let mut random = 7_u64;
        let mut next = |n: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize % n
        };
        for _ in 0..2000 {
            let all: Vec<u8> = (0..next(30)).flat_map(|_| parts[next(parts.len())]).copied().collect();
            let (mut whole, mut cut) = (HeadScanner::new(), HeadScanner::new());
            whole.feed(&all);
            let mut rest = &all[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(1 + next(rest.len()));
                cut.feed(now);
                rest = later;
            }
            assert_eq!(whole.bad_head(), cut.bad_head(), "{:?}", String::from_utf8_lossy(&all));
            assert_eq!(whole.partial_head(), cut.partial_head(), "{:?}", String::from_utf8_lossy(&all));
            assert_eq!(whole.heads, cut.heads);
        }
    }

    #[test]
    fn a_head_is_partial_until_its_empty_line() {
        let mut scanner = HeadScanner::new();
        assert_eq!(scanner.partial_head(), None);
        scanner.feed(b"\r\n\r\n");
        assert_eq!(scanner.partial_head(), None, "empty lines are no head");
        scanner.feed(b"GET / HT");
        assert_eq!(scanner.partial_head(), Some(0));
        scanner.feed(b"TP/1.1\r\nHost: a\r\n");
        assert_eq!(scanner.partial_head(), Some(0));
        scanner.feed(b"\r\n");
        assert_eq!(scanner.partial_head(), None);
        scanner.feed(b"PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\na");
        assert_eq!(scanner.partial_head(), None, "a slow body is not a slow head");
        scanner.feed(b"bcG");
        assert_eq!(scanner.partial_head(), Some(2));
    }

    #[test]
    fn after_a_chunked_message_the_next_head_is_seen() {
        let mut scanner = HeadScanner::new();
        scanner.feed(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n");
        scanner.message_ended();
        scanner.feed(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n");
        assert_eq!(scanner.bad_head(), Some(1));
    }
}
