//! Typed resources to the model that nodes run. Every host is resolved here; what a client may see is decided here.

mod balancing;
mod delegate;
pub mod external;
pub mod gateway;
mod http;
mod l4;
pub(crate) mod mesh;
mod policy;
pub mod retry;
mod route;
pub mod scope;
pub(crate) mod secrets;
pub mod telemetry;
mod traffic;

use mesh_api::model;

use crate::types::{DestinationRule, VirtualService, VirtualServiceSpec};

/// Mesh settings that translation depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Domain of Kubernetes services.
    pub cluster_domain: String,
    /// Namespace whose rules apply to the whole mesh.
    pub root_namespace: String,
    /// Whom objects are for that do not say so themselves.
    pub exports: ExportDefaults,
}

impl Default for Context {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            exports: ExportDefaults::default(),
        }
    }
}

/// `exportTo` of objects that have none; empty = everybody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportDefaults {
    /// Of services, whatever they are made from.
    pub service: Vec<String>,
    /// Of VirtualServices.
    pub virtual_service: Vec<String>,
    /// Of DestinationRules.
    pub destination_rule: Vec<String>,
}

/// An object's own list, or the mesh's.
pub(crate) fn exported<'a>(own: &'a [String], default: &'a [String]) -> &'a [String] {
    if own.is_empty() { default } else { own }
}

/// Namespaces for which a service is whose list this is, as the model has them. `None`: for nobody.
pub fn visible_to(export_to: &[String], namespace: &str, ctx: &Context) -> Option<Vec<String>> {
    let visibility = route::Visibility::of(exported(export_to, &ctx.exports.service), namespace);
    (visibility != route::Visibility::Nobody).then(|| visibility.namespaces())
}

/// Finds delegates by namespace and name.
pub type Delegates<'a> = &'a dyn Fn(&str, &str) -> Option<&'a VirtualService>;

/// No delegates at all.
pub fn no_delegates<'a>(_namespace: &str, _name: &str) -> Option<&'a VirtualService> {
    None
}

/// Delegates that a VirtualService names, as (namespace, name): it must be translated again when one of them changes.
pub fn delegates_of(object: &VirtualService) -> Vec<(String, String)> {
    route::delegates_of(object)
}

/// Full host names that a VirtualService claims; wildcards as they are. Empty for a delegate.
pub fn hosts_of(object: &VirtualService, ctx: &Context) -> Vec<String> {
    route::hosts_of(object, ctx)
}

/// Secrets that a DestinationRule names, as `namespace/name`.
pub fn secrets_of(object: &DestinationRule) -> Vec<String> {
    let policies = object
        .spec
        .traffic_policy
        .iter()
        .chain(object.spec.subsets.iter().filter_map(|s| s.traffic_policy.as_ref()));
    let settings = policies
        .flat_map(|p| p.tls.iter().chain(p.port_level_settings.iter().filter_map(|p| p.tls.as_ref())));
    let mut out: Vec<String> = settings
        .map(|t| secrets::full_name(&t.credential_name, &object.meta.namespace))
        .filter(|n| !n.is_empty())
        .collect();
    out.sort();
    out.dedup();
    out
}

/// The full host name, or wildcard, that a DestinationRule is for.
pub fn host_of(object: &DestinationRule, ctx: &Context) -> String {
    crate::names::resolve(&object.spec.host, &object.meta.namespace, &ctx.cluster_domain)
}

/// One VirtualService as (host, rules) pairs, one for each host that it claims. Empty for delegates and for objects
/// that nobody may use.
pub fn virtual_service(
    object: &VirtualService,
    ctx: &Context,
    delegates: Delegates<'_>,
) -> Vec<(String, model::VirtualHost)> {
    route::virtual_service(object, ctx, delegates)
}

/// All VirtualServices that concern `host`, in the order in which a node tries them: exact hosts before wildcards,
/// longer wildcards first; then private before exported by name before public; then age. `candidates` are objects any
/// of whose hosts cover `host` (others are left out). For a host that no registry knows, only objects that name it
/// literally count: pass `registered = false`.
pub fn virtual_hosts(
    host: &str,
    registered: bool,
    candidates: &[&VirtualService],
    ctx: &Context,
    delegates: Delegates<'_>,
) -> Vec<model::VirtualHost> {
    route::virtual_hosts(host, registered, candidates, ctx, delegates)
}

/// One DestinationRule as (host, policy); `None` when nobody may use it.
pub fn destination_rule(
    object: &DestinationRule,
    ctx: &Context,
) -> Option<(String, model::DestinationPolicy)> {
    policy::destination_rule(object, ctx)
}

/// All policies that may apply to `host` of a service in `service_namespace`, in the order in which a node tries them.
/// Rules of the client's namespace come first, then the service's, then the root namespace's; rules for the same host in
/// one namespace are merged as Istio does. `candidates` are rules whose host covers `host` (others are left out).
pub fn policies(
    host: &str,
    service_namespace: &str,
    candidates: &[&DestinationRule],
    ctx: &Context,
) -> Vec<model::DestinationPolicy> {
    policy::policies(host, service_namespace, candidates, ctx)
}

/// Whether a VirtualService is a delegate of others: it has no hosts of its own.
pub fn is_delegate(spec: &VirtualServiceSpec) -> bool {
    spec.hosts.is_empty()
}

#[cfg(test)]
mod tests;
