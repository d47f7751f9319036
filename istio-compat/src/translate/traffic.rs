//! The blocks of a traffic policy.

use mesh_api::model::{self, client_tls::Mode, connection_pool::H2Upgrade, load_balancer::Simple};

use super::{balancing, policy::length};
use crate::types::{
    ClientTlsSettings, ConnectionPoolSettings, H2UpgradePolicy, HttpSettings, LoadBalancerSettings, Meta,
    OutlierDetection, PortTrafficPolicy, ProxyProtocolVersion, SimpleLb, TcpKeepalive, TcpSettings, TlsMode,
    TrafficPolicy,
};

const DEFAULT_CONSECUTIVE_5XX: u32 = 5;
const DEFAULT_CONSECUTIVE_LOCAL_ORIGIN: u32 = 5;
const DEFAULT_MAX_EJECTION_PERCENT: u32 = 10;
const DEFAULT_RETRY_PERCENT: f64 = 20.0;
const DEFAULT_RETRY_CONCURRENCY: u32 = 3;

/// The policy, and the policies of single ports. `meta` is the rule's: names of secrets belong to its namespace.
pub(super) fn policy(
    p: Option<&TrafficPolicy>,
    meta: &Meta,
) -> (Option<model::TrafficPolicy>, Vec<model::PortPolicy>) {
    let Some(p) = p else { return (None, Vec::new()) };
    let whole = model::TrafficPolicy {
        load_balancer: p.load_balancer.as_ref().map(load_balancer),
        connection_pool: p.connection_pool.as_ref().map(connection_pool),
        outlier: p.outlier_detection.as_ref().map(outlier),
        tls: p.tls.as_ref().map(|t| tls(t, meta)),
        proxy_protocol: p.proxy_protocol.as_ref().map(|p| model::ProxyProtocol {
            version: match p.version.unwrap_or_default() {
                ProxyProtocolVersion::V1 => 1,
                ProxyProtocolVersion::V2 => 2,
            },
        }),
        tunnel: p.tunnel.as_ref().map(|t| model::HttpTunnel {
            method: if t.protocol.is_empty() { "CONNECT".to_owned() } else { t.protocol.clone() },
            host: t.target_host.clone(),
            port: t.target_port,
        }),
        retry_budget: p.retry_budget.as_ref().map(|b| model::RetryBudget {
            percent: b.percent.unwrap_or(DEFAULT_RETRY_PERCENT),
            min_concurrency: match b.min_retry_concurrency {
                0 => DEFAULT_RETRY_CONCURRENCY,
                n => n,
            },
            interval: length(b.budget_interval.as_ref()),
        }),
    };
    (Some(whole), p.port_level_settings.iter().filter_map(|p| port(p, meta)).collect())
}

fn port(p: &PortTrafficPolicy, meta: &Meta) -> Option<model::PortPolicy> {
    Some(model::PortPolicy {
        port: p.port?.number,
        policy: Some(model::TrafficPolicy {
            load_balancer: p.load_balancer.as_ref().map(load_balancer),
            connection_pool: p.connection_pool.as_ref().map(connection_pool),
            outlier: p.outlier_detection.as_ref().map(outlier),
            tls: p.tls.as_ref().map(|t| tls(t, meta)),
            ..model::TrafficPolicy::default()
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
    model::LoadBalancer {
        simple: simple.into(),
        consistent_hash: l.consistent_hash.as_ref().map(balancing::consistent_hash),
        locality: balancing::locality(l),
        warmup: balancing::warmup(l),
    }
}

pub(super) fn connection_pool(c: &ConnectionPoolSettings) -> model::ConnectionPool {
    let mut out = model::ConnectionPool::default();
    if let Some(tcp) = &c.tcp {
        tcp_pool(tcp, &mut out);
    }
    if let Some(http) = &c.http {
        http_pool(http, &mut out);
    }
    out
}

fn limit(n: i32) -> u32 {
    u32::try_from(n).unwrap_or(0)
}

fn tcp_pool(tcp: &TcpSettings, out: &mut model::ConnectionPool) {
    out.connect_timeout = length(tcp.connect_timeout.as_ref());
    out.max_connections = limit(tcp.max_connections);
    // Zero has a meaning here: no limit.
    out.tcp_idle_timeout = tcp
        .idle_timeout
        .as_ref()
        .and_then(|d| u64::try_from(d.nanos().ok()? / 1_000_000).ok())
        .map(|value| model::Millis { value });
    out.max_connection_duration = length(tcp.max_connection_duration.as_ref());
    out.tcp_keepalive = tcp.tcp_keepalive.as_ref().map(keepalive);
}

pub(super) fn keepalive(k: &TcpKeepalive) -> model::TcpKeepalive {
    model::TcpKeepalive {
        probes: k.probes,
        time: length(k.time.as_ref()),
        interval: length(k.interval.as_ref()),
    }
}

fn http_pool(http: &HttpSettings, out: &mut model::ConnectionPool) {
    out.max_pending_requests = limit(http.http1_max_pending_requests);
    out.max_requests = limit(http.http2_max_requests);
    out.max_requests_per_connection = limit(http.max_requests_per_connection);
    out.max_retries = limit(http.max_retries);
    out.http_idle_timeout = length(http.idle_timeout.as_ref());
    out.h2_upgrade = match http.h2_upgrade_policy.unwrap_or_default() {
        H2UpgradePolicy::Default => H2Upgrade::Unspecified,
        H2UpgradePolicy::DoNotUpgrade => H2Upgrade::DoNotUpgrade,
        H2UpgradePolicy::Upgrade => H2Upgrade::Upgrade,
    }
    .into();
    out.use_client_protocol = http.use_client_protocol;
    out.max_concurrent_streams = limit(http.max_concurrent_streams);
    out.http2_keepalive = http.http2_keep_alive.as_ref().map(|k| model::Http2Keepalive {
        interval: length(k.interval.as_ref()),
        timeout: length(k.timeout.as_ref()),
    });
}

pub(super) fn outlier(o: &OutlierDetection) -> model::OutlierDetection {
    let percent = |n: i32| u32::try_from(n).unwrap_or(0).min(100);
    let split = o.split_external_local_origin_errors;
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
        split_local_origin: split,
        consecutive_local_origin: if split {
            o.consecutive_local_origin_failures.unwrap_or(DEFAULT_CONSECUTIVE_LOCAL_ORIGIN)
        } else {
            0
        },
        error_codes: o.outlier_detection_http_error_codes.clone(),
    }
}

fn tls(t: &ClientTlsSettings, meta: &Meta) -> model::ClientTls {
    let mode = match t.mode.unwrap_or_default() {
        TlsMode::Disable => Mode::Disable,
        TlsMode::Simple => Mode::Simple,
        TlsMode::Mutual => Mode::Mutual,
        TlsMode::IstioMutual => Mode::IstioMutual,
    };
    model::ClientTls {
        mode: mode.into(),
        sni: t.sni.clone(),
        subject_alt_names: t.subject_alt_names.clone(),
        client_certificate: t.client_certificate.clone(),
        private_key: t.private_key.clone(),
        ca_certificates: t.ca_certificates.clone(),
        ca_crl: t.ca_crl.clone(),
        secret: super::secrets::full_name(&t.credential_name, &meta.namespace),
        insecure_skip_verify: t.insecure_skip_verify == Some(true),
    }
}
