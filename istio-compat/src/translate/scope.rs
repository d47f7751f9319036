//! Sidecars: what workloads may call.

use mesh_api::model::{self, mesh_config::OutboundMode as Outbound};

use super::{Context, route::Scope, traffic};
use crate::types::{IstioEgressListener, Meta, OutboundMode, Sidecar};

/// A Sidecar as nodes evaluate it. `protocol` is told what a port is called and its number.
pub fn sidecar(
    object: &Sidecar,
    ctx: &Context,
    protocol: &dyn Fn(&str, u32) -> model::Protocol,
) -> model::Sidecar {
    let (meta, spec) = (&object.meta, &object.spec);
    let selector = spec.workload_selector.as_ref().map(|s| s.labels.clone()).unwrap_or_default();
    let policy = spec.outbound_traffic_policy.as_ref();
    let scope = Scope { meta, ctx };
    model::Sidecar {
        name: meta.key(),
        namespace: meta.namespace.clone(),
        created: meta.creation_timestamp.clone(),
        mesh_default: meta.namespace == ctx.root_namespace && selector.is_empty(),
        selector,
        egress: spec.egress.iter().map(|l| egress(l, meta, protocol)).collect(),
        outbound: match policy.map(|p| p.mode.unwrap_or_default()) {
            None => Outbound::OutboundUnspecified,
            Some(OutboundMode::RegistryOnly) => Outbound::RegistryOnly,
            Some(OutboundMode::AllowAny) => Outbound::AllowAny,
        }
        .into(),
        egress_proxy: policy
            .and_then(|p| p.egress_proxy.as_ref())
            .map(|d| super::http::destination(d, scope)),
        ingress: spec
            .ingress
            .iter()
            .filter_map(|l| {
                let port = l.port.as_ref()?;
                Some(model::IngressListener {
                    port: port.number,
                    bind: l.bind.clone(),
                    default_endpoint: l.default_endpoint.clone(),
                    protocol: protocol(&port.protocol, port.number).into(),
                    pool: l.connection_pool.as_ref().map(traffic::connection_pool),
                })
            })
            .collect(),
        inbound_pool: spec.inbound_connection_pool.as_ref().map(traffic::connection_pool),
    }
}

fn egress(
    listener: &IstioEgressListener,
    meta: &Meta,
    protocol: &dyn Fn(&str, u32) -> model::Protocol,
) -> model::EgressListener {
    let port = listener.port.as_ref();
    let number = port.map(|p| p.number).unwrap_or_default();
    model::EgressListener {
        port: number,
        bind: listener.bind.clone(),
        hosts: listener.hosts.iter().filter_map(|h| host_scope(h, meta)).collect(),
        port_name: port.map(|p| p.name.clone()).unwrap_or_default(),
        protocol: port.map_or(model::Protocol::Unspecified, |p| protocol(&p.protocol, number)).into(),
    }
}

/// `~/*` is nothing at all: it leaves an empty list, which sees nothing.
fn host_scope(text: &str, meta: &Meta) -> Option<model::HostScope> {
    let (namespace, host) = text.split_once('/')?;
    let excluded = namespace.strip_prefix('~');
    let namespace = match (excluded, namespace) {
        (Some(""), _) => return None,
        (Some(rest), _) => rest,
        (None, plain) => plain,
    };
    Some(model::HostScope {
        namespace: if namespace == "." { meta.namespace.clone() } else { namespace.to_owned() },
        host: host.trim_end_matches('.').to_ascii_lowercase(),
        exclude: excluded.is_some(),
    })
}
