//! Settings of the outbound path.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

/// Settings of the outbound path; every field has a default.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct OutboundConfig {
    /// How long a connection to a port of unknown protocol may stay silent before it is passed on as bytes, in
    /// milliseconds (default 200). Declare the protocol of server-first ports to save the wait.
    pub detect_ms: u64,
    /// How long a client of an HTTP port may stay silent before its first request, in seconds (default 300).
    pub first_byte_s: u64,
    /// After how long without an answer a connection attempt is joined by one to the next endpoint, in milliseconds
    /// (default 250).
    pub stagger_ms: u64,
    /// How often each worker looks for idle connections, forgotten clusters, and clients that began a request and do
    /// not end its head, in seconds (default 15). Such a client is given up at the second look.
    pub sweep_s: u64,
    /// Largest head of a request in bytes (default 65536).
    pub max_head: usize,
    /// Most streams of one HTTP/2 client connection (default 1000).
    pub max_streams: u32,
    /// Most connections that one worker serves at a time (default 20000); more are closed at once and counted.
    pub max_connections: usize,
    /// Namespace of callers that the mesh does not know, which includes clients of the proxy port (default
    /// `default`).
    pub default_namespace: String,
    /// Mark on our own connections, so that capture leaves them alone; none without capture.
    pub mark: Option<u32>,
    /// Ports of this proxy on this host: connections to them would loop.
    pub own_ports: Vec<u16>,
}

impl Default for OutboundConfig {
    fn default() -> Self {
        Self {
            detect_ms: 200,
            first_byte_s: 300,
            stagger_ms: 250,
            sweep_s: 15,
            max_head: 64 << 10,
            max_streams: 1000,
            max_connections: 20_000,
            default_namespace: "default".to_owned(),
            mark: None,
            own_ports: vec![15001, 15006, 15080],
        }
    }
}

impl OutboundConfig {
    /// What is wrong with the settings: field and reason.
    pub fn validate(&self) -> Vec<(&'static str, String)> {
        let mut wrong = Vec::new();
        if self.detect_ms == 0 || self.detect_ms > 60_000 {
            wrong.push(("detect_ms", format!("{} is not between 1 and 60000", self.detect_ms)));
        }
        if self.stagger_ms == 0 {
            wrong.push(("stagger_ms", "0 would try all endpoints at once".to_owned()));
        }
        if self.sweep_s == 0 {
            wrong.push(("sweep_s", "0 would never rest".to_owned()));
        }
        if !(8192..=1 << 20).contains(&self.max_head) {
            wrong.push(("max_head", format!("{} is not between 8192 and 1048576", self.max_head)));
        }
        if self.max_connections == 0 {
            wrong.push(("max_connections", "0 would refuse everything".to_owned()));
        }
        wrong
    }

    pub(crate) const fn detect(&self) -> Duration {
        Duration::from_millis(self.detect_ms)
    }

    pub(crate) const fn first_byte(&self) -> Duration {
        Duration::from_secs(self.first_byte_s)
    }

    pub(crate) const fn sweep(&self) -> Duration {
        Duration::from_secs(self.sweep_s)
    }

    pub(crate) const fn stagger(&self) -> Duration {
        Duration::from_millis(self.stagger_ms)
    }
}

/// Whether the unprivileged proxy may listen there: it asks nobody for a password, so only on loopback.
pub fn check_proxy_address(addr: SocketAddr) -> Result<(), String> {
    if addr.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err(format!("{addr} is not a loopback address, and the proxy port asks nobody who they are"))
}
