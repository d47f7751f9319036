//! A bounded load: so many calls, or so long, at a fixed rate or as fast as answers come; and what became of
//! them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::client::{Caller, Outcome, Target};

/// How much to call.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Number of calls at most.
    pub count: u64,
    /// Time at most.
    pub duration: Option<Duration>,
    /// Calls each second, spread evenly; absent: as fast as answers come.
    pub rate: Option<f64>,
    /// Callers, each with its connection.
    pub concurrency: usize,
}

/// What became of the calls.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Calls made.
    pub sent: u64,
    /// Calls without an answer, and answers with a 5xx status or a gRPC error.
    pub failed: u64,
    /// By HTTP status.
    pub by_status: BTreeMap<u16, u64>,
    /// By gRPC status.
    pub by_grpc_status: BTreeMap<u32, u64>,
    /// By version of who answered.
    pub by_version: BTreeMap<String, u64>,
    /// By name of who answered.
    pub by_name: BTreeMap<String, u64>,
    /// By node of who answered.
    pub by_node: BTreeMap<String, u64>,
    /// Why calls had no answer.
    pub errors: BTreeMap<String, u64>,
    /// Time from when a call was due to its end, in milliseconds.
    pub latency_ms: Percentiles,
    /// Time to connect, in milliseconds.
    pub connect_ms: Percentiles,
    /// Connections made.
    pub connections: u64,
    /// How long it all took.
    pub seconds: f64,
    /// The last answer.
    pub last_body: String,
}

/// Where values lie.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Percentiles {
    /// Half are below.
    pub p50: f64,
    /// Nine tenths are below.
    pub p90: f64,
    /// All but a hundredth are below.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Percentiles {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (values.len() as f64 * share).ceil() as usize;
            values.get(index.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) }
    }
}

#[derive(Default)]
struct Tally {
    report: Report,
    latency: Vec<f64>,
    connect: Vec<f64>,
}

/// Latencies kept at most: beyond that, percentiles come from the first ones.
const KEPT: usize = 1_000_000;

impl Tally {
    fn add(&mut self, result: Result<Outcome, String>, latency: Duration) {
        let report = &mut self.report;
        report.sent += 1;
        if self.latency.len() < KEPT {
            self.latency.push(latency.as_secs_f64() * 1e3);
        }
        match result {
            Err(why) => {
                report.failed += 1;
                *report.errors.entry(why).or_default() += 1;
            }
            Ok(outcome) => {
                report.failed += u64::from(outcome.status >= 500 || outcome.grpc.is_some_and(|c| c != 0));
                *report.by_status.entry(outcome.status).or_default() += 1;
                if let Some(code) = outcome.grpc {
                    *report.by_grpc_status.entry(code).or_default() += 1;
                }
                let who = outcome.identity;
                for (map, key) in [
                    (&mut report.by_version, who.version),
                    (&mut report.by_name, who.name),
                    (&mut report.by_node, who.node),
                ] {
                    if !key.is_empty() {
                        *map.entry(key).or_default() += 1;
                    }
                }
                if let Some(connect) = outcome.connect {
                    report.connections += 1;
                    self.connect.push(connect.as_secs_f64() * 1e3);
                }
                report.last_body = String::from_utf8_lossy(&outcome.body).into_owned();
            }
        }
    }
}

/// Runs a load to its end; `stop` ends it early.
pub async fn run(target: Arc<Target>, plan: Plan, stop: Arc<AtomicBool>) -> Report {
    let next = Arc::new(AtomicU64::new(0));
    let tally = Arc::new(Mutex::new(Tally::default()));
    let start = Instant::now();
    let end = plan.duration.map(|d| start + d);
    let mut workers = JoinSet::new();
    for _ in 0..plan.concurrency.max(1) {
        let (next, tally, stop) = (Arc::clone(&next), Arc::clone(&tally), Arc::clone(&stop));
        let mut caller = Caller::new(Arc::clone(&target));
        workers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let due = match plan.rate {
                    Some(rate) => start + Duration::from_secs_f64(number as f64 / rate.max(0.001)),
                    None => Instant::now(),
                };
                if number >= plan.count || end.is_some_and(|e| due >= e) || !wait_until(due, &stop).await {
                    return;
                }
                let result = caller.call().await;
                let latency = due.elapsed();
                tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add(result, latency);
            }
        });
    }
    while workers.join_next().await.is_some() {}
    let tally = std::mem::take(&mut *tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    let mut report = tally.report;
    report.latency_ms = Percentiles::of(tally.latency);
    report.connect_ms = Percentiles::of(tally.connect);
    report.seconds = start.elapsed().as_secs_f64();
    report
}

/// Sleeps until then in short steps, so that a stop is seen soon; false when stopped.
async fn wait_until(due: Instant, stop: &AtomicBool) -> bool {
    loop {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        tokio::time::sleep(left.min(Duration::from_millis(50))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let p = Percentiles::of((1..=100).map(f64::from).collect());
        assert_eq!((p.p50, p.p90, p.p99, p.max), (50.0, 90.0, 99.0, 100.0));
        let none = Percentiles::of(Vec::new());
        assert_eq!(none.max, 0.0);
    }

    #[test]
    fn server_errors_and_missing_answers_are_failures() {
        let mut tally = Tally::default();
        let answer = |status| Ok(Outcome { status, ..Outcome::default() });
        for result in [answer(200), answer(404), answer(503), Err("timeout".to_owned())] {
            tally.add(result, Duration::from_millis(1));
        }
        assert_eq!((tally.report.sent, tally.report.failed), (4, 2));
        assert_eq!(tally.report.errors["timeout"], 1);
    }
}
