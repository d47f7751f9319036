//! Which relays this node is reached through: measures some, holds reservations at the nearest, replaces one that
//! fails at once and one that is clearly farther than another without a gap. Pure: `now` is an argument.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, core::transport::ListenerId};

/// Pause after the first failure of a relay; it doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// A reservation that was lost is still told for so long, unless another one takes its place: a relay that restarts is back
/// by then, and the registry of a large mesh hears of nothing instead of twice from each of its nodes.
const TOLD: Duration = Duration::from_secs(15);
/// A reservation that is not granted after this long has failed.
const GRANT: Duration = Duration::from_secs(10);
/// A dial that has not ended after this long is forgotten.
const DIAL: Duration = Duration::from_secs(10);
/// Time that a new connection gets for its round trip to be measured.
const MEASURE: Duration = Duration::from_millis(400);
/// A relay replaces another when it is nearer by a quarter and by at least this much.
const NEARER: Duration = Duration::from_millis(5);

/// The nodes of a relay that has come back take so long to connect by their other transports too.
const CROWD: Duration = Duration::from_secs(4);

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    /// Connect to a relay.
    Connect(PeerId),
    /// Listen on a circuit through a relay.
    Reserve(PeerId),
    /// Give a reservation back that was granted. libp2p panics when an answer comes for one that was given up before.
    Release(ListenerId),
    /// Close the connections with a relay, and with them a request that is not answered.
    Drop(PeerId),
}

#[derive(Debug)]
struct Listen {
    id: ListenerId,
    since: Instant,
    granted: bool,
}

#[derive(Debug)]
struct Relay {
    addresses: Vec<Multiaddr>,
    connections: usize,
    connected: Option<Instant>,
    dialling: Option<Instant>,
    rtt: Option<Duration>,
    failures: u32,
    not_before: Instant,
    listen: Option<Listen>,
    /// Until when a reservation that was lost is told.
    told: Option<Instant>,
    /// Position among relays of which nothing is known; differs from node to node, so that they spread.
    order: u64,
}

impl Relay {
    /// Less is better.
    fn rank(&self) -> (Duration, u64) {
        (self.rtt.unwrap_or(Duration::MAX), self.order)
    }

    fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        let pause = MIN_PAUSE.saturating_mul(1 << self.failures.saturating_sub(1).min(10)).min(MAX_PAUSE);
        // Up to half as much again, other for each node: those that lost the same relay do not return together.
        let spread = (self.order % 512) as u32;
        self.not_before = now + pause + pause * spread / 1024;
    }
}

/// Relays of the view and what this node has with them.
#[derive(Debug)]
pub(crate) struct Reservations {
    own: PeerId,
    want: usize,
    measured: usize,
    relays: BTreeMap<PeerId, Relay>,
}

impl Reservations {
    pub(crate) fn new(own: PeerId, want: usize, measured: usize) -> Self {
        Self { own, want, measured: measured.max(want), relays: BTreeMap::new() }
    }

    /// Takes the relays of a new view; gives what to release.
    pub(crate) fn set_relays(&mut self, relays: &[(PeerId, Vec<Multiaddr>)], now: Instant) -> Vec<Op> {
        let mut gone = Vec::new();
        self.relays.retain(|peer, relay| {
            let stays = relays.iter().any(|(p, _)| p == peer);
            if !stays && let Some(listen) = &relay.listen {
                gone.push(if listen.granted { Op::Release(listen.id) } else { Op::Drop(*peer) });
            }
            stays
        });
        for (peer, addresses) in relays.iter().filter(|(p, a)| *p != self.own && !a.is_empty()) {
            let mut hasher = DefaultHasher::new();
            (self.own, peer).hash(&mut hasher);
            let relay = self.relays.entry(*peer).or_insert_with(|| Relay {
                addresses: Vec::new(),
                connections: 0,
                connected: None,
                dialling: None,
                rtt: None,
                failures: 0,
                not_before: now,
                listen: None,
                told: None,
                order: hasher.finish(),
            });
            if relay.addresses != *addresses {
                relay.addresses.clone_from(addresses);
                relay.not_before = now;
                relay.failures = 0;
            }
        }
        gone
    }

