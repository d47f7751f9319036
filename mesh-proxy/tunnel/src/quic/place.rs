//! On which thread QUIC runs. A socket is read on the first data worker. A connection lives on one data worker, in turns,
//! and the swarm's own task of it joins it there, so that a stream and its connection share a thread.

use std::{cell::Cell, future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, time::Instant};

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};

use crate::exec::{Placement, Worker};

thread_local! {
    /// Where the connection that is being made on this thread shall run.
    static NEXT: Cell<Option<Worker>> = const { Cell::new(None) };
}

/// Makes a connection to or from `remote` on the next worker.
pub(super) fn placed<T>(placement: &Placement, remote: SocketAddr, make: impl FnOnce() -> T) -> T {
    NEXT.set(placement.place_quic(remote));
    let made = make();
    NEXT.set(None);
    made
}

/// quinn's tasks on our threads.
#[derive(Debug)]
pub(super) struct Home(pub(super) Arc<Placement>);

/// Reads the sockets.
const SOCKETS: Worker = 0;

impl Runtime for Home {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn_on(Some(NEXT.take().unwrap_or(SOCKETS)), task);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let _there = self.0.handle(Some(SOCKETS)).enter();
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}
