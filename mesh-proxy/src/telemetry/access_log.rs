//! The access log: one line a call, in Envoy's default text form or as JSON.
//!
//! Lines are formatted where the call ends and written by a thread of their own. When that thread cannot keep up,
//! lines are dropped and counted: a slow pipe never slows a request.

use std::{
    io::Write,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::flags::Flags;

/// How calls are logged.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct AccessLogConfig {
    /// `off` (default), `text` or `json`.
    pub format: Format,
    /// Share of calls that are logged, 0 to 1 (default 1). Calls that failed are always logged.
    pub sample: f64,
}

impl Default for AccessLogConfig {
    fn default() -> Self {
        Self { format: Format::Off, sample: 1.0 }
    }
}

impl AccessLogConfig {
    /// What is wrong with the settings.
    pub fn validate(&self) -> Vec<String> {
        if (0.0..=1.0).contains(&self.sample) {
            return Vec::new();
        }
        vec![format!("access_log.sample: {} is not between 0 and 1", self.sample)]
    }
}

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// No access log.
    #[default]
    Off,
    /// Envoy's default line, as Istio configures it.
    Text,
    /// One JSON object a line, with Istio's keys.
    Json,
}

/// Most bytes that wait for the writer.
const WAITING: usize = 1 << 20;
/// Longest copy of a text that a client chose (path, agent).
const MAX_FIELD: usize = 2048;

/// What is known of one call when it ends.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// When it began.
    pub start: Option<SystemTime>,
    /// Request method; empty for TCP.
    pub method: String,
    /// Path as the client sent it.
    pub path: String,
    /// `HTTP/1.1`, `HTTP/2`, or empty for TCP.
    pub protocol: &'static str,
    /// Status that the client saw; 0 when none was sent.
    pub status: u16,
    /// Why it ended so.
    pub flags: Flags,
    /// Envoy's response code details.
    pub details: &'static str,
    /// Body bytes from the client.
    pub received: u64,
    /// Body bytes to the client.
    pub sent: u64,
    /// How long it took.
    pub duration: Duration,
    /// Time until the upstream's response head.
    pub upstream_time: Option<Duration>,
    /// Header `x-forwarded-for`.
    pub forwarded_for: String,
    /// Header `user-agent`.
    pub agent: String,
    /// Header `x-request-id`.
    pub request_id: String,
    /// Authority as the client sent it.
    pub authority: String,
    /// Endpoint that was reached.
    pub upstream: Option<SocketAddr>,
    /// `outbound|port|subset|host`.
    pub cluster: String,
    /// What the client called.
    pub destination: Option<SocketAddr>,
    /// Who called.
    pub client: Option<SocketAddr>,
    /// SNI of a TLS connection.
    pub server_name: String,
    /// Name of the rule.
    pub route: String,
}

/// A handle to the log; cheap to clone.
#[derive(Clone)]
pub struct AccessLog {
    format: Format,
    sample: f64,
    writer: Option<node_rt::AccessLog>,
}

impl AccessLog {
    /// Starts the writer thread, unless the log is off.
    pub fn start(config: &AccessLogConfig, out: impl Write + Send + 'static) -> std::io::Result<Self> {
        let writer = match config.format {
            Format::Off => None,
            Format::Text | Format::Json => Some(node_rt::AccessLog::new(out, WAITING)?),
        };
        Ok(Self { format: config.format, sample: config.sample, writer })
    }

    /// A log that writes nothing.
    pub const fn off() -> Self {
        Self { format: Format::Off, sample: 0.0, writer: None }
    }

    /// Whether a call needs to collect an entry at all.
    pub const fn enabled(&self) -> bool {
        self.writer.is_some()
    }

    /// Whether a call that drew `dice` (0 to 1) and ended with this status is logged.
    pub fn wants(&self, dice: f64, status: u16, flags: Flags) -> bool {
        self.enabled() && (dice < self.sample || status >= 500 || !flags.is_empty())
    }

