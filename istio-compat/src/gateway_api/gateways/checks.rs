//! What a Gateway allows and refers to, and what is said of it.

use serde_json::{Value, json};

use super::super::{
    World,
    addresses::Resolved,
    certificates,
    conditions::{Conditions, Problem},
    conflicts::address_type,
    grants::GroupKind,
    objects::Object,
    selector,
    types::GatewaySpec,
};

/// Whether a ListenerSet of a namespace may attach; none may unless the Gateway says so.
pub(super) fn set_allowed(world: &World<'_>, gateway: &Object<GatewaySpec>, namespace: &str) -> bool {
    let Some(choice) = gateway.spec.allowed_listeners.as_ref().and_then(|a| a.namespaces.as_ref()) else {
        return false;
    };
    match choice.from.as_deref() {
        Some("All") => true,
        Some("Same") => namespace == gateway.meta.namespace,
        None | Some("Selector") => choice.selector.as_ref().is_some_and(|selector| {
            let all = world.facts.namespaces();
            all.iter().any(|(n, labels)| n == namespace && selector::selects(selector, n, labels))
        }),
        Some(_) => false,
    }
}

pub(super) fn bad_parameters(world: &World<'_>, gateway: &Object<GatewaySpec>) -> Option<Problem> {
    let reference = gateway.spec.infrastructure.as_ref()?.parameters_ref.as_ref()?;
    let bad = |message: String| Some(Problem::new("InvalidParameters", message));
    let kind = GroupKind { group: &reference.group, kind: &reference.kind };
    if kind != GroupKind::CONFIG_MAP {
        return bad(format!(
            "Unsupported parametersRef group/kind {}/{}, only ConfigMap is supported",
            reference.group, reference.kind
        ));
    }
    let namespace = &gateway.meta.namespace;
    if world.facts.config_map(namespace, &reference.name).is_none() {
        return bad(format!("parametersRef ConfigMap {namespace}/{} does not exist", reference.name));
    }
    None
}

pub(super) fn gateway_conditions(
    world: &World<'_>,
    gateway: &Object<GatewaySpec>,
    problem: Option<&Problem>,
    valid: usize,
    hard: bool,
) -> Conditions {
    let mut conditions = Conditions::default()
        .set("Accepted", "Accepted", "Resource accepted")
        .set("Programmed", "Programmed", "Resource programmed")
        .set("ResolvedRefs", "ResolvedRefs", "All references resolved");
    let total = gateway.spec.listeners.len();
    if let Some(problem) = problem {
        conditions.fail("Accepted", problem);
    } else if !hard && total > 0 && valid == 0 {
        let message = "None of the Gateway's listeners are valid";
        conditions.fail("Accepted", &Problem::new("ListenersNotValid", message));
    } else if valid < total {
        let message = "One or more of the Gateway's listeners are invalid";
        conditions.put("Accepted", true, "ListenersNotValid", message);
    }
    let tls = gateway.spec.tls.as_ref();
    let client = tls.and_then(|t| t.backend.as_ref()?.client_certificate_ref.as_ref());
    if let Some(reference) = client {
        let checked = certificates::client(world, reference, &gateway.meta.namespace);
        conditions.check("ResolvedRefs", checked.err().as_ref());
    }
    if let Some(frontend) = tls.and_then(|t| t.frontend.as_ref()) {
        let configs = std::iter::once(&frontend.default).chain(frontend.per_port.iter().map(|p| &p.tls));
        let insecure = configs
            .filter_map(|c| c.validation.as_ref())
            .any(|v| v.mode.as_deref() == Some("AllowInsecureFallback"));
        if insecure {
            conditions.put(
                "InsecureFrontendValidationMode",
                true,
                "ConfigurationChanged",
                "Gateway is operating in AllowInsecureFallback mode for frontend validation",
            );
        }
    }
    conditions
}

pub(super) fn programmed(mut conditions: Conditions, resolved: &Resolved, services: &[String]) -> Conditions {
    resolved.programmed(services, &mut conditions);
    conditions
}

pub(super) fn reported(resolved: &Resolved) -> Option<Vec<Value>> {
    let addresses = resolved.addresses();
    let value = |a: &String| json!({ "type": address_type(a), "value": a });
    (!addresses.is_empty()).then(|| addresses.iter().map(value).collect())
}
