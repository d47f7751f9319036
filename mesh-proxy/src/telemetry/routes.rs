//! Requests by the name that a rule's match gives them (`statPrefix`): what Envoy counts for each route. The number of
//! names is bounded; what comes after that is counted under one name together.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

/// Most names.
const MOST: usize = 256;
/// The name of what found no room.
const OVERFLOW: &str = "overflow";

/// Counters of all workers together.
#[derive(Debug)]
pub struct RouteCounters {
    requests: IntCounterVec,
    duration: HistogramVec,
    names: RwLock<HashSet<Arc<str>>>,
}

impl RouteCounters {
    pub(super) fn new(registry: &Registry, buckets: &[f64]) -> Result<Self, prometheus::Error> {
        let requests = IntCounterVec::new(
            Opts::new(
                "selvage_route_requests_total",
                "Requests that a match with a statPrefix took, by that and by the class of the answer's status.",
            ),
            &["stat_prefix", "response_code_class"],
        )?;
        let duration = HistogramVec::new(
            HistogramOpts::new(
                "selvage_route_request_duration_milliseconds",
                "Duration of requests that a match with a statPrefix took.",
            )
            .buckets(buckets.to_vec()),
            &["stat_prefix"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(duration.clone()))?;
        Ok(Self { requests, duration, names: RwLock::default() })
    }

    /// Counts a request that ended; status 0: its client left before there was one.
    pub(crate) fn ended(&self, name: &Arc<str>, status: u16, elapsed: Duration) {
        let name = if self.admits(name) { name } else { OVERFLOW };
        self.requests.with_label_values(&[name, class(status)]).inc();
        self.duration.with_label_values(&[name]).observe(elapsed.as_secs_f64() * 1000.0);
    }

    fn admits(&self, name: &Arc<str>) -> bool {
        if self.names.read().unwrap_or_else(PoisonError::into_inner).contains(name) {
            return true;
        }
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let room = names.len() < MOST || names.contains(name);
        if room {
            names.insert(Arc::clone(name));
        }
        room
    }
}

const fn class(status: u16) -> &'static str {
    match status / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        5 => "5xx",
        _ => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded() {
        let counters = RouteCounters::new(&Registry::new(), &[1.0]).unwrap();
        for i in 0..MOST + 5 {
            counters.ended(&format!("n{i}").into(), 200, Duration::from_millis(2));
        }
        counters.ended(&"n0".into(), 503, Duration::ZERO);
        counters.ended(&"n0".into(), 0, Duration::ZERO);
        let count = |name: &str, class: &str| counters.requests.with_label_values(&[name, class]).get();
        assert_eq!([count("n0", "2xx"), count("n0", "5xx"), count("n0", "none")], [1, 1, 1]);
        assert_eq!(count(OVERFLOW, "2xx"), 5);
        assert_eq!(counters.duration.with_label_values(&["n0"]).get_sample_count(), 3);
    }
}
