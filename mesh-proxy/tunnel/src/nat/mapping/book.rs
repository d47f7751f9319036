//! What is open at a router, what is asked of it next, and when. Pure: `now` is an argument, datagrams come and go.
//!
//! A port that is open is asked for again at half of its life. A router that starts anew forgets what it opened; its
//! clock tells (RFC 6887, 8.5), in each answer, in its announcements, and when it is asked once a minute.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::{
    gateway::Gateway,
    wire::{self, Answer, Ask, Dialect, Nonce, Port, Refusal, Says},
};

/// Seconds for which a port is asked: a node that vanishes leaves it open for no longer.
const LIFETIME: u32 = 3_600;
/// What a router may make of it.
const LIFETIMES: std::ops::RangeInclusive<u32> = 60..=86_400;
/// A request without an answer is repeated after this, then after twice as long, and so on.
const REPEAT: Duration = Duration::from_millis(250);
/// Requests until it counts as unanswered.
const TRIES: u32 = 6;
/// Pause after that, or after a refusal.
const REST: Duration = Duration::from_secs(300);
/// How often a router with open ports is asked for its clock.
const HELLO: Duration = Duration::from_secs(60);
/// Seconds that clocks may differ beyond their drift.
const SLACK: u64 = 2;

#[derive(Debug)]
struct Lease {
    /// Outer port that the router gave last: asked for again.
    outer: u16,
    held: Option<Held>,
    /// When it is asked for.
    at: Instant,
    tries: u32,
    /// Nobody answered, or the answer was no.
    resting: bool,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    address: Option<IpAddr>,
    until: Instant,
}

/// The ports of this host at one router.
#[derive(Debug)]
pub(crate) struct Book {
    gateway: Gateway,
    secret: [u8; 32],
    leases: BTreeMap<Port, Lease>,
    dialect: Option<Dialect>,
    /// The router's clock, and ours at that moment.
    epoch: Option<(u32, Instant)>,
    /// The router's outer address where that is asked for by itself.
    address: Option<Ipv4Addr>,
    next_hello: Instant,
}

impl Book {
    /// Nothing is asked yet. Whoever knows `secret` may close what it opens, also after a restart.
    pub(crate) fn new(gateway: Gateway, secret: [u8; 32], now: Instant) -> Self {
        Self {
            gateway,
            secret,
            leases: BTreeMap::new(),
            dialect: None,
            epoch: None,
            address: None,
            next_hello: now + HELLO,
        }
    }

    pub(crate) fn gateway(&self) -> Gateway {
        self.gateway
    }

    /// Asks for these ports from now on and gives the others back: with these datagrams.
    pub(crate) fn want(&mut self, ports: &BTreeSet<Port>, now: Instant) -> Vec<Vec<u8>> {
        let gone: Vec<Port> = self.leases.keys().filter(|p| !ports.contains(p)).copied().collect();
        let farewell = gone.iter().filter_map(|p| self.close(*p)).collect();
        self.leases.retain(|p, _| ports.contains(p));
        for port in ports {
            // The same port outside where it is free: a router that loses its mappings is likely to give it again.
            let new = Lease { outer: port.1, held: None, at: now, tries: 0, resting: false };
            self.leases.entry(*port).or_insert(new);
        }
        farewell
    }

    /// The datagrams that give everything back.
    pub(crate) fn leave(&self) -> Vec<Vec<u8>> {
        self.leases.keys().filter_map(|p| self.close(*p)).collect()
    }

    fn close(&self, port: Port) -> Option<Vec<u8>> {
        self.leases.get(&port)?.held?;
        Some(wire::ask(self.dialect?, &self.ask(port, 0, 0)))
    }

    fn ask(&self, port: Port, outer: u16, lifetime: u32) -> Ask {
        Ask { port, outer, lifetime, nonce: self.nonce(port), host: self.gateway.host }
    }

    /// The same after a restart, or the router would not give this port to this node again.
    fn nonce(&self, port: Port) -> Nonce {
        let mut hash = Sha256::new();
        hash.update(self.secret);
        hash.update(format!("{port:?}"));
        let digest = hash.finalize();
        let mut nonce = Nonce::default();
        nonce.copy_from_slice(&digest[..12]);
        nonce
    }

    /// What is to be sent now.
    pub(crate) fn send(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        let due: Vec<Port> = self.leases.iter().filter(|(_, l)| l.at <= now).map(|(p, _)| *p).collect();
        for port in due {
            let Some(lease) = self.leases.get_mut(&port) else { continue };
            if lease.held.is_some_and(|h| h.until <= now) {
                lease.held = None;
            }
            if lease.tries >= TRIES {
                let left = lease.held.map(|h| h.until.saturating_duration_since(now));
                lease.at = now + left.map_or(REST, |left| (left / 2).max(REPEAT * 16));
                lease.resting = lease.held.is_none();
                lease.tries = 0;
                continue;
            }
            lease.at = now + REPEAT * (1 << lease.tries);
            // Until it is known what the router speaks, both take turns.
            let guess = if lease.tries % 2 == 0 { Dialect::Pcp } else { Dialect::NatPmp };
            lease.tries += 1;
            // NAT-PMP knows IPv4 only.
            let guess = if self.gateway.host.is_ipv6() { Dialect::Pcp } else { guess };
            let (outer, dialect) = (lease.outer, self.dialect.unwrap_or(guess));
            if dialect == Dialect::NatPmp && self.address.is_none() {
                out.push(wire::hello(dialect, self.gateway.host));
            }
            out.push(wire::ask(dialect, &self.ask(port, outer, LIFETIME)));
        }
        if let Some(dialect) = self.dialect
            && self.next_hello <= now
        {
            self.next_hello = now + HELLO;
            if self.leases.values().any(|l| l.held.is_some()) {
                out.push(wire::hello(dialect, self.gateway.host));
            }
        }
        out
    }

