//! A change of an object: read it, keep it, note what it touches. A bad object changes nothing but the findings.

use std::{collections::BTreeSet, sync::Arc};

use istio_compat::{
    parse::{ParseError, Parsed},
    translate,
    types::{DestinationRule, Resource, VirtualService},
    validate,
};
use serde_json::Value;

use super::{Applied, Index, Registration, gateway_api::is_derived};
use crate::{
    finding::Finding,
    kube,
    object::{Kind, Name, ObjectKey},
};

/// What is said of kinds that change Envoy itself.
const REFUSED: &str = "is refused: it changes Envoy, and there is no Envoy here";

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

impl Index {
    /// Takes in a manifest: new, changed or the same as before.
    pub fn apply(&mut self, object: &Value) -> Applied {
        let Some(key) = ObjectKey::of(object) else { return Applied::Ignored };
        self.findings.remove(&key);
        let outcome = match key.kind {
            Kind::Namespace => {
                self.gateway_api.put_namespace(&key.name, Some(object));
                Ok(self.namespaces.insert(key.name.clone()))
            }
            Kind::Node => {
                kube::read(object).map(|node| self.put_node(&key.name, Some(node))).map_err(at(&key))
            }
            Kind::Service => self
                .read_service(&key, object)
                .map(|service| self.put_service(&key.full_name(), Some(service)))
                .inspect(|_| self.gateway_api.put_service_status(&key.full_name(), Some(object))),
            Kind::EndpointSlice => kube::read(object)
                .map(|slice| self.put_slice(&key.full_name(), Some(slice)))
                .map_err(at(&key)),
            Kind::Pod => {
                kube::read(object).map(|pod| self.put_pod(&key.full_name(), Some(pod))).map_err(at(&key))
            }
            Kind::Secret => kube::read(object)
                .map(|secret| self.put_secret(&key.full_name(), Some(secret)))
                .map_err(at(&key)),
            Kind::ConfigMap => {
                let name = key.full_name();
                let settings = self.is_mesh_config(&name) && self.put_mesh_config(&key, Some(object));
                Ok(self.put_config_map(&name, Some(object)) | settings)
            }
            Kind::GatewayApi(_) => self.apply_gateway_api(&key, object),
            _ => self.apply_rule(&key, object),
        };
        match outcome {
            Ok(true) => Applied::Changed,
            Ok(false) => Applied::Unchanged,
            Err(findings) => {
                self.findings.entry(key).or_default().extend(findings);
                Applied::Rejected
            }
        }
    }

    /// Forgets an object; `false` when it was not known.
    pub fn delete(&mut self, key: &ObjectKey) -> bool {
        self.findings.remove(key);
        let name = key.full_name();
        match key.kind {
            Kind::Namespace => {
                self.gateway_api.put_namespace(&key.name, None);
                self.namespaces.remove(&key.name)
            }
            Kind::Node => self.put_node(&key.name, None),
            Kind::Service => {
                self.gateway_api.put_service_status(&name, None);
                self.put_service(&name, None)
            }
            Kind::EndpointSlice => self.put_slice(&name, None),
            Kind::Pod => self.put_pod(&name, None),
            Kind::VirtualService => self.put_virtual_service(&name, None),
            Kind::DestinationRule => self.put_destination_rule(&name, None),
            Kind::Secret => self.put_secret(&name, None),
            Kind::Gateway => self.put_gateway(&name, None),
            Kind::ServiceEntry => self.put_service_entry(&name, None),
            Kind::WorkloadEntry => self.put_workload_entry(&name, None),
            Kind::Sidecar => self.put_sidecar(&name, None),
            Kind::Telemetry => self.put_telemetry(&name, None),
            Kind::ConfigMap => {
                let settings = self.is_mesh_config(&name) && self.put_mesh_config(key, None);
                self.put_config_map(&name, None) | settings
            }
            Kind::GatewayApi(kind) => self.gateway_api.remove(kind, key),
            _ => self.noted.remove(key),
        }
    }

