//! VirtualService to virtual hosts: who claims a host, in which order, visible to whom.

use std::cmp::Reverse;

use mesh_api::model;

use super::{Context, Delegates, delegate, http, l4};
use crate::{
    names,
    types::{Meta, VirtualService},
};

pub(super) fn delegates_of(object: &VirtualService) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = object
        .spec
        .http
        .iter()
        .filter_map(|r| r.delegate.as_ref())
        .map(|d| (delegate::namespace_of(d, &object.meta).to_owned(), d.name.clone()))
        .collect();
    out.sort();
    out.dedup();
    out
}

pub(super) fn hosts_of(object: &VirtualService, ctx: &Context) -> Vec<String> {
    object.spec.hosts.iter().map(|h| names::resolve(h, &object.meta.namespace, &ctx.cluster_domain)).collect()
}

/// Who may use an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Visibility {
    All,
    Nobody,
    /// Sorted namespaces.
    Only(Vec<String>),
}

impl Visibility {
    pub(super) fn of(export_to: &[String], namespace: &str) -> Self {
        if export_to.is_empty() || export_to.iter().any(|e| e == "*") {
            return Self::All;
        }
        let mut only: Vec<String> = export_to
            .iter()
            .filter(|e| *e != "~")
            .map(|e| if e == "." { namespace.to_owned() } else { e.clone() })
            .collect();
        only.sort();
        only.dedup();
        if only.is_empty() { Self::Nobody } else { Self::Only(only) }
    }

    /// As the model writes it.
    pub(super) fn namespaces(&self) -> Vec<String> {
        match self {
            Self::Only(list) => list.clone(),
            Self::All | Self::Nobody => Vec::new(),
        }
    }

    pub(super) fn sees(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Nobody => false,
            Self::Only(list) => list.iter().any(|n| n == namespace),
        }
    }

    pub(super) fn is_private(&self, namespace: &str) -> bool {
        matches!(self, Self::Only(list) if list.len() == 1 && list[0] == namespace)
    }

    /// Private before exported by name before public.
    pub(super) fn group(&self, namespace: &str) -> u8 {
        match self {
            _ if self.is_private(namespace) => 0,
            Self::Only(_) => 1,
            Self::All | Self::Nobody => 2,
        }
    }
}

/// A gateway's name as the model writes it: `mesh` or `namespace/name`.
pub(super) fn gateway(name: &str, meta: &Meta) -> String {
    if name == "mesh" {
        return name.to_owned();
    }
    match name.split_once('/') {
        Some((".", name)) => format!("{}/{name}", meta.namespace),
        Some(_) => name.to_owned(),
        // `gateway.namespace.svc…`, the spelling of old: the first two labels are name and namespace.
        None => match name.split('.').collect::<Vec<_>>()[..] {
            [name, namespace, ..] => format!("{namespace}/{name}"),
            _ => format!("{}/{name}", meta.namespace),
        },
    }
}

pub(super) fn gateways(names: &[String], meta: &Meta) -> Vec<String> {
    names.iter().map(|g| gateway(g, meta)).collect()
}

pub(super) fn virtual_service(
    object: &VirtualService,
    ctx: &Context,
    delegates: Delegates<'_>,
) -> Vec<(String, model::VirtualHost)> {
    let Some(rules) = rules(object, ctx, delegates) else { return Vec::new() };
    hosts_of(object, ctx).into_iter().map(|h| (h, rules.clone())).collect()
}

pub(super) fn rules(
    object: &VirtualService,
    ctx: &Context,
    delegates: Delegates<'_>,
) -> Option<model::VirtualHost> {
    let visibility = visibility(object, ctx);
    if visibility == Visibility::Nobody || object.spec.hosts.is_empty() {
        return None;
    }
    let scope = Scope { meta: &object.meta, ctx };
    let tls = object.spec.tls.iter().zip(0..).map(|(r, i)| l4::tls(r, i, scope)).collect();
    let tcp = object.spec.tcp.iter().zip(0..).map(|(r, i)| l4::tcp(r, i, scope)).collect();
    let mut rules = Vec::new();
    for (rule, index) in object.spec.http.iter().zip(0..) {
        match &rule.delegate {
            None => rules.extend(http::rule(rule, index, scope)),
            Some(d) => rules.extend(delegate::rules(rule, index, d, scope, delegates)),
        }
    }
    Some(model::VirtualHost {
        source: object.meta.key(),
        visible_to: visibility.namespaces(),
        gateways: gateways(&object.spec.gateways, &object.meta),
        http: rules,
        tls,
        tcp,
    })
}

/// Whether the object comes from a route of Gateway API.
pub(super) fn is_gateway_api(meta: &Meta) -> bool {
    meta.annotations.get(crate::gateway_api::ROUTE_SEMANTICS).is_some_and(|v| v == "gateway")
}

/// Who may use the object. A route of Gateway API for a service of another namespace is for clients of its own
/// namespace only.
fn visibility(object: &VirtualService, ctx: &Context) -> Visibility {
    let namespace = &object.meta.namespace;
    if is_gateway_api(&object.meta) {
        let of_others = |host: &String| {
            let service =
                host.strip_suffix(ctx.cluster_domain.as_str()).and_then(|h| h.strip_suffix(".svc."));
            service.and_then(|s| s.split_once('.')).is_some_and(|(_, owner)| owner != namespace)
        };
        let in_mesh = object.spec.gateways.iter().all(|g| g == "mesh");
        if in_mesh && object.spec.hosts.iter().any(of_others) {
            return Visibility::Only(vec![namespace.clone()]);
        }
    }
    Visibility::of(super::exported(&object.spec.export_to, &ctx.exports.virtual_service), namespace)
}

/// What names in an object are relative to.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) meta: &'a Meta,
    pub(super) ctx: &'a Context,
}

impl Scope<'_> {
    pub(super) fn host(&self, host: &str) -> String {
        names::resolve(host, &self.meta.namespace, &self.ctx.cluster_domain)
    }
}

pub(super) fn virtual_hosts(
    host: &str,
    registered: bool,
    candidates: &[&VirtualService],
    ctx: &Context,
    delegates: Delegates<'_>,
) -> Vec<model::VirtualHost> {
    let mut ranked: Vec<_> = candidates
        .iter()
        .filter_map(|object| {
            let best = hosts_of(object, ctx)
                .iter()
                .filter(|h| if registered { names::covers(h, host) } else { h.as_str() == host })
                .map(|h| names::specificity(h))
                .max()?;
            let meta = &object.meta;
            let group = visibility(object, ctx).group(&meta.namespace);
            Some(((Reverse(best), group, meta.age_order()), *object))
        })
        .collect();
    ranked.sort_by(|a, b| a.0.cmp(&b.0));
    ranked.into_iter().filter_map(|(_, object)| rules(object, ctx, delegates)).collect()
}
