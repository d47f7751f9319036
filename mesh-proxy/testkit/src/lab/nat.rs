//! A router's address translation, as a table without sockets or clock: which outer port an inner one gets, and
//! which packets from outside pass (the terms are RFC 4787's). [`run`] is the program around it.
//!
//! A *mapping* binds an inner endpoint to an outer port; a *session* is one remote endpoint that the inner one has
//! called through it. A mapping lives as long as any of its sessions. Both tables are bounded: a packet that needs
//! a new mapping in a full table is lost, a session beyond the bound replaces the one that would end first.

mod packet;
mod run;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;
use packet::{Complaint, End, Flags, Parsed, Protocol, View};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde::{Deserialize, Serialize};

pub(crate) use run::{DEVICE, nat_main};

use super::site::Nat;

/// Mappings at most.
const MAPPINGS: usize = 16_384;
/// Sessions of one mapping at most.
const SESSIONS: usize = 1_024;
/// How long a TCP connection that has only asked, or that has ended, keeps its session.
const TCP_SHORT: Duration = Duration::from_secs(60);
/// How long a TCP connection that is over on both sides keeps it.
const TCP_OVER: Duration = Duration::from_secs(10);
/// How long an echo request waits for its answer.
const ECHO: Duration = Duration::from_secs(60);
/// How often what has ended is swept out.
const SWEEP: Duration = Duration::from_secs(1);

/// A router's settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Config {
    /// Its outer address.
    pub(crate) outer: Ipv4Addr,
    /// Where its own hosts are.
    pub(crate) lan: Ipv4Net,
    pub(crate) kind: Nat,
    pub(crate) hairpin: bool,
    pub(crate) udp_timeout_ms: u32,
    pub(crate) tcp_timeout_ms: u32,
    /// The outer port is the inner one where that is free.
    pub(crate) keep_ports: bool,
    /// Outer ports that lead in, UDP and TCP.
    pub(crate) forward: BTreeMap<u16, SocketAddrV4>,
    /// Where outer ports are drawn from.
    pub(crate) seed: u64,
}

/// How much of a remote endpoint counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dependence {
    None,
    Address,
    AddressAndPort,
}

impl Dependence {
    fn of(self, remote: SocketAddrV4) -> SocketAddrV4 {
        match self {
            Self::None => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
            Self::Address => SocketAddrV4::new(*remote.ip(), 0),
            Self::AddressAndPort => remote,
        }
    }
}

