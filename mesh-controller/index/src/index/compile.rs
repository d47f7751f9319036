//! Compiles what is touched, compares with what was there, and returns the differences.

use std::{collections::BTreeSet, mem, sync::Arc};

use mesh_api::{Resource, ResourceType, check, resource, resource::NamedGatewayHost};

use super::{
    Change, Content, Index,
    gateways::{TouchedGateways, name_of},
};
use crate::{
    finding::Finding,
    object::{Kind, Name, ObjectKey},
};

impl Index {
    /// Compiles what changed since the last call. Changes come in the order in which a node applies them.
    pub fn compile(&mut self) -> Vec<Change> {
        self.refresh_gateway_api();
        let mut touched = mem::take(&mut self.touched);
        // Endpoints of further owners of a host are part of its service.
        let several = touched.endpoints.iter().filter(|host| self.has_several_owners(host));
        touched.services.extend(several.cloned().collect::<Vec<_>>());
        let mut out = Vec::new();
        if touched.mesh {
            let mesh = self.compile_mesh();
            self.emit(ResourceType::MeshConfig, "mesh".into(), Some(Resource::MeshConfig(mesh)), &mut out);
        }
        for name in touched.nodes {
            self.stats.nodes += 1;
            let node = self.compile_node(&name).map(Resource::Node);
            self.emit(ResourceType::Node, name, node, &mut out);
        }
        for name in touched.workloads {
            self.stats.workloads += 1;
            let workloads = self.compile_workloads(&name).map(Resource::NodeWorkloads);
            self.emit(ResourceType::NodeWorkloads, name, workloads, &mut out);
        }
        for host in touched.services {
            self.stats.services += 1;
            self.shadows.remove(&host);
            if let Some(shadow) = self.shadowed(&host) {
                self.shadows.insert(host.clone(), shadow);
            }
            let service = self.compile_service(&host).map(Resource::Service);
            self.conflicts.remove(&host);
            if let Some(conflict) = self.address_conflict(&host) {
                self.conflicts.insert(host.clone(), conflict);
            }
            self.emit(ResourceType::Service, host, service, &mut out);
        }
        for host in touched.endpoints {
            self.stats.endpoints += 1;
            let endpoints = self.compile_endpoints(&host).map(Resource::Endpoints);
            self.emit(ResourceType::Endpoints, host, endpoints, &mut out);
        }
        self.compile_others(touched.gateways, touched.sidecars, touched.telemetries, &mut out);
        self.stats.rounds += 1;
        self.stats.changed += out.len() as u64;
        out
    }

    /// Secrets and domains before the listeners that need them.
    fn compile_others(
        &mut self,
        gateways: TouchedGateways,
        sidecars: BTreeSet<Name>,
        telemetries: BTreeSet<Name>,
        out: &mut Vec<Change>,
    ) {
        let full = |n: &Name| -> Arc<str> { format!("{}/{}", n.namespace, n.name).into() };
        for name in &gateways.secrets {
            self.stats.others += 1;
            let (secret, audience) = self.compile_secret(name).unzip();
            self.emit_for(ResourceType::Secret, full(name), secret.map(Resource::Secret), audience, out);
        }
        for (name, server, domain) in self.touched_domains(&gateways) {
            self.stats.others += 1;
            let host = self.compile_gateway_host(&name, &server, &domain);
            let host = host.map(|h| Resource::GatewayHost(NamedGatewayHost::new(h)));
            self.emit(ResourceType::GatewayHost, Self::gateway_host_name(&name, &server, &domain), host, out);
        }
        for name in &gateways.gateways {
            self.stats.others += 1;
            let gateway = self.compile_gateway(name).map(Resource::Gateway);
            self.emit(ResourceType::Gateway, full(name), gateway, out);
        }
        for name in &sidecars {
            self.stats.others += 1;
            let sidecar = self.compile_sidecar(name).map(Resource::Sidecar);
            self.emit(ResourceType::Sidecar, full(name), sidecar, out);
        }
        for name in &telemetries {
            self.stats.others += 1;
            let telemetry = self.compile_telemetry(name).map(Resource::Telemetry);
            self.emit(ResourceType::Telemetry, full(name), telemetry, out);
        }
    }