    /// Hands one line to the writer, or drops it.
    pub fn write(&self, entry: &Entry) {
        let Some(writer) = &self.writer else { return };
        // Writing to a Vec cannot fail; a line that is not taken is counted by the writer.
        let _taken = writer.line(|line| match self.format {
            Format::Off => {}
            Format::Text => text(line, entry),
            Format::Json => json(line, entry),
        });
    }

    /// Lines dropped because the output was too slow.
    pub fn dropped(&self) -> u64 {
        self.writer.as_ref().map_or(0, node_rt::AccessLog::dropped)
    }

    /// Waits until everything is written, or `within` is over. Blocks.
    pub fn flush(&self, within: Duration) -> bool {
        self.writer.as_ref().is_none_or(|w| w.flush(within))
    }
}

/// A client's text, cut and with nothing that could forge a line.
fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(MAX_FIELD));
    for c in text.chars() {
        if out.len() >= MAX_FIELD {
            break;
        }
        match c {
            '"' => out.push('\''),
            c if c.is_control() => out.push('?'),
            c => out.push(c),
        }
    }
    if out.is_empty() { "-".to_owned() } else { out }
}

fn dash<T: std::fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

fn timestamp(start: Option<SystemTime>) -> String {
    start
        .and_then(|t| jiff::Timestamp::try_from(t).ok())
        .map_or_else(|| "-".to_owned(), |t| format!("{t:.3}"))
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn text(line: &mut Vec<u8>, e: &Entry) {
    // Writing to a Vec cannot fail.
    let _ = write!(line, "[{}] ", timestamp(e.start));
    let _ = if e.method.is_empty() {
        write!(line, "\"- - -\" ")
    } else {
        write!(line, "\"{} {} {}\" ", e.method, clean(&e.path), e.protocol)
    };
    let _ = write!(
        line,
        "{} {} {} - \"-\" {} {} {} {} \"{}\" \"{}\" \"{}\" \"{}\" \"{}\" {} - {} {} {} {}",
        e.status,
        e.flags.letters(),
        or_dash(e.details),
        e.received,
        e.sent,
        e.duration.as_millis(),
        dash(e.upstream_time.map(|t| t.as_millis())),
        clean(&e.forwarded_for),
        clean(&e.agent),
        clean(&e.request_id),
        clean(&e.authority),
        dash(e.upstream),
        or_dash(&e.cluster),
        dash(e.destination),
        dash(e.client),
        clean(&e.server_name),
        or_dash(&e.route),
    );
}

fn json(line: &mut Vec<u8>, e: &Entry) {
    let cut = |t: &str| {
        let mut end = t.len().min(MAX_FIELD);
        while !t.is_char_boundary(end) {
            end -= 1;
        }
        if t.is_empty() { serde_json::Value::Null } else { t[..end].into() }
    };
    let object = serde_json::json!({
        "start_time": timestamp(e.start),
        "method": cut(&e.method),
        "path": cut(&e.path),
        "protocol": cut(e.protocol),
        "response_code": e.status,
        "response_flags": e.flags.letters(),
        "response_code_details": cut(e.details),
        "bytes_received": e.received,
        "bytes_sent": e.sent,
        "duration": e.duration.as_millis() as u64,
        "upstream_service_time": e.upstream_time.map(|t| t.as_millis() as u64),
        "x_forwarded_for": cut(&e.forwarded_for),
        "user_agent": cut(&e.agent),
        "request_id": cut(&e.request_id),
        "authority": cut(&e.authority),
        "upstream_host": e.upstream.map(|a| a.to_string()),
        "upstream_cluster": cut(&e.cluster),
        "downstream_local_address": e.destination.map(|a| a.to_string()),
        "downstream_remote_address": e.client.map(|a| a.to_string()),
        "requested_server_name": cut(&e.server_name),
        "route_name": cut(&e.route),
    });
    let _ = write!(line, "{object}");
}
