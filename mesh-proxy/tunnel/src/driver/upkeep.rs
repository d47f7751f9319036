//! Looking after paths: once a second, and when a network of this host comes or goes.

use std::{
    io,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::StreamExt;
use if_watch::{IfEvent, tokio::IfWatcher};
use libp2p::{PeerId, swarm::ConnectionId};

use super::Driver;
use crate::{
    foreign::Foreign,
    path::{Path, PathKind, PathTransport, socket_of},
    table::{Conn, Survey},
};

/// When the better addresses of a peer are dialled again.
#[derive(Debug)]
pub(super) struct Upgrade {
    at: Instant,
    failures: u32,
}

/// What a connection had moved when it was last looked at.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    sent: u64,
    received: u64,
    /// Something was sent, and nothing has come since that could be its answer.
    unanswered: bool,
}

impl Traffic {
    /// Whether the peer should be asked for a sign of life.
    fn wants_probe(&mut self, sent: u64, received: u64) -> bool {
        let (spoke, heard) = (sent > self.sent, received > self.received);
        let ask = (self.unanswered || spoke) && !heard;
        // What came in the same second as the last words may have been before them.
        self.unanswered = spoke && heard;
        (self.sent, self.received) = (sent, received);
        ask
    }
}

/// Follows the addresses of this host.
pub(super) struct Watcher(Option<IfWatcher>, Foreign);

impl Watcher {
    pub(super) fn new() -> Self {
        match IfWatcher::new() {
            Ok(watcher) => Self(Some(watcher), Foreign::default()),
            Err(error) => {
                tracing::warn!(%error, "addresses of this host are not followed: every path counts as no LAN");
                Self(None, Foreign::default())
            }
        }
    }

    /// The next change; never, once it failed.
    pub(super) async fn next(&mut self) -> io::Result<IfEvent> {
        let Some(watcher) = &mut self.0 else { return std::future::pending().await };
        loop {
            let event = watcher.select_next_some().await;
            // Services that come and go are no change of this host's networks.
            let foreign = match &event {
                Ok(IfEvent::Up(net)) => self.1.came(net.addr()),
                Ok(IfEvent::Down(net)) => self.1.went(net.addr()),
                Err(_) => false,
            };
            if !foreign {
                return event;
            }
        }
    }
}

/// A connection that was idle for this long after it was retired is closed; and streams that were being opened when a
/// better path came are open after this.
const SETTLE: Duration = Duration::from_secs(2);

impl Driver {
    pub(super) fn upkeep(&mut self) {
        let now = Instant::now();
        // Streams that were being opened on the worse path when the better one came are in their pools by now.
        for conn in self.settling.extract_if(.., |c| now.saturating_duration_since(c.since.1) >= SETTLE) {
            conn.generation.fetch_add(1, Ordering::Relaxed);
        }
        if self.shared.is_draining() {
            self.shared.say_goodbye();
        }
        for survey in self.shared.table.survey() {
            for conn in &survey.conns {
                self.look_after(conn, &survey, now);
            }
            let due = self.upgrades.get(&survey.peer).is_some_and(|u| u.at <= now);
            if let (true, Some(path)) = (due, survey.best)
                && !self.start_upgrade(survey.peer, path)
            {
                // Addresses may come with the next view.
                self.upgrades.remove(&survey.peer);
            }
        }
        let table = &self.shared.table;
        self.upgrades.retain(|peer, _| table.path(peer).is_some());
    }

    /// Probes a connection that sends and hears nothing; lets one that is not needed go.
    fn look_after(&mut self, conn: &Arc<Conn>, survey: &Survey, now: Instant) {
        let traffic = self.traffic.entry(conn.id).or_default();
        if traffic.wants_probe(conn.sent.get(), conn.received.get()) || conn.suspect.load(Ordering::Relaxed) {
            self.shared.probe(conn);
        }
        if self.nat.keeps(&conn.peer) {
            return;
        }
        let idle = conn.streams.load(Ordering::Relaxed) == 0;
        let age = now.saturating_duration_since(conn.since.1);
        let worse = survey.best.is_some_and(|best| best < conn.path);
        if conn.retired.load(Ordering::Relaxed) {
            if idle && worse && age > SETTLE + self.shared.timeouts.linger {
                self.swarm.close_connection(conn.id);
            }
        } else if worse && survey.lasting(self.shared.timeouts.linger, now) {
            self.shared.retire(conn);
        }
    }

