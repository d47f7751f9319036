//! The policy towards a destination, in the words of a DestinationRule.

use mesh_core::policy::{ClientTlsMode, EffectivePolicy, LoadBalancing, OutlierPolicy, Pool};
use serde_json::{Map, Value, json};

use super::answer::go;

pub(super) fn value(p: &EffectivePolicy) -> Value {
    let simple = match p.balancing.kind {
        LoadBalancing::LeastRequest => "LEAST_REQUEST",
        LoadBalancing::RoundRobin => "ROUND_ROBIN",
        LoadBalancing::Random => "RANDOM",
        LoadBalancing::Passthrough => "PASSTHROUGH",
    };
    let mode = match p.tls.mode {
        ClientTlsMode::Auto => None,
        ClientTlsMode::Disable => Some("DISABLE"),
        ClientTlsMode::Simple => Some("SIMPLE"),
        ClientTlsMode::Mutual => Some("MUTUAL"),
        ClientTlsMode::IstioMutual => Some("ISTIO_MUTUAL"),
    };
    let mut out = Map::new();
    if !p.source.is_empty() {
        out.insert("destinationRule".into(), json!(&*p.source));
    }
    out.insert("loadBalancer".into(), json!({ "simple": simple }));
    out.insert("connectionPool".into(), pool(&p.pool));
    if let Some(o) = &p.outlier {
        out.insert("outlierDetection".into(), outlier(o));
    }
    if let Some(mode) = mode {
        let mut tls = json!({ "mode": mode });
        if !p.tls.sni.is_empty() {
            tls["sni"] = json!(&*p.tls.sni);
        }
        out.insert("tls".into(), tls);
    }
    Value::Object(out)
}

fn pool(p: &Pool) -> Value {
    let mut tcp = json!({
        "connectTimeout": go(p.connect_timeout),
        "idleTimeout": go(p.tcp_idle_timeout),
    });
    let mut http = json!({ "idleTimeout": go(p.http_idle_timeout) });
    let limit = |block: &mut Value, name: &str, n: Option<u32>| {
        if let Some(n) = n {
            block[name] = json!(n);
        }
    };
    limit(&mut tcp, "maxConnections", p.max_connections);
    limit(&mut http, "http1MaxPendingRequests", p.max_pending_requests);
    limit(&mut http, "http2MaxRequests", p.max_requests);
    limit(&mut http, "maxRequestsPerConnection", p.max_requests_per_connection);
    limit(&mut http, "maxRetries", p.max_retries);
    json!({ "tcp": tcp, "http": http })
}

fn outlier(o: &OutlierPolicy) -> Value {
    json!({
        "consecutive5xxErrors": o.consecutive_5xx,
        "consecutiveGatewayErrors": o.consecutive_gateway,
        "interval": go(o.interval),
        "baseEjectionTime": go(o.base_ejection),
        "maxEjectionPercent": o.max_ejection_percent,
        "minHealthPercent": o.min_health_percent,
    })
}
