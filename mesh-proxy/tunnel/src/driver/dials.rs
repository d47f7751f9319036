//! A dial of one peer: groups of addresses, each started a little after the one before, until a connection stands. What
//! could give a better path than that connection goes on in the background.

use std::{
    collections::VecDeque,
    num::NonZeroU8,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};

use super::Driver;
use crate::{
    path::{Path, PathKind, PathTransport},
    peers::Known,
    plan::{Around, Group, plan, repeats},
};

/// A first round that fails within this time is followed by a second one after a pause.
const QUICK_FAILURE: Duration = Duration::from_secs(1);
const SECOND_ROUND: Duration = Duration::from_millis(100);
/// Addresses of one group that are tried at once.
const DIAL_CONCURRENCY: NonZeroU8 = match NonZeroU8::new(8) {
    Some(n) => n,
    None => NonZeroU8::MIN,
};

/// Why a dial runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Somebody waits for a connection.
    Wanted,
    /// There is one; a better one is looked for.
    Better,
}

pub(super) struct Job {
    purpose: Purpose,
    /// Attempts under way.
    attempts: Vec<ConnectionId>,
    groups: VecDeque<Group>,
    reasons: Vec<String>,
    began: Instant,
    /// All groups once more, for a first round that fails quickly: a process that is replaced resets connections that
    /// it has not accepted, and its successor takes the next ones.
    again: VecDeque<Group>,
}

impl Job {
    /// When the next group starts even though attempts are under way.
    pub(super) fn next(&self) -> Option<Instant> {
        Some(self.began + self.groups.front()?.after)
    }
}

impl Driver {
    /// All groups of addresses that may give a better path than `than`, or any when there is none.
    fn groups(&self, known: &Known, than: Option<Path>) -> VecDeque<Group> {
        let (view, networks) = (self.shared.view(), self.shared.networks());
        let known = &self.nat.with_found(known);
        let around = Around {
            view: &view,
            networks: &networks,
            timeouts: &self.shared.timeouts,
            own: *self.swarm.local_peer_id(),
        };
        let reached = |relay: &PeerId| self.shared.table.answering(relay).is_some();
        let all = plan(known, &around, reached);
        all.into_iter().filter(|g| than.is_none_or(|than| g.best < than)).collect()
    }

    /// Dials because somebody waits for it.
    pub(super) fn start_dial(&mut self, peer: PeerId) {
        let Some(known) = self.shared.view().peer(&peer).cloned() else {
            return self.end_dial(peer, Err("peer left the view".into()));
        };
        // One more connection beside those there are is worth having on their path or a better one only, unless they
        // do not answer.
        let usable = self.shared.table.answering(&peer);
        let mut groups = self.groups(&known, None);
        if let Some(path) = usable {
            groups.retain(|g| g.best <= path);
        }
        if groups.is_empty() {
            return self.end_dial(peer, Err("peer has no address that can be dialled".into()));
        }
        let again = groups.clone();
        let repeats = repeats(groups.make_contiguous(), || rand::random_range(0.75..1.25));
        groups.extend(repeats);
        groups.make_contiguous().sort_by_key(|g| g.after);
        self.begin(peer, Purpose::Wanted, groups, again);
    }

    /// Looks for a path that is better than `than`. False when there is nothing to try.
    pub(super) fn start_upgrade(&mut self, peer: PeerId, than: Path) -> bool {
        if self.jobs.contains_key(&peer) {
            return true;
        }
        let Some(known) = self.shared.view().peer(&peer).cloned() else { return false };
        let mut groups = self.groups(&known, Some(than));
        // Another relay, or another transport to the same place, is not worth a connection.
        groups.retain(|g| g.best.kind < than.kind || than.transport == PathTransport::Ws);
        if groups.is_empty() {
            return false;
        }
        self.begin(peer, Purpose::Better, groups, VecDeque::new());
        true
    }

    fn begin(&mut self, peer: PeerId, purpose: Purpose, groups: VecDeque<Group>, again: VecDeque<Group>) {
        let job =
            Job { purpose, attempts: Vec::new(), groups, reasons: Vec::new(), began: Instant::now(), again };
        self.jobs.insert(peer, job);
        self.start_group(peer);
    }

    pub(super) fn start_due_groups(&mut self) {
        let now = Instant::now();
        let due = self.jobs.iter().filter(|(_, j)| j.next().is_some_and(|at| at <= now));
        for peer in due.map(|(p, _)| *p).collect::<Vec<_>>() {
            self.start_group(peer);
        }
    }

