//! Picks an endpoint of a cluster, and remembers which ones do not answer.
//!
//! An endpoint that cannot be connected to is avoided for a time that doubles with each failure; when the time is
//! over, one pick tries it. When all are avoided, all are used. An ejected endpoint (see [`crate::outlier`]) is out
//! of service altogether, unless too few are left.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    client::{Dice, DiceKind},
    cluster::Cluster,
    outlier::{Exchange, OutlierState, may_eject},
    policy::LoadBalancing,
};

/// How long an endpoint is avoided after its first connection failure.
const AVOID_FIRST: Duration = Duration::from_secs(1);
/// The longest avoidance: an endpoint that comes back takes part again after that.
const AVOID_MAX: Duration = Duration::from_secs(30);
/// How long others wait for the result of the one that tries an avoided endpoint.
const TRIAL: Duration = Duration::from_secs(1);

/// Run-time state of a cluster. Not shared: one for each worker, or behind a lock.
#[derive(Debug, Default)]
pub struct Balancer {
    cluster: Option<Arc<Cluster>>,
    states: Vec<State>,
    /// Next position (equal weights).
    cursor: usize,
    last_interval: Option<Instant>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    failures: u32,
    avoid_until: Option<Instant>,
    outlier: OutlierState,
    /// Smooth weighted round robin.
    credit: i64,
}

impl State {
    fn avoided(&self, now: Instant) -> bool {
        self.avoid_until.is_some_and(|t| now < t)
    }
}

/// What a pick looks at besides the cluster.
pub struct Pick<'a> {
    /// Endpoints that this call has tried.
    pub exclude: &'a [SocketAddr],
    /// Requests or connections in flight to the endpoint at that position.
    pub load: &'a dyn Fn(usize) -> u32,
    /// Now.
    pub now: Instant,
}

impl Balancer {
    /// A balancer that knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Position in `cluster.endpoints` of the endpoint to use. None: there is none that is not excluded or ejected.
    /// Allocates only when the cluster is another one than before.
    pub fn pick(&mut self, cluster: &Arc<Cluster>, how: &Pick<'_>, dice: &mut impl Dice) -> Option<usize> {
        self.sync(cluster);
        self.on_time(cluster, how.now);
        let panic = self.in_panic(cluster, how.now);
        let usable = |s: &State, i: usize| {
            (panic || !s.outlier.is_ejected(how.now)) && !how.exclude.contains(&cluster.endpoints[i].addr)
        };
        let wanted = |s: &State, i: usize| usable(s, i) && !s.avoided(how.now);
        let picked =
            self.choose(cluster, how, dice, &wanted).or_else(|| self.choose(cluster, how, dice, &usable))?;
        let state = &mut self.states[picked];
        if state.failures > 0 && !state.avoided(how.now) {
            state.avoid_until = Some(how.now + TRIAL);
        }
        Some(picked)
    }

    /// A connection to the endpoint came about.
    pub fn on_connected(&mut self, addr: SocketAddr) {
        if let Some(s) = self.state(addr) {
            s.failures = 0;
            s.avoid_until = None;
        }
    }

    /// A connection attempt failed or did not end in time.
    pub fn on_connect_failure(&mut self, addr: SocketAddr, now: Instant) {
        if let Some(s) = self.state(addr) {
            s.failures = s.failures.saturating_add(1);
            let time = AVOID_FIRST.saturating_mul(1 << (s.failures - 1).min(8)).min(AVOID_MAX);
            s.avoid_until = Some(now + time);
        }
        self.on_exchange(addr, Exchange::GatewayError, now);
    }

    /// An exchange with the endpoint ended. Connection failures are counted by [`Self::on_connect_failure`].
    pub fn on_exchange(&mut self, addr: SocketAddr, exchange: Exchange, now: Instant) {
        let Some(policy) = self.cluster.as_ref().and_then(|c| c.policy.outlier) else { return };
        let ejected = self.ejected(now);
        let total = self.states.len();
        if let Some(s) = self.state(addr)
            && s.outlier.record(&policy, exchange)
            && !s.outlier.is_ejected(now)
            && may_eject(&policy, ejected, total)
        {
            s.outlier.eject(&policy, now);
        }
    }

    /// How many endpoints are ejected.
    pub fn ejected(&self, now: Instant) -> usize {
        self.states.iter().filter(|s| s.outlier.is_ejected(now)).count()
    }

    /// Whether the endpoint is avoided or ejected at the moment.
    pub fn is_unhealthy(&self, addr: SocketAddr, now: Instant) -> bool {
        self.position(addr)
            .is_some_and(|i| self.states[i].avoided(now) || self.states[i].outlier.is_ejected(now))
    }

    fn position(&self, addr: SocketAddr) -> Option<usize> {
        self.cluster.as_ref()?.endpoints.iter().position(|e| e.addr == addr)
    }

    fn state(&mut self, addr: SocketAddr) -> Option<&mut State> {
        self.position(addr).map(|i| &mut self.states[i])
    }

