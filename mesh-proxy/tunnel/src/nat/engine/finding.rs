//! Peers that are found without the registry, what other nodes say about this one, and measurements of the NAT.

use std::{
    io,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId, Stream, Swarm, identify,
    kad::{self, GetClosestPeersOk, QueryResult},
    mdns,
    swarm::{ConnectionId, behaviour::toggle::Toggle},
};

use super::{Awaited, Done, Engine};
use crate::{
    driver::Behaviour,
    nat::{
        candidates::{Carrier, socket_of},
        discover,
        probe::{self, Measured},
        wire,
    },
    peers::Known,
};

/// The LAN is asked anew because a peer is not reached at most so often.
const LAN_AGAIN: Duration = Duration::from_secs(3);
/// Other nodes are asked about peers at most so often, all peers together.
const KAD_AGAIN: Duration = Duration::from_millis(200);
/// Time that a relay spends on a measurement of another node.
const PROBE: Duration = Duration::from_secs(12);
/// A measurement holds for this long; one that failed is repeated sooner.
const MEASURE: Duration = Duration::from_secs(600);
const MEASURE_AGAIN: Duration = Duration::from_secs(20);

impl Engine {
    // === peers ===

    /// A peer with the addresses that were found for it.
    pub(crate) fn with_found(&self, known: &Known) -> Known {
        let mut known = known.clone();
        // Sites use the same prefixes: a peer there may have this host's own address.
        known.addresses.retain(|a| !self.listening.contains(a));
        for address in self.found.of(&known.id) {
            if !known.addresses.contains(address) {
                known.addresses.push(address.clone());
            }
        }
        known
    }

    /// No known address of a peer answers: the LAN and other nodes are asked.
    pub(crate) fn unreachable(&mut self, peer: PeerId, swarm: &mut Swarm<Behaviour>) {
        let now = Instant::now();
        let nat = &mut swarm.behaviour_mut().nat;
        if self.config.mdns && now >= self.next_lan {
            self.next_lan = now + LAN_AGAIN;
            // libp2p has no way to ask again; a new asker asks at once.
            match discover::mdns(self.own) {
                Ok(mdns) => nat.mdns = Toggle::from(Some(mdns)),
                Err(error) => tracing::debug!(%error, "mDNS"),
            }
        }
        if now >= self.next_kad
            && let Some(kad) = nat.kad.as_mut()
        {
            self.next_kad = now + KAD_AGAIN;
            kad.get_closest_peers(peer);
        }
    }

    fn on_found(&mut self, peer: PeerId, address: &Multiaddr, source: &str, age: Duration) {
        if self.shared.view().peer(&peer).is_none() {
            return;
        }
        let Some(address) = discover::usable(address, self.loopback()) else { return };
        if self.found.add(peer, address.clone(), Instant::now() + age) {
            tracing::debug!(%peer, %address, source, "peer is found");
            self.metrics.discovered(source);
            // Dials that failed before may work now, and one that waits for an old address need not end first.
            self.shared.moved(peer);
        }
    }

    pub(super) fn on_mdns(&mut self, event: mdns::Event) {
        match event {
            mdns::Event::Discovered(all) => {
                for (peer, address) in all {
                    self.on_found(peer, &address, "mdns", discover::MDNS_AGE);
                }
            }
            mdns::Event::Expired(all) => {
                for (peer, address) in all {
                    if let Some(address) = discover::usable(&address, self.loopback()) {
                        self.found.remove(&peer, &address);
                    }
                }
            }
        }
    }

    pub(super) fn on_kad(&mut self, event: kad::Event) {
        let kad::Event::OutboundQueryProgressed {
            result: QueryResult::GetClosestPeers(Ok(GetClosestPeersOk { key, peers })),
            ..
        } = event
        else {
            return;
        };
        let Ok(wanted) = PeerId::from_bytes(&key) else { return };
        for info in peers.iter().filter(|p| p.peer_id == wanted) {
            for address in &info.addrs {
                self.on_found(wanted, address, "kad", discover::KAD_AGE);
            }
        }
    }

    /// Tells Kademlia where a member says that it listens.
    pub(super) fn teach(&self, peer: PeerId, info: &identify::Info, swarm: &mut Swarm<Behaviour>) {
        let loopback = self.loopback();
        if let Some(kad) = swarm.behaviour_mut().nat.kad.as_mut() {
            for address in info.listen_addrs.iter().take(8).filter_map(|a| discover::usable(a, loopback)) {
                kad.add_address(&peer, address);
            }
        }
    }

