//! Endpoints, the workloads behind them, and nodes.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use mesh_api::model;

/// Where something is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locality {
    /// `topology.kubernetes.io/region`
    pub region: Box<str>,
    /// `topology.kubernetes.io/zone`
    pub zone: Box<str>,
    /// `selvage.io/site`
    pub site: Box<str>,
    /// The routed network that it is in.
    pub network: Box<str>,
}

impl Locality {
    pub(crate) fn compile(m: Option<&model::Locality>) -> Self {
        let Some(m) = m else { return Self::default() };
        Self {
            region: m.region.as_str().into(),
            zone: m.zone.as_str().into(),
            site: m.site.as_str().into(),
            network: m.network.as_str().into(),
        }
    }

    /// What the place says in the stead of a label.
    fn label<'a>(&'a self, key: &str, node: &'a str) -> Option<&'a str> {
        let v = match key {
            "topology.kubernetes.io/region" => &*self.region,
            "topology.kubernetes.io/zone" => &*self.zone,
            "selvage.io/site" | "topology.istio.io/subzone" => &*self.site,
            "topology.istio.io/network" => &*self.network,
            "kubernetes.io/hostname" => node,
            _ => "",
        };
        (!v.is_empty()).then_some(v)
    }
}

/// Where a client is, as far as balancing looks at it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Its node's place.
    pub locality: Locality,
    /// The node.
    pub node: Box<str>,
    /// The node's labels.
    pub labels: BTreeMap<String, String>,
}

impl Place {
    /// The place of a node.
    pub fn of(node: &NodeEntry) -> Self {
        Self { locality: node.locality.clone(), node: (*node.name).into(), labels: node.labels.clone() }
    }

    /// A label, or what the place says in its stead.
    pub fn label(&self, key: &str) -> Option<&str> {
        match self.labels.get(key) {
            Some(v) => Some(v),
            None => self.locality.label(key, &self.node),
        }
    }
}

/// Who a workload is: source identity, subset labels, metric labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// The pod's address.
    pub address: IpAddr,
    /// The node that it runs on; empty when it is outside the mesh.
    pub node: Arc<str>,
    /// Namespace.
    pub namespace: Box<str>,
    /// Pod name.
    pub name: Box<str>,
    /// `reviews-v1`: what metrics call the workload.
    pub owner: Box<str>,
    /// Service account.
    pub service_account: Box<str>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The pod uses its node's address.
    pub host_network: bool,
}

impl WorkloadEntry {
    pub(crate) fn compile(address: IpAddr, node: &Arc<str>, m: &model::Workload) -> Self {
        Self {
            address,
            node: node.clone(),
            namespace: m.namespace.as_str().into(),
            name: m.name.as_str().into(),
            owner: m.owner.as_str().into(),
            service_account: m.service_account.as_str().into(),
            labels: m.labels.clone(),
            host_network: m.host_network,
        }
    }

    /// `spiffe://<trust-domain>/ns/<namespace>/sa/<service account>`
    pub fn spiffe(&self, trust_domain: &str) -> String {
        format!("spiffe://{trust_domain}/ns/{}/sa/{}", self.namespace, self.service_account)
    }
}

/// One endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointEntry {
    /// Its address.
    pub address: IpAddr,
    /// Service port and the port at the endpoint.
    pub ports: Box<[(u16, u16)]>,
    /// The same for datagrams, which have port numbers of their own.
    pub udp_ports: Box<[(u16, u16)]>,
    /// The node that owns it; none = reachable directly.
    pub node: Option<Arc<str>>,
    /// Who it is.
    pub workload: Arc<WorkloadEntry>,
    /// Takes new connections.
    pub ready: bool,
    /// Is being shut down.
    pub terminating: bool,
    /// DNS label of a StatefulSet pod.
    pub hostname: Option<Box<str>>,
    /// Where it is.
    pub locality: Arc<Locality>,
    /// At least 1.
    pub weight: u32,
}

impl EndpointEntry {
    /// The endpoint's port for a service port.
    pub fn target_port(&self, service_port: u16) -> Option<u16> {
        self.ports.iter().find(|(s, _)| *s == service_port).map(|(_, t)| *t)
    }

    /// A label of the endpoint's pod, or one that its place gives it.
    pub fn label(&self, key: &str) -> Option<&str> {
        match self.workload.labels.get(key) {
            Some(v) => Some(v),
            None => self.locality.label(key, self.node.as_deref().unwrap_or_default()),
        }
    }

    /// The service port that leads to a port of the endpoint.
    pub fn service_port(&self, target_port: u16) -> Option<u16> {
        self.ports.iter().find(|(_, t)| *t == target_port).map(|(s, _)| *s)
    }

    /// The endpoint's port for a service port of UDP.
    pub fn udp_target_port(&self, service_port: u16) -> Option<u16> {
        self.udp_ports.iter().find(|(s, _)| *s == service_port).map(|(_, t)| *t)
    }

    /// The service port of UDP that leads to a port of the endpoint.
    pub fn udp_service_port(&self, target_port: u16) -> Option<u16> {
        self.udp_ports.iter().find(|(_, t)| *t == target_port).map(|(s, _)| *s)
    }
}

/// All endpoints of one service.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EndpointSet {
    /// In the order of the resource.
    pub endpoints: Box<[Arc<EndpointEntry>]>,
    /// Endpoints that are names, to be resolved when they are used.
    pub names: Box<[NamedEndpoint]>,
}

