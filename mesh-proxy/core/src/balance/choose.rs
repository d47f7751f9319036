//! The endpoint in a group: each balancer's own way.

use super::{Balancer, Pick, State, groups::Group};
use crate::{
    client::{Dice, DiceKind},
    cluster::Cluster,
    policy::{HashPolicy, LoadBalancing},
};

type Ok<'a> = &'a dyn Fn(&State, usize) -> bool;

impl Balancer {
    /// One of the group's endpoints for which `ok` holds.
    pub(super) fn choose(
        &mut self,
        cluster: &Cluster,
        how: &Pick<'_>,
        dice: &mut impl Dice,
        group: usize,
        ok: Ok<'_>,
    ) -> Option<usize> {
        let balancing = &cluster.policy.balancing;
        if let (Some(policy), Some(hash)) = (&balancing.hash, how.hash) {
            return self.by_hash(policy, how, (group, hash), ok);
        }
        match balancing.kind {
            LoadBalancing::RoundRobin if self.groups.list[group].equal => self.next_in_turn(group, ok),
            LoadBalancing::RoundRobin => self.next_by_weight(group, ok),
            LoadBalancing::Random | LoadBalancing::Passthrough => self.random(group, dice, ok),
            LoadBalancing::LeastRequest => self.less_busy(how, dice, group, ok),
        }
    }

    /// The hash's endpoint, or the next one in its table. One that has more than its bound is passed over, unless all
    /// have.
    fn by_hash(&self, policy: &HashPolicy, how: &Pick<'_>, at: (usize, u64), ok: Ok<'_>) -> Option<usize> {
        let (group, hash) = at;
        let table = self.tables.get(group)?;
        if policy.bound_percent > 0 {
            let members = &self.groups.list[group].members;
            let load = |i: usize| u64::from((how.load)(i));
            let all: u64 = members.iter().map(|i| load(*i as usize)).sum::<u64>() + 1;
            let room = |i: usize| {
                (load(i) + 1) * members.len() as u64 * 100
                    <= (all * u64::from(policy.bound_percent)).max(members.len() as u64 * 100)
            };
            let found = table.find(hash, |i| ok(&self.states[i], i) && room(i));
            if found.is_some() {
                return found;
            }
        }
        table.find(hash, |i| ok(&self.states[i], i))
    }

    /// The less busy of two; of two that are equally busy the first, so that weights hold.
    fn less_busy(&mut self, how: &Pick<'_>, dice: &mut impl Dice, group: usize, ok: Ok<'_>) -> Option<usize> {
        let a = self.random(group, dice, ok)?;
        let b = self.random_other(group, dice, ok, a);
        // load / weight, without a division
        let cost = |i: usize, other: usize| u64::from((how.load)(i)) * self.states[other].weight;
        Some(if cost(b, a) < cost(a, b) { b } else { a })
    }

    fn next_in_turn(&mut self, group: usize, ok: Ok<'_>) -> Option<usize> {
        let g = &mut self.groups.list[group];
        let n = g.members.len();
        let start = g.cursor;
        let at = |k: usize| (start + k) % n;
        let found = (0..n).map(at).find(|k| {
            let i = g.members[*k] as usize;
            ok(&self.states[i], i)
        })?;
        g.cursor = (found + 1) % n;
        Some(g.members[found] as usize)
    }

    /// Everyone gains its weight; the richest goes and pays the sum.
    fn next_by_weight(&mut self, group: usize, ok: Ok<'_>) -> Option<usize> {
        let mut best: Option<usize> = None;
        let mut sum = 0;
        for i in self.groups.list[group].members.iter().map(|i| *i as usize) {
            if !ok(&self.states[i], i) {
                continue;
            }
            let weight = i64::try_from(self.states[i].weight).unwrap_or(i64::MAX >> 16);
            self.states[i].credit = self.states[i].credit.saturating_add(weight);
            sum += weight;
            if best.is_none_or(|b| self.states[i].credit > self.states[b].credit) {
                best = Some(i);
            }
        }
        self.states[best?].credit -= sum;
        best
    }

    fn random(&self, group: usize, dice: &mut impl Dice, ok: Ok<'_>) -> Option<usize> {
        let g = &self.groups.list[group];
        let good = |i: &usize| ok(&self.states[*i], *i);
        // A few draws find one that is all right unless most are not.
        for _ in 0..4 {
            let i = g.members[self.draw(g, dice)] as usize;
            if good(&i) {
                return Some(i);
            }
        }
        // Then a draw among those that are.
        let rolled = dice.roll(DiceKind::Balance);
        let all = || g.members.iter().map(|i| *i as usize).filter(good);
        let mut at = part_of(rolled, all().map(|i| self.states[i].weight).sum());
        let mut last = None;
        for i in all() {
            match at.checked_sub(self.states[i].weight) {
                Some(rest) => at = rest,
                None => return Some(i),
            }
            last = Some(i);
        }
        last
    }

    /// Another one than `first` if a few draws find one.
    fn random_other(&self, group: usize, dice: &mut impl Dice, ok: Ok<'_>, first: usize) -> usize {
        let g = &self.groups.list[group];
        if let [a, b] = *g.members {
            let other = if a as usize == first { b } else { a } as usize;
            return if ok(&self.states[other], other) { other } else { first };
        }
        for _ in 0..3 {
            let i = g.members[self.draw(g, dice)] as usize;
            if i != first && ok(&self.states[i], i) {
                return i;
            }
        }
        first
    }

    /// A position in the group, by weight.
    fn draw(&self, g: &Group, dice: &mut impl Dice) -> usize {
        let x = dice.roll(DiceKind::Balance);
        let n = g.members.len();
        if g.equal {
            #[allow(clippy::cast_possible_truncation, reason = "below the number of members")]
            return (part_of(x, n as u64) as usize).min(n - 1);
        }
        let mut at = part_of(x, g.weight);
        for (k, i) in g.members.iter().enumerate() {
            match at.checked_sub(self.states[*i as usize].weight) {
                Some(rest) => at = rest,
                None => return k,
            }
        }
        n - 1
    }
}

/// `x` of `whole`, for `x` in `[0, 1)`.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the product lies in [0, whole)"
)]
pub(super) fn part_of(x: f64, whole: u64) -> u64 {
    (x * whole as f64) as u64
}
