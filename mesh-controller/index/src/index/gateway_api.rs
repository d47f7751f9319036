//! Gateway API inside the index. Its objects become VirtualServices and DestinationRules beside those that users write;
//! their names hold a `~`, which no object of a cluster can have. Made anew before compiling when something changed that
//! they depend on; only what comes out different touches anything.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use istio_compat::{
    gateway_api::{
        self, Cache, DerivedGateway, Facts, GatewayKind, Objects, Settings, Statuses, Touched, World,
        facts::{EntryFacts, HostFacts, ServicePort},
        objects::Change,
    },
    parse::ParseError,
    translate::gateway::CLIENT_CERTIFICATE,
    types::{Gateway, GatewaySpec},
};
use serde_json::Value;

use super::Index;
use crate::{
    finding::Finding,
    kube::Secret,
    object::{Name, ObjectKey},
};

/// Workloads of a Gateway carry its name.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

type Labels = BTreeMap<String, String>;

/// What is kept for Gateway API alone.
#[derive(Debug, Default)]
pub(super) struct State {
    objects: Objects,
    settings: Settings,
    /// Labels, for selectors of listeners.
    namespaces: BTreeMap<Arc<str>, Labels>,
    /// Only what CA certificates are read from; of other ConfigMaps only that they exist.
    config_maps: BTreeMap<Name, BTreeMap<String, String>>,
    /// Addresses of services outside the cluster, and whether they are still to come.
    external: HashMap<Name, (Vec<String>, bool)>,
    cache: Cache,
    /// What changed that the derived objects depend on.
    touched: Touched,
    /// Something changed that statuses depend on.
    news: bool,
    destination_rules: BTreeSet<Name>,
    gateways: BTreeSet<Name>,
}

impl State {
    pub(super) fn new(cluster_domain: &str, controller: &str) -> Self {
        let settings = Settings {
            cluster_domain: cluster_domain.to_owned(),
            controller: controller.to_owned(),
            ..Settings::default()
        };
        Self { settings, ..Self::default() }
    }

    /// Something outside Gateway API changed that all of it may refer to.
    pub(super) fn touch(&mut self) {
        self.touched.everything |= !self.objects.is_empty();
    }

    /// A Secret or ConfigMap changed.
    pub(super) fn touch_certificate(&mut self, name: &Name) {
        self.touched.everything |= self.objects.refer_to(&name.name);
    }

    /// A service of Kubernetes changed.
    pub(super) fn touch_service(&mut self, name: &Name) {
        if !self.objects.is_empty() {
            self.touched.services.insert((name.namespace.to_string(), name.name.to_string()));
        }
    }

    fn changed(&mut self, kind: GatewayKind, key: &ObjectKey, change: Change) {
        let id = || (kind, (key.namespace.to_string(), key.name.to_string()));
        self.news |= change != Change::None;
        match kind {
            _ if change == Change::None => {}
            GatewayKind::HTTPRoute
            | GatewayKind::GRPCRoute
            | GatewayKind::TLSRoute
            | GatewayKind::TCPRoute
            | GatewayKind::UDPRoute => {
                self.touched.routes.insert(id());
            }
            _ if change == Change::Status => {}
            GatewayKind::BackendTLSPolicy | GatewayKind::XBackendTrafficPolicy => {
                self.touched.policies = true
            }
            _ => self.touched.everything = true,
        }
    }

    pub(super) fn put_namespace(&mut self, name: &Arc<str>, object: Option<&Value>) {
        let labels = object.map(|o| strings(o.pointer("/metadata/labels")));
        if self.namespaces.get(name) == labels.as_ref() {
            return;
        }
        match labels {
            Some(labels) => self.namespaces.insert(name.clone(), labels),
            None => self.namespaces.remove(name),
        };
        self.touch();
    }

    /// What the world outside sees of a service.
    pub(super) fn put_service_status(&mut self, name: &Name, object: Option<&Value>) {
        let Some(object) = object else {
            self.external.remove(name);
            return;
        };
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let list = |pointer: &str| object.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
        let mut addresses: Vec<String> = list("/spec/externalIPs").filter_map(text).collect();
        addresses.extend(
            list("/status/loadBalancer/ingress")
                .filter_map(|i| i.get("ip").or_else(|| i.get("hostname")).and_then(text)),
        );
        let balanced = object.pointer("/spec/type").and_then(Value::as_str) == Some("LoadBalancer");
        if addresses.is_empty() && !balanced {
            self.external.remove(name);
        } else {
            self.external.insert(name.clone(), (addresses, balanced));
        }
    }

    pub(super) fn config_map_names(&self) -> impl Iterator<Item = &Name> {
        self.config_maps.keys()
    }

    pub(super) fn count(&self, kind: GatewayKind) -> usize {
        self.objects.count(kind)
    }

