//! Listens to the swarm and acts on it. Owned by the driver and called from its loop; every wait is a task in here, so
//! nothing of it holds up a dial or a stream.
//!
//! - `circuits`: requests to this relay, reservations at others. `finding`: peers without the registry, measurements of the NAT.
//! - `punching`: talks about punches, and the dials that follow. `router`: ports that the router opens. `telling`: what
//!   others hear of this node. `pace`: when everything is looked at.

mod circuits;
mod finding;
mod pace;
mod punching;
mod router;
mod telling;

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use libp2p::{
    Multiaddr, PeerId, Stream, Swarm, identify, ping, relay as circuit,
    swarm::{ConnectionId, DialError, SwarmEvent},
};
use tokio::sync::watch;

pub use self::router::outward;
use self::{
    circuits::Which,
    pace::{STIRRED, TICK},
    punching::Attempt,
    router::Router,
};
use super::{
    NatReport, PartsEvent,
    candidates::{Carrier, socket_of},
    dial_back::DialBack,
    discover::Found,
    kind::{Detector, NatKind},
    mapping::Mapping,
    metrics::Metrics,
    ports::{self, Ticket, is_relayed},
    probe::Measured,
    punch::{Agreed, Schedule},
    relay::{self, Server},
    reserve::Reservations,
    settings::NatConfig,
    wire,
};
use crate::{
    driver::{Behaviour, BehaviourEvent},
    path::PathTransport,
    peers::View,
    tunnel::Shared,
};

/// A connection that was made to test whether a node is reached is closed when it was idle for this long afterwards: the
/// node may have opened a stream on it before it heard that it must not.
const TESTED: Duration = Duration::from_secs(1);
/// Tasks under way; a stream of a peer beyond it is reset.
const MAX_TASKS: usize = 4_096;

/// Why this node dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dial {
    Relay(PeerId, PathTransport),
    /// To meet a peer that dials at the same time.
    Punch(PeerId),
}

/// What a stream is for that was asked for.
enum Awaited {
    /// To ask the destination of a circuit.
    Circuit(Box<(relay::Circuit, Stream, relay::Asking)>),
    /// To talk about a punch, or to ask for one.
    Punch { peer: PeerId, ask: bool },
    /// To measure the NAT, with the other one of a pair.
    Probe { at: IpAddr, both: Pair },
}

/// The stream of a pair that came first, with the relay's host.
type Pair = Arc<Mutex<Option<(Stream, IpAddr)>>>;

/// How a task ended.
enum Done {
    Nothing,
    /// A relay was asked for something.
    Request {
        peer: PeerId,
        id: ConnectionId,
        asking: relay::Asking,
        stream: Stream,
        request: relay::Request,
    },
    /// A circuit was agreed to.
    Joined(relay::Circuit, io::Result<(Stream, Stream)>),
    /// A talk about a punch ended.
    Talk {
        peer: PeerId,
        result: io::Result<Option<Agreed>>,
    },
    /// A measurement of the NAT ended.
    Measured(io::Result<Measured>),
}

/// What the loop of the driver waits for.
pub(crate) struct Wake {
    done: Option<Done>,
    /// The view, the role, or what the router opens is another.
    changed: bool,
}

pub(crate) struct Engine {
    shared: Arc<Shared>,
    config: NatConfig,
    own: PeerId,
    metrics: Metrics,
    server: Arc<Server>,
    /// It serves now.
    serves: bool,
    reservations: Reservations,
    schedule: Schedule,
    attempts: HashMap<PeerId, Attempt>,
    dials: HashMap<ConnectionId, Dial>,
    awaited: HashMap<Ticket, Awaited>,
    tasks: FuturesUnordered<BoxFuture<'static, Done>>,
    udp: Detector,
    tcp: Detector,
    /// Where each connection's peer saw this node, for connections from the listen port.
    seen: HashMap<ConnectionId, (Carrier, SocketAddr)>,
    listening: BTreeSet<Multiaddr>,
    /// Addresses that the operator gave.
    given: BTreeSet<Multiaddr>,
    router: Router,
    view: Arc<View>,
    report: watch::Sender<NatReport>,
    /// Candidates that peers were told last; others start punches anew.
    told: Vec<Multiaddr>,
    next_tick: Instant,
    ticked: Instant,
    stirred: Instant,
    /// When transports that are missing to held relays are dialled again; and QUIC to those that TCP has not reached.
    next_mend: Instant,
    late: Vec<(Instant, PeerId, Which)>,
    /// Connections of tests for other nodes that are over, and when they are closed.
    tested: Vec<(Instant, PeerId, ConnectionId)>,
    /// Addresses of peers that the registry does not know.
    found: Found,
    /// When the LAN and other nodes may be asked again; the NAT is measured.
    next_lan: Instant,
    next_kad: Instant,
    next_measure: Instant,
}

