//! The one writer: takes operations from the source and the registry, keeps the index, publishes what comes out.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use mesh_api::ResourceType;
use mesh_index::{CompileStats, Finding, Index, Kind, Level, ObjectKey, Options};
use node_rt::{ReadyGuard, Tasks};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::{distribute::store::Store, members::Members, metrics::Metrics, source::Op, status::Desk};

/// Rounds start at least this far apart: a change that comes alone is on its way at once, and those that follow it closely
/// are compiled together.
const BATCH_TIME: Duration = Duration::from_millis(10);
const BATCH_LIMIT: usize = 50_000;
/// Findings on the admin page; the metric counts all.
const SHOWN_FINDINGS: usize = 1000;
/// How often everything is compiled again, to find what an earlier change should have touched.
const FULL_CHECK: Duration = Duration::from_secs(600);

/// What the engine shows of itself.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Overview {
    /// Whether everything that exists has been read once.
    pub synced: bool,
    /// Objects held, by kind.
    pub objects: Vec<(&'static str, usize)>,
    /// Compiled resources, by type.
    pub resources: Vec<(&'static str, usize)>,
    /// What is wrong with objects.
    pub findings: Vec<Finding>,
    /// Services, endpoint sets, nodes and workload lists compiled since the start.
    pub compiled: [u64; 4],
    /// Resources that came out different since the start.
    pub changed: u64,
    /// Duration of the last round, in microseconds.
    pub last_round_us: u64,
}

/// What is shared with the admin pages.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedOverview(Arc<Mutex<Overview>>);

impl SharedOverview {
    pub(crate) fn get(&self) -> Overview {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, overview: Overview) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = overview;
    }
}

pub(crate) struct Engine {
    index: Index,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    overview: SharedOverview,
    desk: Desk,
    members: Members,
    counted: CompileStats,
    synced: bool,
    /// Given back when the source has delivered everything once.
    readiness: Option<ReadyGuard>,
}

impl Engine {
    pub(crate) fn new(
        options: Options,
        store: Arc<Store>,
        metrics: Arc<Metrics>,
        overview: SharedOverview,
        desk: Desk,
        readiness: ReadyGuard,
    ) -> Self {
        Self {
            index: Index::new(options),
            store,
            metrics,
            overview,
            desk,
            members: Members::default(),
            counted: CompileStats::default(),
            synced: false,
            readiness: Some(readiness),
        }
    }

    /// Tells who belongs to the cluster.
    pub(crate) fn with_members(mut self, members: Members) -> Self {
        self.members = members;
        self
    }

    /// Works until all senders are gone or the drain cancels.
    pub(crate) fn start(mut self, mut operations: mpsc::Receiver<Vec<Op>>, tasks: &Tasks) {
        tasks.spawn_critical("engine", async move {
            let mut checked = Instant::now();
            let mut next = tokio::time::Instant::now();
            loop {
                let left = FULL_CHECK.saturating_sub(checked.elapsed());
                // Only the wait may be given up: what was received is not lost.
                match tokio::time::timeout(left, operations.recv()).await {
                    Ok(Some(first)) => {
                        self.round(batch(first, &mut operations, next).await);
                        next = tokio::time::Instant::now() + BATCH_TIME;
                    }
                    Ok(None) => return,
                    Err(_) => {}
                }
                if checked.elapsed() >= FULL_CHECK {
                    self.check_everything();
                    checked = Instant::now();
                }
            }
        });
    }

    fn round(&mut self, batch: Vec<Op>) {
        let started = Instant::now();
        let synced_before = self.synced;
        for op in batch {
            self.take(op);
        }
        if !self.synced {
            // Half a mesh is worse than the one that proxies have in their stores.
            return;
        }
        let changes = self.index.compile();
        let published = changes.len();
        self.store.publish(changes);
        self.desk.round(self.index.findings());
        if let Some(statuses) = self.index.gateway_api_statuses(&crate::status::now()) {
            self.desk.statuses(statuses.into_iter().map(|(id, status)| (id.into(), status)));
        }
        let elapsed = started.elapsed();
        self.metrics.compile_seconds.observe(elapsed.as_secs_f64());
        self.count(elapsed);
        if !synced_before {
            tracing::info!(resources = published, ?elapsed, "source is synced, serving");
        }
        if let Some(guard) = self.readiness.take() {
            guard.ready();
        }
    }

    /// Proxies must not live with a missed change until somebody restarts the controller.
    fn check_everything(&mut self) {
        if !self.synced {
            return;
        }
        self.index.touch_all();
        let missed = self.index.compile();
        if !missed.is_empty() {
            let names: Vec<_> =
                missed.iter().take(10).map(|c| format!("{} {}", c.kind.as_str(), c.name)).collect();
            tracing::error!(
                count = missed.len(),
                ?names,
                "a full compile came to something else; published now"
            );
            self.metrics.missed_changes.inc_by(missed.len() as u64);
            self.store.publish(missed);
        }
    }

