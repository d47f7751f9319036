//! Istio's standard metrics: names, labels and buckets that existing dashboards read.
//!
//! A series is resolved once for each distinct set of labels and handed out as counters; the number of series is
//! bounded, and what does not fit is counted under one series whose labels say so.

mod family;
mod labels;

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
};

use family::{Family, Gathered, LabelText};
use labels::call_values;
pub use labels::{CALL_LABELS, REQUEST_LABELS};
use node_rt::{Exposed, Place};
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry, proto::MetricType};
use serde::{Deserialize, Serialize};

use super::{
    counters::EdgeCounters,
    flags::Flags,
    local::RequestEnd,
    peer::{Destination, Peer},
    routes::RouteCounters,
    rules::MetricRules,
};

/// How much the metrics may remember.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct TelemetryConfig {
    /// Most series of the traffic metrics (default 45000). A set of labels with its three histograms has 67 of them; once
    /// half of the room is taken, new sets get their counter only, and their times and sizes share the series labelled
    /// `overflow`; once all is taken, so do their counts.
    #[serde(alias = "max_series")]
    pub max_series: usize,
    /// Requests to this node's pods are counted here as well (default true), with `reporter="destination"`: HTTP that
    /// comes from other nodes is read as it goes by.
    pub inbound_requests: bool,
    /// Value of the labels `source_cluster` and `destination_cluster` (default `Kubernetes`, as Istio's).
    pub cluster: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { max_series: 45_000, inbound_requests: true, cluster: "Kubernetes".to_owned() }
    }
}

/// Which side of the call counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The caller's node.
    Source,
    /// The node that owns the endpoint.
    Destination,
}

impl Reporter {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// The label `request_protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestProtocol {
    /// HTTP/1 and HTTP/2.
    Http,
    /// gRPC, by content type.
    Grpc,
}

impl RequestProtocol {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// The label `connection_security_policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Security {
    /// Plain bytes inside one node.
    None,
    /// Authenticated on both ends: the tunnel.
    MutualTls,
    /// The reporter cannot tell (Istio's value on the caller's side).
    Unknown,
}

impl Security {
    const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::MutualTls => "mutual_tls",
            Self::Unknown => "unknown",
        }
    }
}

/// Who called what, for labels.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Which side counts.
    pub reporter: Reporter,
    /// The caller.
    pub source: &'a Peer,
    /// The workload that was reached.
    pub destination: &'a Peer,
    /// The service that was called.
    pub service: &'a Destination,
    /// How the bytes were protected.
    pub security: Security,
}

/// Istio's (Envoy's) histogram buckets; milliseconds for durations, bytes for sizes.
const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// The family that counts requests.
const REQUESTS: &str = "istio_requests_total";
/// All families of requests.
pub(crate) const REQUEST_METRICS: [&str; 4] =
    [REQUESTS, "istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"];
/// Series of one set of request labels: the counter, and of three histograms the buckets, sum and count.
const REQUEST_SERIES: usize = 1 + 3 * (BUCKETS.len() + 3);
/// Series of one set of connection labels.
const TCP_SERIES: usize = 4;

/// The label sets that have been admitted, and how many series they have.
#[derive(Debug, Default)]
struct Known {
    sets: HashMap<u64, Room>,
    series: usize,
}

/// What a label set gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    All,
    Counter,
    None,
}

/// What overflowing calls are labelled with.
const OVERFLOW: &str = "overflow";

/// Counters of one set of request labels.
#[derive(Debug, Clone)]
pub struct RequestSeries {
    /// `istio_requests_total`.
    pub total: IntCounter,
    /// `istio_request_duration_milliseconds`.
    pub duration_ms: Histogram,
    /// `istio_request_bytes`.
    pub request_bytes: Histogram,
    /// `istio_response_bytes`.
    pub response_bytes: Histogram,
}

/// Counters of one set of connection labels.
#[derive(Debug, Clone)]
pub struct TcpSeries {
    /// `istio_tcp_sent_bytes_total`: bytes from the destination to the caller.
    pub sent: IntCounter,
    /// `istio_tcp_received_bytes_total`: bytes from the caller to the destination.
    pub received: IntCounter,
    /// `istio_tcp_connections_opened_total`.
    pub opened: IntCounter,
    /// `istio_tcp_connections_closed_total`.
    pub closed: IntCounter,
}

/// The metric families; one for the process.
#[derive(Debug)]
pub struct Telemetry {
    config: TelemetryConfig,
    requests: Arc<Family<IntCounter>>,
    duration: Arc<Family<Histogram>>,
    request_bytes: Arc<Family<Histogram>>,
    response_bytes: Arc<Family<Histogram>>,
    tcp_sent: Arc<Family<IntCounter>>,
    tcp_received: Arc<Family<IntCounter>>,
    tcp_opened: Arc<Family<IntCounter>>,
    tcp_closed: Arc<Family<IntCounter>>,
    /// Labels of what found no room, of requests and of connections.
    overflowing: [LabelText; 2],
    /// Touched only when a worker's cache misses.
    known: Mutex<Known>,
    series_gauge: IntGauge,
    reduced: IntCounter,
    overflow: IntCounter,
    /// What no request tells of.
    pub edges: EdgeCounters,
    /// Requests by the names that rules give them.
    pub routes: RouteCounters,
}