    /// Marks everything as touched: the next [`Index::compile`] checks all of it. What comes out then is a difference that
    /// an earlier change should have touched.
    pub fn touch_all(&mut self) {
        let mut hosts: Vec<_> = self.services.keys().map(|name| self.host_of(name)).collect();
        hosts.extend(self.external.hosts().cloned());
        self.touch_all_gateways();
        let touched = &mut self.touched;
        touched.mesh = true;
        touched.services.extend(hosts.iter().cloned());
        touched.endpoints.extend(hosts);
        touched.services.extend(self.claims.hosts().cloned());
        touched.nodes.extend(self.nodes.keys().chain(self.registrations.keys()).cloned());
        touched.workloads.extend(self.pods_on.keys().map(|n| n.as_str().into()));
        for (kind, name) in self.outputs.keys() {
            match kind {
                ResourceType::MeshConfig => false,
                ResourceType::Node => touched.nodes.insert(name.clone()),
                ResourceType::NodeWorkloads => touched.workloads.insert(name.clone()),
                ResourceType::Service => touched.services.insert(name.clone()),
                ResourceType::Endpoints => touched.endpoints.insert(name.clone()),
                ResourceType::Secret => insert_name(&mut touched.gateways.secrets, name),
                ResourceType::Gateway => insert_name(&mut touched.gateways.gateways, name),
                // By their gateways, which are touched.
                ResourceType::GatewayHost => false,
                ResourceType::Sidecar => insert_name(&mut touched.sidecars, name),
                ResourceType::Telemetry => insert_name(&mut touched.telemetries, name),
            };
        }
        touched.sidecars.extend(self.sidecars.keys().cloned());
        touched.telemetries.extend(self.telemetries.keys().cloned());
    }

    fn emit(&mut self, kind: ResourceType, name: Arc<str>, new: Option<Resource>, out: &mut Vec<Change>) {
        self.emit_for(kind, name, new, None, out);
    }

    /// With the nodes that may have it; none = all.
    fn emit_for(
        &mut self,
        kind: ResourceType,
        name: Arc<str>,
        new: Option<Resource>,
        audience: Option<BTreeSet<Arc<str>>>,
        out: &mut Vec<Change>,
    ) {
        let slot = (kind, name.clone());
        self.compile_findings.remove(&slot);
        let Some(new) = new else {
            if self.outputs.remove(&slot).is_some() {
                out.push(Change { kind, name, content: None });
            }
            return;
        };
        let bytes = new.encode();
        if let Some(message) = refusal(&name, &new, bytes.len()) {
            // Every node would refuse it; the last good one stays here too.
            let finding = Finding::error(&self.object_behind(kind, &name), "", message);
            self.compile_findings.insert(slot, finding);
            return;
        }
        let version = resource::version_of(&bytes);
        if self.outputs.get(&slot).is_some_and(|old| old.version == version && old.audience == audience) {
            return;
        }
        let content = Arc::new(Content { version, bytes, audience });
        self.outputs.insert(slot, content.clone());
        out.push(Change { kind, name, content: Some(content) });
    }

    fn object_behind(&self, kind: ResourceType, name: &str) -> ObjectKey {
        let named = |kind: Kind| {
            let (namespace, rest) = name.split_once('/').unwrap_or(("", name));
            ObjectKey::new(kind, namespace, rest.split('|').next().unwrap_or_default())
        };
        match kind {
            ResourceType::Secret => return named(Kind::Secret),
            ResourceType::Gateway | ResourceType::GatewayHost => return named(Kind::Gateway),
            ResourceType::Sidecar => return named(Kind::Sidecar),
            ResourceType::Telemetry => return named(Kind::Telemetry),
            _ => {}
        }
        if let Some(owner) = self.makers(name).first() {
            return ObjectKey::new(Kind::ServiceEntry, &owner.meta.namespace, &owner.meta.name);
        }
        match self.kubernetes_service(name) {
            Some((service, _)) => ObjectKey::new(Kind::Service, &service.namespace, &service.name),
            None if kind == ResourceType::Service => {
                let claimed = self.claims.covering(name);
                let first = claimed.first().map(|n| (n.namespace.clone(), n.name.clone()));
                let (namespace, name) = first.unwrap_or_else(|| ("".into(), name.into()));
                ObjectKey::new(Kind::VirtualService, &namespace, &name)
            }
            None => ObjectKey::new(Kind::Node, "", name),
        }
    }
}

fn insert_name(set: &mut BTreeSet<Name>, name: &str) -> bool {
    name_of(name).is_some_and(|n| set.insert(n))
}

fn refusal(name: &str, resource: &Resource, size: usize) -> Option<String> {
    if size > resource::MAX_RESOURCE_BYTES {
        return Some(format!("compiles to {size} bytes, the limit is {}", resource::MAX_RESOURCE_BYTES));
    }
    let problems = check(name, resource);
    let list = problems.iter().take(5).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    (!problems.is_empty()).then(|| format!("compiles to something that nodes refuse: {list}"))
}
