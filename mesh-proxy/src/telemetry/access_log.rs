//! The access log: one line a call, as a text with Envoy's command operators or as JSON.
//!
//! What a line says is compiled when the proxy starts; of a call only what the line needs is kept. Lines are written by
//! a thread of their own. When that thread cannot keep up, lines are dropped and counted: a slow pipe never slows a
//! request. Telemetry resources may switch the log off, on, or filter it, for each workload.

mod entry;
mod line;
mod output;

use std::{
    io::Write,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub use entry::{Entry, Http};
pub(in crate::telemetry) use entry::{Host, View, Wanted};
use line::Program;
pub use output::LogFile;
use serde::{Deserialize, Serialize};

use super::flags::Flags;

/// How calls are logged.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct AccessLogConfig {
    /// `off` (default), `text` or `json`. When off, a Telemetry resource that names the provider switches the log on for
    /// its workloads, as text.
    pub format: Format,
    /// A line with command operators instead of Istio's default one; for `text`.
    pub text: String,
    /// Keys and texts with command operators instead of Istio's; may be nested; for `json`.
    pub json: serde_json::Map<String, serde_json::Value>,
    /// Share of calls that are logged, 0 to 1 (default 1). Calls that failed are always logged.
    pub sample: f64,
    /// File to append to; empty (default) = standard output. A file that is renamed or removed is opened anew.
    pub path: PathBuf,
    /// The name by which Telemetry resources mean this log (default `envoy`, as Istio's built-in provider).
    pub provider: String,
}

impl Default for AccessLogConfig {
    fn default() -> Self {
        Self {
            format: Format::Off,
            text: String::new(),
            json: serde_json::Map::new(),
            sample: 1.0,
            path: PathBuf::new(),
            provider: "envoy".to_owned(),
        }
    }
}

impl AccessLogConfig {
    /// What is wrong with the settings.
    pub fn validate(&self) -> Vec<String> {
        let mut out = Vec::new();
        if !(0.0..=1.0).contains(&self.sample) {
            out.push(format!("access_log.sample: {} is not between 0 and 1", self.sample));
        }
        if let Err(error) = Program::compile(self) {
            out.push(error);
        }
        if !self.path.as_os_str().is_empty() && !self.path.is_absolute() {
            out.push(format!("access_log.path: {} is no absolute path", self.path.display()));
        }
        out
    }

    /// Where lines go.
    pub fn output(&self) -> std::io::Result<Box<dyn Write + Send>> {
        if self.path.as_os_str().is_empty() {
            return Ok(Box::new(std::io::stdout()));
        }
        Ok(Box::new(LogFile::open(self.path.clone())?))
    }
}

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// No access log, unless Telemetry resources ask for it.
    #[default]
    Off,
    /// A text; Istio's default line if none is given.
    Text,
    /// One JSON object a line, with Istio's keys if none are given.
    Json,
}

/// Most bytes that wait for the writer.
const WAITING: usize = 1 << 20;

/// A handle to the log; cheap to clone.
#[derive(Clone)]
pub struct AccessLog(Option<Arc<Inner>>);

struct Inner {
    program: Program,
    provider: String,
    sample: f64,
    /// Calls are logged where no Telemetry resource says otherwise.
    by_default: bool,
    /// Some call may be logged.
    enabled: AtomicBool,
    writer: OnceLock<Option<node_rt::AccessLog>>,
    /// Taken when the first line is written: who logs nothing has no thread for it.
    output: Mutex<Option<Box<dyn Write + Send>>>,
}

impl AccessLog {
    /// The log of these settings. The thread that writes starts with the first line.
    pub fn start(config: &AccessLogConfig, out: impl Write + Send + 'static) -> std::io::Result<Self> {
        let program = Program::compile(config).map_err(std::io::Error::other)?.at_this_host();
        let by_default = config.format != Format::Off;
        Ok(Self(Some(Arc::new(Inner {
            program,
            provider: config.provider.clone(),
            sample: config.sample,
            by_default,
            enabled: AtomicBool::new(by_default),
            writer: OnceLock::new(),
            output: Mutex::new(Some(Box::new(out))),
        }))))
    }

    /// A log that writes nothing.
    pub const fn off() -> Self {
        Self(None)
    }

    /// Whether a call needs to collect an entry at all.
    pub fn enabled(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.enabled.load(Ordering::Relaxed))
    }

    /// Whether calls are logged where no rule says otherwise.
    pub(crate) fn by_default(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.by_default)
    }

    /// The name by which Telemetry resources mean this log.
    pub(crate) fn provider(&self) -> &str {
        self.0.as_ref().map_or("", |inner| &inner.provider)
    }

    /// Says whether some rule switches the log on.
    pub(crate) fn asked_for(&self, by_rule: bool) {
        if let Some(inner) = &self.0 {
            inner.enabled.store(inner.by_default || by_rule, Ordering::Relaxed);
        }
    }

    /// Whether a call that drew `dice` (0 to 1) and ended with this status is logged.
    pub fn wants(&self, dice: f64, status: u16, flags: Flags) -> bool {
        let Some(inner) = &self.0 else { return false };
        self.enabled() && (dice < inner.sample || status >= 500 || !flags.is_empty())
    }

    /// Keeps of a request what a line needs.
    pub(crate) fn http<B>(&self, request: &http::Request<B>) -> Option<Box<Http>> {
        // A span of a trace needs some of it even if there is no log.
        static FOR_SPANS: OnceLock<Wanted> = OnceLock::new();
        let wanted = match &self.0 {
            Some(inner) => inner.program.wanted(),
            None => FOR_SPANS.get_or_init(|| Wanted::by(std::iter::empty())),
        };
        Some(Box::new(Http::of(request, wanted)))
    }

    /// Keeps of a response's head what a line needs.
    pub(crate) fn see_response(&self, http: &mut Http, headers: &http::HeaderMap) {
        if let Some(inner) = &self.0 {
            http.see_response(headers, inner.program.wanted());
        }
    }

    /// Keeps of a response's trailers what a line needs.
    pub(crate) fn see_trailers(&self, http: &mut Http, headers: &http::HeaderMap) {
        if let Some(inner) = &self.0 {
            http.see_trailers(headers, inner.program.wanted());
        }
    }

    /// Hands one line to the writer, or drops it.
    pub fn write(&self, entry: &Entry) {
        let Some(inner) = &self.0 else { return };
        let Some(writer) = inner.writer() else { return };
        // A line that is not taken is counted by the writer.
        let _taken = writer.line(|line| inner.program.write(entry, line));
    }

    /// Lines dropped because the output was too slow.
    pub fn dropped(&self) -> u64 {
        self.running().map_or(0, node_rt::AccessLog::dropped)
    }

    /// Waits until everything is written, or `within` is over. Blocks.
    pub fn flush(&self, within: Duration) -> bool {
        self.running().is_none_or(|w| w.flush(within))
    }

    fn running(&self) -> Option<&node_rt::AccessLog> {
        self.0.as_ref()?.writer.get()?.as_ref()
    }
}

impl Inner {
    fn writer(&self) -> Option<&node_rt::AccessLog> {
        let start = || {
            let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).take()?;
            let started = node_rt::AccessLog::new(output, WAITING);
            started.inspect_err(|error| tracing::error!(%error, "no thread for the access log")).ok()
        };
        self.writer.get_or_init(start).as_ref()
    }
}

#[cfg(test)]
mod tests;
