//! A cluster as one worker runs it: its endpoints' state, its balancer, and the limits it shares with other workers.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_core::{
    Cluster, Place as Here, WorkloadEntry,
    balance::{Balancer, EndpointId, Pick},
    budget::RetryBudget,
    outlier::Exchange,
    policy::RetryBudgetPolicy,
};

use super::{endpoint::Endpoint, prologue::Prologue, worker::WorkerState};
use crate::telemetry::local::Held;

/// A cluster as one worker runs it.
pub(crate) struct ClusterState {
    pub(crate) cluster: Rc<Held<Cluster>>,
    /// The workloads of the endpoints, in their order.
    pub(crate) workloads: Box<[Rc<Held<WorkloadEntry>>]>,
    /// In the order of the cluster's endpoints.
    pub(crate) endpoints: Box<[Rc<Endpoint>]>,
    /// Outlives this state when only the endpoints change.
    balancer: Rc<RefCell<Balancer>>,
    pub(crate) limits: Arc<Limits>,
    /// The same for all workers.
    budget: Arc<RetryBudget>,
    /// What a connection to an endpoint begins with; none = the first byte is the client's.
    pub(crate) prologue: Option<Rc<Prologue>>,
    /// Who waits for a connection in this worker.
    waiting: Cell<u32>,
}

/// What a request says about its endpoint.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Choice {
    /// Key of consistent hashing.
    pub(crate) hash: Option<u64>,
    /// Prefer localities that were not tried.
    pub(crate) remote: bool,
}

/// Endpoints that a call has tried.
pub(crate) type Tried = Vec<EndpointId>;

impl ClusterState {
    /// The state for a cluster; connections to endpoints that were there before are kept.
    pub(crate) fn new(
        cluster: &Arc<Cluster>,
        old: Option<&Self>,
        limits: Arc<Limits>,
        here: &Arc<Here>,
    ) -> Self {
        let known: HashMap<_, _> = old
            .into_iter()
            .flat_map(|o| o.endpoints.iter())
            .map(|e| ((e.addr, e.node.clone()), Rc::clone(e)))
            .collect();
        let endpoints: Box<[_]> = cluster
            .endpoints
            .iter()
            .map(|e| match known.get(&(e.addr, e.node().cloned())) {
                Some(kept) => Rc::clone(kept),
                None => Rc::new(Endpoint::new(e.addr, e.node().cloned())),
            })
            .collect();
        for gone in old.into_iter().flat_map(|o| o.endpoints.iter()) {
            if !endpoints.iter().any(|e| Rc::ptr_eq(e, gone)) {
                gone.close_idle();
            }
        }
        let balancer = old.map_or_else(
            || Rc::new(RefCell::new(Balancer::at(Arc::clone(here)))),
            |o| Rc::clone(&o.balancer),
        );
        let budget = limits.budget(cluster.policy.retry_budget);
        let workloads = cluster.endpoints.iter().map(|e| Held::new(&e.endpoint.workload)).collect();
        let prologue = Prologue::of(&cluster.policy);
        let cluster = Held::new(cluster);
        Self { cluster, workloads, endpoints, balancer, limits, budget, prologue, waiting: Cell::new(0) }
    }

    /// The node is at another place.
    pub(crate) fn moved(&self, here: &Arc<Here>) {
        self.balancer.borrow_mut().moved(here);
    }

    /// The endpoint for the next try. Those in `tried` come again only if `again` allows it and nothing else is left.
    pub(crate) fn pick(&self, worker: &WorkerState, tried: &Tried, again: bool) -> Option<usize> {
        self.pick_for(worker, Choice::default(), tried, again)
    }

    /// The same for a request that says something about its endpoint.
    pub(crate) fn pick_for(
        &self,
        worker: &WorkerState,
        choice: Choice,
        tried: &Tried,
        again: bool,
    ) -> Option<usize> {
        let load = |i: usize| self.endpoints[i].load();
        let mut balancer = self.balancer.borrow_mut();
        let mut pick = |exclude: &[EndpointId]| {
            let Choice { hash, remote } = choice;
            let how = Pick { exclude, load: &load, now: Instant::now(), hash, remote };
            balancer.pick(&self.cluster, &how, &mut worker.dice())
        };
        match pick(tried) {
            None if again && !tried.is_empty() => pick(&[]),
            picked => picked,
        }
    }

    /// The position of one of the endpoints.
    pub(crate) fn position(&self, endpoint: EndpointId) -> Option<usize> {
        self.endpoints.iter().position(|e| e.id == endpoint)
    }

    /// A connection came about.
    pub(crate) fn connected(&self, endpoint: EndpointId) {
        self.balancer.borrow_mut().on_connected(endpoint);
        self.limits.unwell.clear(endpoint);
    }

    /// A connection attempt failed, or stayed without an answer while another endpoint's came.
    pub(crate) fn connect_failed(&self, endpoint: EndpointId) {
        let now = Instant::now();
        self.balancer.borrow_mut().on_connect_failure(endpoint, now);
        self.note(endpoint, now);
    }