    /// Changes how many are held; gives what to release.
    pub(crate) fn set_want(&mut self, want: usize) -> Vec<Op> {
        self.want = want;
        self.measured = self.measured.max(want);
        let listens = self.relays.values().filter_map(|r| r.listen.as_ref()).filter(|l| l.granted);
        if want == 0 { listens.map(|l| Op::Release(l.id)).collect() } else { Vec::new() }
    }

    pub(crate) fn addresses(&self, peer: &PeerId) -> &[Multiaddr] {
        self.relays.get(peer).map_or(&[], |r| &r.addresses)
    }

    pub(crate) fn is_relay(&self, peer: &PeerId) -> bool {
        self.relays.contains_key(peer)
    }

    /// Relays that have granted a reservation, nearest first.
    pub(crate) fn granted(&self) -> Vec<PeerId> {
        let granted = |r: &Relay| r.listen.as_ref().is_some_and(|l| l.granted);
        let mut all: Vec<_> = self.relays.iter().filter(|(_, r)| granted(r)).collect();
        all.sort_by_key(|(_, r)| r.rank());
        all.into_iter().map(|(p, _)| *p).collect()
    }

    /// Relays at which others are told to ask for this node, nearest first.
    pub(crate) fn told(&self, now: Instant) -> Vec<PeerId> {
        let mut all = self.granted();
        let missing = self.want.saturating_sub(all.len());
        let is_told = |r: &Relay| r.told.is_some_and(|until| until > now);
        let lost = self.relays.iter().filter(|(p, r)| is_told(r) && !all.contains(p)).map(|(p, _)| *p);
        let lost: Vec<_> = lost.take(missing).collect();
        all.extend(lost);
        all
    }

    /// Relays that this node keeps connections with.
    pub(crate) fn held(&self) -> impl Iterator<Item = PeerId> {
        self.relays.iter().filter(|(_, r)| r.listen.is_some()).map(|(p, _)| *p)
    }

    pub(crate) fn rtt(&mut self, peer: &PeerId, rtt: Duration) {
        if let Some(relay) = self.relays.get_mut(peer) {
            // The least of late: a moment of load says nothing about distance.
            relay.rtt = Some(relay.rtt.map_or(rtt, |old| if rtt < old { rtt } else { (old * 7 + rtt) / 8 }));
        }
    }

    /// A relay has this many connections with this node now.
    pub(crate) fn connections(&mut self, peer: &PeerId, count: usize, now: Instant) {
        let Some(relay) = self.relays.get_mut(peer) else { return };
        let before = std::mem::replace(&mut relay.connections, count);
        if count > 0 {
            relay.dialling = None;
            relay.connected.get_or_insert(now);
        } else if before > 0 {
            relay.connected = None;
            relay.rtt = None;
            relay.failed(now);
        }
    }

    pub(crate) fn dial_failed(&mut self, peer: &PeerId, now: Instant) {
        if let Some(relay) = self.relays.get_mut(peer) {
            relay.dialling = None;
            if relay.connections == 0 {
                relay.failed(now);
            }
        }
    }

    pub(crate) fn reserving(&mut self, peer: &PeerId, id: ListenerId, now: Instant) {
        if let Some(relay) = self.relays.get_mut(peer) {
            relay.listen = Some(Listen { id, since: now, granted: false });
        }
    }

    /// A reservation was granted; says whether it is a new one.
    pub(crate) fn on_granted(&mut self, peer: &PeerId) -> bool {
        let Some(relay) = self.relays.get_mut(peer) else { return false };
        relay.failures = 0;
        relay.listen.as_mut().is_some_and(|l| !std::mem::replace(&mut l.granted, true))
    }