/// An endpoint whose addresses a name has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedEndpoint {
    /// The name.
    pub name: Arc<str>,
    /// The endpoint; its address says nothing.
    pub entry: Arc<EndpointEntry>,
}

impl EndpointSet {
    /// Entries whose address does not parse are left out; `mesh_api::check` refuses such a resource before. `known`
    /// gives what is remembered of the workload with an address: an equal one is shared.
    pub(crate) fn compile<'a>(
        m: &model::Endpoints,
        known: &dyn Fn(IpAddr) -> Option<&'a Arc<WorkloadEntry>>,
    ) -> Self {
        let mut seen = Seen::default();
        let (mut endpoints, mut names) = (Vec::new(), Vec::new());
        for e in &m.endpoints {
            let named = !e.fqdn.is_empty() && e.address.is_empty();
            let Some(entry) = compile_endpoint(e, &mut seen, known) else { continue };
            match named {
                true => names.push(NamedEndpoint { name: e.fqdn.to_ascii_lowercase().into(), entry }),
                false => endpoints.push(entry),
            }
        }
        Self { endpoints: endpoints.into(), names: names.into() }
    }
}

impl NamedEndpoint {
    /// A name outside the mesh of which nothing else is known.
    pub fn outside(name: &Arc<str>) -> Self {
        let entry = EndpointEntry::outside(IpAddr::from([0, 0, 0, 0]));
        Self { name: Arc::clone(name), entry: Arc::new(entry) }
    }
}

impl EndpointEntry {
    /// An address outside the mesh of which nothing else is known.
    pub fn outside(address: IpAddr) -> Self {
        let workload = WorkloadEntry {
            address,
            node: "".into(),
            namespace: "unknown".into(),
            name: "unknown".into(),
            owner: "unknown".into(),
            service_account: "".into(),
            labels: BTreeMap::new(),
            host_network: false,
        };
        Self {
            address,
            ports: Box::default(),
            udp_ports: Box::default(),
            node: None,
            workload: Arc::new(workload),
            ready: true,
            terminating: false,
            hostname: None,
            locality: Arc::default(),
            weight: 1,
        }
    }
}

/// Node names and places repeat for every endpoint of a node: one copy is kept per resource.
#[derive(Default)]
struct Seen {
    names: BTreeMap<Box<str>, Arc<str>>,
    locality: Arc<Locality>,
}

impl Seen {
    fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(n) = self.names.get(name) {
            return n.clone();
        }
        let n: Arc<str> = name.into();
        self.names.insert(name.into(), n.clone());
        n
    }

    fn locality(&mut self, m: Option<&model::Locality>) -> Arc<Locality> {
        let locality = Locality::compile(m);
        if *self.locality != locality {
            self.locality = Arc::new(locality);
        }
        self.locality.clone()
    }
}

fn compile_endpoint<'a>(
    e: &model::Endpoint,
    seen: &mut Seen,
    known: &dyn Fn(IpAddr) -> Option<&'a Arc<WorkloadEntry>>,
) -> Option<Arc<EndpointEntry>> {
    let named = !e.fqdn.is_empty() && e.address.is_empty();
    let address: IpAddr = if named { IpAddr::from([0, 0, 0, 0]) } else { e.address.parse().ok()? };
    let node = seen.name(&e.node);
    let nobody = model::Workload::default();
    let workload = WorkloadEntry::compile(address, &node, e.workload.as_ref().unwrap_or(&nobody));
    let map =
        |p: &model::PortMap| Some((u16::try_from(p.service_port).ok()?, u16::try_from(p.target_port).ok()?));
    let ports = e.ports.iter().filter_map(map).collect();
    Some(Arc::new(EndpointEntry {
        address,
        ports,
        udp_ports: e.udp_ports.iter().filter_map(map).collect(),
        workload: known(address).filter(|w| ***w == workload).cloned().unwrap_or_else(|| Arc::new(workload)),
        node: (!node.is_empty()).then_some(node),
        ready: e.ready,
        terminating: e.terminating,
        hostname: (!e.hostname.is_empty()).then(|| e.hostname.to_ascii_lowercase().into()),
        locality: seen.locality(e.locality.as_ref()),
        weight: e.weight.max(1),
    }))
}

/// A node of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEntry {
    /// Its name.
    pub name: Arc<str>,
    /// libp2p peer id, base58; empty = has not joined.
    pub peer_id: Box<str>,
    /// Multiaddrs without `/p2p`, best first.
    pub addresses: Box<[Box<str>]>,
    /// Where it is.
    pub locality: Locality,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Serves as relay.
    pub relay: bool,
    /// Kind of NAT that it is behind, as it says.
    pub nat: Box<str>,
    /// Circuit addresses at which it is reached, nearest relay first.
    pub reservations: Box<[Box<str>]>,
}

impl NodeEntry {
    pub(crate) fn compile(m: &model::Node) -> Self {
        Self {
            name: m.name.as_str().into(),
            peer_id: m.peer_id.as_str().into(),
            addresses: m.addresses.iter().map(|a| a.as_str().into()).collect(),
            locality: Locality::compile(m.locality.as_ref()),
            labels: m.labels.clone(),
            relay: m.relay,
            nat: m.nat.as_str().into(),
            reservations: m.reservations.iter().map(|a| a.as_str().into()).collect(),
        }
    }
}