impl Telemetry {
    /// Registers the families.
    pub fn new(registry: &Registry, config: TelemetryConfig) -> Result<Self, prometheus::Error> {
        let telemetry = Self::apart(registry, config)?;
        for family in telemetry.counters() {
            registry.register(Box::new(Gathered(Arc::clone(family))))?;
        }
        for family in telemetry.histograms() {
            registry.register(Box::new(Gathered(Arc::clone(family))))?;
        }
        Ok(telemetry)
    }

    /// Registers what is small; the families are written by [`Exposed`], and never gathered.
    pub fn apart(registry: &Registry, config: TelemetryConfig) -> Result<Self, prometheus::Error> {
        let request_labels: Vec<&str> = CALL_LABELS.into_iter().chain(REQUEST_LABELS).collect();
        let counters = |name, help, labels: &[&str]| {
            Family::new((name, help, MetricType::COUNTER), labels, || {
                IntCounter::new("series", "one of a family")
            })
        };
        let histograms = |name, help| {
            Family::new((name, help, MetricType::HISTOGRAM), &request_labels, || {
                let opts = HistogramOpts::new("series", "one of a family").buckets(BUCKETS.to_vec());
                Histogram::with_opts(opts)
            })
        };
        let overflowing = [request_labels.as_slice(), &CALL_LABELS]
            .map(|l| family::text(l.iter().copied(), &vec![OVERFLOW; l.len()]));
        let series_gauge =
            IntGauge::new("selvage_telemetry_series", "Series that the traffic metrics hold.")?;
        let reduced = IntCounter::new(
            "selvage_telemetry_reduced_total",
            "Label sets that have a counter only; their times and sizes share the series labelled overflow.",
        )?;
        registry.register(Box::new(reduced.clone()))?;
        let overflow = IntCounter::new(
            "selvage_telemetry_overflow_total",
            "Label sets that did not fit and share the series labelled overflow.",
        )?;
        registry.register(Box::new(series_gauge.clone()))?;
        registry.register(Box::new(overflow.clone()))?;
        Ok(Self {
            config,
            requests: counters("istio_requests_total", "Requests that have ended.", &request_labels)?,
            duration: histograms("istio_request_duration_milliseconds", "Duration of requests.")?,
            request_bytes: histograms("istio_request_bytes", "Size of request bodies.")?,
            response_bytes: histograms("istio_response_bytes", "Size of response bodies.")?,
            tcp_sent: counters(
                "istio_tcp_sent_bytes_total",
                "Bytes sent to callers over TCP connections.",
                &CALL_LABELS,
            )?,
            tcp_received: counters(
                "istio_tcp_received_bytes_total",
                "Bytes received from callers over TCP connections.",
                &CALL_LABELS,
            )?,
            tcp_opened: counters(
                "istio_tcp_connections_opened_total",
                "TCP connections opened.",
                &CALL_LABELS,
            )?,
            tcp_closed: counters(
                "istio_tcp_connections_closed_total",
                "TCP connections closed.",
                &CALL_LABELS,
            )?,
            overflowing,
            known: Mutex::default(),
            series_gauge,
            reduced,
            overflow,
            edges: EdgeCounters::new(registry)?,
            routes: RouteCounters::new(registry, &BUCKETS)?,
        })
    }

    fn counters(&self) -> [&Arc<Family<IntCounter>>; 5] {
        [&self.requests, &self.tcp_sent, &self.tcp_received, &self.tcp_opened, &self.tcp_closed]
    }

    fn histograms(&self) -> [&Arc<Family<Histogram>>; 3] {
        [&self.duration, &self.request_bytes, &self.response_bytes]
    }

    /// The value of the cluster labels.
    pub fn cluster(&self) -> &str {
        &self.config.cluster
    }

    /// The counters of one kind of request. Costs a few microseconds: keep what it returns.
    pub fn request_series(
        &self,
        call: &Call<'_>,
        protocol: RequestProtocol,
        flags: Flags,
        code: u16,
        grpc_status: Option<u16>,
    ) -> Result<RequestSeries, prometheus::Error> {
        let end = RequestEnd { protocol, flags, code, grpc_status };
        self.request_series_by(call, end, &MetricRules::default())
    }

