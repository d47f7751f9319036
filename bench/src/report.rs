//! What was measured, as tables for people and as the list of `target/bench/latest.json`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use rand::RngExt;
use serde::Serialize;

use crate::stats::{bootstrap, median};

/// The relay that every figure is divided by.
pub(crate) const CALIBRATOR: &str = "tokio-copy";
/// Subjects that others are compared with.
const ANCHORS: [&str; 9] = [
    "direct",
    CALIBRATOR,
    "haproxy-l4",
    "haproxy-l7",
    "nginx-l4",
    "nginx-l7",
    "envoy-l4",
    "envoy-l7",
    "envoy-mtls",
];

/// One figure of one subject in one round.
struct Sample {
    round: usize,
    value: f64,
    /// The calibrator's figure right beside it.
    beside: Option<f64>,
}

/// What is measured, with its unit and how it is printed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Metric(pub(crate) &'static str, pub(crate) &'static str);

pub(crate) const RPS: Metric = Metric("rps", "1/s");
pub(crate) const P50: Metric = Metric("p50_us", "us");
pub(crate) const P99: Metric = Metric("p99_us", "us");
pub(crate) const CPU: Metric = Metric("cpu_s_per_100k", "s");
pub(crate) const CONNECTIONS: Metric = Metric("conn_per_s", "1/s");
pub(crate) const GBIT: Metric = Metric("gbit_s", "Gbit/s");
pub(crate) const CPU_GIB: Metric = Metric("cpu_s_per_gib", "s");
pub(crate) const RSS: Metric = Metric("rss_mib", "MiB");
pub(crate) const BINARY: Metric = Metric("binary_mib", "MiB");
pub(crate) const APPLY: Metric = Metric("apply_to_effect_ms", "ms");

pub(crate) const COMPILE: Metric = Metric("compile_ms", "ms");
pub(crate) const WIRE: Metric = Metric("change_to_wire_ms", "ms");
pub(crate) const NODE_RSS: Metric = Metric("rss_kib_per_node", "KiB");
pub(crate) const NODE_CPU: Metric = Metric("cpu_ms_per_node", "ms");
pub(crate) const FILES: Metric = Metric("open_files", "");
pub(crate) const STREAMS: Metric = Metric("tunnel_streams", "");
pub(crate) const SESSIONS: Metric = Metric("udp_sessions", "");
pub(crate) const TRANSFER: Metric = Metric("transfer_ms", "ms");
/// Time over that of a plain connection right before it.
pub(crate) const TIMES: Metric = Metric("times_direct", "x");
pub(crate) const RATE: Metric = Metric("mbit_s", "Mbit/s");
/// Payload.
pub(crate) const SHARE: Metric = Metric("of_line_percent", "%");
/// Everything that the line carried, with headers and what was sent again.
pub(crate) const BUSY: Metric = Metric("line_busy_percent", "%");
pub(crate) const REACHED: Metric = Metric("all_reached_s", "s");

/// One line of `latest.json`; other programs read this form.
#[derive(Serialize)]
struct Line {
    suite: String,
    scenario: String,
    subject: String,
    metric: &'static str,
    unit: &'static str,
    value: f64,
    runs: usize,
    min: f64,
    max: f64,
    ratio_to: BTreeMap<&'static str, Option<f64>>,
}

type Key = (String, String, Metric, String);

/// All samples of a run.
#[derive(Default)]
pub(crate) struct Report {
    samples: BTreeMap<Key, Vec<Sample>>,
    /// Subjects in the order in which they came.
    order: Vec<String>,
    failed: BTreeMap<(String, String), u64>,
}

impl Report {
    /// Adds a figure. `place` is suite, scenario and subject; `beside` the calibrator's figure of the same moment.
    pub(crate) fn add(
        &mut self,
        place: [&str; 3],
        metric: Metric,
        round: usize,
        value: f64,
        beside: Option<f64>,
    ) {
        if !value.is_finite() {
            return;
        }
        let [suite, scenario, subject] = place.map(str::to_owned);
        if !self.order.contains(&subject) {
            self.order.push(subject.clone());
        }
        let samples = self.samples.entry((suite, scenario, metric, subject)).or_default();
        samples.push(Sample { round, value, beside: beside.filter(|b| *b > 0.0) });
    }

