//! Requests of others to this relay, and reservations of this node at relays.

use std::{
    io,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId, Stream, Swarm,
    core::transport::ListenerId,
    multiaddr::Protocol,
    swarm::{
        ConnectionId,
        dial_opts::{DialOpts, PeerCondition},
    },
};

use super::{Awaited, Dial, Done, Engine, TESTED};
use crate::{
    driver::Behaviour,
    nat::{
        candidates::Carrier,
        relay::{self, Circuit, Copy, Ends, Request},
        reserve::Op,
        wire,
    },
    path::PathTransport,
};

/// Time that a request to this relay may take.
const REQUEST: Duration = Duration::from_secs(10);
/// How often transports that are missing to a held relay are dialled again.
const MEND: Duration = Duration::from_secs(20);

/// Connections with a relay that are dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// There is none.
    First,
    /// Those that are not there.
    Missing,
    /// What waited for the first one, which does not stand yet.
    Late,
}

impl Engine {
    // === this node is a relay ===

    pub(super) fn on_hop(&mut self, peer: PeerId, id: ConnectionId, stream: Stream) {
        // Dropping the stream resets it: a peer that floods needs no answer.
        if !self.serves {
            self.metrics.relay_refused("no_relay");
            return;
        }
        let Some(asking) = self.server.request(peer) else { return };
        self.task(REQUEST, async move {
            match relay::request(stream).await {
                Ok((stream, request)) => Done::Request { peer, id, asking, stream, request },
                Err(error) => {
                    tracing::debug!(%peer, %error, "request to this relay");
                    Done::Nothing
                }
            }
        });
    }

    pub(super) fn on_request(
        &mut self,
        (peer, id): (PeerId, ConnectionId),
        asking: relay::Asking,
        stream: Stream,
        request: Request,
        swarm: &mut Swarm<Behaviour>,
    ) {
        let server = self.server.clone();
        let member = |peer: &PeerId| self.shared.view().peer(peer).is_some();
        match request {
            Request::Reserve => {
                // The connection may be gone since it was asked.
                let lives = swarm.behaviour().nat.ports.links.contains_key(&id);
                match server.reserve(peer, id, member(&peer) && lives) {
                    Ok(renewed) => {
                        tracing::debug!(%peer, renewed, "reservation");
                        let ports = &mut swarm.behaviour_mut().nat.ports;
                        for held in ports.all_direct(&peer) {
                            if held == id || ports.links.get(&held).is_some_and(|l| !l.dialled) {
                                ports.hold(held, true);
                            }
                        }
                        let limits = server.limits.clone();
                        let addresses = self.relay_addresses();
                        self.task(REQUEST, async move {
                            relay::grant(stream, addresses, limits).await;
                            drop(asking);
                            Done::Nothing
                        });
                    }
                    Err(why) => self.refuse(stream, asking, why.status()),
                }
            }
            Request::Connect(destination) => {
                match server.connect(peer, destination, member(&peer) && member(&destination)) {
                    Ok((circuit, id)) => {
                        let ticket = swarm.behaviour_mut().nat.ports.open(id, wire::STOP);
                        self.awaited.insert(ticket, Awaited::Circuit(Box::new((circuit, stream, asking))));
                    }
                    Err(why) => self.refuse(stream, asking, why.status()),
                }
            }
        }
    }

    fn refuse(&mut self, stream: Stream, asking: relay::Asking, status: i32) {
        self.task(REQUEST, async move {
            relay::refuse(stream, status).await;
            drop(asking);
            Done::Nothing
        });
    }

    pub(super) fn join(
        &mut self,
        circuit: Circuit,
        source: Stream,
        destination: Option<Stream>,
        asking: relay::Asking,
    ) {
        let (from, limits) = (circuit.source, circuit.server.limits.clone());
        self.task(REQUEST, async move {
            let joined = relay::join(source, destination, from, limits).await;
            drop(asking);
            Done::Joined(circuit, joined)
        });
    }

