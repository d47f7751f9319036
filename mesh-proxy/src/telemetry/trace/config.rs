//! What an operator sets about traces.

use std::{collections::BTreeMap, path::PathBuf};

use http::{HeaderName, HeaderValue, Uri};
use node_rt::Secret;
use serde::{Deserialize, Serialize};

/// Traces.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct TracingConfig {
    /// The collector, `http://HOST:PORT` or `https://HOST:PORT`; empty (default) = no traces. A host that is a service of
    /// the mesh is reached through the mesh.
    pub endpoint: String,
    /// OTLP over `grpc` (default) or `http`.
    pub protocol: Protocol,
    /// The name by which Telemetry resources mean this collector (default `otel`).
    pub provider: String,
    /// Share of requests that begin a trace, 0 to 100 (default 1); Telemetry's `randomSamplingPercentage` overrides it.
    #[serde(alias = "sampling_percent")]
    pub sampling_percent: f64,
    /// Headers of traces that begin here (default `tracecontext`). One that comes in goes on in the form it came in.
    pub propagation: Propagation,
    /// Most spans that wait while the collector cannot be reached (default 2048); the oldest are dropped.
    pub buffer: usize,
    /// Most spans of one export (default 256).
    pub batch: usize,
    /// Milliseconds that spans wait for others (default 1000).
    #[serde(alias = "flush_millis")]
    pub flush_millis: u64,
    /// Headers of exports, for a collector that asks for a key.
    pub headers: BTreeMap<String, Secret<String>>,
    /// Certificates that a collector over `https` is verified with; empty (default) = the system's.
    #[serde(alias = "ca_file")]
    pub ca_file: PathBuf,
}

/// How spans travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// OTLP/gRPC.
    #[default]
    Grpc,
    /// OTLP/HTTP with protobuf, at `/v1/traces`.
    Http,
}

/// Headers that carry a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    /// W3C's `traceparent`.
    #[default]
    TraceContext,
    /// Zipkin's `b3`.
    B3,
    /// Zipkin's `x-b3-*`.
    B3Multi,
}

impl Default for TracingConfig {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            protocol: Protocol::Grpc,
            provider: "otel".to_owned(),
            sampling_percent: 1.0,
            propagation: Propagation::TraceContext,
            buffer: 2048,
            batch: 256,
            flush_millis: 1000,
            headers: BTreeMap::new(),
            ca_file: PathBuf::new(),
        }
    }
}

impl TracingConfig {
    /// What is wrong with the settings.
    pub fn validate(&self) -> Vec<String> {
        let mut out = Vec::new();
        if !self.endpoint.is_empty()
            && let Err(reason) = Endpoint::parse(&self.endpoint)
        {
            out.push(format!("tracing.endpoint: {:?} {reason}", self.endpoint));
        }
        if !(0.0..=100.0).contains(&self.sampling_percent) {
            out.push(format!("tracing.samplingPercent: {} is not between 0 and 100", self.sampling_percent));
        }
        for (name, value, most) in [
            ("buffer", self.buffer as u64, 1 << 20),
            ("batch", self.batch as u64, 4096),
            ("flushMillis", self.flush_millis, 60_000),
        ] {
            if !(1..=most).contains(&value) {
                out.push(format!("tracing.{name}: {value} is not between 1 and {most}"));
            }
        }
        for (name, value) in &self.headers {
            if name.parse::<HeaderName>().is_err() || HeaderValue::from_str(value.expose()).is_err() {
                out.push(format!("tracing.headers: {name:?} cannot be a header"));
            }
        }
        out
    }
}

/// Where the collector is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// Before `/v1/traces`.
    pub(super) base: String,
}

impl Endpoint {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|e| format!("is no URL: {e}"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err("does not begin with http:// or https://".to_owned()),
        };
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err("has no host".to_owned());
        }
        let port = uri.port_u16().ok_or("has no port")?;
        let base = uri.path().trim_end_matches('/').trim_end_matches("/v1/traces").to_owned();
        Ok(Self { tls, host: host.to_ascii_lowercase(), port, base })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read() {
        let read = |text| Endpoint::parse(text).map(|e| (e.tls, e.host, e.port, e.base));
        assert_eq!(read("http://otel.obs:4317"), Ok((false, "otel.obs".into(), 4317, String::new())));
        assert_eq!(read("https://[::1]:443/x/v1/traces"), Ok((true, "::1".into(), 443, "/x".into())));
        for wrong in ["otel:4317", "http://otel", "ftp://a:1", "http://:1", "h t"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let bad = TracingConfig {
            endpoint: "x".into(),
            sampling_percent: 101.0,
            buffer: 0,
            headers: [("a b".to_owned(), Secret::new("x".to_owned()))].into(),
            ..TracingConfig::default()
        };
        assert_eq!(bad.validate().len(), 4, "{:?}", bad.validate());
        assert!(TracingConfig::default().validate().is_empty());
    }
}