    /// Notes requests that failed.
    pub(crate) fn failed(&mut self, scenario: &str, subject: &str, count: u64) {
        if count > 0 {
            *self.failed.entry((scenario.to_owned(), subject.to_owned())).or_default() += count;
        }
    }

    /// Requests that failed, of all subjects.
    pub(crate) fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// The median of a figure.
    pub(crate) fn median(&self, place: [&str; 3], metric: Metric) -> Option<f64> {
        let (_, samples) = self.find(place, metric)?;
        median(&samples.iter().map(|s| s.value).collect::<Vec<_>>())
    }

    /// The median of a figure over the calibrator's.
    pub(crate) fn ratio(&self, place: [&str; 3], metric: Metric) -> Option<f64> {
        let (key, samples) = self.find(place, metric)?;
        median(&self.ratios(key, samples, CALIBRATOR))
    }

    fn find(&self, [suite, scenario, subject]: [&str; 3], metric: Metric) -> Option<(&Key, &[Sample])> {
        let key = (suite.to_owned(), scenario.to_owned(), metric, subject.to_owned());
        self.samples.get_key_value(&key).map(|(key, samples)| (key, samples.as_slice()))
    }

    pub(crate) fn json(&self) -> serde_json::Result<String> {
        let lines: Vec<Line> =
            self.samples.iter().filter_map(|(key, samples)| self.line(key, samples)).collect();
        serde_json::to_string_pretty(&lines)
    }

    fn line(&self, key: &Key, samples: &[Sample]) -> Option<Line> {
        let (suite, scenario, metric, subject) = key;
        let values: Vec<f64> = samples.iter().map(|s| s.value).collect();
        let mut ratio_to = BTreeMap::new();
        for anchor in ANCHORS.into_iter().filter(|a| *a != subject && comparable(subject, a)) {
            let there =
                self.samples.contains_key(&(suite.clone(), scenario.clone(), *metric, anchor.to_owned()));
            if there || anchor == "direct" {
                ratio_to.insert(anchor, median(&self.ratios(key, samples, anchor)).map(round3));
            }
        }
        Some(Line {
            suite: suite.clone(),
            scenario: scenario.clone(),
            subject: subject.clone(),
            metric: metric.0,
            unit: metric.1,
            value: round3(median(&values)?),
            runs: values.len(),
            min: round3(values.iter().copied().fold(f64::INFINITY, f64::min)),
            max: round3(values.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
            ratio_to,
        })
    }

    /// This subject's figure over the anchor's: beside it for the calibrator, of the same round for others.
    fn ratios(&self, key: &Key, samples: &[Sample], anchor: &str) -> Vec<f64> {
        if anchor == CALIBRATOR && samples.iter().any(|s| s.beside.is_some()) {
            return samples.iter().filter_map(|s| Some(s.value / s.beside?)).collect();
        }
        let (suite, scenario, metric, _) = key;
        let of_anchor = self.samples.get(&(suite.clone(), scenario.clone(), *metric, anchor.to_owned()));
        let by_round: BTreeMap<usize, f64> =
            of_anchor.into_iter().flatten().map(|s| (s.round, s.value)).collect();
        samples
            .iter()
            .filter_map(|s| by_round.get(&s.round).map(|a| s.value / a))
            .filter(|r| r.is_finite())
            .collect()
    }

    /// A table for each scenario: a row for each subject, a column for each metric, and the ratio to the calibrator.
    pub(crate) fn tables(&self) -> String {
        let scenarios: BTreeSet<(&str, &str)> =
            self.samples.keys().map(|k| (k.0.as_str(), k.1.as_str())).collect();
        let mut out = String::new();
        for (suite, scenario) in scenarios {
            let metrics: BTreeSet<Metric> =
                self.samples.keys().filter(|k| k.0 == suite && k.1 == scenario).map(|k| k.2).collect();
            let _ = write!(out, "\n{suite} / {scenario}\n  {:<18}", "");
            for metric in &metrics {
                let _ = write!(out, " {:>26}", format!("{} [min-max]", metric.0));
                if let Some(label) = ratio_label(*metric) {
                    let _ = write!(out, " {label:>22}");
                }
            }
            out.push('\n');
            for subject in &self.order {
                self.row(&mut out, [suite, scenario, subject], &metrics);
            }
        }
        for ((scenario, subject), count) in &self.failed {
            let _ = writeln!(out, "failed: {count} requests of {subject} in {scenario}");
        }
        out
    }

    fn row(&self, out: &mut String, [suite, scenario, subject]: [&str; 3], metrics: &BTreeSet<Metric>) {
        let key = |m: &Metric| (suite.to_owned(), scenario.to_owned(), *m, subject.to_owned());
        if !metrics.iter().any(|m| self.samples.contains_key(&key(m))) {
            return;
        }
        let _ = write!(out, "  {subject:<18}");
        for metric in metrics {
            let key = key(metric);
            let samples = self.samples.get(&key).map_or(&[][..], Vec::as_slice);
            let cell = self.line(&key, samples).map_or("-".to_owned(), |l| {
                if l.runs == 1 {
                    number(l.value)
                } else {
                    format!("{} [{}-{}]", number(l.value), number(l.min), number(l.max))
                }
            });
            let _ = write!(out, " {cell:>26}");
            if ratio_label(*metric).is_some() {
                let _ = write!(out, " {:>22}", self.ratio_cell(&key, samples));
            }
        }
        out.push('\n');
    }

    fn ratio_cell(&self, key: &Key, samples: &[Sample]) -> String {
        if key.3 == CALIBRATOR {
            return "-".to_owned();
        }
        let ratios = self.ratios(key, samples, CALIBRATOR);
        let mut rng = rand::rng();
        match (median(&ratios), bootstrap(&ratios, |n| rng.random_range(0..n))) {
            (Some(ratio), Some((low, high))) => format!("{ratio:.2} ({low:.2}-{high:.2})"),
            (Some(ratio), None) => format!("{ratio:.2}"),
            (None, _) => "-".to_owned(),
        }
    }
}

/// Metrics that are divided by the calibrator's.
fn ratio_label(metric: Metric) -> Option<&'static str> {
    ([CPU, CPU_GIB, RPS, CONNECTIONS, GBIT, P50, P99].contains(&metric)).then_some("/ tokio-copy (95 %)")
}