    /// Tells those who ask how the endpoint is, after something went wrong with it.
    fn note(&self, endpoint: EndpointId, now: Instant) {
        if let Some(until) = self.balancer.borrow().unwell_until(endpoint, now) {
            self.limits.unwell.set(endpoint, until);
        }
    }

    /// An exchange with the endpoint ended.
    pub(crate) fn exchanged(&self, endpoint: EndpointId, exchange: Exchange) {
        if self.cluster.policy.outlier.is_some() {
            self.judged(endpoint, exchange);
        }
    }

    fn judged(&self, endpoint: EndpointId, exchange: Exchange) {
        let now = Instant::now();
        self.balancer.borrow_mut().on_exchange(endpoint, exchange, now);
        if exchange != Exchange::Ok {
            self.note(endpoint, now);
        }
    }

    /// The endpoint answered with a status.
    pub(crate) fn answered(&self, endpoint: EndpointId, status: u16) {
        if let Some(outlier) = &self.cluster.policy.outlier {
            self.judged(endpoint, outlier.exchange(status));
        }
    }

    /// Counts a request for the retry budget.
    pub(crate) fn on_request(&self, now: Instant) {
        self.budget.on_request(now);
    }

    /// Takes a retry out of the budget.
    pub(crate) fn may_retry(&self) -> bool {
        self.budget.try_retry(Instant::now())
    }

    /// A place for one more connection, or what `pooled` finds meanwhile. Waits for as long as connecting may take, if
    /// so many may wait.
    pub(crate) async fn place<T>(&self, pooled: impl Fn() -> Option<T>) -> Result<Place<T>, Full> {
        let pool = &self.cluster.policy.pool;
        if pool.max_connections.is_none() {
            return Ok(Place::New(None));
        }
        let late = tokio::time::sleep(pool.connect_timeout);
        tokio::pin!(late);
        let mut queued = None;
        loop {
            // Listens before it looks, so that nothing is missed between the two.
            let freed = self.limits.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Ok(permit) = self.limits.take(Limit::Connections, pool.max_connections) {
                return Ok(Place::New(permit));
            }
            if let Some(found) = pooled() {
                return Ok(Place::Pooled(found));
            }
            if queued.is_none() {
                let permit = self.limits.take(Limit::Pending, pool.max_pending_requests)?;
                queued = Some((permit, Waiting::new(self)));
            }
            // An idle connection to another endpoint takes the place that this one needs.
            let _closed = self.endpoints.iter().any(|e| e.close_one_idle());
            tokio::select! {
                () = &mut freed => {}
                () = &mut late => return Err(Full),
            }
        }
    }

    /// An exchange is over: whether its connection may stay open. Not if it takes the place that another worker waits
    /// for, as nobody there can use it.
    pub(crate) fn keeps_connection(&self) -> bool {
        self.waiting.get() > 0 || self.limits.waiting.load(Ordering::Relaxed) == 0
    }

    /// Tells those who wait that a connection became idle.
    pub(crate) fn connection_idle(&self) {
        if self.cluster.policy.pool.max_connections.is_some() {
            self.limits.freed.notify_waiters();
        }
    }

    /// Closes what has been idle for too long.
    pub(crate) fn sweep(&self, now: Instant) {
        self.endpoints.iter().for_each(|e| e.sweep(now, &self.cluster.policy.pool));
    }

    /// Closes idle connections to processes of other nodes that leave.
    pub(crate) fn close_left(&self) {
        self.endpoints.iter().for_each(|e| e.close_left());
    }

    /// Closes all idle connections.
    pub(crate) fn close_idle(&self) {
        self.endpoints.iter().for_each(|e| e.close_idle());
    }
}

/// What a request that needs a connection gets.
pub(crate) enum Place<T> {
    /// It may make a new one.
    New(Option<Permit>),
    /// One became free.
    Pooled(T),
}

/// One who waits for a connection.
struct Waiting<'a>(&'a ClusterState);

impl<'a> Waiting<'a> {
    fn new(state: &'a ClusterState) -> Self {
        state.waiting.set(state.waiting.get() + 1);
        state.limits.waiting.fetch_add(1, Ordering::Relaxed);
        Self(state)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get().saturating_sub(1));
        self.0.limits.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What all workers together have in flight to a cluster. Counted only where a limit is set.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    connections: AtomicU32,
    requests: AtomicU32,
    pending: AtomicU32,
    retries: AtomicU32,
    /// Who waits for a connection because there may be no more, in all workers.
    waiting: AtomicU32,
    /// A connection ended or became idle.
    freed: tokio::sync::Notify,
    /// Retry budgets that are in use, by their settings: workers with the same settings share one. Locked only when a
    /// worker takes over a cluster.
    budgets: Mutex<Vec<(Option<RetryBudgetPolicy>, Weak<RetryBudget>)>>,
    unwell: Unwell,
}

/// Endpoints that some worker avoids or has ejected, for those who ask. Each worker decides by its own calls.
#[derive(Debug, Default)]
struct Unwell {
    /// How many there are: whoever is well asks no lock.
    count: AtomicU32,
    until: Mutex<HashMap<EndpointId, Instant>>,
}

