//! A service: its names, ports, rules and clusters.

use std::{net::IpAddr, ops::Deref, sync::Arc};

use ipnet::IpNet;
use mesh_api::model;

use crate::{
    client::Client,
    cluster::{self, Cluster, ClusterSlot},
    endpoint::EndpointSet,
    policy::{PolicyDefaults, PolicyEntry},
    route::{VirtualHostEntry, compile::BadRule},
};

/// What a service is to DNS and routing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceKind {
    /// Has a virtual address.
    ClusterIp,
    /// Its name leads to the endpoints' addresses.
    Headless,
    /// Its name is an alias of a name outside.
    ExternalName,
    /// A rule's host that no registry knows.
    RouteOnly,
    /// A ServiceEntry; its host may be `*.suffix`.
    External,
}

/// Where connections to an external host go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resolution {
    /// To the endpoints that are listed.
    #[default]
    Static,
    /// To the address that the client called.
    Original,
    /// To the addresses of names.
    Dns {
        /// Only the first address of a look-up counts.
        first: bool,
    },
    /// To the name that the request asks for.
    Asked,
}

/// What is spoken at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Unknown: look at the first bytes.
    Detect,
    /// HTTP/1.1, or HTTP/2 by its preface.
    Http,
    /// HTTP/2 without TLS.
    Http2,
    /// gRPC.
    Grpc,
    /// Bytes.
    Tcp,
    /// TLS that stays closed here: routed by SNI.
    Tls,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// Whether `http` rules apply without looking at the bytes.
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc)
    }

    fn compile(p: model::Protocol) -> Self {
        match p {
            model::Protocol::Unspecified => Self::Detect,
            model::Protocol::Http => Self::Http,
            model::Protocol::Http2 => Self::Http2,
            model::Protocol::Grpc => Self::Grpc,
            model::Protocol::Tcp => Self::Tcp,
            model::Protocol::Tls => Self::Tls,
            model::Protocol::Udp => Self::Udp,
        }
    }
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortEntry {
    /// Number.
    pub number: u16,
    /// Name; may be empty.
    pub name: Arc<str>,
    /// What is spoken there.
    pub protocol: Protocol,
}

/// What a Service resource says, compiled.
#[derive(Debug)]
pub struct ServiceDef {
    /// FQDN without trailing dot, or `*.suffix` for a route-only wildcard.
    pub host: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Kind.
    pub kind: ServiceKind,
    /// Virtual addresses.
    pub vips: Box<[IpAddr]>,
    /// Ports, as declared.
    pub ports: Box<[PortEntry]>,
    /// Target of an ExternalName service.
    pub external_name: Option<Arc<str>>,
    /// Rules, in order of precedence.
    pub virtual_hosts: Box<[VirtualHostEntry]>,
    /// DestinationRules, in order of precedence.
    pub policies: Box<[PolicyEntry]>,
    /// Endpoints count as ready from the start.
    pub publish_not_ready: bool,
    /// Client namespaces that know the host; empty = all.
    pub visible_to: Box<[Box<str>]>,
    /// Where connections go; external hosts only.
    pub resolution: Resolution,
    /// An external host that belongs to the mesh all the same.
    pub internal: bool,
    /// Address ranges beside the virtual addresses.
    pub ranges: Box<[IpNet]>,
    /// Names of which a server shows one.
    pub subject_alt_names: Arc<[Box<str>]>,
    /// Calls to its addresses are left to others.
    pub uncaptured: bool,
    /// Near endpoints are preferred even without outlier detection.
    pub prefers_near: bool,
    pub(crate) no_subset: Arc<str>,
    /// One of several owners of its host, and not the first: what is made of it is told apart by its namespace.
    pub(crate) beside: bool,
    others: Box<[(Arc<Self>, Arc<EndpointSet>)]>,
}

/// A service with its endpoints.
#[derive(Debug)]
pub struct ServiceEntry {
    pub(crate) def: Arc<ServiceDef>,
    /// Endpoints, ready or not.
    pub endpoints: Arc<EndpointSet>,
    clusters: Box<[(ClusterSlot, Arc<Cluster>)]>,
    /// The same host as other namespaces declare it, older ones first.
    others: Box<[Arc<Self>]>,
}

