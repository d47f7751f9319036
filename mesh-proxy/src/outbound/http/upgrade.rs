//! WebSocket and other changes of protocol: after `101` the bytes of both sides pass as they are.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mesh_net::copy::{CopyOptions, Observe, copy_bidirectional};

use super::response::Tail;
use crate::telemetry::Flags;

/// Counts what passes into the request's record.
struct Counter<'a> {
    sent: std::cell::Cell<u64>,
    received: &'a std::cell::Cell<u64>,
}

impl Observe for Counter<'_> {
    fn a_to_b(&self, bytes: u64) {
        self.received.set(self.received.get() + bytes);
    }

    fn b_to_a(&self, bytes: u64) {
        self.sent.set(self.sent.get() + bytes);
    }
}

/// Passes bytes both ways until both sides have ended. Runs on after the `101` has gone to the client.
pub(crate) fn start(client: OnUpgrade, upstream: OnUpgrade, mut tail: Box<Tail>) {
    tokio::task::spawn_local(async move {
        let (client, upstream) = match tokio::try_join!(client, upstream) {
            Ok(both) => both,
            Err(e) => {
                tracing::debug!(error = &e as &dyn std::error::Error, "upgrade did not happen");
                return;
            }
        };
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        let idle = tail.state.cluster.policy.pool.tcp_idle_timeout;
        let options = CopyOptions { idle: (!idle.is_zero()).then_some(idle), ..CopyOptions::default() };
        let meter = std::rc::Rc::clone(&tail.record.received);
        let counter = Counter { sent: std::cell::Cell::new(0), received: &meter.bytes };
        let result = copy_bidirectional(&mut client, &mut upstream, options, &counter).await;
        tail.record.sent += counter.sent.get();
        tail.record.complete = true;
        if let Err(e) = result {
            tracing::debug!(error = &e as &dyn std::error::Error, "upgraded connection ended");
            tail.record.flags = tail.record.flags.with(Flags::UPSTREAM_CLOSED);
        }
    });
}
