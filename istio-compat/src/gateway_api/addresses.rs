//! Where a Gateway is served: the services that it names or that belong to it, and what of them is there.

use std::collections::BTreeSet;

use super::{
    World,
    conditions::{Conditions, Problem, enumerate},
    objects::Object,
    types::GatewaySpec,
};

/// Whether the Gateway has a service of its own rather than naming one.
pub(crate) fn is_managed(spec: &GatewaySpec) -> bool {
    match &spec.addresses[..] {
        [] => true,
        [one] => one.kind.as_deref().is_none_or(|k| k == "IPAddress"),
        _ => false,
    }
}

/// The name of what is made for a managed Gateway.
pub(crate) fn default_name(gateway: &Object<GatewaySpec>) -> String {
    format!("{}-{}", gateway.meta.name, gateway.spec.gateway_class_name)
}

/// An annotation of the Gateway, else the name of what is made for it.
pub(crate) fn annotated(gateway: &Object<GatewaySpec>, annotation: &str) -> String {
    gateway.meta.annotations.get(annotation).cloned().unwrap_or_else(|| default_name(gateway))
}

/// Full names of the services, and what is wrong with the addresses.
pub(crate) fn services(gateway: &Object<GatewaySpec>, domain: &str) -> (Vec<String>, Option<Problem>) {
    let namespace = &gateway.meta.namespace;
    let full = |name: &str| format!("{name}.{namespace}.svc.{domain}");
    if is_managed(&gateway.spec) {
        return (vec![full(&annotated(gateway, "gateway.istio.io/name-override"))], None);
    }
    let (mut services, mut skipped) = (Vec::new(), Vec::new());
    for address in &gateway.spec.addresses {
        if address.kind.as_deref().is_some_and(|k| k != "Hostname") {
            skipped.push(address.value.as_str());
        } else if address.value.contains('.') {
            services.push(address.value.clone());
        } else {
            services.push(full(&address.value));
        }
    }
    let problem = if !skipped.is_empty() {
        let message = format!("only Hostname is supported, ignoring [{}]", skipped.join(" "));
        Some(Problem::new("UnsupportedAddress", message))
    } else {
        gateway.meta.annotations.contains_key("networking.istio.io/service-type").then(|| {
            Problem::new(
                "DeprecatedField",
                "annotation networking.istio.io/service-type is deprecated, use Spec.Infrastructure.Routeability",
            )
        })
    };
    (services, problem)
}

/// What was found of a Gateway's services.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    /// `host:port` with endpoints.
    pub(crate) internal: Vec<String>,
    /// Addresses outside the cluster.
    pub(crate) external: Vec<String>,
    /// Hosts whose outside address is yet to come.
    pub(crate) pending: BTreeSet<String>,
    warnings: Vec<String>,
    usable: bool,
}

/// Looks the services up on the ports of the servers.
pub(crate) fn resolve(
    world: &World<'_>,
    namespace: &str,
    services: &[String],
    ports: &BTreeSet<u32>,
) -> Resolved {
    let (mut internal, mut external) = (BTreeSet::new(), BTreeSet::new());
    let mut out = Resolved { usable: true, ..Resolved::default() };
    for service in services {
        let Some(facts) = world.facts.host(service, namespace) else {
            let elsewhere: BTreeSet<_> =
                world.facts.namespaces_of_host(service).iter().map(|n| format!("{n:?}")).collect();
            let elsewhere: Vec<_> = elsewhere.into_iter().collect();
            out.warnings.push(if elsewhere.is_empty() {
                format!("hostname {service:?} not found")
            } else {
                format!(
                    "hostname {service:?} not found in namespace {namespace:?}, but it was found in namespace(s) {}",
                    elsewhere.join(", ")
                )
            });
            out.usable = false;
            continue;
        };
        for port in ports {
            if facts.ports_with_endpoints.contains(port) {
                internal.insert(format!("{service}:{port}"));
                if !facts.external.is_empty() {
                    external.extend(facts.external.iter().cloned());
                } else if facts.load_balancer && out.pending.insert(service.clone()) {
                    out.warnings.push(format!("address pending for hostname {service:?}"));
                }
            } else if facts.ports_with_endpoints.is_empty() {
                out.warnings.push(format!("no instances found for hostname {service:?}"));
            } else if let Some(hint) = facts.by_target_port.get(port) {
                out.warnings.push(format!(
                    "port {port} not found for hostname {service:?} (hint: the service port should be specified, not \
                     the workload port. Did you mean one of these ports: [{hint}]?)"
                ));
                out.usable = false;
            } else {
                out.warnings.push(format!("port {port} not found for hostname {service:?}"));
                out.usable = false;
            }
        }
    }
    out.warnings.sort();
    out.internal = internal.into_iter().collect();
    out.external = external.into_iter().collect();
    out
}

impl Resolved {
    /// The condition Programmed.
    pub(crate) fn programmed(&self, services: &[String], conditions: &mut Conditions) {
        if services.is_empty() {
            let problem = Problem::new("UnsupportedAddress", "Failed to assign to any requested addresses");
            conditions.fail("Programmed", &problem);
            return;
        }
        let assigned = enumerate(&self.internal);
        if self.warnings.is_empty() {
            if !self.internal.is_empty() {
                let message = format!("Resource programmed, assigned to service(s) {assigned}");
                conditions.put("Programmed", true, "Programmed", message);
            }
            return;
        }
        let warnings = self.warnings.join("; ");
        let message = if self.internal.is_empty() {
            format!("Failed to assign to any requested addresses: {warnings}")
        } else {
            format!(
                "Assigned to service(s) {assigned}, but failed to assign to all requested addresses: {warnings}"
            )
        };
        let reason = if self.usable { "AddressNotAssigned" } else { "AddressNotUsable" };
        conditions.fail("Programmed", &Problem::new(reason, message));
    }

    /// The addresses to report: those outside, else the names of the services that work.
    pub(crate) fn addresses(&self) -> Vec<String> {
        if !self.external.is_empty() {
            return self.external.clone();
        }
        let mut out: Vec<String> = Vec::new();
        for internal in &self.internal {
            let host = internal.rsplit_once(':').map_or(internal.as_str(), |(host, _)| host);
            if !self.pending.contains(host) && !out.iter().any(|o| o == host) {
                out.push(host.to_owned());
            }
        }
        out
    }
}