    pub(super) fn names(&self, kind: GatewayKind) -> Vec<(String, String)> {
        self.objects.names(kind)
    }

    pub(super) fn remove(&mut self, kind: GatewayKind, key: &ObjectKey) -> bool {
        let known = self.objects.remove(kind, &key.namespace, &key.name);
        self.changed(kind, key, if known { Change::Spec } else { Change::None });
        known
    }
}

fn strings(value: Option<&Value>) -> BTreeMap<String, String> {
    let map = value.and_then(Value::as_object).into_iter().flatten();
    map.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
}

/// Whether the object was derived rather than applied.
pub(super) fn is_derived(name: &Name) -> bool {
    name.name.contains('~') || is_public(name)
}

/// Whether a secret is a ConfigMap's certificates, which everybody may have.
pub(super) fn is_public(name: &Name) -> bool {
    *name.namespace == *CONFIG_MAPS
}

/// `configmap://NAMESPACE/NAME` as namespace and name of a secret.
const CONFIG_MAPS: &str = "configmap:";

/// Replaces one kind of derived object: those that are no longer made are gone.
macro_rules! replace {
    ($index:ident, $kept:ident, $objects:expr, $put:ident) => {
        let mut left = std::mem::take(&mut $index.gateway_api.$kept);
        for object in $objects {
            let name = Name::new(&object.meta.namespace, &object.meta.name);
            left.remove(&name);
            $index.$put(&name, Some(object));
            $index.gateway_api.$kept.insert(name);
        }
        for gone in left {
            $index.$put(&gone, None);
        }
    };
}

impl Index {
    pub(super) fn put_config_map(&mut self, name: &Name, object: Option<&Value>) -> bool {
        let data = object.map(|o| {
            let mut data = strings(o.get("data"));
            let ca = |key: &str| matches!(key, "ca.crt" | "cacert");
            data.iter_mut().filter(|(key, _)| !ca(key)).for_each(|(_, value)| value.clear());
            data
        });
        let state = &mut self.gateway_api;
        if state.config_maps.get(name) == data.as_ref() {
            return false;
        }
        let ca = data.as_ref().and_then(|d| d.get("cacert").or_else(|| d.get("ca.crt"))).cloned();
        let secret = ca.map(|ca| Secret { ca: ca.into_bytes(), ..Secret::default() });
        match data {
            Some(data) => state.config_maps.insert(name.clone(), data),
            None => state.config_maps.remove(name),
        };
        state.touch_certificate(name);
        for suffix in ["", "-cacert"] {
            let public = Name::new(CONFIG_MAPS, &format!("/{}/{}{suffix}", name.namespace, name.name));
            self.put_secret(&public, secret.clone());
        }
        true
    }

    pub(super) fn apply_gateway_api(
        &mut self,
        key: &ObjectKey,
        object: &Value,
    ) -> Result<bool, Vec<Finding>> {
        let errors = |list: Vec<istio_compat::Finding>| {
            list.into_iter().map(|f| Finding::error(key, f.path, f.message)).collect::<Vec<_>>()
        };
        let read = match gateway_api::read(object) {
            Ok(read) => read,
            Err(ParseError::Malformed { problems }) => return Err(errors(problems)),
            Err(other @ ParseError::OtherKind { .. }) => {
                return Err(vec![Finding::error(key, "apiVersion", other.to_string())]);
            }
        };
        let warnings: Vec<_> = read
            .unknown
            .into_iter()
            .chain(read.unsupported)
            .map(|f| Finding::warning(key, f.path, f.message))
            .collect();
        if !warnings.is_empty() {
            self.findings.insert(key.clone(), warnings);
        }
        let kind = read.object.kind();
        let change = self.gateway_api.objects.put(read.object);
        self.gateway_api.changed(kind, key, change);
        Ok(change == Change::Spec)
    }

    /// Statuses of all Gateway API objects that are ours to speak about, if any may have changed since the last call.
    /// `now` is the time (RFC 3339) of conditions that change.
    pub fn gateway_api_statuses(&mut self, now: &str) -> Option<Statuses> {
        if !std::mem::take(&mut self.gateway_api.news) {
            return None;
        }
        let mut cache = std::mem::take(&mut self.gateway_api.cache);
        let statuses = cache.statuses(&self.world(&View(self)), now);
        self.gateway_api.cache = cache;
        Some(statuses)
    }

    fn world<'a>(&'a self, facts: &'a dyn Facts) -> World<'a> {
        World { objects: &self.gateway_api.objects, facts, settings: &self.gateway_api.settings }
    }

