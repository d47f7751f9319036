//! Listeners of one worker, opened and closed by the difference between two plans. A port that stays keeps its socket
//! and the connections that wait in it; one that goes is emptied first.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_core::gateway::listener::{self, Listener};
use mesh_net::listen::{accept, tcp_reuseport};
use node_rt::Drain;
use tokio::{net::TcpListener, sync::watch};

use super::{Gateway, serve};
use crate::outbound::{Snapshot, Ticket, WorkerState};

/// How soon a change of the tables is noticed.
const LOOK: Duration = Duration::from_millis(50);
/// How soon a port that could not be bound is tried again.
const AGAIN: Duration = Duration::from_secs(5);

struct Open {
    now: Rc<RefCell<Arc<Listener>>>,
    /// Dropped to close the listener.
    _close: watch::Sender<()>,
}

/// Opens what the tables ask for until the drain begins; connections go on.
pub(crate) async fn run(worker: Rc<WorkerState>, gateway: Arc<Gateway>, drain: Drain) {
    let stop = drain.stop_accepting();
    tokio::pin!(stop);
    let mut open: BTreeMap<SocketAddr, Open> = BTreeMap::new();
    let mut seen: Option<Rc<Snapshot>> = None;
    let mut retry: Option<Instant> = None;
    loop {
        let tables = worker.tables();
        let same = seen.as_ref().is_some_and(|old| Gateway::same(old, &tables));
        if !same || retry.is_some_and(|at| at <= Instant::now()) {
            let (wanted, problems) =
                listener::plan(&tables, |g| gateway.config.selected(g), &gateway.config.ports);
            if !same {
                problems.iter().for_each(|p| tracing::warn!(problem = %p, "gateway"));
            }
            open.retain(|at, _| wanted.contains_key(at));
            retry = None;
            for (at, listener) in wanted {
                if let Some(o) = open.get(&at) {
                    *o.now.borrow_mut() = listener;
                    continue;
                }
                match tcp_reuseport(at, false) {
                    Ok(socket) => {
                        tracing::info!(%at, nature = ?listener.nature, "gateway listens");
                        open.insert(at, start(&worker, &gateway, socket, listener, &drain));
                    }
                    Err(error) => {
                        tracing::error!(%error, %at, "gateway cannot listen");
                        retry = Some(Instant::now() + AGAIN);
                    }
                }
            }
        }
        seen = Some(tables);
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = &mut stop => return,
        }
    }
}

fn start(
    worker: &Rc<WorkerState>,
    gateway: &Arc<Gateway>,
    socket: TcpListener,
    listener: Arc<Listener>,
    drain: &Drain,
) -> Open {
    let now = Rc::new(RefCell::new(listener));
    let (close, closed) = watch::channel(());
    let context =
        serve::Context { worker: Rc::clone(worker), gateway: Arc::clone(gateway), listener: Rc::clone(&now) };
    tokio::task::spawn_local(accept_loop(context, socket, closed, drain.clone()));
    Open { now, _close: close }
}

async fn accept_loop(
    context: serve::Context,
    socket: TcpListener,
    mut closed: watch::Receiver<()>,
    drain: Drain,
) {
    let _accepting = drain.guard();
    let mut closing = false;
    loop {
        let (stream, peer) = tokio::select! {
            biased;
            accepted = accept(&socket, &context.worker.shared.accept_errors) => accepted,
            // What waits to be accepted was there before: it is served, then the port closes.
            _ = closed.changed(), if !closing => {
                closing = true;
                continue;
            }
            () = std::future::ready(()), if closing => return,
        };
        let Some(ticket) = Ticket::take(&context.worker, &drain) else { continue };
        tokio::task::spawn_local(serve::accepted(context.clone(), stream, peer, ticket));
    }
}
