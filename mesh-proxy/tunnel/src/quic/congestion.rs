//! Congestion control that measures the line: how fast it delivers, and how long an empty one takes. What is under way is
//! kept at a little more than the product of both. Loss by itself changes nothing, because radios and long lines lose packets
//! that no queue has dropped; but when more is lost than while the queue was kept empty, a queue is full, and what is
//! under way comes closer to the product.
//!
//! ```text
//! Start ── no faster any more, or much is lost ──► Drain ── a round trip with an empty queue ──► Cruise
//!                                                    ▲                                             │
//!                                                    └── every 2.5 s of the clock; or round trips ─┘
//!                                                        have become much longer
//! ```
//!
//! Why not quinn's BBR: it takes the rate of delivery from the time between two acknowledgements, and here each of these
//! stands for ten packets, so that it finds a tenth of the rate, or any other one by chance. Here the rate is that of
//! everything that was delivered while a packet was under way.
//!
//! Pure: quinn tells the time. quinn paces by itself, at a window and a quarter for each round trip; the window is all that is
//! decided here.

mod losses;
mod slots;
#[cfg(test)]
mod tests;

use std::{
    any::Any,
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

use self::{losses::Losses, slots::Slots};

/// Packets that may be under way before anything is known.
const INITIAL_PACKETS: u64 = 64;
/// Packets that may always be under way.
const MIN_PACKETS: u64 = 4;
/// Packets that one acknowledgement stands for, and how long it waits for them: so much more must be under way.
pub(super) const TOGETHER: u64 = 10;
pub(super) const ACK_DELAY: Duration = Duration::from_millis(8);
/// So many packets more are kept under way, and on slow lines as much fewer. They are the same for all senders at a line,
/// and so make their shares alike.
const EVEN: u64 = 24;
/// Of the product of rate and round trip, what is kept under way: so much more that a line that has become faster shows it.
const GAIN: f64 = 1.5;
/// And for this long of the rate on top, because threads, and so acknowledgements, come late on a busy machine: a line of
/// a gigabit and less than a millisecond would stand still.
const SLACK: Duration = Duration::from_millis(8);
/// The rate is the best of so many round trips.
const RATE_ROUNDS: u64 = 10;
/// The shortest round trip is doubted when it was not seen for so long: less is sent, until an empty line shows it.
const RTT_WINDOW: Duration = Duration::from_secs(5);
/// Of the product, what is kept under way while the queue shall become empty.
const DRAIN_GAIN: f64 = 0.75;
/// The same while the shortest round trip is in doubt.
const DEEP_GAIN: f64 = 0.5;
/// Round trips between two drains at least.
const REST_ROUNDS: u32 = 20;
/// A drain that does not end by itself.
const DRAIN_MOST: Duration = Duration::from_millis(500);
/// Round trips in a row that are longer than what is under way explains, before they are looked at in a drain.
const LONG_ROUNDS: u32 = 3;
/// Round trips that differ by less, and by less than a sixteenth, are alike.
const JITTER: Duration = Duration::from_micros(100);
/// Longer than the shortest by a half, by the slack, and by this.
const LONG: Duration = Duration::from_millis(5);
/// Pause between such drains; it doubles while they find nothing new.
const LOOK_AGAIN: Duration = Duration::from_millis(300);
const LOOK_MOST: Duration = Duration::from_millis(2_500);
/// The start is over when so many round trips in a row did not bring a quarter more.
const FULL_ROUNDS: u32 = 3;
const FULL_GROWTH: f64 = 1.25;
/// Moments of sending that are remembered.
const REMEMBERED: usize = 8_192;

/// What was known when something was sent.
#[derive(Debug, Clone, Copy)]
struct Sent {
    at: Instant,
    delivered: u64,
    delivered_at: Instant,
    /// When the packet had been sent that was acknowledged last.
    first_sent: Instant,
    /// There was not enough to send.
    limited: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The window doubles with each round trip.
    Start,
    /// Less is sent until the queue is empty, and for one round trip more. Deep: the shortest round trip is in doubt.
    Drain { since: Instant, empty: bool, deep: bool },
    /// At the line's rate; the next drain is due then.
    Cruise { until: Instant },
}

/// What the acknowledgements of one datagram say together.
#[derive(Debug, Clone, Copy, Default)]
struct Batch {
    bytes: u64,
    newest: Option<Sent>,
    rtt: Option<Duration>,
}

#[derive(Debug, Clone)]
pub(super) struct Measuring {
    mtu: u64,
    window: u64,
    phase: Phase,
    sent: VecDeque<Sent>,
    delivered: u64,
    delivered_at: Option<Instant>,
    first_sent: Option<Instant>,
    /// Nothing is under way.
    idle: bool,
    /// Up to this much delivered there was not enough to send.
    limited_until: u64,
    batch: Batch,
    /// A round trip is over when this much is delivered.
    round_end: u64,
    /// Acknowledged and lost bytes of this round trip; and marks of a full queue.
    round: (u64, u64, bool),
    /// Round trips in which there was enough to send.
    rounds: u64,
    /// The best rates, falling, with the round trip of each.
    rates: VecDeque<(u64, f64)>,
    /// The last one.
    latest: f64,
    min_rtt: Option<(Duration, Instant)>,
    full: (f64, u32),
    slots: Slots,
    /// The shortest of this round trip, and of this drain.
    round_rtt: Option<Duration>,
    drain_rtt: Option<Duration>,
    /// The rate of the last round trip before it: shares of a line add up, the best of each do not.
    drain_rate: f64,
    /// What was believed when the drain began; and whether it was too long.
    before_drain: Option<Duration>,
    doubted: bool,
    /// Round trips in a row that were too long; when they may be looked at again, and the pause after that.
    long: (u32, Option<Instant>, Duration),
    losses: Losses,
    /// The queue was kept empty in the last round trip.
    was_empty: bool,
}

impl Measuring {
    fn new(mtu: u16, slots: Slots) -> Self {
        let mtu = u64::from(mtu);
        Self {
            mtu,
            window: INITIAL_PACKETS * mtu,
            phase: Phase::Start,
            sent: VecDeque::new(),
            delivered: 0,
            delivered_at: None,
            first_sent: None,
            idle: true,
            limited_until: 0,
            batch: Batch::default(),
            round_end: 0,
            round: (0, 0, false),
            rounds: 0,
            rates: VecDeque::new(),
            latest: 0.0,
            min_rtt: None,
            full: (0.0, 0),
            slots,
            round_rtt: None,
            drain_rtt: None,
            drain_rate: 0.0,
            before_drain: None,
            doubted: false,
            long: (0, None, LOOK_AGAIN),
            losses: Losses::new(),
            was_empty: false,
        }
    }

    fn rate(&self) -> f64 {
        self.rates.front().map_or(0.0, |(_, rate)| *rate)
    }

    /// Bytes that a line of this rate holds for a time, with the shortest round trip for each part of `gain`.
    fn holds(&self, rate: f64, gain: f64, slack: Duration, packets: u64) -> u64 {
        let Some((rtt, _)) = self.min_rtt else { return INITIAL_PACKETS * self.mtu };
        #[expect(clippy::cast_precision_loss, reason = "packets")]
        let (least, most) = ((2 * self.mtu) as f64, (packets * self.mtu) as f64);
        let more = (rate * ACK_DELAY.as_secs_f64() * most / (TOGETHER * self.mtu) as f64).clamp(least, most);
        let bytes = rate * (rtt.as_secs_f64() * gain + slack.as_secs_f64()) + more;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate by a time, both small"
        )]
        let bytes = bytes as u64;
        bytes.max(self.floor())
    }

    /// What is kept under way.
    fn full(&self) -> u64 {
        let bold = self.losses.boldness();
        self.holds(self.rate(), 1.0 + (GAIN - 1.0) * bold, SLACK.mul_f64(bold), EVEN)
    }

    /// What is while the queue shall become empty.
    fn little(&self, deep: bool) -> u64 {
        let gain = if deep { DEEP_GAIN } else { DRAIN_GAIN };
        self.holds(self.drain_rate, gain, Duration::ZERO, MIN_PACKETS)
    }

    fn floor(&self) -> u64 {
        MIN_PACKETS * self.mtu
    }

    fn sends(&mut self, now: Instant) {
        if std::mem::take(&mut self.idle) {
            (self.first_sent, self.delivered_at) = (Some(now), Some(now));
        }
        if self.sent.back().is_some_and(|s| s.at >= now) {
            return;
        }
        if self.sent.len() >= REMEMBERED {
            self.sent.pop_front();
        }
        self.sent.push_back(Sent {
            at: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at.unwrap_or(now),
            first_sent: self.first_sent.unwrap_or(now),
            limited: self.limited_until > self.delivered,
        });
    }

    fn acknowledged(&mut self, now: Instant, sent: Instant, bytes: u64) {
        self.delivered += bytes;
        self.delivered_at = Some(now);
        self.batch.bytes += bytes;
        let rtt = now.saturating_duration_since(sent);
        self.batch.rtt = Some(self.batch.rtt.map_or(rtt, |least| least.min(rtt)));
        // Packets come in the order in which they were sent.
        while self.sent.front().is_some_and(|s| s.at < sent) {
            self.sent.pop_front();
        }
        if let Some(known) = self.sent.front().filter(|s| s.at == sent) {
            self.batch.newest = Some(*known);
            self.first_sent = Some(sent);
        }
    }

    fn end_of_acknowledgements(&mut self, now: Instant, in_flight: u64, limited: bool) {
        let batch = std::mem::take(&mut self.batch);
        self.idle = in_flight == 0;
        if limited {
            self.limited_until = self.delivered + in_flight.max(1);
        }
        if batch.bytes == 0 {
            return;
        }
        self.round.0 += batch.bytes;
        if let Some(rtt) = batch.rtt.filter(|r| !r.is_zero()) {
            self.note_round_trip(now, rtt, limited);
        }
        let mut is_round = false;
        if let Some(newest) = batch.newest {
            is_round = newest.delivered >= self.round_end;
            self.measure(now, newest, is_round);
        }
        let unlimited = is_round && batch.newest.is_some_and(|n| !n.limited);
        if is_round {
            self.round_end = self.delivered;
            self.judge_loss();
            self.judge_round_trip(unlimited);
        }
        self.step(now, in_flight, unlimited);
        self.resize(batch.bytes, in_flight, limited);
    }

    fn note_round_trip(&mut self, now: Instant, rtt: Duration, limited: bool) {
        let least = |before: Option<Duration>| Some(before.map_or(rtt, |b| b.min(rtt)));
        (self.round_rtt, self.drain_rtt) = (least(self.round_rtt), least(self.drain_rtt));
        let Some((shortest, at)) = &mut self.min_rtt else {
            self.min_rtt = Some((rtt, now));
            return;
        };
        // Jitter: nearly as short is as short.
        if rtt <= *shortest + *shortest / 16 + JITTER {
            (*shortest, *at) = (rtt.min(*shortest), now);
        } else if limited && now.saturating_duration_since(*at) > RTT_WINDOW {
            // No queue of ours makes it longer.
            (*shortest, *at) = (rtt, now);
        }
    }

    /// Whether round trips are longer than what is under way explains.
    fn judge_round_trip(&mut self, unlimited: bool) {
        let (Some(rtt), Some((shortest, _))) = (self.round_rtt.take(), self.min_rtt) else { return };
        let long = unlimited
            && matches!(self.phase, Phase::Cruise { .. })
            && rtt > shortest + shortest / 2 + SLACK + LONG;
        self.long.0 = if long { self.long.0 + 1 } else { 0 };
    }

    /// The end of a drain: what it has shown of the line's length.
    fn drained(&mut self, now: Instant, deep: bool) {
        let (Some(rtt), Some((shortest, _))) = (self.drain_rtt.take(), self.min_rtt) else { return };
        // It is shorter than it was believed to be: others have made room too, and may make more.
        let before = self.before_drain.unwrap_or(shortest);
        self.doubted = before > shortest + shortest / 16 + JITTER;
        let longer = deep && rtt > shortest + shortest / 16 + JITTER;
        if longer {
            self.min_rtt = Some((rtt, now));
        }
        if deep {
            let much = rtt > shortest * 2;
            self.long.2 = if much { LOOK_AGAIN } else { (self.long.2 * 2).min(LOOK_MOST) };
            self.long.1 = Some(now + self.long.2);
        }
        self.long.0 = 0;
    }

    /// The rate at which the line delivered while a packet was under way.
    fn measure(&mut self, now: Instant, newest: Sent, is_round: bool) {
        if is_round && !newest.limited {
            self.rounds += 1;
        }
        let taken = now.saturating_duration_since(newest.delivered_at);
        let sending = newest.at.saturating_duration_since(newest.first_sent);
        let took = taken.max(sending).as_secs_f64();
        // Shorter than any round trip: acknowledgements that waited for something came together.
        if took <= 0.0 || self.min_rtt.is_some_and(|(rtt, _)| took < rtt.as_secs_f64() * 0.9) {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no 53 bits")]
        let rate = (self.delivered - newest.delivered) as f64 / took;
        if newest.limited && rate <= self.rate() {
            return;
        }
        if !newest.limited {
            self.latest = rate;
        }
        while self.rates.back().is_some_and(|(_, r)| *r <= rate) {
            self.rates.pop_back();
        }
        self.rates.push_back((self.rounds, rate));
        while self.rates.front().is_some_and(|(round, _)| round + RATE_ROUNDS < self.rounds) {
            self.rates.pop_front();
        }
    }

    /// Whether a queue is full.
    fn judge_loss(&mut self) {
        let (acknowledged, lost, marked) = std::mem::take(&mut self.round);
        #[expect(clippy::cast_precision_loss, reason = "packets")]
        let packets = |bytes: u64| bytes as f64 / self.mtu as f64;
        let (all, lost) = (packets(acknowledged + lost), packets(lost));
        if self.phase == Phase::Start {
            // The first queue that is full ends it.
            if marked || (acknowledged >= TOGETHER * self.mtu && lost > all * losses::MUCH) {
                self.full.1 = FULL_ROUNDS;
            }
            return;
        }
        // What is told of in a round trip was sent in the one before.
        let is_empty = matches!(self.phase, Phase::Drain { empty: true, .. });
        let was_empty = std::mem::replace(&mut self.was_empty, is_empty);
        let round_trip = self.min_rtt.map_or(Duration::ZERO, |(rtt, _)| rtt);
        self.losses.round((all, lost), marked, was_empty, round_trip);
    }

    fn drain(&mut self, now: Instant, doubted: bool) {
        let is_old = |(rtt, at): (Duration, Instant)| {
            now.saturating_duration_since(at) > RTT_WINDOW.max(rtt * (2 * REST_ROUNDS))
        };
        let deep = doubted || self.doubted || self.min_rtt.is_some_and(is_old);
        self.drain_rate = self.latest.min(self.rate());
        (self.drain_rtt, self.before_drain) = (None, self.min_rtt.map(|(rtt, _)| rtt));
        self.phase = Phase::Drain { since: now, empty: false, deep };
    }

    fn step(&mut self, now: Instant, in_flight: u64, is_round: bool) {
        let round_trip = self.min_rtt.map_or(Duration::ZERO, |(rtt, _)| rtt);
        match self.phase {
            Phase::Start => {
                if is_round && self.full.1 < FULL_ROUNDS {
                    if self.rate() >= self.full.0 * FULL_GROWTH {
                        self.full = (self.rate(), 0);
                    } else {
                        self.full.1 += 1;
                    }
                }
                if self.full.1 >= FULL_ROUNDS {
                    self.drain(now, false);
                }
            }
            Phase::Drain { since, empty, deep } => {
                let is_empty = in_flight <= self.little(deep);
                if (empty && is_round)
                    || now.saturating_duration_since(since) > DRAIN_MOST.max(round_trip * 3)
                {
                    self.drained(now, deep);
                    // At once: what the line holds without a queue.
                    self.window = self.window.max(self.holds(self.rate(), 1.0, Duration::ZERO, TOGETHER));
                    self.phase = Phase::Cruise { until: self.slots.next(now + round_trip * REST_ROUNDS) };
                } else if is_empty && !empty {
                    // The next round trip begins with what is sent from now on.
                    self.round_end = self.delivered + in_flight;
                    self.drain_rtt = None;
                    self.phase = Phase::Drain { since, empty: true, deep };
                }
            }
            Phase::Cruise { .. } if self.long.0 >= LONG_ROUNDS && self.long.1.is_none_or(|at| now >= at) => {
                self.drain(now, true);
            }
            // Who was silent then makes no room now, when the others do not.
            Phase::Cruise { until } if now >= until + DRAIN_MOST => {
                self.phase = Phase::Cruise { until: self.slots.next(now) };
            }
            Phase::Cruise { until } if now >= until => self.drain(now, false),
            Phase::Cruise { .. } => {}
        }
    }

    fn resize(&mut self, acknowledged: u64, in_flight: u64, limited: bool) {
        let target = match self.phase {
            Phase::Start => {
                // A window that is not used says nothing about the line.
                if !limited || in_flight * 2 >= self.window {
                    self.window += acknowledged;
                }
                return;
            }
            Phase::Drain { deep, .. } => self.little(deep),
            Phase::Cruise { .. } => self.full(),
        };
        self.window = target.min(self.window + acknowledged).max(self.floor());
    }

    fn lost(&mut self, bytes: u64, all: bool) {
        self.round.1 += bytes;
        // A mark of a router whose queue is long, instead of a loss.
        self.round.2 |= bytes == 0;
        if all {
            self.window = self.floor();
        }
    }
}

impl Controller for Measuring {
    fn on_sent(&mut self, now: Instant, _: u64, _: u64) {
        self.sends(now);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, _: bool, _: &RttEstimator) {
        self.acknowledged(now, sent, bytes);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, _: Option<u64>) {
        self.end_of_acknowledgements(now, in_flight, app_limited);
    }

    fn on_congestion_event(&mut self, _: Instant, _: Instant, persistent: bool, lost: u64) {
        self.lost(lost, persistent);
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.mtu = mtu.into();
        self.window = self.window.max(self.floor());
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL_PACKETS * self.mtu
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Makes one for each connection.
#[derive(Debug)]
pub(super) struct Factory(Slots);

impl Factory {
    pub(super) fn new() -> Self {
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(Slots::new(Instant::now(), clock))
    }
}

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, _: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(Measuring::new(mtu, self.0))
    }
}