    /// Takes over what is known about endpoints that are in the new cluster too.
    fn sync(&mut self, cluster: &Arc<Cluster>) {
        if self.cluster.as_ref().is_some_and(|c| Arc::ptr_eq(c, cluster)) {
            return;
        }
        let same = self.cluster.as_ref().is_some_and(|c| c.endpoints == cluster.endpoints);
        if !same {
            let known: std::collections::HashMap<SocketAddr, State> = match &self.cluster {
                Some(c) => c.endpoints.iter().map(|e| e.addr).zip(self.states.iter().copied()).collect(),
                None => Default::default(),
            };
            self.states =
                cluster.endpoints.iter().map(|e| known.get(&e.addr).copied().unwrap_or_default()).collect();
        }
        self.cluster = Some(cluster.clone());
    }

    fn on_time(&mut self, cluster: &Cluster, now: Instant) {
        let Some(policy) = &cluster.policy.outlier else { return };
        let last = *self.last_interval.get_or_insert(now);
        if now.saturating_duration_since(last) >= policy.interval {
            self.last_interval = Some(now);
            self.states.iter_mut().for_each(|s| s.outlier.on_interval(now));
        }
    }

    fn in_panic(&self, cluster: &Cluster, now: Instant) -> bool {
        let Some(policy) = &cluster.policy.outlier else { return false };
        let healthy = self.states.len() - self.ejected(now);
        policy.min_health_percent > 0
            && healthy * 100 < self.states.len() * policy.min_health_percent as usize
    }

    fn choose(
        &mut self,
        cluster: &Cluster,
        how: &Pick<'_>,
        dice: &mut impl Dice,
        ok: &dyn Fn(&State, usize) -> bool,
    ) -> Option<usize> {
        if cluster.endpoints.is_empty() {
            return None;
        }
        match cluster.policy.lb {
            LoadBalancing::RoundRobin if cluster.equal_weights => self.next_in_turn(ok),
            LoadBalancing::RoundRobin => self.next_by_weight(cluster, ok),
            LoadBalancing::Random | LoadBalancing::Passthrough => self.random(cluster, dice, ok),
            LoadBalancing::LeastRequest => {
                let a = self.random(cluster, dice, ok)?;
                let b = self.random_other(cluster, dice, ok, a);
                // load / weight, without a division
                let cost = |i: usize, other: usize| {
                    (u64::from((how.load)(i)) + 1) * u64::from(cluster.endpoints[other].weight)
                };
                Some(if cost(b, a) < cost(a, b) { b } else { a })
            }
        }
    }

    fn next_in_turn(&mut self, ok: &dyn Fn(&State, usize) -> bool) -> Option<usize> {
        let n = self.states.len();
        let found = (0..n).map(|k| (self.cursor + k) % n).find(|i| ok(&self.states[*i], *i))?;
        self.cursor = (found + 1) % n;
        Some(found)
    }

    /// Everyone gains its weight; the richest goes and pays the sum.
    fn next_by_weight(&mut self, cluster: &Cluster, ok: &dyn Fn(&State, usize) -> bool) -> Option<usize> {
        let mut best: Option<usize> = None;
        let mut sum = 0;
        for (i, e) in cluster.endpoints.iter().enumerate() {
            if !ok(&self.states[i], i) {
                continue;
            }
            self.states[i].credit += i64::from(e.weight);
            sum += i64::from(e.weight);
            if best.is_none_or(|b| self.states[i].credit > self.states[b].credit) {
                best = Some(i);
            }
        }
        self.states[best?].credit -= sum;
        best
    }

    fn random(
        &self,
        cluster: &Cluster,
        dice: &mut impl Dice,
        ok: &dyn Fn(&State, usize) -> bool,
    ) -> Option<usize> {
        // A few draws find one that is all right unless most are not; then a walk finds one if there is any.
        for _ in 0..4 {
            let i = draw(cluster, dice);
            if ok(&self.states[i], i) {
                return Some(i);
            }
        }
        let n = self.states.len();
        let start = draw(cluster, dice);
        (0..n).map(|k| (start + k) % n).find(|i| ok(&self.states[*i], *i))
    }

    /// Another one than `first` if a few draws find one.
    fn random_other(
        &self,
        cluster: &Cluster,
        dice: &mut impl Dice,
        ok: &dyn Fn(&State, usize) -> bool,
        first: usize,
    ) -> usize {
        let n = cluster.endpoints.len();
        if n == 2 {
            let other = 1 - first;
            return if ok(&self.states[other], other) { other } else { first };
        }
        for _ in 0..3 {
            let i = draw(cluster, dice);
            if i != first && ok(&self.states[i], i) {
                return i;
            }
        }
        first
    }
}

/// A position, by weight.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the product lies in [0, n)"
)]
fn draw(cluster: &Cluster, dice: &mut impl Dice) -> usize {
    let n = cluster.endpoints.len();
    let x = dice.roll(DiceKind::Balance);
    if cluster.equal_weights {
        return ((x * n as f64) as usize).min(n - 1);
    }
    let mut at = (x * cluster.total_weight as f64) as u64;
    for (i, e) in cluster.endpoints.iter().enumerate() {
        match at.checked_sub(u64::from(e.weight)) {
            Some(rest) => at = rest,
            None => return i,
        }
    }
    n - 1
}

#[cfg(test)]
mod tests;
