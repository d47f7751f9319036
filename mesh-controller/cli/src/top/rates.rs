//! Two looks as rates.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use serde::Serialize;

use super::sample::Series;
use crate::args::By;

const REQUESTS: &str = "istio_requests_total";
const DURATION: &str = "istio_request_duration_milliseconds_bucket";
const TCP: &str = "istio_tcp_connections_opened_total";
const TCP_CLOSED: &str = "istio_tcp_connections_closed_total";
const TCP_BYTES: [&str; 2] = ["istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"];

/// One look at a proxy.
pub(super) struct Look {
    pub(super) at: Instant,
    pub(super) series: Vec<Series>,
    /// CPU time of the process, where it says so.
    pub(super) cpu: Option<f64>,
}

/// A proxy or a service.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    /// Of pods of this node; by service: of all callers.
    pub(super) requests_per_s: f64,
    /// To pods of this node.
    pub(super) inbound_per_s: f64,
    /// Part of the requests that were answered with 5xx, or not at all, 0 to 1.
    pub(super) errors: f64,
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
    pub(super) tcp_per_s: f64,
    pub(super) tcp_bytes_per_s: f64,
    /// Open TCP connections of pods of this node, and connections to its pods that came through the tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) connections: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) peers: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) streams: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu_cores: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rss_bytes: Option<f64>,
}

/// Name, first look, second look.
type Looks = [(String, Look, Look)];

/// Sums of differences.
#[derive(Default)]
struct Sum {
    requests: f64,
    inbound: f64,
    failed: f64,
    tcp: f64,
    bytes: f64,
    /// By upper limit in milliseconds, cumulative.
    buckets: BTreeMap<u64, f64>,
}

impl Sum {
    fn add(&mut self, series: &Series, difference: f64) {
        match series.name.as_str() {
            REQUESTS => {
                let code = series.label("response_code");
                if code.starts_with('5') || code == "0" {
                    self.failed += difference;
                }
                self.requests += difference;
            }
            DURATION => {
                let limit = series.label("le").parse::<f64>().unwrap_or(f64::INFINITY);
                *self.buckets.entry(limit.to_bits()).or_default() += difference;
            }
            TCP => self.tcp += difference,
            name if TCP_BYTES.contains(&name) => self.bytes += difference,
            _ => {}
        }
    }

    fn row(&self, name: &str, seconds: f64) -> Row {
        let counted = self.requests + self.inbound;
        Row {
            name: name.to_owned(),
            requests_per_s: self.requests / seconds,
            inbound_per_s: self.inbound / seconds,
            errors: if counted > 0.0 { self.failed / counted } else { 0.0 },
            p50_ms: quantile(&self.buckets, 0.5),
            p99_ms: quantile(&self.buckets, 0.99),
            tcp_per_s: self.tcp / seconds,
            tcp_bytes_per_s: self.bytes / seconds,
            ..Row::default()
        }
    }
}

/// As Prometheus' `histogram_quantile`: linear within a bucket; what lies in the last one is its lower limit. Bits of numbers
/// that are not negative are in the order of the numbers.
fn quantile(buckets: &BTreeMap<u64, f64>, part: f64) -> Option<f64> {
    let total = *buckets.values().last()?;
    if total <= 0.0 {
        return None;
    }
    let (rank, mut below, mut from) = (part * total, 0.0, 0.0);
    for (bits, count) in buckets {
        let limit = f64::from_bits(*bits);
        if *count >= rank {
            if limit.is_infinite() || *count <= below {
                return Some(from);
            }
            return Some(from + (limit - from) * (rank - below) / (count - below));
        }
        (below, from) = (*count, limit);
    }
    Some(from)
}

/// Differences of all series of traffic; a counter that went back has begun anew.
fn differences<'a>(first: &'a Look, second: &'a Look) -> impl Iterator<Item = (&'a Series, f64)> {
    let key = |s: &'a Series| (s.name.as_str(), s.labels.as_slice());
    let before: HashMap<_, f64> =
        first.series.iter().filter(|s| s.name.starts_with("istio_")).map(|s| (key(s), s.value)).collect();
    second.series.iter().filter(|s| s.name.starts_with("istio_")).map(move |s| {
        let old = before.get(&key(s)).copied().unwrap_or(0.0);
        (s, if s.value >= old { s.value - old } else { s.value })
    })
}

fn seconds(first: &Look, second: &Look) -> f64 {
    second.at.duration_since(first.at).as_secs_f64().max(0.001)
}

pub(super) fn by_proxy(looks: &Looks) -> Vec<Row> {
    let mut rows: Vec<Row> = looks
        .iter()
        .map(|(name, first, second)| {
            let mut sum = Sum::default();
            for (series, difference) in differences(first, second) {
                if series.label("reporter") == "destination" && series.name == REQUESTS {
                    sum.inbound += difference;
                    let code = series.label("response_code");
                    if code.starts_with('5') || code == "0" {
                        sum.failed += difference;
                    }
                } else {
                    sum.add(series, difference);
                }
            }
            let seconds = seconds(first, second);
            let mut row = sum.row(name, seconds);
            let now = |name: &str| total(second, name);
            let cpu = |look: &Look| look.cpu.or_else(|| total(look, "process_cpu_seconds_total"));
            let open = now(TCP).unwrap_or(0.0) - now(TCP_CLOSED).unwrap_or(0.0);
            row.connections = now("selvage_inbound_connections").map(|n| n + open.max(0.0));
            row.peers = now("selvage_tunnel_connections");
            row.streams = now("selvage_tunnel_streams");
            row.cpu_cores = cpu(second).zip(cpu(first)).map(|(b, a)| (b - a).max(0.0) / seconds);
            row.rss_bytes = now("process_resident_memory_bytes");
            row
        })
        .collect();
    let busy = |r: &Row| r.requests_per_s + r.inbound_per_s + r.tcp_per_s;
    rows.sort_by(|a, b| busy(b).total_cmp(&busy(a)).then_with(|| a.name.cmp(&b.name)));
    rows
}