impl Engine {
    pub(crate) fn new(
        shared: Arc<Shared>,
        own: PeerId,
        config: NatConfig,
        (metrics, secret): (Metrics, [u8; 32]),
    ) -> Self {
        let external: BTreeSet<Multiaddr> = config.external.iter().filter_map(|a| a.parse().ok()).collect();
        let server = Server::new(config.relay.clone(), metrics.clone());
        let now = Instant::now();
        let mapping = config.upnp.then(|| Mapping::start(shared.placement.control(), secret));
        Self {
            reservations: Reservations::new(own, 0, config.measured_relays),
            schedule: Schedule::new(config.punch_backoff, config.punch_backoff_max),
            attempts: HashMap::new(),
            dials: HashMap::new(),
            awaited: HashMap::new(),
            tasks: FuturesUnordered::new(),
            udp: Detector::default(),
            tcp: Detector::default(),
            seen: HashMap::new(),
            listening: BTreeSet::new(),
            given: external,
            router: Router::new(mapping),
            view: Arc::default(),
            report: watch::Sender::new(NatReport { relay: config.relay.enabled, ..NatReport::default() }),
            told: Vec::new(),
            next_tick: now,
            ticked: now,
            stirred: now + STIRRED,
            next_mend: now,
            late: Vec::new(),
            tested: Vec::new(),
            found: Found::default(),
            next_lan: now,
            next_kad: now,
            next_measure: now,
            shared,
            config,
            own,
            metrics,
            server,
            serves: false,
        }
    }

    pub(crate) fn report(&self) -> watch::Receiver<NatReport> {
        self.report.subscribe()
    }

    /// Takes addresses that the swarm listens on since before the loop began.
    pub(crate) fn listens(&mut self, address: &Multiaddr) {
        if !is_relayed(address) && self.listening.insert(address.clone()) {
            self.look_soon();
            let ips: BTreeSet<_> =
                self.listening.iter().filter_map(|a| socket_of(a).map(|(_, at)| at.ip())).collect();
            // Both: a network that changed voids what was seen of either.
            if self.udp.set_local(ips.clone()) | self.tcp.set_local(ips) {
                self.schedule.all_changed(Instant::now());
                self.next_measure = Instant::now();
            }
        }
    }

    /// Whether the connections with a peer stay although better ones exist: reservations are on them, or they show
    /// under which address this node is seen.
    pub(crate) fn keeps(&self, peer: &PeerId) -> bool {
        self.is_held(peer) || self.server.has(peer)
    }

    /// Whether it is a relay at which this node has reserved, or does.
    fn is_held(&self, peer: &PeerId) -> bool {
        self.reservations.held().any(|p| p == *peer)
    }

    /// Waits for the next thing to do.
    pub(crate) fn wait(&mut self) -> impl Future<Output = Wake> {
        let at = self
            .attempts
            .values()
            .filter_map(Attempt::next)
            .min()
            .map_or(self.next_tick, |a| a.min(self.next_tick));
        let (tasks, router, nudge) = (&mut self.tasks, &mut self.router, &self.shared.nudge);
        async move {
            tokio::select! {
                Some(done) = tasks.next(), if !tasks.is_empty() => Wake { done: Some(done), changed: false },
                () = router.changed() => Wake { done: None, changed: true },
                () = nudge.notified() => Wake { done: None, changed: true },
                () = tokio::time::sleep_until(at.into()) => Wake { done: None, changed: false },
            }
        }
    }

