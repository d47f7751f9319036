//! DestinationRules.

use super::{Verdict, load_balancer, text};
use crate::types::{
    ClientTlsSettings, ConnectionPoolSettings, DestinationRule, H2UpgradePolicy, HttpSettings,
    OutlierDetection, PortTrafficPolicy, RetryBudget, Subset, TcpSettings, TlsMode, TrafficPolicy,
    TunnelSettings,
};

pub(super) fn check(object: &DestinationRule, out: &mut Verdict) {
    let spec = &object.spec;
    out.check("spec.host", text::wildcard_domain(&spec.host));
    if let Some(policy) = &spec.traffic_policy {
        traffic_policy("spec.trafficPolicy", policy, &object.meta.namespace, out);
    }
    for (i, s) in spec.subsets.iter().enumerate() {
        let path = format!("spec.subsets[{i}]");
        if spec.subsets[..i].iter().any(|other| other.name == s.name) {
            out.error(format!("{path}.name"), format!("{:?} is there twice", s.name));
        }
        subset(&path, s, &object.meta.namespace, out);
    }
    out.export_to(&spec.export_to, &object.meta.namespace, spec.workload_selector.is_some());
    if let Some(selector) = &spec.workload_selector {
        for (key, value) in &selector.match_labels {
            if key.is_empty() || key.contains('*') || value.contains('*') {
                out.error(
                    "spec.workloadSelector.matchLabels",
                    format!("{key:?}: {value:?} is not a label to match"),
                );
            }
        }
        if selector.match_labels.is_empty() {
            out.warn("spec.workloadSelector", "has no labels: it chooses every workload");
        }
    }
}

fn subset(path: &str, s: &Subset, namespace: &str, out: &mut Verdict) {
    out.check(&format!("{path}.name"), text::dns_label(&s.name, "subset name"));
    out.check(&format!("{path}.labels"), text::source_labels(&s.labels));
    if let Some(policy) = &s.traffic_policy {
        traffic_policy(&format!("{path}.trafficPolicy"), policy, namespace, out);
    }
}

fn traffic_policy(path: &str, p: &TrafficPolicy, namespace: &str, out: &mut Verdict) {
    let blocks = p.load_balancer.is_some()
        || p.connection_pool.is_some()
        || p.outlier_detection.is_some()
        || p.tls.is_some()
        || !p.port_level_settings.is_empty()
        || p.tunnel.is_some()
        || p.proxy_protocol.is_some()
        || p.retry_budget.is_some();
    if !blocks {
        out.error(path, "must not be empty");
    }
    if p.tunnel.is_some() && p.proxy_protocol.is_some() {
        out.error(format!("{path}.proxyProtocol"), "must not be together with tunnel");
    }
    if let Some(lb) = &p.load_balancer {
        load_balancer::check(&format!("{path}.loadBalancer"), lb, p.outlier_detection.is_some(), out);
    }
    if let Some(pool) = &p.connection_pool {
        connection_pool(&format!("{path}.connectionPool"), pool, out);
    }
    if let Some(o) = &p.outlier_detection {
        outlier(&format!("{path}.outlierDetection"), o, out);
    }
    if let Some(t) = &p.tls {
        tls(&format!("{path}.tls"), t, namespace, out);
    }
    for (i, port) in p.port_level_settings.iter().enumerate() {
        port_policy(&format!("{path}.portLevelSettings[{i}]"), port, namespace, out);
    }
    if let Some(t) = &p.tunnel {
        tunnel(&format!("{path}.tunnel"), t, out);
    }
    if let Some(b) = &p.retry_budget {
        retry_budget(&format!("{path}.retryBudget"), b, out);
    }
}

