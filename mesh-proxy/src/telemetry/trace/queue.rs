//! Spans that wait for the exporter. Full, the oldest give way: what happens now matters more.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use tokio::sync::Notify;

use super::span::Span;

/// What becomes of spans.
#[derive(Debug, Clone)]
pub struct TraceCounters {
    /// Spans that a collector took.
    pub exported: IntCounter,
    /// Spans that gave way because too many waited.
    pub dropped: IntCounter,
    /// Spans that the collector did not want, for reasons that another try does not change.
    pub refused: IntCounter,
    /// Exports that failed and are tried again.
    pub failures: IntCounter,
    /// Spans that wait.
    pub waiting: IntGauge,
}

impl TraceCounters {
    /// Registers the counters.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let spans = IntCounterVec::new(
            Opts::new(
                "selvage_trace_spans_total",
                "Spans by what became of them: exported, dropped because too many waited, refused by the collector.",
            ),
            &["outcome"],
        )?;
        let failures = IntCounter::new(
            "selvage_trace_export_failures_total",
            "Exports of spans that failed and are tried again.",
        )?;
        let waiting = IntGauge::new("selvage_trace_waiting_spans", "Spans that wait for the collector.")?;
        registry.register(Box::new(spans.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        registry.register(Box::new(waiting.clone()))?;
        Ok(Self {
            exported: spans.with_label_values(&["exported"]),
            dropped: spans.with_label_values(&["dropped"]),
            refused: spans.with_label_values(&["refused"]),
            failures,
            waiting,
        })
    }
}

/// A bounded queue of spans, filled by the workers.
#[derive(Debug)]
pub(crate) struct Queue {
    spans: Mutex<VecDeque<Span>>,
    most: usize,
    pub(super) counters: TraceCounters,
    /// There is something to export.
    pub(super) filled: Notify,
}

impl Queue {
    pub(super) fn new(most: usize, counters: TraceCounters) -> Self {
        Self { spans: Mutex::default(), most, counters, filled: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Span>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a span; the oldest one gives way if there are too many.
    pub(in crate::telemetry) fn push(&self, span: Span) {
        let mut spans = self.lock();
        let mut gone = None;
        if spans.len() >= self.most {
            gone = spans.pop_front();
            self.counters.dropped.inc();
        }
        spans.push_back(span);
        self.counters.waiting.set(i64::try_from(spans.len()).unwrap_or(i64::MAX));
        drop(spans);
        drop(gone);
        self.filled.notify_one();
    }

    /// Puts back what could not be exported, unless newer spans have taken its room.
    pub(super) fn give_back(&self, batch: Vec<Span>) {
        let mut spans = self.lock();
        let room = self.most.saturating_sub(spans.len());
        let lost = batch.len().saturating_sub(room);
        for span in batch.into_iter().skip(lost).rev() {
            spans.push_front(span);
        }
        self.counters.dropped.inc_by(lost as u64);
        self.counters.waiting.set(i64::try_from(spans.len()).unwrap_or(i64::MAX));
    }

    /// The oldest spans, at most so many.
    pub(in crate::telemetry) fn take(&self, most: usize) -> Vec<Span> {
        let mut spans = self.lock();
        let batch = most.min(spans.len());
        let taken = spans.drain(..batch).collect();
        self.counters.waiting.set(i64::try_from(spans.len()).unwrap_or(i64::MAX));
        taken
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(id: u64) -> Span {
        Span { ids: super::super::TraceIds { trace: 1, span: id }, ..Span::default() }
    }

    fn ids(spans: &[Span]) -> Vec<u64> {
        spans.iter().map(|s| s.ids.span).collect()
    }

    #[test]
    fn the_oldest_give_way_and_are_counted() {
        let queue = Queue::new(3, TraceCounters::new(&Registry::new()).unwrap());
        (1..=5).for_each(|id| queue.push(span(id)));
        assert_eq!((queue.len(), queue.counters.dropped.get()), (3, 2));
        let batch = queue.take(2);
        assert_eq!(ids(&batch), [3, 4]);
        queue.push(span(6));
        queue.give_back(batch);
        assert_eq!(queue.counters.dropped.get(), 3, "one of two has room");
        assert_eq!(ids(&queue.take(9)), [4, 5, 6]);
        assert_eq!(queue.counters.waiting.get(), 0);
    }
}