    /// Notes a connection that is better than another one.
    pub(super) fn settle(&mut self, peer: PeerId, id: ConnectionId) {
        if let Some(conn) = self.shared.table.find(peer, id)
            && self.shared.table.worst(&peer).is_some_and(|others| others > conn.path)
        {
            self.settling.push(conn);
        }
    }

    // === better paths ===

    /// Notes that a peer's path may be bettered, or need not be.
    pub(super) fn watch_path(&mut self, peer: PeerId, path: Path) {
        let good = path.kind <= PathKind::Direct && path.transport != PathTransport::Ws;
        if good {
            if self.upgrades.remove(&peer).is_some() {
                self.shared.metrics.upgraded("ok");
            }
            return;
        }
        let pause = self.shared.timeouts.upgrade_min;
        self.upgrades.entry(peer).or_insert_with(|| Upgrade { at: Instant::now() + pause, failures: 0 });
    }

    pub(super) fn upgrade_failed(&mut self, peer: PeerId) {
        let (min, max) = (self.shared.timeouts.upgrade_min, self.shared.timeouts.upgrade_max);
        if let Some(upgrade) = self.upgrades.get_mut(&peer) {
            self.shared.metrics.upgraded("failed");
            upgrade.failures = upgrade.failures.saturating_add(1);
            let pause = min.saturating_mul(1 << upgrade.failures.min(16)).min(max);
            upgrade.at = Instant::now() + pause.mul_f64(rand::random_range(0.75..1.25));
        }
    }

    fn upgrade_soon(&mut self, peer: PeerId) {
        if let Some(path) = self.shared.table.path(&peer) {
            self.upgrades.remove(&peer);
            self.watch_path(peer, path);
            if let Some(upgrade) = self.upgrades.get_mut(&peer) {
                upgrade.at = Instant::now();
            }
        }
    }

    /// An address of this host is gone, and with it the TCP connections that come from it: those who wait on them, and
    /// relays, learn it now and not when they have been silent for long. QUIC goes on from another address.
    fn leave_address(&self, own: IpAddr) {
        let gone = |conn: &Conn| {
            let tcp = conn.path.kind != PathKind::Relayed && conn.path.transport != PathTransport::Quic;
            socket_of(&conn.remote).filter(|_| tcp).is_some_and(|to| self.shared.kernel.leaves_from(to, own))
        };
        for conn in self.shared.table.connections().iter().filter(|c| gone(c)) {
            self.shared.give_up(conn);
        }
    }

    /// The registry names other addresses of these peers: connections to the old ones may be dead.
    pub(super) fn on_moved(&mut self, peers: Vec<PeerId>) {
        for survey in self.shared.table.survey().iter().filter(|s| peers.contains(&s.peer)) {
            survey.conns.iter().for_each(|conn| self.shared.probe(conn));
        }
        for peer in peers {
            self.dial_anew(peer);
            self.upgrade_soon(peer);
        }
    }

    pub(super) fn on_network(&mut self, change: io::Result<IfEvent>) {
        let event = match change {
            Ok(event) => event,
            Err(error) => {
                tracing::debug!(%error, "addresses of this host");
                return;
            }
        };
        let changed = self.shared.change_networks(|networks| match event {
            IfEvent::Up(net) => networks.add(net),
            IfEvent::Down(net) => networks.remove(net),
        });
        if !changed {
            return;
        }
        if let IfEvent::Down(net) = event {
            self.leave_address(net.addr());
        }
        for survey in self.shared.table.survey() {
            survey.conns.iter().for_each(|conn| self.shared.probe(conn));
            self.shared.table.forgive(survey.peer);
            self.upgrade_soon(survey.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Traffic;

    #[test]
    fn words_without_an_answer_ask_for_a_sign_of_life() {
        let mut traffic = Traffic::default();
        let mut asks = |sent, received| traffic.wants_probe(sent, received);
        assert!(!asks(0, 0), "nothing was said");
        assert!(asks(1, 0), "no answer");
        assert!(!asks(1, 0), "asked once");
        assert!(!asks(2, 5), "perhaps an answer");
        assert!(asks(2, 5), "perhaps none");
        assert!(!asks(2, 9) && !asks(2, 9), "only the peer speaks");
    }
}
