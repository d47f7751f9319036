//! Simulated lines: one bottleneck with a rate, a length, a queue and losses, and flows that share it: ours as quinn runs
//! it, and Reno and Cubic as a kernel does.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use super::super::*;

pub(super) const PACKET: u64 = 1_400;
/// Packets that an acknowledgement of a kernel's TCP stands for, and its delay.
const TOGETHER_TCP: usize = 2;
const ACK_DELAY_TCP: Duration = Duration::from_millis(40);
/// Least wait before what is under way is asked for.
const PROBE: f64 = 0.06;

#[derive(Clone, Copy)]
pub(super) struct Line {
    /// Bytes a second.
    pub(super) rate: f64,
    pub(super) round_trip: Duration,
    /// Bytes that may wait.
    pub(super) queue: f64,
    /// Share of packets.
    pub(super) loss: f64,
}

pub(super) const MBIT: f64 = 125_000.0;

pub(super) fn line(mbit: f64, round_trip_ms: u64, queue_ms: f64, loss: f64) -> Line {
    let rate = mbit * MBIT;
    Line { rate, round_trip: Duration::from_millis(round_trip_ms), queue: rate * queue_ms / 1e3, loss }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives(usize, u64),
    Flush(usize),
    Acks(usize, usize),
    Sends(usize),
    /// What was sent last has had no answer.
    Silent(usize, u64),
}

/// What decides how much a flow sends.
pub(super) enum Control {
    Ours(Box<Measuring>),
    /// Window, threshold and the number after which a loss counts again; Cubic with its last maximum and its time.
    Loss {
        window: f64,
        threshold: f64,
        until: u64,
        cubic: Option<(f64, u64)>,
    },
}

impl Control {
    pub(super) fn reno() -> Self {
        Self::Loss { window: 10.0, threshold: f64::MAX, until: 0, cubic: None }
    }

    pub(super) fn cubic() -> Self {
        Self::Loss { window: 10.0, threshold: f64::MAX, until: 0, cubic: Some((0.0, 0)) }
    }

    fn window(&self) -> f64 {
        match self {
            Self::Ours(ours) => ours.window() as f64,
            Self::Loss { window, .. } => window * PACKET as f64,
        }
    }

    fn acked(&mut self, packets: f64, now: u64, round_trip: f64) {
        let Self::Loss { window, threshold, cubic, .. } = self else { return };
        if *window < *threshold {
            *window += packets;
            return;
        }
        let reno = packets / *window;
        let Some((most, since)) = *cubic else {
            *window += reno;
            return;
        };
        // RFC 9438: C = 0.4, beta = 0.7, never slower than Reno would be.
        let t = (now - since) as f64 / 1e9 + round_trip;
        let k = (most * 0.3 / 0.4).cbrt();
        let wanted = 0.4 * (t - k).powi(3) + most;
        *window += ((wanted - *window) / *window * packets).max(reno * 0.53).min(packets * 0.5);
    }

    fn lost(&mut self, highest: u64, next: u64, now: u64, all: bool) {
        let Self::Loss { window, threshold, until, cubic } = self else { return };
        if all {
            (*threshold, *window, *until) = ((*window * 0.5).max(2.0), 2.0, next);
        } else if highest >= *until {
            let beta = if cubic.is_some() { 0.7 } else { 0.5 };
            *cubic = cubic.map(|_| (*window, now));
            *window = (*window * beta).max(2.0);
            (*threshold, *until) = (*window, next);
        }
    }
}

pub(super) struct Flow {
    pub(super) control: Control,
    pub(super) smoothed: f64,
    next: u64,
    under_way: BTreeMap<u64, u64>,
    pub(super) in_flight: u64,
    tokens: f64,
    refilled: u64,
    received: Vec<u64>,
    highest: Option<u64>,
    acks: Vec<Vec<u64>>,
    /// The highest that was acknowledged.
    answered: Option<u64>,
    silences: u32,
    pub(super) delivered: u64,
    pub(super) lost: u64,
    pub(super) sent: u64,
    pub(super) waited: f64,
    /// There is this much to send each millisecond; none: always enough.
    pub(super) supply: Option<f64>,
    pub(super) supplied: f64,
    /// An event for sending is under way.
    scheduled: bool,
}

impl Flow {
    fn new(control: Control) -> Self {
        Self {
            control,
            smoothed: 0.333,
            next: 0,
            under_way: BTreeMap::new(),
            in_flight: 0,
            tokens: 10.0 * PACKET as f64,
            refilled: 0,
            received: Vec::new(),
            highest: None,
            acks: Vec::new(),
            answered: None,
            silences: 0,
            delivered: 0,
            lost: 0,
            sent: 0,
            waited: 0.0,
            supply: None,
            supplied: 0.0,
            scheduled: false,
        }
    }

