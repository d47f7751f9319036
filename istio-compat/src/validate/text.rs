//! Checks of single values.

use std::net::IpAddr;

use ipnet::IpNet;
use regex::RegexBuilder;

use crate::{duration, types::Percent};

const MILLISECOND: i64 = 1_000_000;
const MAX_NAME: usize = 255;
const MAX_LABEL: usize = 63;
/// Longest regular expression.
const MAX_REGEX: usize = 1024;
/// Bound on a compiled regular expression, as on nodes.
const MAX_PROGRAM: usize = 1 << 20;

type Check = Result<(), String>;

pub(super) fn require(ok: bool, message: impl FnOnce() -> String) -> Check {
    if ok { Ok(()) } else { Err(message()) }
}

/// At least a millisecond, in whole milliseconds.
pub(super) fn duration(text: &str) -> Check {
    let nanos = duration::parse(text).map_err(|e| e.to_string())?;
    require(nanos >= MILLISECOND, || format!("{text} is shorter than 1ms"))?;
    require(nanos % MILLISECOND == 0, || format!("{text} is not in whole milliseconds"))
}

fn is_label(text: &str) -> bool {
    let b = text.as_bytes();
    let ends = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
    b.len() <= MAX_LABEL
        && ends(b.first())
        && ends(b.last())
        && b.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-')
}

pub(super) fn dns_label(text: &str, what: &str) -> Check {
    require(is_label(text), || format!("{text:?} is not a {what} (a DNS label)"))
}

fn length(name: &str) -> Check {
    require(!name.is_empty(), || "a host name must not be empty".to_owned())?;
    require(name.len() <= MAX_NAME, || format!("{name:?} is longer than {MAX_NAME} characters"))
}

/// Labels of a name; a dot at the end is fine. A number at the end is not: that would be an address.
fn labels(name: &str) -> Check {
    let last = name.rsplit('.').next().unwrap_or(name);
    require(last.is_empty() || !last.bytes().all(|b| b.is_ascii_digit()), || {
        format!("{name:?} is not a host name: it ends in a number")
    })?;
    let name = name.strip_suffix('.').unwrap_or(name);
    match name.split('.').find(|l| !is_label(l)) {
        Some(bad) => Err(format!("{name:?} is not a host name: label {bad:?} is not valid")),
        None => Ok(()),
    }
}

/// A host name without wildcard.
pub(super) fn fqdn(name: &str) -> Check {
    length(name)?;
    labels(name)
}

/// A host name whose first label may be `*`, or begin with it.
pub(super) fn wildcard_domain(name: &str) -> Check {
    length(name)?;
    let (first, rest) = name.split_once('.').map_or((name, None), |(f, r)| (f, Some(r)));
    let plain = first.strip_prefix("*-").or_else(|| first.strip_prefix('*')).unwrap_or(first);
    require(first == "*" || is_label(plain), || {
        format!("{name:?} is not a host name: label {first:?} is not valid")
    })?;
    rest.map_or(Ok(()), labels)
}

/// The name of a host behind a gateway that passes TLS on: `outbound_.80_._.host`.
pub(super) fn sni_route(name: &str) -> bool {
    match name.split('_').collect::<Vec<_>>()[..] {
        ["outbound", port, _, host, ..] => {
            port.contains(|c: char| c.is_ascii_digit()) && host.contains(|c: char| c.is_ascii_alphabetic())
        }
        _ => false,
    }
}