    pub(super) fn on_joined(&mut self, circuit: Circuit, joined: io::Result<(Stream, Stream)>) {
        let (source, destination) = match joined {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(from = %circuit.source, to = %circuit.destination, %error, "circuit");
                self.metrics.relay_refused(if error.kind() == io::ErrorKind::ConnectionRefused {
                    "destination"
                } else {
                    "lost"
                });
                return;
            }
        };
        let (from, to) = (circuit.source, circuit.destination);
        // Beside a connection of the destination: most bytes go there.
        let worker = self.shared.table.worker_of(&to);
        self.shared.placement.spawn_on(worker, async move {
            match Copy::new(circuit, source, destination).await {
                Ends::Done => {}
                Ends::Lost(error) => tracing::debug!(%from, %to, %error, "circuit ended"),
                end => tracing::info!(%from, %to, ?end, "circuit reached a limit"),
            }
        });
    }

    /// Closes the connections of tests that are over, unless something uses them.
    pub(super) fn close_tested(&mut self, swarm: &mut Swarm<Behaviour>, now: Instant) {
        for (_, peer, id) in self.tested.extract_if(.., |(due, ..)| *due <= now).collect::<Vec<_>>() {
            match self.shared.table.find(peer, id) {
                Some(conn) if conn.streams.load(Ordering::Relaxed) > 0 => {
                    self.tested.push((now + TESTED, peer, id));
                }
                _ => {
                    swarm.close_connection(id);
                }
            }
        }
    }

    /// What clients are told; they know the addresses from the registry anyway.
    fn relay_addresses(&self) -> Vec<Multiaddr> {
        let mut all: Vec<Multiaddr> = self.given.iter().chain(&self.listening).take(8).cloned().collect();
        for address in &mut all {
            address.push(Protocol::P2p(self.own));
        }
        all
    }

    // === this node is reached through relays ===

    pub(super) fn step_reservations(&mut self, swarm: &mut Swarm<Behaviour>, now: Instant) {
        let ops = self.reservations.step(now);
        self.execute(ops, swarm, now);
        if now >= self.next_mend {
            self.next_mend = now + MEND;
            for relay in self.reservations.held().collect::<Vec<_>>() {
                self.connect(relay, swarm, Which::Missing);
            }
        }
        for (_, relay, which) in self.late.extract_if(.., |(due, ..)| *due <= now).collect::<Vec<_>>() {
            // What a connection that stands misses is dialled when it is chosen.
            if swarm.behaviour().nat.ports.direct(&relay).is_none() != (which == Which::Missing) {
                self.connect(relay, swarm, which);
            }
        }
    }

    pub(super) fn execute(&mut self, ops: Vec<Op>, swarm: &mut Swarm<Behaviour>, now: Instant) {
        for op in ops {
            match op {
                Op::Connect(relay) => {
                    self.count_links(&relay, swarm, now);
                    if !self.connect(relay, swarm, Which::First) {
                        self.reservations.dial_failed(&relay, now);
                    }
                }
                Op::Reserve(relay) => self.reserve(relay, swarm, now),
                Op::Release(id) => {
                    swarm.remove_listener(id);
                }
                Op::Drop(relay) => {
                    for id in swarm.behaviour().nat.ports.all_direct(&relay) {
                        swarm.close_connection(id);
                    }
                }
            }
        }
    }

    /// Dials a relay from the listen ports, by each transport that has no such connection yet: only then it sees the
    /// address that others must dial. TCP has a head start when there is none at all: circuits take the connection that
    /// stood first, and TCP carries bulk at half of what QUIC costs all three. WebSocket only when there is nothing else.
    fn connect(&mut self, relay: PeerId, swarm: &mut Swarm<Behaviour>, which: Which) -> bool {
        let addresses = self.reservations.addresses(&relay).to_vec();
        let of = |transport: PathTransport| {
            let all = addresses.iter().filter(|a| PathTransport::of(a) == transport);
            all.cloned().collect::<Vec<_>>()
        };
        let links = &swarm.behaviour().nat.ports.links;
        let has = |carrier: Carrier| {
            links.values().any(|l| {
                l.peer == relay
                    && l.dialled
                    && l.from_listen_port
                    && crate::nat::candidates::socket_of(&l.remote).is_some_and(|(c, _)| c == carrier)
            })
        };
        let (udp, tcp) = (has(Carrier::Udp), has(Carrier::Tcp));
        let first = which == Which::First && !udp && !tcp;
        let waits = first && !of(PathTransport::Tcp).is_empty();
        if waits {
            self.late.push((Instant::now() + self.shared.timeouts.quic_delay, relay, Which::Late));
        }
        let mut begun = false;
        for (transport, wanted) in [
            (PathTransport::Quic, !udp && !waits),
            (PathTransport::Tcp, !tcp && which != Which::Late),
            (PathTransport::Ws, first),
        ] {
            let to = of(transport);
            let dial = Dial::Relay(relay, transport);
            let under_way = self.dials.values().any(|d| *d == dial);
            begun |= under_way;
            if !wanted || to.is_empty() || under_way {
                continue;
            }
            let opts = DialOpts::peer_id(relay).condition(PeerCondition::Always).addresses(to).build();
            let id = opts.connection_id();
            match swarm.dial(opts) {
                Ok(()) => {
                    self.dials.insert(id, dial);
                    begun = true;
                }
                Err(error) => tracing::debug!(%relay, %error, "dial of a relay"),
            }
        }
        begun
    }

    fn reserve(&mut self, relay: PeerId, swarm: &mut Swarm<Behaviour>, now: Instant) {
        let Some(address) = self.reservations.addresses(&relay).first().cloned() else { return };
        let circuit = address.with(Protocol::P2p(relay)).with(Protocol::P2pCircuit);
        match swarm.listen_on(circuit) {
            Ok(id) => {
                self.reservations.reserving(&relay, id, now);
                let ports = &mut swarm.behaviour_mut().nat.ports;
                for id in ports.all_direct(&relay) {
                    ports.hold(id, true);
                }
                match self.reservations.yields(&relay) {
                    Some(pause) => self.late.push((now + pause, relay, Which::Missing)),
                    None => {
                        self.connect(relay, swarm, Which::Missing);
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%relay, %error, "listen on a circuit");
                self.reservations.dial_failed(&relay, now);
            }
        }
    }

    pub(super) fn on_granted(&mut self, relay: PeerId, now: Instant) {
        if self.reservations.on_granted(&relay) {
            tracing::info!(%relay, "this node is reached through a relay");
            self.metrics.reservation("granted");
            self.publish(now);
        }
    }

    pub(super) fn on_listener_closed(&mut self, id: ListenerId, swarm: &mut Swarm<Behaviour>, now: Instant) {
        let Some((relay, granted)) = self.reservations.listener_closed(id, now) else { return };
        tracing::info!(%relay, "reservation ended");
        self.metrics.reservation(if granted { "ended" } else { "refused" });
        // The next one is asked for at once.
        self.step_reservations(swarm, now);
        self.publish(now);
    }
}
