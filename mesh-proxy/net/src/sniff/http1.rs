//! The request line of HTTP/1.x: method, target, version. The whole line is wanted, because text
//! protocols such as Redis and memcached begin with `GET key` as well.

use super::Match;

/// Longer than any registered method (`UPDATEREDIRECTREF`, 17 bytes).
const MAX_METHOD: usize = 32;

/// Whether the bytes begin with `METHOD SP target SP HTTP/1.` and a digit.
pub fn request_line(bytes: &[u8]) -> Match {
    // RFC 9112 2.2: a server should ignore an empty line before the request line.
    let bytes = match bytes {
        [b'\r'] => return Match::NeedMore,
        [b'\r', b'\n', rest @ ..] => rest,
        all => all,
    };
    let Some(end) = bytes.iter().take(MAX_METHOD + 1).position(|byte| !is_token(*byte)) else {
        return if bytes.len() > MAX_METHOD { Match::No } else { Match::NeedMore };
    };
    if end == 0 || bytes[end] != b' ' {
        return Match::No;
    }
    let rest = &bytes[end + 1..];
    let Some(end) = rest.iter().position(|byte| !is_target(*byte)) else { return Match::NeedMore };
    if end == 0 || rest[end] != b' ' {
        return Match::No;
    }
    version(&rest[end + 1..])
}

fn version(bytes: &[u8]) -> Match {
    const VERSION: &[u8] = b"HTTP/1.";
    let known = bytes.len().min(VERSION.len());
    if bytes[..known] != VERSION[..known] {
        return Match::No;
    }
    match bytes.get(VERSION.len()) {
        None => Match::NeedMore,
        Some(digit) if digit.is_ascii_digit() => Match::Yes,
        Some(_) => Match::No,
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Anything but white space and control characters: what a target may hold is the HTTP parser's
/// matter, which answers 400 where we would have to guess.
fn is_target(byte: u8) -> bool {
    byte > b' ' && byte != 0x7f
}
