//! What gateways do: which rules answer a host that a listener was asked for.
//!
//! A listener answers for one or more servers of Gateway resources. Of the domains that its servers have, the most
//! specific one that covers the host decides; its rules are tried in order, those for every path last.

pub mod listener;

use std::sync::Arc;

use mesh_api::model;

use crate::{
    client::{Client, Dice, RequestView},
    decide::{HttpDecision, HttpOutcome, L4Decision, L4Outcome},
    host::{Name, without_port},
    route::{VirtualHostEntry, compile::BadRule},
    shards::Shards,
    tables::Tables,
};

/// The rules of one server for one domain.
#[derive(Debug)]
pub struct GatewayHostEntry {
    /// `namespace/name` of the Gateway.
    pub gateway: Arc<str>,
    /// The domain.
    pub domain: Box<str>,
    /// Rules, in order.
    pub parts: Box<[VirtualHostEntry]>,
}

/// Domains of a server.
type Domains = Shards<Arc<str>, Arc<GatewayHostEntry>>;

/// Domains of all servers, by [`server_key`].
#[derive(Debug, Clone, Default)]
pub(crate) struct GatewayHosts(Arc<std::collections::BTreeMap<Arc<str>, Domains>>);

/// The name under which a server's domains are found.
pub fn server_key(gateway: &str, server: &str) -> Arc<str> {
    format!("{gateway}|{server}").into()
}

impl GatewayHostEntry {
    fn compile(m: &model::GatewayHost) -> Result<Self, BadRule> {
        let part = |(i, v): (usize, &model::VirtualHost)| {
            VirtualHostEntry::compile(v).map_err(|e| e.at(&format!("parts[{i}]")))
        };
        Ok(Self {
            gateway: m.gateway.as_str().into(),
            domain: m.domain.as_str().into(),
            parts: m.parts.iter().enumerate().map(part).collect::<Result<_, _>>()?,
        })
    }
}

impl GatewayHosts {
    pub(crate) fn set(&mut self, m: &model::GatewayHost) -> Result<(), BadRule> {
        let entry = Arc::new(GatewayHostEntry::compile(m)?);
        let all = Arc::make_mut(&mut self.0);
        let domains = all.entry(server_key(&m.gateway, &m.server)).or_insert_with(Shards::new);
        domains.insert(m.domain.as_str().into(), entry);
        Ok(())
    }

    pub(crate) fn remove(&mut self, name: &str) {
        let Some((server, domain)) = name.rsplit_once('|') else { return };
        let all = Arc::make_mut(&mut self.0);
        if let Some(domains) = all.get_mut(server) {
            domains.remove(domain);
            if domains.len() == 0 {
                all.remove(server);
            }
        }
    }

    /// The entries of the most specific domain that covers a host: one for each server that has it.
    fn covering<'t>(
        &'t self,
        servers: &'t [Arc<str>],
        host: &str,
    ) -> impl Iterator<Item = &'t GatewayHostEntry> {
        let domain = self.domain_of(servers, host);
        let found = move |s: &Arc<str>| self.0.get(s)?.get(domain.as_ref()?.as_str()).map(|e| &**e);
        servers.iter().filter_map(found)
    }

    fn domain_of(&self, servers: &[Arc<str>], host: &str) -> Option<Name> {
        let has = |name: &str| servers.iter().any(|s| self.0.get(s).is_some_and(|d| d.get(name).is_some()));
        let host = host.strip_suffix('.').unwrap_or(host);
        let exact = Name::lower(host)?;
        if has(exact.as_str()) {
            return Some(exact);
        }
        let mut rest = exact.as_str();
        while let Some((_, suffix)) = rest.split_once('.') {
            let pattern = Name::lower("*.")?.with(&[suffix])?;
            if has(pattern.as_str()) {
                return Some(pattern);
            }
            rest = suffix;
        }
        Name::lower("*").filter(|n| has(n.as_str()))
    }
}

impl Tables {
    /// The rules of all servers of gateways: of each its key, and what it does for a domain.
    pub fn gateway_hosts(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<GatewayHostEntry>)> {
        let servers = self.extras.hosts.0.iter();
        servers.flat_map(|(server, domains)| domains.iter().map(move |(_, entry)| (server, entry)))
    }

