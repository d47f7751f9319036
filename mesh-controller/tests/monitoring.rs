//! What the chart ships for Prometheus and Grafana: rules are judged by promtool, and every metric that a rule, a dashboard or
//! a listed query names exists.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(folder)).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|p| p.extension().is_some_and(|e| e == ending)).collect();
    files.sort();
    assert!(!files.is_empty(), "{folder} has no .{ending}");
    files
}

/// Runs promtool; `false` where it is not installed.
fn promtool(args: &[&str], files: &[PathBuf]) -> bool {
    let Ok(output) = Command::new("promtool").args(args).args(files).output() else {
        println!("skipped: promtool is not installed (package prometheus)");
        return false;
    };
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    assert!(output.status.success(), "promtool {args:?}: {text}");
    true
}

#[test]
fn rules_are_valid_and_say_what_they_should() {
    if promtool(&["check", "rules"], &files("charts/mesh/files/rules", "yaml")) {
        promtool(&["test", "rules"], &[root().join("mesh-controller/tests/prometheus/rules.test.yaml")]);
    }
}

/// Names of our metrics and of recorded series in an expression.
fn names(expression: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = expression.split(|c| !word(c)).filter(|w| {
        w.contains(':') && w.len() > 8
            || ["istio_", "selvage_", "process_"].iter().any(|prefix| w.starts_with(prefix))
    });
    words.map(str::to_owned).collect()
}

/// What the programs have: the generated list, and what every program of the client library has.
fn known() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let mut known = BTreeSet::new();
    for line in text.lines().filter(|l| l.starts_with("| `")) {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let (name, kind) = (cells.next().unwrap().trim_matches('`').to_owned(), cells.next().unwrap());
        if kind == "histogram" {
            known.extend(["bucket", "sum", "count"].map(|s| format!("{name}_{s}")));
        }
        known.insert(name);
    }
    known.extend(["process_cpu_seconds_total", "process_resident_memory_bytes"].map(str::to_owned));
    known
}

/// File and expression, of all that is shipped and listed; names of recorded series.
fn expressions() -> (BTreeMap<String, Vec<String>>, BTreeSet<String>) {
    let (mut found, mut recorded): (BTreeMap<String, Vec<String>>, _) = (BTreeMap::new(), BTreeSet::new());
    for file in files("charts/mesh/files/rules", "yaml") {
        let rules: Value = serde_saphyr::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        for rule in rules["groups"].as_array().unwrap().iter().flat_map(|g| g["rules"].as_array().unwrap()) {
            recorded.extend(rule["record"].as_str().map(str::to_owned));
            let all = found.entry(file.display().to_string()).or_default();
            all.push(rule["expr"].as_str().unwrap().to_owned());
            if rule["alert"].is_string() {
                let said = &rule["annotations"];
                assert!(
                    said["summary"].is_string() && said["action"].is_string(),
                    "{rule}: says not what to do"
                );
                assert!(
                    ["info", "warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap())
                );
            }
        }
    }
    for file in files("charts/mesh/files/dashboards", "json") {
        let board: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let panels = board["panels"].as_array().unwrap();
        let ids: BTreeSet<u64> = panels.iter().map(|p| p["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len(), "{}: two panels have one id", file.display());
        let targets = panels.iter().flat_map(|p| p["targets"].as_array().unwrap());
        let exprs = targets.map(|t| t["expr"].as_str().unwrap().to_owned());
        found.entry(file.display().to_string()).or_default().extend(exprs);
    }
    let list = root().join("mesh-controller/tests/prometheus/istio-queries.txt");
    let text = std::fs::read_to_string(&list).unwrap();
    let lines = text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned);
    found.insert(list.display().to_string(), lines.collect());
    (found, recorded)
}

#[test]
fn every_metric_that_is_asked_for_exists() {
    let (found, recorded) = expressions();
    let known = known();
    assert!(known.len() > 80, "{}", known.len());
    let mut unknown = Vec::new();
    for (file, expressions) in &found {
        assert!(!expressions.is_empty(), "{file}");
        for expression in expressions {
            let names = names(expression);
            let bad = names.iter().filter(|n| !known.contains(*n) && !recorded.contains(*n));
            unknown.extend(bad.map(|n| format!("{file}: {n} in {expression}")));
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}