    pub(crate) fn woken(&mut self, wake: Wake, swarm: &mut Swarm<Behaviour>) {
        if wake.changed {
            // At once, but not for each of many changes.
            self.next_tick = self.next_tick.min(self.ticked + TICK);
        }
        match wake.done {
            Some(Done::Request { peer, id, asking, stream, request }) => {
                self.on_request((peer, id), asking, stream, request, swarm);
            }
            Some(Done::Joined(circuit, joined)) => self.on_joined(circuit, joined),
            Some(Done::Talk { peer, result }) => self.on_talk(peer, result, swarm),
            Some(Done::Measured(result)) => self.on_measured(result),
            Some(Done::Nothing) | None => {}
        }
        self.shoot(swarm);
        if Instant::now() >= self.next_tick {
            self.tick(swarm);
        }
    }

    fn task(&mut self, limit: Duration, task: impl Future<Output = Done> + Send + 'static) {
        if self.tasks.len() < MAX_TASKS {
            let limited = tokio::time::timeout(limit, task);
            self.tasks.push(limited.map(|r| r.unwrap_or(Done::Nothing)).boxed());
        }
    }

    fn tick(&mut self, swarm: &mut Swarm<Behaviour>) {
        let now = Instant::now();
        self.ticked = now;
        self.serves = self.shared.relay.load(Ordering::Relaxed);
        // Relays are reached by everybody. What else an operator advertises may hold on its LAN only.
        let given_back = self.reservations.set_want(if self.serves { 0 } else { self.config.reservations });
        self.execute(given_back, swarm, now);
        self.look_outward(now);
        let view = self.shared.view();
        if !Arc::ptr_eq(&view, &self.view) {
            self.on_view(view, swarm, now);
        }
        self.close_tested(swarm, now);
        self.step_reservations(swarm, now);
        self.start_punches(swarm, now);
        self.start_measurement(swarm, now);
        self.follow_router(swarm);
        self.publish(now);
        self.next_tick = self.next_look_around(now);
    }

    fn on_view(&mut self, view: Arc<View>, swarm: &mut Swarm<Behaviour>, now: Instant) {
        let relays: Vec<_> = view.relays().iter().map(|r| (r.id, r.addresses.clone())).collect();
        let gone = self.reservations.set_relays(&relays, now);
        self.execute(gone, swarm, now);
        for (peer, known) in view.iter() {
            self.shared.knowledge.set_peer_nat(*peer, NatKind::parse(&known.nat));
            let before = self.view.peer(peer);
            if before.is_some_and(|b| !b.same_places(known) || b.nat != known.nat) {
                self.schedule.changed(peer, now);
            }
        }
        self.shared.knowledge.retain(|p| view.peer(p).is_some());
        self.found.retain(|p| view.peer(p).is_some(), now);
        self.view = view;
    }

    // === events ===

