//! Picks an endpoint of a cluster, and remembers which ones do not answer.
//!
//! An endpoint that cannot be connected to is avoided for a time that doubles with each failure; when the time is
//! over, one pick tries it. When all are avoided, all are used. An ejected endpoint (see [`crate::outlier`]) is out
//! of service altogether, unless too few are left.
//!
//! Endpoints stand in groups (see [`groups`]): one for all, or by locality. A pick chooses the group first, then the
//! endpoint in it; a group that has nothing to offer is followed by the others.

mod choose;
pub mod groups;
pub mod table;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    client::Dice,
    cluster::{Cluster, ClusterEndpoint},
    endpoint::Place,
    hash::Fnv,
    outlier::{Exchange, OutlierState, may_eject},
};
use groups::{Group, Groups};
use table::HashTable;

/// How long an endpoint is avoided after its first connection failure.
const AVOID_FIRST: Duration = Duration::from_secs(1);
/// The longest avoidance: an endpoint that comes back takes part again after that.
const AVOID_MAX: Duration = Duration::from_secs(30);
/// How long others wait for the result of the one that tries an avoided endpoint.
const TRIAL: Duration = Duration::from_secs(1);
/// How often the shares of endpoints that warm up are looked at.
const WARM_STEP: Duration = Duration::from_millis(100);

/// One endpoint among all of a cluster: sites may give their pods the same addresses, so the node that owns it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EndpointId {
    addr: SocketAddr,
    /// A number for the node's name; 0: none.
    node: u64,
}

impl EndpointId {
    /// Of an address and the node that owns it.
    pub fn new(addr: SocketAddr, node: Option<&str>) -> Self {
        Self { addr, node: node.map_or(0, |n| Fnv::of(&[n.as_bytes()])) }
    }

    /// Where it is.
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn is(&self, endpoint: &ClusterEndpoint) -> bool {
        self.addr == endpoint.addr && *self == endpoint.id()
    }
}

impl ClusterEndpoint {
    /// What tells it apart from the others.
    pub fn id(&self) -> EndpointId {
        EndpointId::new(self.addr, self.node().map(|n| &**n))
    }
}

/// Run-time state of a cluster. Not shared: one for each worker, or behind a lock.
#[derive(Debug, Default)]
pub struct Balancer {
    cluster: Option<Arc<Cluster>>,
    place: Arc<Place>,
    states: Vec<State>,
    groups: Groups,
    /// For consistent hashing: one for each group, shared with other balancers.
    tables: Arc<[HashTable]>,
    last_interval: Option<Instant>,
    /// Until then the shares of groups are right, unless an endpoint's health changes.
    shares_hold: Option<Instant>,
    /// When the weights of endpoints that warm up are to be looked at again.
    warm_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// When the endpoint was first seen.
    since: Instant,
    failures: u32,
    avoid_until: Option<Instant>,
    outlier: OutlierState,
    /// Share of the endpoint: its weight, less while it warms up.
    weight: u64,
    /// Smooth weighted round robin.
    credit: i64,
}

impl State {
    fn new(now: Instant) -> Self {
        let outlier = OutlierState::default();
        Self { since: now, failures: 0, avoid_until: None, outlier, weight: 1, credit: 0 }
    }

    fn avoided(&self, now: Instant) -> bool {
        self.avoid_until.is_some_and(|t| now < t)
    }

    fn healthy(&self, now: Instant) -> bool {
        !self.avoided(now) && !self.outlier.is_ejected(now)
    }

    /// When its health changes by itself.
    fn changes_at(&self, now: Instant) -> Option<Instant> {
        [self.avoid_until, self.outlier.back_at()].into_iter().flatten().filter(|t| now < *t).min()
    }
}

/// What a pick looks at besides the cluster.
pub struct Pick<'a> {
    /// Endpoints that this call has tried.
    pub exclude: &'a [EndpointId],
    /// Requests or connections in flight to the endpoint at that position.
    pub load: &'a dyn Fn(usize) -> u32,
    /// Now.
    pub now: Instant,
    /// The request's key for consistent hashing; none = it has none.
    pub hash: Option<u64>,
    /// Prefer localities that this call has not tried.
    pub remote: bool,
}

impl Pick<'_> {
    fn excludes(&self, endpoint: &ClusterEndpoint) -> bool {
        self.exclude.iter().any(|tried| tried.is(endpoint))
    }
}

