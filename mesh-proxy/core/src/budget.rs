//! A retry budget: retries may be a share of the requests of the last seconds, plus a few, so that a service that
//! fails altogether gets at most 1.2 times its load.

use std::time::{Duration, Instant};

/// Over how much time requests are counted.
const WINDOW: Duration = Duration::from_secs(10);
/// Shortest and longest time that a rule may order.
const WINDOWS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
const SLOTS: usize = 10;

/// Counts requests and hands out retries. Not shared: one for each cluster and worker, or behind a lock.
#[derive(Debug, Clone)]
pub struct RetryBudget {
    /// Retries for 100 requests.
    percent: u32,
    /// Retries that are allowed in a window however few requests there are.
    minimum: u32,
    window: Duration,
    requests: [u32; SLOTS],
    retries: [u32; SLOTS],
    slot: usize,
    slot_start: Option<Instant>,
}

impl Default for RetryBudget {
    /// 20 %, and at least three in ten seconds (Istio's `minRetryConcurrency`).
    fn default() -> Self {
        Self::new(20, 3)
    }
}

impl RetryBudget {
    /// A budget of `percent` of the requests, at least `minimum` in ten seconds.
    pub fn new(percent: u32, minimum: u32) -> Self {
        Self::over(percent, minimum, WINDOW)
    }

    /// The same over another time.
    pub fn over(percent: u32, minimum: u32, window: Duration) -> Self {
        let window = window.clamp(*WINDOWS.start(), *WINDOWS.end());
        Self {
            percent,
            minimum,
            window,
            requests: [0; SLOTS],
            retries: [0; SLOTS],
            slot: 0,
            slot_start: None,
        }
    }

    /// Counts a request (not a retry).
    pub fn on_request(&mut self, now: Instant) {
        self.advance(now);
        self.requests[self.slot] = self.requests[self.slot].saturating_add(1);
    }

    /// Takes a retry out of the budget; false: there is none left.
    pub fn try_retry(&mut self, now: Instant) -> bool {
        self.advance(now);
        let sum = |a: &[u32; SLOTS]| a.iter().map(|n| u64::from(*n)).sum::<u64>();
        let allowed = (sum(&self.requests) * u64::from(self.percent) / 100).max(u64::from(self.minimum));
        if sum(&self.retries) >= allowed {
            return false;
        }
        self.retries[self.slot] += 1;
        true
    }

    fn advance(&mut self, now: Instant) {
        let step = self.window / SLOTS as u32;
        let Some(start) = self.slot_start else {
            self.slot_start = Some(now);
            return;
        };
        let passed = now.saturating_duration_since(start);
        let steps = (passed.as_nanos() / step.as_nanos()).min(SLOTS as u128 + 1) as u32;
        if steps == 0 {
            return;
        }
        for _ in 0..steps {
            self.slot = (self.slot + 1) % SLOTS;
            self.requests[self.slot] = 0;
            self.retries[self.slot] = 0;
        }
        // After a pause longer than the window the phase does not matter.
        self.slot_start = Some(if steps as usize > SLOTS { now } else { start + step * steps });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_failure_costs_at_most_a_fifth_more() {
        let mut b = RetryBudget::default();
        let start = Instant::now();
        let (mut sent, mut requests) = (0u32, 0u32);
        for ms in (0..60_000).step_by(5) {
            let now = start + Duration::from_millis(ms);
            b.on_request(now);
            requests += 1;
            sent += 1;
            // Every try fails, and each request would like two retries.
            for _ in 0..2 {
                sent += u32::from(b.try_retry(now));
            }
        }
        assert!(f64::from(sent) <= f64::from(requests) * 1.2 + 3.0, "{sent} for {requests}");
        assert!(f64::from(sent) >= f64::from(requests) * 1.15, "the budget is used: {sent} for {requests}");
    }

    #[test]
    fn a_rare_request_may_be_retried() {
        let mut b = RetryBudget::default();
        let mut now = Instant::now();
        for _ in 0..5 {
            b.on_request(now);
            assert!(b.try_retry(now) && b.try_retry(now) && b.try_retry(now));
            assert!(!b.try_retry(now), "three in a window");
            now += Duration::from_secs(11);
        }
    }

    #[test]
    fn an_earlier_clock_does_no_harm() {
        let mut b = RetryBudget::default();
        let now = Instant::now() + Duration::from_secs(5);
        b.on_request(now);
        b.on_request(now - Duration::from_secs(5));
        assert!(b.try_retry(now));
    }
}
