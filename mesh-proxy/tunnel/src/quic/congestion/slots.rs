//! When senders make room for each other to see the empty line: all at once, by the clock of the wall.

use std::time::{Duration, Instant};

/// Less is sent for a round trip this often. If senders at one line did it each at its own time, none would see it empty.
const EVERY: Duration = Duration::from_millis(2_500);

#[derive(Debug, Clone, Copy)]
pub(super) struct Slots {
    /// The beginning of one.
    base: Instant,
}

impl Slots {
    /// From the time since 1970: nodes whose clocks agree have the same ones.
    pub(super) fn new(now: Instant, clock: Duration) -> Self {
        Self { base: now.checked_sub(into(clock)).unwrap_or(now) }
    }

    /// The first one after `now`.
    pub(super) fn next(self, now: Instant) -> Instant {
        now + EVERY - into(now.saturating_duration_since(self.base))
    }
}

/// How long a slot lasts by then.
fn into(time: Duration) -> Duration {
    let nanos = time.as_nanos() % EVERY.as_nanos();
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_whose_clocks_agree_drain_at_once() {
        let (now, clock) = (Instant::now(), Duration::from_millis(1_700_000_001_000));
        let slots = Slots::new(now, clock);
        assert_eq!(slots.next(now), now + Duration::from_millis(1_500));
        // Another one that starts later.
        let later = Duration::from_millis(3_300);
        let other = Slots::new(now + later, clock + later);
        for after in [3_300, 4_000, 4_001, 12_345] {
            let at = now + Duration::from_millis(after);
            assert_eq!(slots.next(at), other.next(at));
            assert!(slots.next(at) > at);
        }
    }
}
