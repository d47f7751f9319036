//! The test application: says over many protocols who it is and what it received, and misbehaves when told.
//!
//! A request is told apart by `x-echo-*` headers or query parameters of the same names, so that a test needs
//! no second channel to the application.

pub mod bookinfo;
pub mod call;
pub mod client;
pub mod forward;
pub mod grpc;
pub mod http;
pub mod load;
pub mod pipe;
pub mod serve;
pub mod stream;
pub mod tls;

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde::{Deserialize, Serialize};

/// Who an instance is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The instance, usually the pod's name.
    pub name: String,
    /// Its version, as the pod's `version` label says it.
    pub version: String,
    /// Where it runs.
    pub node: String,
}

/// What one HTTP request was answered with.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Received {
    /// Who answers.
    #[serde(flatten)]
    pub identity: Identity,
    /// `HTTP/1.1`, `HTTP/2.0`, `tcp`, `udp`, `websocket`.
    pub protocol: String,
    /// Method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The authority, wherever the protocol carries it.
    pub authority: String,
    /// All headers; repeated ones joined by `, `.
    pub headers: BTreeMap<String, String>,
    /// Size of the body.
    pub body_bytes: u64,
    /// SHA-256 of the body, hexadecimal.
    pub body_sha256: String,
    /// Who connected.
    pub peer: String,
    /// How many requests came over the same connection, this one included.
    pub on_connection: u64,
}

/// How an instance or one request is to be treated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Controls {
    /// Wait before the answer.
    pub delay: Option<Duration>,
    /// Answer with that status.
    pub status: Option<u16>,
    /// Close the connection instead of answering.
    pub close: bool,
    /// Never answer.
    pub silent: bool,
    /// Answer with a body of that many bytes instead of the report.
    pub bytes: Option<u64>,
    /// Send the body in that many pieces.
    pub chunks: Option<u32>,
    /// Wait between two pieces.
    pub chunk_delay: Option<Duration>,
    /// Send the request's body back.
    pub body: bool,
    /// End the answer with trailers.
    pub trailers: bool,
}

impl Controls {
    /// Reads the `x-echo-*` values that `lookup` knows, over what the instance does anyway.
    #[must_use]
    pub fn read(base: &Self, lookup: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| lookup(name).and_then(|v| v.trim().parse::<u64>().ok());
        let millis = |name: &str| number(name).map(Duration::from_millis);
        let flag = |name: &str| lookup(name).is_some_and(|v| v != "0" && v != "false");
        Self {
            delay: millis("x-echo-delay-ms").or(base.delay),
            status: number("x-echo-status").and_then(|s| u16::try_from(s).ok()).or(base.status),
            close: flag("x-echo-close") || base.close,
            silent: flag("x-echo-silent") || base.silent,
            bytes: number("x-echo-bytes").or(base.bytes),
            chunks: number("x-echo-chunks").and_then(|c| u32::try_from(c).ok()).or(base.chunks),
            chunk_delay: millis("x-echo-chunk-delay-ms").or(base.chunk_delay),
            body: flag("x-echo-body") || base.body,
            trailers: flag("x-echo-trailers") || base.trailers,
        }
    }
}

/// The value of a query parameter.
#[must_use]
pub fn query_value(query: Option<&str>, name: &str) -> Option<String> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, "1"));
        (key == name).then(|| value.to_owned())
    })
}

/// Bytes as lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_come_from_the_request_over_the_instance() {
        let base =
            Controls { status: Some(503), delay: Some(Duration::from_millis(5)), ..Controls::default() };
        let query = Some("x-echo-status=418&a=b&x-echo-close");
        let got = Controls::read(&base, |n| query_value(query, n));
        assert_eq!(got.status, Some(418));
        assert_eq!(got.delay, Some(Duration::from_millis(5)));
        assert!(got.close && !got.silent);
    }
}
