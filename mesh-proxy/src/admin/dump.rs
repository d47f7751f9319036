//! The tables as JSON.

use std::{collections::HashMap, sync::Arc, time::Duration};

use mesh_core::{
    Cluster, Locality, NodeEntry, ServiceEntry, ServiceKind, Tables, WorkloadEntry,
    balance::EndpointId,
    gateway::GatewayHostEntry,
    route::{Action, Destinations, HttpRule, RouteMatch, VirtualHostEntry},
};
use node_rt::Readiness;
use serde_json::{Value, json};

use crate::shared::Shared;

/// Everything in force; only services whose host contains `part`.
pub(super) fn config(shared: &Shared, readiness: &Readiness, part: &str) -> Value {
    let tables = shared.tables.load();
    let mesh = tables.mesh();
    let mut services: Vec<_> = tables.services().filter(|s| s.host.contains(part)).collect();
    services.sort_by(|a, b| a.host.cmp(&b.host));
    let mut nodes: Vec<_> = tables.nodes().collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    json!({
        "node": shared.node.as_ref(),
        "version": env!("CARGO_PKG_VERSION"),
        "ready": readiness.is_ready(),
        "pending": readiness.pending(),
        "cluster_domain": mesh.cluster_domain,
        "trust_domain": mesh.trust_domain,
        "registry_only": mesh.registry_only,
        "service_count": tables.service_count(),
        "services": services.iter().map(|s| service(s)).collect::<Vec<_>>(),
        "gateway_hosts": gateway_hosts(&tables, part),
        "nodes": nodes.iter().map(|n| node(n)).collect::<Vec<_>>(),
        "workloads": tables.workloads_of(&shared.node).map(|w| workload(w)).collect::<Vec<_>>(),
    })
}

/// How the proxy does, in few words: for `meshctl proxies`, which asks many.
pub(super) fn status(shared: &Shared, readiness: &Readiness) -> Value {
    let tables = shared.tables.load();
    let mut sums = serde_json::Map::new();
    for family in shared.metrics.gather() {
        if STATUS_METRICS.contains(&family.name()) {
            let sum: f64 = family.get_metric().iter().map(value).sum();
            sums.insert(family.name().to_owned(), sum.into());
        }
    }
    json!({
        "node": shared.node.as_ref(),
        "version": env!("CARGO_PKG_VERSION"),
        "ready": readiness.is_ready(),
        "pending": readiness.pending(),
        "services": tables.service_count(),
        "nodes": tables.nodes().count(),
        "workloads": tables.workloads_of(&shared.node).count(),
        "cpu_seconds": cpu_seconds(),
        "metrics": sums,
    })
}

/// CPU time of this process. The client library's metric counts whole seconds, too coarse for two looks within a few.
fn cpu_seconds() -> Option<f64> {
    /// Linux' unit in /proc on all machines that this runs on.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in brackets may hold anything; after it, user and system time are the 12th and 13th.
    let mut times = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || times.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS)
}

/// Sums of these are on the page.
const STATUS_METRICS: [&str; 14] = [
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "selvage_capture_addresses",
    "selvage_capture_failed_total",
    "selvage_certificate_expires_seconds",
    "selvage_clock_ahead_seconds",
    "selvage_discovery_connected",
    "selvage_discovery_last_update_seconds",
    "selvage_discovery_refused_total",
    "selvage_inbound_connections",
    "selvage_store_degraded",
    "selvage_tunnel_connections",
    "selvage_tunnel_streams",
];

fn value(metric: &prometheus::proto::Metric) -> f64 {
    // A metric has one of them; the other is 0.
    metric.get_gauge().get_value() + metric.get_counter().get_value()
}

/// All clusters; only of hosts that contain `part`.
pub(super) fn clusters(shared: &Shared, part: &str) -> Value {
    let tables = shared.tables.load();
    let services = tables.services().filter(|s| s.host.contains(part));
    let mut all: Vec<_> = services.flat_map(|s| s.clusters()).collect();
    all.sort_by(|a, b| {
        (&a.key.host, a.key.port, &a.key.subset).cmp(&(&b.key.host, b.key.port, &b.key.subset))
    });
    all.iter().map(|c| cluster(c, &shared.unwell(c.id))).collect()
}

const fn kind(k: ServiceKind) -> &'static str {
    match k {
        ServiceKind::ClusterIp => "cluster_ip",
        ServiceKind::Headless => "headless",
        ServiceKind::ExternalName => "external_name",
        ServiceKind::External => "external",
        ServiceKind::RouteOnly => "route_only",
    }
}

