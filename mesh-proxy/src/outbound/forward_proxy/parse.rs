//! What a client of the proxy port asks for. Pure: bytes in, request out, no panic on any input.

use std::net::{Ipv4Addr, Ipv6Addr};

/// First byte of SOCKS version 5.
pub(crate) const SOCKS5: u8 = 5;
/// "Succeeded", with no address to tell.
pub(crate) const SOCKS_OK: [u8; 10] = [SOCKS5, 0, 0, 1, 0, 0, 0, 0, 0, 0];

/// What the head of an HTTP proxy request says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// A tunnel to there; the head is so long.
    Connect { host: String, port: u16, length: usize },
    /// A request in absolute form; the HTTP path reads it again.
    Absolute,
    /// Neither.
    Invalid,
    /// Not all of it is there.
    Incomplete,
}

/// Reads the head of an HTTP proxy request.
pub(crate) fn head(bytes: &[u8]) -> Head {
    let Some(line_end) = bytes.windows(2).position(|w| w == b"\r\n") else {
        return Head::Incomplete;
    };
    let Ok(line) = std::str::from_utf8(&bytes[..line_end]) else { return Head::Invalid };
    let mut words = line.split(' ');
    let (Some(method), Some(what), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Head::Invalid;
    };
    if !version.starts_with("HTTP/1.") {
        return Head::Invalid;
    }
    if method != "CONNECT" {
        let absolute = what.get(..7).is_some_and(|s| s.eq_ignore_ascii_case("http://"));
        return if absolute { Head::Absolute } else { Head::Invalid };
    }
    let Some((host, port)) = authority(what) else { return Head::Invalid };
    match bytes.windows(4).position(|w| w == b"\r\n\r\n") {
        Some(at) => Head::Connect { host, port, length: at + 4 },
        None => Head::Incomplete,
    }
}

/// `host:port`, the host of an IPv6 literal without its brackets.
pub(crate) fn authority(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|p| *p > 0)?;
    let host = match host.strip_prefix('[') {
        Some(rest) => {
            let ip: Ipv6Addr = rest.strip_suffix(']')?.parse().ok()?;
            return Some((ip.to_string(), port));
        }
        None => host,
    };
    is_name(host).then(|| (host.to_owned(), port))
}

fn is_name(host: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !host.is_empty() && host.len() <= 254 && host.bytes().all(plain)
}

/// Why a SOCKS request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SocksError {
    /// Not SOCKS5.
    #[error("not SOCKS version 5")]
    Version,
    /// The client insists on a password.
    #[error("no method without authentication offered")]
    Method,
    /// BIND or UDP.
    #[error("only CONNECT is served")]
    Command,
    /// An address of another kind.
    #[error("unknown kind of address")]
    AddressType,
    /// The name leads nowhere.
    #[error("host leads nowhere")]
    HostUnreachable,
    /// The client went away, or sent too much.
    #[error("client ended the handshake")]
    Closed,
}

impl SocksError {
    /// What the client is told.
    pub(crate) const fn reply(self) -> Option<[u8; 10]> {
        let code = match self {
            Self::Method => return Some([SOCKS5, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]),
            Self::Command => 7,
            Self::AddressType => 8,
            Self::HostUnreachable => 4,
            Self::Version | Self::Closed => return None,
        };
        Some([SOCKS5, code, 0, 1, 0, 0, 0, 0, 0, 0])
    }
}

/// Length of the greeting, if it is there and offers "no authentication".
pub(crate) fn greeting(bytes: &[u8]) -> Result<Option<usize>, SocksError> {
    let [version, count, ..] = *bytes else { return Ok(None) };
    if version != SOCKS5 {
        return Err(SocksError::Version);
    }
    let length = 2 + usize::from(count);
    let Some(methods) = bytes.get(2..length) else { return Ok(None) };
    if methods.contains(&0) { Ok(Some(length)) } else { Err(SocksError::Method) }
}

