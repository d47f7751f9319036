//! Ready when every part that start-up waits for has said so, until the drain begins.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

#[derive(Default)]
struct State {
    /// Name of the part and how many of its guards are alive.
    pending: BTreeMap<&'static str, usize>,
    draining: bool,
}

struct Inner {
    state: Mutex<State>,
    ready: watch::Sender<bool>,
}

/// Collects what is not ready yet. Cheap to clone.
#[derive(Clone)]
pub struct Readiness {
    inner: Arc<Inner>,
}

/// Held by a part that is not ready; dropping it says "ready".
#[must_use = "dropping the guard says that the part is ready"]
pub struct ReadyGuard {
    name: &'static str,
    inner: Arc<Inner>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// Nothing pending: ready.
    pub fn new() -> Self {
        let (ready, _) = watch::channel(true);
        Self { inner: Arc::new(Inner { state: Mutex::new(State::default()), ready }) }
    }

    /// Says that `name` is needed for readiness; it is ready once the guard is dropped.
    pub fn wait_for(&self, name: &'static str) -> ReadyGuard {
        self.inner.change(|state| *state.pending.entry(name).or_default() += 1);
        ReadyGuard { name, inner: Arc::clone(&self.inner) }
    }

    /// Not ready from now on, whatever the parts say: the first stage of the drain.
    pub fn set_draining(&self) {
        self.inner.change(|state| state.draining = true);
    }

    /// Whether everything is ready.
    pub fn is_ready(&self) -> bool {
        *self.inner.ready.borrow()
    }

    /// Why it is not ready: names of pending parts, and `draining`.
    pub fn pending(&self) -> Vec<&'static str> {
        let state = self.inner.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<_> = state.pending.keys().copied().collect();
        if state.draining {
            names.push("draining");
        }
        names
    }

    /// Resolves once everything is ready.
    pub async fn ready(&self) {
        let mut changes = self.inner.ready.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _closed = changes.wait_for(|ready| *ready).await;
    }
}

impl Inner {
    fn change(&self, f: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut state);
        // Under the lock, so that two changes cannot publish in the wrong order.
        self.ready.send_replace(state.pending.is_empty() && !state.draining);
    }
}

impl ReadyGuard {
    /// Says "ready"; the same as dropping, but it reads better.
    pub fn ready(self) {}
}

impl Drop for ReadyGuard {
    fn drop(&mut self) {
        self.inner.change(|state| {
            if let Some(count) = state.pending.get_mut(self.name) {
                *count -= 1;
                if *count == 0 {
                    state.pending.remove(self.name);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_only_after_every_guard_is_dropped_and_never_while_draining() {
        let readiness = Readiness::new();
        let dns = readiness.wait_for("dns");
        let dns_tcp = readiness.wait_for("dns");
        let store = readiness.wait_for("store");
        assert_eq!(readiness.pending(), ["dns", "store"]);
        drop(dns);
        store.ready();
        assert!(!readiness.is_ready());
        assert_eq!(readiness.pending(), ["dns"]);
        drop(dns_tcp);
        readiness.ready().await;
        assert!(readiness.is_ready());
        readiness.set_draining();
        assert!(!readiness.is_ready());
        assert_eq!(readiness.pending(), ["draining"]);
    }
}
