//! What kind of NAT a node is behind, from what others see of it: the mapping from the addresses that relays and
//! peers observe on connections that leave the listen port, the filtering from who reached it unasked. Pure.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::probe::Measured;

/// Kind of NAT between a node and the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NatKind {
    /// Not known yet.
    #[default]
    Unknown,
    /// Others see the address that the node has.
    None,
    /// One outer address for each inner one, open to everybody.
    FullCone,
    /// One outer address for each inner one, open to hosts that were sent something.
    AddressRestricted,
    /// One outer address for each inner one, open to ports that were sent something.
    PortRestricted,
    /// Another outer address for each destination.
    Symmetric,
}

impl NatKind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::Unknown,
        Self::None,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::Symmetric,
    ];

    /// As in output and in the registry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::None => "none",
            Self::FullCone => "full-cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::Symmetric => "symmetric",
        }
    }

    /// Reads what [`NatKind::as_str`] gives; anything else is unknown.
    pub fn parse(text: &str) -> Self {
        Self::ALL.into_iter().find(|k| k.as_str() == text).unwrap_or_default()
    }

    /// As on the wire.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Unknown => 0,
            Self::None => 1,
            Self::FullCone => 2,
            Self::AddressRestricted => 3,
            Self::PortRestricted => 4,
            Self::Symmetric => 5,
        }
    }

    pub(crate) fn of_number(number: u32) -> Self {
        Self::ALL.into_iter().find(|k| k.number() == number).unwrap_or_default()
    }

    /// Whether a punch between the two can work at all.
    pub const fn can_punch(self, other: Self) -> bool {
        !matches!(
            (self, other),
            (Self::Symmetric, Self::Symmetric | Self::PortRestricted)
                | (Self::PortRestricted, Self::Symmetric)
        )
    }
}

/// Observations kept; the oldest goes first.
const MAX_OBSERVATIONS: usize = 32;
/// An observation without renewal is forgotten.
const OLD: Duration = Duration::from_secs(900);

/// What is known of one transport's NAT.
#[derive(Debug, Default)]
pub(crate) struct Detector {
    /// Who saw which address of this node, oldest first.
    observed: VecDeque<(SocketAddr, SocketAddr, Instant)>,
    /// Addresses of this node itself.
    local: BTreeSet<IpAddr>,
    /// What a measurement with a socket of its own found.
    measured: Option<Measured>,
}

impl Detector {
    /// Takes the node's own addresses; says whether they changed. Then all that was observed is void.
    pub(crate) fn set_local(&mut self, local: BTreeSet<IpAddr>) -> bool {
        let changed = self.local != local;
        if changed {
            let new: Vec<_> = local.difference(&self.local).copied().collect();
            // Addresses that only go, or a second family that comes, leave what others saw as it is.
            if !new.is_empty() && self.local.iter().any(|ip| !local.contains(ip)) {
                self.forget();
            }
            self.local = local;
        }
        changed
    }

    /// Forgets what others said: the network changed.
    pub(crate) fn forget(&mut self) {
        self.observed.clear();
        self.measured = None;
    }

    /// `observer` sees this node's listen port as `seen`.
    pub(crate) fn observe(&mut self, observer: SocketAddr, seen: SocketAddr, now: Instant) {
        self.observed.retain(|(o, _, at)| *o != observer && now.saturating_duration_since(*at) < OLD);
        if self.observed.len() >= MAX_OBSERVATIONS {
            self.observed.pop_front();
        }
        // Another outer address: the router started anew or the node moved.
        if self
            .observed
            .back()
            .is_some_and(|(_, last, _)| last.ip() != seen.ip() && last.is_ipv4() == seen.is_ipv4())
        {
            self.forget();
        }
        self.observed.push_back((observer, seen, now));
    }

    /// The connection to an observer is gone; its mapping may go too.
    pub(crate) fn lost(&mut self, observer: SocketAddr) {
        self.observed.retain(|(o, ..)| *o != observer);
    }

    /// Takes a measurement; it holds until the network changes or the next one.
    pub(crate) fn measured(&mut self, measured: Measured) {
        self.measured = Some(measured);
    }

    /// Whether datagrams came through lately.
    pub(crate) fn is_measured(&self) -> bool {
        self.measured.is_some()
    }

    /// Outer addresses that others can dial, best first: those that most observers agree on.
    pub(crate) fn outer(&self) -> Vec<SocketAddr> {
        let mut count: HashMap<SocketAddr, usize> = HashMap::new();
        for (_, seen, _) in &self.observed {
            *count.entry(*seen).or_default() += 1;
        }
        let mut all: Vec<_> = count.into_iter().collect();
        all.sort_by_key(|(seen, n)| (usize::MAX - n, *seen));
        all.into_iter().map(|(seen, _)| seen).collect()
    }

