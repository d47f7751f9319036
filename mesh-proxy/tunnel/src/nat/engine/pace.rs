//! When everything is looked at: a few times a second while something happens, seldom otherwise. A node that nobody calls
//! should cost nothing.

use std::time::{Duration, Instant};

use super::Engine;

/// How often everything is looked at while something happens.
pub(super) const TICK: Duration = Duration::from_millis(250);
/// The same when nothing does: only a route that changes without an address is noticed so late.
const IDLE_TICK: Duration = Duration::from_secs(2);
/// After an event something happens for so long.
pub(super) const STIRRED: Duration = Duration::from_secs(3);

impl Engine {
    /// When everything is looked at again.
    pub(super) fn next_look_around(&self, now: Instant) -> Instant {
        let timers = [self.schedule.next(), self.reservations.next(now)];
        let late = self.late.iter().map(|(at, ..)| *at).chain(self.tested.iter().map(|(at, ..)| *at));
        let due = timers.into_iter().flatten().chain(late).min();
        let pause = if now < self.stirred { TICK } else { IDLE_TICK };
        due.map_or(now + pause, |at| at.clamp(now + TICK, now + pause))
    }

    /// Something happens: what follows from it is not to wait.
    pub(super) fn stir(&mut self, now: Instant) {
        self.stirred = now + STIRRED;
        self.next_tick = self.next_tick.min(now + TICK);
    }
}
