//! The one way a process ends: not ready, stop accepting, drain until the deadline, cancel.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::{Readiness, Tasks};

/// Longest time that listeners accept because traffic is still led to them.
const HOLD: Duration = Duration::from_secs(5);

/// How far the end of the process has come. Later stages compare greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Normal work.
    Running,
    /// Readiness is withdrawn; everything is still served.
    NotReady,
    /// Listeners stop accepting; connections finish what they do.
    StopAccepting,
    /// The deadline is over or the operator insists: everything stops now.
    Cancelled,
}

/// Why the process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A signal, by name.
    Signal(&'static str),
    /// A task that the process cannot live without panicked.
    TaskPanicked(&'static str),
    /// A task that the process cannot live without ended by itself.
    TaskEnded(&'static str),
    /// Something in the process asked for it, for example a hot restart.
    Requested(&'static str),
}

impl Reason {
    /// What the process returns to its parent.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Signal(_) | Self::Requested(_) => 0,
            Self::TaskPanicked(_) | Self::TaskEnded(_) => 1,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(name) => write!(f, "signal {name}"),
            Self::TaskPanicked(name) => write!(f, "critical task {name} panicked"),
            Self::TaskEnded(name) => write!(f, "critical task {name} ended"),
            Self::Requested(what) => write!(f, "{what}"),
        }
    }
}

/// How long each stage may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainConfig {
    /// Between "not ready" and "stop accepting", so that balancers notice. Longer while somebody
    /// holds [`Drain::hold_accepting`], up to 5 s more.
    pub not_ready_for: Duration,
    /// Between "stop accepting" and "cancel"; less when everything has finished before.
    pub drain_for: Duration,
    /// After "cancel", for tasks to run their destructors.
    pub cancel_for: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self {
            not_ready_for: Duration::ZERO,
            drain_for: Duration::from_secs(30),
            cancel_for: Duration::from_secs(2),
        }
    }
}

/// How the end went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// Why the process ended.
    pub reason: Reason,
    /// Whether connections or tasks were cut off.
    pub cut_off: usize,
    /// Names of tasks that did not even end after "cancel".
    pub stuck: Vec<&'static str>,
}

struct Inner {
    stage: watch::Sender<Stage>,
    /// Set once; the first reason wins.
    asked: watch::Sender<Option<Reason>>,
    forced: watch::Sender<bool>,
    work: TaskTracker,
    /// What has to happen before listeners may stop.
    senders: TaskTracker,
    first: Mutex<bool>,
}

/// Shared handle on the end of the process. Cheap to clone.
#[derive(Clone)]
pub struct Drain {
    inner: Arc<Inner>,
}

/// Held by a connection or request that should finish before the process ends.
#[derive(Debug)]
pub struct DrainGuard {
    _token: TaskTrackerToken,
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// A process that runs normally.
    pub fn new() -> Self {
        let inner = Inner {
            stage: watch::channel(Stage::Running).0,
            asked: watch::channel(None).0,
            forced: watch::channel(false).0,
            work: TaskTracker::new(),
            senders: TaskTracker::new(),
            first: Mutex::new(true),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Asks the process to end. Only the first reason counts; later calls do nothing.
    pub fn begin(&self, reason: Reason) {
        let mut first = self.inner.first.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut *first) {
            tracing::info!(%reason, "shutting down");
            self.inner.asked.send_replace(Some(reason));
        }
    }

    /// Ends the drain at once: the second signal.
    pub fn force(&self) {
        self.begin(Reason::Requested("forced"));
        self.inner.forced.send_replace(true);
    }

    /// Where we are.
    pub fn stage(&self) -> Stage {
        *self.inner.stage.borrow()
    }

    /// Whether somebody asked for the end.
    pub fn has_begun(&self) -> bool {
        self.inner.asked.borrow().is_some()
    }

    /// Resolves when the end has been asked for, with the reason.
    pub async fn begun(&self) -> Reason {
        let mut asked = self.inner.asked.subscribe();
        match asked.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(Some(reason)) => reason,
            // The sender lives in `self`, so this branch is not reached.
            Ok(None) | Err(_) => Reason::Requested("the drain handle is gone"),
        }
    }

    /// Resolves when `stage` or a later one is reached.
    pub async fn reached(&self, stage: Stage) {
        let mut now = self.inner.stage.subscribe();
        let _closed = now.wait_for(|now| *now >= stage).await;
    }

    /// Resolves when listeners shall stop accepting.
    pub async fn stop_accepting(&self) {
        self.reached(Stage::StopAccepting).await;
    }

    /// Resolves when everything shall stop.
    pub async fn cancelled(&self) {
        self.reached(Stage::Cancelled).await;
    }

    /// Counts one piece of work that should finish before the process ends.
    pub fn guard(&self) -> DrainGuard {
        DrainGuard { _token: self.inner.work.token() }
    }

    /// Keeps listeners accepting after the end was asked for, until the guard is dropped: held by
    /// what leads traffic to them and has to take it away first.
    pub fn hold_accepting(&self) -> DrainGuard {
        DrainGuard { _token: self.inner.senders.token() }
    }

    /// Pieces of work in flight.
    pub fn in_flight(&self) -> usize {
        self.inner.work.len()
    }

    /// Waits until the end is asked for, then goes through the stages. Called once, by main.
    pub async fn run(&self, config: DrainConfig, readiness: &Readiness, tasks: &Tasks) -> DrainReport {
        let reason = self.begun().await;
        readiness.set_draining();
        self.enter(Stage::NotReady);
        self.inner.senders.close();
        self.unless_forced(async {
            tokio::time::sleep(config.not_ready_for).await;
            if tokio::time::timeout(HOLD, self.inner.senders.wait()).await.is_err() {
                tracing::warn!("traffic is still led to listeners that now stop");
            }
        })
        .await;

        self.enter(Stage::StopAccepting);
        self.inner.work.close();
        let finished = tokio::time::timeout(config.drain_for, self.inner.work.wait());
        self.unless_forced(async {
            let _late = finished.await;
        })
        .await;

        let cut_off = self.in_flight();
        self.enter(Stage::Cancelled);
        let stuck = tasks.join(config.cancel_for).await;
        tracing::info!(%reason, cut_off, ?stuck, "shut down");
        DrainReport { reason, cut_off, stuck }
    }

    fn enter(&self, stage: Stage) {
        tracing::debug!(?stage, in_flight = self.in_flight(), "drain");
        self.inner.stage.send_replace(stage);
    }

    async fn unless_forced(&self, wait: impl Future<Output = ()>) {
        let mut forced = self.inner.forced.subscribe();
        tokio::select! {
            () = wait => {}
            _ = forced.wait_for(|forced| *forced) => {}
        }
    }
}

#[cfg(test)]
mod tests;
