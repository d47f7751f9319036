//! Endpoints by locality: priorities of which the next one helps out when too few of the nearer are healthy, or shares
//! that a rule gives to localities.
//!
//! Priorities take part as Envoy's do: a level's health counts 1.4 times, what the first does not cover goes to the
//! next. Without a rule's shares, failover needs outlier detection, as in Istio.

use super::choose::part_of;
use crate::{
    client::{Dice, DiceKind},
    cluster::Cluster,
    endpoint::{EndpointEntry, Locality, Place},
    policy::{Balancing, LocalityPolicy},
};

/// A level's health counts that much, in percent.
const OVERPROVISION: u64 = 140;

/// The groups of a cluster; at least one, unless it has no endpoints.
#[derive(Debug, Default)]
pub struct Groups {
    pub(super) list: Vec<Group>,
    /// Shares are a rule's, not by health alone.
    shared: bool,
}

/// Endpoints that are alike to the client.
#[derive(Debug)]
pub struct Group {
    /// Positions in the cluster's list.
    pub members: Box<[u32]>,
    /// The rule's share; 1 for priorities.
    wanted: u32,
    /// What of all calls it gets, in no unit.
    share: u64,
    /// Ejected endpoints are used too.
    pub(super) panic: bool,
    /// Sum of the members' weights.
    pub(super) weight: u64,
    /// All weights are equal.
    pub(super) equal: bool,
    /// Next position (equal weights).
    pub(super) cursor: usize,
}

impl Group {
    fn new(members: Vec<u32>, wanted: u32) -> Self {
        Self { members: members.into(), wanted, share: 1, panic: false, weight: 0, equal: true, cursor: 0 }
    }
}

impl Groups {
    /// The groups of a cluster as seen from a place.
    pub(super) fn of(cluster: &Cluster, place: &Place) -> Self {
        let all = || (0u32..).zip(&cluster.endpoints).map(|(i, e)| (i, &*e.endpoint));
        let one = || Self { list: vec![Group::new(all().map(|(i, _)| i).collect(), 1)], shared: false };
        if cluster.endpoints.is_empty() {
            return Self::default();
        }
        let Balancing { locality, .. } = &cluster.policy.balancing;
        let none = LocalityPolicy { enabled: true, ..LocalityPolicy::default() };
        let policy = locality.as_deref().unwrap_or(&none);
        if !policy.enabled || cluster.endpoints.len() < policy.min_cluster_size {
            return one();
        }
        if let Some(to) = policy.distribute.iter().find(|d| covers(&d.from, &place.locality)) {
            let group = |to: &(Box<str>, u32), taken: &mut Vec<bool>| {
                let mut members = Vec::new();
                for (i, e) in all() {
                    if !taken[i as usize] && covers(&to.0, &e.locality) {
                        taken[i as usize] = true;
                        members.push(i);
                    }
                }
                Group::new(members, to.1)
            };
            // The narrowest names first: what `region/zone` names is not left to `region/*`.
            let mut named: Vec<_> = to.to.iter().collect();
            named.sort_by_key(|(name, _)| std::cmp::Reverse(name.split('/').filter(|p| *p != "*").count()));
            let mut taken = vec![false; cluster.endpoints.len()];
            let list: Vec<Group> = named.into_iter().map(|to| group(to, &mut taken)).collect();
            return Self { list: list.into_iter().filter(|g| !g.members.is_empty()).collect(), shared: true };
        }
        if cluster.policy.outlier.is_none() && !cluster.prefers_near {
            return one();
        }
        let levels: Vec<usize> = all().map(|(_, e)| level(e, place, policy)).collect();
        let mut list = Vec::new();
        for at in 0..=levels.iter().copied().max().unwrap_or(0) {
            let members: Vec<u32> = all().map(|(i, _)| i).filter(|i| levels[*i as usize] == at).collect();
            if !members.is_empty() {
                list.push(Group::new(members, 1));
            }
        }
        Self { list, shared: false }
    }

