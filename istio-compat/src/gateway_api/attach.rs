//! What a route attaches to: the listeners and services that its references name, and why some do not take it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    World,
    conditions::{self, Clock, Conditions, Problem},
    gateways::{Parent, Parents},
    grants::GroupKind,
    hostnames,
    objects::GROUP,
    types::ParentReference,
};

/// What a reference names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Gateway,
    ListenerSet,
    Service,
    ServiceEntry,
}

impl Target {
    fn of(reference: &ParentReference) -> Option<Self> {
        let kind = GroupKind::of(reference.group.as_ref(), reference.kind.as_ref(), GroupKind::GATEWAY);
        match kind {
            GroupKind::GATEWAY => Some(Self::Gateway),
            GroupKind::LISTENER_SET => Some(Self::ListenerSet),
            GroupKind::SERVICE => Some(Self::Service),
            GroupKind::SERVICE_ENTRY => Some(Self::ServiceEntry),
            _ => None,
        }
    }

    pub(crate) const fn is_mesh(self) -> bool {
        matches!(self, Self::Service | Self::ServiceEntry)
    }
}

/// One reference of a route and one thing that it may attach to.
#[derive(Debug, Clone)]
pub(crate) struct Attachment<'a> {
    /// Position of the reference in the route.
    pub(crate) index: usize,
    pub(crate) reference: &'a ParentReference,
    pub(crate) target: Target,
    /// Namespace of what the reference names.
    pub(crate) namespace: &'a str,
    /// The listener; none for the mesh.
    pub(crate) parent: Option<&'a Parent>,
    pub(crate) denied: Option<Problem>,
    /// Hosts of other listeners of the same port and protocol, which those who are more exact keep for themselves.
    others: BTreeSet<&'a str>,
}

impl Attachment<'_> {
    /// `mesh`, or the name of the Istio Gateway.
    pub(crate) fn gateway(&self) -> &str {
        self.parent.map_or("mesh", |p| &p.gateway)
    }

    /// Whether requests for a host of the route are this listener's rather than those of a more exact one.
    pub(crate) fn is_isolated(&self, host: &str) -> bool {
        let Some(own) = self.parent.map(|p| p.hostname.as_str()) else { return true };
        if !own.is_empty() && !own.starts_with('*') {
            return true;
        }
        if !own.is_empty() && !hostnames::overlap(host, own) {
            return false;
        }
        !self.others.iter().any(|other| own.len() <= other.len() && hostnames::subset(host, other))
    }
}

/// What is known of the route itself.
#[derive(Clone, Copy)]
pub(crate) struct Route<'a> {
    pub(crate) kind: &'static str,
    pub(crate) namespace: &'a str,
    pub(crate) references: &'a [ParentReference],
    pub(crate) hostnames: &'a [String],
}

/// A reference in full, for order and comparison.
fn spelled(reference: &ParentReference, namespace: &str) -> String {
    format!(
        "{}/{}/{}/{}/{}.{}",
        reference.group.as_deref().unwrap_or(GROUP),
        reference.kind.as_deref().unwrap_or("Gateway"),
        reference.name,
        reference.section_name.as_deref().unwrap_or_default(),
        reference.port.unwrap_or_default(),
        reference.namespace.as_deref().unwrap_or(namespace)
    )
}

/// All attachments, refused ones included, in order of the references in full.
pub(crate) fn all<'a>(world: &World<'_>, parents: &'a Parents, route: Route<'a>) -> Vec<Attachment<'a>> {
    let mut out = Vec::new();
    for (index, reference) in route.references.iter().enumerate() {
        let Some(target) = Target::of(reference) else { continue };
        let namespace = reference.namespace.as_deref().unwrap_or(route.namespace);
        if target.is_mesh() {
            let denied = missing(world, target, namespace, &reference.name);
            let others = BTreeSet::new();
            out.push(Attachment { index, reference, target, namespace, parent: None, denied, others });
            continue;
        }
        let key = (target == Target::ListenerSet, namespace.to_owned(), reference.name.clone());
        let listeners = parents.get(&key).map(Vec::as_slice).unwrap_or_default();
        for parent in listeners {
            let others = listeners
                .iter()
                .filter(|o| o.port == parent.port && o.protocol == parent.protocol)
                .map(|o| o.hostname.as_str())
                .filter(|host| *host != parent.hostname)
                .collect();
            let denied = refused(parent, reference, route);
            out.push(Attachment {
                index,
                reference,
                target,
                namespace,
                parent: Some(parent),
                denied,
                others,
            });
        }
    }
    out.sort_by_key(|a| spelled(a.reference, route.namespace));
    out
}

