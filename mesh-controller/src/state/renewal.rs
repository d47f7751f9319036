//! The CA in force. What is due is done by whichever controller looks first; the others find it done at their next look.

use std::{sync::Arc, time::Duration};

use mesh_ca::{Authority, Lives, StateStore, Step, TrustDomain};
use node_rt::Tasks;
use tokio::sync::watch;

/// The CA as it is now, and word of each change.
pub(crate) type Cas = watch::Receiver<Arc<Authority>>;

/// The longest time between two looks.
const PERIOD: Duration = Duration::from_secs(10);
/// The shortest, where lives are short.
const SHORTEST: Duration = Duration::from_millis(500);

/// Looks until the drain, and tells of what has changed.
pub(crate) fn keep(
    store: Arc<dyn StateStore>,
    trust_domain: TrustDomain,
    lives: Lives,
    now: fn() -> u64,
    cas: watch::Sender<Arc<Authority>>,
    tasks: &Tasks,
) {
    let drain = tasks.drain().clone();
    let period = (lives.overlap / 20).clamp(SHORTEST, PERIOD);
    tasks.spawn_critical("CA", async move {
        let mut said = String::new();
        loop {
            tokio::select! {
                () = tokio::time::sleep(period) => {}
                () = drain.stop_accepting() => return,
            }
            let (store, trust_domain) = (store.clone(), trust_domain.clone());
            let look = move || store.authority(&trust_domain, &lives, now());
            let problem = match tokio::task::spawn_blocking(look).await {
                Ok(Ok((authority, steps))) => {
                    say(&steps);
                    let new = |old: &Authority| old.bundle_pem() != authority.bundle_pem();
                    if new(&cas.borrow()) {
                        cas.send_replace(Arc::new(authority));
                    }
                    String::new()
                }
                Ok(Err(error)) => crate::chain(&error),
                Err(_interrupted) => String::new(),
            };
            if !problem.is_empty() && problem != said {
                tracing::warn!(error = problem, "cannot look after the CA: the one in force stays");
            }
            said = problem;
        }
    });
}

/// For people, who will see this once in some years.
pub(super) fn say(steps: &[Step]) {
    for step in steps {
        match step {
            Step::Announced => {
                tracing::info!("there is a next CA: it is trusted from now on, and does not sign yet")
            }
            Step::Switched => {
                tracing::info!("the next CA signs; the former one is trusted until its last certificate ends")
            }
            Step::Left => tracing::info!("a former CA is not trusted any more"),
        }
    }
}
