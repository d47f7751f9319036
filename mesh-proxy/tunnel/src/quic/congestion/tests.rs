//! The controller on simulated lines: one bottleneck with a rate, a length, a queue and losses, and a sender and a receiver
//! that do what quinn does.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use super::*;

const PACKET: u64 = 1_400;
/// Packets that one acknowledgement stands for.
const TOGETHER: usize = 10;
const ACK_DELAY: Duration = Duration::from_millis(25);

#[derive(Clone, Copy)]
struct Line {
    /// Bytes a second.
    rate: f64,
    round_trip: Duration,
    /// Bytes that may wait.
    queue: f64,
    /// Share of packets.
    loss: f64,
}

const MBIT: f64 = 125_000.0;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives(u64),
    Flush,
    Acks(usize),
    Sends,
}

struct World {
    line: Line,
    base: Instant,
    /// Nanoseconds.
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    count: u64,
    random: u64,
    control: Measuring,
    smoothed: f64,
    next: u64,
    under_way: BTreeMap<u64, u64>,
    in_flight: u64,
    tokens: f64,
    refilled: u64,
    /// When the bottleneck is done with what it has.
    busy_until: u64,
    received: Vec<u64>,
    highest: Option<u64>,
    acks: Vec<Vec<u64>>,
    delivered: u64,
    lost: u64,
    sent: u64,
    waited: f64,
    /// There is this much to send each millisecond; none: always enough.
    supply: Option<f64>,
    supplied: f64,
    /// An event for sending is under way.
    scheduled: bool,
}

impl World {
    fn new(line: Line) -> Self {
        let mut world = Self {
            line,
            base: Instant::now(),
            now: 0,
            events: BinaryHeap::new(),
            count: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            control: Measuring::new(PACKET as u16),
            smoothed: 0.333,
            next: 0,
            under_way: BTreeMap::new(),
            in_flight: 0,
            tokens: 10.0 * PACKET as f64,
            refilled: 0,
            busy_until: 0,
            received: Vec::new(),
            highest: None,
            acks: Vec::new(),
            delivered: 0,
            lost: 0,
            sent: 0,
            waited: 0.0,
            supply: None,
            supplied: 0.0,
            scheduled: true,
        };
        world.at(0, Event::Sends);
        world
    }

