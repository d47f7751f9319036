//! What a relay has promised: who may be reached through it, and which circuits are open. Refuses what is beyond a
//! limit. No sockets, no clock.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use libp2p::{PeerId, swarm::ConnectionId};

use super::{Bucket, code};
use crate::nat::{metrics::Metrics, settings::RelayConfig};

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Reservations,
    Circuits,
    CircuitsOfPeer,
    NoReservation,
    Stranger,
    Itself,
}

impl Refused {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Reservations => "reservations",
            Self::Circuits => "circuits",
            Self::CircuitsOfPeer => "circuits_per_peer",
            Self::NoReservation => "no_reservation",
            Self::Stranger => "stranger",
            Self::Itself => "itself",
        }
    }

    pub(crate) const fn status(self) -> i32 {
        match self {
            Self::Reservations => code::RESERVATION_REFUSED,
            Self::Circuits | Self::CircuitsOfPeer => code::RESOURCE_LIMIT,
            Self::NoReservation => code::NO_RESERVATION,
            Self::Stranger | Self::Itself => code::PERMISSION_DENIED,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    reserved: HashMap<PeerId, ConnectionId>,
    circuits: usize,
    peers: HashMap<PeerId, Share>,
}

/// What the circuits of one peer have in common.
#[derive(Debug)]
struct Share {
    circuits: usize,
    requests: usize,
    bucket: Arc<Bucket>,
}

/// A relay's books.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) limits: Arc<RelayConfig>,
    metrics: Metrics,
    state: Mutex<State>,
}

impl Server {
    pub(crate) fn new(limits: RelayConfig, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { limits: Arc::new(limits), metrics, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse<T>(&self, why: Refused) -> Result<T, Refused> {
        self.metrics.relay_refused(why.as_str());
        Err(why)
    }

    /// Counts a request that is being read or answered; none: the peer has too many.
    pub(crate) fn request(self: &Arc<Self>, peer: PeerId) -> Option<Asking> {
        let mut state = self.lock();
        let share = share(&mut state, peer, &self.limits);
        if share.requests >= self.limits.requests_per_peer {
            drop(state);
            self.metrics.relay_refused("requests");
            return None;
        }
        share.requests += 1;
        Some(Asking { server: self.clone(), peer })
    }

    /// Reserves for a member. The newest connection counts: an older one may be dead without knowing it.
    pub(crate) fn reserve(&self, peer: PeerId, id: ConnectionId, member: bool) -> Result<bool, Refused> {
        if !member {
            return self.refuse(Refused::Stranger);
        }
        let mut state = self.lock();
        if state.reserved.len() >= self.limits.reservations && !state.reserved.contains_key(&peer) {
            drop(state);
            return self.refuse(Refused::Reservations);
        }
        let renewed = state.reserved.insert(peer, id).is_some();
        self.metrics.relay_reservations.set(i64::try_from(state.reserved.len()).unwrap_or(i64::MAX));
        Ok(renewed)
    }

    /// A circuit from `source` to `destination`, and the connection on which the latter is asked.
    pub(crate) fn connect(
        self: &Arc<Self>,
        source: PeerId,
        destination: PeerId,
        members: bool,
    ) -> Result<(Circuit, ConnectionId), Refused> {
        if !members {
            return self.refuse(Refused::Stranger);
        }
        if source == destination {
            return self.refuse(Refused::Itself);
        }
        let mut state = self.lock();
        let Some(id) = state.reserved.get(&destination).copied() else {
            drop(state);
            return self.refuse(Refused::NoReservation);
        };
        let many = |state: &State, p| state.peers.get(p).map_or(0, |s| s.circuits);
        let why = if state.circuits >= self.limits.circuits {
            Some(Refused::Circuits)
        } else if [source, destination].iter().any(|p| many(&state, p) >= self.limits.circuits_per_peer) {
            Some(Refused::CircuitsOfPeer)
        } else {
            None
        };
        if let Some(why) = why {
            drop(state);
            return self.refuse(why);
        }
        state.circuits += 1;
        share(&mut state, destination, &self.limits).circuits += 1;
        let from = share(&mut state, source, &self.limits);
        from.circuits += 1;
        let bucket = from.bucket.clone();
        self.metrics.relay_circuits.inc();
        self.metrics.relay_circuits_total.inc();
        Ok((Circuit { server: self.clone(), source, destination, bucket }, id))
    }

    /// The reservations of a connection that is gone.
    pub(crate) fn closed(&self, peer: PeerId, id: ConnectionId) {
        let mut state = self.lock();
        if state.reserved.get(&peer) == Some(&id) {
            state.reserved.remove(&peer);
            self.metrics.relay_reservations.set(i64::try_from(state.reserved.len()).unwrap_or(i64::MAX));
        }
    }

    /// Whether a peer has a reservation.
    pub(crate) fn has(&self, peer: &PeerId) -> bool {
        self.lock().reserved.contains_key(peer)
    }

    pub(crate) fn moved(&self, bytes: u64) {
        self.metrics.relay_bytes.inc_by(bytes);
    }

    /// Peers with a reservation, circuits, and peers about which anything is kept.
    #[cfg(test)]
    fn counts(&self) -> (usize, usize, usize) {
        let state = self.lock();
        (state.reserved.len(), state.circuits, state.peers.len())
    }

    fn release(&self, peer: PeerId, change: impl FnOnce(&mut Share)) {
        let mut state = self.lock();
        if let Some(share) = state.peers.get_mut(&peer) {
            change(share);
            if share.circuits == 0 && share.requests == 0 {
                state.peers.remove(&peer);
            }
        }
    }
}

fn share<'a>(state: &'a mut State, peer: PeerId, limits: &RelayConfig) -> &'a mut Share {
    state.peers.entry(peer).or_insert_with(|| Share {
        circuits: 0,
        requests: 0,
        bucket: Arc::new(Bucket::new(limits.rate_per_peer)),
    })
}