impl Balancer {
    /// A balancer that knows nothing, not even where it is.
    pub fn new() -> Self {
        Self::default()
    }

    /// A balancer at a place.
    pub fn at(place: Arc<Place>) -> Self {
        Self { place, ..Self::default() }
    }

    /// Tells where this is; looked at from the next cluster on.
    pub fn moved(&mut self, place: &Arc<Place>) {
        if self.place != *place {
            self.place = Arc::clone(place);
            if let Some(cluster) = self.cluster.clone() {
                self.regroup(&cluster);
            }
        }
    }

    /// Position in `cluster.endpoints` of the endpoint to use. None: there is none that is not excluded or ejected.
    /// Allocates only when the cluster is another one than before.
    pub fn pick(&mut self, cluster: &Arc<Cluster>, how: &Pick<'_>, dice: &mut impl Dice) -> Option<usize> {
        self.sync(cluster, how.now);
        self.on_time(cluster, how.now);
        let first = self.groups.choose(dice)?;
        let picked = self.pick_from(cluster, how, dice, first)?;
        let state = &mut self.states[picked];
        if state.failures > 0 && !state.avoided(how.now) {
            state.avoid_until = Some(how.now + TRIAL);
            self.shares_hold = None;
        }
        Some(picked)
    }

    fn pick_from(
        &mut self,
        cluster: &Cluster,
        how: &Pick<'_>,
        dice: &mut impl Dice,
        first: usize,
    ) -> Option<usize> {
        let now = how.now;
        let usable = |panic: bool, s: &State, i: usize| {
            (panic || !s.outlier.is_ejected(now)) && !how.excludes(&cluster.endpoints[i])
        };
        let count = self.groups.list.len();
        // The chosen group, then the others, the nearest first.
        let order = |k: usize| if k == 0 { first } else { k - usize::from(k <= first) };
        if how.remote && count > 1 {
            let tried = |g: &Group| g.members.iter().any(|i| how.excludes(&cluster.endpoints[*i as usize]));
            for g in (0..count).map(order) {
                if tried(&self.groups.list[g]) {
                    continue;
                }
                let panic = self.groups.list[g].panic;
                let found =
                    self.choose(cluster, how, dice, g, &|s, i| usable(panic, s, i) && !s.avoided(now));
                if found.is_some() {
                    return found;
                }
            }
        }
        for avoided_too in [false, true] {
            for g in (0..count).map(order) {
                let panic = self.groups.list[g].panic;
                let ok = |s: &State, i: usize| usable(panic, s, i) && (avoided_too || !s.avoided(now));
                let found = self.choose(cluster, how, dice, g, &ok);
                if found.is_some() {
                    return found;
                }
            }
        }
        None
    }

    /// A connection to the endpoint came about.
    pub fn on_connected(&mut self, endpoint: EndpointId) {
        let mut changed = false;
        if let Some(s) = self.state(endpoint) {
            changed = s.avoid_until.take().is_some();
            s.failures = 0;
            s.outlier.connected();
        }
        if changed {
            self.shares_hold = None;
        }
    }

    /// A connection attempt failed or did not end in time.
    pub fn on_connect_failure(&mut self, endpoint: EndpointId, now: Instant) {
        if let Some(s) = self.state(endpoint) {
            s.failures = s.failures.saturating_add(1);
            let time = AVOID_FIRST.saturating_mul(1 << (s.failures - 1).min(8)).min(AVOID_MAX);
            s.avoid_until = Some(now + time);
            self.shares_hold = None;
        }
        self.on_exchange(endpoint, Exchange::LocalFailure, now);
    }

    /// An exchange with the endpoint ended. Connection failures are counted by [`Self::on_connect_failure`].
    pub fn on_exchange(&mut self, endpoint: EndpointId, exchange: Exchange, now: Instant) {
        let Some(cluster) = self.cluster.clone() else { return };
        let Some(policy) = &cluster.policy.outlier else { return };
        let Some(at) = self.position(endpoint) else { return };
        if !self.states[at].outlier.record(policy, exchange) || self.states[at].outlier.is_ejected(now) {
            return;
        }
        if may_eject(policy, self.ejected(now), self.states.len()) {
            self.states[at].outlier.eject(policy, now);
            self.shares_hold = None;
        }
    }

    /// How many endpoints are ejected.
    pub fn ejected(&self, now: Instant) -> usize {
        self.states.iter().filter(|s| s.outlier.is_ejected(now)).count()
    }