    fn at(&mut self, time: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((time, self.count, event)));
    }

    fn sends_in(&mut self, time: u64) {
        if !std::mem::replace(&mut self.scheduled, true) {
            self.at(self.now + time, Event::Sends);
        }
    }

    fn chance(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn instant(&self, time: u64) -> Instant {
        self.base + Duration::from_nanos(time)
    }

    fn half(&self) -> u64 {
        self.line.round_trip.as_nanos() as u64 / 2
    }

    /// Runs for so many seconds more; gives the share of the line that was used, of what was sent what was lost, and the mean
    /// time in the queue.
    fn run(&mut self, seconds: f64) -> (f64, f64, Duration) {
        let (delivered, lost, sent, waited) = (self.delivered, self.lost, self.sent, self.waited);
        let end = self.now + (seconds * 1e9) as u64;
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            if time > end {
                self.at(time, event);
                break;
            }
            self.now = time;
            match event {
                Event::Arrives(n) => self.arrives(n),
                Event::Flush => self.acknowledge(),
                Event::Acks(which) => self.acked(which),
                Event::Sends => {
                    self.scheduled = false;
                    self.send();
                }
            }
        }
        self.now = end;
        let packets = (self.sent - sent).max(1) as f64;
        (
            (self.delivered - delivered) as f64 / (self.line.rate * seconds),
            (self.lost - lost) as f64 / packets,
            Duration::from_secs_f64((self.waited - waited) / packets),
        )
    }

    /// As quinn: a window, and a pace of a window and a quarter for each round trip in bursts of two milliseconds.
    fn send(&mut self) {
        let window = self.control.window() as f64;
        let burst = (window * 0.002 / self.smoothed).clamp(10.0 * PACKET as f64, 256.0 * PACKET as f64);
        let passed = (self.now - self.refilled) as f64 / 1e9;
        self.tokens = (self.tokens + window * 1.25 * passed / self.smoothed).min(burst);
        self.refilled = self.now;
        if let Some(supply) = self.supply {
            self.supplied = (self.supplied + passed * 1e3 * supply).min(256_000.0);
        }
        let mut blocked = false;
        loop {
            if self.supply.is_some() && self.supplied < PACKET as f64 {
                break;
            }
            blocked = (self.in_flight + PACKET) as f64 >= window;
            if blocked {
                break;
            }
            if self.tokens < PACKET as f64 {
                blocked = true;
                let wait = (burst - self.tokens) * self.smoothed / window / 1.25;
                self.sends_in((wait * 1e9) as u64 + 1);
                break;
            }
            self.tokens -= PACKET as f64;
            self.supplied -= PACKET as f64;
            self.transmit();
        }
        if self.supply.is_some() && !blocked {
            self.sends_in(1_000_000);
        }
    }

    fn transmit(&mut self) {
        let n = self.next;
        self.next += 1;
        self.sent += 1;
        self.control.sends(self.instant(self.now));
        self.under_way.insert(n, self.now);
        self.in_flight += PACKET;
        let start = self.busy_until.max(self.now);
        let waits = (start - self.now) as f64 / 1e9;
        if waits * self.line.rate > self.line.queue || self.chance() < self.line.loss {
            return;
        }
        self.waited += waits;
        self.busy_until = start + (PACKET as f64 / self.line.rate * 1e9) as u64;
        self.at(self.busy_until + self.half(), Event::Arrives(n));
    }

    fn arrives(&mut self, n: u64) {
        let gap = self.highest.map_or(0, |h| h + 1) != n;
        self.highest = Some(n);
        self.received.push(n);
        if gap || self.received.len() >= TOGETHER {
            self.acknowledge();
        } else if self.received.len() == 1 {
            self.at(self.now + ACK_DELAY.as_nanos() as u64, Event::Flush);
        }
    }

    fn acknowledge(&mut self) {
        if !self.received.is_empty() {
            self.acks.push(std::mem::take(&mut self.received));
            self.at(self.now + self.half(), Event::Acks(self.acks.len() - 1));
        }
    }

    fn acked(&mut self, which: usize) {
        let now = self.instant(self.now);
        let acked = std::mem::take(&mut self.acks[which]);
        let largest = *acked.last().unwrap();
        for n in acked {
            if let Some(sent) = self.under_way.remove(&n) {
                self.in_flight -= PACKET;
                self.delivered += PACKET;
                self.control.acknowledged(now, self.instant(sent), PACKET);
                if n == largest {
                    let sample = (self.now - sent) as f64 / 1e9;
                    self.smoothed =
                        if self.smoothed == 0.333 { sample } else { self.smoothed * 0.875 + sample * 0.125 };
                }
            }
        }
        let limited = self.supply.is_some() && self.supplied < PACKET as f64;
        self.control.end_of_acknowledgements(now, self.in_flight, limited);
        let lost: Vec<u64> = self.under_way.range(..largest.saturating_sub(2)).map(|(n, _)| *n).collect();
        for n in &lost {
            self.under_way.remove(n);
            self.in_flight -= PACKET;
        }
        if !lost.is_empty() {
            self.lost += lost.len() as u64;
            self.control.lost(lost.len() as u64 * PACKET, false);
        }
        self.send();
    }
}

fn line(mbit: f64, round_trip_ms: u64, queue_ms: f64, loss: f64) -> Line {
    let rate = mbit * MBIT;
    Line { rate, round_trip: Duration::from_millis(round_trip_ms), queue: rate * queue_ms / 1e3, loss }
}

#[test]
fn a_line_is_filled_whatever_it_loses_at_random() {
    for (mbit, rtt, queue, loss) in [
        (100.0, 30, 100.0, 0.0),
        (100.0, 30, 100.0, 0.01),
        (100.0, 30, 100.0, 0.03),
        (1000.0, 1, 20.0, 0.0),
        (1000.0, 20, 20.0, 0.005),
        (10.0, 80, 200.0, 0.02),
        (100.0, 600, 300.0, 0.005),
        (2.0, 40, 200.0, 0.01),
    ] {
        let mut world = World::new(line(mbit, rtt, queue, loss));
        // As many packets as the test has time for.
        let seconds = (1_500.0 / mbit).clamp(2.0, 12.0).max(rtt as f64 / 30.0);
        let start = world.run(seconds / 3.0);
        let (used, lost, waited) = world.run(seconds);
        eprintln!(
            "{mbit} Mbit/s, {rtt} ms, {loss}: the first seconds {:.3}, then {used:.3}, lost {lost:.4}, waited {waited:?}",
            start.0
        );
        let possible = 1.0 - loss;
        assert!(used > 0.95 * possible, "{mbit} Mbit/s, {rtt} ms, loss {loss}: {used}");
        // No more than half of the line's length, what the slack is, and what two acknowledgements are.
        let most = rtt as f64 / 1e3 * 0.6 + 0.010 + 45.0 * PACKET as f64 / (mbit * MBIT);
        assert!(waited.as_secs_f64() < most, "{mbit} Mbit/s, {rtt} ms, loss {loss}: {waited:?} of {most}");
        assert!(lost < loss + 0.07, "{mbit} Mbit/s, {rtt} ms, loss {loss}: {lost} are lost");
    }
}

