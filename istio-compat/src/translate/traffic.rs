//! The blocks of a traffic policy.

use mesh_api::model::{self, client_tls::Mode, load_balancer::Simple};

use super::policy::length;
use crate::types::{
    ClientTlsSettings, ConnectionPoolSettings, LoadBalancerSettings, OutlierDetection, PortTrafficPolicy,
    SimpleLb, TlsMode, TrafficPolicy,
};

const DEFAULT_CONSECUTIVE_5XX: u32 = 5;
const DEFAULT_MAX_EJECTION_PERCENT: u32 = 10;

/// The policy, and the policies of single ports.
pub(super) fn policy(p: Option<&TrafficPolicy>) -> (Option<model::TrafficPolicy>, Vec<model::PortPolicy>) {
    let Some(p) = p else { return (None, Vec::new()) };
    let whole = model::TrafficPolicy {
        load_balancer: p.load_balancer.as_ref().map(load_balancer),
        connection_pool: p.connection_pool.as_ref().map(connection_pool),
        outlier: p.outlier_detection.as_ref().map(outlier),
        tls: p.tls.as_ref().map(tls),
    };
    (Some(whole), p.port_level_settings.iter().filter_map(port).collect())
}

fn port(p: &PortTrafficPolicy) -> Option<model::PortPolicy> {
    Some(model::PortPolicy {
        port: p.port?.number,
        policy: Some(model::TrafficPolicy {
            load_balancer: p.load_balancer.as_ref().map(load_balancer),
            connection_pool: p.connection_pool.as_ref().map(connection_pool),
            outlier: p.outlier_detection.as_ref().map(outlier),
            tls: p.tls.as_ref().map(tls),
        }),
    })
}

fn load_balancer(l: &LoadBalancerSettings) -> model::LoadBalancer {
    let simple = match l.simple.unwrap_or_default() {
        SimpleLb::Unspecified | SimpleLb::LeastConn | SimpleLb::LeastRequest => Simple::LeastRequest,
        SimpleLb::Random => Simple::Random,
        SimpleLb::Passthrough => Simple::Passthrough,
        SimpleLb::RoundRobin => Simple::RoundRobin,
    };
    model::LoadBalancer { simple: simple.into() }
}

fn connection_pool(c: &ConnectionPoolSettings) -> model::ConnectionPool {
    let limit = |n: i32| u32::try_from(n).unwrap_or(0);
    let mut out = model::ConnectionPool::default();
    if let Some(tcp) = &c.tcp {
        out.connect_timeout = length(tcp.connect_timeout.as_ref());
        out.max_connections = limit(tcp.max_connections);
        // Zero has a meaning here: no limit.
        out.tcp_idle_timeout = tcp
            .idle_timeout
            .as_ref()
            .and_then(|d| u64::try_from(d.nanos().ok()? / 1_000_000).ok())
            .map(|value| model::Millis { value });
    }
    if let Some(http) = &c.http {
        out.max_pending_requests = limit(http.http1_max_pending_requests);
        out.max_requests = limit(http.http2_max_requests);
        out.max_requests_per_connection = limit(http.max_requests_per_connection);
        out.max_retries = limit(http.max_retries);
        out.http_idle_timeout = length(http.idle_timeout.as_ref());
    }
    out
}

fn outlier(o: &OutlierDetection) -> model::OutlierDetection {
    let percent = |n: i32| u32::try_from(n).unwrap_or(0).min(100);
    model::OutlierDetection {
        consecutive_5xx: o.consecutive_5xx_errors.unwrap_or(DEFAULT_CONSECUTIVE_5XX),
        consecutive_gateway: o.consecutive_gateway_errors.unwrap_or(0),
        interval: length(o.interval.as_ref()),
        base_ejection: length(o.base_ejection_time.as_ref()),
        max_ejection_percent: match percent(o.max_ejection_percent) {
            0 => DEFAULT_MAX_EJECTION_PERCENT,
            n => n,
        },
        min_health_percent: percent(o.min_health_percent),
    }
}

fn tls(t: &ClientTlsSettings) -> model::ClientTls {
    let mode = match t.mode.unwrap_or_default() {
        TlsMode::Disable => Mode::Disable,
        TlsMode::Simple => Mode::Simple,
        TlsMode::Mutual => Mode::Mutual,
        TlsMode::IstioMutual => Mode::IstioMutual,
    };
    model::ClientTls { mode: mode.into(), sni: t.sni.clone() }
}
