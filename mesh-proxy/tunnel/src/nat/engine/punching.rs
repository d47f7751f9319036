//! Talks about punches, and the dials that follow.

use std::{
    io,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId, Stream, Swarm,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};

use super::{Awaited, Dial, Done, Engine};
use crate::{
    driver::Behaviour,
    nat::{
        candidates,
        kind::NatKind,
        knowledge::PunchOutcome,
        punch::{self, Agreed, Role, Shot, Side, TALK, WINDOW, plan},
        wire::{self, Hello},
    },
};

/// The side that does not lead waits this long before it asks for a punch.
const PATIENCE: Duration = Duration::from_secs(4);
/// Pause before a dial that failed at once is repeated; it doubles.
const AGAIN: Duration = Duration::from_millis(60);
/// How often it doubles.
const DOUBLINGS: u32 = 4;
/// Dials of one attempt, repeats included.
const MAX_SHOTS: usize = 64;

/// A punch under way.
#[derive(Debug)]
pub(super) struct Attempt {
    /// What is still to be dialled.
    shots: Vec<(Instant, Shot)>,
    /// Dials under way that are repeated.
    flying: Vec<(ConnectionId, Shot)>,
    fired: usize,
    end: Instant,
    hopeless: bool,
}

impl Attempt {
    pub(super) fn next(&self) -> Option<Instant> {
        self.shots.iter().map(|(at, _)| *at).chain([self.end]).min()
    }
}

impl Engine {
    /// A peer is reached through a relay only. The smaller id leads, the other one asks when nothing happens.
    pub(super) fn want_punch(&mut self, peer: PeerId, now: Instant) {
        if self.config.punch {
            let leads = self.own < peer;
            self.schedule.want(peer, if leads { now } else { now + PATIENCE });
            if leads {
                self.next_tick = now;
            }
        }
    }

    pub(super) fn start_punches(&mut self, swarm: &mut Swarm<Behaviour>, now: Instant) {
        for peer in self.schedule.due(now) {
            let links = &swarm.behaviour().nat.ports.links;
            let relayed = links.iter().filter(|(_, l)| l.peer == peer && l.relayed && l.established);
            let Some(id) = relayed.max_by_key(|(_, l)| l.since).map(|(id, _)| *id) else {
                self.schedule.forget(&peer);
                continue;
            };
            let ask = self.own > peer;
            self.schedule.begin(peer, now);
            if ask {
                // Whatever comes of it, the next request follows after a pause.
                self.schedule.failed(&peer, false, now);
            }
            let ticket = swarm.behaviour_mut().nat.ports.open(id, wire::PUNCH);
            self.awaited.insert(ticket, Awaited::Punch { peer, ask });
        }
    }

    fn hello(&self, ask: bool) -> Hello {
        let candidates = self.candidates();
        Hello {
            open: self.open_bits(&candidates),
            candidates: candidates.iter().map(Multiaddr::to_vec).collect(),
            udp: self.udp.kind().number(),
            tcp: self.tcp.kind().number(),
            ask,
        }
    }

    /// Talks with a peer on a stream that this node opened.
    pub(super) fn talk(&mut self, peer: PeerId, ask: bool, stream: Stream) {
        let mine = self.hello(ask);
        let swaps = self.schedule.tries(&peer) % 2 == 1;
        self.task(TALK * 2, async move {
            let talk = tokio::time::timeout(TALK, punch::lead(stream, mine, swaps)).await;
            let result = talk.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            if ask { Done::Nothing } else { Done::Talk { peer, result } }
        });
    }

