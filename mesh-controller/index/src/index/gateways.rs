//! Gateways: listeners, the rules bound to them, the nodes that run them, and the secrets that these nodes get.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use istio_compat::{
    translate::{self, gateway},
    types::{DestinationRule, Gateway, VirtualService},
};
use mesh_api::{model, resource};

use super::{Index, gateway_api, rules::Claims};
use crate::{
    kube::{self, Labels, Secret},
    object::Name,
};

/// A node that may serve Gateways without selector says so by this label, or a pod on it does.
const GATEWAY_LABEL: &str = "selvage.io/gateway";

/// Who is bound to which Gateway, and who names which secret.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    /// VirtualServices by Gateway (`namespace/name`), and by the host or server name that they claim there.
    rules: HashMap<String, Claims>,
    /// Gateways (true) and DestinationRules (false) by the secret that they name.
    secrets: BTreeMap<Name, BTreeSet<(bool, Name)>>,
    /// Domains of a Gateway that were compiled, as (server, domain).
    compiled: HashMap<Name, BTreeSet<(String, String)>>,
}

/// What is compiled of Gateways.
#[derive(Debug, Default)]
pub(super) struct TouchedGateways {
    /// Listeners.
    pub(super) gateways: BTreeSet<Name>,
    /// All domains of them.
    pub(super) all_hosts: BTreeSet<Name>,
    /// Hosts and server names that a rule claims at a Gateway.
    pub(super) claims: BTreeSet<(Name, String)>,
    pub(super) secrets: BTreeSet<Name>,
}

pub(super) fn name_of(full: &str) -> Option<Name> {
    let (namespace, name) = full.split_once('/')?;
    Some(Name::new(namespace, name))
}

/// What a VirtualService claims at gateways.
fn claimed(index: &Index, object: &VirtualService) -> Vec<String> {
    let mut out = translate::hosts_of(object, &index.context);
    let sni = object.spec.tls.iter().flat_map(|r| &r.matches).flat_map(|m| &m.sni_hosts);
    out.extend(sni.map(|h| h.to_ascii_lowercase()));
    out.sort();
    out.dedup();
    out
}

fn bind<K: std::hash::Hash + Eq + Ord>(
    map: &mut BTreeMap<K, BTreeSet<(bool, Name)>>,
    key: K,
    who: (bool, Name),
    present: bool,
) {
    if present {
        map.entry(key).or_default().insert(who);
    } else if let Some(set) = map.get_mut(&key) {
        set.remove(&who);
        if set.is_empty() {
            map.remove(&key);
        }
    }
}

impl Index {
    pub(super) fn put_gateway(&mut self, name: &Name, new: Option<Gateway>) -> bool {
        if self.gateways.get(name) == new.as_ref() {
            return false;
        }
        let old = match &new {
            Some(object) => self.gateways.insert(name.clone(), object.clone()),
            None => self.gateways.remove(name),
        };
        for (object, present) in old.iter().map(|o| (o, false)).chain(new.iter().map(|o| (o, true))) {
            for secret in gateway::secrets_of(object).iter().filter_map(|s| name_of(s)) {
                bind(&mut self.bindings.secrets, secret.clone(), (true, name.clone()), present);
                self.touched.gateways.secrets.insert(secret);
            }
        }
        let selector = |o: &Option<Gateway>| o.as_ref().map(|o| o.spec.selector.clone());
        if selector(&old) != selector(&new) {
            let nodes: Vec<_> = self.nodes.keys().chain(self.registrations.keys()).cloned().collect();
            self.touched.nodes.extend(nodes);
        }
        self.touched.gateways.gateways.insert(name.clone());
        self.touched.gateways.all_hosts.insert(name.clone());
        true
    }

    /// The rules of a VirtualService at its Gateways: noted, and touched.
    pub(super) fn bind_rules(&mut self, name: &Name, object: &VirtualService, present: bool) {
        for gateway in gateway::gateways_of(object) {
            for host in claimed(self, object) {
                let claims = self.bindings.rules.entry(gateway.clone()).or_default();
                if present { claims.insert(&host, name) } else { claims.remove(&host, name) }
            }
        }
        self.touch_bound(object);
    }

    /// What a VirtualService says at its Gateways is compiled again.
    pub(super) fn touch_bound(&mut self, object: &VirtualService) {
        let hosts = claimed(self, object);
        for gateway in gateway::gateways_of(object).iter().filter_map(|g| name_of(g)) {
            let claims = hosts.iter().map(|h| (gateway.clone(), h.clone()));
            self.touched.gateways.claims.extend(claims);
        }
    }