impl Deref for ServiceEntry {
    type Target = ServiceDef;
    fn deref(&self) -> &ServiceDef {
        &self.def
    }
}

impl ServiceDef {
    pub(crate) fn compile(m: &model::Service) -> Result<Self, BadRule> {
        use model::service::Kind;
        let port = |p: &model::Port| {
            Some(PortEntry {
                number: u16::try_from(p.number).ok()?,
                name: p.name.as_str().into(),
                protocol: Protocol::compile(p.protocol()),
            })
        };
        let virtual_hosts = m
            .virtual_hosts
            .iter()
            .enumerate()
            .map(|(i, v)| VirtualHostEntry::compile(v).map_err(|e| e.at(&format!("virtual_hosts[{i}]"))))
            .collect::<Result<_, _>>()?;
        let others = m.others.iter().filter_map(|other| {
            let endpoints = EndpointSet::compile(other.endpoints.as_ref()?, &|_| None);
            let def = Self::compile(other.service.as_ref()?);
            Some(def.map(|def| (Arc::new(Self { beside: true, ..def }), Arc::new(endpoints))))
        });
        Ok(Self {
            beside: false,
            others: others.collect::<Result<_, _>>()?,
            host: m.host.as_str().into(),
            namespace: m.namespace.as_str().into(),
            name: m.name.as_str().into(),
            kind: match m.kind() {
                Kind::Unspecified | Kind::ClusterIp => ServiceKind::ClusterIp,
                Kind::Headless => ServiceKind::Headless,
                Kind::ExternalName => ServiceKind::ExternalName,
                Kind::RouteOnly => ServiceKind::RouteOnly,
                Kind::External => ServiceKind::External,
            },
            vips: m.vips.iter().filter_map(|v| v.parse().ok()).collect(),
            ports: m.ports.iter().filter_map(port).collect(),
            external_name: (!m.external_name.is_empty()).then(|| m.external_name.as_str().into()),
            virtual_hosts,
            policies: m.policies.iter().map(PolicyEntry::compile).collect(),
            publish_not_ready: m.publish_not_ready,
            visible_to: m.visible_to.iter().map(|v| v.as_str().into()).collect(),
            resolution: match m.resolution() {
                _ if m.kind() != Kind::External => Resolution::Static,
                model::service::Resolution::Unspecified | model::service::Resolution::None => {
                    Resolution::Original
                }
                model::service::Resolution::Static => Resolution::Static,
                model::service::Resolution::Dns => Resolution::Dns { first: false },
                model::service::Resolution::DnsRoundRobin => Resolution::Dns { first: true },
                model::service::Resolution::DynamicDns => Resolution::Asked,
            },
            internal: m.location() == model::service::Location::MeshInternal,
            ranges: m.cidrs.iter().filter_map(|c| c.parse().ok()).collect(),
            subject_alt_names: m.subject_alt_names.iter().map(|s| s.as_str().into()).collect(),
            uncaptured: m.uncaptured,
            prefers_near: m.traffic_distribution,
            no_subset: Arc::from(""),
        })
    }

    /// The port with that number for connections; datagrams have numbers of their own.
    pub fn port(&self, number: u16) -> Option<&PortEntry> {
        self.ports.iter().find(|p| p.number == number && p.protocol != Protocol::Udp)
    }

    /// The port with that number for datagrams.
    pub fn udp_port(&self, number: u16) -> Option<&PortEntry> {
        self.udp_ports().find(|p| p.number == number)
    }

    /// All ports for datagrams.
    pub fn udp_ports(&self) -> impl Iterator<Item = &PortEntry> {
        self.ports.iter().filter(|p| p.protocol == Protocol::Udp)
    }

    /// The port at endpoints that say nothing themselves.
    pub(crate) fn default_target(&self, port: u16) -> Option<u16> {
        (self.kind == ServiceKind::External).then(|| self.port(port).map(|p| p.number)).flatten()
    }

