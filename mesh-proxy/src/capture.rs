//! Captures connections to services: one nftables table, one set of addresses of services for each
//! family, one redirect rule over it. Follows the tables, and repairs what others break.
//!
//! Our own sockets carry a mark that the rules let pass.

mod link;
mod nft;
mod route;
mod rules;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_net::nfwatch::{NftChange, NftWatch};
use mesh_net::rulewatch::RuleWatch;
use node_rt::{Stage, Tasks};
use prometheus::{IntCounter, IntGauge, Registry};
use tokio::sync::watch;

use crate::shared::{Shared, Updates};

use nft::Nft;
use route::Routes;
use rules::{Rules, Vips};

pub use link::{LinkAddress, LinkError, ensure_address};
pub use nft::NftError;

/// Changes that arrive within this time become one transaction.
const GATHER: Duration = Duration::from_millis(20);
/// Least time between two looks at the ruleset, however often others change it.
const LOOK: Duration = Duration::from_millis(250);
/// Time between looks when the kernel does not tell of changes.
const LOOK_BLIND: Duration = Duration::from_secs(1);
/// Between the end of the last connection and the end of the rules.
const LAST_PACKETS: Duration = Duration::from_millis(200);
/// Pause after a failure, doubled up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What is captured and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureOptions {
    /// The `nft` program.
    pub nft: PathBuf,
    /// Name of the table, for more than one proxy in a network namespace.
    pub table: String,
    /// Port of the outbound listener for IPv4; none = not captured.
    pub port_v4: Option<u16>,
    /// Port of the outbound listener for IPv6; none = not captured.
    pub port_v6: Option<u16>,
    /// Port of the listener for datagrams of IPv4; none = not captured.
    pub udp_v4: Option<u16>,
    /// Port of the listener for datagrams of IPv6; none = not captured.
    pub udp_v6: Option<u16>,
    /// Mark of our own sockets.
    pub mark: u32,
    /// Send all DNS queries of pods here, whatever their resolver is.
    pub pod_dns: Option<SocketAddr>,
    /// Addresses that are not captured, whoever has them: the name servers that we ask ourselves. What the node's own
    /// programs ask them, the controller's name before all, must not depend on what the mesh remembers.
    pub spared: Vec<IpAddr>,
}

impl CaptureOptions {
    /// For a listener at `outbound`; the family of its address is captured.
    pub fn new(outbound: SocketAddr) -> Self {
        Self {
            nft: PathBuf::from("nft"),
            table: "selvage".to_owned(),
            port_v4: outbound.is_ipv4().then_some(outbound.port()),
            port_v6: outbound.is_ipv6().then_some(outbound.port()),
            udp_v4: None,
            udp_v6: None,
            mark: mesh_net::connect::DEFAULT_MARK,
            pod_dns: None,
            spared: Vec::new(),
        }
    }
}

/// Why nothing is captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The first rules could not be written.
    #[error(
        "cannot capture traffic; without it, applications use the HTTP CONNECT or SOCKS5 proxy, and \
         capture.enabled: false says that this is meant"
    )]
    Rules(#[source] NftError),
    /// A metric is registered twice.
    #[error("cannot register the capture metrics")]
    Metrics(#[source] prometheus::Error),
}

#[derive(Clone)]
struct Metrics {
    vips: IntGauge,
    applied: IntCounter,
    failed: IntCounter,
    repaired: IntCounter,
}

impl Metrics {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let vips = IntGauge::new("selvage_capture_addresses", "Addresses of services that are captured.")?;
        registry.register(Box::new(vips.clone()))?;
        Ok(Self {
            vips,
            applied: counter("selvage_capture_applied_total", "Transactions written to nftables.")?,
            failed: counter("selvage_capture_failed_total", "Transactions that nftables refused.")?,
            repaired: counter("selvage_capture_repaired_total", "Times that others had changed our rules.")?,
        })
    }
}

/// The running capture.
#[derive(Debug, Clone)]
pub struct Capture {
    keep: Arc<AtomicBool>,
    done: watch::Receiver<bool>,
}

impl Capture {
    /// Leaves the rules in place at the end: a successor has taken over.
    pub fn keep(&self) {
        self.keep.store(true, Ordering::Relaxed);
    }

    /// Resolves when nothing new is captured (or the rules are kept) after the drain has begun.
    pub async fn removed(&mut self) {
        let _ended = self.done.wait_for(|done| *done).await;
    }
}

/// Whether rules can be written at all; changes nothing.
pub async fn probe(nft: &Path) -> Result<(), CaptureError> {
    Nft::new(nft.to_owned()).probe().await.map_err(CaptureError::Rules)
}