    /// All objects of a kind that are held, for a source that reconciles after a relist.
    pub fn keys(&self, kind: Kind) -> Vec<ObjectKey> {
        let named = |n: &Name| ObjectKey { kind, namespace: n.namespace.clone(), name: n.name.clone() };
        let applied = |n: &&Name| !is_derived(n);
        let plain = |n: &Arc<str>| ObjectKey { kind, namespace: "".into(), name: n.clone() };
        match kind {
            Kind::Namespace => self.namespaces.iter().map(plain).collect(),
            Kind::Node => self.nodes.keys().map(plain).collect(),
            Kind::Service => self.services.keys().map(named).collect(),
            Kind::EndpointSlice => self.slices.keys().map(named).collect(),
            Kind::Pod => self.pods.keys().map(named).collect(),
            Kind::VirtualService => self.virtual_services.keys().filter(applied).map(named).collect(),
            Kind::DestinationRule => self.destination_rules.keys().filter(applied).map(named).collect(),
            Kind::Secret => self.secrets.keys().filter(applied).map(named).collect(),
            Kind::Gateway => self.gateways.keys().filter(applied).map(named).collect(),
            Kind::ConfigMap => self.gateway_api.config_map_names().map(named).collect(),
            Kind::GatewayApi(of) => {
                let names = self.gateway_api.names(of);
                names.into_iter().map(|(namespace, name)| ObjectKey::new(kind, &namespace, &name)).collect()
            }
            Kind::ServiceEntry => self.service_entries.keys().map(named).collect(),
            Kind::WorkloadEntry => self.workload_entries.keys().map(named).collect(),
            Kind::Sidecar => self.sidecars.keys().map(named).collect(),
            Kind::Telemetry => self.telemetries.keys().map(named).collect(),
            other => self.noted.iter().filter(|k| k.kind == other).cloned().collect(),
        }
    }

    /// What the registry knows of a node; `None` when it was removed.
    pub fn register(&mut self, node: &str, registration: Option<Registration>) {
        let node: Arc<str> = node.into();
        if self.registrations.get(&node) == registration.as_ref() {
            return;
        }
        match registration {
            Some(new) => self.registrations.insert(node.clone(), new),
            None => self.registrations.remove(&node),
        };
        self.touch_gateway_node(&node);
        self.touched.nodes.insert(node);
    }

    fn read_service(&self, key: &ObjectKey, object: &Value) -> Result<kube::Service, Vec<Finding>> {
        let service: kube::Service = kube::read(object).map_err(at(key))?;
        let mut findings = Vec::new();
        for (i, port) in service.spec.ports.iter().enumerate() {
            if port.port == 0 {
                findings.push(Finding::error(key, format!("spec.ports[{i}].port"), "0 is not a port number"));
            }
        }
        for (i, ip) in service.spec.cluster_ips.iter().enumerate() {
            if !ip.is_empty() && ip != "None" && ip.parse::<std::net::IpAddr>().is_err() {
                findings.push(Finding::error(
                    key,
                    format!("spec.clusterIPs[{i}]"),
                    format!("{ip:?} is not an IP address"),
                ));
            }
        }
        let ip = &service.spec.cluster_ip;
        if !ip.is_empty() && ip != "None" && ip.parse::<std::net::IpAddr>().is_err() {
            findings.push(Finding::error(key, "spec.clusterIP", format!("{ip:?} is not an IP address")));
        }
        if findings.is_empty() { Ok(service) } else { Err(findings) }
    }

    fn apply_rule(&mut self, key: &ObjectKey, object: &Value) -> Result<bool, Vec<Finding>> {
        let errors = |list: Vec<istio_compat::Finding>| {
            list.into_iter().map(|f| Finding::error(key, f.path, f.message)).collect::<Vec<_>>()
        };
        let parsed = match istio_compat::parse(object) {
            Ok(parsed) => parsed,
            Err(ParseError::Malformed { problems }) => return Err(errors(problems)),
            Err(other @ ParseError::OtherKind { .. }) => {
                return Err(vec![Finding::error(key, "apiVersion", other.to_string())]);
            }
        };
        let verdict = validate::judge(&parsed);
        let Parsed { resource, unknown, unsupported, .. } = parsed;
        if !verdict.is_valid() {
            return Err(errors(verdict.errors));
        }
        let warnings: Vec<_> = unknown
            .into_iter()
            .chain(unsupported)
            .chain(verdict.warnings)
            .map(|f| Finding::warning(key, f.path, f.message))
            .collect();
        if !warnings.is_empty() {
            self.findings.insert(key.clone(), warnings);
        }
        let name = key.full_name();
        Ok(match resource {
            Resource::VirtualService(object) => self.put_virtual_service(&name, Some(object)),
            Resource::DestinationRule(object) => self.put_destination_rule(&name, Some(object)),
            Resource::Gateway(object) => self.put_gateway(&name, Some(object)),
            Resource::ServiceEntry(object) => self.put_service_entry(&name, Some(object)),
            Resource::WorkloadEntry(object) => self.put_workload_entry(&name, Some(object)),
            Resource::Sidecar(object) => self.put_sidecar(&name, Some(object)),
            Resource::Telemetry(object) => self.put_telemetry(&name, Some(object)),
            Resource::EnvoyFilter(_) | Resource::WasmPlugin(_) => {
                self.noted.insert(key.clone());
                return Err(vec![Finding::error(key, "spec", REFUSED)]);
            }
            Resource::WorkloadGroup(_)
            | Resource::PeerAuthentication(_)
            | Resource::RequestAuthentication(_)
            | Resource::AuthorizationPolicy(_)
            | Resource::ProxyConfig(_) => self.noted.insert(key.clone()),
        })
    }

