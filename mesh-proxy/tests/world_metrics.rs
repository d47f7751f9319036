//! A metric that is declared and never moves tells nobody anything. Here a mesh is used in every way, and broken in
//! many; what is not moved by that is moved by a test of `metrics/scenarios.rs`, or that file says which fault it takes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(missing_docs, unreachable_pub, reason = "a test is no interface")]

#[path = "metrics/declared.rs"]
mod declared;
#[path = "metrics/scenarios.rs"]
mod scenarios;
#[path = "metrics/world.rs"]
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use declared::{Declared, declared, root};
use scenarios::{SCENARIOS, STILL};
use world::{STAGES, World};

/// Of all that is done to the mesh.
const LIMIT: Duration = Duration::from_secs(120);
/// Times that a stage is gone through, until it has moved what it is there for.
const TRIES: usize = 3;

/// What all programs of the mesh say of a metric.
#[derive(Debug, Default)]
struct Seen {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
    moved: bool,
}

/// Adds a scrape.
fn read(text: &str, all: &mut BTreeMap<String, Seen>) {
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# ") {
            let mut parts = head.splitn(3, ' ');
            let (what, name) = (parts.next().unwrap(), parts.next().unwrap());
            let text = parts.next().unwrap_or_default();
            let seen = all.entry(name.to_owned()).or_default();
            *(if what == "HELP" { &mut seen.help } else { &mut seen.kind }) = text.to_owned();
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|s| name.strip_suffix(s).filter(|f| all.contains_key(*f)));
        let seen = all.get_mut(family.unwrap_or(name)).unwrap_or_else(|| panic!("{line} without a head"));
        seen.moved |= value.parse::<f64>().unwrap() != 0.0;
        for label in labels.split("\",").filter_map(|l| l.split_once("=\"")).map(|l| l.0) {
            if label != "le" {
                seen.labels.insert(label.to_owned());
            }
        }
    }
}

fn elsewhere() -> BTreeSet<&'static str> {
    let allowed = STILL.iter().map(|(name, _)| *name);
    SCENARIOS.iter().flat_map(|(_, names)| names.iter().copied()).chain(allowed).collect()
}

/// Metrics that have not moved.
fn still<'d>(declared: &'d BTreeMap<String, Declared>, seen: &BTreeMap<String, Seen>) -> BTreeSet<&'d str> {
    let elsewhere = elsewhere();
    let still = |name: &&str| !seen.get(*name).is_some_and(|s| s.moved) && !elsewhere.contains(name);
    declared.keys().map(String::as_str).filter(still).collect()
}

#[test]
fn every_metric_is_served_as_it_is_declared_and_moves() {
    let declared = declared();
    let start = Instant::now();
    let mut world = World::up();
    eprintln!("{:>5.1} s: up", start.elapsed().as_secs_f64());
    let mut seen = BTreeMap::new();
    let mut missing = still(&declared, &seen);
    for stage in &STAGES {
        // A slow machine may not have come to all of it.
        for _ in 0..TRIES {
            world.go_through(stage, &mut |text| read(text, &mut seen));
            let now = still(&declared, &seen);
            let moved: Vec<_> = missing.difference(&now).collect();
            eprintln!("{:>5.1} s: {} moved {moved:?}", start.elapsed().as_secs_f64(), stage.name);
            missing = now;
            if !stage.moves.iter().any(|name| missing.contains(name)) {
                break;
            }
        }
    }
    // Calls may be counted a moment later.
    while !missing.is_empty() && start.elapsed() < LIMIT {
        world.go_through(&STAGES[0], &mut |text| read(text, &mut seen));
        missing = still(&declared, &seen);
    }
    let of = |name: &str| STAGES.iter().find(|s| s.moves.contains(&name)).unwrap_or(&STAGES[0]).name;
    let missing: Vec<_> = missing.iter().map(|name| format!("{name}, by {:?}", of(name))).collect();
    assert!(
        missing.is_empty(),
        "{}\nnever moved, and metrics/scenarios.rs gives no reason: {missing:#?}",
        world.logs()
    );
    for (name, seen) in &seen {
        if name.starts_with("process_") {
            continue;
        }
        let Some(Declared { kind, help, labels, .. }) = declared.get(name) else {
            panic!("{name} is served, and not found in the source: metrics/declared.rs does not see it");
        };
        assert_eq!(&seen.kind, kind, "type of {name}");
        assert_eq!(&seen.help, help, "help of {name}");
        let labels: BTreeSet<_> = labels.iter().cloned().collect();
        assert_eq!(seen.labels, labels, "labels of {name}");
    }
    for (name, reason) in STILL {
        let moved = seen.get(*name).is_some_and(|s| s.moved);
        assert!(!moved, "{name} moves after all: metrics/scenarios.rs says it takes {reason}");
    }
}

#[test]
fn what_is_said_to_move_elsewhere_exists_and_its_test_looks() {
    let declared = declared();
    for name in elsewhere() {
        assert!(declared.contains_key(name), "{name} is no metric any longer");
    }
    let mut all = BTreeSet::new();
    for (name, reason) in STILL {
        assert!(all.insert(name) && reason.len() > 20, "{name} stands twice, or without a reason");
    }
    assert!(STILL.len() <= 6, "not a short list any more");
    for (file, names) in SCENARIOS {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        assert!(text.contains(&format!("\"{file}\"")), "{file} does not look whether {names:?} move");
    }
}