    /// Secrets that a DestinationRule names.
    pub(super) fn bind_secrets(&mut self, name: &Name, object: &DestinationRule, present: bool) {
        for secret in translate::secrets_of(object).iter().filter_map(|s| name_of(s)) {
            bind(&mut self.bindings.secrets, secret.clone(), (false, name.clone()), present);
            self.touched.gateways.secrets.insert(secret);
        }
    }

    pub(super) fn put_secret(&mut self, name: &Name, new: Option<Secret>) -> bool {
        let new = new.filter(|s| !s.is_empty());
        if self.secrets.get(name) == new.as_ref() {
            return false;
        }
        self.gateway_api.touch_certificate(name);
        match new {
            Some(secret) => self.secrets.insert(name.clone(), secret),
            None => self.secrets.remove(name),
        };
        // `name-cacert` completes `name`.
        let base = name.name.strip_suffix("-cacert").map(|b| Name::new(&name.namespace, b));
        self.touched.gateways.secrets.extend(base);
        self.touched.gateways.secrets.insert(name.clone());
        true
    }

    /// A workload with these labels came, went or changed on a node.
    pub(super) fn touch_gateway_workload(&mut self, node: &str, labels: &Labels) {
        let runs = self.gateways.values().any(|g| runs(&g.spec.selector, labels));
        if runs {
            self.touched.nodes.insert(node.into());
        }
        let touched: Vec<Name> = self
            .bindings
            .secrets
            .iter()
            .filter(|(_, by)| {
                by.iter().any(|(is_gateway, name)| match is_gateway {
                    true => self.gateways.get(name).is_some_and(|g| self::runs(&g.spec.selector, labels)),
                    false => true,
                })
            })
            .map(|(secret, _)| secret.clone())
            .collect();
        self.touched.gateways.secrets.extend(touched);
    }

    /// A node joined or left: secrets of the gateways that it runs have another audience.
    pub(super) fn touch_gateway_node(&mut self, node: &str) {
        let running = self.gateways_on(node);
        let named = |by: &BTreeSet<(bool, Name)>| {
            by.iter().any(|(is_gateway, n)| {
                *is_gateway && running.contains(&format!("{}/{}", n.namespace, n.name))
            })
        };
        let touched: Vec<Name> =
            self.bindings.secrets.iter().filter(|(_, by)| named(by)).map(|(s, _)| s.clone()).collect();
        self.touched.gateways.secrets.extend(touched);
    }

    /// Gateways that workloads of a node run.
    pub(super) fn gateways_on(&self, node: &str) -> Vec<String> {
        let own = self.nodes.get(node).map(|n| &n.metadata.labels);
        let on_it = self.pods_on.get(node).into_iter().flatten().filter_map(|p| self.pods.get(p));
        // A gateway that runs as a pod may have joined under the pod's name.
        let is_it = self.pods.iter().filter(|(name, _)| own.is_none() && *name.name == *node).map(|(_, p)| p);
        let pods = on_it.chain(is_it);
        let labels: Vec<&Labels> =
            own.into_iter().chain(pods.filter(|p| !p.has_ended()).map(|p| &p.metadata.labels)).collect();
        self.gateways
            .values()
            .filter(|g| labels.iter().any(|l| runs(&g.spec.selector, l)))
            .map(|g| g.meta.key())
            .collect()
    }

    pub(super) fn compile_gateway(&self, name: &Name) -> Option<model::Gateway> {
        self.gateways.get(name).map(gateway::gateway)
    }

    /// Domains at which something may be different now, with those that were there before.
    pub(super) fn touched_domains(&self, touched: &TouchedGateways) -> BTreeSet<(Name, String, String)> {
        let mut out = BTreeSet::new();
        for name in &touched.all_hosts {
            let before = self.bindings.compiled.get(name).into_iter().flatten();
            out.extend(before.map(|(s, d)| (name.clone(), s.clone(), d.clone())));
            let Some(gateway) = self.gateways.get(name) else { continue };
            let Some(rules) = self.bindings.rules.get(&gateway.meta.key()) else { continue };
            let bound = rules.all().into_iter().filter_map(|n| self.virtual_services.get(n));
            for (server, domain) in bound.flat_map(|v| gateway::domains(gateway, v, &self.context)) {
                out.insert((name.clone(), server, domain));
            }
        }
        for (name, claim) in touched.claims.iter().filter(|(n, _)| !touched.all_hosts.contains(n)) {
            let Some(gateway) = self.gateways.get(name) else { continue };
            for (server, domain) in gateway::domains_of_claim(gateway, claim) {
                out.insert((name.clone(), server, domain));
            }
        }
        out
    }