/// A request that is not answered yet.
#[derive(Debug)]
pub(crate) struct Asking {
    server: Arc<Server>,
    peer: PeerId,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.server.release(self.peer, |s| s.requests = s.requests.saturating_sub(1));
    }
}

/// An open circuit; it is counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Circuit {
    pub(crate) server: Arc<Server>,
    pub(crate) source: PeerId,
    pub(crate) destination: PeerId,
    pub(crate) bucket: Arc<Bucket>,
}

impl Circuit {
    /// Circuits that the source has: a peer with many gets as much in total as one with a single circuit.
    pub(crate) fn siblings(&self) -> usize {
        self.server.lock().peers.get(&self.source).map_or(1, |s| s.circuits.max(1))
    }
}

impl Drop for Circuit {
    fn drop(&mut self) {
        self.server.lock().circuits -= 1;
        self.server.metrics.relay_circuits.dec();
        for peer in [self.source, self.destination] {
            self.server.release(peer, |s| s.circuits = s.circuits.saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(change: impl FnOnce(&mut RelayConfig)) -> Arc<Server> {
        let mut limits = RelayConfig::default();
        change(&mut limits);
        Server::new(limits, Metrics::new(&prometheus::Registry::new()).unwrap())
    }

    fn id(n: usize) -> ConnectionId {
        ConnectionId::new_unchecked(n)
    }

    #[test]
    fn reservations_end_with_their_connection_and_only_with_that() {
        let server = server(|l| l.reservations = 2);
        let (a, b, c) = (PeerId::random(), PeerId::random(), PeerId::random());
        assert_eq!(server.reserve(a, id(1), false), Err(Refused::Stranger));
        assert_eq!(server.reserve(a, id(1), true), Ok(false));
        assert_eq!(server.reserve(a, id(2), true), Ok(true));
        assert_eq!(server.reserve(b, id(3), true), Ok(false));
        assert_eq!(server.reserve(c, id(4), true), Err(Refused::Reservations));
        server.closed(a, id(1));
        assert_eq!(server.reserve(c, id(4), true), Err(Refused::Reservations), "the newer one stands");
        server.closed(a, id(2));
        assert_eq!(server.reserve(c, id(4), true), Ok(false));
        assert_eq!(server.metrics.relay_refusals("reservations"), 2);
        assert_eq!(server.metrics.relay_refusals("stranger"), 1);
    }

    #[test]
    fn circuits_are_bounded_in_total_and_by_peer_and_leave_nothing_behind() {
        let server = server(|l| (l.circuits, l.circuits_per_peer) = (3, 2));
        let peers: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
        for (n, peer) in peers.iter().enumerate() {
            assert!(server.reserve(*peer, id(n), true).is_ok());
        }
        assert_eq!(server.connect(peers[0], PeerId::random(), true).unwrap_err(), Refused::NoReservation);
        assert_eq!(server.connect(peers[0], peers[0], true).unwrap_err(), Refused::Itself);
        assert_eq!(server.connect(peers[0], peers[1], false).unwrap_err(), Refused::Stranger);
        let (one, to) = server.connect(peers[0], peers[1], true).unwrap();
        assert_eq!(to, id(1));
        let _two = server.connect(peers[2], peers[0], true).unwrap();
        assert_eq!(one.siblings(), 2, "on either side");
        assert_eq!(server.connect(peers[0], peers[3], true).unwrap_err(), Refused::CircuitsOfPeer);
        let _three = server.connect(peers[2], peers[3], true).unwrap();
        assert_eq!(server.connect(peers[1], peers[3], true).unwrap_err(), Refused::Circuits);
        drop(one);
        let four = server.connect(peers[1], peers[3], true).unwrap();
        drop((four, _two, _three));
        assert_eq!(server.counts(), (4, 0, 0));
        assert_eq!(server.metrics.relay_circuits.get(), 0);
    }

    #[test]
    fn a_flood_of_requests_is_cut() {
        let server = server(|l| l.requests_per_peer = 2);
        let (a, b) = (PeerId::random(), PeerId::random());
        let held = [server.request(a), server.request(a)];
        assert!(held.iter().all(Option::is_some));
        assert!(server.request(a).is_none());
        assert!(server.request(b).is_some(), "others are not hurt");
        drop(held);
        assert!(server.request(a).is_some());
        assert_eq!(server.counts().2, 0);
    }
}
