//! Backend references to destinations. One that may not be used, or that names nothing, keeps its share of the traffic
//! and fails it: the destination is empty and the status says why.

use super::{
    World,
    conditions::Problem,
    grants::{self, GroupKind},
    types::BackendRef,
};
use crate::types::{Destination, PortSelector};

/// From where a backend is referred to.
#[derive(Clone, Copy)]
pub(crate) struct From<'a> {
    /// Kind of the route.
    pub(crate) kind: &'static str,
    pub(crate) namespace: &'a str,
    /// Whether references to other namespaces need a grant; those of routes in the mesh do not.
    pub(crate) grants: bool,
}

/// A destination, with a problem that leaves the rest of the route as it is; or one that does not.
pub(crate) type Resolved = Result<(Destination, Option<Problem>), Problem>;

/// An empty destination: no cluster has that name.
fn failing(reason: &'static str, message: String) -> Resolved {
    Ok((Destination::default(), Some(Problem::new(reason, message))))
}

const NOT_FOUND: &str = "BackendNotFound";

/// A destination, or why the reference is none.
pub(crate) fn destination(world: &World<'_>, backend: &BackendRef, from: From<'_>) -> Resolved {
    let kind = GroupKind::of(backend.group.as_ref(), backend.kind.as_ref(), GroupKind::SERVICE);
    let namespace = backend.namespace.as_deref().unwrap_or(from.namespace);
    let name = &backend.name;
    if from.grants
        && namespace != from.namespace
        && !grants::allowed(world.objects, from.kind, from.namespace, kind, namespace, name)
    {
        return failing(
            "RefNotPermitted",
            format!(
                "backendRef {name}/{namespace} not accessible to a {} in namespace {:?} (missing a ReferenceGrant?)",
                from.kind, from.namespace
            ),
        );
    }
    let invalid = |message: &str| Err(Problem::new("InvalidDestination", message));
    let domain = &world.settings.cluster_domain;
    let (host, found) = match kind {
        GroupKind::X_BACKEND => return external(world, backend, namespace),
        GroupKind::SERVICE => {
            if name.contains('.') {
                return invalid(
                    "service name invalid; the name of the Service must be used, not the hostname.",
                );
            }
            let found = world.facts.service(namespace, name).is_some();
            (format!("{name}.{namespace}.svc.{domain}"), found)
        }
        GroupKind::HOSTNAME => {
            if backend.namespace.is_some() {
                return invalid("namespace may not be set with Hostname type");
            }
            (name.clone(), world.facts.host(name, namespace).is_some())
        }
        // A service of several clusters is the service of the same name here: endpoints of all of them are its own.
        GroupKind::SERVICE_IMPORT => {
            let found = world.facts.service(namespace, name).is_some();
            (format!("{name}.{namespace}.svc.{domain}"), found)
        }
        _ => {
            let (group, kind) =
                (backend.group.as_deref().unwrap_or_default(), backend.kind.as_deref().unwrap_or_default());
            return failing(
                "InvalidKind",
                format!("referencing unsupported backendRef: group {group:?} kind {kind:?}"),
            );
        }
    };
    let Some(port) = backend.port else { return invalid("port is required in backendRef") };
    let problem = (!found).then(|| Problem::new(NOT_FOUND, format!("backend({host}) not found")));
    let destination =
        Destination { host, port: Some(PortSelector { number: port }), ..Destination::default() };
    Ok((destination, problem))
}

fn external(world: &World<'_>, backend: &BackendRef, namespace: &str) -> Resolved {
    let name = &backend.name;
    let Some(object) = world.objects.backends.get(&(namespace.to_owned(), name.clone())) else {
        return failing(NOT_FOUND, format!("backend({name}) not found"));
    };
    let spec = &object.spec;
    let Some(external) = spec.external_hostname.as_ref().filter(|_| spec.kind == "ExternalHostname") else {
        return failing(
            "InvalidKind",
            format!("backend({name}) type: expected ExternalHostname, got {}", spec.kind),
        );
    };
    let (host, port) = (&external.hostname, spec.port.port);
    if let Some(wanted) = backend.port.filter(|p| *p != port) {
        return failing(NOT_FOUND, format!("backend({name}) does not expose port {wanted}, expected {port}"));
    }
    let found = world.facts.host(host, namespace).is_some();
    let problem = (!found).then(|| Problem::new(NOT_FOUND, format!("backend({host}) not found")));
    let port = Some(PortSelector { number: port });
    Ok((Destination { host: host.clone(), port, ..Destination::default() }, problem))
}

/// Sum of the weights; 1 where none is given.
pub(crate) fn total(backends: &[BackendRef]) -> i64 {
    backends.iter().map(|b| i64::from(b.weight.unwrap_or(1))).sum()
}

/// The backends that get traffic, with their weights; a single one has none.
pub(crate) fn weighted(backends: &[BackendRef]) -> Vec<(&BackendRef, i32)> {
    let mut out: Vec<_> =
        backends.iter().map(|b| (b, b.weight.unwrap_or(1))).filter(|(_, weight)| *weight != 0).collect();
    if let [(_, weight)] = &mut out[..] {
        *weight = 0;
    }
    out
}