    // === this node ===

    /// A peer says as whom it sees this node.
    pub(super) fn on_identified(
        &mut self,
        (peer, id): (PeerId, ConnectionId),
        observed: &Multiaddr,
        swarm: &Swarm<Behaviour>,
        now: Instant,
    ) {
        let Some(link) = swarm.behaviour().nat.ports.links.get(&id) else { return };
        // On a connection that the peer dialled it sees what it dialled.
        if !link.dialled || !link.from_listen_port {
            return;
        }
        let (Some((carrier, observer)), Some((same, seen))) = (socket_of(&link.remote), socket_of(observed))
        else {
            return;
        };
        if carrier != same {
            return;
        }
        // What is seen on one's own network says nothing about the router.
        let near = self.shared.networks().contain(observer.ip());
        if near && !self.loopback() && !self.reservations.is_relay(&peer) {
            return;
        }
        if carrier == Carrier::Tcp {
            let own = self.shared.locals.of(observer);
            let mut listens = self.listening.iter().filter_map(socket_of).filter(|(c, _)| *c == Carrier::Tcp);
            if !listens.any(|(_, at)| own == Some(at.port())) {
                return;
            }
        }
        tracing::debug!(%peer, %seen, "this node is seen");
        self.detector(carrier).observe(observer, seen, now);
        self.seen.insert(id, (carrier, observer));
    }

    /// Measures the NAT with two relays when that is due.
    pub(super) fn start_measurement(&mut self, swarm: &mut Swarm<Behaviour>, now: Instant) {
        if now < self.next_measure || self.serves {
            return;
        }
        let links = &swarm.behaviour().nat.ports.links;
        let near = |peer: &PeerId| {
            let mut own =
                links.iter().filter(|(_, l)| l.peer == *peer && l.established && !l.relayed && l.dialled);
            own.find_map(|(id, l)| Some((*id, socket_of(&l.remote)?.1.ip())))
        };
        let relays = self.reservations.granted();
        let mut two = relays.iter().filter_map(near);
        let (Some(one), Some(two)) = (two.next(), two.next()) else { return };
        self.next_measure = now + MEASURE_AGAIN;
        let ports = &mut swarm.behaviour_mut().nat.ports;
        let tickets = [ports.open(one.0, wire::PROBE), ports.open(two.0, wire::PROBE)];
        let both = std::sync::Arc::default();
        for (ticket, (_, at)) in tickets.into_iter().zip([one, two]) {
            self.awaited.insert(ticket, Awaited::Probe { at, both: std::sync::Arc::clone(&both) });
        }
    }

    pub(super) fn measure(&mut self, at: std::net::IpAddr, both: &super::Pair, stream: Stream) {
        let mut pair = both.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some((first, first_at)) = pair.take() else {
            *pair = Some((stream, at));
            return;
        };
        drop(pair);
        self.task(
            PROBE,
            async move { Done::Measured(probe::measure((first, first_at), (stream, at)).await) },
        );
    }

    pub(super) fn on_measured(&mut self, result: io::Result<Measured>) {
        match result {
            Ok(measured) => {
                tracing::debug!(?measured, "NAT");
                self.next_measure = Instant::now() + MEASURE;
                self.udp.measured(measured);
                // Nothing measures TCP; routers treat both alike more often than not.
                self.tcp.measured(measured);
                self.publish(Instant::now());
            }
            Err(error) => tracing::debug!(%error, "measurement of the NAT"),
        }
    }

    /// Another node measures its NAT with this one's help.
    pub(super) fn on_probe_stream(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        stream: Stream,
        swarm: &Swarm<Behaviour>,
    ) {
        let link = swarm.behaviour().nat.ports.links.get(&id).filter(|l| !l.relayed);
        let Some((_, at)) = link.and_then(|l| socket_of(&l.remote)) else { return };
        let Some(asking) = self.server.request(peer) else { return };
        self.task(PROBE, async move {
            if let Err(error) = probe::serve(stream, at.ip()).await {
                tracing::debug!(%peer, %error, "measurement of another node's NAT");
            }
            drop(asking);
            Done::Nothing
        });
    }
}