pub(super) fn is_ip(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

pub(super) fn subnet(text: &str) -> Check {
    let ok = if text.contains('/') { text.parse::<IpNet>().is_ok() } else { is_ip(text) };
    require(ok, || format!("{text:?} is neither an address nor a CIDR"))
}

pub(super) fn port(number: u32) -> Check {
    require((1..=65535).contains(&number), || format!("{number} is not a port number (1 to 65535)"))
}

/// A word of letters, digits and `-_.` that begins and ends with a letter or digit.
fn is_word(text: &str) -> bool {
    let b = text.as_bytes();
    let ends = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
    ends(b.first())
        && ends(b.last())
        && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// Keys and values as Kubernetes has them.
pub(super) fn source_labels<'a>(map: impl IntoIterator<Item = (&'a String, &'a String)>) -> Check {
    for (key, value) in map {
        let (prefix, name) = key.rsplit_once('/').map_or((None, key.as_str()), |(p, n)| (Some(p), n));
        let prefix_ok = prefix.is_none_or(|p| p.len() <= 253 && p.split('.').all(is_label));
        require(prefix_ok && name.len() <= MAX_LABEL && is_word(name), || {
            format!("{key:?} is not a label key")
        })?;
        require(value.is_empty() || is_word(value), || format!("{value:?} is not a label value"))?;
    }
    Ok(())
}

fn is_token(text: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(token)
}

/// The name of a header that a rule looks at.
pub(super) fn header_name(name: &str) -> Check {
    let pseudo = [":method", ":scheme", ":authority", ":path", ":status"];
    require(is_token(name) || pseudo.contains(&name) || crate::names::is_claim(name), || {
        format!("{name:?} is not a header name")
    })
}

/// The name of a header in cross-origin rules; `*` is one of the characters that a name may have.
pub(super) fn cors_header_name(name: &str) -> Check {
    require(is_token(name), || format!("{name:?} is not a header name"))
}

pub(super) fn regex(text: &str) -> Check {
    require(!text.is_empty(), || "a regular expression must not be empty".to_owned())?;
    require(text.len() <= MAX_REGEX, || {
        format!("a regular expression must not be longer than {MAX_REGEX} characters, is {}", text.len())
    })?;
    match RegexBuilder::new(text).size_limit(MAX_PROGRAM).build() {
        Ok(_) => Ok(()),
        Err(regex::Error::CompiledTooBig(_)) => Err(format!("{text:?} is too complex a regular expression")),
        Err(_) => Err(format!("{text:?} is not a regular expression in RE2 syntax")),
    }
}

pub(super) fn percentage(p: Percent) -> Check {
    let v = p.value;
    require(v == 0.0 || (0.0001..=100.0).contains(&v), || format!("must be 0 or from 0.0001 to 100, is {v}"))
}

pub(super) fn percent(n: i32) -> Check {
    require((0..=100).contains(&n), || format!("must be from 0 to 100, is {n}"))
}

pub(super) fn http_status(status: i64) -> Check {
    // 600 passes, as in Istio.
    require((200..=600).contains(&status), || format!("must be an HTTP status from 200 to 599, is {status}"))
}

/// A header value: no control characters; percent signs come doubled, or around a command, whose arguments may be a
/// text or a list of quoted texts in parentheses.
pub(super) fn header_value(value: &str) -> Check {
    let control = |b: u8| (b < b' ' && b != b'\t') || b == 0x7f;
    require(!value.bytes().any(control), || format!("{value:?} has control characters"))?;
    let mut bytes = value.bytes().peekable();
    while let Some(byte) = bytes.next() {
        if byte != b'%' || bytes.next_if_eq(&b'%').is_some() {
            continue;
        }
        command(&mut bytes)
            .ok_or_else(|| format!("{value:?} has a `%` that begins a command without an end"))?;
    }
    Ok(())
}

type Bytes<'a> = std::iter::Peekable<std::str::Bytes<'a>>;

/// Reads a command to its closing `%`.
fn command(bytes: &mut Bytes<'_>) -> Option<()> {
    loop {
        match bytes.next()? {
            b'%' => return Some(()),
            b'(' => break,
            _ => {}
        }
    }
    match next_visible(bytes)? {
        b'[' => quoted_list(bytes)?,
        // The first character of a plain argument is not looked at.
        _ => plain_argument(bytes)?,
    }
    (next_visible(bytes)? == b'%').then_some(())
}

fn next_visible(bytes: &mut Bytes<'_>) -> Option<u8> {
    bytes.find(|b| *b != b' ')
}

/// `"a", "b"])`
fn quoted_list(bytes: &mut Bytes<'_>) -> Option<()> {
    loop {
        if next_visible(bytes)? != b'"' {
            return None;
        }
        loop {
            match bytes.next()? {
                b'\\' => drop(bytes.next()?),
                b'"' => break,
                // A parenthesis ends the arguments even inside of quotes.
                b')' => return Some(()),
                _ => {}
            }
        }
        match next_visible(bytes)? {
            b',' => {}
            b']' => return (next_visible(bytes)? == b')').then_some(()),
            _ => return None,
        }
    }
}

fn plain_argument(bytes: &mut Bytes<'_>) -> Option<()> {
    loop {
        match bytes.next()? {
            b'\\' => drop(bytes.next()?),
            b')' => return Some(()),
            b'"' => return quoted_rest(bytes),
            _ => {}
        }
    }
}

/// After a quote in a plain argument only the end of a list may follow.
fn quoted_rest(bytes: &mut Bytes<'_>) -> Option<()> {
    match next_visible(bytes)? {
        b',' => quoted_list(bytes),
        b']' => (next_visible(bytes)? == b')').then_some(()),
        _ => None,
    }
}

/// What a port speaks, by the name that users give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Tls,
    Tcp,
    Other,
}

impl Protocol {
    /// `None` for a name that Istio does not know, and for none.
    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "http" | "http2" | "http_proxy" | "grpc" | "grpc-web" | "hbone" | "double-hbone" => Self::Http,
            "https" | "tls" => Self::Tls,
            "tcp" => Self::Tcp,
            "udp" | "mongo" | "redis" | "mysql" => Self::Other,
            _ => return None,
        })
    }

    pub(super) fn is_http(self) -> bool {
        self == Self::Http
    }

    pub(super) fn is_tls(self) -> bool {
        self == Self::Tls
    }
}

/// A protocol, or none.
pub(super) fn protocol(name: &str) -> Check {
    require(name.is_empty() || Protocol::of(name).is_some(), || format!("{name:?} is not a known protocol"))
}

/// What follows `unix://`: an absolute path to a file, or `@` and a name.
pub(super) fn unix_socket(path: &str) -> Check {
    let fits = path.starts_with('@') || (path.starts_with('/') && !path.ends_with('/'));
    require(fits, || format!("{path:?} is not an absolute path to a file"))
}

/// An expression of the common expression language, or none. Nodes look closer.
pub(super) fn expression(text: &str) -> Check {
    require(text.is_empty() || super::expression::is_well_formed(text), || {
        format!("{text:?} is not an expression")
    })
}