#[test]
fn a_short_queue_is_not_overrun_for_long() {
    for (mbit, rtt, queue) in [(100.0, 30, 5.0), (50.0, 60, 10.0), (400.0, 10, 1.0)] {
        let mut world = World::new(line(mbit, rtt, queue, 0.0));
        world.run(3.0);
        let (used, lost, _) = world.run(6.0);
        eprintln!("{mbit} Mbit/s, {rtt} ms, queue of {queue} ms: {used:.3}, lost {lost:.4}");
        assert!(used > 0.85, "{mbit} Mbit/s: {used}");
        assert!(lost < 0.12, "{mbit} Mbit/s: {lost}");
    }
}

#[test]
fn a_slow_line_with_a_short_queue_is_not_overrun() {
    for (mbit, rtt, queue) in [(2.0, 100, 40.0), (1.0, 100, 60.0), (2.0, 50, 60.0)] {
        let mut world = World::new(line(mbit, rtt, queue, 0.0));
        world.run(10.0);
        let (used, lost, _) = world.run(30.0);
        eprintln!("{mbit} Mbit/s, {rtt} ms, queue of {queue} ms: {used:.3}, lost {lost:.4}");
        assert!(used > 0.85, "{mbit} Mbit/s: {used}");
        assert!(lost < 0.09, "{mbit} Mbit/s: {lost}");
    }
}

#[test]
fn a_line_that_changes_is_followed() {
    let mut world = World::new(line(100.0, 30, 100.0, 0.005));
    world.run(5.0);
    world.line.rate = 20.0 * MBIT;
    world.run(3.0);
    let (used, lost, waited) = world.run(10.0);
    assert!(used > 0.93 && lost < 0.05, "slower: {used}, lost {lost}");
    assert!(waited < Duration::from_millis(65), "{waited:?}");
    world.line.rate = 200.0 * MBIT;
    world.run(3.0);
    let (used, ..) = world.run(10.0);
    assert!(used > 0.93, "faster: {used}");
    world.line.round_trip = Duration::from_millis(90);
    world.run(8.0);
    let (used, ..) = world.run(10.0);
    assert!(used > 0.9, "longer: {used}");
}

#[test]
fn what_is_sent_rarely_does_not_make_the_line_look_slow() {
    let mut world = World::new(line(100.0, 30, 100.0, 0.0));
    world.run(3.0);
    let before = world.control.rate();
    // A thousandth of the line, for half a minute.
    (world.supply, world.supplied) = (Some(12.5), 0.0);
    world.run(30.0);
    assert!(world.control.rate() > before * 0.9, "{} of {before}", world.control.rate());
    world.supply = None;
    world.send();
    let (used, ..) = world.run(2.0);
    assert!(used > 0.9, "{used}");
}

#[test]
fn after_a_silence_the_window_is_small_and_grows_back() {
    let mut world = World::new(line(100.0, 30, 100.0, 0.0));
    world.run(5.0);
    let before = world.control.window();
    world.control.lost(before, true);
    assert_eq!(world.control.window(), MIN_PACKETS * PACKET);
    world.run(2.0);
    assert!(world.control.window() > before / 2, "{} of {before}", world.control.window());
    assert!(world.control.sent.len() <= REMEMBERED);
}

#[test]
fn what_is_remembered_is_bounded() {
    let (mut control, start) = (Measuring::new(1_200), Instant::now());
    for i in 0..100_000 {
        control.sends(start + Duration::from_micros(i));
    }
    assert_eq!(control.sent.len(), REMEMBERED);
    // Acknowledgements of what is forgotten do no harm.
    control.acknowledged(start + Duration::from_secs(1), start, 1_200);
    control.end_of_acknowledgements(start + Duration::from_secs(1), 0, true);
    assert!(control.window() >= MIN_PACKETS * 1_200);
}