fn missing(world: &World<'_>, target: Target, namespace: &str, name: &str) -> Option<Problem> {
    let (there, what) = match target {
        Target::Service => (world.facts.service(namespace, name).is_some(), "service"),
        _ => (world.facts.service_entry(namespace, name).is_some(), "service entry"),
    };
    (!there).then(|| Problem::new("NoMatchingParent", format!("parent {what}: {name:?} not found")))
}

/// Why a listener does not take a route.
fn refused(parent: &Parent, reference: &ParentReference, route: Route<'_>) -> Option<Problem> {
    if let Some(port) = reference.port.filter(|p| *p != 0 && *p != parent.port) {
        return Some(Problem::new("NoMatchingParent", format!("port {port} not found")));
    }
    let section = reference.section_name.as_deref().unwrap_or_default();
    if !section.is_empty() && section != parent.section {
        return Some(Problem::new("NoMatchingParent", format!("sectionName {section:?} not found")));
    }
    let everything = ["*".to_owned()];
    let hosts = if route.hostnames.is_empty() { &everything[..] } else { route.hostnames };
    let (mut matched, mut host_matched) = (parent.hosts.is_empty(), false);
    for host in hosts {
        for listed in &parent.hosts {
            let (namespace, listed) = listed.split_once('/').unwrap_or(("*", listed));
            let meets = hostnames::overlap(listed, host);
            host_matched |= meets;
            matched |= meets && (namespace == "*" || namespace == route.namespace);
        }
    }
    if !matched && host_matched {
        let message = format!(
            "hostnames matched parent hostname {:?}, but namespace {:?} is not allowed by the parent",
            parent.hostname, route.namespace
        );
        return Some(Problem::new("NotAllowedByListeners", message));
    }
    if !matched {
        let message = format!("no hostnames matched parent hostname {:?}", parent.hostname);
        return Some(Problem::new("NoMatchingListenerHostname", message));
    }
    if !parent.kinds.contains(&route.kind) {
        let message = format!("kind {GROUP}/v1/{} is not allowed", route.kind);
        return Some(Problem::new("NotAllowedByListeners", message));
    }
    None
}

/// Which refusal is told when listeners refuse for several reasons.
fn rank(denied: Option<&Problem>) -> u8 {
    match denied.map(|d| d.reason) {
        None => 0,
        Some("NotAllowedByListeners") => 1,
        Some("NoMatchingListenerHostname") => 2,
        Some(_) => 4,
    }
}

/// `status.parents` of a route: one entry for each reference that names something.
pub(crate) fn status(
    attachments: &[Attachment<'_>],
    error: impl Fn(bool) -> Option<Problem>,
    ignored: Option<&Problem>,
    existing: Option<&Value>,
    (controller, namespace): (&str, &str),
    clock: Clock<'_>,
) -> Vec<Value> {
    let mut entries: Vec<(String, Value)> = Vec::new();
    let mut seen = BTreeSet::new();
    for first in attachments {
        if !seen.insert(first.index) {
            continue;
        }
        let group: Vec<_> = attachments.iter().filter(|a| a.index == first.index).collect();
        let accepted = group.iter().filter(|a| a.denied.is_none()).count();
        let mut told = group[0].denied.clone();
        for other in &group[1..] {
            let (new, old) = (rank(other.denied.as_ref()), rank(told.as_ref()));
            if new < old {
                told.clone_from(&other.denied);
            } else if new == old {
                told = conditions::join(told, other.denied.clone());
            }
        }
        let message = match accepted {
            n if n > 1 => format!("Route was valid, bound to {n} parents"),
            _ => "Route was valid".to_owned(),
        };
        let mut state = Conditions::default().set("Accepted", "Accepted", message).set(
            "ResolvedRefs",
            "ResolvedRefs",
            "All references resolved",
        );
        state.check("Accepted", told.as_ref());
        state.check("ResolvedRefs", error(first.target.is_mesh()).as_ref());
        state.check(conditions::HONOURED, ignored);
        let reference = json!(first.reference);
        let old = conditions::existing_entry(existing, "parentRef", &reference, controller);
        let entry = conditions::entry("parentRef", reference, controller, state.merged(old, clock));
        entries.push((spelled(first.reference, namespace), entry));
    }
    entries.sort_by(|a, b| b.0.cmp(&a.0));
    let ours = entries.into_iter().map(|(_, e)| e).collect();
    conditions::replace_ours(existing, "parentRef", &[controller], ours)
}
