//! What Gateway API refers to outside itself: namespaces, services, certificates. A trait, so that an index lends what it
//! holds and copies nothing; [`Snapshot`] is the same as plain data, for files and tests.

use std::collections::{BTreeMap, BTreeSet};

use super::types::Labels;

/// A named port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; may be empty.
    pub name: String,
    /// Its number.
    pub number: u32,
}

/// What is behind a host name, for a Gateway that is served there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Ports of the service.
    pub ports: BTreeSet<u32>,
    /// Ports that have an endpoint, ready or not.
    pub ports_with_endpoints: BTreeSet<u32>,
    /// The service's port for each port at the endpoints.
    pub by_target_port: BTreeMap<u32, u32>,
    /// Addresses outside the cluster.
    pub external: Vec<String>,
    /// Of type LoadBalancer: `external` will come.
    pub load_balancer: bool,
}

/// A ServiceEntry, as far as routes refer to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntryFacts {
    /// Its hosts.
    pub hosts: Vec<String>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// Where to look things up.
pub trait Facts {
    /// All namespaces with their labels, in order of name.
    fn namespaces(&self) -> Vec<(String, Labels)>;
    /// Ports of a Kubernetes service.
    fn service(&self, namespace: &str, name: &str) -> Option<Vec<ServicePort>>;
    /// A host that the namespace knows: a service of it, or a ServiceEntry of it.
    fn host(&self, host: &str, namespace: &str) -> Option<HostFacts>;
    /// Namespaces that know a host.
    fn namespaces_of_host(&self, host: &str) -> Vec<String>;
    /// A ServiceEntry.
    fn service_entry(&self, namespace: &str, name: &str) -> Option<EntryFacts>;
    /// Contents of a Secret.
    fn secret(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>>;
    /// Contents of a ConfigMap.
    fn config_map(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, String>>;
}

/// Facts as plain data.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Labels by namespace.
    pub namespaces: BTreeMap<String, Labels>,
    /// Ports by namespace and name.
    pub services: BTreeMap<(String, String), Vec<ServicePort>>,
    /// Hosts by name and namespace.
    pub hosts: BTreeMap<String, BTreeMap<String, HostFacts>>,
    /// ServiceEntries by namespace and name.
    pub service_entries: BTreeMap<(String, String), EntryFacts>,
    /// Secrets by namespace and name.
    pub secrets: BTreeMap<(String, String), BTreeMap<String, Vec<u8>>>,
    /// ConfigMaps by namespace and name.
    pub config_maps: BTreeMap<(String, String), BTreeMap<String, String>>,
}

fn key(namespace: &str, name: &str) -> (String, String) {
    (namespace.to_owned(), name.to_owned())
}

impl Facts for Snapshot {
    fn namespaces(&self) -> Vec<(String, Labels)> {
        self.namespaces.iter().map(|(n, l)| (n.clone(), l.clone())).collect()
    }
    fn service(&self, namespace: &str, name: &str) -> Option<Vec<ServicePort>> {
        self.services.get(&key(namespace, name)).cloned()
    }
    fn host(&self, host: &str, namespace: &str) -> Option<HostFacts> {
        self.hosts.get(host)?.get(namespace).cloned()
    }
    fn namespaces_of_host(&self, host: &str) -> Vec<String> {
        self.hosts.get(host).into_iter().flat_map(|m| m.keys().cloned()).collect()
    }
    fn service_entry(&self, namespace: &str, name: &str) -> Option<EntryFacts> {
        self.service_entries.get(&key(namespace, name)).cloned()
    }
    fn secret(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        self.secrets.get(&key(namespace, name)).cloned()
    }
    fn config_map(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, String>> {
        self.config_maps.get(&key(namespace, name)).cloned()
    }
}
