//! What the workloads of a namespace may call (Sidecar).

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use mesh_api::model::{self, mesh_config::OutboundMode};

use crate::{
    client::Client,
    endpoint::WorkloadEntry,
    policy::millis,
    route::{HeaderOps, VirtualHostEntry, WeightedDestination},
    service::{ServiceDef, ServiceEntry, ServiceKind},
    tables::Tables,
};

/// One Sidecar.
#[derive(Debug, Clone, PartialEq)]
pub struct ScopeEntry {
    /// `namespace/name`
    pub name: Arc<str>,
    namespace: Box<str>,
    created: Box<str>,
    selector: BTreeMap<String, String>,
    mesh_default: bool,
    egress: Box<[Egress]>,
    /// Unknown hosts are refused (true) or let through (false); none = as the mesh says.
    pub registry_only: Option<bool>,
    /// Unknown hosts that are let through go there.
    pub egress_proxy: Option<WeightedDestination>,
    /// For connections to the workloads: of single ports (of one address, if it names one), and of all others.
    inbound: Box<[PortLimits]>,
    inbound_default: Option<Arc<InboundLimits>>,
}

/// Of one port, and of one address if it is named.
type PortLimits = (u16, Option<IpAddr>, Arc<InboundLimits>);

/// What a workload's node keeps to for connections to it. None = nothing is said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InboundLimits {
    /// Open at a time.
    pub max_connections: Option<u32>,
    /// How long the workload may take to accept.
    pub connect_timeout: Option<Duration>,
    /// After which idle time a connection is closed; zero = never.
    pub idle_timeout: Option<Duration>,
    /// How long a connection lives.
    pub max_duration: Option<Duration>,
}

impl InboundLimits {
    fn compile(m: &model::ConnectionPool) -> Arc<Self> {
        Arc::new(Self {
            max_connections: (m.max_connections > 0).then_some(m.max_connections),
            connect_timeout: millis(m.connect_timeout.as_ref()).filter(|d| !d.is_zero()),
            idle_timeout: millis(m.tcp_idle_timeout.as_ref()),
            max_duration: millis(m.max_connection_duration.as_ref()).filter(|d| !d.is_zero()),
        })
    }
}

/// Where connections to an ingress listener end: its own port, or that of its default endpoint.
fn ending(m: &model::IngressListener) -> Option<u16> {
    let port = m.default_endpoint.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    port.or_else(|| u16::try_from(m.port).ok())
}