/// Writes the rules for the addresses known now, then follows [`Shared::updates`] until the drain
/// begins, and removes the rules.
pub async fn start(
    shared: &Arc<Shared>,
    options: CaptureOptions,
    tasks: &Tasks,
) -> Result<Capture, CaptureError> {
    let metrics = Metrics::register(&shared.metrics).map_err(CaptureError::Metrics)?;
    // Both before the first look, so that no change falls between.
    let updates = shared.updates();
    let watch = NftWatch::open()
        .inspect_err(
            |error| tracing::warn!(%error, "the kernel does not tell of changed rules; looking every second"),
        )
        .ok();
    let routes = RuleWatch::open().ok();
    let keep = Arc::new(AtomicBool::new(false));
    let mut worker = Worker {
        nft: Nft::new(options.nft.clone()),
        routes: Routes::new(&options),
        rules: Rules::new(options),
        shared: Arc::clone(shared),
        metrics,
        applied: Vips::default(),
        version: 0,
        intact: String::new(),
        keep: Arc::clone(&keep),
        written: false,
    };
    worker.write_all().await.map_err(CaptureError::Rules)?;
    let (tell, done) = watch::channel(false);
    let drain = tasks.drain().clone();
    // The listener accepts until nothing new is captured.
    let hold = drain.hold_accepting();
    tasks.spawn_last("capture", async move {
        tokio::select! {
            () = worker.follow(updates, (watch, routes)) => {}
            () = drain.reached(Stage::NotReady) => {}
        }
        worker.release().await;
        tell.send_replace(true);
        drop(hold);
        drain.cancelled().await;
        // Connections that are cut off now have their last packets translated too.
        tokio::time::sleep(LAST_PACKETS).await;
        worker.remove().await;
    });
    Ok(Capture { keep, done })
}

struct Worker {
    nft: Nft,
    rules: Rules,
    routes: Routes,
    shared: Arc<Shared>,
    metrics: Metrics,
    /// What the sets hold, as far as we know.
    applied: Vips,
    /// Which version of the addresses that is.
    version: u64,
    /// How chains and rules look when nobody has touched them.
    intact: String,
    keep: Arc<AtomicBool>,
    /// Our rules are in the kernel.
    written: bool,
}

enum Wake {
    Tables,
    Others,
    Routes,
}

impl Worker {
    /// Never returns; a failure is retried.
    async fn follow(
        &mut self,
        mut updates: watch::Receiver<Updates>,
        watches: (Option<NftWatch>, Option<RuleWatch>),
    ) {
        let (mut watch, mut routes) = watches;
        let mut pause = RETRY.0;
        loop {
            let wake = tokio::select! {
                changed = updates.changed() => match changed {
                    Ok(()) => Wake::Tables,
                    // The sender is in `shared`, which we hold.
                    Err(_) => return,
                },
                () = others(&mut watch, &self.nft) => Wake::Others,
                () = rules_changed(&mut routes) => Wake::Routes,
            };
            let result = match wake {
                Wake::Tables => {
                    tokio::time::sleep(GATHER).await;
                    let same = updates.borrow_and_update().vips == self.version;
                    if same && self.own_pods(Vips::default()).same_pods(&self.applied) {
                        continue;
                    }
                    self.write_changes().await
                }
                Wake::Others => {
                    let result = self.repair().await.map(drop);
                    tokio::time::sleep(LOOK).await;
                    result
                }
                Wake::Routes => {
                    let result = self.repair_routes().await;
                    tokio::time::sleep(LOOK).await;
                    result
                }
            };
            match result {
                Ok(()) => pause = RETRY.0,
                Err(error) => {
                    self.retry(error, &mut pause).await;
                }
            }
        }
    }

    /// Writes everything anew until it works.
    async fn retry(&mut self, first: NftError, pause: &mut Duration) {
        let mut error = first;
        // Names must not wait for rules that cannot be written.
        self.shared.set_captured(None);
        loop {
            self.metrics.failed.inc();
            tracing::error!(error = %report(&error), "capture rules");
            tokio::time::sleep(*pause).await;
            *pause = (*pause * 2).min(RETRY.1);
            match self.write_all().await {
                Ok(()) => return,
                Err(again) => error = again,
            }
        }
    }

    fn wanted(&self) -> Vips {
        let tables = self.shared.tables.load();
        self.own_pods(Vips::of(tables.vips(), tables.udp_vips(), &self.rules.options))
    }

    /// With the pods of this node, if they matter; those in the node's own network have its address.
    fn own_pods(&self, vips: Vips) -> Vips {
        if self.rules.options.pod_dns.is_none() {
            return vips;
        }
        let tables = self.shared.tables.load();
        let pods = tables.workloads_of(&self.shared.node).map(|w| w.address);
        vips.with_pods(pods, &self.rules.options)
    }