/// Callers count; their proxies are summed up.
pub(super) fn by_service(looks: &Looks) -> Vec<Row> {
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    let mut longest: f64 = 0.001;
    for (_, first, second) in looks {
        longest = longest.max(seconds(first, second));
        for (series, difference) in differences(first, second) {
            if series.label("reporter") == "destination" {
                continue;
            }
            let (service, host) =
                (series.label("destination_service_name"), series.label("destination_service"));
            let name = match (service, series.label("destination_service_namespace")) {
                ("" | "unknown", _) => host.to_owned(),
                (service, namespace) => format!("{service}.{namespace}"),
            };
            sums.entry(name).or_default().add(series, difference);
        }
    }
    let mut rows: Vec<Row> = sums.iter().map(|(name, sum)| sum.row(name, longest)).collect();
    let busy = |r: &Row| r.requests_per_s + r.tcp_per_s;
    rows.sort_by(|a, b| busy(b).total_cmp(&busy(a)).then_with(|| a.name.cmp(&b.name)));
    rows
}

fn total(look: &Look, name: &str) -> Option<f64> {
    let mut found = look.series.iter().filter(|s| s.name == name).map(|s| s.value).peekable();
    found.peek().is_some().then(|| found.sum())
}

impl Row {
    pub(super) fn cells(&self, by: By) -> Vec<String> {
        let ms = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
        let whole = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |n| format!("{n:.0}"));
        let errors = format!("{:.2} %", self.errors * 100.0);
        match by {
            By::Proxy => vec![
                self.name.clone(),
                format!("{:.1}", self.requests_per_s),
                format!("{:.1}", self.inbound_per_s),
                errors,
                ms(self.p50_ms),
                ms(self.p99_ms),
                whole(self.connections),
                whole(self.peers),
                whole(self.streams),
                self.cpu_cores.map_or_else(|| "-".to_owned(), |c| format!("{:.0}m", c * 1000.0)),
                self.rss_bytes.map_or_else(|| "-".to_owned(), |b| format!("{:.0} MiB", b / 1_048_576.0)),
            ],
            By::Service => vec![
                self.name.clone(),
                format!("{:.1}", self.requests_per_s),
                errors,
                ms(self.p50_ms),
                ms(self.p99_ms),
                format!("{:.1}", self.tcp_per_s),
                format!("{:.0}", self.tcp_bytes_per_s),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::sample::parse, *};

    fn looks(first: &str, second: &str) -> [(String, Look, Look); 1] {
        let at = Instant::now();
        let later = at + Duration::from_secs(2);
        [(
            "edge-a".to_owned(),
            Look { at, series: parse(first), cpu: None },
            Look { at: later, series: parse(second), cpu: None },
        )]
    }

    fn requests(reporter: &str, code: &str, count: u32) -> String {
        format!(
            "istio_requests_total{{reporter=\"{reporter}\",destination_service_name=\"reviews\",\
             destination_service_namespace=\"shop\",response_code=\"{code}\"}} {count}\n"
        )
    }

    fn bucket(le: &str, count: u32) -> String {
        format!(
            "istio_request_duration_milliseconds_bucket{{reporter=\"source\",destination_service_name=\"reviews\",\
             destination_service_namespace=\"shop\",le=\"{le}\"}} {count}\n"
        )
    }

    #[test]
    fn rates_are_what_came_in_between() {
        let first = requests("source", "200", 100) + "process_cpu_seconds_total 1\n";
        let second = requests("source", "200", 118)
            + &requests("source", "503", 2)
            + &requests("destination", "200", 10)
            + "process_cpu_seconds_total 1.5\nprocess_resident_memory_bytes 10485760\nselvage_tunnel_connections{path=\"lan\"} 2\n";
        let rows = by_proxy(&looks(&first, &second));
        let row = &rows[0];
        assert_eq!((row.requests_per_s, row.inbound_per_s), (10.0, 5.0));
        assert!((row.errors - 2.0 / 30.0).abs() < 1e-9, "{}", row.errors);
        assert_eq!((row.cpu_cores, row.peers, row.p50_ms), (Some(0.25), Some(2.0), None));
        assert!(
            row.cells(By::Proxy).contains(&"250m".to_owned())
                && row.cells(By::Proxy).contains(&"10 MiB".to_owned())
        );
        // By service only callers count.
        let rows = by_service(&looks(&first, &second));
        assert_eq!(
            (rows[0].name.as_str(), rows[0].requests_per_s, rows[0].errors),
            ("reviews.shop", 10.0, 0.1)
        );
    }

    #[test]
    fn a_counter_that_began_anew_counts_from_nothing() {
        let rows = by_proxy(&looks(&requests("source", "200", 1000), &requests("source", "200", 4)));
        assert_eq!(rows[0].requests_per_s, 2.0);
    }

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let second = bucket("1", 50) + &bucket("5", 90) + &bucket("10", 100) + &bucket("+Inf", 100);
        let row = by_proxy(&looks("", &second)).remove(0);
        assert_eq!(row.p50_ms, Some(1.0));
        assert!((row.p99_ms.unwrap() - 9.5).abs() < 1e-9, "{:?}", row.p99_ms);
        // Beyond the last limit that limit is all that is known.
        let row = by_proxy(&looks("", &(bucket("1", 0) + &bucket("+Inf", 10)))).remove(0);
        assert_eq!(row.p50_ms, Some(1.0));
    }
}