    pub(super) fn ours(&mut self) -> &mut Measuring {
        match &mut self.control {
            Control::Ours(ours) => ours,
            Control::Loss { .. } => panic!("not ours"),
        }
    }

    fn is_ours(&self) -> bool {
        matches!(self.control, Control::Ours(_))
    }
}

/// What a flow did in a while.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// Of the line.
    pub(super) used: f64,
    /// Of what it sent.
    pub(super) lost: f64,
    /// Mean time in the queue.
    pub(super) waited: Duration,
}

pub(super) struct World {
    pub(super) line: Line,
    base: Instant,
    /// Nanoseconds.
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    count: u64,
    random: u64,
    /// When the bottleneck is done with what it has.
    busy_until: u64,
    pub(super) flows: Vec<Flow>,
}

impl World {
    pub(super) fn new(line: Line) -> Self {
        let mut world = Self::empty(line);
        world.add_ours();
        world
    }

    pub(super) fn empty(line: Line) -> Self {
        Self {
            line,
            base: Instant::now(),
            now: 0,
            events: BinaryHeap::new(),
            count: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            busy_until: 0,
            flows: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, control: Control) {
        let mut flow = Flow::new(control);
        flow.refilled = self.now;
        self.flows.push(flow);
        self.sends_in(self.flows.len() - 1, 0);
    }

    pub(super) fn add_ours(&mut self) {
        let slots = Slots::new(self.base, Duration::ZERO);
        self.add(Control::Ours(Box::new(Measuring::new(PACKET as u16, slots))));
    }

    fn at(&mut self, time: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((time, self.count, event)));
    }