/// Host, port and length of the request, if it is there.
pub(crate) fn request(bytes: &[u8]) -> Result<Option<(String, u16, usize)>, SocksError> {
    let [version, command, _, kind, ..] = *bytes else { return Ok(None) };
    if version != SOCKS5 {
        return Err(SocksError::Version);
    }
    if command != 1 {
        return Err(SocksError::Command);
    }
    let (start, length) = match kind {
        1 => (4, 4),
        4 => (4, 16),
        3 => match bytes.get(4) {
            Some(n) => (5, usize::from(*n)),
            None => return Ok(None),
        },
        _ => return Err(SocksError::AddressType),
    };
    let end = start + length;
    let (Some(address), Some(port)) = (bytes.get(start..end), bytes.get(end..end + 2)) else {
        return Ok(None);
    };
    let host = match kind {
        1 => <[u8; 4]>::try_from(address).map(|b| Ipv4Addr::from(b).to_string()).ok(),
        4 => <[u8; 16]>::try_from(address).map(|b| Ipv6Addr::from(b).to_string()).ok(),
        _ => std::str::from_utf8(address).ok().filter(|h| is_name(h)).map(str::to_owned),
    };
    let host = host.ok_or(SocksError::HostUnreachable)?;
    Ok(Some((host, u16::from_be_bytes([port[0], port[1]]), end + 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_and_absolute_forms() {
        let whole: &[u8] = b"CONNECT reviews.default:9080 HTTP/1.1\r\nHost: x\r\n\r\nrest";
        assert_eq!(
            head(whole),
            Head::Connect { host: "reviews.default".into(), port: 9080, length: whole.len() - 4 }
        );
        for cut in 0..whole.len() - 4 {
            assert_eq!(head(&whole[..cut]), Head::Incomplete, "cut at {cut}");
        }
        assert_eq!(head(b"GET http://a/b HTTP/1.1\r\n"), Head::Absolute);
        for bad in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"GET https://a/ HTTP/1.1\r\n\r\n",
            b"CONNECT a HTTP/1.1\r\n\r\n",
            b"CONNECT a:0 HTTP/1.1\r\n\r\n",
            b"CONNECT a b:1 HTTP/1.1\r\n\r\n",
            b"CONNECT a/b:1 HTTP/1.1\r\n\r\n",
            b"\xff\xfe\r\n\r\n",
        ] {
            assert_eq!(head(bad), Head::Invalid, "{:?}", String::from_utf8_lossy(bad));
        }
        assert_eq!(authority("[::1]:80"), Some(("::1".into(), 80)));
    }

    #[test]
    fn no_input_makes_it_panic() {
        let mut random = 3_u64;
        let mut next = |n: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize % n
        };
        let starts: [&[u8]; 5] = [b"CONNECT ", b"CONNECT [", b"GET http://", &[5, 1, 0, 3], &[5, 255]];
        for _ in 0..20_000 {
            let mut bytes = starts[next(starts.len())].to_vec();
            let noise = b"\r\n :]/.a1\x00\xff";
            bytes.extend((0..next(24)).map(|_| noise[next(noise.len())]));
            let length = match head(&bytes) {
                Head::Connect { length, port, .. } => {
                    if port > 0 {
                        length
                    } else {
                        usize::MAX
                    }
                }
                _ => 0,
            };
            assert!(length <= bytes.len());
            assert!(
                greeting(&bytes).is_ok_and(|n| n.is_none_or(|n| n <= bytes.len()))
                    || greeting(&bytes).is_err()
            );
            assert!(
                request(&bytes).is_ok_and(|r| r.is_none_or(|r| r.2 <= bytes.len()))
                    || request(&bytes).is_err()
            );
        }
    }

    #[test]
    fn socks_in_pieces_and_refusals() {
        assert_eq!(greeting(&[5]), Ok(None));
        assert_eq!(greeting(&[5, 2, 2, 0]), Ok(Some(4)));
        assert_eq!(greeting(&[5, 1, 2]), Err(SocksError::Method));
        assert_eq!(greeting(&[4, 1, 0]), Err(SocksError::Version));
        let named = [&[5, 1, 0, 3, 7][..], b"reviews", &[0x23, 0x78]].concat();
        assert_eq!(request(&named), Ok(Some(("reviews".into(), 9080, named.len()))));
        for cut in 0..named.len() {
            assert_eq!(request(&named[..cut]), Ok(None), "cut at {cut}");
        }
        assert_eq!(request(&[5, 1, 0, 1, 10, 0, 0, 1, 0, 80]), Ok(Some(("10.0.0.1".into(), 80, 10))));
        assert_eq!(request(&[5, 2, 0, 1, 10, 0, 0, 1, 0, 80]), Err(SocksError::Command));
        assert_eq!(request(&[5, 1, 0, 9, 10, 0, 0, 1, 0, 80]), Err(SocksError::AddressType));
        assert_eq!(request(&[5, 1, 0, 3, 2, b'a', b'/', 0, 80]), Err(SocksError::HostUnreachable));
    }
}
