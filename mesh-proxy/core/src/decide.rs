//! Which service, rule and cluster a request or a connection gets. Reads tables and conditions only; what the rule
//! does to the request is in [`crate::actions`]. Allocates nothing.

use std::{net::IpAddr, sync::Arc};

use crate::{
    client::{Client, Dice, DiceKind, RequestView},
    cluster::Cluster,
    route::{
        Action, Destinations, DirectResponse, HttpRule, Redirect, RouteMatch, TcpRule, TlsRule,
        VirtualHostEntry, WeightedDestination, index::Place,
    },
    service::ServiceEntry,
    tables::{Tables, VipMatch},
};

/// What a request leads to, and by which rule.
#[derive(Debug)]
pub struct HttpDecision<'t> {
    /// The service that the host names.
    pub service: Option<&'t Arc<ServiceEntry>>,
    /// The VirtualService that claims the host for this client.
    pub virtual_host: Option<&'t VirtualHostEntry>,
    /// Its rule; none = the service's default route.
    pub rule: Option<&'t HttpRule>,
    /// The match entry of the rule, with its position; none = the rule takes everything.
    pub matched: Option<(usize, &'t RouteMatch)>,
    /// `namespace/name` of the Gateway whose rule it is.
    pub gateway: Option<&'t Arc<str>>,
    /// What happens.
    pub outcome: HttpOutcome<'t>,
}

/// What happens to a request.
#[derive(Debug)]
pub enum HttpOutcome<'t> {
    /// It goes to a cluster.
    Forward {
        /// The destination of the rule that was chosen; none = the service itself.
        destination: Option<&'t WeightedDestination>,
        /// Where it goes.
        cluster: &'t Arc<Cluster>,
    },
    /// The rule redirects.
    Redirect(&'t Redirect),
    /// The rule answers.
    Direct(&'t DirectResponse),
    /// The host is known and has rules, but none is for this request: 404.
    NoRoute,
    /// The rule's destination does not exist: 503.
    UnknownCluster(Missing<'t>),
    /// Nobody knows the host, and unknown hosts are let through: to the address that was called. If that is a
    /// virtual address of the mesh, this is its cluster.
    Passthrough(Option<&'t Arc<Cluster>>),
    /// Nobody knows the host, and unknown hosts are not let through: 502.
    Blackhole,
}

/// A destination that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing<'t> {
    /// Host as the rule has it.
    pub host: &'t str,
    /// Subset as the rule has it.
    pub subset: &'t str,
    /// Port that was looked for.
    pub port: u16,
}

/// What a connection leads to, and by which rule.
#[derive(Debug)]
pub struct L4Decision<'t> {
    /// The service that was called.
    pub service: Option<&'t Arc<ServiceEntry>>,
    /// The VirtualService of the rule.
    pub virtual_host: Option<&'t VirtualHostEntry>,
    /// The rule's destinations; none = the service's default.
    pub destinations: Option<&'t Destinations>,
    /// Position of the rule in its VirtualService.
    pub rule_index: Option<u32>,
    /// `namespace/name` of the Gateway whose rule it is.
    pub gateway: Option<&'t Arc<str>>,
    /// What happens.
    pub outcome: L4Outcome<'t>,
}

/// What happens to a connection.
#[derive(Debug)]
pub enum L4Outcome<'t> {
    /// It goes to a cluster.
    Forward {
        /// The destination that was chosen; none = the service itself.
        destination: Option<&'t WeightedDestination>,
        /// Where it goes.
        cluster: &'t Arc<Cluster>,
    },
    /// The rule's destination does not exist.
    UnknownCluster(Missing<'t>),
    /// To the address that was called.
    Passthrough,
    /// Nowhere.
    Blackhole,
}

impl Destinations {
    /// One of them, by weight. A single one needs no weight.
    pub fn pick(&self, dice: &mut impl Dice) -> Option<&WeightedDestination> {
        if let [only] = &*self.all {
            return Some(only);
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "the product lies in [0, total)"
        )]
        let mut at = (dice.roll(DiceKind::Weight) * self.total as f64) as u64;
        self.all.iter().find(|d| {
            let weight = u64::from(d.weight);
            let hit = at < weight;
            at = at.saturating_sub(weight);
            hit
        })
    }
}

