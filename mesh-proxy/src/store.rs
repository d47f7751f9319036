//! The node's snapshot on disk: what the controller sent, byte for byte, so that a node boots without a network.
//!
//! One thread owns the database. A change is on the disk (WAL, synced) before it is acknowledged to the controller.
//! A database that cannot be read is set aside and refilled from the controller; a disk that cannot be written to
//! does not stop anything: changes are kept and tried again, and the metric says so.

mod database;

use std::{path::Path, sync::Arc, time::Duration};

use mesh_api::ResourceType;
use tokio::sync::{mpsc, oneshot};

pub use database::{Database, StoreError};

/// Changes that wait for the disk. The sender waits beyond that, which holds the acknowledgement back.
const QUEUE: usize = 64;
/// How often a failed write is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// One change to what is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Type of the resource.
    pub kind: ResourceType,
    /// Its name.
    pub name: String,
    /// Version and content; none = it is gone.
    pub value: Option<(String, Vec<u8>)>,
}

/// One stored resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its type.
    pub kind: ResourceType,
    /// Its name.
    pub name: String,
    /// Its version, as the controller gave it.
    pub version: String,
    /// Its content, byte for byte as it was written.
    pub value: Vec<u8>,
}

/// What was found at start.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Everything that could be read, in order of application.
    pub resources: Vec<Stored>,
    /// A full snapshot had been received when this was written.
    pub complete: bool,
}

/// What became of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// They are on the disk.
    Durable,
    /// They could not be written, and will be when that works again.
    Kept,
    /// The file was damaged and is empty now: everything has to be written again.
    Lost,
}

enum Command {
    Write(Vec<Write>, bool, oneshot::Sender<Written>),
    Close(oneshot::Sender<()>),
}

/// Handle on the thread that writes. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    commands: mpsc::Sender<Command>,
    metrics: Arc<StoreMetrics>,
}

/// What the store says about itself.
#[derive(Debug)]
pub struct StoreMetrics {
    degraded: prometheus::IntGauge,
    failures: prometheus::IntCounter,
    set_aside: prometheus::IntCounter,
}

impl StoreMetrics {
    fn new(registry: &prometheus::Registry) -> Result<Self, prometheus::Error> {
        let m = Self {
            degraded: prometheus::IntGauge::new(
                "selvage_store_degraded",
                "1 while changes could not be written to the disk; the node goes on from memory",
            )?,
            failures: prometheus::IntCounter::new("selvage_store_write_failures_total", "Failed writes")?,
            set_aside: prometheus::IntCounter::new(
                "selvage_store_set_aside_total",
                "Databases that could not be read and were set aside",
            )?,
        };
        registry.register(Box::new(m.degraded.clone()))?;
        registry.register(Box::new(m.failures.clone()))?;
        registry.register(Box::new(m.set_aside.clone()))?;
        Ok(m)
    }
}

impl Store {
    /// Opens the database of a state directory, or goes on without one, and starts its thread.
    pub fn open(
        state_dir: &Path,
        registry: &prometheus::Registry,
    ) -> Result<(Self, Loaded), prometheus::Error> {
        let metrics = Arc::new(StoreMetrics::new(registry)?);
        let path = state_dir.join("snapshot.db");
        let (database, loaded) = match Database::open_or_replace(&path) {
            Ok(opened) => {
                metrics.set_aside.inc_by(u64::from(opened.set_aside));
                (Some(opened.database), opened.loaded)
            }
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "no snapshot store: going on from memory");
                metrics.degraded.set(1);
                (None, Loaded::default())
            }
        };
        let (commands, queue) = mpsc::channel(QUEUE);
        let writer =
            Writer { path, database, pending: database::Pending::default(), metrics: metrics.clone() };
        let started = std::thread::Builder::new().name("store".to_owned()).spawn(move || writer.run(queue));
        if let Err(error) = started {
            tracing::error!(%error, "no thread for the snapshot store: going on from memory");
            metrics.degraded.set(1);
        }
        Ok((Self { commands, metrics }, loaded))
    }

    /// Writes changes; returns when they are on the disk, or cannot be. `complete` says that with them everything that
    /// the controller knows is stored.
    pub async fn write(&self, writes: Vec<Write>, complete: bool) -> Written {
        let (done, wait) = oneshot::channel();
        if self.commands.send(Command::Write(writes, complete, done)).await.is_err() {
            return Written::Kept;
        }
        wait.await.unwrap_or(Written::Kept)
    }

    /// Waits until everything sent so far has been tried and the file is closed. What is sent later is not written.
    pub async fn close(&self) {
        let (done, wait) = oneshot::channel();
        if self.commands.send(Command::Close(done)).await.is_ok() {
            let _ended = wait.await;
        }
    }

    /// Whether changes could not be written.
    pub fn is_degraded(&self) -> bool {
        self.metrics.degraded.get() != 0
    }
}

struct Writer {
    path: std::path::PathBuf,
    database: Option<Database>,
    /// What is not on the disk yet: later changes replace earlier ones, so it is as large as the mesh at most.
    pending: database::Pending,
    metrics: Arc<StoreMetrics>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        // A runtime of its own for the timer: the thread blocks on the disk, not on others.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let Ok(runtime) = runtime else {
            self.metrics.degraded.set(1);
            return;
        };
        loop {
            let next = runtime.block_on(async {
                if self.pending.is_empty() {
                    return Ok(queue.recv().await);
                }
                tokio::time::timeout(RETRY, queue.recv()).await
            });
            match next {
                Ok(None) => break,
                Ok(Some(Command::Write(writes, complete, done))) => {
                    self.pending.add(writes, complete);
                    let _caller_gone = done.send(self.write());
                }
                Ok(Some(Command::Close(done))) => {
                    self.write();
                    drop(self.database.take());
                    let _caller_gone = done.send(());
                    return;
                }
                Err(_) => {
                    self.write();
                }
            }
        }
        self.write();
    }

    fn write(&mut self) -> Written {
        if self.pending.is_empty() {
            return if self.metrics.degraded.get() == 0 { Written::Durable } else { Written::Kept };
        }
        if self.database.is_none() {
            self.database = Database::open_or_replace(&self.path).ok().map(|o| o.database);
        }
        let result = match &mut self.database {
            Some(db) => db.write(&self.pending),
            None => Err(StoreError::Unavailable),
        };
        let was_degraded = self.metrics.degraded.get() != 0;
        let Err(error) = result else {
            if was_degraded {
                tracing::info!("snapshot store works again");
            }
            self.metrics.degraded.set(0);
            self.pending.clear();
            return Written::Durable;
        };
        self.metrics.failures.inc();
        if error.is_corrupt() {
            tracing::error!(%error, "snapshot cannot be written");
            // Closed before it is renamed.
            self.database = None;
            self.metrics.set_aside.inc();
            if let Ok(new) = Database::replace(&self.path) {
                self.database = Some(new);
                // A part of the whole is of no use: whoever writes starts again.
                self.pending.clear();
                self.metrics.degraded.set(0);
                return Written::Lost;
            }
        } else if !was_degraded {
            tracing::error!(%error, "snapshot cannot be written: going on from memory, trying again");
        }
        self.metrics.degraded.set(1);
        Written::Kept
    }
}

#[cfg(test)]
mod tests;
