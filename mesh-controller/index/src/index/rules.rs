//! Which rules concern which host.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use istio_compat::names;

use crate::object::Name;

/// Rules by the host that they are for.
#[derive(Debug, Default)]
pub(super) struct Claims {
    exact: HashMap<Arc<str>, BTreeSet<Name>>,
    /// Few, so they are simply looked through.
    wild: BTreeMap<Arc<str>, BTreeSet<Name>>,
}

impl Claims {
    pub(super) fn insert(&mut self, host: &str, rule: &Name) {
        let slot = if names::is_wildcard(host) {
            self.wild.entry(host.into()).or_default()
        } else {
            self.exact.entry(host.into()).or_default()
        };
        slot.insert(rule.clone());
    }

    pub(super) fn remove(&mut self, host: &str, rule: &Name) {
        if names::is_wildcard(host) {
            if let Some(set) = self.wild.get_mut(host) {
                set.remove(rule);
                if set.is_empty() {
                    self.wild.remove(host);
                }
            }
        } else if let Some(set) = self.exact.get_mut(host) {
            set.remove(rule);
            if set.is_empty() {
                self.exact.remove(host);
            }
        }
    }

    /// Rules that name exactly this host, wildcard or not.
    pub(super) fn names_exactly(&self, host: &str) -> bool {
        self.exact.contains_key(host) || self.wild.contains_key(host)
    }

    /// All rules.
    pub(super) fn all(&self) -> BTreeSet<&Name> {
        self.exact.values().chain(self.wild.values()).flatten().collect()
    }

    /// All hosts that rules name.
    pub(super) fn hosts(&self) -> impl Iterator<Item = &Arc<str>> {
        self.exact.keys().chain(self.wild.keys())
    }

    /// Rules that cover a host.
    pub(super) fn covering(&self, host: &str) -> BTreeSet<&Name> {
        let exact = self.exact.get(host).into_iter().flatten();
        let wild =
            self.wild.iter().filter(|(pattern, _)| names::covers(pattern, host)).flat_map(|(_, set)| set);
        exact.chain(wild).collect()
    }

    /// Wildcards that cover a host.
    pub(super) fn wildcards_over<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Arc<str>> {
        self.wild.keys().filter(move |pattern| names::covers(pattern, host))
    }
}
