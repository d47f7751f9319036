//! The state: objects, who refers to whom, what is touched. One file below for each thing that is compiled.

mod apply;
mod compile;
mod endpoints;
mod external;
mod gateway_api;
mod gateways;
mod hosts;
mod ingress;
mod mesh;
mod nodes;
mod plain;
mod rules;
mod services;
mod vips;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use istio_compat::{
    translate::Context,
    types::{DestinationRule, Gateway, ServiceEntry, Sidecar, Telemetry, VirtualService, WorkloadEntry},
};
use mesh_api::{ResourceType, model};

use crate::{
    finding::Finding,
    kube,
    object::{Name, ObjectKey},
};
use hosts::HostSet;

/// Mesh-wide settings that compilation depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Domain of Kubernetes services.
    pub cluster_domain: String,
    /// Trust domain of identities.
    pub trust_domain: String,
    /// Namespace whose rules apply to the whole mesh.
    pub root_namespace: String,
    /// What happens to traffic for unknown destinations.
    pub outbound: model::mesh_config::OutboundMode,
    /// Whether services without EndpointSlices get endpoints from their selector and the pods, as a cluster's own
    /// controller would do.
    pub derive_endpoints: bool,
    /// Controller of the GatewayClasses that are this mesh's.
    pub gateway_controller: String,
    /// Whether services that state no address (and are not headless) get one, as from an API server.
    pub allocate_vips: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            outbound: model::mesh_config::OutboundMode::AllowAny,
            gateway_controller: istio_compat::gateway_api::Settings::default().controller,
            derive_endpoints: false,
            allocate_vips: false,
        }
    }
}

/// What the node registry knows of a node that has joined.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registration {
    /// libp2p peer id, base58.
    pub peer_id: String,
    /// Multiaddrs, best first.
    pub addresses: Vec<String>,
    /// It carries circuits of others.
    pub relay: bool,
    /// Kind of its NAT.
    pub nat: String,
    /// Circuit addresses at which it is reached.
    pub reservations: Vec<String>,
}

/// What became of an applied object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// It differs from before.
    Changed,
    /// It says the same as before, as far as the mesh reads it.
    Unchanged,
    /// It is bad: what was known before stays, findings say why.
    Rejected,
    /// Not a kind that the mesh reads.
    Ignored,
}

/// An encoded resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Hash of the bytes.
    pub version: String,
    /// The resource, protobuf.
    pub bytes: Vec<u8>,
    /// The nodes that may have it; none = all.
    pub audience: Option<BTreeSet<Arc<str>>>,
}

/// One compiled difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Type of the resource.
    pub kind: ResourceType,
    /// Its name.
    pub name: Arc<str>,
    /// Its content; `None` when it is gone.
    pub content: Option<Arc<Content>>,
}

/// How much was compiled. Counts only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompileStats {
    /// Calls of [`Index::compile`] that had something to do.
    pub rounds: u64,
    /// Services compiled.
    pub services: u64,
    /// Endpoint sets compiled.
    pub endpoints: u64,
    /// Nodes compiled.
    pub nodes: u64,
    /// Workload lists compiled.
    pub workloads: u64,
    /// Listeners, domains of gateways, secrets, scopes and telemetry compiled.
    pub others: u64,
    /// Resources that came out different.
    pub changed: u64,
}

/// Everything known, and what follows from it.
pub struct Index {
    options: Options,
    context: Context,
    /// What Istio's own settings of the mesh say.
    mesh: model::MeshConfig,
    services: BTreeMap<Name, kube::Service>,
    slices: HashMap<Name, kube::EndpointSlice>,
    /// Slices by the service that they belong to.
    slices_of: HashMap<Name, BTreeSet<Name>>,
    pods: BTreeMap<Name, kube::Pod>,
    pods_on: HashMap<String, BTreeSet<Name>>,
    /// Services whose slices refer to a pod.
    served_by_pod: HashMap<Name, BTreeSet<Name>>,
    namespaces: BTreeSet<Arc<str>>,
    nodes: BTreeMap<Arc<str>, kube::Node>,
    registrations: BTreeMap<Arc<str>, Registration>,
    virtual_services: BTreeMap<Name, VirtualService>,
    destination_rules: BTreeMap<Name, DestinationRule>,
    service_entries: BTreeMap<Name, ServiceEntry>,
    workload_entries: BTreeMap<Name, WorkloadEntry>,
    gateways: BTreeMap<Name, Gateway>,
    sidecars: BTreeMap<Name, Sidecar>,
    telemetries: BTreeMap<Name, Telemetry>,
    secrets: BTreeMap<Name, kube::Secret>,
    /// Objects of kinds that have no effect, which findings say.
    noted: BTreeSet<ObjectKey>,
    external: external::External,
    bindings: gateways::Bindings,
    gateway_api: gateway_api::State,
    /// VirtualServices by the host that they claim, and by the delegate that they name.
    claims: rules::Claims,
    delegated_by: HashMap<Name, BTreeSet<Name>>,
    policies: rules::Claims,
    /// Hosts of services, for wildcard lookups.
    registry: HostSet,
    vips: vips::Vips,
    /// Addresses that two services claim, by the host that does not get them.
    conflicts: BTreeMap<Arc<str>, Finding>,
    /// Hosts that two objects name, by the host.
    shadows: BTreeMap<Arc<str>, Finding>,
    /// Hosts of services that have endpoints on a node, as last compiled.
    hosts_on: HashMap<String, BTreeSet<Arc<str>>>,
    /// The same, by host.
    nodes_of: HashMap<Arc<str>, BTreeSet<String>>,
    touched: Touched,
    outputs: HashMap<(ResourceType, Arc<str>), Arc<Content>>,
    findings: BTreeMap<ObjectKey, Vec<Finding>>,
    compile_findings: BTreeMap<(ResourceType, Arc<str>), Finding>,
    stats: CompileStats,
}

