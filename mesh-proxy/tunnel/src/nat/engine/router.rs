//! What the router opens for this node, and what other nodes say of it: an opened port through which nobody gets is not
//! told to anyone but the peers of a punch.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, Swarm, autonat};

use super::Engine;
use crate::{
    driver::Behaviour,
    nat::{
        candidates::{multiaddr, socket_of},
        mapping::{Mapping, Wanted, toward},
    },
};

/// How often it is looked where packets leave while something happens: a route may come after its address.
const LOOK: Duration = Duration::from_secs(1);
/// Verdicts that are kept.
const MAX_VERDICTS: usize = 64;

/// Ports that the router opens, and what became of tries to get in.
#[derive(Debug, Default)]
pub(super) struct Router {
    mapping: Option<Mapping>,
    /// Addresses that are open.
    opened: BTreeSet<Multiaddr>,
    /// Addresses that packets to elsewhere leave with.
    leaves: Vec<IpAddr>,
    next_look: Option<Instant>,
    /// Whether that was done before: who has just come up has not moved.
    looked: bool,
    /// Whether another node got in at an address, by AutoNAT.
    reached: BTreeMap<Multiaddr, bool>,
}

impl Router {
    pub(super) fn new(mapping: Option<Mapping>) -> Self {
        Self { mapping, ..Self::default() }
    }

    /// Waits until the router opens or closes something.
    pub(super) async fn changed(&mut self) {
        match &mut self.mapping {
            Some(mapping) => mapping.changed().await,
            None => std::future::pending().await,
        }
    }

    /// Addresses of the router that may be told to everybody.
    pub(super) fn told(&self) -> impl Iterator<Item = &Multiaddr> {
        self.opened.iter().filter(|a| !self.is_shut(a))
    }

    /// All that it has opened.
    pub(super) fn opened(&self) -> impl Iterator<Item = &Multiaddr> {
        self.opened.iter()
    }

    /// Whether strangers get in anywhere; none: nobody has tried.
    pub(super) fn verdict(&self) -> Option<bool> {
        (!self.reached.is_empty()).then(|| self.reached.values().any(|reached| *reached))
    }

    /// Whether somebody who was asked to has not got in at an address.
    pub(super) fn is_shut(&self, address: &Multiaddr) -> bool {
        self.reached.get(address) == Some(&false)
    }

    fn judged(&mut self, address: Multiaddr, reached: bool) {
        if self.reached.len() < MAX_VERDICTS || self.reached.contains_key(&address) {
            self.reached.insert(address, reached);
        }
    }
}

impl Engine {
    /// Asks for the ports on which this node listens toward the router, and takes what it opens.
    pub(super) fn follow_router(&mut self, swarm: &mut Swarm<Behaviour>) {
        let Some(mapping) = &self.router.mapping else { return };
        let mut wanted = Wanted::default();
        for (carrier, at) in
            self.listening.iter().filter_map(socket_of).filter(|(_, at)| !at.ip().is_loopback())
        {
            let ports = if at.is_ipv4() { &mut wanted.four } else { &mut wanted.six };
            ports.insert((carrier, at.port()));
        }
        mapping.want(wanted);
        let open = mapping.open();
        let opened: BTreeSet<Multiaddr> = open.iter().map(|(carrier, at)| multiaddr(*carrier, *at)).collect();
        if opened == self.router.opened {
            return;
        }
        self.metrics.opened(&open);
        for address in opened.difference(&self.router.opened) {
            tracing::info!(%address, "the router has opened a port");
            swarm.behaviour_mut().nat.ports.check_address(address.clone());
        }
        for address in self.router.opened.difference(&opened) {
            tracing::info!(%address, "a port of the router is closed");
        }
        self.router.opened = opened;
    }

    /// Closes the ports of the router, or leaves them to a process that goes on.
    pub(crate) async fn leave(&mut self) {
        if let Some(mapping) = self.router.mapping.take() {
            mapping.leave(self.shared.keeps_ports()).await;
        }
    }

    pub(super) fn on_autonat(&mut self, event: autonat::v2::client::Event) {
        // Circuits, and what was seen through one, say nothing about this host.
        if socket_of(&event.tested_addr).is_none() {
            return;
        }
        let reached = event.result.is_ok();
        tracing::debug!(address = %event.tested_addr, by = %event.server, reached, "AutoNAT");
        self.metrics.autonat(if reached { "reached" } else { "not_reached" });
        self.router.judged(event.tested_addr, reached);
    }

    /// Whether this node is on the loopback interface only: then, and only then, others on it are met there.
    pub(super) fn loopback(&self) -> bool {
        let mut ips = self.listening.iter().filter_map(|a| socket_of(a).map(|(_, at)| at.ip()));
        ips.all(|ip| ip.is_loopback())
    }

    /// The order in which this host's own addresses are told: the ones that packets to elsewhere leave with come first,
    /// those of bridges to its own pods last.
    pub(super) fn in_order(&self) -> Vec<Multiaddr> {
        let mut all: Vec<Multiaddr> = self.listening.iter().cloned().collect();
        all.sort_by_key(|a| socket_of(a).is_none_or(|(_, at)| !self.router.leaves.contains(&at.ip())));
        all
    }

    /// Looks now and then with which addresses packets leave. Others say that this host is elsewhere: what was seen and
    /// tried from the old place says nothing here.
    pub(super) fn look_outward(&mut self, now: Instant) {
        if self.router.next_look.is_some_and(|at| at > now) {
            return;
        }
        self.router.next_look = Some(now + LOOK);
        let first = !std::mem::replace(&mut self.router.looked, true);
        let leaves = outward();
        let before = std::mem::replace(&mut self.router.leaves, leaves);
        if before == self.router.leaves {
            return;
        }
        // What was not reached before may be now.
        self.reservations.hurry(now);
        if !first {
            self.shared.all_moved();
        }
        let gone = before.iter().any(|ip| !self.router.leaves.contains(ip));
        if gone && !self.router.leaves.is_empty() {
            tracing::info!(addresses = ?self.router.leaves, "this node has moved to another network");
            self.udp.forget();
            self.tcp.forget();
            self.router.reached.clear();
            self.schedule.all_changed(now);
            self.next_measure = now;
        }
    }

    /// An address of this host comes or goes.
    pub(super) fn look_soon(&mut self) {
        self.router.next_look = None;
        self.stir(Instant::now());
    }
}

/// Addresses that packets to elsewhere leave with, of each family.
pub fn outward() -> Vec<IpAddr> {
    // Documentation addresses: they are in no network of this host, and nothing is sent.
    let far = ["192.0.2.1", "2001:db8::1"];
    far.iter().filter_map(|a| toward(a.parse().ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_through_which_nobody_gets_is_not_told() {
        let address = |port: u16| -> Multiaddr { format!("/ip4/203.0.113.9/tcp/{port}").parse().unwrap() };
        let mut router = Router { opened: BTreeSet::from([address(1), address(2)]), ..Router::default() };
        assert_eq!((router.told().count(), router.verdict()), (2, None));
        router.judged(address(1), false);
        assert_eq!((router.told().collect::<Vec<_>>(), router.verdict()), (vec![&address(2)], Some(false)));
        router.judged(address(2), true);
        assert_eq!((router.told().count(), router.verdict()), (1, Some(true)));
        router.judged(address(1), true);
        assert_eq!((router.told().count(), router.opened().count()), (2, 2));
        for port in 0..1_000 {
            router.judged(address(port), false);
        }
        assert!(router.reached.len() <= MAX_VERDICTS);
    }
}
