//! Limits on connections and requests, and what a connection to an endpoint begins with.

use std::time::Duration;

use mesh_api::model;

use super::millis;

/// Limits on connections and requests. None = no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// How long a connection attempt may take.
    pub connect_timeout: Duration,
    /// Open connections to the cluster.
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection.
    pub max_pending_requests: Option<u32>,
    /// Requests in flight.
    pub max_requests: Option<u32>,
    /// Requests that one connection serves.
    pub max_requests_per_connection: Option<u32>,
    /// Retries in flight.
    pub max_retries: Option<u32>,
    /// After which idle time a pooled connection is closed.
    pub http_idle_timeout: Duration,
    /// After which idle time a proxied TCP connection is closed. Zero = never.
    pub tcp_idle_timeout: Duration,
    /// How long a connection lives.
    pub max_connection_duration: Option<Duration>,
    /// Keep-alive probes of the system.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Which HTTP the endpoint is spoken to in.
    pub h2_upgrade: H2Upgrade,
    /// Streams of one HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// Pings on HTTP/2 connections.
    pub h2_keepalive: Option<H2Keepalive>,
}

/// Which HTTP an endpoint is spoken to in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum H2Upgrade {
    /// What the port says; the client's where it says nothing.
    #[default]
    ByPort,
    /// HTTP/2, whatever the client speaks.
    Upgrade,
    /// What the client speaks, whatever the port says.
    Client,
}

/// Keep-alive probes; none = the system's own setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// Probes without answer after which a connection is dead.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Time between two.
    pub interval: Option<Duration>,
}

/// Pings on HTTP/2 connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct H2Keepalive {
    /// How often.
    pub interval: Duration,
    /// How long the answer may take.
    pub timeout: Duration,
}

/// A header before the first byte that says who the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

/// An HTTP proxy that connections go through: the endpoint is the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectTunnel {
    /// `CONNECT` or `POST`
    pub method: Box<str>,
    /// `host:port` behind the proxy.
    pub target: Box<str>,
}

/// Bounds retries of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBudgetPolicy {
    /// Retries for 100 requests.
    pub percent: u32,
    /// Retries that are always allowed in the interval.
    pub minimum: u32,
    /// Over how much time requests are counted.
    pub interval: Duration,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            max_connections: None,
            max_pending_requests: None,
            max_requests: None,
            max_requests_per_connection: None,
            max_retries: None,
            http_idle_timeout: Duration::from_secs(3600),
            tcp_idle_timeout: Duration::from_secs(3600),
            max_connection_duration: None,
            tcp_keepalive: None,
            h2_upgrade: H2Upgrade::ByPort,
            max_concurrent_streams: None,
            h2_keepalive: None,
        }
    }
}

impl Pool {
    pub(super) fn compile(m: &model::ConnectionPool) -> Self {
        use model::connection_pool::H2Upgrade as Wanted;
        let limit = |n: u32| (n > 0).then_some(n);
        let some = |m: Option<&model::Millis>| millis(m).filter(|d| !d.is_zero());
        let default = Self::default();
        let tcp_idle = millis(m.tcp_idle_timeout.as_ref());
        Self {
            connect_timeout: millis(m.connect_timeout.as_ref()).unwrap_or(default.connect_timeout),
            max_connections: limit(m.max_connections),
            max_pending_requests: limit(m.max_pending_requests),
            max_requests: limit(m.max_requests),
            max_requests_per_connection: limit(m.max_requests_per_connection),
            max_retries: limit(m.max_retries),
            http_idle_timeout: millis(m.http_idle_timeout.as_ref())
                .or(tcp_idle.filter(|t| !t.is_zero()))
                .unwrap_or(default.http_idle_timeout),
            tcp_idle_timeout: tcp_idle.unwrap_or(default.tcp_idle_timeout),
            max_connection_duration: some(m.max_connection_duration.as_ref()),
            tcp_keepalive: m.tcp_keepalive.as_ref().map(TcpKeepalive::compile),
            h2_upgrade: match m.h2_upgrade() {
                Wanted::Upgrade => H2Upgrade::Upgrade,
                _ if m.use_client_protocol => H2Upgrade::Client,
                Wanted::Unspecified | Wanted::DoNotUpgrade => H2Upgrade::ByPort,
            },
            max_concurrent_streams: limit(m.max_concurrent_streams),
            h2_keepalive: m.http2_keepalive.as_ref().and_then(|k| {
                Some(H2Keepalive {
                    interval: some(k.interval.as_ref())?,
                    timeout: some(k.timeout.as_ref()).unwrap_or(Duration::from_secs(10)),
                })
            }),
        }
    }
}

impl TcpKeepalive {
    pub(super) fn compile(m: &model::TcpKeepalive) -> Self {
        let some = |m: Option<&model::Millis>| millis(m).filter(|d| !d.is_zero());
        let probes = (m.probes > 0).then_some(m.probes);
        Self { probes, time: some(m.time.as_ref()), interval: some(m.interval.as_ref()) }
    }
}

impl ProxyProtocol {
    pub(super) const fn compile(m: model::ProxyProtocol) -> Self {
        if m.version == 2 { Self::V2 } else { Self::V1 }
    }
}

impl ConnectTunnel {
    pub(super) fn compile(m: &model::HttpTunnel) -> Option<Self> {
        let text = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_graphic());
        let method = if m.method.is_empty() { "CONNECT" } else { m.method.as_str() };
        let host = if m.host.contains(':') { format!("[{}]", m.host) } else { m.host.clone() };
        (text(&m.host) && text(method) && u16::try_from(m.port).is_ok_and(|p| p > 0))
            .then(|| Self { method: method.into(), target: format!("{host}:{}", m.port).into() })
    }
}

impl RetryBudgetPolicy {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    pub(super) fn compile(m: &model::RetryBudget) -> Self {
        Self {
            percent: m.percent.clamp(0.0, 100.0) as u32,
            minimum: m.min_concurrency,
            interval: millis(m.interval.as_ref()).filter(|d| !d.is_zero()).unwrap_or(Duration::from_secs(10)),
        }
    }
}
