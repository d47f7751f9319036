//! What a snapshot holds besides services and nodes: gateways with their rules and keys, scopes, telemetry.

use std::{collections::BTreeMap, sync::Arc};

use mesh_api::{Resource, ResourceType, model};

use crate::{
    gateway::GatewayHosts,
    route::compile::BadRule,
    scope::{self, Scopes},
    tables::Tables,
};

/// Resources that are kept as they came, by name.
type Kept<T> = Arc<BTreeMap<Arc<str>, Arc<T>>>;

/// Shared by snapshots until one of them changes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extras {
    pub(crate) hosts: GatewayHosts,
    pub(crate) scopes: Scopes,
    gateways: Kept<model::Gateway>,
    secrets: Kept<model::Secret>,
    telemetry: Kept<model::Telemetry>,
}

impl Extras {
    pub(crate) fn set(&mut self, resource: Resource) -> Result<(), BadRule> {
        let name: Arc<str> = resource.name().into();
        match resource {
            Resource::Gateway(m) => keep(&mut self.gateways, name, m),
            Resource::Secret(m) => keep(&mut self.secrets, name, m),
            Resource::Telemetry(m) => keep(&mut self.telemetry, name, m),
            Resource::GatewayHost(m) => self.hosts.set(&m)?,
            Resource::Sidecar(m) => self.scopes = scope::changed(&self.scopes, &name, Some(&m)),
            Resource::MeshConfig(_)
            | Resource::Node(_)
            | Resource::NodeWorkloads(_)
            | Resource::Service(_)
            | Resource::Endpoints(_) => {}
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, kind: ResourceType, name: &str) {
        match kind {
            ResourceType::Gateway => drop(Arc::make_mut(&mut self.gateways).remove(name)),
            ResourceType::Secret => drop(Arc::make_mut(&mut self.secrets).remove(name)),
            ResourceType::Telemetry => drop(Arc::make_mut(&mut self.telemetry).remove(name)),
            ResourceType::GatewayHost => self.hosts.remove(name),
            ResourceType::Sidecar => self.scopes = scope::changed(&self.scopes, name, None),
            ResourceType::MeshConfig
            | ResourceType::Node
            | ResourceType::NodeWorkloads
            | ResourceType::Service
            | ResourceType::Endpoints => {}
        }
    }
}

fn keep<T: Clone>(all: &mut Kept<T>, name: Arc<str>, m: T) {
    Arc::make_mut(all).insert(name, Arc::new(m));
}

impl Tables {
    /// All Gateways, by name.
    pub fn gateways(&self) -> impl Iterator<Item = &Arc<model::Gateway>> {
        self.extras.gateways.values()
    }

    /// Name of the secret that a gateway shows to endpoints when TLS is opened towards them.
    pub fn client_secret(&self, gateway: &str) -> Option<&str> {
        let gateway = self.extras.gateways.get(gateway)?;
        Some(gateway.client_secret.as_str()).filter(|name| !name.is_empty())
    }

    /// Whether two snapshots have the same Gateways and keys.
    pub fn same_gateways(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.extras.gateways, &other.extras.gateways)
            && Arc::ptr_eq(&self.extras.secrets, &other.extras.secrets)
    }

    /// The key and certificates with that name.
    pub fn secret(&self, name: &str) -> Option<&Arc<model::Secret>> {
        self.extras.secrets.get(name)
    }

    /// What is measured and logged, by name.
    pub fn telemetry(&self) -> impl Iterator<Item = &Arc<model::Telemetry>> {
        self.extras.telemetry.values()
    }

    /// Whether two snapshots have the same Telemetry resources.
    pub fn same_telemetry(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.extras.telemetry, &other.extras.telemetry)
    }
}