    /// When there is something to send again.
    pub(crate) fn next(&self) -> Instant {
        self.leases.values().map(|l| l.at).chain([self.next_hello]).min().unwrap_or(self.next_hello)
    }

    /// Takes a datagram of the router.
    pub(crate) fn receive(&mut self, bytes: &[u8], now: Instant) {
        let Some(answer) = wire::read(bytes) else { return };
        if answer.says == Says::Refused(None, Refusal::Version)
            || matches!(answer.says, Says::Refused(Some(_), Refusal::Version))
        {
            return self.other_version(answer, now);
        }
        if self.dialect.is_some_and(|d| d != answer.dialect) {
            return;
        }
        self.dialect = Some(answer.dialect);
        if let Some(epoch) = answer.epoch {
            self.clock(epoch, now);
        }
        match answer.says {
            Says::Open { port, outer, address, lifetime, nonce } => {
                if nonce.is_none_or(|n| n == self.nonce(port)) {
                    self.opened(port, (outer, address, lifetime), now);
                }
            }
            Says::Address(address) => self.address = Some(address).filter(|a| !a.is_unspecified()),
            Says::Alive => {}
            Says::Refused(port, _) => self.rest(port, now),
        }
    }

    fn other_version(&mut self, answer: Answer, now: Instant) {
        if self.dialect.is_none() && self.gateway.host.is_ipv4() {
            // A router that knows NAT-PMP only says so when it is asked for PCP.
            self.dialect = Some(Dialect::NatPmp);
            self.leases.values_mut().for_each(|l| (l.at, l.tries) = (now, 0));
        } else if self.dialect == Some(answer.dialect) || self.gateway.host.is_ipv6() {
            self.rest(None, now);
        }
    }

    fn opened(&mut self, port: Port, (outer, address, lifetime): (u16, Option<IpAddr>, u32), now: Instant) {
        let Some(lease) = self.leases.get_mut(&port) else { return };
        if lifetime == 0 || outer == 0 {
            (lease.held, lease.at, lease.resting) = (None, now + REST, true);
            return;
        }
        let life = Duration::from_secs(lifetime.clamp(*LIFETIMES.start(), *LIFETIMES.end()).into());
        lease.held = Some(Held { address, until: now + life });
        (lease.outer, lease.at, lease.tries, lease.resting) = (outer, now + life / 2, 0, false);
    }

    fn rest(&mut self, port: Option<Port>, now: Instant) {
        for (_, lease) in self.leases.iter_mut().filter(|(p, _)| port.is_none_or(|port| port == **p)) {
            (lease.held, lease.at, lease.tries, lease.resting) = (None, now + REST, 0, true);
        }
    }

    /// Nothing listens there. A router that had ports open may be about to come back.
    pub(crate) fn unreachable(&mut self, now: Instant) {
        for lease in self.leases.values_mut() {
            if lease.held.is_none() && self.dialect.is_none() {
                (lease.at, lease.tries, lease.resting) = (now + REST, 0, true);
            }
        }
    }

    fn clock(&mut self, epoch: u32, now: Instant) {
        let lost = self.epoch.is_some_and(|(before, at)| {
            is_new_start(before, epoch, now.saturating_duration_since(at).as_secs())
        });
        self.epoch = Some((epoch, now));
        if lost {
            tracing::info!(router = %self.gateway.router, "the router has started anew: ports are asked for again");
            self.leases.values_mut().for_each(|l| (l.at, l.tries) = (now, 0));
        }
    }

    /// Whether this router opens nothing, as far as it was asked.
    pub(crate) fn is_in_vain(&self) -> bool {
        !self.leases.is_empty() && self.leases.values().all(|l| l.resting)
    }

    /// What is open, and where.
    pub(crate) fn open(&self, now: Instant) -> BTreeMap<Port, SocketAddr> {
        let held = self.leases.iter().filter_map(|(port, lease)| {
            let held = lease.held.filter(|h| h.until > now)?;
            let address = held.address.or(self.address.map(IpAddr::V4)).filter(|a| !a.is_unspecified())?;
            Some((*port, SocketAddr::new(address, lease.outer)))
        });
        held.collect()
    }
}

/// Whether a router whose clock went from `before` to `now` in `passed` seconds of ours has started anew in between.
fn is_new_start(before: u32, now: u32, passed: u64) -> bool {
    let (before, now) = (u64::from(before), u64::from(now));
    if now + 1 < before {
        return true;
    }
    let moved = now.saturating_sub(before);
    passed + SLACK < moved - moved / 16 || moved + SLACK < passed - passed / 16
}

#[cfg(test)]
mod tests;
