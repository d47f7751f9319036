//! What is known about reaching each peer, for status output: the kind of NAT on both sides, how the last punch ended,
//! and one sentence that says why the path is not better and what would change it.
//!
//! - [`why`]: the sentence, a pure function of facts.

mod why;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use libp2p::{Multiaddr, PeerId};

pub use self::why::{Facts, why_not_better};
use super::{
    candidates::{Carrier, socket_of},
    kind::NatKind,
};

/// How a punch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PunchOutcome {
    /// A direct connection came about.
    Ok,
    /// Both sides dialled and none came about.
    Failed,
    /// The peer did not take part.
    NoAnswer,
    /// There is no address to dial.
    NoCandidates,
}

impl PunchOutcome {
    /// Label for output and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::NoAnswer => "no-answer",
            Self::NoCandidates => "no-candidates",
        }
    }
}

/// The last punch with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Punch {
    /// When it ended.
    pub at: SystemTime,
    /// How it ended.
    pub outcome: PunchOutcome,
    /// Tries since the peer was last reached directly, this one included.
    pub attempts: u32,
}

/// What is known about one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerKnowledge {
    /// Kind of the peer's NAT.
    pub nat: NatKind,
    /// The last punch with it.
    pub last_punch: Option<Punch>,
    /// A punch is under way.
    pub punching: bool,
}

#[derive(Debug, Default)]
struct State {
    own: NatKind,
    udp: Option<bool>,
    reservations: usize,
    relays: usize,
    punch: bool,
    peers: HashMap<PeerId, PeerKnowledge>,
    /// Peers with which a punch is under way, until when at most.
    punching: HashMap<PeerId, Instant>,
    /// Transports and families (whether IPv4) by which everybody gets in here.
    own_open: Vec<(Carrier, bool)>,
    /// Addresses at which everybody gets in at a peer, as it told when a punch was agreed.
    open: HashMap<PeerId, Vec<(Carrier, SocketAddr)>>,
}

/// Knowledge of one node, shared between the swarm and status output.
#[derive(Debug, Default)]
pub struct Knowledge {
    node: String,
    state: Mutex<State>,
}

impl Knowledge {
    pub(crate) fn new(node: &str) -> Self {
        Self { node: node.to_owned(), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kind of this node's own NAT.
    pub fn own(&self) -> NatKind {
        self.lock().own
    }

    /// What is known about a peer.
    pub(crate) fn peer(&self, peer: &PeerId) -> PeerKnowledge {
        let state = self.lock();
        let mut known = state.peers.get(peer).copied().unwrap_or_default();
        known.punching = state.punching.contains_key(peer);
        known
    }

    /// One sentence for a peer that is reached by `path`; empty when there is nothing better.
    pub(crate) fn why(&self, peer: &PeerId, other: &str, path: &str) -> String {
        let known = self.peer(peer);
        let state = self.lock();
        why_not_better(&Facts {
            own: &self.node,
            peer: other,
            path,
            own_nat: state.own,
            peer_nat: known.nat,
            udp_works: state.udp,
            punch_enabled: state.punch,
            punching: known.punching,
            last: known.last_punch.map(|p| (p.outcome, p.attempts)),
            relays: state.relays,
            reservations: state.reservations,
        })
    }

    /// Whether a connection that this peer makes now is the other half of a punch.
    pub(crate) fn is_punching(&self, peer: &PeerId) -> bool {
        self.lock().punching.get(peer).is_some_and(|until| *until > Instant::now())
    }

    /// Whether the last punch with a peer brought a direct connection.
    pub(crate) fn is_ok(&self, peer: &PeerId) -> bool {
        let state = self.lock();
        state.peers.get(peer).and_then(|p| p.last_punch).is_some_and(|p| p.outcome == PunchOutcome::Ok)
    }

    /// Whether everybody gets in here by the transport and family of a connection that comes from `remote`: then it
    /// needed no hole, whoever else dialled at that moment.
    pub(crate) fn is_open_to(&self, remote: &Multiaddr) -> bool {
        let Some((carrier, at)) = socket_of(remote) else { return false };
        self.lock().own_open.contains(&(carrier, at.is_ipv4()))
    }

    /// Whether everybody gets in at this address of a peer.
    pub(crate) fn is_open_at(&self, peer: &PeerId, remote: &Multiaddr) -> bool {
        let Some(at) = socket_of(remote) else { return false };
        self.lock().open.get(peer).is_some_and(|open| open.contains(&at))
    }

    pub(crate) fn set_own_open(&self, open: Vec<(Carrier, bool)>) {
        self.lock().own_open = open;
    }

    pub(crate) fn set_open(&self, peer: PeerId, open: Vec<(Carrier, SocketAddr)>) {
        self.lock().open.insert(peer, open);
    }

    pub(crate) fn set_own(&self, kind: NatKind, udp: Option<bool>) {
        let mut state = self.lock();
        (state.own, state.udp) = (kind, udp);
    }

    pub(crate) fn set_relays(&self, relays: usize, reservations: usize, punch: bool) {
        let mut state = self.lock();
        (state.relays, state.reservations, state.punch) = (relays, reservations, punch);
    }

    pub(crate) fn set_peer_nat(&self, peer: PeerId, nat: NatKind) {
        if nat != NatKind::Unknown {
            self.lock().peers.entry(peer).or_default().nat = nat;
        }
    }

    pub(crate) fn punch_began(&self, peer: PeerId, until: Instant) {
        self.lock().punching.insert(peer, until);
    }

    pub(crate) fn punch_ended(&self, peer: PeerId, outcome: PunchOutcome, attempts: u32) {
        let mut state = self.lock();
        if outcome != PunchOutcome::Ok {
            state.punching.remove(&peer);
        }
        let punch = Punch { at: SystemTime::now(), outcome, attempts };
        state.peers.entry(peer).or_default().last_punch = Some(punch);
    }

    /// Forgets peers that left the view, and punches that are long over.
    pub(crate) fn retain(&self, wanted: impl Fn(&PeerId) -> bool) {
        let mut state = self.lock();
        state.peers.retain(|p, _| wanted(p));
        state.open.retain(|p, _| wanted(p));
        let now = Instant::now();
        state.punching.retain(|p, until| wanted(p) && *until > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_at_which_everybody_gets_in_needs_no_hole() {
        let (it, peer) = (Knowledge::new("a"), PeerId::random());
        let at = |text: &str| text.parse::<Multiaddr>().unwrap();
        assert!(!it.is_open_to(&at("/ip4/192.0.2.1/udp/1/quic-v1")));
        it.set_own_open(vec![(Carrier::Udp, true)]);
        assert!(it.is_open_to(&at("/ip4/192.0.2.1/udp/9/quic-v1")));
        for other in ["/ip4/192.0.2.1/tcp/1", "/ip6/2001:db8::1/udp/1/quic-v1", "/dns4/a/tcp/1"] {
            assert!(!it.is_open_to(&at(other)), "{other}");
        }
        it.set_open(peer, vec![(Carrier::Tcp, "192.0.2.7:15008".parse().unwrap())]);
        assert!(it.is_open_at(&peer, &at("/ip4/192.0.2.7/tcp/15008")));
        assert!(!it.is_open_at(&peer, &at("/ip4/192.0.2.7/udp/15008/quic-v1")));
        assert!(!it.is_open_at(&PeerId::random(), &at("/ip4/192.0.2.7/tcp/15008")));
        it.retain(|_| false);
        assert!(!it.is_open_at(&peer, &at("/ip4/192.0.2.7/tcp/15008")));
    }
}
