//! Whether a queue is full: more is lost than while it was kept empty. What is lost then is lost by the line itself, and
//! sending less would not help.

use std::time::Duration;

/// Loss of so much more than on an empty line is a full queue, and so much is one on any line.
const MORE: f64 = 0.001;
pub(super) const MUCH: f64 = 0.1;
/// Packets after which it is judged anew, and after which half of them are forgotten.
const JUDGED: f64 = 1_000.0;
const FORGOTTEN: f64 = 20_000.0;
/// What is left of the boldness after a full queue, and how long it takes to be whole again.
const BACK_OFF: f64 = 0.5;
const BOLD_AGAIN: Duration = Duration::from_secs(20);

/// Packets, and those of them that were lost.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    all: f64,
    lost: f64,
}

impl Count {
    fn add(&mut self, all: f64, lost: f64) {
        self.all += all;
        self.lost += lost;
        if self.all > FORGOTTEN {
            (self.all, self.lost) = (self.all / 2.0, self.lost / 2.0);
        }
    }

    /// The share, as large as it may well be after so few.
    fn at_most(self) -> f64 {
        let lost = self.lost + 1.0;
        (lost + 2.0 * lost.sqrt()) / self.all.max(1.0)
    }
}

#[derive(Debug, Clone)]
pub(super) struct Losses {
    /// How much of what is kept under way beyond the need of the line is used, 0 to 1.
    boldness: f64,
    /// While the queue was empty.
    empty: Count,
    /// Since they were last judged.
    recent: Count,
    /// What the last change has done is not seen yet.
    waits: bool,
}

impl Losses {
    pub(super) fn new() -> Self {
        Self { boldness: 1.0, empty: Count::default(), recent: Count::default(), waits: false }
    }

    pub(super) fn boldness(&self) -> f64 {
        self.boldness
    }

    /// Packets of one round trip, with their number of lost ones; whether a router marked some, and whether the queue was
    /// kept empty.
    pub(super) fn round(&mut self, (all, lost): (f64, f64), marked: bool, empty: bool, round_trip: Duration) {
        if empty {
            self.empty.add(all, lost);
        }
        if std::mem::take(&mut self.waits) {
            return;
        }
        self.recent.add(all, lost);
        let usual = (self.empty.at_most() + MORE).min(MUCH);
        // Few packets lose some by chance.
        let chance = (2.0 * (self.recent.all * usual).sqrt()).max(2.5);
        if marked || self.recent.lost > self.recent.all * usual + chance {
            self.boldness *= BACK_OFF;
            (self.recent, self.waits) = (Count::default(), true);
            return;
        }
        let more = round_trip.as_secs_f64() / BOLD_AGAIN.as_secs_f64();
        self.boldness = (self.boldness + more.clamp(0.0005, 0.05)).min(1.0);
        if self.recent.all > JUDGED {
            self.recent = Count::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND: Duration = Duration::from_millis(30);

    #[test]
    fn what_the_line_loses_by_itself_is_no_full_queue() {
        let mut losses = Losses::new();
        for _ in 0..100 {
            losses.round((100.0, 4.0), false, true, ROUND);
        }
        for _ in 0..1_000 {
            losses.round((100.0, 4.0), false, false, ROUND);
        }
        assert!(losses.boldness() > 0.99);
        // More than that is one.
        for _ in 0..40 {
            losses.round((100.0, 20.0), false, false, ROUND);
        }
        assert!(losses.boldness() < 0.1, "{}", losses.boldness());
        // And it is tried again.
        for _ in 0..700 {
            losses.round((100.0, 4.0), false, false, ROUND);
        }
        assert!(losses.boldness() > 0.9, "{}", losses.boldness());
    }

    #[test]
    fn a_mark_of_a_router_counts_at_once_and_a_single_loss_of_few_packets_does_not() {
        let mut losses = Losses::new();
        losses.round((10.0, 0.0), true, false, ROUND);
        assert!(losses.boldness() < 0.75);
        let mut losses = Losses::new();
        losses.round((10.0, 1.0), false, false, ROUND);
        assert!(losses.boldness() > 0.99);
    }
}
