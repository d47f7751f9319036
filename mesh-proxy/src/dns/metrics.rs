//! What the DNS server counts. Handles are resolved once.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// How a query ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Mesh,
    MeshNoData,
    MeshNxDomain,
    Forwarded,
    Stale,
    Failed,
    Refused,
    Malformed,
}

impl Outcome {
    const ALL: [Self; 8] = [
        Self::Mesh,
        Self::MeshNoData,
        Self::MeshNxDomain,
        Self::Forwarded,
        Self::Stale,
        Self::Failed,
        Self::Refused,
        Self::Malformed,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::MeshNoData => "mesh_nodata",
            Self::MeshNxDomain => "mesh_nxdomain",
            Self::Forwarded => "forwarded",
            Self::Stale => "stale",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
        }
    }
}

#[derive(Clone)]
pub(crate) struct DnsMetrics {
    queries: [IntCounter; Outcome::ALL.len()],
    pub(crate) cache_hits: IntCounter,
    pub(crate) cache_misses: IntCounter,
    pub(crate) cache_entries: IntGauge,
    pub(crate) upstream_seconds: Histogram,
    pub(crate) upstream_failures: IntCounter,
}

impl DnsMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let queries = IntCounterVec::new(
            Opts::new("selvage_dns_queries_total", "DNS queries by how they ended."),
            &["outcome"],
        )?;
        registry.register(Box::new(queries.clone()))?;
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let cache_entries = IntGauge::new("selvage_dns_cache_entries", "Answers of upstream servers kept.")?;
        registry.register(Box::new(cache_entries.clone()))?;
        let buckets = vec![0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0];
        let upstream_seconds = Histogram::with_opts(
            HistogramOpts::new("selvage_dns_upstream_seconds", "Time that upstream servers took to answer.")
                .buckets(buckets),
        )?;
        registry.register(Box::new(upstream_seconds.clone()))?;
        Ok(Self {
            queries: Outcome::ALL.map(|outcome| queries.with_label_values(&[outcome.as_str()])),
            cache_hits: counter(
                "selvage_dns_cache_hits_total",
                "Forwarded queries answered by a fresh cache entry.",
            )?,
            cache_misses: counter(
                "selvage_dns_cache_misses_total",
                "Forwarded queries that needed an upstream.",
            )?,
            cache_entries,
            upstream_seconds,
            upstream_failures: counter(
                "selvage_dns_upstream_failures_total",
                "Questions that no upstream server answered.",
            )?,
        })
    }

    pub(crate) fn count(&self, outcome: Outcome) {
        self.queries[outcome as usize].inc();
    }
}
