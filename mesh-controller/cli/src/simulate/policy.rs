//! The policy towards a destination, in the words of a DestinationRule.

use mesh_core::policy::{
    Balancing, ClientTlsMode, EffectivePolicy, H2Upgrade, HashKey, HashPolicy, HashTableKind, LoadBalancing,
    OutlierPolicy, Pool, ProxyProtocol,
};
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
    out.insert("loadBalancer".into(), load_balancer(&p.balancing, simple));
    out.insert("connectionPool".into(), pool(&p.pool));
    if let Some(o) = &p.outlier {
        out.insert("outlierDetection".into(), outlier(o));
    }
    if let Some(mode) = mode {
        let mut tls = json!({ "mode": mode });
        if !p.tls.sni.is_empty() {
            tls["sni"] = json!(&*p.tls.sni);
        }
        let texts = [
            ("clientCertificate", &p.tls.certificate),
            ("privateKey", &p.tls.private_key),
            ("caCertificates", &p.tls.ca),
            ("caCrl", &p.tls.crl),
            ("credentialName", &p.tls.secret),
        ];
        for (name, text) in texts.into_iter().filter(|(_, t)| !t.is_empty()) {
            tls[name] = json!(&**text);
        }
        if !p.tls.subject_alt_names.is_empty() {
            tls["subjectAltNames"] = json!(p.tls.subject_alt_names.iter().map(|n| &**n).collect::<Vec<_>>());
        }
        if p.tls.skip_verify {
            tls["insecureSkipVerify"] = json!(true);
        }
        out.insert("tls".into(), tls);
    }
    if let Some(version) = p.proxy_protocol {
        let version = match version {
            ProxyProtocol::V1 => "V1",
            ProxyProtocol::V2 => "V2",
        };
        out.insert("proxyProtocol".into(), json!({ "version": version }));
    }
    if let Some(t) = &p.tunnel {
        out.insert("tunnel".into(), json!({ "protocol": &*t.method, "target": &*t.target }));
    }
    if let Some(b) = &p.retry_budget {
        let budget = json!({ "percent": b.percent, "minRetryConcurrency": b.minimum, "budgetInterval": go(b.interval) });
        out.insert("retryBudget".into(), budget);
    }
    Value::Object(out)
}

fn load_balancer(b: &Balancing, simple: &str) -> Value {
    let mut out = match &b.hash {
        None => json!({ "simple": simple }),
        Some(hash) => json!({ "consistentHash": consistent_hash(hash) }),
    };
    if let Some(l) = &b.locality {
        let distribute = l.distribute.iter().map(|d| {
            let to: Map<String, Value> =
                d.to.iter().map(|(name, share)| (name.to_string(), json!(share))).collect();
            json!({ "from": &*d.from, "to": to })
        });
        let failover = l.failover.iter().map(|(from, to)| json!({ "from": &**from, "to": &**to }));
        let priority = l.failover_priority.iter().map(|(key, value)| match value {
            Some(value) => json!(format!("{key}={value}")),
            None => json!(&**key),
        });
        out["localityLbSetting"] = json!({
            "enabled": l.enabled,
            "distribute": distribute.collect::<Vec<_>>(),
            "failover": failover.collect::<Vec<_>>(),
            "failoverPriority": priority.collect::<Vec<_>>(),
        });
    }
    if let Some(w) = &b.warmup {
        out["warmup"] = json!({
            "duration": go(w.duration),
            "minimumPercent": f64::from(w.minimum) / 10.0,
            "aggression": f64::from(w.aggression) / 1000.0,
        });
    }
    out
}

fn consistent_hash(h: &HashPolicy) -> Value {
    let mut out = match &h.key {
        HashKey::Header(name) => json!({ "httpHeaderName": &**name }),
        HashKey::Query(name) => json!({ "httpQueryParameterName": &**name }),
        HashKey::SourceIp => json!({ "useSourceIp": true }),
        HashKey::Cookie(c) => {
            let mut cookie = json!({ "name": &*c.name });
            if !c.path.is_empty() {
                cookie["path"] = json!(&*c.path);
            }
            if let Some(ttl) = c.ttl {
                cookie["ttl"] = json!(go(ttl));
            }
            json!({ "httpCookie": cookie })
        }
    };
    match h.table {
        HashTableKind::Ring { minimum } => out["ringHash"] = json!({ "minimumRingSize": minimum }),
        HashTableKind::Maglev { size } => out["maglev"] = json!({ "tableSize": size }),
    }
    out
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
    limit(&mut http, "maxConcurrentStreams", p.max_concurrent_streams);
    if let Some(longest) = p.max_connection_duration {
        tcp["maxConnectionDuration"] = json!(go(longest));
    }
    match p.h2_upgrade {
        H2Upgrade::ByPort => {}
        H2Upgrade::Upgrade => http["h2UpgradePolicy"] = json!("UPGRADE"),
        H2Upgrade::Client => http["useClientProtocol"] = json!(true),
    }
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
        "splitExternalLocalOriginErrors": o.split_local_origin,
        "outlierDetectionHttpErrorCodes": o.error_codes,
    })
}
