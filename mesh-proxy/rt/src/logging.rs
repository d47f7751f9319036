//! The program log: text or JSON on standard error, its filter changeable while running.

mod levels;
mod page;

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why the log could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter has the form `info` or `info,mesh_tunnel=debug`.
    #[error("log filter {filter:?} does not parse: {reason}")]
    Filter {
        /// As given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Only one subscriber can be installed in a process.
    #[error("a log subscriber is installed already")]
    Installed,
    /// A level by another name.
    #[error("{0:?} is no level; levels are off, error, warn, info, debug, trace")]
    Level(String),
    /// A target has the form `mesh_proxy::dns`.
    #[error("{0:?} is no target, such as mesh_proxy::dns")]
    Target(String),
    /// A time has the form `30s`, `10m` or `1h`.
    #[error("{0:?} is no time between 1s and 24h, such as 30s, 10m or 1h")]
    Time(String),
    /// A parameter that the page does not know.
    #[error("{0:?} is no parameter; level, target, paths, for, reset, or TARGET=LEVEL")]
    Parameter(String),
    /// The subscriber is gone, which only happens at exit.
    #[error("the log subscriber is gone")]
    Gone,
}

/// Changes the filter at run time. Cheap to clone.
#[derive(Clone)]
pub struct LogControl {
    handle: reload::Handle<EnvFilter, Registry>,
    state: Arc<Mutex<State>>,
}

/// The log of this process, once there is one.
static INSTALLED: OnceLock<LogControl> = OnceLock::new();

struct State {
    current: String,
    /// What the process started with.
    configured: String,
    /// Counts changes, so that a reset does not undo a later one.
    changes: u64,
}

impl LogControl {
    /// The log of this process, if one was set up.
    pub fn installed() -> Option<Self> {
        INSTALLED.get().cloned()
    }

    /// Replaces the filter, for example `info,mesh_proxy::dns=trace`.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        self.change(filter).map(drop)
    }

    fn change(&self, filter: &str) -> Result<u64, LogError> {
        let parsed = parse(filter)?;
        let mut state = self.lock();
        self.handle.reload(parsed).map_err(|_| LogError::Gone)?;
        filter.clone_into(&mut state.current);
        state.changes += 1;
        Ok(state.changes)
    }

    /// Back to what the process started with.
    pub fn reset(&self) -> Result<(), LogError> {
        let configured = self.lock().configured.clone();
        self.set(&configured)
    }

    /// The filter in force.
    pub fn current(&self) -> String {
        self.lock().current.clone()
    }

    /// Whether no change has come after this one.
    fn is_last(&self, change: u64) -> bool {
        self.lock().changes == change
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Installs the process-wide subscriber, and a panic hook that writes panics to the log.
pub fn init_logging(format: LogFormat, filter: &str) -> Result<LogControl, LogError> {
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(layer);
    match format {
        LogFormat::Text => {
            // Colours are for people at a terminal, not for files and collectors.
            let lines = fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
            registry.with(lines).try_init()
        }
        LogFormat::Json => {
            let lines = fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
            registry.with(lines).try_init()
        }
    }
    .map_err(|_| LogError::Installed)?;
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or_else(String::new, ToString::to_string);
        let text = info.payload_as_str().unwrap_or("(no text)");
        tracing::error!(place, text, "panic");
    }));
    let state = State { current: filter.to_owned(), configured: filter.to_owned(), changes: 0 };
    let control = LogControl { handle, state: Arc::new(Mutex::new(state)) };
    Ok(INSTALLED.get_or_init(|| control).clone())
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|error| LogError::Filter { filter: filter.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_changes_at_run_time_and_a_bad_one_changes_nothing() {
        let control = init_logging(LogFormat::Json, "warn").unwrap();
        assert!(!tracing::enabled!(target: "node_rt_test", tracing::Level::DEBUG));
        control.set("warn,node_rt_test=debug").unwrap();
        assert!(tracing::enabled!(target: "node_rt_test", tracing::Level::DEBUG));
        assert!(matches!(control.set("a=b=c"), Err(LogError::Filter { .. })));
        assert_eq!(control.current(), "warn,node_rt_test=debug");
        page::tests::pages_change_levels(&control);
        assert!(matches!(init_logging(LogFormat::Text, "info"), Err(LogError::Installed)));
    }
}
