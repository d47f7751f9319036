//! A connection to some endpoint of a cluster, soon: while one attempt stays without an answer the next endpoint is
//! tried beside it, and the first to answer wins.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use mesh_core::balance::EndpointId;
use tokio::time::{Instant, sleep_until};

use super::{
    cluster::{Choice, ClusterState, Tried},
    connector::{ConnectError, Purpose},
    prologue::Ends,
    stream::Upstream,
    worker::WorkerState,
};

/// Most attempts that run beside each other for one call.
const AT_ONCE: usize = 4;

/// What to connect to.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) worker: &'a WorkerState,
    pub(crate) state: &'a ClusterState,
    pub(crate) purpose: Purpose<'a>,
    /// The only endpoint that may be used.
    pub(crate) pinned: Option<EndpointId>,
    /// The endpoint to begin with.
    pub(crate) first: Option<usize>,
    /// What the request says about its endpoint.
    pub(crate) choice: Choice,
    /// What a prologue says of both sides.
    pub(crate) ends: Ends<'a>,
}

/// A connection, and which of the cluster's endpoints it leads to.
pub(crate) struct Connected {
    pub(crate) index: usize,
    pub(crate) stream: Upstream,
    /// Of the way through the tunnel when the connection was asked for: it may have changed since, and then this one must
    /// not pass for one on the new way. None = straight.
    pub(crate) generation: Option<u64>,
}

struct Attempt {
    index: usize,
    started: Instant,
    result: Result<Connected, ConnectError>,
}

/// Connects within the cluster's connect timeout. Endpoints that failed are added to `tried`.
pub(crate) async fn connect(wanted: Wanted<'_>, tried: &mut Tried) -> Result<Connected, ConnectError> {
    let deadline = Instant::now() + wanted.state.cluster.policy.connect_timeout();
    let stagger = wanted.worker.shared.config.stagger();
    let mut running: FuturesUnordered<LocalBoxFuture<'_, Attempt>> = FuturesUnordered::new();
    let mut pending: Vec<(usize, Instant)> = Vec::new();
    let mut last = ConnectError::NoEndpoint;
    let mut next = wanted.first.or_else(|| choose(&wanted, tried));
    loop {
        if let Some(index) = next.take() {
            tried.push(wanted.state.endpoints[index].id);
            pending.push((index, Instant::now()));
            running.push(Box::pin(attempt(wanted, index, deadline)));
        }
        let more_at = Instant::now() + stagger;
        let can_grow = running.len() < AT_ONCE && wanted.pinned.is_none();
        tokio::select! {
            Some(done) = running.next() => {
                pending.retain(|(i, _)| *i != done.index);
                let id = wanted.state.endpoints[done.index].id;
                match done.result {
                    Ok(connected) => {
                        wanted.state.connected(id);
                        // Who was asked earlier and has still not answered is best left alone for a while.
                        for (slow, since) in pending {
                            if since < done.started && since.elapsed() >= stagger {
                                wanted.state.connect_failed(wanted.state.endpoints[slow].id);
                            }
                        }
                        return Ok(connected);
                    }
                    Err(e) => {
                        if !matches!(e, ConnectError::Overflow) {
                            wanted.state.connect_failed(id);
                        }
                        last = e;
                        next = choose(&wanted, tried);
                        if next.is_none() && running.is_empty() {
                            return Err(last);
                        }
                    }
                }
            }
            () = sleep_until(more_at), if can_grow => next = choose(&wanted, tried),
            else => return Err(last),
        }
        if next.is_none() && running.is_empty() {
            return Err(last);
        }
    }
}

fn choose(wanted: &Wanted<'_>, tried: &Tried) -> Option<usize> {
    if let Some(id) = wanted.pinned {
        return wanted.state.position(id).filter(|_| !tried.contains(&id));
    }
    wanted.state.pick_for(wanted.worker, wanted.choice, tried, false)
}

async fn attempt(wanted: Wanted<'_>, index: usize, deadline: Instant) -> Attempt {
    let started = Instant::now();
    let endpoint = &wanted.state.endpoints[index];
    let within = deadline.saturating_duration_since(started).max(Duration::from_millis(1));
    let node: Option<&Arc<str>> = endpoint.node.as_ref();
    let generation = wanted.worker.connector.generation(endpoint);
    let connecting = wanted.worker.connector.connect(endpoint.addr, node, wanted.purpose, within);
    let result = match &wanted.state.prologue {
        None => connecting.await,
        Some(prologue) => {
            let begun = async { prologue.run(connecting.await?, &wanted, endpoint).await };
            tokio::time::timeout(within, begun).await.unwrap_or(Err(ConnectError::Timeout(endpoint.addr)))
        }
    };
    Attempt { index, started, result: result.map(|stream| Connected { index, stream, generation }) }
}
