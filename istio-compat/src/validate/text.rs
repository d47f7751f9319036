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

/// Labels of a name; a dot at the end is fine.
fn labels(name: &str) -> Check {
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

/// The name of a host behind a gateway that passes TLS on: `outbound_.port_.subset_.host`.
pub(super) fn sni_route(name: &str) -> bool {
    let mut parts = name.splitn(4, '.');
    let first = parts.next();
    first == Some("outbound_")
        && parts.next().is_some()
        && parts.next().is_some()
        && parts.next().is_some_and(|h| fqdn(h).is_ok())
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

/// Keys and values as Kubernetes has them.
pub(super) fn source_labels<'a>(map: impl IntoIterator<Item = (&'a String, &'a String)>) -> Check {
    let word = |text: &str| {
        let b = text.as_bytes();
        let ends = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
        b.len() <= MAX_LABEL
            && ends(b.first())
            && ends(b.last())
            && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
    };
    for (key, value) in map {
        let (prefix, name) = key.rsplit_once('/').map_or((None, key.as_str()), |(p, n)| (Some(p), n));
        let key_ok = word(name) && prefix.is_none_or(|p| fqdn(p).is_ok());
        require(key_ok, || format!("{key:?} is not a label key"))?;
        require(value.is_empty() || word(value), || format!("{value:?} is not a label value"))?;
    }
    Ok(())
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
    require((200..=599).contains(&status), || format!("must be an HTTP status from 200 to 599, is {status}"))
}

/// Percent signs of a header value come doubled, or around a command.
pub(super) fn header_value(value: &str) -> Check {
    let mut rest = value;
    while let Some(at) = rest.find('%') {
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            rest = after;
            continue;
        }
        let end = command_end(rest);
        let Some(end) = end else {
            return Err(format!("{value:?} has a `%` that begins a command without an end"));
        };
        rest = &rest[end..];
    }
    Ok(())
}

/// Where a command ends, behind its `%`. What is in parentheses may hold anything.
fn command_end(rest: &str) -> Option<usize> {
    let mut depth = 0_u32;
    for (at, c) in rest.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '%' if depth == 0 => return Some(at + 1),
            _ => {}
        }
    }
    None
}