    /// Positions of the members of each group.
    pub(crate) fn members(&self) -> impl Iterator<Item = &[u32]> {
        self.list.iter().map(|g| &*g.members)
    }

    /// Takes the weights of endpoints in.
    pub(super) fn weigh(&mut self, weight: impl Fn(usize) -> u64) {
        for g in &mut self.list {
            let first = g.members.first().map_or(1, |i| weight(*i as usize));
            g.weight = g.members.iter().map(|i| weight(*i as usize)).sum();
            g.equal = g.members.iter().all(|i| weight(*i as usize) == first);
        }
    }

    /// Gives each group its share by the health of its members. `serves`: not ejected.
    pub(super) fn share(
        &mut self,
        panic_below: u32,
        healthy: impl Fn(usize) -> bool,
        serves: impl Fn(usize) -> bool,
    ) {
        let percent = |g: &Group, good: &dyn Fn(usize) -> bool| {
            let n = g.members.iter().filter(|i| good(**i as usize)).count() as u64;
            n * 100 / (g.members.len() as u64).max(1)
        };
        let health = |g: &Group| (percent(g, &healthy) * OVERPROVISION / 100).min(100);
        let sum: u64 = self.list.iter().map(health).sum();
        for g in &mut self.list {
            // As in Envoy: only when the levels together are not enough.
            g.panic = sum < 100 && percent(g, &serves) < u64::from(panic_below)
                || self.shared && percent(g, &serves) < u64::from(panic_below);
        }
        if self.shared {
            self.list.iter_mut().for_each(|g| g.share = u64::from(g.wanted) * health(g));
            if self.list.iter().all(|g| g.share == 0) {
                self.list.iter_mut().for_each(|g| g.share = u64::from(g.wanted));
            }
            return;
        }
        let (mut left, total) = (100, sum.clamp(1, 100));
        for g in &mut self.list {
            g.share = if sum == 0 { g.members.len() as u64 } else { (health(g) * 100 / total).min(left) };
            left -= g.share.min(left);
        }
        // What rounding leaves.
        if sum > 0
            && left > 0
            && let Some(g) = self.list.iter_mut().find(|g| g.share > 0)
        {
            g.share += left;
        }
    }

    /// A group by its share.
    pub(super) fn choose(&self, dice: &mut impl Dice) -> Option<usize> {
        if self.list.len() < 2 {
            return (!self.list.is_empty()).then_some(0);
        }
        let sum: u64 = self.list.iter().map(|g| g.share).sum();
        if self.list[0].share == sum {
            return Some(0);
        }
        let mut at = part_of(dice.roll(DiceKind::Balance), sum);
        self.list.iter().position(|g| {
            let hit = at < g.share;
            at = at.saturating_sub(g.share);
            hit
        })
    }
}

/// How far an endpoint is: 0 is nearest.
fn level(e: &EndpointEntry, place: &Place, policy: &LocalityPolicy) -> usize {
    if !policy.failover_priority.is_empty() {
        let equal = |(key, value): &(Box<str>, Option<Box<str>>)| {
            let wanted = value.as_deref().or_else(|| place.label(key));
            wanted.is_some() && e.label(key) == wanted
        };
        let n = policy.failover_priority.len();
        return n - policy.failover_priority.iter().take_while(|p| equal(p)).count();
    }
    let (mine, its) = (&place.locality, &*e.locality);
    if mine.region != its.region {
        let named = policy.failover.iter().find(|(from, _)| *from == mine.region);
        return match named {
            Some((_, to)) if *to != its.region => 4,
            _ => 3,
        };
    }
    match (mine.zone == its.zone, mine.site == its.site) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    }
}

/// Whether a locality as rules write it (`region`, `region/zone`, `region/zone/site`, `*` at the end) covers one.
fn covers(written: &str, locality: &Locality) -> bool {
    let mut parts = written.split('/');
    [&locality.region, &locality.zone, &locality.site].into_iter().all(|its| match parts.next() {
        None | Some("" | "*") => true,
        Some(part) => *part == **its,
    })
}

#[cfg(test)]
mod tests;
