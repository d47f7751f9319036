//! The tunnel's metrics. Handles are resolved once; the path of a stream only adds to them.

use std::time::Duration;

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::path::Path;

/// From a LAN to a satellite.
const RTT_BUCKETS: [f64; 8] = [0.000_5, 0.002, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0];

#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) streams_out: IntGauge,
    pub(crate) streams_in: IntGauge,
    bytes: IntCounterVec,
    pub(crate) path_changes: IntCounterVec,
    rtt: HistogramVec,
    lost: IntCounterVec,
    upgrades: IntCounterVec,
    opens: IntCounterVec,
    accepted: IntCounter,
    refused: IntCounterVec,
    dials: IntCounterVec,
    connections: IntGaugeVec,
    denied: IntCounterVec,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let streams = IntGaugeVec::new(
            Opts::new("selvage_tunnel_streams", "Tunnel streams that are open"),
            &["direction"],
        )?;
        let bytes = IntCounterVec::new(
            Opts::new("selvage_tunnel_bytes_total", "Bytes carried by tunnel streams, without framing"),
            &["direction", "path"],
        )?;
        let path_changes = IntCounterVec::new(
            Opts::new(
                "selvage_tunnel_path_changes_total",
                "Changes of the path that new streams to a node take",
            ),
            &["from", "to"],
        )?;
        let rtt = HistogramVec::new(
            HistogramOpts::new(
                "selvage_tunnel_rtt_seconds",
                "Round trips measured on connections with nodes",
            )
            .buckets(RTT_BUCKETS.to_vec()),
            &["path"],
        )?;
        let lost = IntCounterVec::new(
            Opts::new(
                "selvage_tunnel_silent_connections_total",
                "Connections given up because nothing answered",
            ),
            &["path"],
        )?;
        let upgrades = IntCounterVec::new(
            Opts::new(
                "selvage_tunnel_upgrades_total",
                "Attempts to reach a node on a better path, by result",
            ),
            &["result"],
        )?;
        let opens = IntCounterVec::new(
            Opts::new("selvage_tunnel_opens_total", "Streams that this node opened, by result"),
            &["result"],
        )?;
        let accepted = IntCounter::with_opts(Opts::new(
            "selvage_tunnel_accepted_total",
            "Streams that other nodes opened and that were handed to the acceptor",
        ))?;
        let refused = IntCounterVec::new(
            Opts::new(
                "selvage_tunnel_refused_total",
                "Streams of other nodes refused before the acceptor saw them",
            ),
            &["reason"],
        )?;
        let dials = IntCounterVec::new(
            Opts::new("selvage_tunnel_dials_total", "Dials to nodes, by result"),
            &["result"],
        )?;
        let connections = IntGaugeVec::new(
            Opts::new("selvage_tunnel_connections", "Connections with nodes, by path and transport"),
            &["path", "transport"],
        )?;
        let denied = IntCounterVec::new(
            Opts::new("selvage_tunnel_denied_connections_total", "Connections cut, by reason"),
            &["reason"],
        )?;
        registry.register(Box::new(streams.clone()))?;
        registry.register(Box::new(bytes.clone()))?;
        registry.register(Box::new(opens.clone()))?;
        registry.register(Box::new(accepted.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        registry.register(Box::new(dials.clone()))?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(denied.clone()))?;
        registry.register(Box::new(path_changes.clone()))?;
        registry.register(Box::new(rtt.clone()))?;
        registry.register(Box::new(lost.clone()))?;
        registry.register(Box::new(upgrades.clone()))?;
        Ok(Self {
            streams_out: streams.with_label_values(&["outbound"]),
            streams_in: streams.with_label_values(&["inbound"]),
            bytes,
            path_changes,
            rtt,
            lost,
            upgrades,
            opens,
            accepted,
            refused,
            dials,
            connections,
            denied,
        })
    }

    pub(crate) fn opened(&self, result: &str) {
        self.opens.with_label_values(&[result]).inc();
    }

    pub(crate) fn accepted(&self) {
        self.accepted.inc();
    }

    pub(crate) fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    pub(crate) fn dialled(&self, result: &str) {
        self.dials.with_label_values(&[result]).inc();
    }

    /// The counter of a direction on one kind of path.
    pub(crate) fn bytes(&self, direction: &str, path: Path) -> IntCounter {
        self.bytes.with_label_values(&[direction, path.kind.as_str()])
    }

    pub(crate) fn measured(&self, path: Path, rtt: Duration) {
        self.rtt.with_label_values(&[path.kind.as_str()]).observe(rtt.as_secs_f64());
    }

    pub(crate) fn lost(&self, path: Path) {
        self.lost.with_label_values(&[path.kind.as_str()]).inc();
    }

    /// Counts a connection that is cut right after its handshake, or before.
    pub(crate) fn denied(&self, reason: &str) {
        self.denied.with_label_values(&[reason]).inc();
    }

    pub(crate) fn upgraded(&self, result: &str) {
        self.upgrades.with_label_values(&[result]).inc();
    }

    pub(crate) fn connections(&self, path: Path) -> IntGauge {
        self.connections.with_label_values(&[path.kind.as_str(), path.transport.as_str()])
    }
}
