//! DestinationRule to destination policies: which rule is for whom, in which order, and what it says.

use std::{cmp::Reverse, collections::BTreeMap};

use mesh_api::model;

use super::{Context, http, route::Visibility, traffic};
use crate::{
    names,
    types::{DestinationRule, Subset, TrafficPolicy},
};

pub(super) fn destination_rule(
    object: &DestinationRule,
    ctx: &Context,
) -> Option<(String, model::DestinationPolicy)> {
    let rule = Merged::of(object, ctx);
    let visible = match &rule.visibility {
        Visibility::Nobody => return None,
        v => v.namespaces(),
    };
    Some((super::host_of(object, ctx), rule.model(visible)))
}

/// Rules for one host of one namespace that act as one.
#[derive(Clone, PartialEq)]
struct Merged<'a> {
    sources: Vec<&'a DestinationRule>,
    visibility: Visibility,
    selector: Option<&'a BTreeMap<String, String>>,
    policy: Option<&'a TrafficPolicy>,
    subsets: Vec<&'a Subset>,
}

impl<'a> Merged<'a> {
    fn of(object: &'a DestinationRule, ctx: &Context) -> Self {
        let namespace = &object.meta.namespace;
        let selector = object.spec.workload_selector.as_ref().map(|s| &s.match_labels);
        Self {
            sources: vec![object],
            // A rule for chosen workloads is never for other namespaces.
            visibility: match selector {
                Some(_) => Visibility::Only(vec![namespace.clone()]),
                None => Visibility::of(
                    super::exported(&object.spec.export_to, &ctx.exports.destination_rule),
                    namespace,
                ),
            },
            selector,
            policy: object.spec.traffic_policy.as_ref(),
            subsets: object.spec.subsets.iter().collect(),
        }
    }

    /// Takes a younger rule in: subsets unite, the first definition of a name stays; the first policy stays whole.
    fn absorb(&mut self, other: &Self) {
        self.sources.extend(&other.sources);
        for subset in &other.subsets {
            if !self.subsets.iter().any(|s| s.name == subset.name) {
                self.subsets.push(subset);
            }
        }
        self.policy = self.policy.or(other.policy);
    }

    fn model(&self, visible_to: Vec<String>) -> model::DestinationPolicy {
        let meta = self.sources.first().map(|s| s.meta.clone()).unwrap_or_default();
        let (policy, ports) = traffic::policy(self.policy, &meta);
        model::DestinationPolicy {
            source: self.sources.first().map(|s| s.meta.key()).unwrap_or_default(),
            visible_to,
            policy,
            ports,
            subsets: self.subsets.iter().map(|s| subset(s, &meta)).collect(),
            workload_selector: self.selector.cloned().unwrap_or_default(),
        }
    }
}

fn subset(s: &Subset, meta: &crate::types::Meta) -> model::Subset {
    let (policy, ports) = traffic::policy(s.traffic_policy.as_ref(), meta);
    model::Subset { name: s.name.clone(), labels: s.labels.clone(), policy, ports }
}

pub(super) fn policies(
    host: &str,
    service_namespace: &str,
    candidates: &[&DestinationRule],
    ctx: &Context,
) -> Vec<model::DestinationPolicy> {
    let mut by_namespace: BTreeMap<&str, Vec<&DestinationRule>> = BTreeMap::new();
    for rule in candidates.iter().filter(|r| names::covers(&super::host_of(r, ctx), host)) {
        by_namespace.entry(&rule.meta.namespace).or_default().push(rule);
    }
    let root = ctx.root_namespace.as_str();
    let mut out = Vec::new();
    let mut exported: BTreeMap<&str, Vec<Merged<'_>>> = BTreeMap::new();
    for (namespace, rules) in &by_namespace {
        let shares = *namespace == service_namespace || *namespace == root;
        let shared = if shares {
            merged(rules, |v| *v != Visibility::Nobody && !v.is_private(namespace), ctx)
        } else {
            Vec::new()
        };
        // Clients of the root namespace look at its private rules only, then go on like everybody.
        let local = if *namespace == root {
            merged(rules, |v| v.is_private(root), ctx)
        } else {
            merged(rules, |v| v.sees(namespace), ctx)
        };
        if local != shared {
            append_local(&mut out, &local, namespace);
        }
        exported.insert(namespace, shared);
    }
    let mut steps = vec![service_namespace];
    if root != service_namespace {
        steps.push(root);
    }
    for rule in steps.iter().filter_map(|n| exported.get(n)).flat_map(|list| list.iter().rev()) {
        out.push(rule.model(rule.visibility.namespaces()));
    }
    out
}

/// The rules of a namespace for its own clients: first those for chosen workloads, then the newest of the others. When
/// there are only rules for chosen workloads, other workloads have no policy at all.
fn append_local(out: &mut Vec<model::DestinationPolicy>, local: &[Merged<'_>], namespace: &str) {
    let visible = || vec![namespace.to_owned()];
    out.extend(local.iter().filter(|r| r.selector.is_some()).map(|r| r.model(visible())));
    match local.iter().rfind(|r| r.selector.is_none()) {
        Some(last) => out.push(last.model(visible())),
        None if local.is_empty() => {}
        None => out.push(model::DestinationPolicy { visible_to: visible(), ..Default::default() }),
    }
}

/// Rules of one namespace that pass `filter`, for the most specific host among them, merged, oldest first.
fn merged<'a>(
    rules: &[&'a DestinationRule],
    filter: impl Fn(&Visibility) -> bool,
    ctx: &Context,
) -> Vec<Merged<'a>> {
    let mut list: Vec<(String, Merged<'a>)> = rules
        .iter()
        .map(|r| (super::host_of(r, ctx), Merged::of(r, ctx)))
        .filter(|(_, m)| filter(&m.visibility))
        .collect();
    let Some(best) = list.iter().map(|(h, _)| names::specificity(h)).max() else { return Vec::new() };
    list.retain(|(h, _)| names::specificity(h) == best);
    list.sort_by(|(_, a), (_, b)| {
        let key = |m: &Merged<'a>| {
            (Reverse(m.selector.is_some()), m.sources.first().map(|s| s.meta.age_order()).unwrap_or_default())
        };
        key(a).cmp(&key(b))
    });
    let mut out: Vec<Merged<'a>> = Vec::new();
    for (_, rule) in list {
        match out.iter_mut().find(|m| m.visibility == rule.visibility && m.selector == rule.selector) {
            Some(existing) => existing.absorb(&rule),
            None => out.push(rule),
        }
    }
    out
}

/// Kept beside the policies that need it: a duration that is not positive means "not set".
pub(super) fn length(d: Option<&crate::types::Duration>) -> Option<model::Millis> {
    d.and_then(http::positive)
}