    /// A listener ended; gives its relay and whether that had granted it.
    pub(crate) fn listener_closed(&mut self, id: ListenerId, now: Instant) -> Option<(PeerId, bool)> {
        let of = |r: &Relay| r.listen.as_ref().is_some_and(|l| l.id == id);
        let (peer, relay) = self.relays.iter_mut().find(|(_, r)| of(r))?;
        let granted = relay.listen.take().is_some_and(|l| l.granted);
        if granted {
            relay.told = Some(now + TOLD);
        }
        relay.failed(now);
        Some((*peer, granted))
    }

    /// How long transports beside the first wait after a relay's nodes were all lost: what a crowd needs first is to be
    /// reached again, and each handshake keeps another node from it.
    pub(crate) fn yields(&self, peer: &PeerId) -> Option<Duration> {
        let relay = self.relays.get(peer).filter(|r| r.told.is_some())?;
        Some(CROWD * (relay.order % 512) as u32 / 512)
    }

    /// The network is another one: relays that were not reached may be now.
    pub(crate) fn hurry(&mut self, now: Instant) {
        for relay in self.relays.values_mut() {
            (relay.failures, relay.not_before) = (0, now);
        }
    }

    /// Everything that is due.
    pub(crate) fn step(&mut self, now: Instant) -> Vec<Op> {
        let mut ops = Vec::new();
        if self.want == 0 {
            return ops;
        }
        for (peer, relay) in &mut self.relays {
            if relay.dialling.is_some_and(|at| now >= at + DIAL) {
                relay.dialling = None;
                relay.failed(now);
            }
            if let Some(listen) = &relay.listen
                && !listen.granted
                && now >= listen.since + GRANT
            {
                ops.push(Op::Drop(*peer));
            }
        }
        self.connect(now, &mut ops);
        self.choose(now, &mut ops);
        ops
    }

    /// When something is due again that no event tells.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        let of = |r: &Relay| {
            let waits = r.listen.is_none().then_some(r.not_before);
            let granted = r.listen.as_ref().filter(|l| !l.granted).map(|l| l.since + GRANT);
            let measured = r.connected.filter(|_| r.listen.is_none()).map(|at| at + MEASURE);
            [waits, granted, measured, r.dialling.map(|at| at + DIAL), r.told]
        };
        self.relays.values().flat_map(of).flatten().filter(|at| *at > now).min()
    }

    fn connect(&mut self, now: Instant, ops: &mut Vec<Op>) {
        let busy = |r: &Relay| r.connections > 0 || r.dialling.is_some();
        let mut room = self.measured.saturating_sub(self.relays.values().filter(|r| busy(r)).count());
        let mut idle: Vec<_> =
            self.relays.iter_mut().filter(|(_, r)| !busy(r) && r.not_before <= now).collect();
        idle.sort_by_key(|(_, r)| (r.failures, r.rank()));
        for (peer, relay) in idle {
            if room == 0 {
                return;
            }
            room -= 1;
            relay.dialling = Some(now);
            ops.push(Op::Connect(*peer));
        }
    }

    fn choose(&self, now: Instant, ops: &mut Vec<Op>) {
        let held: Vec<_> = self.relays.values().filter(|r| r.listen.is_some()).collect();
        let granted = held.iter().filter(|r| r.listen.as_ref().is_some_and(|l| l.granted)).count();
        let ready = |r: &Relay| {
            let measured = r.rtt.is_some() || r.connected.is_some_and(|at| now >= at + MEASURE);
            r.connections > 0 && r.listen.is_none() && r.not_before <= now && (measured || held.is_empty())
        };
        let mut free: Vec<_> = self.relays.iter().filter(|(_, r)| ready(r)).collect();
        free.sort_by_key(|(_, r)| r.rank());
        if held.len() < self.want {
            // While the nearest has still to be measured, only the first one is taken.
            ops.extend(free.iter().take(self.want - held.len()).map(|(p, _)| Op::Reserve(**p)));
            return;
        }
        let farthest = held.iter().filter(|r| r.listen.as_ref().is_some_and(|l| l.granted));
        let Some(farthest) = farthest.max_by_key(|r| r.rank()) else { return };
        if granted > self.want {
            ops.extend(farthest.listen.as_ref().map(|l| Op::Release(l.id)));
        } else if held.len() == self.want
            && granted == self.want
            && let Some((peer, nearest)) = free.first()
            && is_nearer(nearest.rtt, farthest.rtt)
        {
            ops.push(Op::Reserve(**peer));
        }
    }
}

