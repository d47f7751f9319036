//! SNI and ALPN of a TLS ClientHello, which may be cut into several records and several reads.

use super::MAX_SNIFF;

/// Longest protocol list kept; real clients offer two or three.
const MAX_ALPN: usize = 16;
const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXT_SERVER_NAME: u16 = 0;
const EXT_ALPN: u16 = 16;

/// What a client asks for before anything is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// Server name, lower case, without a trailing dot. Absent when there is none, or when it is
    /// not a host name.
    pub sni: Option<String>,
    /// Offered protocols in order.
    pub alpn: Vec<Vec<u8>>,
}

/// Why bytes are not a ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The record is not a TLS handshake record.
    #[error("not a TLS handshake record")]
    NotHandshake,
    /// The handshake message is not a ClientHello.
    #[error("not a ClientHello")]
    NotClientHello,
    /// It is longer than the limit.
    #[error("a ClientHello longer than {MAX_SNIFF} bytes")]
    TooLong,
    /// Lengths inside do not add up.
    #[error("a malformed ClientHello")]
    Malformed,
}

/// Reads a ClientHello from the first bytes of a connection; `None` = more bytes are needed.
pub fn client_hello(bytes: &[u8]) -> Result<Option<ClientHello>, HelloError> {
    let mut records = Records { bytes };
    // The common case: one record holds the whole message, and nothing is copied.
    let first = match records.next()? {
        Some(first) => first,
        None => return Ok(None),
    };
    if first.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(HelloError::NotClientHello);
    }
    if let Some(body) = message(first)? {
        return parse(body).map(Some);
    }
    let mut joined = first.to_vec();
    while let Some(more) = records.next()? {
        joined.extend_from_slice(more);
        if joined.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(HelloError::NotClientHello);
        }
        if let Some(body) = message(&joined)? {
            return parse(body).map(Some);
        }
    }
    Ok(None)
}

/// The payloads of complete handshake records.
struct Records<'a> {
    bytes: &'a [u8],
}

impl<'a> Records<'a> {
    fn next(&mut self) -> Result<Option<&'a [u8]>, HelloError> {
        // Each byte is checked as soon as it is there: nobody waits for more of what is not TLS.
        let [kind, rest @ ..] = self.bytes else { return Ok(None) };
        if *kind != HANDSHAKE_RECORD {
            return Err(HelloError::NotHandshake);
        }
        if rest.first().is_some_and(|major| *major != 3) {
            return Err(HelloError::NotHandshake);
        }
        let [_, _, high, low, rest @ ..] = rest else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        // An empty handshake record is forbidden, and would let a client send them for ever.
        if length == 0 || length > MAX_SNIFF + 256 {
            return Err(HelloError::NotHandshake);
        }
        let Some((payload, rest)) = rest.split_at_checked(length) else { return Ok(None) };
        self.bytes = rest;
        Ok(Some(payload))
    }
}

/// The body of the first handshake message, once it is complete.
fn message(bytes: &[u8]) -> Result<Option<&[u8]>, HelloError> {
    let [_, high, middle, low, rest @ ..] = bytes else { return Ok(None) };
    let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
    if length > MAX_SNIFF {
        return Err(HelloError::TooLong);
    }
    Ok(rest.get(..length))
}

fn parse(body: &[u8]) -> Result<ClientHello, HelloError> {
    let mut body = Reader(body);
    // Version and random.
    body.take(2 + 32)?;
    body.vector8()?;
    body.vector16()?;
    body.vector8()?;
    let mut hello = ClientHello::default();
    if body.0.is_empty() {
        // TLS 1.0 clients may send no extensions at all.
        return Ok(hello);
    }
    let mut extensions = Reader(body.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = Reader(extensions.vector16()?);
        match kind {
            EXT_SERVER_NAME => hello.sni = server_name(content)?,
            EXT_ALPN => hello.alpn = protocols(content)?,
            _ => {}
        }
    }
    Ok(hello)
}

fn server_name(mut content: Reader<'_>) -> Result<Option<String>, HelloError> {
    let mut list = Reader(content.vector16()?);
    while !list.0.is_empty() {
        let kind = list.take(1)?[0];
        let name = list.vector16()?;
        if kind == 0 {
            return Ok(host_name(name));
        }
    }
    Ok(None)
}

/// A name that may be compared with host names, or nothing.
fn host_name(name: &[u8]) -> Option<String> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 253 || !name.iter().all(fits) {
        return None;
    }
    String::from_utf8(name.to_ascii_lowercase()).ok()
}

fn protocols(mut content: Reader<'_>) -> Result<Vec<Vec<u8>>, HelloError> {
    let mut list = Reader(content.vector16()?);
    let mut offered = Vec::new();
    while !list.0.is_empty() && offered.len() < MAX_ALPN {
        offered.push(list.vector8()?.to_vec());
    }
    Ok(offered)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, HelloError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}
