//! Congestion control that measures the line: how fast it delivers, and how long an empty one takes. What is under way is
//! kept at a little more than the product of both. Loss by itself changes nothing, because radios and long lines lose packets
//! that no queue has dropped; loss of every tenth packet and more makes it stay closer to the product.
//!
//! Why not quinn's BBR: it takes the rate of delivery from the time between two acknowledgements, and here each of these
//! stands for ten packets, so that it finds a tenth of the rate, or any other one by chance. Here the rate is that of
//! everything that was delivered while a packet was under way.
//!
//! Pure: quinn tells the time. quinn paces by itself, at a window and a quarter for each round trip; the window is all that is
//! decided here.

#[cfg(test)]
mod tests;

use std::{
    any::Any,
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

/// Packets that may be under way before anything is known.
const INITIAL_PACKETS: u64 = 64;
/// Packets that may always be under way: what one acknowledgement stands for.
const MIN_PACKETS: u64 = 10;
/// But on a slow line it does not wait for as many: it comes after this long. There ten would be most of a queue.
const ACK_DELAY: Duration = Duration::from_millis(25);
const LEAST_GATHERED: u64 = 2;
/// Of the product of rate and round trip, what is kept under way: so much more that a line that has become faster shows it.
const GAIN: f64 = 1.5;
/// And for this long of the rate on top, because threads, and so acknowledgements, come late on a busy machine: a line of
/// a gigabit and less than a millisecond would stand still.
const SLACK: Duration = Duration::from_millis(8);
/// The rate is the best of so many round trips.
const RATE_ROUNDS: u64 = 10;
/// The round trip is the shortest of this time. Several times in it less is sent for a round trip, so that the line's own
/// queue is empty and shows it.
const RTT_WINDOW: Duration = Duration::from_secs(5);
const DRAIN_EVERY: Duration = Duration::from_millis(2_500);
const DRAIN_GAIN: f64 = 0.9;
/// A drain that does not end by itself.
const DRAIN_MOST: Duration = Duration::from_millis(500);
/// The start is over when so many round trips in a row did not bring a quarter more.
const FULL_ROUNDS: u32 = 3;
const FULL_GROWTH: f64 = 1.25;
/// Shares of a round trip's packets: from the one on loss counts as a full queue, below the other as none.
const MUCH_LOSS: f64 = 0.1;
const LITTLE_LOSS: f64 = 0.03;
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
    /// Less is sent until the queue is empty, and for one round trip more.
    Drain { since: Instant, empty: bool },
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
    min_rtt: Option<(Duration, Instant)>,
    full: (f64, u32),
    /// How much of the excess over the product is used: less while much is lost.
    boldness: f64,
}

impl Measuring {
    pub(super) fn new(mtu: u16) -> Self {
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
            min_rtt: None,
            full: (0.0, 0),
            boldness: 1.0,
        }
    }

    fn rate(&self) -> f64 {
        self.rates.front().map_or(0.0, |(_, rate)| *rate)
    }

    /// Bytes to keep under way.
    fn target(&self, gain: f64, slack: Duration) -> u64 {
        let Some((rtt, _)) = self.min_rtt else { return INITIAL_PACKETS * self.mtu };
        let bytes = self.rate() * (rtt.as_secs_f64() * gain + slack.as_secs_f64());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate by a time, both small"
        )]
        let (bytes, gathered) = (bytes as u64, (self.rate() * ACK_DELAY.as_secs_f64()) as u64);
        bytes + gathered.clamp(LEAST_GATHERED * self.mtu, self.floor())
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
            let is_old = |at: Instant| now.saturating_duration_since(at) > RTT_WINDOW;
            if self.min_rtt.is_none_or(|(least, at)| rtt <= least || is_old(at)) {
                self.min_rtt = Some((rtt, now));
            }
        }
        let mut is_round = false;
        if let Some(newest) = batch.newest {
            is_round = newest.delivered >= self.round_end;
            self.measure(now, newest, is_round);
        }
        if is_round {
            self.round_end = self.delivered;
            self.judge_loss();
        }
        self.step(now, in_flight, is_round && batch.newest.is_some_and(|n| !n.limited));
        self.resize(batch.bytes, in_flight, limited);
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
        while self.rates.back().is_some_and(|(_, r)| *r <= rate) {
            self.rates.pop_back();
        }
        self.rates.push_back((self.rounds, rate));
        while self.rates.front().is_some_and(|(round, _)| round + RATE_ROUNDS < self.rounds) {
            self.rates.pop_front();
        }
    }

    fn judge_loss(&mut self) {
        let (acknowledged, lost, marked) = std::mem::take(&mut self.round);
        let all = acknowledged + lost;
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = if all < self.floor() { 0.0 } else { lost as f64 / all as f64 };
        if share >= MUCH_LOSS || marked {
            self.boldness *= 0.7;
            if self.phase == Phase::Start {
                self.full.1 = FULL_ROUNDS;
            }
        } else if share <= LITTLE_LOSS {
            self.boldness = (self.boldness + 0.05).min(1.0);
        }
    }

    fn step(&mut self, now: Instant, in_flight: u64, is_round: bool) {
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
                    self.phase = Phase::Drain { since: now, empty: false };
                }
            }
            Phase::Drain { since, empty } => {
                let is_empty = in_flight <= self.target(1.0, Duration::ZERO);
                if (empty && is_round) || now.saturating_duration_since(since) > DRAIN_MOST {
                    self.phase = Phase::Cruise { until: now + DRAIN_EVERY };
                } else if is_empty && !empty {
                    // The next round trip begins with what is sent from now on.
                    self.round_end = self.delivered + in_flight;
                    self.phase = Phase::Drain { since, empty: true };
                }
            }
            Phase::Cruise { until } if now >= until => {
                self.phase = Phase::Drain { since: now, empty: false };
            }
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
            Phase::Drain { .. } => self.target(DRAIN_GAIN, Duration::ZERO),
            Phase::Cruise { .. } => {
                self.target(1.0 + (GAIN - 1.0) * self.boldness, SLACK.mul_f64(self.boldness))
            }
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
pub(super) struct Factory;

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, _: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(Measuring::new(mtu))
    }
}