/// More than these are not kept apart: it is a table for people.
const MOST_UNWELL: usize = 1024;

impl Unwell {
    fn set(&self, endpoint: EndpointId, until: Instant) {
        let mut all = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST_UNWELL {
            let now = Instant::now();
            all.retain(|_, until| now < *until);
        }
        if all.len() < MOST_UNWELL {
            all.insert(endpoint, until);
        }
        self.count.store(u32::try_from(all.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    fn clear(&self, endpoint: EndpointId) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut all = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&endpoint);
        self.count.store(u32::try_from(all.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    fn list(&self, now: Instant) -> HashMap<EndpointId, Duration> {
        let all = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let left = |(id, until): (&EndpointId, &Instant)| {
            until.checked_duration_since(now).filter(|left| !left.is_zero()).map(|left| (*id, left))
        };
        all.iter().filter_map(left).collect()
    }
}

/// Which of the counts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Limit {
    Connections,
    Requests,
    Pending,
    Retries,
}

impl Limits {
    const fn counter(&self, which: Limit) -> &AtomicU32 {
        match which {
            Limit::Connections => &self.connections,
            Limit::Requests => &self.requests,
            Limit::Pending => &self.pending,
            Limit::Retries => &self.retries,
        }
    }

    /// The retry budget with these settings; none = the standard one.
    fn budget(&self, policy: Option<RetryBudgetPolicy>) -> Arc<RetryBudget> {
        let mut all = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.iter().find(|(p, _)| *p == policy).and_then(|(_, b)| b.upgrade());
        if let Some(known) = known {
            return known;
        }
        let now = Instant::now();
        let new = Arc::new(policy.map_or_else(
            || RetryBudget::standard(now),
            |p| RetryBudget::over(p.percent, p.minimum, p.interval, now),
        ));
        all.retain(|(_, b)| b.strong_count() > 0);
        all.push((policy, Arc::downgrade(&new)));
        new
    }

    /// Takes one place. `Err`: there is none. Without a limit nothing is counted.
    pub(crate) fn take(self: &Arc<Self>, which: Limit, max: Option<u32>) -> Result<Option<Permit>, Full> {
        let Some(max) = max else { return Ok(None) };
        let counter = self.counter(which);
        if counter.fetch_add(1, Ordering::Relaxed) >= max {
            counter.fetch_sub(1, Ordering::Relaxed);
            return Err(Full);
        }
        Ok(Some(Permit { limits: Arc::clone(self), which }))
    }
}

/// A limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// One place under a limit; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    limits: Arc<Limits>,
    which: Limit,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limits.counter(self.which).fetch_sub(1, Ordering::Relaxed);
        if matches!(self.which, Limit::Connections) {
            self.limits.freed.notify_waiters();
        }
    }
}

/// The limits of all clusters, shared by the workers; looked at when a worker meets a cluster for the first time.
#[derive(Debug, Default)]
pub(crate) struct LimitTable(Mutex<HashMap<u64, Arc<Limits>>>);

impl LimitTable {
    pub(crate) fn get(&self, cluster: u64) -> Arc<Limits> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() > 8192 {
            // Clusters that no worker knows any more.
            all.retain(|_, l| Arc::strong_count(l) > 1);
        }
        Arc::clone(all.entry(cluster).or_default())
    }

    /// Endpoints of a cluster that workers avoid or have ejected, and for how long.
    pub(crate) fn unwell(&self, cluster: u64, now: Instant) -> HashMap<EndpointId, Duration> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.get(&cluster).cloned();
        drop(all);
        found.map(|limits| limits.unwell.list(now)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_and_gives_places_back() {
        let limits: Arc<Limits> = Arc::default();
        let first = limits.take(Limit::Requests, Some(1)).unwrap();
        assert_eq!(limits.take(Limit::Requests, Some(1)).unwrap_err(), Full);
        assert!(limits.take(Limit::Requests, None).unwrap().is_none());
        drop(first);
        assert!(limits.take(Limit::Requests, Some(1)).unwrap().is_some());
    }

    #[test]
    fn workers_share_a_budget_until_its_settings_change() {
        let limits: Arc<Limits> = Arc::default();
        let now = Instant::now();
        let (one, two) = (limits.budget(None), limits.budget(None));
        let granted = (0..40).filter(|i| if i % 2 == 0 { one.try_retry(now) } else { two.try_retry(now) });
        assert_eq!(granted.count(), 30, "both together");
        let policy = RetryBudgetPolicy { percent: 20, minimum: 3, interval: Duration::from_secs(10) };
        let changed = limits.budget(Some(policy));
        assert!(!Arc::ptr_eq(&changed, &one) && Arc::ptr_eq(&changed, &limits.budget(Some(policy))));
        assert_eq!((0..40).filter(|_| changed.try_retry(now)).count(), 3);
        assert!(Arc::ptr_eq(&one, &limits.budget(None)), "who is behind keeps the old one");
    }
}