fn port_policy(path: &str, p: &PortTrafficPolicy, namespace: &str, out: &mut Verdict) {
    match &p.port {
        None => out.error(format!("{path}.port"), "is required"),
        Some(port) if port.number == 0 => {
            out.warn(format!("{path}.port.number"), "0 is no port: this is for none")
        }
        Some(_) => {}
    }
    let blocks = p.load_balancer.is_some()
        || p.connection_pool.is_some()
        || p.outlier_detection.is_some()
        || p.tls.is_some();
    if !blocks {
        out.error(path, "must not be empty");
    }
    if let Some(lb) = &p.load_balancer {
        load_balancer::check(&format!("{path}.loadBalancer"), lb, p.outlier_detection.is_some(), out);
    }
    if let Some(pool) = &p.connection_pool {
        connection_pool(&format!("{path}.connectionPool"), pool, out);
    }
    if let Some(o) = &p.outlier_detection {
        outlier(&format!("{path}.outlierDetection"), o, out);
    }
    if let Some(t) = &p.tls {
        tls(&format!("{path}.tls"), t, namespace, out);
    }
}

fn limits(path: &str, limits: &[(&str, i32)], out: &mut Verdict) {
    for (name, n) in limits.iter().filter(|(_, n)| *n < 0) {
        out.error(format!("{path}.{name}"), format!("must not be negative, is {n}"));
    }
}

pub(super) fn connection_pool(path: &str, pool: &ConnectionPoolSettings, out: &mut Verdict) {
    if pool.tcp.is_none() && pool.http.is_none() {
        out.error(path, "needs tcp or http");
    }
    if let Some(tcp) = &pool.tcp {
        tcp_settings(&format!("{path}.tcp"), tcp, out);
    }
    if let Some(http) = &pool.http {
        http_settings(&format!("{path}.http"), http, out);
    }
}

fn tcp_settings(path: &str, tcp: &TcpSettings, out: &mut Verdict) {
    limits(path, &[("maxConnections", tcp.max_connections)], out);
    out.duration(&format!("{path}.connectTimeout"), tcp.connect_timeout.as_ref());
    out.duration(&format!("{path}.maxConnectionDuration"), tcp.max_connection_duration.as_ref());
    // Zero, which is everything below a millisecond, means no limit.
    let is_set = |nanos: i64| nanos.abs() >= 1_000_000;
    if let Some(idle) = tcp.idle_timeout.as_ref().filter(|d| d.nanos().map_or(true, is_set)) {
        out.check(&format!("{path}.idleTimeout"), text::duration(&idle.0));
    }
    if let Some(k) = &tcp.tcp_keepalive {
        out.duration(&format!("{path}.tcpKeepalive.time"), k.time.as_ref());
        out.duration(&format!("{path}.tcpKeepalive.interval"), k.interval.as_ref());
    }
}

fn http_settings(path: &str, http: &HttpSettings, out: &mut Verdict) {
    let all = [
        ("http1MaxPendingRequests", http.http1_max_pending_requests),
        ("http2MaxRequests", http.http2_max_requests),
        ("maxRequestsPerConnection", http.max_requests_per_connection),
        ("maxRetries", http.max_retries),
        ("maxConcurrentStreams", http.max_concurrent_streams),
    ];
    limits(path, &all, out);
    out.duration(&format!("{path}.idleTimeout"), http.idle_timeout.as_ref());
    if http.h2_upgrade_policy == Some(H2UpgradePolicy::Upgrade) && http.use_client_protocol {
        out.error(format!("{path}.useClientProtocol"), "must not be together with h2UpgradePolicy UPGRADE");
    }
    if let Some(k) = &http.http2_keep_alive {
        let path = format!("{path}.http2KeepAlive");
        if k.interval.is_none() {
            out.error(format!("{path}.interval"), "is required");
        }
        if k.timeout.is_none() {
            out.error(format!("{path}.timeout"), "is required");
        }
        out.duration(&format!("{path}.interval"), k.interval.as_ref());
        out.duration(&format!("{path}.timeout"), k.timeout.as_ref());
    }
}