    /// Sees each event before the driver does.
    pub(crate) fn on_event(&mut self, event: &SwarmEvent<BehaviourEvent>, swarm: &mut Swarm<Behaviour>) {
        let now = Instant::now();
        // What peers say all the time is nothing that happens.
        if !matches!(event, SwarmEvent::Behaviour(BehaviourEvent::Ping(_) | BehaviourEvent::Nat(_))) {
            self.stir(now);
        }
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                let relayed = endpoint.is_relayed();
                self.on_connected(*peer_id, *connection_id, relayed, swarm, now);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, endpoint, .. } => {
                self.on_disconnected(*peer_id, *connection_id, endpoint.is_relayed(), swarm, now);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.on_dial_failed(*connection_id, error, swarm, now);
            }
            SwarmEvent::NewListenAddr { address, .. } => self.listens(address),
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.listening.remove(address);
                self.look_soon();
            }
            SwarmEvent::ListenerClosed { listener_id, .. } => {
                self.on_listener_closed(*listener_id, swarm, now)
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                connection_id,
                info,
            })) => {
                self.on_identified((*peer_id, *connection_id), &info.observed_addr, swarm, now);
                self.teach(*peer_id, info, swarm);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event {
                peer,
                connection,
                result: Ok(rtt),
            })) if swarm.behaviour().nat.ports.links.get(connection).is_some_and(|l| !l.relayed) => {
                self.reservations.rtt(peer, *rtt);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Circuits(
                circuit::client::Event::ReservationReqAccepted { relay_peer_id, .. },
            )) => self.on_granted(*relay_peer_id, now),
            _ => {}
        }
    }

    /// Takes an event of the engine's own parts.
    pub(crate) fn on_part(&mut self, event: PartsEvent, swarm: &mut Swarm<Behaviour>) {
        self.stir(Instant::now());
        match event {
            PartsEvent::Ports(ports::Event::Inbound { peer, id, protocol, stream }) => {
                match protocol.as_ref() {
                    wire::HOP => self.on_hop(peer, id, stream),
                    wire::PUNCH => self.on_punch_stream(peer, id, stream, swarm),
                    wire::PROBE => self.on_probe_stream(peer, id, stream, swarm),
                    _ => {}
                }
            }
            PartsEvent::Ports(ports::Event::Opened { ticket, stream }) => {
                match (self.awaited.remove(&ticket), stream) {
                    (Some(Awaited::Circuit(circuit)), stream) => {
                        let (circuit, source, asking) = *circuit;
                        self.join(circuit, source, stream, asking);
                    }
                    (Some(Awaited::Punch { peer, ask }), Some(stream)) => self.talk(peer, ask, stream),
                    (Some(Awaited::Punch { peer, ask: false }), None) => self.no_answer(peer),
                    (Some(Awaited::Probe { at, both }), Some(stream)) => self.measure(at, &both, stream),
                    (Some(Awaited::Punch { ask: true, .. } | Awaited::Probe { .. }) | None, _) => {}
                }
            }
            PartsEvent::Mdns(event) => self.on_mdns(event),
            PartsEvent::Kad(event) => self.on_kad(event),
            PartsEvent::Autonat(event) => self.on_autonat(event),
            PartsEvent::AutonatServer(DialBack::Tested(event)) => {
                tracing::debug!(peer = %event.client, result = ?event.result, "AutoNAT for another node");
            }
            PartsEvent::AutonatServer(DialBack::Over(peer, id)) => {
                self.tested.push((Instant::now() + TESTED, peer, id));
            }
        }
    }

    fn on_connected(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        relayed: bool,
        swarm: &mut Swarm<Behaviour>,
        now: Instant,
    ) {
        let dial = self.dials.remove(&id);
        if relayed {
            if swarm.behaviour().nat.ports.direct(&peer).is_none() {
                self.want_punch(peer, now);
            }
            return;
        }
        self.count_links(&peer, swarm, now);
        // What a relay dials is no reservation's: it goes when it is idle.
        let ports = &mut swarm.behaviour_mut().nat.ports;
        if self.is_held(&peer) || (self.server.has(&peer) && ports.links.get(&id).is_some_and(|l| !l.dialled))
        {
            ports.hold(id, true);
        }
        self.on_direct(peer, dial == Some(Dial::Punch(peer)));
        if matches!(dial, Some(Dial::Relay(..))) {
            self.step_reservations(swarm, now);
        }
    }

    fn on_disconnected(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        relayed: bool,
        swarm: &mut Swarm<Behaviour>,
        now: Instant,
    ) {
        if !relayed {
            self.count_links(&peer, swarm, now);
            self.server.closed(peer, id);
            if let Some((carrier, observer)) = self.seen.remove(&id) {
                self.detector(carrier).lost(observer);
            }
        }
        let mut links =
            swarm.behaviour().nat.ports.links.values().filter(|l| l.peer == peer && l.established);
        match (links.any(|l| !l.relayed), swarm.is_connected(&peer)) {
            (true, _) => {}
            (false, true) => self.want_punch(peer, now),
            (false, false) => self.schedule.forget(&peer),
        }
    }

    fn count_links(&mut self, peer: &PeerId, swarm: &Swarm<Behaviour>, now: Instant) {
        let count = swarm.behaviour().nat.ports.all_direct(peer).len();
        self.reservations.connections(peer, count, now);
    }

    fn on_dial_failed(
        &mut self,
        id: ConnectionId,
        error: &DialError,
        swarm: &mut Swarm<Behaviour>,
        now: Instant,
    ) {
        match self.dials.remove(&id) {
            Some(Dial::Relay(relay, _)) => {
                tracing::debug!(%relay, %error, "relay is not reached");
                if !self.dials.values().any(|d| matches!(d, Dial::Relay(r, _) if *r == relay)) {
                    self.reservations.dial_failed(&relay, now);
                }
            }
            Some(Dial::Punch(peer)) => self.on_shot_failed(peer, id, error, swarm),
            None => {}
        }
    }

    fn detector(&mut self, carrier: Carrier) -> &mut Detector {
        match carrier {
            Carrier::Udp => &mut self.udp,
            Carrier::Tcp => &mut self.tcp,
        }
    }
}