    /// The peer opened a stream for a talk.
    pub(super) fn on_punch_stream(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        stream: Stream,
        swarm: &Swarm<Behaviour>,
    ) {
        let relayed = swarm.behaviour().nat.ports.links.get(&id).is_some_and(|l| l.relayed);
        // Its own requests come one at a time; a reset tells it that there is no punch.
        if !self.config.punch || !relayed || self.attempts.contains_key(&peer) {
            return;
        }
        if self.own > peer {
            self.schedule.begin(peer, Instant::now());
        }
        let mine = self.hello(false);
        self.task(TALK * 2, async move {
            let talk = tokio::time::timeout(TALK, punch::follow(stream, mine)).await;
            Done::Talk { peer, result: talk.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) }
        });
    }

    pub(super) fn no_answer(&mut self, peer: PeerId) {
        self.schedule.failed(&peer, false, Instant::now());
        self.ended(peer, PunchOutcome::NoAnswer, self.schedule.tries(&peer));
    }

    fn ended(&mut self, peer: PeerId, outcome: PunchOutcome, attempts: u32) {
        self.metrics.punch(outcome.as_str());
        self.shared.knowledge.punch_ended(peer, outcome, attempts.max(1));
        tracing::info!(%peer, outcome = outcome.as_str(), attempts, "hole punch");
    }

    pub(super) fn on_talk(
        &mut self,
        peer: PeerId,
        result: io::Result<Option<Agreed>>,
        swarm: &mut Swarm<Behaviour>,
    ) {
        let now = Instant::now();
        let agreed = match result {
            Ok(Some(agreed)) => agreed,
            Ok(None) => {
                // The peer asks to be led.
                if self.own < peer && !self.schedule.is_running(&peer) {
                    self.schedule.changed(&peer, now);
                    self.start_punches(swarm, now);
                }
                return;
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "talk about a punch");
                return self.no_answer(peer);
            }
        };
        if self.attempts.contains_key(&peer) || swarm.behaviour().nat.ports.direct(&peer).is_some() {
            return;
        }
        let loopback = self.loopback();
        let theirs = Side {
            udp: NatKind::of_number(agreed.theirs.udp),
            tcp: NatKind::of_number(agreed.theirs.tcp),
            candidates: candidates::told(&agreed.theirs.candidates, loopback),
        };
        let own: Vec<_> = self.candidates().iter().filter_map(candidates::socket_of).collect();
        let mine = Side { udp: self.udp.kind(), tcp: self.tcp.kind(), candidates: own };
        let remote = if theirs.udp == NatKind::Unknown { theirs.tcp } else { theirs.udp };
        self.shared.knowledge.set_peer_nat(peer, remote);
        let open = candidates::told_open(&agreed.theirs.candidates, agreed.theirs.open);
        self.shared.knowledge.set_open(peer, open);
        let shots = plan(&mine, &theirs, agreed.leads, agreed.swaps);
        if shots.is_empty() {
            self.schedule.failed(&peer, false, now);
            return self.ended(peer, PunchOutcome::NoCandidates, self.schedule.tries(&peer));
        }
        let start = agreed.start.into_std();
        let end = start + WINDOW;
        tracing::debug!(%peer, ?mine, ?theirs, leads = agreed.leads, "punch is agreed");
        let udp = !mine.udp.can_punch(theirs.udp);
        let attempt = Attempt {
            shots: shots.into_iter().map(|s| (start + s.after, s)).collect(),
            flying: Vec::new(),
            fired: 0,
            end,
            hopeless: udp && !mine.tcp.can_punch(theirs.tcp),
        };
        // A little longer than the window: the peer's last handshake may end after ours.
        self.shared.knowledge.punch_began(peer, end + Duration::from_secs(2));
        self.schedule.begin(peer, now);
        self.schedule.tried(&peer);
        self.attempts.insert(peer, attempt);
        self.shoot(swarm);
    }

    /// Dials what is due, and ends attempts that are over.
    pub(super) fn shoot(&mut self, swarm: &mut Swarm<Behaviour>) {
        let now = Instant::now();
        let due: Vec<PeerId> = self
            .attempts
            .iter()
            .filter(|(_, a)| a.next().is_some_and(|at| at <= now))
            .map(|(p, _)| *p)
            .collect();
        for peer in due {
            let Some(attempt) = self.attempts.get_mut(&peer) else { continue };
            if attempt.end <= now {
                let hopeless = attempt.hopeless;
                self.attempts.remove(&peer);
                self.schedule.failed(&peer, hopeless, now);
                self.ended(peer, PunchOutcome::Failed, self.schedule.tries(&peer));
                continue;
            }
            let (ready, later) =
                std::mem::take(&mut attempt.shots).into_iter().partition(|(at, _)| *at <= now);
            attempt.shots = later;
            let ready: Vec<(Instant, Shot)> = ready;
            for (_, shot) in ready {
                self.fire(peer, shot, swarm);
            }
        }
    }

    fn fire(&mut self, peer: PeerId, shot: Shot, swarm: &mut Swarm<Behaviour>) {
        let to: Vec<Multiaddr> = shot.to.iter().map(|at| candidates::multiaddr(shot.carrier, *at)).collect();
        let all =
            std::num::NonZeroU8::new(candidates::MAX_CANDIDATES as u8).unwrap_or(std::num::NonZeroU8::MIN);
        let opts = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(to)
            .override_dial_concurrency_factor(all);
        let opts = match shot.role {
            Role::Client => opts.build(),
            Role::Server => opts.override_role().build(),
        };
        let id = opts.connection_id();
        self.shared.expect_punched(id);
        match swarm.dial(opts) {
            Ok(()) => {
                self.dials.insert(id, Dial::Punch(peer));
                if let Some(attempt) = self.attempts.get_mut(&peer) {
                    attempt.fired += 1;
                    if shot.again {
                        attempt.flying.push((id, shot));
                    }
                }
            }
            Err(error) => {
                self.shared.take_punched(id);
                tracing::debug!(%peer, %error, "dial of a punch");
            }
        }
    }

    pub(super) fn on_shot_failed(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        error: &DialError,
        _: &mut Swarm<Behaviour>,
    ) {
        tracing::debug!(%peer, %error, "shot");
        let Some(attempt) = self.attempts.get_mut(&peer) else { return };
        let Some(at) = attempt.flying.iter().position(|(flying, _)| *flying == id) else { return };
        let (_, mut shot) = attempt.flying.swap_remove(at);
        let next = Instant::now() + AGAIN * (1 << shot.round.min(DOUBLINGS));
        shot.round += 1;
        if attempt.fired < MAX_SHOTS && next < attempt.end {
            attempt.shots.push((next, shot));
        }
    }

    /// A direct connection stands.
    pub(super) fn on_direct(&mut self, peer: PeerId, by_punch: bool) {
        let tries = self.schedule.tries(&peer);
        self.schedule.forget(&peer);
        if self.attempts.remove(&peer).is_some() || (by_punch && !self.shared.knowledge.is_ok(&peer)) {
            self.ended(peer, PunchOutcome::Ok, tries);
        }
    }
}
