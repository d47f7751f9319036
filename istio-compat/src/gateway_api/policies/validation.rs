//! How backends prove who they are.

use super::super::{
    World, certificates,
    conditions::{Conditions, Problem},
    grants::GroupKind,
    types::BackendValidation,
};

/// Names of which the backend shows one.
pub(super) fn names(validation: &BackendValidation) -> Vec<String> {
    validation
        .subject_alt_names
        .iter()
        .filter_map(|name| match name.kind.as_str() {
            "Hostname" => Some(name.hostname.clone()),
            "URI" => Some(name.uri.clone()),
            _ => None,
        })
        .collect()
}

/// The CA that backends are verified with: the system's when empty; a name that nothing has when it cannot be used, so
/// that nothing is sent unverified.
pub(super) fn authority(
    world: &World<'_>,
    validation: &BackendValidation,
    namespace: &str,
    state: &mut Conditions,
) -> String {
    if let Some(known) = &validation.well_known_ca_certificates {
        if known != "System" {
            let message = format!("Unknown wellKnownCACertificates: {known}");
            state.fail("Accepted", &Problem::new("Invalid", message));
        }
        return String::new();
    }
    let Some(reference) = validation.ca_certificate_refs.first() else { return String::new() };
    if validation.ca_certificate_refs.len() > 1 {
        let warning = "; warning: only the first caCertificateRefs will be used";
        state.append_message("Accepted", warning);
    }
    let kind_name = reference.kind.as_deref().unwrap_or_default();
    let kind = GroupKind { group: reference.group.as_deref().unwrap_or_default(), kind: kind_name };
    let name = &reference.name;
    let missing = || format!("reference {namespace}/{name} (of kind {kind_name}) not found");
    let unsupported = || format!("unsupported reference kind: {kind_name}");
    let (why, reason, what) = match kind {
        GroupKind::CONFIG_MAP => match world.facts.config_map(namespace, name) {
            None => (missing(), certificates::INVALID_CA_REF, "Certificate reference not found"),
            Some(map) => match certificates::config_map_root(map) {
                Ok(()) => return format!("configmap://{namespace}/{name}"),
                Err(why) => (why, certificates::INVALID_CA_REF, "Certificate invalid"),
            },
        },
        GroupKind::SECRET | GroupKind::SERVICE | GroupKind::SERVICE_ENTRY => {
            let there = match kind {
                GroupKind::SECRET => world.facts.secret(namespace, name).is_some(),
                GroupKind::SERVICE => world.facts.service(namespace, name).is_some(),
                _ => world.facts.service_entry(namespace, name).is_some(),
            };
            if there {
                (unsupported(), "InvalidKind", "Certificate reference invalid")
            } else {
                (missing(), certificates::INVALID_CA_REF, "Certificate reference not found")
            }
        }
        _ => {
            let why = format!("unsupported kind {kind_name}");
            (why, "InvalidKind", "Certificate reference not supported")
        }
    };
    state.fail("ResolvedRefs", &Problem::new(reason, format!("{what}: {why}")));
    let message = format!("Certificate reference invalid: {why}");
    state.fail("Accepted", &Problem::new("NoValidCACertificate", message));
    "invalid://".to_owned()
}