    /// The kind, for the family in which most was observed.
    pub(crate) fn kind(&self) -> NatKind {
        let v4 = self.observed.iter().filter(|(_, s, _)| s.is_ipv4()).count();
        let mine: Vec<_> =
            self.observed.iter().filter(|(_, s, _)| s.is_ipv4() == (v4 * 2 >= self.observed.len())).collect();
        let Some((_, first, _)) = mine.last() else { return NatKind::Unknown };
        if mine.iter().all(|(_, seen, _)| self.local.contains(&seen.ip())) {
            return NatKind::None;
        }
        if mine.iter().any(|(_, seen, _)| seen != first) {
            return NatKind::Symmetric;
        }
        match self.measured {
            // The listen port may be forwarded while other ports are not.
            Some(Measured { same_mapping: false, .. }) if self.hosts(&mine) < 2 => NatKind::Symmetric,
            Some(Measured { other_host: true, .. }) => NatKind::FullCone,
            Some(Measured { other_port: true, .. }) => NatKind::AddressRestricted,
            Some(_) => NatKind::PortRestricted,
            None => NatKind::Unknown,
        }
    }

    fn hosts(&self, observed: &[&(SocketAddr, SocketAddr, Instant)]) -> usize {
        observed.iter().map(|(o, ..)| o.ip()).collect::<BTreeSet<_>>().len()
    }

    /// Whether every destination sees the same outer address, as far as is known.
    pub(crate) fn is_symmetric(&self) -> bool {
        self.kind() == NatKind::Symmetric
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn detector(observed: &[(&str, &str)]) -> Detector {
        let mut it = Detector::default();
        it.set_local(BTreeSet::from(["10.0.0.2".parse().unwrap()]));
        let now = Instant::now();
        for (observer, seen) in observed {
            it.observe(at(observer), at(seen), now);
        }
        it
    }

    #[test]
    fn mapping_comes_from_observers_and_filtering_from_probes() {
        const ONE: (&str, &str) = ("198.51.100.1:1", "203.0.113.1:5");
        const SAME: (&str, &str) = ("198.51.100.2:1", "203.0.113.1:5");
        const OTHER: (&str, &str) = ("198.51.100.2:1", "203.0.113.1:6");
        assert_eq!(detector(&[]).kind(), NatKind::Unknown);
        assert_eq!(detector(&[("198.51.100.1:1", "10.0.0.2:15008")]).kind(), NatKind::None);
        assert_eq!(detector(&[ONE]).kind(), NatKind::Unknown);
        assert_eq!(detector(&[ONE, OTHER]).kind(), NatKind::Symmetric);
        let cone = |same_mapping, other_port, other_host| {
            let mut it = detector(&[ONE, SAME]);
            it.measured(Measured { same_mapping, seen: at("203.0.113.1:9"), other_port, other_host });
            it.kind()
        };
        assert_eq!(detector(&[ONE, SAME]).kind(), NatKind::Unknown);
        assert_eq!(cone(true, true, true), NatKind::FullCone);
        assert_eq!(cone(true, true, false), NatKind::AddressRestricted);
        assert_eq!(cone(true, false, false), NatKind::PortRestricted);
        let mut one = detector(&[ONE]);
        let measured =
            Measured { same_mapping: false, seen: at("203.0.113.1:9"), other_port: false, other_host: false };
        one.measured(measured);
        assert_eq!(one.kind(), NatKind::Symmetric);
    }

    #[test]
    fn a_new_network_voids_what_was_seen() {
        let mut it = detector(&[("198.51.100.1:1", "203.0.113.1:5"), ("198.51.100.2:1", "203.0.113.1:6")]);
        assert_eq!(it.kind(), NatKind::Symmetric);
        assert!(!it.set_local(BTreeSet::from(["10.0.0.2".parse().unwrap()])));
        assert!(it.set_local(BTreeSet::from(["192.168.1.7".parse().unwrap()])));
        assert_eq!(it.kind(), NatKind::Unknown);
        assert!(it.outer().is_empty());
        it.observe(at("198.51.100.1:1"), at("203.0.113.1:5"), Instant::now());
        it.observe(at("198.51.100.2:1"), at("203.0.113.9:5"), Instant::now());
        assert_eq!(it.outer(), [at("203.0.113.9:5")], "the router has another address");
    }

    #[test]
    fn the_same_observer_counts_once_and_the_table_is_bounded() {
        let mut it = detector(&[]);
        let now = Instant::now();
        for port in 1..1000 {
            it.observe(at(&format!("198.51.100.1:{port}")), at("203.0.113.1:5"), now);
            it.observe(at("198.51.100.3:1"), at("203.0.113.1:5"), now);
        }
        assert!(it.observed.len() <= MAX_OBSERVATIONS);
        it.observe(at("198.51.100.1:1"), at("203.0.113.1:7"), now);
        assert_eq!(it.outer()[0], at("203.0.113.1:5"));
    }

    #[test]
    fn numbers_and_words_are_read_back() {
        for kind in NatKind::ALL {
            assert_eq!(NatKind::parse(kind.as_str()), kind);
            assert_eq!(NatKind::of_number(kind.number()), kind);
        }
        assert_eq!(NatKind::of_number(99), NatKind::Unknown);
        assert_eq!(NatKind::parse("nonsense"), NatKind::Unknown);
    }
}
