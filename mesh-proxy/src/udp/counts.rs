//! What is counted of datagrams.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Why a datagram was not passed on. Each is a label value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drop {
    /// The session's queue is full.
    QueueFull,
    /// All queues together hold too much.
    Memory,
    /// There is no place for another session.
    TableFull,
    /// No service takes datagrams there.
    NoService,
    /// The service has no endpoint that could be used.
    NoEndpoint,
    /// No endpoint could be reached, or its node refused.
    NotReached,
    /// The answer could not be sent.
    NotAnswered,
    /// The kernel did not say where it was sent to.
    NoDestination,
}

impl Drop {
    const ALL: [Self; 8] = [
        Self::QueueFull,
        Self::Memory,
        Self::TableFull,
        Self::NoService,
        Self::NoEndpoint,
        Self::NotReached,
        Self::NotAnswered,
        Self::NoDestination,
    ];

    /// Label for metrics and logs.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Memory => "memory",
            Self::TableFull => "table_full",
            Self::NoService => "no_service",
            Self::NoEndpoint => "no_endpoint",
            Self::NotReached => "not_reached",
            Self::NotAnswered => "not_answered",
            Self::NoDestination => "no_destination",
        }
    }
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Nothing moved, or all was answered.
    Idle,
    /// It made place for another one.
    Evicted,
    /// The endpoint, or its node, ended it.
    Closed,
    /// There was no way to the endpoint.
    Failed,
    /// This node is shutting down.
    Draining,
}

impl End {
    const ALL: [Self; 5] = [Self::Idle, Self::Evicted, Self::Closed, Self::Failed, Self::Draining];

    /// Label for metrics and logs.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Evicted => "evicted",
            Self::Closed => "closed",
            Self::Failed => "failed",
            Self::Draining => "draining",
        }
    }
}

/// Datagrams and bytes of one direction.
#[derive(Debug, Clone)]
pub(crate) struct Moved {
    datagrams: IntCounter,
    bytes: IntCounter,
}

impl Moved {
    pub(crate) fn add(&self, bytes: usize) {
        self.datagrams.inc();
        self.bytes.inc_by(bytes as u64);
    }
}

/// One side: sessions of clients of this node, or those that other nodes have opened to pods of this node.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    /// Towards the service.
    pub(crate) sent: Moved,
    /// Answers.
    pub(crate) received: Moved,
    pub(crate) opened: IntCounter,
    pub(crate) active: IntGauge,
    closed: [IntCounter; End::ALL.len()],
}

impl Side {
    pub(crate) fn closed(&self, why: End) {
        self.closed[why as usize].inc();
    }
}

/// Counters of the process.
#[derive(Debug)]
pub(crate) struct Counts {
    /// Clients of this node.
    pub(crate) outbound: Side,
    /// Clients of other nodes.
    pub(crate) inbound: Side,
    dropped: [IntCounter; Drop::ALL.len()],
}

impl Counts {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = |name: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let moved = ["side", "direction"];
        let datagrams =
            family("selvage_udp_datagrams_total", "Datagrams of services that were passed on.", &moved)?;
        let bytes = family("selvage_udp_bytes_total", "Payload of these datagrams.", &moved)?;
        let opened = family("selvage_udp_sessions_opened_total", "UDP sessions that began.", &["side"])?;
        let closed =
            family("selvage_udp_sessions_closed_total", "UDP sessions that ended.", &["side", "reason"])?;
        let dropped = family(
            "selvage_udp_dropped_total",
            "Datagrams of services that were not passed on, by reason.",
            &["reason"],
        )?;
        let active =
            IntGaugeVec::new(Opts::new("selvage_udp_sessions", "UDP sessions that there are."), &["side"])?;
        registry.register(Box::new(active.clone()))?;
        let side = |name: &str| {
            let moved = |direction: &str| Moved {
                datagrams: datagrams.with_label_values(&[name, direction]),
                bytes: bytes.with_label_values(&[name, direction]),
            };
            Side {
                sent: moved("sent"),
                received: moved("received"),
                opened: opened.with_label_values(&[name]),
                active: active.with_label_values(&[name]),
                closed: End::ALL.map(|end| closed.with_label_values(&[name, end.as_str()])),
            }
        };
        Ok(Self {
            outbound: side("outbound"),
            inbound: side("inbound"),
            dropped: Drop::ALL.map(|why| dropped.with_label_values(&[why.as_str()])),
        })
    }

    pub(crate) fn dropped(&self, why: Drop, datagrams: usize) {
        self.dropped[why as usize].inc_by(datagrams as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_place() {
        for (i, why) in Drop::ALL.iter().enumerate() {
            assert_eq!(*why as usize, i, "{}", why.as_str());
        }
        for (i, end) in End::ALL.iter().enumerate() {
            assert_eq!(*end as usize, i, "{}", end.as_str());
        }
    }
}