    /// Whether the servers have any rules at all.
    pub fn gateway_has_rules(&self, servers: &[Arc<str>]) -> bool {
        servers.iter().any(|s| self.extras.hosts.0.contains_key(s))
    }

    /// Decides a request that came to a gateway's listener at `port`.
    pub fn route_gateway_http<'t, R: RequestView>(
        &'t self,
        client: &Client<'_>,
        servers: &'t [Arc<str>],
        port: u16,
        request: &R,
        dice: &mut impl Dice,
    ) -> HttpDecision<'t> {
        let mut d = HttpDecision {
            service: None,
            virtual_host: None,
            rule: None,
            matched: None,
            gateway: None,
            outcome: HttpOutcome::NoRoute,
        };
        let host = without_port(request.authority());
        for every_path in [false, true] {
            for entry in self.extras.hosts.covering(servers, host) {
                let client = Client { gateway: Some(&entry.gateway), ..*client };
                for part in entry.parts.iter().filter(|p| p.visible_to(&client)) {
                    d.virtual_host = d.virtual_host.or(Some(part));
                    let Some(place) = part.find_gateway(&client, port, request, every_path) else { continue };
                    d.virtual_host = Some(part);
                    d.gateway = Some(&entry.gateway);
                    self.act_on(&mut d, (part, place), &client, port, dice);
                    return d;
                }
            }
        }
        d
    }

    /// Decides a connection whose handshake names its cluster, `outbound_.PORT_.SUBSET_.HOST` (AUTO_PASSTHROUGH).
    pub fn route_named_cluster<'t>(&'t self, client: &Client<'_>, sni: &str) -> L4Decision<'t> {
        let cluster = || {
            let (port, rest) = sni.strip_prefix("outbound_.")?.split_once("_.")?;
            let (subset, host) = rest.split_once("_.")?;
            let service =
                self.service_for(host, client.namespace).filter(|s| s.visible_to(client.namespace))?;
            service.cluster(client, subset, port.parse().ok()?)
        };
        let outcome = match cluster() {
            Some(cluster) => L4Outcome::Forward { destination: None, cluster },
            None => L4Outcome::Blackhole,
        };
        L4Decision {
            service: None,
            virtual_host: None,
            destinations: None,
            rule_index: None,
            gateway: None,
            outcome,
        }
    }

    /// Decides a connection that stays closed (TLS, by its SNI) or is bytes (`sni` is none) at a gateway's listener.
    pub fn route_gateway_l4<'t>(
        &'t self,
        client: &Client<'_>,
        servers: &'t [Arc<str>],
        (port, sni): (u16, Option<&str>),
        dice: &mut impl Dice,
    ) -> L4Decision<'t> {
        let none = || L4Decision {
            service: None,
            virtual_host: None,
            destinations: None,
            rule_index: None,
            gateway: None,
            outcome: L4Outcome::Blackhole,
        };
        for entry in self.extras.hosts.covering(servers, sni.unwrap_or("*")) {
            let client = Client { gateway: Some(&entry.gateway), ..*client };
            for part in entry.parts.iter().filter(|p| p.visible_to(&client)) {
                let by_name = sni.and_then(|sni| part.find_tls(&client, sni, None, port));
                let found = match by_name {
                    Some(rule) => Some((rule.index, &rule.destinations)),
                    None => part.find_tcp(&client, None, port).map(|rule| (rule.index, &rule.destinations)),
                };
                let Some((index, to)) = found else { continue };
                let outcome = match to.pick(dice).map(|to| (to, self.cluster_of(&client, to, port, true))) {
                    Some((to, Ok(cluster))) => L4Outcome::Forward { destination: Some(to), cluster },
                    Some((_, Err(missing))) => L4Outcome::UnknownCluster(missing),
                    None => continue,
                };
                return L4Decision {
                    virtual_host: Some(part),
                    destinations: Some(to),
                    rule_index: Some(index),
                    gateway: Some(&entry.gateway),
                    outcome,
                    ..none()
                };
            }
        }
        none()
    }
}

#[cfg(test)]
mod tests;