    /// Whether the endpoint is avoided or ejected at the moment.
    pub fn is_unhealthy(&self, endpoint: EndpointId, now: Instant) -> bool {
        self.position(endpoint).is_some_and(|i| !self.states[i].healthy(now))
    }

    /// Until when the endpoint is avoided or ejected; none: it is in service.
    pub fn unwell_until(&self, endpoint: EndpointId, now: Instant) -> Option<Instant> {
        let state = &self.states[self.position(endpoint)?];
        [state.avoid_until, state.outlier.back_at()].into_iter().flatten().filter(|t| now < *t).max()
    }

    /// The groups as they are now, the first to be used first.
    pub fn groups(&self) -> &[Group] {
        &self.groups.list
    }

    fn position(&self, endpoint: EndpointId) -> Option<usize> {
        self.cluster.as_ref()?.endpoints.iter().position(|e| endpoint.is(e))
    }

    fn state(&mut self, endpoint: EndpointId) -> Option<&mut State> {
        self.position(endpoint).map(|i| &mut self.states[i])
    }

    /// Takes over what is known about endpoints that are in the new cluster too.
    fn sync(&mut self, cluster: &Arc<Cluster>, now: Instant) {
        if self.cluster.as_ref().is_some_and(|c| Arc::ptr_eq(c, cluster)) {
            return;
        }
        let same = self.cluster.as_ref().is_some_and(|c| c.endpoints == cluster.endpoints);
        if !same {
            let known: std::collections::HashMap<EndpointId, State> = match &self.cluster {
                Some(c) => {
                    c.endpoints.iter().map(ClusterEndpoint::id).zip(self.states.iter().copied()).collect()
                }
                None => Default::default(),
            };
            let state = |id| known.get(&id).copied().unwrap_or_else(|| State::new(now));
            self.states = cluster.endpoints.iter().map(|e| state(e.id())).collect();
        }
        self.cluster = Some(cluster.clone());
        self.regroup(cluster);
    }

    fn regroup(&mut self, cluster: &Arc<Cluster>) {
        self.groups = Groups::of(cluster, &self.place);
        self.tables = match &cluster.policy.balancing.hash {
            Some(policy) => cluster.hash_tables(policy.table, &self.groups),
            None => Arc::default(),
        };
        self.shares_hold = None;
        self.warm_at = None;
        for (state, e) in self.states.iter_mut().zip(&cluster.endpoints) {
            state.weight = u64::from(e.weight);
        }
        if cluster.policy.balancing.warmup.is_some() {
            self.warm_at = self.states.iter().map(|s| s.since).min();
        }
        self.groups.weigh(|i| self.states[i].weight);
    }

    fn on_time(&mut self, cluster: &Cluster, now: Instant) {
        if let Some(policy) = &cluster.policy.outlier {
            let last = *self.last_interval.get_or_insert(now);
            if now.saturating_duration_since(last) >= policy.interval {
                self.last_interval = Some(now);
                self.states.iter_mut().for_each(|s| s.outlier.on_interval(now));
            }
        }
        if self.warm_at.is_some_and(|at| at <= now) {
            self.warm(cluster, now);
        }
        let matters = self.groups.list.len() > 1 || cluster.policy.outlier.is_some();
        if matters && self.shares_hold.is_none_or(|until| until <= now) {
            let panic_below = cluster.policy.outlier.as_ref().map_or(0, |o| o.min_health_percent);
            let (states, groups) = (&self.states, &mut self.groups);
            groups.share(panic_below, |i| states[i].healthy(now), |i| !states[i].outlier.is_ejected(now));
            let changes = self.states.iter().filter_map(|s| s.changes_at(now)).min();
            self.shares_hold = Some(changes.unwrap_or(now + Duration::from_secs(3600)));
        }
    }

    /// Sets the weights of endpoints that are new.
    fn warm(&mut self, cluster: &Cluster, now: Instant) {
        let Some(warmup) = cluster.policy.balancing.warmup else { return };
        let mut warming = false;
        for (state, e) in self.states.iter_mut().zip(&cluster.endpoints) {
            let age = now.saturating_duration_since(state.since);
            warming |= age < warmup.duration;
            state.weight = u64::from(e.weight) * u64::from(warmup.share(age));
        }
        self.warm_at = warming.then(|| now + WARM_STEP);
        self.groups.weigh(|i| self.states[i].weight);
    }
}

#[cfg(test)]
mod tests;
