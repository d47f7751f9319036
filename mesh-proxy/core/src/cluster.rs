//! The endpoints behind one destination, with the policy that applies to them.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use crate::{
    endpoint::{EndpointEntry, EndpointSet},
    hash::Fnv,
    policy::{EffectivePolicy, PolicyEntry, SubsetEntry},
    service::{PortEntry, ServiceDef, ServiceKind},
};

/// What makes two clusters the same across snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClusterKey {
    /// The service's host.
    pub host: Arc<str>,
    /// Subset; empty = the whole service.
    pub subset: Arc<str>,
    /// Service port.
    pub port: u16,
    /// `namespace/name` of the DestinationRule; empty = none.
    pub policy: Arc<str>,
}

impl ClusterKey {
    /// A number for the key, equal in every snapshot: for maps of run-time state.
    pub fn id(&self) -> u64 {
        Fnv::of(&[
            self.host.as_bytes(),
            self.subset.as_bytes(),
            &self.port.to_be_bytes(),
            self.policy.as_bytes(),
        ])
    }
}

/// One endpoint of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterEndpoint {
    /// Where to connect.
    pub addr: SocketAddr,
    /// At least 1.
    pub weight: u32,
    /// Everything else about it.
    pub endpoint: Arc<EndpointEntry>,
}

impl ClusterEndpoint {
    /// The node that owns it; none = connect directly.
    pub fn node(&self) -> Option<&Arc<str>> {
        self.endpoint.node.as_ref()
    }
}

/// A destination: endpoints that serve (service, subset, port) for a client to which `policy` applies.
#[derive(Debug, PartialEq)]
pub struct Cluster {
    /// Identity across snapshots.
    pub key: ClusterKey,
    /// [`ClusterKey::id`] of the key.
    pub id: u64,
    /// The service's name.
    pub service_name: Arc<str>,
    /// The service's namespace.
    pub service_namespace: Arc<str>,
    /// The port as the service declares it.
    pub port: PortEntry,
    /// Endpoints that take new connections.
    pub endpoints: Box<[ClusterEndpoint]>,
    /// How to treat them.
    pub policy: Arc<EffectivePolicy>,
    /// The name behind an ExternalName service: it has no endpoints, the name is to be resolved.
    pub external_name: Option<Arc<str>>,
    /// All weights are equal.
    pub equal_weights: bool,
    /// Sum of the weights.
    pub total_weight: u64,
}

/// Compiles all clusters of a service, ordered by (policy, port, subset). The position of a policy counts from 1;
/// 0 is "no policy".
pub(crate) fn compile_all(
    def: &ServiceDef,
    set: &EndpointSet,
    old: &[(ClusterSlot, Arc<Cluster>)],
) -> Box<[(ClusterSlot, Arc<Cluster>)]> {
    let mut out = Vec::new();
    if def.kind == ServiceKind::RouteOnly {
        return Box::default();
    }
    for (number, policy) in std::iter::once(None).chain(def.policies.iter().map(Some)).enumerate() {
        for port in &def.ports {
            let subsets = policy.map_or(&[][..], |p| &p.subsets);
            for subset in std::iter::once(None).chain(subsets.iter().map(Some)) {
                let slot = ClusterSlot {
                    policy: u32::try_from(number).unwrap_or(u32::MAX),
                    port: port.number,
                    subset: subset.map_or_else(|| def.no_subset.clone(), |s| s.name.clone()),
                };
                let new = compile_one(def, set, policy, port, subset);
                // An equal cluster keeps its identity, so that its balancer has nothing to do.
                let kept = find(old, &slot).filter(|c| ***c == new).cloned();
                out.push((slot, kept.unwrap_or_else(|| Arc::new(new))));
            }
        }
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    out.dedup_by(|b, a| a.0 == b.0);
    out.into_boxed_slice()
}

/// Where a cluster is in its service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClusterSlot {
    policy: u32,
    port: u16,
    subset: Arc<str>,
}

fn find<'a>(list: &'a [(ClusterSlot, Arc<Cluster>)], slot: &ClusterSlot) -> Option<&'a Arc<Cluster>> {
    list.binary_search_by(|(s, _)| s.cmp(slot)).ok().map(|i| &list[i].1)
}

pub(crate) fn lookup<'a>(
    list: &'a [(ClusterSlot, Arc<Cluster>)],
    policy: u32,
    port: u16,
    subset: &str,
) -> Option<&'a Arc<Cluster>> {
    list.binary_search_by(|(s, _)| (s.policy, s.port, &*s.subset).cmp(&(policy, port, subset)))
        .ok()
        .map(|i| &list[i].1)
}

fn compile_one(
    def: &ServiceDef,
    set: &EndpointSet,
    policy: Option<&PolicyEntry>,
    port: &PortEntry,
    subset: Option<&SubsetEntry>,
) -> Cluster {
    let endpoints = select(def, set, port.number, subset);
    let first = endpoints.first().map_or(1, |e| e.weight);
    let key = ClusterKey {
        host: def.host.clone(),
        subset: subset.map_or_else(|| def.no_subset.clone(), |s| s.name.clone()),
        port: port.number,
        policy: policy.map_or_else(|| def.no_subset.clone(), |p| p.source.clone()),
    };
    Cluster {
        id: key.id(),
        key,
        service_name: def.name.clone(),
        service_namespace: def.namespace.clone(),
        port: port.clone(),
        equal_weights: endpoints.iter().all(|e| e.weight == first),
        total_weight: endpoints.iter().map(|e| u64::from(e.weight)).sum(),
        endpoints,
        policy: policy.map_or_else(no_policy, |p| Arc::new(p.effective(subset, port.number))),
        external_name: def.external_name.clone(),
    }
}

/// What applies where no rule does: one for all.
fn no_policy() -> Arc<EffectivePolicy> {
    static NONE: OnceLock<Arc<EffectivePolicy>> = OnceLock::new();
    NONE.get_or_init(Arc::default).clone()
}

fn select(
    def: &ServiceDef,
    set: &EndpointSet,
    port: u16,
    subset: Option<&SubsetEntry>,
) -> Box<[ClusterEndpoint]> {
    let in_subset = |e: &EndpointEntry| {
        subset.is_none_or(|s| s.labels.iter().all(|(k, v)| label(e, k) == Some(v.as_str())))
    };
    let usable = |terminating: bool| {
        set.endpoints
            .iter()
            .filter(|e| (e.ready || def.publish_not_ready) && e.terminating == terminating && in_subset(e))
            .filter_map(|e| {
                let target = e.target_port(port)?;
                Some(ClusterEndpoint {
                    addr: SocketAddr::new(e.address, target),
                    weight: e.weight,
                    endpoint: e.clone(),
                })
            })
            .collect::<Box<[_]>>()
    };
    let live = usable(false);
    // When every endpoint is shutting down, the ones that still serve are better than none.
    if live.is_empty() { usable(true) } else { live }
}

/// A label of the endpoint's pod, or one that its place gives it.
fn label<'a>(e: &'a EndpointEntry, key: &str) -> Option<&'a str> {
    if let Some(v) = e.workload.labels.get(key) {
        return Some(v);
    }
    let v = match key {
        "topology.kubernetes.io/region" => &*e.locality.region,
        "topology.kubernetes.io/zone" => &*e.locality.zone,
        "selvage.io/site" => &*e.locality.site,
        "topology.istio.io/network" => &*e.locality.network,
        "kubernetes.io/hostname" => e.node.as_deref().unwrap_or_default(),
        _ => "",
    };
    (!v.is_empty()).then_some(v)
}