    fn take(&mut self, op: Op) {
        match op {
            Op::Apply(object) => {
                let key = ObjectKey::of(&object);
                let before = key.as_ref().map(|k| self.findings_of(k)).unwrap_or_default();
                self.index.apply(&object);
                if let Some(key) = key {
                    self.members.applied(&key);
                    self.log_findings(&key, &before);
                    if Desk::wants(&key) {
                        self.desk.applied(&key, object);
                    }
                }
            }
            Op::Delete(key) => {
                self.forget(&key);
            }
            Op::Retain(kind, keys) => self.retain(kind, &keys),
            Op::Register(node, registration) => self.index.register(&node, registration),
            Op::Synced => {
                self.synced = true;
                self.members.synced();
            }
        }
    }

    fn retain(&mut self, kind: Kind, keys: &HashSet<ObjectKey>) {
        for gone in self.index.keys(kind).into_iter().filter(|k| !keys.contains(k)) {
            self.forget(&gone);
        }
    }

    fn forget(&mut self, key: &ObjectKey) {
        self.index.delete(key);
        self.desk.deleted(key);
        self.members.deleted(key);
    }

    fn findings_of(&self, key: &ObjectKey) -> Vec<Finding> {
        self.index.findings_of(key).to_vec()
    }

    fn log_findings(&self, key: &ObjectKey, before: &[Finding]) {
        for finding in self.index.findings_of(key).iter().filter(|f| !before.contains(f)) {
            let Finding { object, path, message, .. } = finding;
            match finding.level {
                Level::Error => {
                    tracing::warn!(%object, path, message, "object refused, the last good one stays")
                }
                Level::Warning => tracing::warn!(%object, path, message, "part of an object has no effect"),
            }
        }
    }

    fn count(&mut self, elapsed: Duration) {
        let stats = self.index.stats();
        let metrics = &self.metrics;
        let rounds = [
            (ResourceType::Service, stats.services, self.counted.services),
            (ResourceType::Endpoints, stats.endpoints, self.counted.endpoints),
            (ResourceType::Node, stats.nodes, self.counted.nodes),
            (ResourceType::NodeWorkloads, stats.workloads, self.counted.workloads),
        ];
        for (kind, now, before) in rounds {
            metrics.compiled.with_label_values(&[kind.as_str()]).inc_by(now - before);
        }
        self.counted = stats;
        let objects: Vec<_> = self.index.object_counts().into_iter().map(|(k, n)| (k.label(), n)).collect();
        for (kind, count) in &objects {
            metrics.objects.with_label_values(&[kind]).set(*count as i64);
        }
        let view = self.store.read();
        let resources: Vec<_> = ResourceType::ALL.map(|k| (k.as_str(), view.all(k).len())).to_vec();
        for (kind, count) in &resources {
            metrics.resources.with_label_values(&[kind]).set(*count as i64);
        }
        metrics.generation.set(view.generation() as i64);
        drop(view);
        let findings: Vec<_> = self.index.findings().take(SHOWN_FINDINGS).cloned().collect();
        for level in [Level::Error, Level::Warning] {
            let label = if level == Level::Error { "error" } else { "warning" };
            let count = self.index.findings().filter(|f| f.level == level).count();
            metrics.findings.with_label_values(&[label]).set(count as i64);
        }
        self.overview.set(Overview {
            synced: self.synced,
            objects,
            resources,
            findings,
            compiled: [stats.services, stats.endpoints, stats.nodes, stats.workloads],
            changed: stats.changed,
            last_round_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
        });
    }
}

/// Adds to the first operations those that come until `next`, when the next round may start.
async fn batch(
    first: Vec<Op>,
    operations: &mut mpsc::Receiver<Vec<Op>>,
    next: tokio::time::Instant,
) -> Vec<Op> {
    let mut batch = first;
    // Past its deadline this still takes what is there already.
    while batch.len() < BATCH_LIMIT
        && let Ok(Some(more)) = tokio::time::timeout_at(next, operations.recv()).await
    {
        batch.extend(more);
    }
    batch
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_that_comes_alone_waits_for_nothing() {
        let (sender, mut operations) = mpsc::channel(8);
        let began = Instant::now();
        sender.send(vec![Op::Synced]).await.unwrap();
        let all = batch(vec![Op::Synced], &mut operations, began).await;
        assert_eq!((all.len(), began.elapsed()), (2, Duration::ZERO), "what is there already goes with it");
    }

    #[tokio::test(start_paused = true)]
    async fn changes_that_follow_closely_are_compiled_together() {
        let (sender, mut operations) = mpsc::channel(8);
        let began = Instant::now();
        let sending = async move {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_millis(4)).await;
                sender.send(vec![Op::Synced]).await.unwrap();
            }
        };
        let (all, ()) = tokio::join!(batch(vec![Op::Synced], &mut operations, began + BATCH_TIME), sending);
        assert_eq!(
            (all.len(), began.elapsed()),
            (3, Duration::from_millis(12)),
            "those of 4 and 8 ms; the next round takes the third"
        );
    }
}
