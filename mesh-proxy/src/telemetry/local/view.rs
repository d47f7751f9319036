//! From which side a node sees calls, and what the labels of that side are.

use std::{rc::Rc, sync::Arc};

use mesh_core::WorkloadEntry;

use super::{Held, Parties};
use crate::telemetry::{
    flags::Flags,
    istio::{Call, Reporter, Security},
    peer::{Destination, Peer},
    rules::Side,
};

/// From where calls are seen.
#[derive(Debug, Clone)]
pub(super) enum View {
    /// From the node of that name, where the caller is.
    Caller(Arc<str>),
    /// From the node that owns the endpoint.
    Owner,
    /// From a node that is both.
    Beside,
}

/// Calls that ended like this did not reach the endpoint.
const NOT_REACHED: [Flags; 7] = [
    Flags::NO_HEALTHY_UPSTREAM,
    Flags::CONNECT_FAILURE,
    Flags::OVERFLOW,
    Flags::NO_ROUTE,
    Flags::NO_CLUSTER,
    Flags::FAULT_INJECTED,
    Flags::REFUSED_BY_OWNER,
];
/// What both sides see alike.
const SEEN_BY_BOTH: [Flags; 3] = [Flags::UPSTREAM_RESET, Flags::UPSTREAM_CLOSED, Flags::UPSTREAM_PROTOCOL];
/// The owner sees that the caller went away.
const GIVEN_UP: [Flags; 2] = [Flags::UPSTREAM_TIMEOUT, Flags::CLIENT_CLOSED];

impl View {
    pub(super) const fn side(&self) -> Side {
        match self {
            Self::Caller(_) => Side::Client,
            Self::Owner | Self::Beside => Side::Server,
        }
    }

    /// The workload whose rules hold.
    pub(super) fn workload<'p>(&self, parties: &'p Parties) -> Option<&'p WorkloadEntry> {
        let held = match self.side() {
            Side::Client => &parties.source,
            Side::Server => &parties.destination,
        };
        held.as_ref().map(|w| w.get())
    }

    /// The owner's side of a call that a caller's node made, and its flags there, when that is the same node.
    pub(super) fn beside(&self, parties: &Parties, flags: Flags) -> Option<(Self, Flags)> {
        let Self::Caller(node) = self else { return None };
        let destination = parties.destination.as_ref()?;
        if *destination.node != **node || NOT_REACHED.iter().any(|f| flags.has(*f)) {
            return None;
        }
        let mut seen = Flags::NONE;
        for flag in SEEN_BY_BOTH.into_iter().filter(|f| flags.has(*f)) {
            seen = seen.with(flag);
        }
        if GIVEN_UP.iter().any(|f| flags.has(*f)) {
            seen = seen.with(Flags::CLIENT_CLOSED);
        }
        Some((Self::Beside, seen))
    }
}

/// The labels of a call.
pub(super) struct Labels {
    source: Peer,
    destination: Peer,
    service: Destination,
}

impl Labels {
    pub(super) fn of(parties: &Parties, trust_domain: &str, cluster: &str) -> Self {
        let peer = |w: Option<&Rc<Held<WorkloadEntry>>>| {
            w.map_or_else(Peer::unknown, |w| Peer::of(w, trust_domain, cluster))
        };
        let service = parties.cluster.as_ref().map_or_else(Destination::passthrough, |c| Destination {
            host: Arc::clone(&c.key.host),
            name: Arc::clone(&c.service_name),
            namespace: Arc::clone(&c.service_namespace),
        });
        Self {
            source: peer(parties.source.as_ref()),
            destination: peer(parties.destination.as_ref()),
            service,
        }
    }

    pub(super) const fn call(&self, view: &View) -> Call<'_> {
        let (reporter, security) = match view {
            View::Caller(_) => (Reporter::Source, Security::Unknown),
            View::Owner => (Reporter::Destination, Security::MutualTls),
            View::Beside => (Reporter::Destination, Security::None),
        };
        Call {
            reporter,
            source: &self.source,
            destination: &self.destination,
            service: &self.service,
            security,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_both_sides_says_what_the_owner_would() {
        let workload = |node: &str| WorkloadEntry {
            address: "10.1.0.1".parse().unwrap(),
            node: node.into(),
            namespace: "default".into(),
            name: "web-1".into(),
            owner: "web".into(),
            service_account: "web".into(),
            labels: std::collections::BTreeMap::new(),
            host_network: false,
        };
        let to = |node: &str| Parties {
            destination: Some(Held::new(&Arc::new(workload(node)))),
            ..Parties::default()
        };
        let here = View::Caller("a".into());
        let seen = |parties: &Parties, flags| here.beside(parties, flags).map(|(_, flags)| flags);
        assert_eq!(seen(&to("a"), Flags::NONE), Some(Flags::NONE));
        assert_eq!(seen(&to("a"), Flags::UPSTREAM_TIMEOUT), Some(Flags::CLIENT_CLOSED));
        assert_eq!(
            seen(&to("a"), Flags::UPSTREAM_CLOSED.with(Flags::RETRY_LIMIT)),
            Some(Flags::UPSTREAM_CLOSED)
        );
        assert_eq!(seen(&to("a"), Flags::CONNECT_FAILURE.with(Flags::RETRY_LIMIT)), None);
        assert_eq!((seen(&to("b"), Flags::NONE), seen(&Parties::default(), Flags::NONE)), (None, None));
        assert!(View::Owner.beside(&to("a"), Flags::NONE).is_none());
    }
}
