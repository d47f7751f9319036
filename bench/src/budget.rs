//! What the mesh may cost at most, and whether it does. A budget missed is said, not hidden: it is no error of the bench.

use std::fmt::Write as _;

use crate::report::{BINARY, CALIBRATOR, CPU, Metric, RSS, Report};

/// One limit: suite, scenario, subject, metric, the most that it may be, and whether divided by the calibrator's.
struct Budget(&'static str, &'static str, &'static str, Metric, f64, bool);

const BUDGETS: [Budget; 6] = [
    Budget("http", "keepalive-16", "mesh-proxy-l4", CPU, 1.3, true),
    Budget("http", "keepalive-16", "mesh-proxy-l7", CPU, 2.0, true),
    Budget("http", "keepalive-16", "mesh-tunnel-l4", CPU, 3.5, true),
    Budget("http", "keepalive-16", "mesh-tunnel-l7", CPU, 5.0, true),
    Budget("memory", "idle", "mesh-proxy", RSS, 20.0, false),
    Budget("binary", "stripped", "mesh-proxy", BINARY, 20.0, false),
];

/// A line for each budget, and the count.
pub(crate) fn check(report: &Report) -> String {
    let mut out = String::from("\nbudgets\n");
    let mut counts = [0; 3];
    for Budget(suite, scenario, subject, metric, most, is_ratio) in &BUDGETS {
        let place = [*suite, *scenario, *subject];
        let value = if *is_ratio { report.ratio(place, *metric) } else { report.median(place, *metric) };
        let unit = if *is_ratio { format!("x {CALIBRATOR}") } else { metric.1.to_owned() };
        let (verdict, count) = match value {
            None => ("not measured".to_owned(), 2),
            Some(value) if value <= *most => (format!("{value:.2}, ok"), 0),
            Some(value) => (format!("{value:.2}, MISSED"), 1),
        };
        counts[count] += 1;
        let _ = writeln!(
            out,
            "  {:<44} at most {most:>5.1} {unit:<14} {verdict}",
            format!("{subject} {} ({scenario})", metric.0)
        );
    }
    let [passed, failed, skipped] = counts;
    let _ = write!(out, "bench: {passed} passed, {failed} failed, {skipped} skipped");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_met_missed_or_not_measured() {
        let mut report = Report::default();
        report.add(["http", "keepalive-16", "mesh-proxy-l4"], CPU, 0, 2.4, Some(2.0));
        report.add(["http", "keepalive-16", "mesh-proxy-l7"], CPU, 0, 9.0, Some(2.0));
        report.add(["memory", "idle", "mesh-proxy"], RSS, 0, 12.5, None);
        let text = check(&report);
        for part in
            ["1.20, ok", "4.50, MISSED", "12.50, ok", "not measured", "bench: 2 passed, 1 failed, 3 skipped"]
        {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
}
