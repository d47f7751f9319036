//! Metrics that the world of `world_metrics` does not move, each with the reason. A name may end in `*`.

/// Name and reason.
pub const STILL: &[(&str, &str)] = &[
    // What only goes wrong on purpose; the tests that are named make it go wrong.
    ("selvage_access_log_lines_dropped", "an output that is stuck: node-rt's access_log"),
    ("selvage_capture_failed_total", "nftables that refuses: capture's tests"),
    ("selvage_capture_repaired_total", "others that change the rules: capture's tests"),
    ("selvage_certificate_failures_total", "a controller that refuses: tests/control"),
    ("selvage_discovery_failures_total", "a controller that is gone: tests/control"),
    ("selvage_discovery_handovers_total", "a controller that stops for another one"),
    ("selvage_discovery_refused_total", "resources that make no sense: discovery's tests"),
    ("selvage_outbound_accept_errors_total", "connections that are lost in the queue: mesh-net's listen"),
    ("selvage_outbound_accept_pauses_total", "no descriptors left: mesh-net's listen"),
    ("selvage_outbound_bad_requests_total", "requests to be read in two ways: tests/outbound"),
    ("selvage_outbound_loops_total", "connections to the proxy itself: tests/outbound"),
    ("selvage_outbound_mirrors_skipped_total", "copies that are too large: tests/outbound"),
    ("selvage_outbound_refused_connections_total", "more connections than a worker takes: tests/outbound"),
    ("selvage_outbound_retries_denied_total", "retries over the budget: tests/outbound"),
    ("selvage_store_*", "a disk that does not write: store's tests"),
    ("selvage_tunnel_denied_connections_total", "peers that are no nodes: mesh-tunnel's tests"),
    ("selvage_tunnel_silent_connections_total", "networks that swallow packets: world_faults"),
    ("selvage_udp_dropped_total", "datagrams that nobody takes: world_udp"),
    ("selvage_controller_failed_handshakes_total", "strangers: mesh-controller's tests"),
    ("selvage_controller_identity_mismatches_total", "nodes that lie: mesh-controller's tests"),
    ("selvage_controller_missed_changes_total", "a source that says too little: the engine's tests"),
    ("selvage_controller_nacks_total", "resources that make no sense: mesh-controller's tests"),
    ("selvage_controller_nodes_left_total", "nodes that are removed: mesh-controller's tests"),
    ("selvage_controller_refused_connections_total", "too many connections: mesh-controller's tests"),
    ("selvage_controller_source_errors_total", "an API server that fails: mesh-controller's tests"),
    ("selvage_controller_stale_answers_total", "proxies that answer twice: mesh-controller's tests"),
    ("selvage_resource_errors", "objects that are refused: the status writer's tests"),
    // What takes another kind of world.
    ("selvage_clock_ahead_seconds", "all programs of a world have one clock"),
    ("selvage_dns_cache_*", "a closed world has no names outside: dns' tests"),
    ("selvage_dns_upstream_*", "a closed world has no names outside: dns' tests"),
    ("selvage_nat_*", "NATs on both sides: world_nat"),
    ("selvage_relay_*", "a relay: world_nat"),
    ("selvage_tunnel_path_changes_total", "paths that get better: world_nat"),
    ("selvage_tunnel_upgrades_total", "paths that get better: world_nat"),
    ("selvage_controller_copied_nodes_total", "several replicas: mesh-controller's tests"),
    ("selvage_controller_leader", "a cluster: the kube tests"),
    ("selvage_controller_certificate_expires_seconds", "a cluster: the kube tests"),
    ("selvage_controller_enrolments_total", "a cluster: the kube tests"),
    ("selvage_status_writes_total", "a cluster: the kube tests"),
    ("selvage_webhook_requests_total", "a cluster: the kube tests"),
];

pub fn is_still(name: &str) -> bool {
    STILL.iter().any(|(n, _)| *n == name || n.strip_suffix('*').is_some_and(|p| name.starts_with(p)))
}