    fn put_service(&mut self, name: &Name, new: Option<kube::Service>) -> bool {
        if self.services.get(name) == new.as_ref() {
            return false;
        }
        let referred = |s: &kube::Service| (s.spec.ports.clone(), s.spec.selector.clone());
        if self.services.get(name).map(referred) != new.as_ref().map(referred) {
            self.gateway_api.touch_service(name);
        }
        let host = self.host_of(name);
        let sharing =
            self.vips.change(name, self.services.get(name), new.as_ref(), self.options.allocate_vips);
        let sharing: Vec<_> = sharing.iter().map(|other| self.host_of(other)).collect();
        self.touched.services.extend(sharing);
        let registry_changed = match new {
            Some(service) => {
                self.services.insert(name.clone(), service);
                self.registry.insert(&host)
            }
            None => {
                self.services.remove(name);
                self.registry.remove(&host)
            }
        };
        if !self.makers(&host).is_empty() {
            self.settle_external(&host);
        }
        if registry_changed {
            // A wildcard that covers no service is a virtual host of its own.
            self.touched.services.extend(self.claims.wildcards_over(&host).cloned());
        }
        self.touched.services.insert(host.clone());
        self.touched.endpoints.insert(host);
        true
    }

    fn put_slice(&mut self, name: &Name, new: Option<kube::EndpointSlice>) -> bool {
        if self.slices.get(name) == new.as_ref() {
            return false;
        }
        let old = match &new {
            Some(slice) => self.slices.insert(name.clone(), slice.clone()),
            None => self.slices.remove(name),
        };
        for (slice, present) in old.iter().map(|s| (s, false)).chain(new.iter().map(|s| (s, true))) {
            let Some(service) = slice.metadata.labels.get(SERVICE_NAME_LABEL) else { continue };
            let service = Name::new(&name.namespace, service);
            set_membership(self.slices_of.entry(service.clone()).or_default(), name, present);
            for pod in slice.endpoints.iter().filter_map(|e| pod_of(e, &name.namespace)) {
                let services = self.served_by_pod.entry(pod.clone()).or_default();
                set_membership(services, &service, present);
                if services.is_empty() {
                    self.served_by_pod.remove(&pod);
                }
            }
            if self.slices_of.get(&service).is_some_and(BTreeSet::is_empty) {
                self.slices_of.remove(&service);
            }
            self.touched.endpoints.insert(self.host_of(&service));
        }
        // The old slice's leave may have removed what another slice of the same service still says; say it again.
        if let Some(service) = old.as_ref().and_then(|s| s.metadata.labels.get(SERVICE_NAME_LABEL)) {
            self.restate_pods(&Name::new(&name.namespace, service));
        }
        true
    }

    fn restate_pods(&mut self, service: &Name) {
        for slice in self.slices_of.get(service).into_iter().flatten() {
            let Some(slice) = self.slices.get(slice) else { continue };
            for pod in slice.endpoints.iter().filter_map(|e| pod_of(e, &service.namespace)) {
                self.served_by_pod.entry(pod).or_default().insert(service.clone());
            }
        }
    }

    fn put_pod(&mut self, name: &Name, new: Option<kube::Pod>) -> bool {
        if self.pods.get(name) == new.as_ref() {
            return false;
        }
        let old = match &new {
            Some(pod) => self.pods.insert(name.clone(), pod.clone()),
            None => self.pods.remove(name),
        };
        let mut services: BTreeSet<Name> = self.served_by_pod.get(name).cloned().unwrap_or_default();
        for (pod, present) in old.iter().map(|p| (p, false)).chain(new.iter().map(|p| (p, true))) {
            if !pod.spec.node_name.is_empty() {
                set_membership(self.pods_on.entry(pod.spec.node_name.clone()).or_default(), name, present);
                self.touched.workloads.insert(pod.spec.node_name.as_str().into());
            }
            self.touch_selecting(&name.namespace, &pod.metadata.labels);
            self.touch_gateway_workload(&pod.spec.node_name, &pod.metadata.labels);
            self.touch_gateway_workload(&name.name, &pod.metadata.labels);
            if self.options.derive_endpoints {
                services.extend(self.selecting(&name.namespace, &pod.metadata.labels));
            }
        }
        let hosts: Vec<_> = services.iter().map(|s| self.host_of(s)).collect();
        self.touched.endpoints.extend(hosts);
        true
    }

