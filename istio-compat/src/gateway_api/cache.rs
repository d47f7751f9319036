//! What was compiled before, so that a change costs as much as it concerns: a route is compiled again when it changed or
//! a service that it names, and merged only with those of the same parent and host.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    Derived, DerivedGateway, GatewayKind, ObjectRef, Statuses, World,
    gateways::{self, Gateways},
    objects::Key,
    policies,
    routes::{self, Outcome},
};
use crate::types::{DestinationRule, VirtualService};

/// A route.
type RouteId = (GatewayKind, Key);

/// What changed since the last time.
#[derive(Debug, Clone, Default)]
pub struct Touched {
    /// Something that all routes may depend on.
    pub everything: bool,
    /// Routes, by kind, namespace and name.
    pub routes: BTreeSet<(GatewayKind, (String, String))>,
    /// Services of Kubernetes, by namespace and name.
    pub services: BTreeSet<(String, String)>,
    /// Policies of backends.
    pub policies: bool,
}

impl Touched {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        !self.everything && !self.policies && self.routes.is_empty() && self.services.is_empty()
    }
}

/// What came out different, or may have.
#[derive(Debug, Clone, Default)]
pub struct Delta {
    /// All listeners there are now; none = as before.
    pub gateways: Option<Vec<DerivedGateway>>,
    /// Routes by namespace and name; those that are gone without an object.
    pub virtual_services: BTreeMap<(String, String), Option<VirtualService>>,
    /// All policies there are now; none = as before.
    pub destination_rules: Option<Vec<DestinationRule>>,
}

/// What was compiled before.
#[derive(Debug, Default)]
pub struct Cache {
    gateways: Gateways,
    outcomes: BTreeMap<RouteId, Outcome>,
    /// Routes by the parent and host that they have a part of.
    parts: BTreeMap<String, BTreeSet<RouteId>>,
    /// What became of a parent and host.
    merged: BTreeMap<String, Key>,
    /// Routes by the service that they name.
    users: BTreeMap<Key, BTreeSet<RouteId>>,
    /// Routes whose status was not handed out yet.
    news: BTreeSet<RouteId>,
}

