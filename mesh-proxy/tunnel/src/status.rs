//! What the tunnel says of itself: which path each peer is on, how it does, and why it is not a better one.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use libp2p::PeerId;

use crate::{
    nat::{
        kind::NatKind,
        knowledge::{Knowledge, Punch},
    },
    path::{PathKind, PathTransport},
    peers::{Known, View},
    table::Conn,
    tunnel::Tunnel,
};

/// State of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Node name, empty when the peer just left the view.
    pub node: String,
    /// Base58 peer id.
    pub peer_id: String,
    /// Kind of path.
    pub path: PathKind,
    /// `tcp`, `quic` or `ws`.
    pub transport: &'static str,
    /// Whether this node dialled.
    pub dialled: bool,
    /// Streams on it.
    pub streams: usize,
    /// Last measured round trip.
    pub rtt: Option<Duration>,
}

/// All connections with one peer that take the same path.
#[derive(Debug, Clone, PartialEq)]
pub struct PathStatus {
    /// The peer's node name.
    pub peer: String,
    /// Its base58 peer id.
    pub peer_id: String,
    /// Whether new streams take this path; one path of a peer does.
    pub active: bool,
    /// Kind of path.
    pub path: PathKind,
    /// What carries it.
    pub transport: PathTransport,
    /// Node name of the relay, or its peer id if it is in no view.
    pub relay: Option<String>,
    /// The peer's address as this node sees it.
    pub address: String,
    /// Connections.
    pub connections: usize,
    /// Streams on them.
    pub streams: usize,
    /// Smoothed round trip.
    pub rtt: Option<Duration>,
    /// Share of probes without an answer in time, 0 to 1; none before the first probe.
    pub loss: Option<f64>,
    /// When the oldest of the connections was made.
    pub since: SystemTime,
    /// Bytes of streams that this node sent on the connections that are open.
    pub bytes_sent: u64,
    /// The same, received.
    pub bytes_received: u64,
    /// Kinds of NAT, this node's and the peer's.
    pub nat: (NatKind, NatKind),
    /// The last hole punch with the peer.
    pub last_punch: Option<Punch>,
    /// Why the path is not better, and what would change it; empty when it is as good as it gets.
    pub why_not_better: String,
}

impl Tunnel {
    /// Every connection.
    pub fn status(&self) -> Vec<PeerStatus> {
        let view = self.shared.view();
        let status = |conn: Arc<Conn>| PeerStatus {
            node: view.peer(&conn.peer).map_or_else(String::new, |k| k.node.to_string()),
            peer_id: conn.peer.to_base58(),
            path: conn.path.kind,
            transport: conn.path.transport.as_str(),
            dialled: conn.dialled,
            streams: conn.streams.load(Ordering::Relaxed),
            rtt: conn.rtt(),
        };
        self.shared.table.connections().into_iter().map(status).collect()
    }

    /// The paths of every peer that has connections, sorted by name, the one that new streams take first.
    pub fn paths(&self) -> Vec<PathStatus> {
        let view = self.shared.view();
        let mut all = Vec::new();
        for survey in self.shared.table.survey() {
            let mut of_peer = BTreeMap::<_, Vec<&Arc<Conn>>>::new();
            for conn in survey.conns.iter().filter(|c| !c.closed.load(Ordering::Relaxed)) {
                let relay = conn.relay.map(|r| r.to_base58());
                of_peer.entry((conn.path.rank(), relay)).or_default().push(conn);
            }
            let known = view.peer(&survey.peer);
            let knowledge = &self.shared.knowledge;
            all.extend(of_peer.into_values().filter_map(|conns| {
                let active = conns.iter().any(|c| Some(c.id) == survey.chosen);
                one(&view, knowledge, known, active, &conns)
            }));
        }
        all.sort_by(|a, b| (&a.peer, &a.peer_id, !a.active).cmp(&(&b.peer, &b.peer_id, !b.active)));
        all
    }
}

fn one(
    view: &View,
    knowledge: &Knowledge,
    known: Option<&Arc<Known>>,
    active: bool,
    conns: &[&Arc<Conn>],
) -> Option<PathStatus> {
    let first = conns.first()?;
    let sum = |of: &dyn Fn(&Conn) -> u64| conns.iter().map(|c| of(c)).sum();
    let probes = sum(&|c| c.probes.0.load(Ordering::Relaxed).into());
    let lost = sum(&|c| c.probes.1.load(Ordering::Relaxed).into());
    let name = |relay: PeerId| view.peer(&relay).map_or_else(|| relay.to_base58(), |k| k.node.to_string());
    let of_peer = knowledge.peer(&first.peer);
    Some(PathStatus {
        peer: known.map_or_else(String::new, |k| k.node.to_string()),
        peer_id: first.peer.to_base58(),
        active,
        path: first.path.kind,
        transport: first.path.transport,
        relay: first.relay.map(name),
        address: first.remote.to_string(),
        connections: conns.len(),
        streams: conns.iter().map(|c| c.streams.load(Ordering::Relaxed)).sum(),
        rtt: conns.iter().filter_map(|c| c.rtt()).min(),
        loss: (probes > 0).then(|| lost as f64 / probes as f64),
        since: conns.iter().map(|c| c.since.0).min()?,
        bytes_sent: sum(&|c| c.sent.get()),
        bytes_received: sum(&|c| c.received.get()),
        nat: (knowledge.own(), of_peer.nat),
        last_punch: of_peer.last_punch,
        why_not_better: why(first, known, knowledge),
    })
}

/// Of relayed and punched paths the NATs know why, of the others the transport says it.
fn why(conn: &Conn, known: Option<&Arc<Known>>, knowledge: &Knowledge) -> String {
    match (conn.path.kind, conn.path.transport) {
        (PathKind::Relayed | PathKind::Punched, _) => {
            let peer = known.map_or("the peer", |k| &k.node);
            knowledge.why(&conn.peer, peer, conn.path.kind.as_str())
        }
        (_, PathTransport::Ws) => {
            "only WebSocket on TLS gets through: UDP or TCP to the tunnel port would change it".to_owned()
        }
        (_, PathTransport::Quic) => "TCP to the tunnel port does not get through, QUIC does".to_owned(),
        _ => String::new(),
    }
}
