//! Finds the first route of a host that a request satisfies, without looking at most of them.
//!
//! Each (rule, match) pair is one route; its position is its precedence. Routes with an exact or prefix condition on
//! the path are found by hash: the hash of every prefix of the path falls out of hashing the path once, and only
//! lengths that some rule uses are looked up. All others are tried in order, but only while they could still win.
//! A hash only proposes; the route's conditions are always checked in full.

use super::{HttpRule, RouteMatch};
use crate::{
    hash::{FastMap, Fnv},
    strings::StringMatcher,
};

/// A route's place: rule, and match inside the rule (none = the rule has no match and takes everything).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) rule: u32,
    pub(crate) matched: Option<u32>,
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    routes: Box<[Place]>,
    exact: Table,
    exact_folded: Table,
    prefix: Table,
    prefix_folded: Table,
    /// Routes without an exact or prefix condition on the path.
    general: Box<[u32]>,
}

/// Routes by the hash of the path (or prefix) that they ask for.
#[derive(Debug, Default)]
struct Table {
    by_hash: FastMap<u64, Box<[u32]>>,
    /// The lengths in use, ascending.
    lengths: Box<[usize]>,
}

#[derive(Default)]
struct Building(FastMap<u64, Vec<u32>>, Vec<usize>);

impl Building {
    fn add(&mut self, value: &str, fold: bool, route: u32) {
        let mut h = Fnv::new();
        value.bytes().for_each(|b| h.push(if fold { b.to_ascii_lowercase() } else { b }));
        self.0.entry(h.get()).or_default().push(route);
        self.1.push(value.len());
    }

    fn done(mut self) -> Table {
        self.1.sort_unstable();
        self.1.dedup();
        Table {
            by_hash: self.0.into_iter().map(|(k, v)| (k, v.into_boxed_slice())).collect(),
            lengths: self.1.into_boxed_slice(),
        }
    }
}

impl Index {
    pub(crate) fn build(rules: &[HttpRule]) -> Self {
        let mut routes = Vec::new();
        let (mut exact, mut exact_folded) = (Building::default(), Building::default());
        let (mut prefix, mut prefix_folded) = (Building::default(), Building::default());
        let mut general = Vec::new();
        for (r, rule) in (0u32..).zip(rules) {
            let places = (0u32..).zip(&rule.matches).map(|(m, x)| (Some(m), Some(x)));
            let all = rule.matches.is_empty().then_some((None, None));
            for (matched, conditions) in places.chain(all) {
                let number = u32::try_from(routes.len()).unwrap_or(u32::MAX);
                routes.push(Place { rule: r, matched });
                let uri = conditions.and_then(|c: &RouteMatch| c.uri.as_ref());
                let fold = conditions.is_some_and(|c| c.ignore_uri_case);
                match uri {
                    Some(StringMatcher::Exact(s)) if fold => exact_folded.add(s, true, number),
                    Some(StringMatcher::Exact(s)) => exact.add(s, false, number),
                    Some(StringMatcher::Prefix(s)) if fold => prefix_folded.add(s, true, number),
                    Some(StringMatcher::Prefix(s) | StringMatcher::PathPrefix(s)) => {
                        prefix.add(s, false, number)
                    }
                    Some(StringMatcher::Regex(_) | StringMatcher::Present) | None => general.push(number),
                }
            }
        }
        Self {
            routes: routes.into_boxed_slice(),
            exact: exact.done(),
            exact_folded: exact_folded.done(),
            prefix: prefix.done(),
            prefix_folded: prefix_folded.done(),
            general: general.into_boxed_slice(),
        }
    }

    /// The first route for `path` that `accepts` in full.
    pub(crate) fn first(&self, path: &str, mut accepts: impl FnMut(Place) -> bool) -> Option<Place> {
        let mut best = u32::MAX;
        let mut consider = |list: &[u32]| {
            for n in list {
                if *n >= best {
                    return;
                }
                if accepts(self.routes[*n as usize]) {
                    best = *n;
                    return;
                }
            }
        };
        search(&self.exact, &self.prefix, path, false, &mut consider);
        search(&self.exact_folded, &self.prefix_folded, path, true, &mut consider);
        consider(&self.general);
        self.routes.get(best as usize).copied()
    }
}

fn search(exact: &Table, prefix: &Table, path: &str, fold: bool, consider: &mut impl FnMut(&[u32])) {
    if exact.by_hash.is_empty() && prefix.by_hash.is_empty() {
        return;
    }
    let mut hash = Fnv::new();
    let mut done = 0;
    let mut up_to = |length: usize| {
        for b in &path.as_bytes()[done..length] {
            hash.push(if fold { b.to_ascii_lowercase() } else { *b });
        }
        done = length;
        hash.get()
    };
    for length in prefix.lengths.iter().take_while(|l| **l <= path.len()) {
        if let Some(list) = prefix.by_hash.get(&up_to(*length)) {
            consider(list);
        }
    }
    if exact.lengths.binary_search(&path.len()).is_ok()
        && let Some(list) = exact.by_hash.get(&up_to(path.len()))
    {
        consider(list);
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::model;

    use crate::{fixtures::*, route::VirtualHostEntry};

    /// How many routes are looked at, and which one is found.
    fn looked_at(host: &VirtualHostEntry, path: &str) -> (usize, Option<u32>) {
        let mut looked = 0;
        let found = host.index.first(path, |place| {
            looked += 1;
            let rule = &host.http[place.rule as usize];
            place.matched.is_none_or(|m| rule.matches[m as usize].accepts_uri(path))
        });
        (looked, found.map(|p| p.rule))
    }

    #[test]
    fn few_of_a_thousand_routes_are_looked_at() {
        let condition = |i: u32| match i % 2 {
            0 => exact(&format!("/exact/item-{i:04}/view")),
            _ => prefix(&format!("/prefix/{}/item-{i:04}/", "x".repeat(i as usize % 17))),
        };
        let mut http: Vec<_> =
            (0..1000).map(|i| rule(vec![uri(condition(i))], vec![to("web", "", 1)])).collect();
        http.push(rule(vec![], vec![to("web", "", 1)]));
        let m = model::VirtualHost { ..virtual_host("default/vs", http) };
        let host = VirtualHostEntry::compile(&m).unwrap();
        for (path, expected) in [
            ("/exact/item-0000/view".to_owned(), 0),
            ("/exact/item-0998/view".to_owned(), 998),
            (format!("/prefix/{}/item-0999/and/more", "x".repeat(999 % 17)), 999),
            ("/nothing/of/that".to_owned(), 1000),
        ] {
            let (looked, found) = looked_at(&host, &path);
            assert_eq!(found, Some(expected), "{path}");
            assert!(looked <= 2, "{path}: {looked} routes were looked at");
        }
    }
}