fn note<K: Ord + Clone>(map: &mut BTreeMap<K, BTreeSet<RouteId>>, key: &K, id: &RouteId, present: bool) {
    if present {
        map.entry(key.clone()).or_default().insert(id.clone());
    } else if let Some(set) = map.get_mut(key) {
        set.remove(id);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

fn key_of(object: &VirtualService) -> Key {
    (object.meta.namespace.clone(), object.meta.name.clone())
}

impl Cache {
    /// Brings everything up to date.
    pub fn refresh(&mut self, world: &World<'_>, touched: &Touched) -> Delta {
        let mut delta = Delta::default();
        let mut todo = touched.routes.clone();
        if touched.everything {
            self.gateways = Gateways::compile(world);
            delta.gateways = Some(self.gateways.derived.clone());
            todo.extend(self.outcomes.keys().cloned());
            todo.extend(all_routes(world));
        } else if !touched.services.is_empty() {
            todo.extend(touched.services.iter().filter_map(|s| self.users.get(s)).flatten().cloned());
            // Their selectors may be others now.
            delta.gateways = Some(self.gateways.derived.clone());
        }
        let mut keys = BTreeSet::new();
        for id in todo {
            self.route(world, id, &mut keys, &mut delta);
        }
        for key in keys {
            self.merge(&key, &mut delta);
        }
        delta.destination_rules = Some(policies::compile(world, &self.reached(), "", &mut Vec::new()));
        delta
    }

    fn route(&mut self, world: &World<'_>, id: RouteId, keys: &mut BTreeSet<String>, delta: &mut Delta) {
        let new = compile_route(world, &self.gateways.parents, &id);
        let old = self.outcomes.remove(&id);
        for (outcome, present) in old.iter().map(|o| (o, false)).chain(new.iter().map(|o| (o, true))) {
            for (key, _) in &outcome.parts {
                note(&mut self.parts, key, &id, present);
                keys.insert(key.clone());
            }
            for service in &outcome.services {
                note(&mut self.users, service, &id, present);
            }
            for object in &outcome.virtual_services {
                delta.virtual_services.insert(key_of(object), present.then(|| object.clone()));
            }
        }
        if let Some(new) = new {
            self.outcomes.insert(id.clone(), new);
        }
        self.news.insert(id);
    }

    fn merge(&mut self, key: &str, delta: &mut Delta) {
        let routes = self.parts.get(key).into_iter().flatten();
        let parts: Vec<_> = routes
            .filter_map(|id| self.outcomes.get(id))
            .flat_map(|outcome| &outcome.parts)
            .filter(|(k, _)| k == key)
            .map(|(_, part)| part)
            .collect();
        let merged = routes::merge(key, parts);
        if let Some(old) = self.merged.remove(key) {
            delta.virtual_services.insert(old, None);
        }
        if let Some(object) = merged {
            self.merged.insert(key.to_owned(), key_of(&object));
            delta.virtual_services.insert(key_of(&object), Some(object));
        }
    }

    fn reached(&self) -> BTreeSet<routes::Reached> {
        self.outcomes.values().flat_map(|o| o.reached.iter().cloned()).collect()
    }

    /// Statuses of classes, Gateways and policies, and of routes that changed since the last call. `now` is the time
    /// (RFC 3339) of conditions that change.
    pub fn statuses(&mut self, world: &World<'_>, now: &str) -> Statuses {
        let mut out = Statuses::new();
        gateways::class_statuses(world, now, &mut out);
        let mut attached: BTreeMap<&routes::Attached, usize> = BTreeMap::new();
        for listener in self.outcomes.values().flat_map(|o| &o.attached) {
            *attached.entry(listener).or_default() += 1;
        }
        let count = |is_set: bool, key: &Key, listener: &str| {
            attached.get(&(is_set, key.clone(), listener.to_owned())).copied().unwrap_or_default()
        };
        // What serves a Gateway may have changed since it was compiled.
        Gateways::compile(world).statuses(count, now, &mut out);
        for id in std::mem::take(&mut self.news) {
            let status = self.outcomes.get(&id).and_then(|o| o.status.clone());
            if let Some((reference, mut status)) = status {
                stamp(&mut status, now);
                out.push((reference, status));
            }
        }
        policies::compile(world, &self.reached(), now, &mut out);
        out
    }

    /// All derived objects.
    pub(super) fn derived(world: &World<'_>, now: &str) -> (Derived, Statuses) {
        let mut cache = Self::default();
        let delta = cache.refresh(world, &Touched { everything: true, ..Touched::default() });
        let derived = Derived {
            gateways: delta.gateways.unwrap_or_default(),
            virtual_services: delta.virtual_services.into_values().flatten().collect(),
            destination_rules: delta.destination_rules.unwrap_or_default(),
        };
        (derived, cache.statuses(world, now))
    }
}

/// Conditions that changed when nobody knew the time get it now.
fn stamp(status: &mut Value, now: &str) {
    match status {
        Value::Object(map) => {
            for (key, value) in map {
                if key == "lastTransitionTime" && value.as_str() == Some("") {
                    *value = now.into();
                } else {
                    stamp(value, now);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| stamp(v, now)),
        _ => {}
    }
}

/// The reference of a route, to tell whether it exists.
fn all_routes(world: &World<'_>) -> impl Iterator<Item = RouteId> {
    let kinds = [
        GatewayKind::HTTPRoute,
        GatewayKind::GRPCRoute,
        GatewayKind::TLSRoute,
        GatewayKind::TCPRoute,
        GatewayKind::UDPRoute,
    ];
    kinds.into_iter().flat_map(|kind| world.objects.names(kind).into_iter().map(move |key| (kind, key)))
}

fn compile_route(world: &World<'_>, parents: &gateways::Parents, (kind, key): &RouteId) -> Option<Outcome> {
    let objects = world.objects;
    match kind {
        GatewayKind::HTTPRoute => objects.http_routes.get(key).map(|r| routes::http_route(world, parents, r)),
        GatewayKind::GRPCRoute => objects.grpc_routes.get(key).map(|r| routes::grpc_route(world, parents, r)),
        GatewayKind::TLSRoute => objects.tls_routes.get(key).map(|r| routes::tls_route(world, parents, r)),
        GatewayKind::TCPRoute => objects.tcp_routes.get(key).map(|r| routes::tcp_route(world, parents, r)),
        GatewayKind::UDPRoute => objects.udp_routes.get(key).map(|r| routes::udp_route(world, parents, r)),
        _ => None,
    }
}

impl ObjectRef {
    pub(super) fn new(kind: GatewayKind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}
