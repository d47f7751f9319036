//! Datagrams to services.
//!
//! ```text
//! app ─► VIP:port ─(nftables tproxy)─► capture listener ─► session of (client, VIP:port) ─► endpoint: direct socket, or
//!                                                          bounded queue each             tunnel stream of the owner
//! app ◄─ from VIP:port ◄─ socket at VIP:port ◄───────────────┘                              (u16 length + payload)
//! ```
//!
//! - [`table`]: which sessions there are and which one ends next. Pure.
//! - [`frame`]: datagrams on a byte stream.
//! - [`plane`]: a worker's part: listener, table, queues.
//! - [`session`]: the path of one session.
//! - [`owner`]: the other end of a tunnel stream, at the node that owns the endpoint.
//! - [`counts`]: what is counted.
//!
//! One tunnel stream for each session: a stream costs a fraction of a millisecond and has its own flow control, so that
//! no session waits for another, and the owner checks each session as it checks a connection. Sessions that are one
//! question and one answer end soon after the answer.

pub(crate) mod counts;
pub(crate) mod frame;
pub(crate) mod owner;
mod plane;
mod session;
mod table;

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::shared::Updates;

pub(crate) use counts::Counts;
pub(crate) use plane::serve;

/// Bounds of UDP sessions; every field has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct UdpConfig {
    /// A session in which nothing moves ends after so many seconds (default 60).
    #[serde(alias = "idle_seconds")]
    pub idle_seconds: u64,
    /// A session to port 53 ends so many milliseconds after all its questions are answered (default 1000).
    #[serde(alias = "answered_ms")]
    pub answered_ms: u64,
    /// Most sessions of each worker (default 8192). A new one takes the place of the one that has been idle longest; if
    /// all are in use it is refused.
    pub sessions: usize,
    /// Datagrams that wait in a session for its endpoint (default 64). Newer ones are dropped.
    pub queue: usize,
    /// Bytes that wait in all sessions of a worker (default 16 MiB). Newer datagrams are dropped.
    #[serde(alias = "queue_bytes")]
    pub queue_bytes: usize,
}

impl Default for UdpConfig {
    fn default() -> Self {
        Self { idle_seconds: 60, answered_ms: 1000, sessions: 8192, queue: 64, queue_bytes: 16 << 20 }
    }
}

impl UdpConfig {
    /// What is wrong with the settings: field and reason.
    pub fn validate(&self) -> Vec<(&'static str, String)> {
        let mut wrong = Vec::new();
        let mut positive = |field, value: usize| {
            if value == 0 {
                wrong.push((field, "is 0: no datagram would pass".to_owned()));
            }
        };
        positive("idleSeconds", usize::try_from(self.idle_seconds).unwrap_or(usize::MAX));
        positive("sessions", self.sessions);
        positive("queue", self.queue);
        if self.queue_bytes < mesh_net::udp::MAX_DATAGRAM {
            wrong.push(("queueBytes", "is less than one datagram of 65507 bytes".to_owned()));
        }
        wrong
    }

    fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_seconds)
    }

    fn answered(&self) -> Duration {
        Duration::from_millis(self.answered_ms)
    }
}

/// What all workers share.
#[derive(Debug, Clone)]
pub struct Udp {
    /// Bounds.
    pub(crate) config: UdpConfig,
    /// Counters of the process.
    pub(crate) counts: Arc<Counts>,
    /// Changes of the captured addresses; none in tests without tables.
    pub updates: Option<watch::Receiver<Updates>>,
}

impl Udp {
    /// Registers the counters.
    pub fn new(config: UdpConfig, registry: &prometheus::Registry) -> Result<Self, prometheus::Error> {
        Ok(Self { config, counts: Arc::new(Counts::new(registry)?), updates: None })
    }
}

#[cfg(test)]
mod tests;