fn is_nearer(one: Option<Duration>, other: Option<Duration>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one + NEARER <= other && one * 4 <= other * 3,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        now: Instant,
        relays: Vec<PeerId>,
        it: Reservations,
    }

    fn world(count: usize, want: usize) -> World {
        let relays: Vec<PeerId> = (0..count).map(|_| PeerId::random()).collect();
        let mut it = Reservations::new(PeerId::random(), want, want.max(4));
        let now = Instant::now();
        let all: Vec<_> =
            relays.iter().map(|r| (*r, vec!["/ip4/192.0.2.1/tcp/1".parse().unwrap()])).collect();
        assert!(it.set_relays(&all, now).is_empty());
        World { now, relays, it }
    }

    impl World {
        fn at(&mut self, millis: u64) -> Vec<Op> {
            self.now += Duration::from_millis(millis);
            self.it.step(self.now)
        }

        fn connect_all(&mut self, rtts: &[u64]) {
            for op in self.at(0) {
                assert!(matches!(op, Op::Connect(_)));
            }
            for (relay, rtt) in self.relays.clone().iter().zip(rtts) {
                self.it.connections(relay, 1, self.now);
                self.it.rtt(relay, Duration::from_millis(*rtt));
            }
        }

        /// Reserves where asked, granted at once.
        fn grant(&mut self, ops: &[Op]) -> Vec<PeerId> {
            let mut asked = Vec::new();
            for op in ops {
                if let Op::Reserve(peer) = op {
                    self.it.reserving(peer, ListenerId::next(), self.now);
                    assert!(self.it.on_granted(peer));
                    asked.push(*peer);
                }
            }
            asked
        }
    }

    #[test]
    fn the_nearest_two_are_held() {
        let mut w = world(4, 2);
        w.connect_all(&[40, 10, 30, 20]);
        let ops = w.at(1);
        assert_eq!(w.grant(&ops), [w.relays[1], w.relays[3]]);
        assert_eq!(w.at(1), []);
        assert_eq!(w.it.granted(), [w.relays[1], w.relays[3]]);
    }

    #[test]
    fn the_first_is_taken_before_anything_is_measured_and_the_second_is_not() {
        let mut w = world(3, 2);
        w.at(0);
        for relay in w.relays.clone() {
            w.it.connections(&relay, 1, w.now);
        }
        let ops = w.at(1);
        assert_eq!(ops.len(), 2, "a node without any takes what there is: {ops:?}");
        let mut w = world(3, 2);
        w.at(0);
        let (a, b) = (w.relays[0], w.relays[1]);
        w.it.connections(&a, 1, w.now);
        let ops = w.at(1);
        assert_eq!(w.grant(&ops), [a]);
        w.it.connections(&b, 1, w.now);
        assert_eq!(w.at(1), [], "not measured yet");
        assert_eq!(w.it.next(w.now), Some(w.now - Duration::from_millis(1) + MEASURE));
        assert_eq!(w.at(500), [Op::Reserve(b)], "no answer to the probe: better than nothing");
    }

    #[test]
    fn a_lost_relay_is_replaced_at_once_and_returns_after_a_pause() {
        let mut w = world(3, 2);
        w.connect_all(&[10, 20, 30]);
        let ops = w.at(1);
        w.grant(&ops);
        let (lost, id) = (w.relays[0], w.it.relays[&w.relays[0]].listen.as_ref().unwrap().id);
        w.it.connections(&lost, 0, w.now);
        assert_eq!(w.it.yields(&lost), None);
        assert_eq!(w.it.listener_closed(id, w.now), Some((lost, true)));
        assert!(w.it.yields(&lost).is_some_and(|pause| pause < CROWD));
        let (other, third) = (w.relays[1], w.relays[2]);
        assert_eq!(w.it.told(w.now), [other, lost], "it may be back soon");
        assert_eq!(w.it.told(w.now + TOLD), [other]);
        let ops = w.at(0);
        assert_eq!(w.grant(&ops), [third], "without any pause");
        assert_eq!(w.it.told(w.now), [other, third], "another one has taken its place");
        assert!(!w.at(100).contains(&Op::Connect(lost)));
        assert!(w.at(1500).contains(&Op::Connect(lost)));
        w.it.connections(&lost, 1, w.now);
        w.it.rtt(&lost, Duration::from_millis(10));
        let ops = w.at(1);
        assert_eq!(w.grant(&ops), [lost], "it is clearly nearer than the farthest");
        let farthest = w.it.relays[&w.relays[2]].listen.as_ref().unwrap().id;
        assert_eq!(w.at(1), [Op::Release(farthest)], "only then the farthest is given back");
    }

    #[test]
    fn a_little_nearer_changes_nothing() {
        assert!(!is_nearer(Some(Duration::from_millis(9)), Some(Duration::from_millis(10))));
        assert!(!is_nearer(Some(Duration::from_millis(90)), Some(Duration::from_millis(100))));
        assert!(is_nearer(Some(Duration::from_millis(70)), Some(Duration::from_millis(100))));
        assert!(!is_nearer(None, Some(Duration::from_millis(10))));
    }

    #[test]
    fn failures_wait_longer_each_time_but_never_long() {
        let mut w = world(1, 2);
        let relay = w.relays[0];
        for _ in 0..20 {
            let mut waited = 0;
            while !w.at(100).contains(&Op::Connect(relay)) {
                waited += 1;
                assert!(waited < 160);
            }
            w.it.dial_failed(&relay, w.now);
        }
        assert!(w.it.relays[&relay].not_before - w.now >= MAX_PAUSE);
        // A dial that nobody reports about does not block for ever.
        assert!(w.at(16_000).contains(&Op::Connect(relay)));
        assert_eq!(w.at(10_000), [], "given up");
        assert!(w.at(16_000).contains(&Op::Connect(relay)));
    }

    #[test]
    fn a_grant_that_does_not_come_and_a_relay_that_leaves_are_released() {
        let mut w = world(2, 2);
        w.connect_all(&[1, 2]);
        for op in w.at(1) {
            if let Op::Reserve(peer) = op {
                w.it.reserving(&peer, ListenerId::next(), w.now);
            }
        }
        assert_eq!(w.at(100), []);
        let dropped = w.at(10_000);
        assert!(dropped.len() == 2 && dropped.iter().all(|op| matches!(op, Op::Drop(_))), "{dropped:?}");
        assert_eq!(w.it.set_want(0), [], "what is not granted is not given back");
        let peer = w.relays[0];
        assert!(w.it.on_granted(&peer));
        assert!(matches!(w.it.set_want(0)[..], [Op::Release(_)]));
        let all = w.it.set_relays(&[], w.now);
        assert!(all.iter().any(|op| matches!(op, Op::Release(_))) && all.contains(&Op::Drop(w.relays[1])));
        assert!(w.it.relays.is_empty());
    }

    #[test]
    fn many_relays_are_not_all_connected_and_nodes_spread_over_them() {
        let relays: Vec<_> = (0..50).map(|_| PeerId::random()).collect();
        let all: Vec<(PeerId, Vec<Multiaddr>)> =
            relays.iter().map(|r| (*r, vec!["/ip4/192.0.2.1/tcp/1".parse().unwrap()])).collect();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..20 {
            let mut it = Reservations::new(PeerId::random(), 2, 6);
            let now = Instant::now();
            it.set_relays(&all, now);
            let ops = it.step(now);
            assert_eq!(ops.len(), 6);
            seen.extend(ops.into_iter().map(|o| format!("{o:?}")));
        }
        assert!(seen.len() > 20, "{}", seen.len());
    }
}
