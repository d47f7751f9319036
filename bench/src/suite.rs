//! The scenarios, and how their slices are interleaved: one slice of each subject a round with the calibrator right
//! beside it, and every other round backwards, so that a machine that drifts hurts all alike.

use std::{path::Path, time::Duration};

use anyhow::Result;

use crate::{
    load::{self, Kind, Outcome},
    process::{Steal, cpu_seconds, rss_mib},
    report::{BINARY, CALIBRATOR, CONNECTIONS, CPU, CPU_GIB, GBIT, Metric, P50, P99, RPS, RSS, Report},
    subject::{Group, Subject},
};

/// A slice in which the hypervisor took more than this share is measured again.
const MAX_STEAL: f64 = 0.03;
/// Connections held for the memory figures.
const HELD: [usize; 2] = [1000, 5000];

/// How long and how often.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    pub(crate) slice: Duration,
}

/// One kind of load in one suite.
pub(crate) struct Scenario {
    pub(crate) suite: &'static str,
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
}

/// All loads, in the order in which they run.
pub(crate) const SCENARIOS: [Scenario; 6] = [
    Scenario { suite: "http", name: "keepalive-1", kind: Kind::KeepAlive(1) },
    Scenario { suite: "http", name: "keepalive-16", kind: Kind::KeepAlive(16) },
    Scenario { suite: "http", name: "keepalive-128", kind: Kind::KeepAlive(128) },
    Scenario { suite: "latency", name: "rate-2000-16", kind: Kind::Rate(2000, 16) },
    Scenario { suite: "connections", name: "new-16", kind: Kind::NewConnections(16) },
    Scenario { suite: "bulk", name: "stream-1", kind: Kind::Bulk(1) },
];

/// Names of all suites.
pub(crate) const SUITES: [&str; 12] = [
    "http",
    "latency",
    "connections",
    "bulk",
    "memory",
    "binary",
    "apply",
    "control",
    "hollow",
    "shaped",
    "udp",
    "scrape",
];

/// One subject with the processes that it costs.
struct Entry<'a> {
    subject: &'a Subject,
    pids: Vec<u32>,
}

/// Runs one scenario over all subjects that can do it.
pub(crate) fn run(scenario: &Scenario, groups: &[Group], effort: Effort, report: &mut Report) -> Result<()> {
    let mut entries: Vec<Entry<'_>> = groups
        .iter()
        .flat_map(|g| g.subjects.iter().map(|subject| Entry { subject, pids: g.pids.clone() }))
        .filter(|e| target(scenario, e.subject).is_some())
        .collect();
    let calibrator = entries.iter().position(|e| e.subject.name == CALIBRATOR).map(|i| entries.remove(i));
    for entry in calibrator.iter().chain(&entries) {
        slice(scenario, entry, Duration::from_millis(300))?; // connections, caches and lazy state
    }
    for round in 0..effort.rounds {
        eprintln!("bench: {} {}: round {} of {}", scenario.suite, scenario.name, round + 1, effort.rounds);
        for i in 0..entries.len() {
            let backwards = round % 2 == 1;
            let entry = &entries[if backwards { entries.len() - 1 - i } else { i }];
            let mut beside = None;
            if let Some(calibrator) = &calibrator {
                // Before or after, in turns.
                let first = (round + i) % 2 == 0;
                if first {
                    beside = Some(slice(scenario, calibrator, effort.slice)?);
                }
                let measured = slice(scenario, entry, effort.slice)?;
                if !first {
                    beside = Some(slice(scenario, calibrator, effort.slice)?);
                }
                record(scenario, entry, round, &measured, beside.as_ref(), report);
            } else {
                let measured = slice(scenario, entry, effort.slice)?;
                record(scenario, entry, round, &measured, None, report);
            }
            if let (Some(calibrator), Some(beside)) = (&calibrator, &beside) {
                record(scenario, calibrator, round, beside, None, report);
            }
        }
    }
    Ok(())
}

/// A slice and its cost.
struct Measured {
    outcome: Outcome,
    cpu: f64,
}