impl Tables {
    /// Decides an HTTP request that came to `port`. `original` is the service port behind the address that was
    /// called, if there is one; it counts only for hosts that nobody knows, as `Host` decides.
    pub fn route_http<'t, R: RequestView>(
        &'t self,
        client: &Client<'_>,
        port: u16,
        original: Option<&VipMatch<'t>>,
        request: &R,
        dice: &mut impl Dice,
    ) -> HttpDecision<'t> {
        let mut d = HttpDecision {
            service: None,
            virtual_host: None,
            rule: None,
            matched: None,
            gateway: None,
            outcome: HttpOutcome::Blackhole,
        };
        let scope = self.scope_of(client);
        let called = (port, client.called);
        let known = |s: &ServiceEntry| scope.is_none_or(|scope| scope.sees(s, called));
        let Some(service) = self.service_at_port(request.authority(), client.namespace, port, known) else {
            d.outcome = self.unknown_host(client, original);
            return d;
        };
        d.service = Some(service);
        let claims = |v: &&VirtualHostEntry| {
            v.visible_to(client)
                && scope.is_none_or(|scope| scope.sees_rules(v, &service.host, called))
                && v.has_http_for(client, port)
        };
        let Some(host) = service.virtual_hosts.iter().find(claims) else {
            d.outcome = match service.cluster(client, "", port) {
                Some(cluster) => HttpOutcome::Forward { destination: None, cluster },
                None => HttpOutcome::UnknownCluster(Missing { host: &service.host, subset: "", port }),
            };
            return d;
        };
        d.virtual_host = Some(host);
        let Some(place) = host.find(client, port, request) else {
            d.outcome = HttpOutcome::NoRoute;
            return d;
        };
        self.act_on(&mut d, (host, place), client, port, dice);
        d
    }

    /// What the rule at a place of a VirtualService makes of a request.
    pub(crate) fn act_on<'t>(
        &'t self,
        d: &mut HttpDecision<'t>,
        (host, place): (&'t VirtualHostEntry, Place),
        client: &Client<'_>,
        port: u16,
        dice: &mut impl Dice,
    ) {
        let rule = &host.http[place.rule as usize];
        d.rule = Some(rule);
        d.matched = place.matched.map(|m| (m as usize, &rule.matches[m as usize]));
        d.outcome = match &rule.action {
            Action::Redirect(r) => HttpOutcome::Redirect(r),
            Action::Direct(r) => HttpOutcome::Direct(r),
            Action::Forward(to) => match to.pick(dice) {
                Some(to) => match self.cluster_of(client, to, port, client.gateway.is_some()) {
                    Ok(cluster) => HttpOutcome::Forward { destination: Some(to), cluster },
                    Err(missing) => HttpOutcome::UnknownCluster(missing),
                },
                None => HttpOutcome::NoRoute,
            },
        };
    }

    fn unknown_host<'t>(&'t self, client: &Client<'_>, original: Option<&VipMatch<'t>>) -> HttpOutcome<'t> {
        if client.gateway.is_none()
            && let Some(to) = self.egress_proxy(client)
        {
            return match self.cluster_of(client, to, to.port, true) {
                Ok(cluster) => HttpOutcome::Forward { destination: Some(to), cluster },
                Err(missing) => HttpOutcome::UnknownCluster(missing),
            };
        }
        match original {
            _ if client.gateway.is_some() => HttpOutcome::NoRoute,
            Some(vip) => HttpOutcome::Passthrough(vip.service.cluster(client, "", vip.port.number)),
            None if self.registry_only(client) => HttpOutcome::Blackhole,
            None => HttpOutcome::Passthrough(None),
        }
    }

    /// The cluster of a destination. Without a port, `infer` takes the only port of the service; else it is the port
    /// that the client called.
    pub fn cluster_of<'t>(
        &'t self,
        client: &Client<'_>,
        to: &'t WeightedDestination,
        called: u16,
        infer: bool,
    ) -> Result<&'t Arc<Cluster>, Missing<'t>> {
        let service = self.service_for(&to.host, client.namespace);
        let port = match (to.port, service) {
            (0, Some(s)) if infer && s.ports.len() == 1 => s.ports[0].number,
            (0, _) => called,
            (port, _) => port,
        };
        service.and_then(|s| s.cluster(client, &to.subset, port)).ok_or(Missing {
            host: &to.host,
            subset: &to.subset,
            port,
        })
    }

    /// Decides a connection to an address.
    pub fn route_tcp<'t>(
        &'t self,
        client: &Client<'_>,
        to: Option<IpAddr>,
        original: Option<&VipMatch<'t>>,
        port: u16,
        dice: &mut impl Dice,
    ) -> L4Decision<'t> {
        let Some(vip) = original else { return self.unknown_address(client) };
        let found = vip.service.virtual_hosts.iter().filter(|v| v.visible_to(client)).find_map(|v| {
            let rule: &TcpRule = v.find_tcp(client, to, port)?;
            Some((v, rule.index, &rule.destinations))
        });
        self.finish_l4(client, vip, found, dice)
    }

    /// Decides a TLS connection that stays closed here. Without an original service the SNI names it.
    pub fn route_tls<'t>(
        &'t self,
        client: &Client<'_>,
        to: Option<IpAddr>,
        original: Option<&VipMatch<'t>>,
        (port, sni): (u16, &str),
        dice: &mut impl Dice,
    ) -> L4Decision<'t> {
        let named = self
            .service_for_host(sni, client.namespace)
            .filter(|s| self.sees(client, s, port))
            .and_then(|service| Some(VipMatch { service, port: service.port(port)? }));
        let Some(vip) = original.copied().or(named) else { return self.unknown_address(client) };
        let mut claimed = false;
        let found = vip.service.virtual_hosts.iter().filter(|v| v.visible_to(client)).find_map(|v| {
            claimed |= v.has_tls_for(client, port);
            let rule: &TlsRule = v.find_tls(client, sni, to, port)?;
            Some((v, rule.index, &rule.destinations))
        });
        if found.is_none() && claimed {
            // The service's rules take its place, and none is for this name.
            return L4Decision { service: Some(vip.service), ..self.unknown_address(client) };
        }
        self.finish_l4(client, &vip, found, dice)
    }

    fn unknown_address(&self, client: &Client<'_>) -> L4Decision<'_> {
        let outcome = match self.egress_proxy(client) {
            Some(to) => match self.cluster_of(client, to, to.port, true) {
                Ok(cluster) => L4Outcome::Forward { destination: Some(to), cluster },
                Err(missing) => L4Outcome::UnknownCluster(missing),
            },
            None if self.registry_only(client) => L4Outcome::Blackhole,
            None => L4Outcome::Passthrough,
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

    fn finish_l4<'t>(
        &'t self,
        client: &Client<'_>,
        vip: &VipMatch<'t>,
        found: Option<(&'t VirtualHostEntry, u32, &'t Destinations)>,
        dice: &mut impl Dice,
    ) -> L4Decision<'t> {
        let outcome = match found.and_then(|(_, _, to)| to.pick(dice)) {
            Some(to) => match self.cluster_of(client, to, vip.port.number, true) {
                Ok(cluster) => L4Outcome::Forward { destination: Some(to), cluster },
                Err(missing) => L4Outcome::UnknownCluster(missing),
            },
            None => match vip.service.cluster(client, "", vip.port.number) {
                Some(cluster) => L4Outcome::Forward { destination: None, cluster },
                None => L4Outcome::UnknownCluster(Missing {
                    host: &vip.service.host,
                    subset: "",
                    port: vip.port.number,
                }),
            },
        };
        L4Decision {
            service: Some(vip.service),
            virtual_host: found.map(|f| f.0),
            destinations: found.map(|f| f.2),
            rule_index: found.map(|f| f.1),
            gateway: None,
            outcome,
        }
    }
}

#[cfg(test)]
mod tests;