/// Mapping and filtering of a kind.
fn behaviour(kind: Nat) -> (Dependence, Dependence) {
    match kind {
        Nat::None | Nat::FullCone => (Dependence::None, Dependence::None),
        Nat::AddressRestricted => (Dependence::None, Dependence::Address),
        Nat::Masquerade | Nat::PortRestricted => (Dependence::None, Dependence::AddressAndPort),
        Nat::Symmetric => (Dependence::AddressAndPort, Dependence::AddressAndPort),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Inside {
    protocol: Protocol,
    host: SocketAddrV4,
    /// As much of the remote as the mapping depends on.
    toward: SocketAddrV4,
}

type Outside = (Protocol, u16);

#[derive(Debug)]
struct Mapping {
    host: SocketAddrV4,
    /// Its key in the other table; none for forwarded ports.
    inside: Option<Inside>,
    sessions: HashMap<SocketAddrV4, Session>,
}

#[derive(Clone, Copy, Debug)]
struct Session {
    until: Instant,
    /// The inner side, and the outer side, have sent their end.
    ended: (bool, bool),
    answered: bool,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// It has its new addresses and goes on.
    Pass,
    /// Nothing maps to that outer port.
    NoMapping,
    /// The mapping does not let that sender in.
    Filtered,
    /// From one host of the site to another by the outer address, which the router does not do.
    Hairpin,
    /// The table of mappings, or the range of ports, is full.
    Full,
    /// Not UDP, TCP, an echo, or an error about one.
    Other,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Router {
    config: Config,
    mapping: Dependence,
    filter: Dependence,
    by_inside: HashMap<Inside, u16>,
    by_outside: HashMap<Outside, Mapping>,
    random: StdRng,
    swept: Instant,
}

impl Router {
    pub(crate) fn new(config: Config, now: Instant) -> Self {
        let (mapping, filter) = behaviour(config.kind);
        let random = StdRng::seed_from_u64(config.seed);
        let (by_inside, by_outside) = (HashMap::new(), HashMap::new());
        let mut new = Self { config, mapping, filter, by_inside, by_outside, random, swept: now };
        for (port, host) in new.config.forward.clone() {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                new.lead_in(protocol, port, host);
            }
        }
        new
    }

    /// Makes an outer port lead to a host whoever sends.
    fn lead_in(&mut self, protocol: Protocol, port: u16, host: SocketAddrV4) {
        self.by_outside.insert((protocol, port), Mapping { host, inside: None, sessions: HashMap::new() });
        // What the host sends from there leaves by that port, as far as the remote does not matter.
        if self.mapping == Dependence::None {
            let inside = Inside { protocol, host, toward: Dependence::None.of(host) };
            self.by_inside.insert(inside, port);
        }
    }

    /// Translates a packet in place.
    pub(crate) fn handle(&mut self, now: Instant, bytes: &mut [u8]) -> Verdict {
        if now.saturating_duration_since(self.swept) >= SWEEP {
            self.sweep(now);
        }
        match packet::parse(bytes) {
            Parsed::Other => Verdict::Other,
            Parsed::Complaint(complaint) => self.complaint(bytes, complaint),
            Parsed::Plain(view) => self.plain(now, bytes, view),
        }
    }

    /// Forgets every mapping that was not configured, as a restart does.
    pub(crate) fn restart(&mut self, now: Instant) {
        *self = Self::new(self.config.clone(), now);
    }

    /// Mappings that live.
    pub(crate) fn len(&self) -> usize {
        self.by_outside.len()
    }

    fn is_inside(&self, address: Ipv4Addr) -> bool {
        self.config.lan.contains(&address)
    }

    fn plain(&mut self, now: Instant, bytes: &mut [u8], view: View) -> Verdict {
        if !self.is_inside(*view.from.ip()) {
            if *view.to.ip() != self.config.outer {
                return Verdict::Other;
            }
            let sender = view.from;
            return match self.admit(now, view, sender) {
                Ok(host) => {
                    view.rewrite(bytes, End::Destination, host);
                    Verdict::Pass
                }
                Err(verdict) => verdict,
            };
        }
        // An answer to an echo has no port of its own.
        if view.protocol == Protocol::Echo && view.from.port() == 0 {
            return Verdict::Other;
        }
        let to_itself = *view.to.ip() == self.config.outer;
        if to_itself && !self.config.hairpin {
            return Verdict::Hairpin;
        }
        let Some(port) = self.map(now, view) else { return Verdict::Full };
        let sender = SocketAddrV4::new(self.config.outer, port);
        if to_itself {
            match self.admit(now, view, sender) {
                Ok(host) => view.rewrite(bytes, End::Destination, host),
                Err(verdict) => return verdict,
            }
        }
        view.rewrite(bytes, End::Source, sender);
        Verdict::Pass
    }

    /// The outer port for a packet that leaves, with its session renewed.
    fn map(&mut self, now: Instant, view: View) -> Option<u16> {
        let inside = Inside { protocol: view.protocol, host: view.from, toward: self.mapping.of(view.to) };
        let port = match self.by_inside.get(&inside) {
            Some(port) => *port,
            None => self.new_mapping(inside)?,
        };
        let config = &self.config;
        let mapping = self.by_outside.get_mut(&(view.protocol, port))?;
        if mapping.sessions.len() >= SESSIONS && !mapping.sessions.contains_key(&view.to) {
            let first = mapping.sessions.iter().min_by_key(|(_, s)| s.until).map(|(r, _)| *r);
            mapping.sessions.remove(&first?);
        }
        let fresh = Session { until: now, ended: (false, false), answered: false };
        let session = mapping.sessions.entry(view.to).or_insert(fresh);
        if view.flags.syn {
            // The same endpoints again: another connection.
            session.ended = (false, false);
        }
        session.ended.0 |= view.flags.fin;
        session.until = now + life(config, view.protocol, session, view.flags);
        Some(port)
    }

    fn new_mapping(&mut self, inside: Inside) -> Option<u16> {
        if self.by_outside.len() >= MAPPINGS {
            return None;
        }
        let is_free = |by: &HashMap<Outside, Mapping>, port: u16| {
            port >= 1024 && !by.contains_key(&(inside.protocol, port))
        };
        let same = Some(inside.host.port()).filter(|_| self.config.keep_ports);
        let random = &mut self.random;
        // Far fewer mappings than ports: a few tries find one.
        let mut tries = same.into_iter().chain((0..256).map(|_| random.random_range(1024..=u16::MAX)));
        let port = tries.find(|p| is_free(&self.by_outside, *p))?;
        let mapping = Mapping { host: inside.host, inside: Some(inside), sessions: HashMap::new() };
        self.by_outside.insert((inside.protocol, port), mapping);
        self.by_inside.insert(inside, port);
        Some(port)
    }

    /// The host that a packet for an outer port goes to, if its sender is let in.
    fn admit(&mut self, now: Instant, view: View, sender: SocketAddrV4) -> Result<SocketAddrV4, Verdict> {
        let (config, filter) = (&self.config, self.filter);
        let mapping = self.by_outside.get_mut(&(view.protocol, view.to.port())).ok_or(Verdict::NoMapping)?;
        let live = |s: &Session| s.until > now;
        let is_open = match (mapping.inside, filter) {
            // Forwarded for everyone.
            (None, _) => true,
            (Some(_), Dependence::None) => mapping.sessions.values().any(live),
            (Some(_), Dependence::Address) => {
                mapping.sessions.iter().any(|(r, s)| r.ip() == sender.ip() && live(s))
            }
            (Some(_), Dependence::AddressAndPort) => mapping.sessions.get(&sender).is_some_and(live),
        };
        if !is_open {
            return Err(Verdict::Filtered);
        }
        // Only what leaves keeps a UDP session alive; TCP's end and answer come from both sides.
        if let Some(session) = mapping.sessions.get_mut(&sender)
            && view.protocol == Protocol::Tcp
        {
            session.answered |= view.flags.ack;
            session.ended.1 |= view.flags.fin;
            session.until = now + life(config, Protocol::Tcp, session, view.flags);
        }
        Ok(mapping.host)
    }

    /// An error about a packet that went through here, either way.
    fn complaint(&mut self, bytes: &mut [u8], complaint: Complaint) -> Verdict {
        let outer = self.config.outer;
        if *complaint.from.ip() == outer {
            // About what a host sent: that host learns of it.
            let key = (complaint.protocol, complaint.from.port());
            let Some(mapping) = self.by_outside.get(&key) else { return Verdict::NoMapping };
            if self.filter == Dependence::AddressAndPort && !mapping.sessions.contains_key(&complaint.to) {
                return Verdict::Filtered;
            }
            let host = mapping.host;
            complaint.rewrite(bytes, End::Source, host, (End::Destination, *host.ip()));
            return Verdict::Pass;
        }
        if self.is_inside(*complaint.to.ip()) {
            // From a host, about what it was sent from outside.
            let key = |toward| Inside { protocol: complaint.protocol, host: complaint.to, toward };
            let Some(port) = self.by_inside.get(&key(self.mapping.of(complaint.from))).copied() else {
                return Verdict::NoMapping;
            };
            let new = SocketAddrV4::new(outer, port);
            complaint.rewrite(bytes, End::Destination, new, (End::Source, outer));
            return Verdict::Pass;
        }
        Verdict::Other
    }

    fn sweep(&mut self, now: Instant) {
        self.swept = now;
        let by_inside = &mut self.by_inside;
        self.by_outside.retain(|_, mapping| {
            mapping.sessions.retain(|_, s| s.until > now);
            match mapping.inside {
                Some(inside) if mapping.sessions.is_empty() => {
                    by_inside.remove(&inside);
                    false
                }
                _ => true,
            }
        });
    }
}

fn life(config: &Config, protocol: Protocol, session: &Session, flags: Flags) -> Duration {
    let long = |ms: u32| Duration::from_millis(u64::from(ms));
    match protocol {
        Protocol::Udp => long(config.udp_timeout_ms),
        Protocol::Echo => ECHO,
        Protocol::Tcp if flags.rst || session.ended == (true, true) => TCP_OVER,
        Protocol::Tcp if session.answered => long(config.tcp_timeout_ms),
        Protocol::Tcp => TCP_SHORT,
    }
}
