//! Prometheus' text format. As the library writes it, byte for byte; but the labels of a metric are written once for all
//! its lines, which with two dozen labels and as many buckets is most of the work of a scrape.

use std::io::Write;

use prometheus::proto::{Metric, MetricFamily, MetricType};

/// Where a text that is written in parts goes on: a family, and a place in it.
pub type Place = (usize, usize);

/// Families that are too large to be gathered at once. They are written in parts, with nothing held in between.
pub trait Exposed: Send + Sync {
    /// Appends a part, some tens of kilobytes; `from` is where the part before ended, zeros at first. Says where to go on;
    /// none: that was all.
    fn expose(&self, from: Place, out: &mut Vec<u8>) -> Option<Place>;

    /// A scrape ended before the last part, because parts were not taken.
    fn cut_off(&self) {}
}

/// The families as a scrape sees them.
pub fn exposition(families: &[MetricFamily]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut text = Vec::new();
    for family in families {
        let (name, kind) = (family.name(), family.get_field_type());
        head(name, family.help(), kind, &mut out);
        for metric in family.get_metric() {
            text.clear();
            let pairs = metric.get_label().iter().map(|pair| (pair.name(), pair.value()));
            labels(pairs, &mut text);
            series(name, kind, metric, &text, &mut out);
        }
    }
    out
}

/// Appends labels as they stand between braces.
pub fn labels<'l>(pairs: impl Iterator<Item = (&'l str, &'l str)>, out: &mut Vec<u8>) {
    for (i, (name, value)) in pairs.enumerate() {
        out.extend_from_slice(if i == 0 { b"" } else { b"," });
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"=\"");
        escape(value, true, out);
        out.push(b'"');
    }
}

// Writing to a Vec cannot fail.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => {{ let _cannot_fail = write!($out, $($arg)*); }};
}

/// Appends what comes before the lines of a family.
pub fn head(name: &str, help: &str, kind: MetricType, out: &mut Vec<u8>) {
    if !help.is_empty() {
        put!(out, "# HELP {name} ");
        escape(help, false, out);
        out.push(b'\n');
    }
    let kind = match kind {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::SUMMARY => "summary",
        MetricType::HISTOGRAM => "histogram",
        MetricType::UNTYPED => "untyped",
    };
    put!(out, "# TYPE {name} {kind}\n");
}

/// Appends the lines of one metric, whose labels are written already.
pub fn series(name: &str, kind: MetricType, metric: &Metric, labels: &[u8], out: &mut Vec<u8>) {
    let mut line = |suffix: &str, bound: Option<f64>, value: f64| {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(suffix.as_bytes());
        if !labels.is_empty() || bound.is_some() {
            out.push(b'{');
            out.extend_from_slice(labels);
            if let Some(bound) = bound {
                out.extend_from_slice(if labels.is_empty() { b"le=\"" } else { b",le=\"" });
                match bound.is_infinite() {
                    true => out.extend_from_slice(b"+Inf"),
                    false => number(bound, out),
                }
                out.push(b'"');
            }
            out.push(b'}');
        }
        out.push(b' ');
        number(value, out);
        out.push(b'\n');
    };
    match kind {
        MetricType::COUNTER => line("", None, metric.get_counter().get_value()),
        MetricType::GAUGE => line("", None, metric.get_gauge().get_value()),
        MetricType::HISTOGRAM => {
            let h = metric.get_histogram();
            #[allow(clippy::cast_precision_loss, reason = "the format has floating point only")]
            let count = |n: u64| n as f64;
            for bucket in h.get_bucket() {
                line("_bucket", Some(bucket.upper_bound()), count(bucket.cumulative_count()));
            }
            if !h.get_bucket().iter().any(|b| b.upper_bound().is_infinite()) {
                line("_bucket", Some(f64::INFINITY), count(h.get_sample_count()));
            }
            line("_sum", None, h.get_sample_sum());
            line("_count", None, count(h.get_sample_count()));
        }
        // Nothing here makes these.
        MetricType::SUMMARY | MetricType::UNTYPED => {}
    }
}

/// Whole numbers, which most are, are quicker to write as such.
fn number(value: f64, out: &mut Vec<u8>) {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "in the range that was asked for"
    )]
    if (1.0..1e15).contains(&value) && value.fract() == 0.0 {
        put!(out, "{}", value as u64);
    } else {
        put!(out, "{value}");
    }
}

fn escape(text: &str, quotes: bool, out: &mut Vec<u8>) {
    for b in text.bytes() {
        match b {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'"' if quotes => out.extend_from_slice(b"\\\""),
            b => out.push(b),
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{
        Encoder, Gauge, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder,
    };

    use super::*;

    #[test]
    fn it_is_what_the_library_writes() {
        let registry = Registry::new();
        let counters =
            IntCounterVec::new(Opts::new("a_total", "Help \\ with\n\"all\"."), &["x", "y"]).unwrap();
        counters.with_label_values(&["plain", "q\"b\\n\nend"]).inc_by(7);
        counters.with_label_values(&["", "é"]).inc();
        let options = HistogramOpts::new("b_ms", "Times.").buckets(vec![0.5, 1.0, 2500.0, 3_600_000.0]);
        let histograms = HistogramVec::new(options, &["z"]).unwrap();
        [0.1, 0.75, 12.5, 1e9].iter().for_each(|v| histograms.with_label_values(&["1"]).observe(*v));
        let bare = prometheus::Histogram::with_opts(HistogramOpts::new("c", "Bare.")).unwrap();
        bare.observe(0.3);
        let gauge = Gauge::new("d", "Odd numbers.").unwrap();
        gauge.set(-1.0 / 3.0);
        registry.register(Box::new(counters)).unwrap();
        registry.register(Box::new(histograms)).unwrap();
        registry.register(Box::new(bare)).unwrap();
        registry.register(Box::new(gauge)).unwrap();
        let families = registry.gather();
        let mut library = Vec::new();
        TextEncoder::new().encode(&families, &mut library).unwrap();
        assert_eq!(String::from_utf8(exposition(&families)).unwrap(), String::from_utf8(library).unwrap());
    }
}
