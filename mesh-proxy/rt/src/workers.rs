//! Data-plane threads: one current-thread runtime each, so that a connection never changes core.

use std::io;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::task::LocalSet;

use crate::{Drain, Reason};

/// The started threads.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
}

/// Starts `count` threads named `name-N`; thread N runs `make(N)` in a [`LocalSet`], so that it may
/// use `spawn_local`. The future is dropped when the drain cancels. A panic, or a return before the
/// drain has begun, begins the drain.
pub fn start_workers<F, Fut>(count: usize, name: &'static str, drain: &Drain, make: F) -> io::Result<Workers>
where
    F: Fn(usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let mut threads = Vec::with_capacity(count);
    for index in 0..count {
        let (drain, make) = (drain.clone(), make.clone());
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name(format!("{name}-{index}")).spawn(move || {
            let watch = Watch { name, drain: drain.clone() };
            let local = LocalSet::new();
            runtime.block_on(local.run_until(async move {
                tokio::select! {
                    () = make(index) => {}
                    () = drain.cancelled() => {}
                }
            }));
            // Connections live in the set: drop them inside the runtime's context.
            let _context = runtime.enter();
            drop(local);
            drop(watch);
        })?;
        threads.push(thread);
    }
    Ok(Workers { threads })
}

impl Workers {
    /// Waits for all threads to end and says how many did not in time. Blocks: call it after the
    /// drain, from main.
    pub fn join(self, within: Duration) -> usize {
        let deadline = Instant::now() + within;
        let mut stuck = 0;
        for thread in self.threads {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
            if thread.is_finished() {
                // The panic, if there was one, has begun the drain and is in the log.
                let _panicked = thread.join();
            } else {
                stuck += 1;
            }
        }
        stuck
    }
}

struct Watch {
    name: &'static str,
    drain: Drain,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(worker = self.name, "worker thread panicked");
            self.drain.begin(Reason::TaskPanicked(self.name));
        } else {
            // Does nothing after a drain has begun, which is the normal end.
            self.drain.begin(Reason::TaskEnded(self.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{DrainConfig, Readiness, Tasks};

    #[test]
    fn workers_run_local_tasks_until_the_drain_cancels_them() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let drain = Drain::new();
        let seen = Arc::new(AtomicUsize::new(0));
        let workers = {
            let (seen, drain2) = (Arc::clone(&seen), drain.clone());
            start_workers(2, "test", &drain, move |index| {
                let (seen, drain) = (Arc::clone(&seen), drain2.clone());
                async move {
                    let local = tokio::task::spawn_local(async move { index + 1 });
                    if seen.fetch_add(local.await.unwrap(), Ordering::SeqCst) > 0 {
                        drain.begin(Reason::Requested("both ran"));
                    }
                    std::future::pending::<()>().await;
                }
            })
            .unwrap()
        };
        let config = DrainConfig { drain_for: Duration::ZERO, ..DrainConfig::default() };
        let report = runtime.block_on(drain.run(config, &Readiness::new(), &Tasks::new(drain.clone())));
        assert_eq!(report.reason, Reason::Requested("both ran"));
        assert_eq!(workers.join(Duration::from_secs(10)), 0);
        assert_eq!(seen.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn a_panic_in_a_worker_begins_the_drain() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let drain = Drain::new();
        let workers = start_workers(1, "test", &drain, |_| async { panic!("broken") }).unwrap();
        assert_eq!(runtime.block_on(drain.begun()), Reason::TaskPanicked("test"));
        assert_eq!(workers.join(Duration::from_secs(10)), 0);
    }
}
