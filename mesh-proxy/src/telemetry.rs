//! What the data plane says about the traffic it carries: Istio's standard metrics and the access log.
//!
//! - [`flags`]: Envoy's response flags as a set.
//! - [`peer`]: the labels of one side of a call.
//! - [`istio`]: the metric families; series are resolved once and then only counted.
//! - [`counters`]: what happened that no request tells of.
//! - [`local`]: a worker's cache of resolved series, so that a request formats no label.
//! - [`routes`]: requests by the names that rules give them.
//! - `rules`: what Telemetry resources change about metrics, the log and traces.
//! - [`access_log`]: one line a call, text or JSON, written by a thread of its own that may drop lines.
//! - `tap`: what the endpoint's node reads of HTTP that goes by.
//! - [`trace`]: spans of sampled requests, sent to a collector.

pub mod access_log;
pub mod counters;
pub mod flags;
pub mod istio;
pub(crate) mod local;
pub mod peer;
pub mod routes;
pub(crate) mod rules;
pub(crate) mod tap;
pub mod trace;

pub use access_log::{AccessLog, AccessLogConfig};
pub use flags::Flags;
pub use istio::{
    Call, Reporter, RequestProtocol, RequestSeries, Security, TcpSeries, Telemetry, TelemetryConfig,
};
pub use peer::{Destination, Peer};
pub use trace::{Tracer, TracingConfig};
