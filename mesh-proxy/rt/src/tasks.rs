//! The only place that spawns: every task has a name, an owner and an end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::{Drain, Reason};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ordinary,
    Critical,
    /// Critical, and not dropped when the drain cancels.
    Last,
}

struct Inner {
    drain: Drain,
    tracker: TaskTracker,
    alive: Mutex<BTreeMap<&'static str, usize>>,
    spawned: AtomicU64,
    panicked: AtomicU64,
}

/// Counts of tasks since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TasksStats {
    /// Started so far.
    pub spawned: u64,
    /// Ended by a panic so far.
    pub panicked: u64,
    /// Alive now, by name.
    pub alive: BTreeMap<&'static str, usize>,
}

/// Owner of tasks. Cheap to clone; all clones share the same tasks.
#[derive(Clone)]
pub struct Tasks {
    inner: Arc<Inner>,
    /// Where to spawn; the current runtime when absent.
    handle: Option<Handle>,
}

impl Tasks {
    /// Tasks that are dropped when `drain` reaches its last stage.
    pub fn new(drain: Drain) -> Self {
        let inner = Inner {
            drain,
            tracker: TaskTracker::new(),
            alive: Mutex::default(),
            spawned: AtomicU64::new(0),
            panicked: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner), handle: None }
    }

    /// The same owner, spawning on another runtime.
    #[must_use]
    pub fn on(&self, handle: Handle) -> Self {
        Self { inner: Arc::clone(&self.inner), handle: Some(handle) }
    }

    /// The drain that ends these tasks.
    pub fn drain(&self) -> &Drain {
        &self.inner.drain
    }

    /// Runs `future` until it ends or the drain cancels it. A panic is logged and counted.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.start(name, Kind::Ordinary, future)
    }

    /// As [`Tasks::spawn`], but the process cannot live without it: a panic, or an end before the
    /// drain has begun, begins the drain.
    pub fn spawn_critical<F>(&self, name: &'static str, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.start(name, Kind::Critical, future)
    }

    /// As [`Tasks::spawn_critical`], but it is not dropped when the drain cancels: it has something
    /// to do then, and [`Tasks::join`] waits for it.
    pub fn spawn_last<F>(&self, name: &'static str, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.start(name, Kind::Last, future)
    }

    /// Counts so far, for metrics and the admin page.
    pub fn stats(&self) -> TasksStats {
        TasksStats {
            spawned: self.inner.spawned.load(Ordering::Relaxed),
            panicked: self.inner.panicked.load(Ordering::Relaxed),
            alive: self.inner.alive.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Waits for all tasks to end and returns the names of those that did not in time.
    pub async fn join(&self, within: Duration) -> Vec<&'static str> {
        self.inner.tracker.close();
        match tokio::time::timeout(within, self.inner.tracker.wait()).await {
            Ok(()) => Vec::new(),
            Err(_late) => self.stats().alive.into_keys().collect(),
        }
    }

    fn start<F>(&self, name: &'static str, kind: Kind, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let watch = Watch::new(name, kind, Arc::clone(&self.inner));
        let task = self.inner.tracker.track_future(async move {
            let mut watch = watch;
            tokio::select! {
                () = future => watch.ended = true,
                () = watch.inner.drain.cancelled(), if watch.kind != Kind::Last => {}
            }
        });
        match &self.handle {
            Some(handle) => handle.spawn(task),
            None => Handle::current().spawn(task),
        }
    }
}

/// Notices the end of a task, whichever way it ends.
struct Watch {
    name: &'static str,
    kind: Kind,
    ended: bool,
    inner: Arc<Inner>,
}

impl Watch {
    fn new(name: &'static str, kind: Kind, inner: Arc<Inner>) -> Self {
        inner.spawned.fetch_add(1, Ordering::Relaxed);
        *inner.alive.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        Self { name, kind, ended: false, inner }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        {
            let mut alive = self.inner.alive.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = alive.get_mut(self.name) {
                *count -= 1;
                if *count == 0 {
                    alive.remove(self.name);
                }
            }
        }
        // The future is dropped while the stack unwinds, so this tells a panic from a return.
        let panicked = std::thread::panicking();
        if panicked {
            self.inner.panicked.fetch_add(1, Ordering::Relaxed);
            tracing::error!(task = self.name, "task panicked");
        }
        if self.kind != Kind::Ordinary {
            if panicked {
                self.inner.drain.begin(Reason::TaskPanicked(self.name));
            } else if self.ended {
                self.inner.drain.begin(Reason::TaskEnded(self.name));
            }
        }
    }
}
