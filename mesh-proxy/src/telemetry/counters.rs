//! What happened at the edges of the data path, where no request or connection of its own could tell of it.

use prometheus::{IntCounter, IntGauge, Registry};

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
    /// Connections that were lost while they were accepted.
    pub accept_errors: IntCounter,
    /// Times that accepting paused: out of descriptors or memory.
    pub accept_pauses: IntCounter,
    /// Access log lines that were dropped because the output was too slow.
    pub log_lines_dropped: IntGauge,
    /// Further tries of requests.
    pub retries: IntCounter,
    /// Retries that a rule wanted and the budget did not allow.
    pub retries_denied: IntCounter,
    /// Scrapes that were cut off: the scraper was too slow.
    pub scrapes_cut: IntCounter,
}

impl EdgeCounters {
    /// Registers the counters.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let log_lines_dropped = IntGauge::new(
            "selvage_access_log_lines_dropped",
            "Access log lines that were dropped because the output was too slow.",
        )?;
        registry.register(Box::new(log_lines_dropped.clone()))?;
        Ok(Self {
            log_lines_dropped,
            accept_errors: counter(
                "selvage_outbound_accept_errors_total",
                "Connections that were lost while they were accepted.",
            )?,
            accept_pauses: counter(
                "selvage_outbound_accept_pauses_total",
                "Times that accepting paused: out of descriptors or memory.",
            )?,
            refused_connections: counter(
                "selvage_outbound_refused_connections_total",
                "Connections closed at once because the worker serves as many as it may.",
            )?,
            loops: counter(
                "selvage_outbound_loops_total",
                "Connections that would have come back to this proxy.",
            )?,
            bad_requests: counter(
                "selvage_outbound_bad_requests_total",
                "Requests that could be read in two ways, or not at all.",
            )?,
            mirrors_skipped: counter(
                "selvage_outbound_mirrors_skipped_total",
                "Copies of requests that were not sent: too large, or too many.",
            )?,
            retries: counter("selvage_outbound_retries_total", "Further tries of requests.")?,
            retries_denied: counter(
                "selvage_outbound_retries_denied_total",
                "Retries that a rule wanted and the budget or a limit did not allow.",
            )?,
            scrapes_cut: counter(
                "selvage_telemetry_scrapes_cut_total",
                "Scrapes that were cut off because the scraper was too slow.",
            )?,
        })
    }
}
