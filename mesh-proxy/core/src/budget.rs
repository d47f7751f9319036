//! A retry budget: retries may be a share of the requests of the last seconds, plus a few, so that a service that
//! fails altogether gets at most 1.2 times its load. One for each cluster of a node; its workers count together, by
//! atomics alone.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Share of the requests that may be retried where nobody says otherwise, in percent.
const PERCENT: u32 = 20;
/// Retries in a window that are allowed where nobody says otherwise, however few requests there are.
const MINIMUM: u32 = 30;
/// Over how much time requests are counted.
const WINDOW: Duration = Duration::from_secs(10);
/// Shortest and longest time that a rule may order.
const WINDOWS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
const SLOTS: u32 = 10;

/// Counts requests and hands out retries.
#[derive(Debug)]
pub struct RetryBudget {
    /// Retries for 100 requests.
    percent: u32,
    /// Retries that are allowed in a window however few requests there are.
    minimum: u32,
    /// Length of a slot in nanoseconds.
    step: u64,
    start: Instant,
    requests: Slots,
    retries: Slots,
}

impl RetryBudget {
    /// The one of clusters without a rule: 20 % of the requests, and at least 30 in ten seconds.
    pub fn standard(now: Instant) -> Self {
        Self::over(PERCENT, MINIMUM, WINDOW, now)
    }

    /// A budget of `percent` of the requests of a window, at least `minimum`. Its time begins now.
    pub fn over(percent: u32, minimum: u32, window: Duration, now: Instant) -> Self {
        let window = window.clamp(*WINDOWS.start(), *WINDOWS.end());
        let step = u64::try_from((window / SLOTS).as_nanos()).unwrap_or(u64::MAX);
        Self { percent, minimum, step, start: now, requests: Slots::default(), retries: Slots::default() }
    }

    /// Counts a request (not a retry).
    pub fn on_request(&self, now: Instant) {
        self.requests.add(self.tick(now), true);
    }

    /// Takes a retry out of the budget; false: there is none left.
    pub fn try_retry(&self, now: Instant) -> bool {
        let tick = self.tick(now);
        // Taken first and counted then: of two workers that meet at the limit one too many is refused, never let go.
        self.retries.add(tick, true);
        let allowed = (self.requests.sum(tick) * u64::from(self.percent) / 100).max(u64::from(self.minimum));
        let granted = self.retries.sum(tick) <= allowed;
        if !granted {
            self.retries.add(tick, false);
        }
        granted
    }

    /// The number of a slot in time.
    #[allow(clippy::cast_possible_truncation, reason = "slots are told apart by the low bits")]
    fn tick(&self, now: Instant) -> u32 {
        let passed = now.saturating_duration_since(self.start).as_nanos();
        (u64::try_from(passed).unwrap_or(u64::MAX) / self.step) as u32
    }
}

/// A count for each of the last slots of time: the slot's number in the high half, the count in the low one. What
/// belongs to a slot that is over is taken for nothing and written over.
#[derive(Debug, Default)]
struct Slots([AtomicU64; SLOTS as usize]);

const fn split(value: u64) -> (u32, u32) {
    #[allow(clippy::cast_possible_truncation, reason = "the two halves")]
    let halves = ((value >> 32) as u32, value as u32);
    halves
}

impl Slots {
    /// One more or one less in a slot. A clock that is behind counts in what has the slot's place now.
    fn add(&self, tick: u32, more: bool) {
        let slot = &self.0[(tick % SLOTS) as usize];
        let change = |old: u64| {
            let (of, count) = split(old);
            let (of, count) = if count == 0 || is_over(of, tick) { (tick, 0) } else { (of, count) };
            let count = if more { count.saturating_add(1) } else { count.saturating_sub(1) };
            Some(u64::from(of) << 32 | u64::from(count))
        };
        let _always_some = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    /// What was counted in the window that ends with a slot.
    fn sum(&self, tick: u32) -> u64 {
        let current = |slot: &AtomicU64| {
            let (of, count) = split(slot.load(Ordering::Relaxed));
            if is_over(of, tick) { 0 } else { u64::from(count) }
        };
        self.0.iter().map(current).sum()
    }
}

/// Whether a slot lies before the window that ends with `tick`.
const fn is_over(of: u32, tick: u32) -> bool {
    let age = tick.wrapping_sub(of);
    // More than half of all numbers: `of` is the later one.
    age >= SLOTS && age <= u32::MAX / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_failure_costs_at_most_a_fifth_more() {
        let start = Instant::now();
        let b = RetryBudget::standard(start);
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
        assert!(f64::from(sent) <= f64::from(requests) * 1.2 + 30.0, "{sent} for {requests}");
        assert!(f64::from(sent) >= f64::from(requests) * 1.15, "the budget is used: {sent} for {requests}");
    }

    #[test]
    fn a_rare_request_may_be_retried() {
        let mut now = Instant::now();
        let b = RetryBudget::over(20, 3, WINDOW, now);
        for _ in 0..5 {
            b.on_request(now);
            assert!(b.try_retry(now) && b.try_retry(now) && b.try_retry(now));
            assert!(!b.try_retry(now), "three in a window");
            now += Duration::from_secs(11);
        }
    }

    #[test]
    fn a_quiet_service_gets_thirty_in_ten_seconds() {
        let start = Instant::now();
        let b = RetryBudget::standard(start);
        let granted = |now| (0..100).filter(|_| b.try_retry(now)).count();
        assert_eq!(granted(start), 30);
        assert_eq!(granted(start + Duration::from_secs(9)), 0);
        assert_eq!(granted(start + Duration::from_secs(10)), 30);
    }

    #[test]
    fn an_earlier_clock_does_no_harm() {
        let start = Instant::now();
        let b = RetryBudget::over(20, 3, WINDOW, start);
        let now = start + Duration::from_secs(25);
        b.on_request(now);
        b.on_request(now - Duration::from_secs(25));
        assert!(b.try_retry(now));
        assert!((0..10).filter(|_| b.try_retry(now - Duration::from_secs(20))).count() <= 3);
    }

    #[test]
    fn slots_go_on_when_their_numbers_wrap() {
        let slots = Slots::default();
        slots.add(u32::MAX, true);
        slots.add(3, true);
        assert_eq!(slots.sum(5), 2);
        assert_eq!(slots.sum(9), 1);
        assert_eq!(slots.sum(20), 0);
    }

    /// Workers that ask at the same time get no more together than one would.
    #[test]
    fn workers_share_one_budget() {
        let now = Instant::now();
        let b = RetryBudget::standard(now);
        let ask = || {
            let mut granted = 0;
            for _ in 0..1000 {
                b.on_request(now);
                granted += u32::from(b.try_retry(now));
            }
            granted
        };
        let granted: u32 = std::thread::scope(|s| {
            let all: Vec<_> = (0..4).map(|_| s.spawn(ask)).collect();
            all.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert!((700..=800).contains(&granted), "{granted} retries for 4000 requests");
        // What is left of the budget is handed out now, to the last one.
        let rest = (0..1000).filter(|_| b.try_retry(now)).count();
        assert_eq!(granted as usize + rest, 800);
    }
}