/// The address that a listener is bound to; none = any. What is no address is one that nobody calls.
fn bound(text: &str) -> Option<IpAddr> {
    match text.parse::<IpAddr>() {
        Ok(ip) => Some(ip).filter(|ip| !ip.is_unspecified()),
        Err(_) if text.is_empty() => None,
        Err(_) => Some(Ipv4Addr::UNSPECIFIED.into()),
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Egress {
    port: u16,
    /// Only calls to this address.
    bind: Option<IpAddr>,
    hosts: Box<[Covered]>,
}

#[derive(Debug, Clone, PartialEq)]
struct Covered {
    namespace: Box<str>,
    host: Box<str>,
    exclude: bool,
}

impl Covered {
    fn fits(&self, namespace: &str, host: &str) -> bool {
        (*self.namespace == *"*" || *self.namespace == *namespace)
            && match self.host.strip_prefix('*') {
                Some("") => true,
                Some(suffix) => host.strip_suffix(suffix).is_some_and(|rest| !rest.is_empty()),
                None => *self.host == *host,
            }
    }
}

/// All Sidecars, in the order in which they are looked at.
pub(crate) type Scopes = Arc<[Arc<ScopeEntry>]>;

impl ScopeEntry {
    fn compile(m: &model::Sidecar) -> Self {
        let covered = |s: &model::HostScope| Covered {
            namespace: s.namespace.as_str().into(),
            host: s.host.as_str().into(),
            exclude: s.exclude,
        };
        let egress = |e: &model::EgressListener| Egress {
            port: u16::try_from(e.port).unwrap_or(0),
            bind: bound(&e.bind),
            hosts: e.hosts.iter().map(covered).collect(),
        };
        Self {
            name: m.name.as_str().into(),
            namespace: m.namespace.as_str().into(),
            created: m.created.as_str().into(),
            selector: m.selector.clone(),
            mesh_default: m.mesh_default,
            egress: m.egress.iter().map(egress).collect(),
            registry_only: match m.outbound() {
                OutboundMode::OutboundUnspecified => None,
                OutboundMode::AllowAny => Some(false),
                OutboundMode::RegistryOnly => Some(true),
            },
            egress_proxy: m
                .egress_proxy
                .as_ref()
                .filter(|_| m.outbound() == OutboundMode::AllowAny)
                .map(destination),
            inbound: m
                .ingress
                .iter()
                .filter_map(|i| Some((ending(i)?, bound(&i.bind), InboundLimits::compile(i.pool.as_ref()?))))
                .collect(),
            inbound_default: m.inbound_pool.as_ref().map(InboundLimits::compile),
        }
    }

    /// `called`: port and address. A listener of that address comes before those of the port, and these before the one
    /// for all ports.
    fn covers(&self, (port, called): (u16, Option<IpAddr>), namespace: &str, host: &str) -> bool {
        if self.egress.is_empty() {
            return true;
        }
        let at =
            |bind: Option<IpAddr>| self.egress.iter().find(|e| port != 0 && e.port == port && e.bind == bind);
        let own = called.and_then(|ip| at(Some(ip))).or_else(|| at(None));
        let Some(listener) = own.or_else(|| self.egress.iter().find(|e| e.port == 0)) else { return false };
        let fits = |exclude| listener.hosts.iter().any(|c| c.exclude == exclude && c.fits(namespace, host));
        fits(false) && !fits(true)
    }

    /// Whether the workloads know a service when they call a port of an address.
    pub fn sees(&self, service: &ServiceDef, called: (u16, Option<IpAddr>)) -> bool {
        self.covers(called, &service.namespace, &service.host)
    }

    /// Whether the workloads know a service at any port: what DNS asks.
    pub fn sees_any(&self, service: &ServiceDef) -> bool {
        self.egress.is_empty()
            || self.egress.iter().any(|e| self.covers((e.port, e.bind), &service.namespace, &service.host))
    }

    /// Whether a VirtualService for a host counts for the workloads.
    pub(crate) fn sees_rules(
        &self,
        of: &VirtualHostEntry,
        host: &str,
        called: (u16, Option<IpAddr>),
    ) -> bool {
        let namespace = of.source.split_once('/').map_or("", |(ns, _)| ns);
        self.covers(called, namespace, host)
    }
}

fn destination(m: &model::Destination) -> WeightedDestination {
    WeightedDestination {
        host: m.host.as_str().into(),
        subset: m.subset.as_str().into(),
        port: u16::try_from(m.port).unwrap_or(0),
        weight: 1,
        headers: HeaderOps::default(),
    }
}

/// The list with one set or, without content, removed.
pub(crate) fn changed(scopes: &Scopes, name: &str, m: Option<&model::Sidecar>) -> Scopes {
    let mut all: Vec<_> = scopes.iter().filter(|s| *s.name != *name).cloned().collect();
    all.extend(m.map(|m| Arc::new(ScopeEntry::compile(m))));
    // Those with a selector first, then the oldest.
    all.sort_by(|a, b| {
        let key = |s: &ScopeEntry| (s.selector.is_empty(), s.created.clone(), s.name.clone());
        key(a).cmp(&key(b))
    });
    all.into()
}

impl Tables {
    /// What limits a client's view; none = it sees everything.
    pub fn scope_of(&self, client: &Client<'_>) -> Option<&Arc<ScopeEntry>> {
        if self.extras.scopes.is_empty() || client.gateway.is_some() {
            return None;
        }
        let own = |s: &&Arc<ScopeEntry>| {
            *s.namespace == *client.namespace
                && !s.mesh_default
                && s.selector.iter().all(|(k, v)| client.labels.get(k) == Some(v))
        };
        let default = |s: &&Arc<ScopeEntry>| s.mesh_default;
        self.extras.scopes.iter().find(own).or_else(|| self.extras.scopes.iter().find(default))
    }

    /// Whether a client knows a service at a port.
    pub fn sees(&self, client: &Client<'_>, service: &ServiceDef, port: u16) -> bool {
        service.visible_to(client.namespace)
            && self.is_preferred(client, service, port)
            && self.scope_of(client).is_none_or(|scope| scope.sees(service, (port, client.called)))
    }

    /// Of a host that several namespaces declare a client knows one only.
    fn is_preferred(&self, client: &Client<'_>, service: &ServiceDef, port: u16) -> bool {
        let several = service.kind == ServiceKind::External;
        let Some(host) = self.service(&service.host).filter(|s| several && s.owners().nth(1).is_some())
        else {
            return true;
        };
        let scope = self.scope_of(client);
        let known = |s: &ServiceEntry| scope.is_none_or(|scope| scope.sees(s, (port, client.called)));
        host.preferred(client.namespace, known).is_some_and(|own| std::ptr::eq(&*own.def, service))
    }

    /// What is kept to for connections to a port of a workload.
    pub fn inbound_limits(&self, workload: &WorkloadEntry, port: u16) -> Option<&Arc<InboundLimits>> {
        let scope = self.scope_of(&Client::of(workload))?;
        let fits = |bind: &Option<IpAddr>| bind.is_none_or(|ip| ip == workload.address);
        let own = scope.inbound.iter().find(|(p, bind, _)| *p == port && fits(bind));
        own.map(|(_, _, limits)| limits).or(scope.inbound_default.as_ref())
    }

    /// Where requests of a client for unknown hosts go, instead of the address that was called.
    pub(crate) fn egress_proxy(&self, client: &Client<'_>) -> Option<&WeightedDestination> {
        self.scope_of(client)?.egress_proxy.as_ref()
    }

    /// Whether unknown hosts are refused to a client.
    pub fn registry_only(&self, client: &Client<'_>) -> bool {
        self.scope_of(client).and_then(|s| s.registry_only).unwrap_or(self.mesh().registry_only)
    }
}

#[cfg(test)]
mod tests;
