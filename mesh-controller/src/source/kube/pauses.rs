//! How long a watch waits between two tries.

use std::time::Duration;

use kube::runtime::utils::Backoff;

/// Doubling pauses with jitter, up to 5 s. kube's default goes to 30 s, which is how long a rule would wait after the API
/// server is back; a handful of controllers may knock more often than that.
pub(crate) struct Pauses {
    next: Duration,
    random: fn() -> f64,
}

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(5);

impl Pauses {
    /// `random` gives numbers in `[0, 1)`.
    pub(crate) fn new(random: fn() -> f64) -> Self {
        Self { next: FIRST, random }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        // Between half of the pause and all of it, so that controllers do not knock together.
        Some(pause.mul_f64(0.5 + (self.random)() / 2.0))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_again() {
        let mut pauses = Pauses::new(|| 1.0);
        let seen: Vec<u128> = pauses.by_ref().take(6).map(|p| p.as_millis()).collect();
        assert_eq!(seen, [500, 1000, 2000, 4000, 5000, 5000]);
        pauses.reset();
        assert_eq!(pauses.next(), Some(FIRST));
    }

    #[test]
    fn jitter_takes_at_most_half() {
        let mut pauses = Pauses::new(|| 0.0);
        assert_eq!(pauses.next(), Some(FIRST / 2));
    }
}
