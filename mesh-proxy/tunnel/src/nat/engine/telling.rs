//! What this node tells: status output, the controller, and the peers with which it meets.

use std::time::Instant;

use libp2p::Multiaddr;

use super::Engine;
use crate::nat::{
    NatReport,
    candidates::{self, Carrier, MAX_CANDIDATES, socket_of},
    kind::{Detector, NatKind},
};

impl Engine {
    /// Tells status output and the controller.
    pub(super) fn publish(&mut self, now: Instant) {
        let (udp, tcp) = (self.udp.kind(), self.tcp.kind());
        let own = if udp == NatKind::Unknown { tcp } else { udp };
        let granted = self.reservations.granted();
        let udp_works = match (self.udp.outer().is_empty(), self.tcp.outer().is_empty()) {
            (false, _) => Some(true),
            _ if self.udp.is_measured() => Some(true),
            (true, false) if self.listens_on(Carrier::Udp) => Some(false),
            (true, _) => None,
        };
        self.shared.knowledge.set_own(own, udp_works);
        self.shared.knowledge.set_relays(self.view.relays().len(), granted.len(), self.config.punch);
        self.metrics.reservations.set(i64::try_from(granted.len()).unwrap_or(i64::MAX));
        let reservations = self.reservations.told(now).into_iter().flat_map(|relay| {
            let all = self.reservations.addresses(&relay).iter().take(2);
            all.map(move |a| format!("{a}/p2p/{relay}/p2p-circuit"))
        });
        let report = NatReport {
            nat: own.as_str().to_owned(),
            relay: self.serves,
            reservations: reservations.collect(),
            addresses: self.given.iter().chain(self.router.told()).map(ToString::to_string).collect(),
            reached: self.router.verdict(),
        };
        self.report.send_if_modified(|old| {
            let changed = *old != report;
            *old = report;
            changed
        });
        let candidates = self.candidates();
        let open = candidates.iter().filter(|a| self.is_open(a)).filter_map(socket_of);
        let open = open.map(|(carrier, at)| (carrier, at.is_ipv4())).collect();
        self.shared.knowledge.set_own_open(open);
        if candidates != self.told {
            self.told = candidates;
            self.schedule.all_changed(now);
        }
    }

    /// What peers are told about where this node may be met.
    pub(super) fn candidates(&self) -> Vec<Multiaddr> {
        let outer = |carrier, detector: &Detector| {
            // Of a symmetric NAT only the host matters, and one address says that.
            let most = if detector.is_symmetric() { 1 } else { 3 };
            let all = detector.outer().into_iter().take(most);
            all.map(move |at| candidates::multiaddr(carrier, at)).collect::<Vec<_>>()
        };
        let mut seen = Vec::new();
        for (carrier, detector) in [(Carrier::Udp, &self.udp), (Carrier::Tcp, &self.tcp)] {
            if self.listens_on(carrier) {
                seen.extend(outer(carrier, detector));
            }
        }
        let given = self.given.iter().chain(self.router.opened()).cloned();
        candidates::own(seen, given, self.in_order(), self.loopback())
    }

    /// Whether everybody gets in at an address of this node, as far as is known: no NAT is in front of it, or the operator
    /// or the router has opened it, and nobody has tried in vain.
    fn is_open(&self, address: &Multiaddr) -> bool {
        let Some((carrier, at)) = socket_of(address) else { return false };
        let detector = if carrier == Carrier::Udp { &self.udp } else { &self.tcp };
        let bare = detector.kind() == NatKind::None && detector.outer().contains(&at);
        let opened = || self.given.contains(address) || self.router.opened().any(|a| a == address);
        !self.router.is_shut(address) && (bare || opened())
    }

    pub(super) fn open_bits(&self, candidates: &[Multiaddr]) -> u32 {
        let bits = candidates.iter().take(MAX_CANDIDATES).enumerate().filter(|(_, a)| self.is_open(a));
        bits.fold(0, |all, (i, _)| all | (1 << i))
    }

    pub(super) fn listens_on(&self, carrier: Carrier) -> bool {
        self.listening.iter().any(|a| socket_of(a).is_some_and(|(c, _)| c == carrier))
    }
}