    /// Brings the derived objects up to date.
    pub(super) fn refresh_gateway_api(&mut self) {
        let touched = std::mem::take(&mut self.gateway_api.touched);
        // Whether a Gateway is served depends on endpoints; nothing that is compiled does.
        self.gateway_api.news |= !touched.is_empty()
            || self.gateway_api.count(GatewayKind::Gateway) > 0 && !self.touched.endpoints.is_empty();
        if touched.is_empty() {
            return;
        }
        let mut cache = std::mem::take(&mut self.gateway_api.cache);
        let delta = cache.refresh(&self.world(&View(self)), &touched);
        self.gateway_api.cache = cache;
        if let Some(gateways) = delta.gateways {
            let gateways: Vec<_> = gateways.into_iter().filter_map(|g| self.derived_gateway(g)).collect();
            replace!(self, gateways, gateways, put_gateway);
        }
        for ((namespace, name), object) in delta.virtual_services {
            self.put_virtual_service(&Name::new(&namespace, &name), object);
        }
        if let Some(rules) = delta.destination_rules {
            replace!(self, destination_rules, rules, put_destination_rule);
        }
    }

    /// A listener for the workloads of the Gateway's services; where there is no such service, for those with the label
    /// that says which Gateway they serve.
    fn derived_gateway(&self, derived: DerivedGateway) -> Option<Gateway> {
        let mut spec: GatewaySpec = serde_json::from_value(derived.spec).ok()?;
        let services = derived.services.iter().filter_map(|host| self.kubernetes_service(host));
        let selector = services.map(|(_, service)| &service.spec.selector).find(|s| !s.is_empty());
        spec.selector = selector
            .cloned()
            .unwrap_or_else(|| BTreeMap::from([(GATEWAY_NAME.to_owned(), derived.gateway.1.clone())]));
        let mut meta = derived.meta;
        if !derived.client_certificate.is_empty() {
            meta.annotations.insert(CLIENT_CERTIFICATE.to_owned(), derived.client_certificate);
        }
        Some(Gateway { meta, spec })
    }
}

/// What Gateway API may refer to, as the index has it.
struct View<'a>(&'a Index);

impl Facts for View<'_> {
    fn namespaces(&self) -> Vec<(String, Labels)> {
        let labels = &self.0.gateway_api.namespaces;
        labels.iter().map(|(name, labels)| (name.to_string(), labels.clone())).collect()
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Vec<ServicePort>> {
        let service = self.0.services.get(&Name::new(namespace, name))?;
        let port = |p: &crate::kube::ServicePort| ServicePort { name: p.name.clone(), number: p.port.into() };
        Some(service.spec.ports.iter().map(port).collect())
    }

    fn host(&self, host: &str, namespace: &str) -> Option<HostFacts> {
        let Some((name, service)) = self.0.kubernetes_service(host) else {
            let mut makers = self.0.owners(host).into_iter().flatten();
            return makers.find(|e| e.meta.namespace == namespace).map(|_| HostFacts::default());
        };
        if *name.namespace != *namespace {
            return None;
        }
        let mut facts = HostFacts {
            ports: service.spec.ports.iter().map(|p| p.port.into()).collect(),
            ..HostFacts::default()
        };
        let endpoints = self.0.endpoints(name, service).unwrap_or_default();
        for port in endpoints.iter().flat_map(|e| &e.ports) {
            facts.ports_with_endpoints.insert(port.service_port);
            facts.by_target_port.insert(port.target_port, port.service_port);
        }
        if let Some((addresses, balanced)) = self.0.gateway_api.external.get(name) {
            facts.external.clone_from(addresses);
            facts.load_balancer = *balanced;
        }
        Some(facts)
    }

    fn namespaces_of_host(&self, host: &str) -> Vec<String> {
        let own = self.0.kubernetes_service(host).map(|(name, _)| name.namespace.to_string());
        let owners = self.0.owners(host);
        let entries = owners.iter().flatten().map(|e| e.meta.namespace.clone());
        own.into_iter().chain(entries).collect()
    }

    fn service_entry(&self, namespace: &str, name: &str) -> Option<EntryFacts> {
        let entry = self.0.service_entries.get(&Name::new(namespace, name))?;
        let ports = entry.spec.ports.iter();
        let ports = ports.map(|p| ServicePort { name: p.name.clone(), number: p.number }).collect();
        Some(EntryFacts { hosts: entry.spec.hosts.clone(), ports })
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        let secret = self.0.secrets.get(&Name::new(namespace, name))?;
        let parts = [("tls.crt", &secret.certificate), ("tls.key", &secret.key), ("ca.crt", &secret.ca)];
        let present = parts.into_iter().filter(|(_, value)| !value.is_empty());
        Some(present.map(|(key, value)| (key.to_owned(), value.clone())).collect())
    }

    fn config_map(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, String>> {
        self.0.gateway_api.config_maps.get(&Name::new(namespace, name)).cloned()
    }
}
