//! The endpoints behind one destination, with the policy that applies to them.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    balance::{groups::Groups, table::HashTable},
    endpoint::{EndpointEntry, EndpointSet, NamedEndpoint},
    hash::Fnv,
    policy::{EffectivePolicy, HashTableKind, LoadBalancing, PolicyDefaults, PolicyEntry, SubsetEntry},
    service::{PortEntry, Protocol, Resolution, ServiceDef, ServiceKind},
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
    /// A port of datagrams.
    pub udp: bool,
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
            if self.udp { b"udp" } else { b"" },
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
    /// Where its endpoints come from.
    pub source: Source,
    /// Near endpoints are preferred even without outlier detection.
    pub prefers_near: bool,
    /// All weights are equal.
    pub equal_weights: bool,
    /// Sum of the weights.
    pub total_weight: u64,
    /// Outside the mesh, as the rule that declares it says.
    pub external: bool,
    /// Names of which a server shows one, when TLS is opened towards it and its rule says nothing.
    pub subject_alt_names: Arc<[Box<str>]>,
    /// Tables for consistent hashing, made when first needed.
    pub tables: TableCache,
}

/// Where the endpoints of a cluster come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Source {
    /// The list.
    #[default]
    List,
    /// The address that the client called.
    Original,
    /// Names, beside the list.
    Names {
        /// The names.
        names: Box<[NamedEndpoint]>,
        /// Only the first address of a look-up is used.
        first: bool,
    },
    /// The name that the request asks for.
    Asked,
}

/// Tables for consistent hashing of one cluster. They follow from the endpoints, so they do not count when clusters
/// are compared.
#[derive(Debug, Default)]
pub struct TableCache(Mutex<Option<(Members, Arc<[HashTable]>)>>);

type Members = Box<[Box<[u32]>]>;

impl PartialEq for TableCache {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Cluster {
    /// The tables for these groups of endpoints; shared by all who group them so.
    pub(crate) fn hash_tables(&self, kind: HashTableKind, groups: &Groups) -> Arc<[HashTable]> {
        let mut cached = self.tables.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((members, tables)) = &*cached
            && members.iter().map(|m| &**m).eq(groups.members())
        {
            return Arc::clone(tables);
        }
        let tables: Arc<[_]> = groups.members().map(|m| HashTable::build(kind, &self.endpoints, m)).collect();
        *cached = Some((groups.members().map(Into::into).collect(), Arc::clone(&tables)));
        tables
    }
}

/// Compiles all clusters of a service, ordered by (policy, port, subset). The position of a policy counts from 1;
/// 0 is "no policy".
pub(crate) fn compile_all(
    def: &ServiceDef,
    set: &EndpointSet,
    old: &[(ClusterSlot, Arc<Cluster>)],
    defaults: &PolicyDefaults,
) -> Box<[(ClusterSlot, Arc<Cluster>)]> {
    let mut out = Vec::new();
    if def.kind == ServiceKind::RouteOnly {
        return Box::default();
    }
    for (number, policy) in std::iter::once(None).chain(def.policies.iter().map(Some)).enumerate() {
        for port in &def.ports {
            let udp = port.protocol == Protocol::Udp;
            // No rule sends datagrams to a subset.
            let subsets = policy.filter(|_| !udp).map_or(&[][..], |p| &p.subsets);
            for subset in std::iter::once(None).chain(subsets.iter().map(Some)) {
                let slot = ClusterSlot {
                    policy: u32::try_from(number).unwrap_or(u32::MAX),
                    port: port.number,
                    udp,
                    subset: subset.map_or_else(|| def.no_subset.clone(), |s| s.name.clone()),
                };
                let new = compile_one(def, (set, defaults), policy, port, subset);
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
    udp: bool,
    subset: Arc<str>,
}

fn find<'a>(list: &'a [(ClusterSlot, Arc<Cluster>)], slot: &ClusterSlot) -> Option<&'a Arc<Cluster>> {
    list.binary_search_by(|(s, _)| s.cmp(slot)).ok().map(|i| &list[i].1)
}

pub(crate) fn lookup<'a>(
    list: &'a [(ClusterSlot, Arc<Cluster>)],
    policy: u32,
    (port, udp): (u16, bool),
    subset: &str,
) -> Option<&'a Arc<Cluster>> {
    list.binary_search_by(|(s, _)| (s.policy, s.port, s.udp, &*s.subset).cmp(&(policy, port, udp, subset)))
        .ok()
        .map(|i| &list[i].1)
}