/// An L4 relay is not set beside an L7 proxy.
fn comparable(subject: &str, anchor: &str) -> bool {
    let layer =
        |name: &str| name.rsplit_once('-').map(|(_, l)| l.to_owned()).filter(|l| l == "l4" || l == "l7");
    match (layer(subject), layer(anchor)) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    }
}

fn round3(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn number(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::default();
        for (round, (ours, theirs, envoy)) in
            [(2.0, 1.0, 4.0), (3.0, 1.5, 4.0), (4.0, 1.0, 8.0)].into_iter().enumerate()
        {
            report.add(["http", "keepalive-16", CALIBRATOR], CPU, round, theirs, None);
            report.add(["http", "keepalive-16", "mesh-proxy-l7"], CPU, round, ours, Some(theirs));
            report.add(["http", "keepalive-16", "envoy-l7"], CPU, round, envoy, Some(theirs));
            report.add(["http", "keepalive-16", "envoy-l4"], CPU, round, envoy, Some(theirs));
        }
        report
    }

    #[test]
    fn json_has_the_form_that_others_read() {
        let lines: serde_json::Value = serde_json::from_str(&report().json().unwrap()).unwrap();
        let ours = lines.as_array().unwrap().iter().find(|l| l["subject"] == "mesh-proxy-l7").unwrap();
        let expected = serde_json::json!({
            "suite": "http", "scenario": "keepalive-16", "subject": "mesh-proxy-l7", "metric": "cpu_s_per_100k",
            "unit": "s", "value": 3.0, "runs": 3, "min": 2.0, "max": 4.0,
            "ratio_to": { "direct": null, "tokio-copy": 2.0, "envoy-l7": 0.5 } });
        assert_eq!(*ours, expected);
    }

    #[test]
    fn tables_name_every_subject_and_failures() {
        let mut report = report();
        report.failed("keepalive-16", "envoy-l7", 3);
        let text = report.tables();
        for part in ["mesh-proxy-l7", "2.00 (", "3.00 [2.00-4.00]", "failed: 3 requests of envoy-l7"] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
}