    /// Starts the next group of a job; ends the job when there is none and nothing is under way.
    fn start_group(&mut self, peer: PeerId) {
        let Some(job) = self.jobs.get_mut(&peer) else { return };
        while let Some(group) = job.groups.pop_front() {
            let mut opts = DialOpts::peer_id(peer)
                .condition(PeerCondition::Always)
                .addresses(group.addresses)
                .override_dial_concurrency_factor(DIAL_CONCURRENCY);
            // Reusing the listen port of TCP would tie each pair of nodes to one connection. QUIC carries many on one
            // socket, and from the listen port the peer sees the address at which this node is reached.
            if group.best.transport != PathTransport::Quic || group.best.kind == PathKind::Relayed {
                opts = opts.allocate_new_port();
            }
            let opts = opts.build();
            let id = opts.connection_id();
            match self.swarm.dial(opts) {
                Ok(()) => {
                    job.attempts.push(id);
                    self.attempts.insert(id, peer);
                    return;
                }
                Err(e) => job.reasons.push(describe(&e)),
            }
        }
        if !job.attempts.is_empty() {
            return;
        }
        let again = std::mem::take(&mut job.again);
        if !again.is_empty() && job.began.elapsed() < QUICK_FAILURE {
            job.groups = again;
            job.began = Instant::now() + SECOND_ROUND;
            job.reasons.clear();
            return;
        }
        let Some(job) = self.jobs.remove(&peer) else { return };
        match job.purpose {
            Purpose::Wanted => self.end_dial(peer, Err(job.reasons.join("; ").into())),
            Purpose::Better => self.upgrade_failed(peer),
        }
    }

    fn end_dial(&mut self, peer: PeerId, end: Result<(), Arc<str>>) {
        self.shared.metrics.dialled(if end.is_ok() { "ok" } else { "failed" });
        if let Err(reason) = &end {
            tracing::debug!(%peer, %reason, "dial failed");
            self.nat.unreachable(peer, &mut self.swarm);
        }
        let (min, max) = (self.shared.timeouts.backoff_min, self.shared.timeouts.backoff_max);
        self.shared.table.dialled(peer, end, Instant::now(), |failures| {
            let factor = 1u32 << failures.saturating_sub(1).min(16);
            // A quarter of jitter, so that nodes that lost the same peer do not return together.
            let spread: f64 = rand::random_range(0.75..1.25);
            min.saturating_mul(factor).min(max).mul_f64(spread)
        });
    }

    pub(super) fn on_attempt_failed(&mut self, id: ConnectionId, error: &DialError) {
        let Some(peer) = self.attempts.remove(&id) else { return };
        let Some(job) = self.jobs.get_mut(&peer) else { return };
        let before = job.attempts.len();
        job.attempts.retain(|a| *a != id);
        if job.attempts.len() == before {
            // Of a dial that has ended since.
            return;
        }
        job.reasons.push(describe(error));
        if job.attempts.is_empty() {
            // Everything has ended: those who wait are told, or the second round begins.
            job.groups.retain(|g| !g.repeat);
            self.start_group(peer);
        }
    }

    pub(super) fn on_established(&mut self, id: ConnectionId, peer: PeerId) {
        let ours = self.attempts.remove(&id).is_some();
        let Some(path) = self.shared.table.path(&peer) else { return };
        self.watch_path(peer, path);
        self.settle(peer, id);
        let Some(job) = self.jobs.get_mut(&peer) else { return };
        job.attempts.retain(|a| *a != id);
        // What cannot better the path is not tried any more, whoever made the connection.
        job.groups.retain(|g| g.best < path && g.best.kind <= path.kind);
        job.again.clear();
        // A connection that the peer dialled serves those who wait too, but does not end our own attempts.
        let serves = ours && job.purpose == Purpose::Wanted;
        let spent = job.groups.is_empty() && job.attempts.is_empty();
        if ours {
            job.purpose = Purpose::Better;
        }
        if serves {
            self.end_dial(peer, Ok(()));
        }
        if spent {
            self.jobs.remove(&peer);
        }
    }

    /// Dials addresses of a peer at the moment at which the peer dials this node, from the listen port. One of the two
    /// sides takes the listener's part. Gives the id of the connection that it may become.
    #[allow(dead_code, reason = "asked for by the NAT traversal")]
    pub(super) fn punch(
        &mut self,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        as_listener: bool,
    ) -> Result<ConnectionId, DialError> {
        let mut opts = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(addresses)
            .override_dial_concurrency_factor(DIAL_CONCURRENCY);
        if as_listener {
            opts = opts.override_role();
        }
        let opts = opts.build();
        let id = opts.connection_id();
        self.shared.expect_punched(id);
        self.swarm.dial(opts).inspect_err(|_| {
            self.shared.take_punched(id);
        })?;
        Ok(id)
    }

    /// Forgets what is under way for a peer whose addresses are others now; those who wait get a new dial.
    pub(super) fn dial_anew(&mut self, peer: PeerId) {
        let Some(job) = self.jobs.remove(&peer) else { return };
        if job.purpose == Purpose::Wanted {
            self.start_dial(peer);
        }
    }
}

/// One line for a failed dial, with each address once.
fn describe(error: &DialError) -> String {
    match error {
        DialError::Transport(errors) => {
            let each = errors.iter().map(|(address, e)| {
                let mut text = format!("{address}: {e}");
                let mut source = std::error::Error::source(e);
                // The outermost lines only name layers; the innermost says what happened.
                while let Some(inner) = source {
                    if inner.source().is_none() {
                        text = format!("{address}: {inner}");
                    }
                    source = inner.source();
                }
                text
            });
            each.collect::<Vec<_>>().join("; ")
        }
        other => other.to_string(),
    }
}
