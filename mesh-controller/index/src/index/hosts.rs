//! The hosts of all services, so that a wildcard finds the ones it covers without looking at the rest.

use std::{collections::BTreeSet, ops::Bound, sync::Arc};

#[derive(Debug, Default)]
pub(super) struct HostSet {
    /// Hosts spelled backwards: those with a common suffix are neighbours.
    reversed: BTreeSet<String>,
}

impl HostSet {
    pub(super) fn insert(&mut self, host: &str) -> bool {
        self.reversed.insert(reverse(host))
    }

    pub(super) fn remove(&mut self, host: &str) -> bool {
        self.reversed.remove(&reverse(host))
    }

    pub(super) fn contains(&self, host: &str) -> bool {
        self.reversed.contains(&reverse(host))
    }

    /// The hosts that `pattern` covers: itself, or all that end in what follows its `*`.
    pub(super) fn covered_by<'a>(&'a self, pattern: &'a str) -> Box<dyn Iterator<Item = Arc<str>> + 'a> {
        let Some(suffix) = pattern.strip_prefix('*') else {
            return Box::new(self.contains(pattern).then(|| pattern.into()).into_iter());
        };
        let prefix = reverse(suffix);
        let from = (Bound::Included(prefix.clone()), Bound::Unbounded);
        let run = self.reversed.range::<String, _>(from).take_while(move |h| h.starts_with(&prefix));
        Box::new(run.map(|h| reverse(h).into()))
    }
}

/// By bytes: host names are ASCII, and anything else only has to compare equal to itself.
fn reverse(host: &str) -> String {
    host.chars().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_finds_what_it_covers() {
        let mut set = HostSet::default();
        let all = [
            "a.default.svc.cluster.local",
            "b.default.svc.cluster.local",
            "a.prod.svc.cluster.local",
            "x.com",
        ];
        for h in all {
            assert!(set.insert(h));
        }
        let covered = |p: &str| {
            let mut found: Vec<_> = set.covered_by(p).map(|h| h.to_string()).collect();
            found.sort();
            found
        };
        assert_eq!(covered("*.default.svc.cluster.local"), [all[0], all[1]]);
        assert_eq!(covered("*.svc.cluster.local").len(), 3);
        assert_eq!(covered("*").len(), 4);
        assert_eq!(covered("x.com"), ["x.com"]);
        assert!(covered("*.x.com").is_empty());
        assert!(covered("y.com").is_empty());
        assert!(set.remove("x.com") && !set.remove("x.com"));
    }
}