fn outlier(path: &str, o: &OutlierDetection, out: &mut Verdict) {
    out.duration(&format!("{path}.interval"), o.interval.as_ref());
    out.duration(&format!("{path}.baseEjectionTime"), o.base_ejection_time.as_ref());
    out.check(&format!("{path}.maxEjectionPercent"), text::percent(o.max_ejection_percent));
    out.check(&format!("{path}.minHealthPercent"), text::percent(o.min_health_percent));
    if !o.split_external_local_origin_errors && o.consecutive_local_origin_failures.unwrap_or(0) > 0 {
        out.error(
            format!("{path}.consecutiveLocalOriginFailures"),
            "counts only together with splitExternalLocalOriginErrors",
        );
    }
    if o.consecutive_errors != 0 {
        out.warn(
            format!("{path}.consecutiveErrors"),
            "is deprecated and has no effect; use consecutive5xxErrors or consecutiveGatewayErrors",
        );
    }
}

/// A secret by name, or a config map of the rule's own namespace.
fn credential(path: &str, name: &str, namespace: &str, out: &mut Verdict) {
    let Some(name) = name.strip_prefix("configmap://") else { return };
    let (of, name) = name.split_once('/').unwrap_or((namespace, name));
    if of != namespace || name.is_empty() || name.contains('/') {
        out.error(path, "is not a config map of the rule's own namespace");
    }
}

fn tls(path: &str, t: &ClientTlsSettings, namespace: &str, out: &mut Verdict) {
    credential(&format!("{path}.credentialName"), &t.credential_name, namespace, out);
    let mode = t.mode.unwrap_or_default();
    let files = [
        ("clientCertificate", &t.client_certificate),
        ("privateKey", &t.private_key),
        ("caCertificates", &t.ca_certificates),
        ("caCrl", &t.ca_crl),
    ];
    if t.insecure_skip_verify == Some(true) {
        let by_secret = mode == TlsMode::Simple && !t.credential_name.is_empty();
        let checked = !t.ca_certificates.is_empty() || !t.subject_alt_names.is_empty() || by_secret;
        if checked && matches!(mode, TlsMode::Simple | TlsMode::Mutual) {
            out.error(
                format!("{path}.insecureSkipVerify"),
                "leaves nothing to check that other fields ask to check",
            );
        }
    }
    if matches!(mode, TlsMode::Simple | TlsMode::Mutual) && !t.credential_name.is_empty() {
        for (name, _) in files.iter().filter(|(_, v)| !v.is_empty()) {
            out.error(format!("{path}.{name}"), "must not be together with credentialName");
        }
        return;
    }
    if mode == TlsMode::Mutual {
        for (name, _) in files[..2].iter().filter(|(_, v)| v.is_empty()) {
            out.error(format!("{path}.{name}"), "is required for MUTUAL");
        }
    }
    if mode == TlsMode::IstioMutual {
        for (name, _) in files.iter().filter(|(_, v)| !v.is_empty()) {
            out.warn(format!("{path}.{name}"), "has no effect for ISTIO_MUTUAL");
        }
    }
}

fn tunnel(path: &str, t: &TunnelSettings, out: &mut Verdict) {
    if !matches!(t.protocol.as_str(), "" | "CONNECT" | "POST") {
        out.error(format!("{path}.protocol"), format!("{:?} is neither CONNECT nor POST", t.protocol));
    }
    if !text::is_ip(&t.target_host) {
        out.check(&format!("{path}.targetHost"), text::fqdn(&t.target_host));
    }
    out.check(&format!("{path}.targetPort"), text::port(t.target_port));
}

fn retry_budget(path: &str, b: &RetryBudget, out: &mut Verdict) {
    if let Some(p) = b.percent.filter(|p| !(0.0..=100.0).contains(p)) {
        out.warn(format!("{path}.percent"), format!("{p} is not a percentage"));
    }
}