    /// The same under a workload's rules.
    pub(crate) fn request_series_by(
        &self,
        call: &Call<'_>,
        end: RequestEnd,
        rules: &MetricRules,
    ) -> Result<RequestSeries, prometheus::Error> {
        let (flags, code) = (end.flags.letters(), end.code.to_string());
        let grpc = end.grpc_status.map(|s| s.to_string()).unwrap_or_default();
        let head = call_values(call, end.protocol.as_str(), &flags);
        let mut values = [""; CALL_LABELS.len() + REQUEST_LABELS.len()];
        values[..CALL_LABELS.len()].copy_from_slice(&head);
        values[CALL_LABELS.len()] = &code;
        values[CALL_LABELS.len() + 1] = &grpc;
        let room = self.admit(&values, REQUEST_SERIES);
        let names = || CALL_LABELS.into_iter().chain(REQUEST_LABELS);
        let plain = match room {
            Room::None => Arc::clone(&self.overflowing[0]),
            Room::All | Room::Counter => family::text(names(), &values),
        };
        let labels = |metric: &str| {
            if room == Room::Counter && metric != REQUESTS {
                return Arc::clone(&self.overflowing[0]);
            }
            if room == Room::None || rules.is_plain() {
                return Arc::clone(&plain);
            }
            let mut own = values;
            rules.relabel(metric, &CALL_LABELS, &mut own[..CALL_LABELS.len()]);
            rules.relabel(metric, &REQUEST_LABELS, &mut own[CALL_LABELS.len()..]);
            family::text(names(), &own)
        };
        let histogram = |family: &Family<Histogram>, metric| match rules.disables(metric) {
            true => Histogram::with_opts(HistogramOpts::new("disabled", "counts for nobody")),
            false => family.get(&labels(metric)),
        };
        Ok(RequestSeries {
            total: match rules.disables(REQUESTS) {
                true => IntCounter::new("disabled", "counts for nobody")?,
                false => self.requests.get(&labels(REQUESTS))?,
            },
            duration_ms: histogram(&self.duration, "istio_request_duration_milliseconds")?,
            request_bytes: histogram(&self.request_bytes, "istio_request_bytes")?,
            response_bytes: histogram(&self.response_bytes, "istio_response_bytes")?,
        })
    }

    /// The counters of one kind of TCP connection. Costs a few microseconds: keep what it returns.
    pub fn tcp_series(&self, call: &Call<'_>, flags: Flags) -> Result<TcpSeries, prometheus::Error> {
        self.tcp_series_by(call, flags, &MetricRules::default())
    }

    /// The same under a workload's rules.
    pub(crate) fn tcp_series_by(
        &self,
        call: &Call<'_>,
        flags: Flags,
        rules: &MetricRules,
    ) -> Result<TcpSeries, prometheus::Error> {
        let flags = flags.letters();
        let values = call_values(call, "tcp", &flags);
        let fits = self.admit(&values, TCP_SERIES) != Room::None;
        let plain = match fits {
            true => family::text(CALL_LABELS.into_iter(), &values),
            false => Arc::clone(&self.overflowing[1]),
        };
        let counter = |family: &Family<IntCounter>, metric| {
            if rules.disables(metric) {
                return IntCounter::new("disabled", "counts for nobody");
            }
            if !fits || rules.is_plain() {
                return family.get(&plain);
            }
            let mut own = values;
            rules.relabel(metric, &CALL_LABELS, &mut own);
            family.get(&family::text(CALL_LABELS.into_iter(), &own))
        };
        Ok(TcpSeries {
            sent: counter(&self.tcp_sent, "istio_tcp_sent_bytes_total")?,
            received: counter(&self.tcp_received, "istio_tcp_received_bytes_total")?,
            opened: counter(&self.tcp_opened, "istio_tcp_connections_opened_total")?,
            closed: counter(&self.tcp_closed, "istio_tcp_connections_closed_total")?,
        })
    }

    /// What this label set gets of the room; a set that was admitted once keeps it.
    fn admit(&self, values: &[&str], series: usize) -> Room {
        let mut hasher = DefaultHasher::new();
        values.hash(&mut hasher);
        let hash = hasher.finish();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(room) = known.sets.get(&hash) {
            return *room;
        }
        let most = self.config.max_series;
        // Only requests have more series than counters.
        let requests = series > TCP_SERIES;
        let (room, taken) = if known.series + series <= if requests { most / 2 } else { most } {
            (Room::All, series)
        } else if requests && known.series < most {
            self.reduced.inc();
            (Room::Counter, 1)
        } else {
            self.overflow.inc();
            return Room::None;
        };
        known.sets.insert(hash, room);
        known.series += taken;
        self.series_gauge.set(i64::try_from(known.series).unwrap_or(i64::MAX));
        room
    }
}

impl Exposed for Telemetry {
    fn expose(&self, (family, from): Place, out: &mut Vec<u8>) -> Option<Place> {
        let counters = self.counters();
        let next = match counters.get(family) {
            Some(counters) => counters.expose(from, out),
            None => self.histograms().get(family - counters.len())?.expose(from, out),
        };
        let last = family + 1 == counters.len() + self.histograms().len();
        next.map(|next| (family, next)).or((!last).then_some((family + 1, 0)))
    }

    fn cut_off(&self) {
        self.edges.scrapes_cut.inc();
    }
}

#[cfg(test)]
mod tests;
