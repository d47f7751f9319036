//! The tables as JSON.

use mesh_core::{
    Cluster, NodeEntry, ServiceEntry, ServiceKind, Tables, WorkloadEntry,
    route::{Action, Destinations, HttpRule, VirtualHostEntry},
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
        "nodes": nodes.iter().map(|n| node(n)).collect::<Vec<_>>(),
        "workloads": tables.workloads_of(&shared.node).map(|w| workload(w)).collect::<Vec<_>>(),
    })
}

/// All clusters.
pub(super) fn clusters(tables: &Tables) -> Value {
    let mut all: Vec<_> = tables.services().flat_map(|s| s.clusters()).collect();
    all.sort_by(|a, b| {
        (&a.key.host, a.key.port, &a.key.subset).cmp(&(&b.key.host, b.key.port, &b.key.subset))
    });
    all.iter().map(|c| cluster(c)).collect()
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

fn virtual_host(v: &VirtualHostEntry) -> Value {
    json!({
        "source": &*v.source,
        "http": v.http.iter().map(http_rule).collect::<Vec<_>>(),
        "tls": v.tls.iter().map(|r| json!({ "index": r.index, "to": destinations(&r.destinations) })).collect::<Vec<_>>(),
        "tcp": v.tcp.iter().map(|r| json!({ "index": r.index, "to": destinations(&r.destinations) })).collect::<Vec<_>>(),
    })
}

fn http_rule(r: &HttpRule) -> Value {
    let action = match &r.action {
        Action::Forward(to) => json!({ "forward": destinations(to) }),
        Action::Redirect(x) => json!({ "redirect": x.code }),
        Action::Direct(x) => json!({ "direct_response": x.status }),
    };
    json!({
        "index": r.index, "name": &*r.name, "matches": r.matches.len(), "action": action,
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

fn cluster(c: &Cluster) -> Value {
    let endpoints: Vec<_> = c
        .endpoints
        .iter()
        .map(|e| json!({ "address": e.addr, "node": e.node().map(|n| &**n), "weight": e.weight }))
        .collect();
    json!({
        "host": &*c.key.host, "port": c.key.port, "subset": &*c.key.subset, "policy": &*c.key.policy,
        "load_balancer": format!("{:?}", c.policy.balancing.kind), "outlier_detection": c.policy.outlier.is_some(),
        "connect_timeout_ms": c.policy.pool.connect_timeout.as_millis(), "endpoints": endpoints,
    })
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
