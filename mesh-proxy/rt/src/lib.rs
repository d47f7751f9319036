//! What every program needs: tasks, drain, readiness, configuration, admin server, logs.
//!
//! A program's main reads like this: install the crypto provider, load the configuration, start
//! logging, make a [`Drain`] and [`Tasks`], start the parts, then `drain.run(...)` until the end.

mod access_log;
mod admin;
mod config;
mod crypto;
mod drain;
mod exposition;
mod limits;
mod logging;
mod readiness;
mod secret;
mod signals;
mod tasks;
mod workers;

pub use access_log::AccessLog;
pub use admin::{AdminLimits, AdminRequest, AdminResponse, AdminServer, json_response, text_response};
pub use config::{ConfigErrors, ConfigProblem, Layers, Origin, Validate, load, load_from};
pub use crypto::install_crypto_provider;
pub use drain::{Drain, DrainConfig, DrainGuard, DrainReport, Reason, Stage};
pub use exposition::{Exposed, Place, exposition, head, labels, series};
pub use limits::raise_descriptor_limit;
pub use logging::{LogControl, LogError, LogFormat, init_logging};
pub use readiness::{Readiness, ReadyGuard};
pub use secret::Secret;
pub use signals::handle_signals;
pub use tasks::{Tasks, TasksStats};
pub use workers::{Workers, start_workers};
