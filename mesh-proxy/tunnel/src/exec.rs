//! Where connection tasks run. Handshakes run on the control runtime; an established connection runs on one data
//! worker for its whole life, so that a stream and its connection share a thread and no chunk crosses one.

use std::{
    collections::VecDeque,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::runtime::{Handle, Id};

/// The runtimes that a tunnel may use.
#[derive(Debug, Clone)]
pub struct Executors {
    /// Runs the swarm, dials and handshakes.
    pub control: Handle,
    /// Run established connections, one acceptor each. Empty: everything runs on `control`.
    pub workers: Vec<Handle>,
}

impl Executors {
    /// Everything on the runtime that calls this.
    pub fn current() -> Self {
        Self { control: Handle::current(), workers: Vec::new() }
    }

    /// Number of acceptors that a tunnel with these runtimes has.
    pub fn acceptors(&self) -> usize {
        self.workers.len().max(1)
    }
}

/// Index of a data worker.
pub(crate) type Worker = usize;

#[derive(Debug)]
pub(crate) struct Placement {
    exec: Executors,
    ids: Vec<Id>,
    /// The worker of the next task that the swarm spawns. The swarm spawns a connection's task synchronously after it
    /// asked the behaviour for the handler, on one thread, so a single slot is enough.
    next: Mutex<Option<Worker>>,
    /// Where QUIC connections run that were made lately, by remote address, latest first: they have a thread before
    /// anyone knows whose they are.
    quic: Mutex<VecDeque<(SocketAddr, Worker)>>,
    turn: AtomicUsize,
}

/// QUIC connections that are remembered until the swarm asks for them, which it does when their handshake is over.
const REMEMBERED: usize = 1024;

impl Placement {
    pub(crate) fn new(exec: Executors) -> Self {
        let ids = exec.workers.iter().map(Handle::id).collect();
        Self { exec, ids, next: Mutex::new(None), quic: Mutex::default(), turn: AtomicUsize::new(0) }
    }

    /// The worker of a QUIC connection that is being made.
    pub(crate) fn place_quic(&self, remote: SocketAddr) -> Option<Worker> {
        if self.ids.is_empty() {
            return None;
        }
        let worker = self.turn.fetch_add(1, Ordering::Relaxed) % self.ids.len();
        let mut all = self.quic.lock().unwrap_or_else(PoisonError::into_inner);
        all.push_front((remote, worker));
        all.truncate(REMEMBERED);
        Some(worker)
    }

    /// The worker of the QUIC connection that was made last with this address.
    pub(crate) fn quic(&self, remote: SocketAddr) -> Option<Worker> {
        let all = self.quic.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|(r, _)| *r == remote).map(|(_, worker)| *worker)
    }

    /// The runtime of a worker, or the control runtime when there is none.
    pub(crate) fn handle(&self, worker: Option<Worker>) -> &Handle {
        worker.and_then(|w| self.exec.workers.get(w)).unwrap_or(&self.exec.control)
    }

    pub(crate) fn control(&self) -> &Handle {
        &self.exec.control
    }

    pub(crate) fn workers(&self) -> usize {
        self.ids.len()
    }

    /// The data worker that runs the caller.
    pub(crate) fn current(&self) -> Option<Worker> {
        if self.ids.is_empty() {
            return None;
        }
        let id = Handle::try_current().ok()?.id();
        self.ids.iter().position(|w| *w == id)
    }

    /// Says where the connection whose handler is being made shall run.
    pub(crate) fn place_next(&self, worker: Option<Worker>) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = worker;
    }

    /// Runs a task on a data worker, or on the control runtime when there is none.
    pub(crate) fn spawn_on(&self, worker: Option<Worker>, task: impl Future<Output = ()> + Send + 'static) {
        self.handle(worker).spawn(task);
    }

    pub(crate) fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let worker = self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.handle(worker).spawn(task);
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    #[test]
    fn quic_connections_take_turns_and_are_found_by_their_latest_address() {
        let runtimes: Vec<Runtime> = (0..3).map(|_| Builder::new_current_thread().build().unwrap()).collect();
        let handle = |i: usize| runtimes[i].handle().clone();
        let placement = Placement::new(Executors { control: handle(0), workers: vec![handle(1), handle(2)] });
        let at = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let placed: Vec<_> = (0..4).map(|i| placement.place_quic(at(i))).collect();
        assert_eq!(placed, [Some(0), Some(1), Some(0), Some(1)]);
        assert_eq!((placement.quic(at(1)), placement.quic(at(9))), (Some(1), None));
        assert_eq!(placement.place_quic(at(1)), Some(0));
        assert_eq!(placement.quic(at(1)), Some(0));
        for port in 100..5_000 {
            placement.place_quic(at(port));
        }
        assert_eq!(placement.quic(at(1)), None, "the list is bounded");
        assert_eq!(placement.handle(Some(1)).id(), runtimes[2].handle().id());
        assert_eq!(placement.handle(Some(7)).id(), runtimes[0].handle().id());
        let alone = Placement::new(Executors { control: handle(0), workers: Vec::new() });
        assert_eq!(alone.place_quic(at(1)), None);
    }
}
