//! TLS and TCP rules.

use mesh_api::model;

use super::{
    http::{destination, usable},
    route::{Scope, gateways},
};
use crate::types::{L4MatchAttributes, RouteDestination, TcpRoute, TlsMatchAttributes, TlsRoute};

pub(super) fn tls(rule: &TlsRoute, index: u32, scope: Scope<'_>) -> model::TlsRule {
    model::TlsRule {
        index,
        matches: rule.matches.iter().map(|m| tls_match(m, scope)).collect(),
        destinations: destinations(&rule.route, scope),
        source: String::new(),
    }
}

pub(super) fn tcp(rule: &TcpRoute, index: u32, scope: Scope<'_>) -> model::TcpRule {
    model::TcpRule {
        index,
        matches: rule.matches.iter().map(|m| tcp_match(m, scope)).collect(),
        destinations: destinations(&rule.route, scope),
        source: String::new(),
    }
}

fn destinations(list: &[RouteDestination], scope: Scope<'_>) -> Vec<model::WeightedDestination> {
    let out = list
        .iter()
        .filter_map(|d| {
            Some(model::WeightedDestination {
                destination: Some(destination(d.destination.as_ref()?, scope)),
                weight: u32::try_from(d.weight).unwrap_or(0),
                headers: None,
            })
        })
        .collect();
    let mut out = usable(out).unwrap_or_default();
    out.retain(|d| d.weight > 0);
    out
}

fn tls_match(m: &TlsMatchAttributes, scope: Scope<'_>) -> model::TlsMatch {
    model::TlsMatch {
        sni_hosts: m.sni_hosts.iter().map(|h| h.to_ascii_lowercase()).collect(),
        destination_subnets: m.destination_subnets.clone(),
        port: m.port,
        source_labels: m.source_labels.clone(),
        source_namespace: m.source_namespace.clone(),
        gateways: gateways(&m.gateways, scope.meta),
    }
}

fn tcp_match(m: &L4MatchAttributes, scope: Scope<'_>) -> model::TcpMatch {
    model::TcpMatch {
        destination_subnets: m.destination_subnets.clone(),
        port: m.port,
        source_labels: m.source_labels.clone(),
        source_namespace: m.source_namespace.clone(),
        gateways: gateways(&m.gateways, scope.meta),
    }
}