    pub(super) fn compile_gateway_host(
        &mut self,
        name: &Name,
        server: &str,
        domain: &str,
    ) -> Option<model::GatewayHost> {
        let compiled = self.gateways.get(name).and_then(|gateway| {
            let rules = self.bindings.rules.get(&gateway.meta.key())?;
            let covering = rules.covering(domain);
            let candidates: Vec<&VirtualService> =
                covering.into_iter().filter_map(|n| self.virtual_services.get(n)).collect();
            let delegates =
                |namespace: &str, name: &str| self.virtual_services.get(&Name::new(namespace, name));
            gateway::gateway_host(gateway, (server, domain), &candidates, &self.context, &delegates)
        });
        let key = (server.to_owned(), domain.to_owned());
        let known = self.bindings.compiled.entry(name.clone()).or_default();
        if compiled.is_some() {
            known.insert(key);
        } else {
            known.remove(&key);
        }
        if known.is_empty() {
            self.bindings.compiled.remove(name);
        }
        compiled
    }

    /// A secret that somebody names, with the nodes that get it.
    pub(super) fn compile_secret(&self, name: &Name) -> Option<(model::Secret, BTreeSet<Arc<str>>)> {
        let named_by = self.bindings.secrets.get(name)?;
        // `name-cacert` alone is the CA of `name`.
        let base = name.name.strip_suffix("-cacert").map(|b| Name::new(&name.namespace, b));
        let of_base = || {
            let ca = self.secrets.get(base.as_ref()?)?.ca.clone();
            (!ca.is_empty()).then(|| Secret { ca, ..Secret::default() })
        };
        let secret = &self.secrets.get(name).cloned().or_else(of_base)?;
        let companion = self.secrets.get(&Name::new(&name.namespace, &format!("{}-cacert", name.name)));
        let mut nodes = BTreeSet::new();
        if gateway_api::is_public(name) {
            nodes.extend(self.nodes.keys().chain(self.registrations.keys()).cloned());
        }
        for (is_gateway, by) in named_by {
            if *is_gateway {
                let full = format!("{}/{}", by.namespace, by.name);
                let all = self.nodes.keys().chain(self.registrations.keys()).cloned();
                let all = all.chain(self.pods_on.keys().map(|n| n.as_str().into()));
                nodes.extend(all.filter(|n| self.gateways_on(n).contains(&full)));
            } else if let Some(rule) = self.destination_rules.get(by) {
                let none = Labels::new();
                let selector = rule.spec.workload_selector.as_ref().map_or(&none, |s| &s.match_labels);
                let first = Name { namespace: by.namespace.clone(), name: "".into() };
                let pods = self.pods.range(first..).take_while(|(n, _)| n.namespace == by.namespace);
                let chosen = pods.filter(|(_, p)| kube::selects(selector, &p.metadata.labels));
                nodes.extend(
                    chosen
                        .map(|(_, p)| p.spec.node_name.as_str().into())
                        .filter(|n: &Arc<str>| !n.is_empty()),
                );
            }
        }
        let ca = if secret.ca.is_empty() {
            companion.map(|c| c.ca.clone()).unwrap_or_default()
        } else {
            secret.ca.clone()
        };
        let out = model::Secret {
            name: format!("{}/{}", name.namespace, name.name),
            certificate_chain: secret.certificate.clone(),
            private_key: secret.key.clone(),
            ca,
            crl: secret.crl.clone(),
        };
        Some((out, nodes))
    }

    pub(super) fn touch_all_gateways(&mut self) {
        let touched = &mut self.touched.gateways;
        touched.gateways.extend(self.gateways.keys().cloned());
        touched.all_hosts.extend(self.gateways.keys().cloned());
        touched.all_hosts.extend(self.bindings.compiled.keys().cloned());
        touched.secrets.extend(self.bindings.secrets.keys().cloned());
    }

    /// The name of a compiled domain.
    pub(super) fn gateway_host_name(name: &Name, server: &str, domain: &str) -> Arc<str> {
        resource::gateway_host_name(&format!("{}/{}", name.namespace, name.name), server, domain).into()
    }
}

/// Whether a workload with these labels opens the listeners of a selector.
fn runs(selector: &Labels, labels: &Labels) -> bool {
    if selector.is_empty() {
        return labels.get(GATEWAY_LABEL).is_some_and(|v| v == "true");
    }
    kube::selects(selector, labels)
}
