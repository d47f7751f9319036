//! Counters of relays, reservations and punches.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::mapping::Open;

#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) relay_reservations: IntGauge,
    pub(crate) relay_circuits: IntGauge,
    pub(crate) relay_circuits_total: IntCounter,
    pub(crate) relay_bytes: IntCounter,
    relay_refused: IntCounterVec,
    pub(crate) reservations: IntGauge,
    reservation_ends: IntCounterVec,
    punches: IntCounterVec,
    discovered: IntCounterVec,
    autonat: IntCounterVec,
    opened: IntGaugeVec,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let vec = |name: &str, help: &str, label: &str| IntCounterVec::new(Opts::new(name, help), &[label]);
        let metrics = Self {
            relay_reservations: IntGauge::new(
                "selvage_relay_reservations",
                "Nodes that are reached through this relay",
            )?,
            relay_circuits: IntGauge::new(
                "selvage_relay_circuits",
                "Circuits that are open through this relay",
            )?,
            relay_circuits_total: IntCounter::new(
                "selvage_relay_circuits_total",
                "Circuits through this relay",
            )?,
            relay_bytes: IntCounter::new("selvage_relay_bytes_total", "Bytes copied by this relay")?,
            relay_refused: vec("selvage_relay_refused_total", "Requests that this relay refused", "reason")?,
            reservations: IntGauge::new(
                "selvage_nat_reservations",
                "Relays through which this node is reached",
            )?,
            reservation_ends: vec(
                "selvage_nat_reservations_total",
                "Reservations of this node, by what became of them",
                "result",
            )?,
            punches: vec("selvage_nat_punches_total", "Hole punches, by outcome", "outcome")?,
            discovered: vec(
                "selvage_nat_discovered_total",
                "Addresses of peers found without the registry, by source",
                "source",
            )?,
            autonat: vec(
                "selvage_nat_autonat_total",
                "Checks by other nodes whether this one is reached from outside, by result",
                "result",
            )?,
            opened: IntGaugeVec::new(
                Opts::new("selvage_nat_opened_ports", "Ports that routers have opened for this node"),
                &["family"],
            )?,
        };
        registry.register(Box::new(metrics.relay_reservations.clone()))?;
        registry.register(Box::new(metrics.relay_circuits.clone()))?;
        registry.register(Box::new(metrics.relay_circuits_total.clone()))?;
        registry.register(Box::new(metrics.relay_bytes.clone()))?;
        registry.register(Box::new(metrics.relay_refused.clone()))?;
        registry.register(Box::new(metrics.reservations.clone()))?;
        registry.register(Box::new(metrics.reservation_ends.clone()))?;
        registry.register(Box::new(metrics.punches.clone()))?;
        registry.register(Box::new(metrics.discovered.clone()))?;
        registry.register(Box::new(metrics.autonat.clone()))?;
        registry.register(Box::new(metrics.opened.clone()))?;
        Ok(metrics)
    }

    pub(crate) fn relay_refused(&self, reason: &str) {
        self.relay_refused.with_label_values(&[reason]).inc();
    }

    #[cfg(test)]
    pub(crate) fn relay_refusals(&self, reason: &str) -> u64 {
        self.relay_refused.with_label_values(&[reason]).get()
    }

    pub(crate) fn reservation(&self, result: &str) {
        self.reservation_ends.with_label_values(&[result]).inc();
    }

    pub(crate) fn punch(&self, outcome: &str) {
        self.punches.with_label_values(&[outcome]).inc();
    }

    /// What routers have open, by the family of the address.
    pub(crate) fn opened(&self, open: &Open) {
        let six = open.iter().filter(|(_, at)| at.is_ipv6()).count();
        for (family, count) in [("ipv4", open.len() - six), ("ipv6", six)] {
            self.opened.with_label_values(&[family]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn autonat(&self, result: &str) {
        self.autonat.with_label_values(&[result]).inc();
    }

    pub(crate) fn discovered(&self, source: &str) {
        self.discovered.with_label_values(&[source]).inc();
    }
}