    /// Replaces the table in one transaction.
    async fn write_all(&mut self) -> Result<(), NftError> {
        let version = self.shared.vips();
        let wanted = self.wanted();
        self.routes.ensure().await?;
        self.nft.run(&self.rules.full(&wanted)).await?;
        self.written = true;
        self.applied(wanted);
        self.follows(version);
        self.intact = match self.structure().await {
            Ok((structure, _)) => structure,
            // Removed again since we wrote it, which is no failure of ours: the notice of that leads to the next repair,
            // and nothing equals this until then.
            Err(NftError::Refused { .. }) => String::new(),
            Err(error) => return Err(error),
        };
        Ok(())
    }

    /// Adds and deletes what has changed, in one transaction.
    async fn write_changes(&mut self) -> Result<(), NftError> {
        let version = self.shared.vips();
        let wanted = self.wanted();
        if let Some(script) = self.rules.changes(&self.applied, &wanted) {
            match self.nft.run(&script).await {
                Ok(_) => self.applied(wanted),
                // What it changes is gone when others have removed it; then all is written, and this is no failure.
                Err(error @ NftError::Refused { .. }) => {
                    return if self.repair().await? { Ok(()) } else { Err(error) };
                }
                Err(error) => return Err(error),
            }
        }
        self.follows(version);
        Ok(())
    }

    /// The rules hold that version of the addresses, or a later one.
    fn follows(&mut self, version: u64) {
        self.version = version;
        self.shared.set_captured(Some(version));
    }

    fn applied(&mut self, now: Vips) {
        self.metrics.applied.inc();
        self.metrics.vips.set(now.len() as i64);
        self.applied = now;
    }

    /// Looks whether the table is still as we wrote it, and writes it again when not. Gives whether it did.
    async fn repair(&mut self) -> Result<bool, NftError> {
        match self.structure().await {
            Ok((structure, vips)) if structure == self.intact && vips == self.applied => Ok(false),
            // Gone, or changed.
            Ok(_) | Err(NftError::Refused { .. }) => {
                self.metrics.repaired.inc();
                tracing::warn!(
                    table = self.rules.options.table,
                    "others have changed our rules; writing them again"
                );
                self.write_all().await?;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Adds routing rules that others have removed.
    async fn repair_routes(&self) -> Result<(), NftError> {
        if self.routes.intact().await? {
            return Ok(());
        }
        self.metrics.repaired.inc();
        tracing::warn!("others have removed our routing rules; adding them again");
        self.routes.ensure().await
    }

    async fn structure(&self) -> Result<(String, Vips), NftError> {
        let json = self.nft.list(&self.rules.options.table).await?;
        rules::read(&json).ok_or(NftError::Output)
    }

    /// Captures nothing new. Rules that match nothing stay: without any NAT rule in the namespace the kernel stops
    /// translating the packets of connections that are captured already, and they must be able to finish.
    async fn release(&self) {
        self.shared.set_captured(None);
        if !self.keep.load(Ordering::Relaxed)
            && let Err(error) = self.nft.run(&self.rules.release()).await
        {
            tracing::error!(error = %report(&error), "cannot empty the capture rules");
        }
    }

    async fn remove(&mut self) {
        if self.keep.load(Ordering::Relaxed) {
            self.written = false;
            return;
        }
        match self.nft.run(&self.rules.removal()).await {
            Ok(()) => {
                self.written = false;
                self.routes.remove().await;
                tracing::debug!("capture rules removed");
            }
            Err(error) => tracing::error!(error = %report(&error), "cannot remove the capture rules"),
        }
    }
}

impl Drop for Worker {
    /// The last resort when the drain was cut short or something panicked: rules that lead to a
    /// listener that is gone cut every service off.
    fn drop(&mut self) {
        if self.written && !self.keep.load(Ordering::Relaxed) {
            self.nft.run_blocking(&self.rules.removal());
            self.routes.remove_blocking();
        }
    }
}

/// Resolves when somebody has changed routing rules.
async fn rules_changed(watch: &mut Option<RuleWatch>) {
    if let Some(open) = watch {
        match open.changed().await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "the kernel no longer tells of changed routing rules"),
        }
        *watch = None;
    }
    std::future::pending().await
}

/// Resolves when somebody else has changed rules.
async fn others(watch: &mut Option<NftWatch>, nft: &Nft) {
    let Some(open) = watch else { return tokio::time::sleep(LOOK_BLIND).await };
    loop {
        match open.changed().await {
            Ok(changes) => {
                let ours = |change: &NftChange| matches!(change, NftChange::By(process) if nft.ran(*process));
                if !changes.iter().all(ours) {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the kernel no longer tells of changed rules; looking every second");
                *watch = None;
                return;
            }
        }
    }
}

/// An error with its causes, in one line.
fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Whether an address may be captured: a mistake in the tables must not cut the node off.
fn may_capture(ip: IpAddr) -> bool {
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

#[cfg(test)]
mod tests;
