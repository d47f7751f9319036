//! What the controller counts. Handles are resolved once.

use mesh_api::{ResourceType, xds::DeltaDiscoveryResponse};
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector,
};

/// All metrics of the controller.
pub(crate) struct Metrics {
    pub(crate) connected: IntGauge,
    pub(crate) pushes: IntCounterVec,
    pub(crate) pushed_resources: IntCounterVec,
    pub(crate) acks: IntCounterVec,
    pub(crate) nacks: IntCounterVec,
    pub(crate) stale_answers: IntCounter,
    pub(crate) identity_mismatches: IntCounter,
    pub(crate) joins: IntCounterVec,
    pub(crate) enrolments: IntCounterVec,
    pub(crate) left: IntCounterVec,
    pub(crate) copies: IntCounter,
    pub(crate) nodes: IntGauge,
    pub(crate) leader: IntGauge,
    pub(crate) certificate_expires: IntGauge,
    pub(crate) ca_expires: IntGauge,
    pub(crate) failed_handshakes: IntCounter,
    pub(crate) refused_connections: IntCounter,
    pub(crate) compiled: IntCounterVec,
    pub(crate) compile_seconds: Histogram,
    pub(crate) objects: IntGaugeVec,
    pub(crate) resources: IntGaugeVec,
    pub(crate) findings: IntGaugeVec,
    pub(crate) source_healthy: IntGauge,
    pub(crate) source_errors: IntCounter,
    pub(crate) generation: IntGauge,
    pub(crate) missed_changes: IntCounter,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let r = Registrar(registry);
        Ok(Self {
            connected: r.gauge("connected_proxies", "Proxies with an open stream.")?,
            pushes: r.counters("pushes_total", "Responses sent to proxies.", "type")?,
            pushed_resources: r.counters("pushed_resources_total", "Resources sent to proxies.", "type")?,
            acks: r.counters("acks_total", "Responses that proxies took.", "type")?,
            nacks: r.counters("nacks_total", "Responses that proxies refused, at least in part.", "type")?,
            stale_answers: r
                .counter("stale_answers_total", "Answers to responses that are not in flight.")?,
            identity_mismatches: r.counter(
                "identity_mismatches_total",
                "Streams that claimed another node than the certificate.",
            )?,
            joins: r.counters("joins_total", "Join requests.", "outcome")?,
            enrolments: r.counters2(
                "enrolments_total",
                "Certificates asked for, by how the node proved itself and what became of it.",
                ["method", "outcome"],
            )?,
            left: r.counters(
                "nodes_left_total",
                "Nodes that were removed: by this controller because the cluster says so, by its operator, or elsewhere.",
                "by",
            )?,
            copies: r.counter(
                "copied_nodes_total",
                "Nodes refused because another machine with the same key was connected.",
            )?,
            nodes: r.gauge("registered_nodes", "Nodes that have joined.")?,
            leader: r.gauge("leader", "1 when this replica cleans up the node registry.")?,
            certificate_expires: r.gauge(
                "certificate_expires_seconds",
                "End of the controller's certificate, seconds since 1970.",
            )?,
            ca_expires: r.gauge("ca_expires_seconds", "End of the CA's certificate, seconds since 1970.")?,
            failed_handshakes: r.counter("failed_handshakes_total", "TLS handshakes that failed.")?,
            refused_connections: r.counter("refused_connections_total", "Connections beyond the limit.")?,
            compiled: r.counters("compiled_resources_total", "Resources compiled.", "type")?,
            compile_seconds: r
                .histogram("compile_seconds", "Time to apply and compile one batch of changes.")?,
            objects: r.gauges("objects", "Objects held, by kind.", "kind")?,
            resources: r.gauges("resources", "Compiled resources, by type.", "type")?,
            findings: r.gauges("findings", "What is wrong with objects and files.", "level")?,
            source_healthy: r.gauge("source_healthy", "1 when the source of objects works.")?,
            source_errors: r.counter("source_errors_total", "Errors of the source of objects.")?,
            missed_changes: r.counter(
                "missed_changes_total",
                "Differences that only the periodic full compile found; 0 is right.",
            )?,
            generation: r.gauge("generation", "Publications since the start.")?,
        })
    }

    pub(crate) fn pushed(&self, kind: ResourceType, response: &DeltaDiscoveryResponse) {
        self.pushes.with_label_values(&[kind.as_str()]).inc();
        let resources = response.resources.len() + response.removed_resources.len();
        self.pushed_resources.with_label_values(&[kind.as_str()]).inc_by(resources as u64);
    }
}

struct Registrar<'a>(&'a Registry);

impl Registrar<'_> {
    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, prometheus::Error> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn opts(name: &str, help: &str) -> Opts {
        Opts::new(format!("selvage_controller_{name}"), help)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.add(IntGauge::with_opts(Self::opts(name, help))?)
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> Result<IntGaugeVec, prometheus::Error> {
        self.add(IntGaugeVec::new(Self::opts(name, help), &[label])?)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.add(IntCounter::with_opts(Self::opts(name, help))?)
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> Result<IntCounterVec, prometheus::Error> {
        self.add(IntCounterVec::new(Self::opts(name, help), &[label])?)
    }

    fn counters2(
        &self,
        name: &str,
        help: &str,
        labels: [&str; 2],
    ) -> Result<IntCounterVec, prometheus::Error> {
        self.add(IntCounterVec::new(Self::opts(name, help), &labels)?)
    }

    fn histogram(&self, name: &str, help: &str) -> Result<Histogram, prometheus::Error> {
        let buckets = vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
        let opts = HistogramOpts::new(format!("selvage_controller_{name}"), help).buckets(buckets);
        self.add(Histogram::with_opts(opts)?)
    }
}