fn service(s: &ServiceEntry) -> Value {
    let ports: Vec<_> = s
        .ports
        .iter()
        .map(|p| json!({ "number": p.number, "name": &*p.name, "protocol": format!("{:?}", p.protocol).to_lowercase() }))
        .collect();
    let endpoints: Vec<_> = s
        .endpoints
        .endpoints
        .iter()
        .map(|e| {
            json!({
                "address": e.address, "node": e.node.as_deref(), "ready": e.ready, "terminating": e.terminating,
                "workload": &*e.workload.owner, "pod": &*e.workload.name, "weight": e.weight,
                "locality": locality(&e.locality),
            })
        })
        .collect();
    let policies: Vec<_> = s
        .policies
        .iter()
        .map(|p| json!({ "source": &*p.source, "subsets": p.subsets.iter().map(|x| &*x.name).collect::<Vec<_>>() }))
        .collect();
    json!({
        "host": &*s.host, "namespace": &*s.namespace, "kind": kind(s.kind), "vips": s.vips, "ports": ports,
        "external_name": s.external_name.as_deref(),
        "virtual_hosts": s.virtual_hosts.iter().map(virtual_host).collect::<Vec<_>>(),
        "policies": policies, "endpoints": endpoints,
    })
}

/// What servers of gateways do, by domain. Few proxies are gateways; all know the rules.
fn gateway_hosts(tables: &Tables, part: &str) -> Vec<Value> {
    let mut all: Vec<_> = tables.gateway_hosts().filter(|(_, h)| h.domain.contains(part)).collect();
    all.sort_by(|(a, x), (b, y)| (a, &x.domain).cmp(&(b, &y.domain)));
    let one = |(server, h): &(&Arc<str>, &Arc<GatewayHostEntry>)| {
        json!({
            "server": &***server, "gateway": &*h.gateway, "domain": &*h.domain,
            "virtual_hosts": h.parts.iter().map(virtual_host).collect::<Vec<_>>(),
        })
    };
    all.iter().map(one).collect()
}

fn virtual_host(v: &VirtualHostEntry) -> Value {
    json!({
        "source": &*v.source,
        "http": v.http.iter().map(http_rule).collect::<Vec<_>>(),
        "tls": v.tls.iter().map(|r| json!({ "index": r.index, "match": r.describe(), "to": destinations(&r.destinations) })).collect::<Vec<_>>(),
        "tcp": v.tcp.iter().map(|r| json!({ "index": r.index, "match": r.describe(), "to": destinations(&r.destinations) })).collect::<Vec<_>>(),
    })
}

fn http_rule(r: &HttpRule) -> Value {
    let action = match &r.action {
        Action::Forward(to) => json!({ "forward": destinations(to) }),
        Action::Redirect(x) => json!({ "redirect": x.code }),
        Action::Direct(x) => json!({ "direct_response": x.status }),
    };
    json!({
        "index": r.index, "name": &*r.name, "matches": r.matches.len(),
        "match": r.matches.iter().map(RouteMatch::describe).collect::<Vec<_>>(), "action": action,
        "timeout_ms": r.timeout.map(|t| t.as_millis()),
        "retries": r.retry.as_ref().map(|p| p.attempts),
        "fault": r.delay.is_some() || r.abort.is_some(),
        "mirrors": r.mirrors.len(),
    })
}

fn destinations(d: &Destinations) -> Value {
    d.all
        .iter()
        .map(|d| json!({ "host": &*d.host, "subset": &*d.subset, "port": d.port, "weight": d.weight }))
        .collect()
}

fn cluster(c: &Cluster, unwell: &HashMap<EndpointId, Duration>) -> Value {
    let endpoints: Vec<_> = c
        .endpoints
        .iter()
        .map(|e| {
            json!({
                "address": e.addr, "node": e.node().map(|n| &**n), "weight": e.weight,
                "pod": &*e.endpoint.workload.name, "locality": locality(&e.endpoint.locality),
                "unwell_ms": unwell.get(&e.id()).map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            })
        })
        .collect();
    json!({
        "host": &*c.key.host, "port": c.key.port, "subset": &*c.key.subset, "policy": &*c.key.policy,
        "load_balancer": format!("{:?}", c.policy.balancing.kind), "outlier_detection": c.policy.outlier.is_some(),
        "connect_timeout_ms": c.policy.pool.connect_timeout.as_millis(), "endpoints": endpoints,
    })
}

/// `region/zone/site`; parts at the end that nobody has said are left out.
fn locality(l: &Locality) -> String {
    format!("{}/{}/{}", l.region, l.zone, l.site).trim_end_matches('/').to_owned()
}

fn node(n: &NodeEntry) -> Value {
    json!({
        "name": &*n.name, "peer_id": &*n.peer_id, "addresses": n.addresses.iter().map(|a| &**a).collect::<Vec<_>>(),
        "relay": n.relay, "region": &*n.locality.region, "zone": &*n.locality.zone, "site": &*n.locality.site,
    })
}

fn workload(w: &WorkloadEntry) -> Value {
    json!({
        "address": w.address, "namespace": &*w.namespace, "name": &*w.name, "owner": &*w.owner,
        "service_account": &*w.service_account,
    })
}