    /// Whether clients of a namespace know this host.
    pub fn visible_to(&self, namespace: &str) -> bool {
        self.visible_to.is_empty() || self.visible_to.iter().any(|n| **n == *namespace)
    }

    /// The port with that name.
    pub fn port_named(&self, name: &str) -> Option<&PortEntry> {
        self.ports.iter().find(|p| p.name.eq_ignore_ascii_case(name))
    }

    /// The virtual addresses of all owners of the host.
    pub(crate) fn all_vips(&self) -> impl Iterator<Item = IpAddr> {
        self.vips.iter().chain(self.others.iter().flat_map(|(o, _)| &o.vips)).copied()
    }

    /// The address ranges of all owners of the host.
    pub(crate) fn all_ranges(&self) -> Vec<IpNet> {
        self.ranges.iter().chain(self.others.iter().flat_map(|(o, _)| &o.ranges)).copied().collect()
    }

    /// The DestinationRule that applies to a client.
    pub fn policy_for(&self, client: &Client<'_>) -> Option<&PolicyEntry> {
        self.policies.iter().find(|p| p.applies_to(client))
    }
}

impl ServiceEntry {
    pub(crate) fn build(
        def: Arc<ServiceDef>,
        endpoints: Arc<EndpointSet>,
        old: Option<&Self>,
        defaults: &PolicyDefaults,
    ) -> Self {
        let clusters = cluster::compile_all(&def, &endpoints, old.map_or(&[], |o| &o.clusters), defaults);
        let before = |def: &ServiceDef| old?.others.iter().find(|o| o.namespace == def.namespace);
        let others = def.others.iter().map(|(other, endpoints)| {
            let old = before(other).map(|o| &**o);
            Arc::new(Self::build(Arc::clone(other), Arc::clone(endpoints), old, defaults))
        });
        let others = others.collect();
        Self { def, endpoints, clusters, others }
    }

    /// The new rules with the clusters of before: for the time between the first and the last of several changes.
    pub(crate) fn staged(def: Arc<ServiceDef>, endpoints: Arc<EndpointSet>, old: Option<&Self>) -> Self {
        let (clusters, others) = old.map(|o| (o.clusters.clone(), o.others.clone())).unwrap_or_default();
        Self { def, endpoints, clusters, others }
    }

    /// The host as all its owners declare it, older ones first.
    pub(crate) fn owners(self: &Arc<Self>) -> impl Iterator<Item = &Arc<Self>> {
        std::iter::once(self).chain(&self.others)
    }

    /// The host as it is for a client: as its own namespace declares it, else the first that is accepted.
    pub(crate) fn preferred<'s>(
        self: &'s Arc<Self>,
        namespace: &str,
        accept: impl Fn(&Self) -> bool,
    ) -> Option<&'s Arc<Self>> {
        if self.others.is_empty() {
            return Some(self).filter(|s| accept(s));
        }
        let accepted = || self.owners().filter(|s| s.visible_to(namespace) && accept(s));
        accepted().find(|s| *s.namespace == *namespace).or_else(|| accepted().next())
    }

    /// The cluster for a subset (empty = all) and a service port, as a client sees it. None: there is no such subset
    /// for this client, or no such port.
    pub fn cluster(&self, client: &Client<'_>, subset: &str, port: u16) -> Option<&Arc<Cluster>> {
        let policy = self.policies.iter().position(|p| p.applies_to(client)).map_or(0, |i| i + 1);
        cluster::lookup(&self.clusters, u32::try_from(policy).unwrap_or(0), (port, false), subset)
    }

    /// The cluster for a service port of datagrams, as a client sees it.
    pub fn udp_cluster(&self, client: &Client<'_>, port: u16) -> Option<&Arc<Cluster>> {
        let policy = self.policies.iter().position(|p| p.applies_to(client)).map_or(0, |i| i + 1);
        cluster::lookup(&self.clusters, u32::try_from(policy).unwrap_or(0), (port, true), "")
    }

    /// All clusters of the service.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        let others = self.others.iter().flat_map(|o| o.clusters.iter());
        self.clusters.iter().chain(others).map(|(_, c)| c)
    }
}
