//! The controller's own certificate, for nodes and for the API server: made by the CA, replaced long before it ends and when
//! the CAs change, with no restart and no connection lost.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use mesh_net::tls::{Credentials, NodeTls};

use crate::{
    config::Config,
    distribute::{Shared, agent},
    source::Health,
};

/// How often slow things are looked at.
const STEP: Duration = Duration::from_secs(1);

fn credentials(authority: &mesh_ca::Authority, config: &Config) -> anyhow::Result<Credentials> {
    let issued =
        authority.issue_controller(&config.certificate_names(), config.controller_ttl(), agent::now())?;
    Ok(Credentials { chain: issued.chain, key: issued.key.into(), roots: authority.trusted().to_vec() })
}

/// The certificate to begin with.
pub(super) fn tls(authority: &mesh_ca::Authority, config: &Config) -> anyhow::Result<NodeTls> {
    NodeTls::new(&config.trust_domain, credentials(authority, config)?)
        .context("the controller's own certificate")
}

/// Whether a third of the certificate's life is over. By the clock on the wall: a machine that slept has not renewed.
fn is_due(tls: &NodeTls) -> bool {
    let (from, to) = tls.validity();
    let left = to.duration_since(SystemTime::now()).unwrap_or_default();
    let life = to.duration_since(from + Duration::from_secs(mesh_ca::BACKDATE)).unwrap_or_default();
    left <= life * 2 / 3
}

/// Slow things: the own certificate, the registry in a directory, and gauges that are read rather than counted.
pub(super) fn keep_current(
    shared: Arc<Shared>,
    tls: NodeTls,
    config: Config,
    health: Health,
    shares_dir: bool,
) {
    let tasks = shared.tasks.clone();
    let mut cas = shared.issuer.authority.clone();
    let ca_expires = shared.metrics.ca_expires.clone();
    let tell = move |ends: u64| ca_expires.set(i64::try_from(ends).unwrap_or(i64::MAX));
    tell(cas.borrow_and_update().expires());
    tasks.spawn_critical("upkeep", async move {
        let mut errors = 0;
        let mut other_cas = false;
        loop {
            tokio::time::sleep(STEP).await;
            if shares_dir {
                share_registry(&shared).await;
            }
            shared.registry.found_gone().iter().for_each(|node| shared.left_elsewhere(node));
            shared.metrics.connected.set(shared.sessions.count() as i64);
            shared.metrics.nodes.set(shared.registry.len() as i64);
            let state = health.snapshot();
            shared.metrics.source_healthy.set(i64::from(state.problems.is_empty()));
            shared.metrics.source_errors.inc_by(state.errors - errors);
            errors = state.errors;
            if cas.has_changed().unwrap_or(false) {
                tell(cas.borrow_and_update().expires());
                other_cas = true;
            }
            if other_cas || is_due(&tls) {
                let new = credentials(&cas.borrow().clone(), &config);
                match new.and_then(|c| Ok(tls.replace(c)?)) {
                    Ok(()) => {
                        other_cas = false;
                        tracing::info!(until = ends(&tls), "own certificate renewed");
                    }
                    Err(error) => tracing::error!(error = format!("{error:#}"), "renew own certificate"),
                }
            }
            shared.metrics.certificate_expires.set(ends(&tls));
        }
    });
}

/// Seconds since 1970 at which the certificate ends.
fn ends(tls: &NodeTls) -> i64 {
    let end = tls.validity().1.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(end.as_secs()).unwrap_or(i64::MAX)
}

/// Nodes that joined, moved or were removed at another controller on the same state directory.
async fn share_registry(shared: &Shared) {
    let registry = shared.registry.clone();
    match tokio::task::spawn_blocking(move || registry.refresh()).await {
        Ok(Ok(removed)) => removed.iter().for_each(|node| shared.left_elsewhere(node)),
        Ok(Err(error)) => {
            tracing::warn!(error = %crate::chain(&error), "look at the node registry");
        }
        Err(_interrupted) => {}
    }
}
