//! Distributed traces: a span for each hop of a sampled request, sent to a collector over OTLP.
//!
//! ```text
//! caller's node: client span ──traceparent──► owner's node: server span ──traceparent──► pod
//!                     └──────────── queue (bounded) ─► exporter ─► collector ────────────┘
//! ```
//! - [`context`]: the headers of W3C and B3.
//! - `open`: a client span while its request is under way.
//! - `telemetry::tap`: server spans, seen in the bytes that come through the tunnel.
//! - `beside`: server spans of calls within a node.
//! - `queue`, `otlp`, `export`, `connect`: on the way to the collector.
//!
//! Without a collector none of it runs. With one, a request that is not sampled costs the look at its headers and one
//! random number. Nothing here waits: what the queue cannot hold is dropped, the oldest first, and counted.

mod beside;
mod config;
mod connect;
pub mod context;
mod export;
mod open;
mod otlp;
mod queue;
mod span;
mod tags;

use std::sync::Arc;

pub(crate) use beside::{Beside, Callee};
pub use config::{Propagation, Protocol, TracingConfig};
pub(crate) use export::{Exporter, Through};
pub(crate) use open::OpenSpan;
pub(crate) use open::TagNeeds;
pub(crate) use open::new_span;
use queue::Queue;
pub use queue::TraceCounters;
pub(crate) use span::Reporter;
pub(in crate::telemetry) use span::ServerCall;
#[cfg(test)]
pub(in crate::telemetry) use span::Span;
pub(crate) use tags::Tag;

/// The trace that a call belongs to, and the span in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TraceIds {
    /// The trace.
    pub trace: u128,
    /// The span.
    pub span: u64,
}

/// What all workers share; there is none without a collector.
#[derive(Debug)]
pub struct Tracer {
    config: TracingConfig,
    queue: Arc<Queue>,
}

impl Tracer {
    /// A tracer whose spans wait for an exporter; none if no collector is set.
    pub fn new(
        config: &TracingConfig,
        registry: &prometheus::Registry,
    ) -> Result<Option<Arc<Self>>, prometheus::Error> {
        if config.endpoint.is_empty() {
            return Ok(None);
        }
        let queue = Arc::new(Queue::new(config.buffer, TraceCounters::new(registry)?));
        Ok(Some(Arc::new(Self { config: config.clone(), queue })))
    }

    /// The settings.
    pub const fn config(&self) -> &TracingConfig {
        &self.config
    }

    /// The spans that wait.
    pub(crate) const fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }
}

#[cfg(test)]
mod tests;