#[derive(Debug, Default)]
struct Touched {
    mesh: bool,
    services: BTreeSet<Arc<str>>,
    endpoints: BTreeSet<Arc<str>>,
    nodes: BTreeSet<Arc<str>>,
    workloads: BTreeSet<Arc<str>>,
    gateways: gateways::TouchedGateways,
    sidecars: BTreeSet<Name>,
    telemetries: BTreeSet<Name>,
}

impl Index {
    /// An empty index.
    pub fn new(options: Options) -> Self {
        let context = Context {
            cluster_domain: options.cluster_domain.clone(),
            root_namespace: options.root_namespace.clone(),
            ..Context::default()
        };
        let gateway_api = gateway_api::State::new(&options.cluster_domain, &options.gateway_controller);
        Self {
            gateway_api,
            options,
            context,
            mesh: model::MeshConfig::default(),
            services: BTreeMap::new(),
            slices: HashMap::new(),
            slices_of: HashMap::new(),
            pods: BTreeMap::new(),
            pods_on: HashMap::new(),
            served_by_pod: HashMap::new(),
            namespaces: BTreeSet::new(),
            nodes: BTreeMap::new(),
            registrations: BTreeMap::new(),
            virtual_services: BTreeMap::new(),
            destination_rules: BTreeMap::new(),
            service_entries: BTreeMap::new(),
            workload_entries: BTreeMap::new(),
            gateways: BTreeMap::new(),
            sidecars: BTreeMap::new(),
            telemetries: BTreeMap::new(),
            secrets: BTreeMap::new(),
            noted: BTreeSet::new(),
            external: external::External::default(),
            bindings: gateways::Bindings::default(),
            claims: rules::Claims::default(),
            delegated_by: HashMap::new(),
            policies: rules::Claims::default(),
            registry: HostSet::default(),
            vips: vips::Vips::default(),
            conflicts: BTreeMap::new(),
            shadows: BTreeMap::new(),
            hosts_on: HashMap::new(),
            nodes_of: HashMap::new(),
            touched: Touched { mesh: true, ..Touched::default() },
            outputs: HashMap::new(),
            findings: BTreeMap::new(),
            compile_findings: BTreeMap::new(),
            stats: CompileStats::default(),
        }
    }

    /// What is wrong with the objects that were applied, by object.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        let compiled =
            self.compile_findings.values().chain(self.conflicts.values()).chain(self.shadows.values());
        self.findings.values().flatten().chain(compiled)
    }

    /// What is wrong with one object.
    pub fn findings_of(&self, key: &ObjectKey) -> &[Finding] {
        self.findings.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// How much was compiled so far.
    pub fn stats(&self) -> CompileStats {
        self.stats
    }

    /// All compiled resources.
    pub fn resources(&self) -> impl Iterator<Item = (ResourceType, &Arc<str>, &Arc<Content>)> {
        self.outputs.iter().map(|((kind, name), content)| (*kind, name, content))
    }

    /// How many objects are held, by kind.
    pub fn object_counts(&self) -> Vec<(crate::Kind, usize)> {
        use crate::Kind;
        let applied = |name: &&Name| !gateway_api::is_derived(name);
        let count = |kind| {
            let count = match kind {
                Kind::Namespace => self.namespaces.len(),
                Kind::Node => self.nodes.len(),
                Kind::Service => self.services.len(),
                Kind::EndpointSlice => self.slices.len(),
                Kind::Pod => self.pods.len(),
                Kind::VirtualService => self.virtual_services.keys().filter(applied).count(),
                Kind::DestinationRule => self.destination_rules.keys().filter(applied).count(),
                Kind::Secret => self.secrets.keys().filter(applied).count(),
                Kind::Gateway => self.gateways.keys().filter(applied).count(),
                Kind::ConfigMap => self.gateway_api.config_map_names().count(),
                Kind::GatewayApi(kind) => self.gateway_api.count(kind),
                Kind::ServiceEntry => self.service_entries.len(),
                Kind::WorkloadEntry => self.workload_entries.len(),
                Kind::Sidecar => self.sidecars.len(),
                Kind::Telemetry => self.telemetries.len(),
                other => self.noted.iter().filter(|k| k.kind == other).count(),
            };
            (kind, count)
        };
        Kind::ALL.into_iter().map(count).collect()
    }

    fn host_of(&self, service: &Name) -> Arc<str> {
        format!("{}.{}.svc.{}", service.name, service.namespace, self.options.cluster_domain).into()
    }

    /// The service of Kubernetes that a host belongs to.
    fn kubernetes_service(&self, host: &str) -> Option<(&Name, &kube::Service)> {
        let rest = host.strip_suffix(self.options.cluster_domain.as_str())?.strip_suffix(".svc.")?;
        let (name, namespace) = rest.split_once('.')?;
        self.services.get_key_value(&Name::new(namespace, name))
    }
}

#[cfg(test)]
mod tests;