fn target(scenario: &Scenario, subject: &Subject) -> Option<std::net::SocketAddr> {
    match scenario.kind {
        Kind::Bulk(_) => subject.bulk,
        _ => subject.http,
    }
}

fn slice(scenario: &Scenario, entry: &Entry<'_>, length: Duration) -> Result<Measured> {
    let Some(target) = target(scenario, entry.subject) else {
        anyhow::bail!("{} has no target", entry.subject.name)
    };
    let mut attempts = 0;
    loop {
        let steal = Steal::now();
        let before = cpu_seconds(&entry.pids);
        let outcome = load::run(scenario.kind, target, &entry.subject.host, length)?;
        let cpu = cpu_seconds(&entry.pids) - before;
        attempts += 1;
        if Steal::now().share_since(steal) <= MAX_STEAL || attempts == 3 {
            return Ok(Measured { outcome, cpu });
        }
    }
}

fn record(
    scenario: &Scenario,
    entry: &Entry<'_>,
    round: usize,
    measured: &Measured,
    beside: Option<&Measured>,
    report: &mut Report,
) {
    let place = [scenario.suite, scenario.name, entry.subject.name.as_str()];
    let here = figures(scenario.kind, measured, !entry.pids.is_empty());
    let there = beside.map(|b| figures(scenario.kind, b, true)).unwrap_or_default();
    for (metric, value) in here {
        let beside = there.iter().find(|(m, _)| *m == metric).map(|(_, v)| *v);
        report.add(place, metric, round, value, beside);
    }
    report.failed(scenario.name, &entry.subject.name, measured.outcome.failed);
}

/// The figures of a slice.
fn figures(kind: Kind, measured: &Measured, has_processes: bool) -> Vec<(Metric, f64)> {
    let outcome = &measured.outcome;
    let mut out = Vec::new();
    if outcome.done == 0 {
        return out;
    }
    let per_100k = measured.cpu * 100_000.0 / outcome.done as f64;
    match kind {
        Kind::KeepAlive(_) => out.extend([(RPS, outcome.rate()), (CPU, per_100k)]),
        Kind::NewConnections(_) => out.extend([(CONNECTIONS, outcome.rate()), (CPU, per_100k)]),
        Kind::Rate(..) => {
            let quantile = |q| outcome.latency.quantile_us(q).unwrap_or(f64::NAN);
            out.extend([(P50, quantile(0.5)), (P99, quantile(0.99)), (CPU, per_100k)]);
        }
        Kind::Bulk(_) => {
            let gib = outcome.done as f64 / f64::from(1 << 30);
            out.extend([(GBIT, outcome.rate() * 8e-9), (CPU_GIB, measured.cpu / gib)]);
        }
    }
    out.retain(|(metric, _)| has_processes || (*metric != CPU && *metric != CPU_GIB));
    out
}

/// Resident memory of fresh programs. Nothing may have had load before.
pub(crate) fn idle_memory(group: &Group, report: &mut Report) {
    if !group.pids.is_empty() {
        report.add(["memory", "idle", &group.name], RSS, 0, rss_mib(&group.pids), None);
    }
}

/// Resident memory with connections held that each did one request.
pub(crate) fn held_memory(group: &Group, report: &mut Report) -> Result<()> {
    for (count, subject) in HELD.into_iter().flat_map(|c| group.subjects.iter().map(move |s| (c, s))) {
        let Some(target) = subject.http.filter(|_| !group.pids.is_empty()) else { continue };
        let (rss, held) = load::hold(count, target, &subject.host, || rss_mib(&group.pids))?;
        let scenario = format!("connections-{count}");
        if held == count {
            report.add(["memory", &scenario, &subject.name], RSS, 0, rss, None);
        }
        report.failed(&scenario, &subject.name, (count - held) as u64);
    }
    Ok(())
}

/// Size of the programs as installed.
pub(crate) fn binary(name: &str, path: &Path, report: &mut Report) {
    if let Ok(meta) = std::fs::metadata(path) {
        report.add(["binary", "stripped", name], BINARY, 0, meta.len() as f64 / f64::from(1 << 20), None);
    }
}
