//! What happened at the edges of the data path, where no request or connection of its own could tell of it.

use prometheus::{IntCounter, Registry};

/// Counters of all workers together.
#[derive(Debug, Clone)]
pub struct EdgeCounters {
    /// Connections that were closed at once: the worker serves as many as it may.
    pub refused_connections: IntCounter,
    /// Connections that would have come back to this proxy.
    pub loops: IntCounter,
    /// Requests that could be read in two ways, or not at all.
    pub bad_requests: IntCounter,
    /// Copies of requests that were not sent: too large, or too many.
    pub mirrors_skipped: IntCounter,
    /// Further tries of requests.
    pub retries: IntCounter,
    /// Retries that a rule wanted and the budget did not allow.
    pub retries_denied: IntCounter,
}

impl EdgeCounters {
    /// Registers the counters.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        Ok(Self {
            refused_connections: counter(
                "mesh_outbound_refused_connections_total",
                "Connections closed at once because the worker serves as many as it may.",
            )?,
            loops: counter(
                "mesh_outbound_loops_total",
                "Connections that would have come back to this proxy.",
            )?,
            bad_requests: counter(
                "mesh_outbound_bad_requests_total",
                "Requests that could be read in two ways, or not at all.",
            )?,
            mirrors_skipped: counter(
                "mesh_outbound_mirrors_skipped_total",
                "Copies of requests that were not sent: too large, or too many.",
            )?,
            retries: counter("mesh_outbound_retries_total", "Further tries of requests.")?,
            retries_denied: counter(
                "mesh_outbound_retries_denied_total",
                "Retries that a rule wanted and the budget or a limit did not allow.",
            )?,
        })
    }
}
