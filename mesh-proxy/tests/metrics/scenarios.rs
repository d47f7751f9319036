//! Which tests move metrics that the world of `world_metrics` does not, and which metrics nothing moves.
#![allow(dead_code, reason = "each test uses its part")]

/// A test (its file, from the root of the repository) and the metrics that it moves; it looks by [`still`].
pub(crate) const SCENARIOS: &[(&str, &[&str])] = &[
    (
        "mesh-controller/tests/dir_ads.rs",
        &[
            "selvage_controller_identity_mismatches_total",
            "selvage_controller_nacks_total",
            "selvage_controller_refused_connections_total",
            "selvage_controller_stale_answers_total",
        ],
    ),
    (
        "mesh-controller/tests/kube/admission.rs",
        &["selvage_controller_leader", "selvage_status_writes_total", "selvage_webhook_requests_total"],
    ),
];

/// Metrics that stay still, each with the fault that it takes.
pub(crate) const STILL: &[(&str, &str)] = &[
    ("selvage_clock_ahead_seconds", "two machines whose clocks differ: all programs of a world have one"),
    (
        "selvage_controller_missed_changes_total",
        "a mistake in the compiler of the controller: the engine's tests make one",
    ),
    (
        "selvage_discovery_refused_total",
        "a controller that sends what makes no sense: discovery's tests play one",
    ),
    (
        "selvage_nat_opened_ports",
        "a router that opens ports for its nodes: mesh-tunnel's tests of mappings have one",
    ),
    (
        "selvage_outbound_accept_errors_total",
        "a kernel that takes connections back before they are accepted; Linux does not: mesh-net's tests",
    ),
    (
        "selvage_telemetry_scrapes_cut_total",
        "a page of megabytes and a scraper that stops in the middle of it: node-rt's tests play one",
    ),
];

/// The values of a metric, over all its series.
fn values<'t>(text: &'t str, name: &'t str) -> impl Iterator<Item = f64> + 't {
    let lines = text.lines().filter(move |line| {
        let rest = line.strip_prefix(name).map(|r| r.strip_prefix("_count").unwrap_or(r));
        rest.is_some_and(|r| r.starts_with(['{', ' ']))
    });
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse().ok())
}

/// Whether a metric has moved, in what a program says.
pub(crate) fn has_moved(text: &str, name: &str) -> bool {
    values(text, name).any(|value| value != 0.0)
}

/// Metrics of a scenario that have not moved yet.
pub(crate) fn still(file: &str, text: &str) -> Vec<&'static str> {
    let of_file = || SCENARIOS.iter().filter(|(f, _)| *f == file);
    assert!(of_file().count() == 1, "{file} is no scenario");
    of_file().flat_map(|(_, names)| names.iter().copied()).filter(|name| !has_moved(text, name)).collect()
}
