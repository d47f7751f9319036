//! VirtualService to virtual hosts.

use mesh_api::model;

use super::{Context, Delegates};
use crate::{names, types::VirtualService};

pub(super) fn delegates_of(object: &VirtualService) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = object
        .spec
        .http
        .iter()
        .filter_map(|r| r.delegate.as_ref())
        .map(|d| {
            let namespace = if d.namespace.is_empty() { &object.meta.namespace } else { &d.namespace };
            (namespace.clone(), d.name.clone())
        })
        .collect();
    out.sort();
    out.dedup();
    out
}

pub(super) fn hosts_of(object: &VirtualService, ctx: &Context) -> Vec<String> {
    object.spec.hosts.iter().map(|h| names::resolve(h, &object.meta.namespace, &ctx.cluster_domain)).collect()
}

pub(super) fn virtual_service(
    _object: &VirtualService,
    _ctx: &Context,
    _delegates: Delegates<'_>,
) -> Vec<(String, model::VirtualHost)> {
    Vec::new()
}

pub(super) fn virtual_hosts(
    _host: &str,
    _registered: bool,
    _candidates: &[&VirtualService],
    _ctx: &Context,
    _delegates: Delegates<'_>,
) -> Vec<model::VirtualHost> {
    Vec::new()
}