fn compile_one(
    def: &ServiceDef,
    (set, defaults): (&EndpointSet, &PolicyDefaults),
    policy: Option<&PolicyEntry>,
    port: &PortEntry,
    subset: Option<&SubsetEntry>,
) -> Cluster {
    let endpoints = select(def, set, port, subset);
    let first = endpoints.first().map_or(1, |e| e.weight);
    let key = ClusterKey {
        host: def.host.clone(),
        subset: subset.map_or_else(|| def.no_subset.clone(), |s| s.name.clone()),
        port: port.number,
        udp: port.protocol == Protocol::Udp,
        policy: policy.map_or_else(|| def.no_subset.clone(), |p| p.source.clone()),
    };
    let effective = policy.map_or_else(
        || Arc::clone(defaults.none()),
        |p| Arc::new(p.effective(subset, port.number, defaults)),
    );
    let passes = effective.balancing.kind == LoadBalancing::Passthrough;
    let id = key.id();
    Cluster {
        id: if def.beside { Fnv::of(&[&id.to_be_bytes(), def.namespace.as_bytes()]) } else { id },
        key,
        service_name: def.name.clone(),
        service_namespace: def.namespace.clone(),
        port: port.clone(),
        equal_weights: endpoints.iter().all(|e| e.weight == first),
        total_weight: endpoints.iter().map(|e| u64::from(e.weight)).sum(),
        endpoints,
        policy: effective,
        source: source(def, set, subset, passes),
        prefers_near: def.prefers_near,
        external: def.kind == ServiceKind::External && !def.internal,
        subject_alt_names: def.subject_alt_names.clone(),
        tables: TableCache::default(),
    }
}

fn source(def: &ServiceDef, set: &EndpointSet, subset: Option<&SubsetEntry>, passes: bool) -> Source {
    // Outside, the called address means something by itself.
    if passes && def.kind == ServiceKind::External && def.vips.is_empty() {
        return Source::Original;
    }
    if let Some(name) = &def.external_name {
        return Source::Names { names: [NamedEndpoint::outside(name)].into(), first: false };
    }
    match def.resolution {
        Resolution::Static => Source::List,
        Resolution::Original => Source::Original,
        Resolution::Asked => Source::Asked,
        Resolution::Dns { first } => {
            let mut names: Box<[_]> =
                set.names.iter().filter(|n| in_subset(&n.entry, subset)).cloned().collect();
            if set.names.is_empty() && set.endpoints.is_empty() && !def.host.starts_with('*') {
                names = [NamedEndpoint::outside(&def.host)].into();
            }
            if names.is_empty() { Source::List } else { Source::Names { names, first } }
        }
    }
}

fn in_subset(e: &EndpointEntry, subset: Option<&SubsetEntry>) -> bool {
    subset.is_none_or(|s| s.labels.iter().all(|(k, v)| e.label(k) == Some(v.as_str())))
}

fn select(
    def: &ServiceDef,
    set: &EndpointSet,
    port: &PortEntry,
    subset: Option<&SubsetEntry>,
) -> Box<[ClusterEndpoint]> {
    let usable = |terminating: bool| {
        set.endpoints
            .iter()
            .filter(|e| {
                (e.ready || def.publish_not_ready) && e.terminating == terminating && in_subset(e, subset)
            })
            .filter_map(|e| {
                let target = match port.protocol {
                    Protocol::Udp => e.udp_target_port(port.number)?,
                    _ => e.target_port(port.number).or_else(|| def.default_target(port.number))?,
                };
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

impl Cluster {
    /// The same destination with other endpoints. `salt` tells it apart from the original where both are in use; empty
    /// = it takes its place.
    pub fn with_endpoints(&self, endpoints: Box<[ClusterEndpoint]>, salt: &[u8]) -> Self {
        let first = endpoints.first().map_or(1, |e| e.weight);
        Self {
            key: self.key.clone(),
            id: if salt.is_empty() { self.id } else { Fnv::of(&[&self.id.to_be_bytes(), salt]) },
            service_name: self.service_name.clone(),
            service_namespace: self.service_namespace.clone(),
            port: self.port.clone(),
            equal_weights: endpoints.iter().all(|e| e.weight == first),
            total_weight: endpoints.iter().map(|e| u64::from(e.weight)).sum(),
            endpoints,
            policy: self.policy.clone(),
            source: Source::List,
            prefers_near: self.prefers_near,
            external: self.external,
            subject_alt_names: self.subject_alt_names.clone(),
            tables: TableCache::default(),
        }
    }

    /// A destination that no table knows, under one of the names that Istio has for such traffic.
    pub fn unknown(name: &str, addr: Option<SocketAddr>) -> Self {
        let none: Arc<str> = "".into();
        let port = addr.map_or(0, |a| a.port());
        let key = ClusterKey {
            host: name.into(),
            subset: none.clone(),
            port,
            udp: false,
            // Not a policy, but what tells two addresses apart.
            policy: addr.map_or_else(|| none.clone(), |a| a.to_string().into()),
        };
        Self {
            id: key.id(),
            key,
            service_name: name.into(),
            service_namespace: "unknown".into(),
            port: PortEntry { number: port, name: none, protocol: Protocol::Detect },
            endpoints: addr.map(ClusterEndpoint::outside).into_iter().collect(),
            policy: Arc::default(),
            source: Source::List,
            prefers_near: false,
            equal_weights: true,
            total_weight: 1,
            external: true,
            subject_alt_names: Arc::default(),
            tables: TableCache::default(),
        }
    }
}

impl ClusterEndpoint {
    /// An address of which nothing else is known.
    pub fn outside(addr: SocketAddr) -> Self {
        Self::at(addr, &EndpointEntry::outside(addr.ip()))
    }

    /// An endpoint that a template describes, at an address.
    pub fn at(addr: SocketAddr, template: &EndpointEntry) -> Self {
        let endpoint = EndpointEntry { address: addr.ip(), ..template.clone() };
        Self { addr, weight: endpoint.weight, endpoint: Arc::new(endpoint) }
    }
}
