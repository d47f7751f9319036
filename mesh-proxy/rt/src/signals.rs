//! SIGTERM and SIGINT: the first asks for the drain, the second ends it.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

use crate::{Drain, Reason, Tasks};

/// Installs the handlers and starts the task that waits for signals.
pub fn handle_signals(tasks: &Tasks) -> io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let drain: Drain = tasks.drain().clone();
    tasks.spawn("signals", async move {
        // A drain that began for another reason, such as a hot restart, is not cut short by the first signal.
        let mut asked = false;
        loop {
            let name = tokio::select! {
                received = term.recv() => received.map(|()| "SIGTERM"),
                received = int.recv() => received.map(|()| "SIGINT"),
            };
            let Some(name) = name else { return };
            if std::mem::replace(&mut asked, true) {
                tracing::warn!(signal = name, "second request to stop: not waiting for connections");
                drain.force();
            } else {
                drain.begin(Reason::Signal(name));
            }
        }
    });
    Ok(())
}