    pub(super) fn sends_in(&mut self, f: usize, time: u64) {
        if !std::mem::replace(&mut self.flows[f].scheduled, true) {
            self.at(self.now + time, Event::Sends(f));
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

    /// Runs for so many seconds more.
    pub(super) fn run(&mut self, seconds: f64) -> Vec<Share> {
        let before: Vec<_> = self.flows.iter().map(|f| (f.delivered, f.lost, f.sent, f.waited)).collect();
        let end = self.now + (seconds * 1e9) as u64;
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            if time > end {
                self.at(time, event);
                break;
            }
            self.now = time;
            match event {
                Event::Arrives(f, n) => self.arrives(f, n),
                Event::Flush(f) => self.acknowledge(f),
                Event::Acks(f, which) => self.acked(f, which),
                Event::Sends(f) => {
                    self.flows[f].scheduled = false;
                    self.send(f);
                }
                Event::Silent(f, n) => self.silent(f, n),
            }
        }
        self.now = end;
        let all = self.line.rate * seconds;
        let shares = self.flows.iter().zip(before).map(|(f, (delivered, lost, sent, waited))| {
            let packets = (f.sent - sent).max(1) as f64;
            Share {
                used: (f.delivered - delivered) as f64 / all,
                lost: (f.lost - lost) as f64 / packets,
                waited: Duration::from_secs_f64((f.waited - waited) / packets),
            }
        });
        shares.collect()
    }

    /// The same for the only flow.
    pub(super) fn run_one(&mut self, seconds: f64) -> Share {
        self.run(seconds)[0]
    }

    /// As quinn: a window, and a pace of a window and a quarter for each round trip in bursts of two milliseconds.
    fn send(&mut self, f: usize) {
        let now = self.now;
        let flow = &mut self.flows[f];
        let window = flow.control.window();
        let burst = (window * 0.002 / flow.smoothed).clamp(10.0 * PACKET as f64, 256.0 * PACKET as f64);
        let passed = (now - flow.refilled) as f64 / 1e9;
        flow.tokens = (flow.tokens + window * 1.25 * passed / flow.smoothed).min(burst);
        flow.refilled = now;
        if let Some(supply) = flow.supply {
            flow.supplied = (flow.supplied + passed * 1e3 * supply).min(256_000.0);
        }
        let paced = flow.is_ours();
        let mut blocked = false;
        loop {
            let flow = &mut self.flows[f];
            if flow.supply.is_some() && flow.supplied < PACKET as f64 {
                break;
            }
            blocked = (flow.in_flight + PACKET) as f64 >= window;
            if blocked {
                break;
            }
            if paced && flow.tokens < PACKET as f64 {
                blocked = true;
                let wait = (burst - flow.tokens) * flow.smoothed / window / 1.25;
                self.sends_in(f, (wait * 1e9) as u64 + 1);
                break;
            }
            flow.tokens -= PACKET as f64;
            flow.supplied -= PACKET as f64;
            self.transmit(f);
        }
        if self.flows[f].supply.is_some() && !blocked {
            self.sends_in(f, 1_000_000);
        }
    }

    fn transmit(&mut self, f: usize) {
        let now = self.instant(self.now);
        let flow = &mut self.flows[f];
        let n = flow.next;
        flow.next += 1;
        flow.sent += 1;
        if let Control::Ours(ours) = &mut flow.control {
            ours.sends(now);
        }
        flow.under_way.insert(n, self.now);
        flow.in_flight += PACKET;
        let patience = (flow.smoothed * 2.0 + PROBE) * f64::from(1 << flow.silences.min(6));
        self.at(self.now + (patience * 1e9) as u64, Event::Silent(f, n));
        let start = self.busy_until.max(self.now);
        let waits = (start - self.now) as f64 / 1e9;
        if waits * self.line.rate > self.line.queue || self.chance() < self.line.loss {
            return;
        }
        self.flows[f].waited += waits;
        self.busy_until = start + (PACKET as f64 / self.line.rate * 1e9) as u64;
        self.at(self.busy_until + self.half(), Event::Arrives(f, n));
    }

    /// A packet has had no answer for long: if a later one had, it is lost; if it is the last, another one asks.
    fn silent(&mut self, f: usize, n: u64) {
        let at = self.now;
        let flow = &mut self.flows[f];
        if !flow.under_way.contains_key(&n) {
            return;
        }
        if flow.answered > Some(n) {
            flow.under_way.remove(&n);
            flow.in_flight -= PACKET;
            flow.lost += 1;
            let next = flow.next;
            flow.control.lost(n, next, at, false);
            if let Control::Ours(ours) = &mut flow.control {
                ours.lost(PACKET, false);
            }
            self.send(f);
        } else if flow.next == n + 1 {
            flow.silences += 1;
            self.transmit(f);
        }
    }

    fn arrives(&mut self, f: usize, n: u64) {
        let flow = &mut self.flows[f];
        let gap = flow.highest.map_or(0, |h| h + 1) != n;
        flow.highest = flow.highest.max(Some(n));
        flow.received.push(n);
        let (together, delay) =
            if flow.is_ours() { (TOGETHER as usize, ACK_DELAY) } else { (TOGETHER_TCP, ACK_DELAY_TCP) };
        if gap || flow.received.len() >= together {
            self.acknowledge(f);
        } else if flow.received.len() == 1 {
            self.at(self.now + delay.as_nanos() as u64, Event::Flush(f));
        }
    }

    fn acknowledge(&mut self, f: usize) {
        let flow = &mut self.flows[f];
        if !flow.received.is_empty() {
            flow.acks.push(std::mem::take(&mut flow.received));
            let which = flow.acks.len() - 1;
            self.at(self.now + self.half(), Event::Acks(f, which));
        }
    }

    fn acked(&mut self, f: usize, which: usize) {
        let (now, at, base) = (self.instant(self.now), self.now, self.base);
        let flow = &mut self.flows[f];
        let acked = std::mem::take(&mut flow.acks[which]);
        let largest = acked.iter().copied().max().unwrap();
        flow.answered = flow.answered.max(Some(largest));
        let mut fresh = 0;
        for n in acked {
            let Some(sent) = flow.under_way.remove(&n) else { continue };
            fresh += 1;
            flow.in_flight -= PACKET;
            flow.delivered += PACKET;
            flow.silences = 0;
            if let Control::Ours(ours) = &mut flow.control {
                ours.acknowledged(now, base + Duration::from_nanos(sent), PACKET);
            }
            if n == largest {
                let sample = (at - sent) as f64 / 1e9;
                flow.smoothed =
                    if flow.smoothed == 0.333 { sample } else { flow.smoothed * 0.875 + sample * 0.125 };
            }
        }
        let limited = flow.supply.is_some() && flow.supplied < PACKET as f64;
        flow.control.acked(f64::from(fresh), at, flow.smoothed);
        if let Control::Ours(ours) = &mut flow.control {
            ours.end_of_acknowledgements(now, flow.in_flight, limited);
        }
        let lost: Vec<u64> = flow.under_way.range(..largest.saturating_sub(2)).map(|(n, _)| *n).collect();
        let (first, last) = (lost.first().copied(), lost.last().copied());
        let mut span = 0;
        if let (Some(first), Some(last)) = (first, last) {
            span = flow.under_way[&last] - flow.under_way[&first];
        }
        for n in &lost {
            flow.under_way.remove(n);
            flow.in_flight -= PACKET;
        }
        if let Some(last) = last {
            flow.lost += lost.len() as u64;
            // As quinn, if nothing of that long came through.
            let all = span as f64 / 1e9 > 3.0 * (flow.smoothed * 3.0 + 0.025)
                && lost.len() as u64 == last - first.unwrap_or(last) + 1;
            let next = flow.next;
            flow.control.lost(last, next, at, all);
            if let Control::Ours(ours) = &mut flow.control {
                ours.lost(lost.len() as u64 * PACKET, all);
            }
        }
        self.send(f);
    }
}