    /// Services of a namespace whose selector takes these labels.
    pub(super) fn selecting(&self, namespace: &Arc<str>, labels: &kube::Labels) -> Vec<Name> {
        let first = Name { namespace: namespace.clone(), name: "".into() };
        self.services
            .range(first..)
            .take_while(|(n, _)| n.namespace == *namespace)
            .filter(|(_, s)| !s.spec.selector.is_empty() && kube::selects(&s.spec.selector, labels))
            .map(|(n, _)| n.clone())
            .collect()
    }

    fn put_node(&mut self, name: &Arc<str>, new: Option<kube::Node>) -> bool {
        if self.nodes.get(name) == new.as_ref() {
            return false;
        }
        let before = self.locality_of(name);
        let labels: Vec<kube::Labels> = [self.nodes.get(name), new.as_ref()]
            .into_iter()
            .flatten()
            .map(|n| n.metadata.labels.clone())
            .collect();
        for labels in &labels {
            self.touch_gateway_workload(name, labels);
        }
        match new {
            Some(node) => self.nodes.insert(name.clone(), node),
            None => self.nodes.remove(name),
        };
        if before != self.locality_of(name) {
            let hosts = self.hosts_on.get(&**name).into_iter().flatten().cloned();
            self.touched.endpoints.extend(hosts);
        }
        self.touched.nodes.insert(name.clone());
        true
    }

    pub(super) fn put_virtual_service(&mut self, name: &Name, new: Option<VirtualService>) -> bool {
        if self.virtual_services.get(name) == new.as_ref() {
            return false;
        }
        let old = match &new {
            Some(object) => self.virtual_services.insert(name.clone(), object.clone()),
            None => self.virtual_services.remove(name),
        };
        for (object, present) in old.iter().map(|o| (o, false)).chain(new.iter().map(|o| (o, true))) {
            self.bind_rules(name, object, present);
            let for_mesh = translate::gateway::is_for_mesh(object);
            for host in translate::hosts_of(object, &self.context).into_iter().filter(|_| for_mesh) {
                self.touch_claimed(&host);
                if present { self.claims.insert(&host, name) } else { self.claims.remove(&host, name) }
            }
            for (namespace, delegate) in translate::delegates_of(object) {
                let delegate = Name::new(&namespace, &delegate);
                set_membership(self.delegated_by.entry(delegate).or_default(), name, present);
            }
        }
        // Those that delegate to this object say something else now.
        let roots: Vec<_> = self.delegated_by.get(name).into_iter().flatten().cloned().collect();
        for root in roots {
            let Some(root) = self.virtual_services.get(&root) else { continue };
            let root = root.clone();
            self.touch_bound(&root);
            for host in translate::hosts_of(&root, &self.context) {
                self.touch_claimed(&host);
            }
        }
        self.delegated_by.retain(|_, set| !set.is_empty());
        true
    }

    pub(super) fn put_destination_rule(&mut self, name: &Name, new: Option<DestinationRule>) -> bool {
        if self.destination_rules.get(name) == new.as_ref() {
            return false;
        }
        let old = match &new {
            Some(object) => self.destination_rules.insert(name.clone(), object.clone()),
            None => self.destination_rules.remove(name),
        };
        for (object, present) in old.iter().map(|o| (o, false)).chain(new.iter().map(|o| (o, true))) {
            self.bind_secrets(name, object, present);
            let host = translate::host_of(object, &self.context);
            if present {
                self.policies.insert(&host, name)
            } else {
                self.policies.remove(&host, name)
            }
            let covered: Vec<_> = self.registry.covered_by(&host).collect();
            self.touched.services.extend(covered);
        }
        true
    }

    /// A claim touches the services that it covers, and the virtual host of its own name.
    fn touch_claimed(&mut self, host: &str) {
        let covered: Vec<_> = self.registry.covered_by(host).collect();
        self.touched.services.extend(covered);
        self.touched.services.insert(host.into());
    }
}

fn at(key: &ObjectKey) -> impl Fn((String, String)) -> Vec<Finding> + '_ {
    |(path, reason)| vec![Finding::error(key, path, reason)]
}

fn set_membership(set: &mut BTreeSet<Name>, name: &Name, present: bool) {
    if present {
        set.insert(name.clone());
    } else {
        set.remove(name);
    }
}

/// The pod behind an endpoint of a slice.
pub(super) fn pod_of(endpoint: &kube::SliceEndpoint, namespace: &str) -> Option<Name> {
    let target = endpoint.target_ref.as_ref().filter(|t| t.kind == "Pod")?;
    let namespace = if target.namespace.is_empty() { namespace } else { &target.namespace };
    Some(Name::new(namespace, &target.name))
}
