//! What a client called, and what the tables know about it.

use std::net::SocketAddr;

use mesh_core::{
    Client, Cluster, EndpointMatch, Tables, VipMatch, balance::EndpointId, policy::LoadBalancing,
};

/// What a client called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The address; none when a name of the mesh was called through the proxy port.
    pub(crate) addr: Option<SocketAddr>,
    /// The name, if one was called.
    pub(crate) name: Option<String>,
    /// The port.
    pub(crate) port: u16,
}

impl Target {
    /// An address that was captured.
    pub(crate) const fn address(addr: SocketAddr) -> Self {
        Self { addr: Some(addr), name: None, port: addr.port() }
    }

    /// A port of a gateway.
    pub(crate) const fn port(port: u16) -> Self {
        Self { addr: None, name: None, port }
    }

    /// What the tables know, as far as the client may.
    pub(crate) fn find<'t>(&self, tables: &'t Tables, client: &Client<'_>) -> Found<'t> {
        if let Some(name) = &self.name
            && let Some(vip) = by_name(tables, name, self.port, client.namespace)
            && tables.sees(client, vip.service, self.port)
        {
            return Found::Service(vip);
        }
        let Some(addr) = self.addr else { return Found::Unknown };
        let port = addr.port();
        if let Some(vip) = tables.by_vip_for(addr.ip(), port, |s| tables.sees(client, s, port)) {
            return Found::Service(vip);
        }
        let endpoint = tables.endpoint_by_addr(addr.ip(), port);
        endpoint
            .filter(|e| tables.sees(client, e.service, e.port.number))
            .map_or(Found::Unknown, Found::Endpoint)
    }

    /// Whether the address is one that only the mesh gives a meaning to, and it has none for this client any more.
    pub(crate) fn leads_nowhere(&self, tables: &Tables, client: &Client<'_>) -> bool {
        let Some(addr) = self.addr else { return true };
        // A service that the client may not know is outside the mesh for it.
        tables.is_vip(addr.ip())
            && !tables.services_at(addr.ip()).any(|s| !tables.sees(client, s, addr.port()))
    }
}

/// A service by a name that a client used: any of the forms that DNS search lists make work.
pub(crate) fn by_name<'t>(
    tables: &'t Tables,
    name: &str,
    port: u16,
    namespace: &str,
) -> Option<VipMatch<'t>> {
    let service = tables.service_for_host(name, namespace)?;
    Some(VipMatch { service, port: service.port(port)? })
}

/// What the tables know about a target.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Found<'t> {
    /// A service, by its virtual address or name.
    Service(VipMatch<'t>),
    /// One endpoint, by its own address.
    Endpoint(EndpointMatch<'t>),
    /// Nothing.
    Unknown,
}

impl<'t> Found<'t> {
    /// The service and its port.
    pub(crate) const fn vip(&self) -> Option<VipMatch<'t>> {
        match self {
            Self::Service(vip) => Some(*vip),
            Self::Endpoint(e) => Some(VipMatch { service: e.service, port: e.port }),
            Self::Unknown => None,
        }
    }

    /// The endpoint that has to be used, because it was called by its own address: if the traffic goes to the
    /// service's own cluster, and no rule chooses anew among its endpoints. (PASSTHROUGH leaves the choice to the caller.)
    pub(crate) fn pinned(&self, to: &Cluster, by_rule: bool) -> Option<EndpointId> {
        match self {
            Self::Endpoint(e)
                if *to.key.host == *e.service.host
                    && (!by_rule || to.policy.balancing.kind == LoadBalancing::Passthrough) =>
            {
                let port = e.endpoint.target_port(to.port.number)?;
                let addr = SocketAddr::new(e.endpoint.address, port);
                Some(EndpointId::new(addr, e.endpoint.node.as_deref()))
            }
            Self::Endpoint(_) | Self::Service(_) | Self::Unknown => None,
        }
    }
}
