//! Hot restart: from the process before us, to the process after us.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use mesh_net::handover::{self, Inherited, Successor};
use node_rt::{Reason, Tasks};

use crate::capture::Capture;

/// How long the running process gets to hand its sockets over.
const WAIT: Duration = Duration::from_secs(5);
const SOCKET: &str = "handover.sock";
/// Why a process ends whose successor serves.
pub(super) const REPLACED: Reason = Reason::Requested("hot restart: another process serves");

/// The sockets of a process that runs with the same state directory, if there is one.
pub(super) fn take_over(state_dir: &Path) -> (Vec<Inherited>, Option<Successor>) {
    match handover::take(&state_dir.join(SOCKET), WAIT) {
        Ok(Some((sockets, successor))) => (sockets, Some(successor)),
        Ok(None) => (Vec::new(), None),
        Err(error) => {
            tracing::warn!(%error, "the process before us does not hand its listeners over");
            (Vec::new(), None)
        }
    }
}

/// Offers our sockets until the drain begins. Once a successor serves them, we drain.
pub(super) fn offer(
    state_dir: &Path,
    sockets: Vec<(String, OwnedFd)>,
    capture: Option<Capture>,
    tasks: &Tasks,
) {
    let (drain, path) = (tasks.drain().clone(), state_dir.join(SOCKET));
    tasks.spawn("handover", async move {
        let borrowed: Vec<_> = sockets.iter().map(|(n, fd)| (n.clone(), fd.as_fd())).collect();
        let result = tokio::select! {
            result = handover::serve(&path, &borrowed) => result,
            _ = drain.begun() => Err(std::io::ErrorKind::Interrupted.into()),
        };
        drop(borrowed);
        // Closed in any case: a socket that nobody accepts from would keep its callers waiting.
        drop(sockets);
        match result {
            Ok(()) => {
                if let Some(capture) = capture {
                    capture.keep();
                }
                drain.begin(REPLACED);
            }
            Err(error) if drain.has_begun() => tracing::debug!(%error, "hand-over ended"),
            Err(error) => tracing::warn!(%error, "no hot restart: cannot offer the listeners"),
        }
    });
}
