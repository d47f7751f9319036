//! Webhooks of Istio's control plane: each pod is injected by one at most, and the service they call exists.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    report::{Report, bracketed},
    workload::{INJECT, INJECTION, REVISION},
    world::{Kind, Labels, Name, Object, World, list, map, text, texts},
};

/// Whether a label selector, absent meaning everything, matches.
pub(super) fn selector_matches(selector: Option<&Value>, labels: &Labels<'_>) -> bool {
    let Some(selector) = selector.filter(|s| !s.is_null()) else { return true };
    map(selector, "/matchLabels").iter().all(|(k, v)| labels.get(k) == Some(v))
        && list(selector, "/matchExpressions").iter().all(|e| expression_matches(e, labels))
}

fn expression_matches(expression: &Value, labels: &Labels<'_>) -> bool {
    let value = labels.get(text(expression, "/key"));
    let listed = value.is_some_and(|v| texts(expression, "/values").any(|w| w == *v));
    match text(expression, "/operator") {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

/// A webhook and the object it is in.
struct Hook<'w> {
    object: &'w Object,
    value: &'w Value,
}

impl Hook<'_> {
    fn name(&self) -> String {
        format!("{}/{}", self.object.name, text(self.value, "/name"))
    }
}

/// Webhooks of injectors, against each other and services.
pub(super) fn overlaps(world: &World, out: &mut Report) {
    let mut hooks = Vec::new();
    let mut revisions = BTreeSet::new();
    for object in world.all(Kind::MutatingWebhookConfiguration) {
        let own = revisions_of(object);
        if own.is_empty() && !object.list("/webhooks").iter().any(|w| text(w, "/name").ends_with("istio.io"))
        {
            continue;
        }
        revisions.extend(own);
        hooks.extend(object.list("/webhooks").iter().map(|value| Hook { object, value }));
    }
    for namespace in combinations(INJECTION, ["enabled", "disabled"], &revisions) {
        for pod in combinations(INJECT, ["true", "false"], &revisions) {
            let matching: Vec<&Hook<'_>> = hooks
                .iter()
                .filter(|h| selector_matches(h.value.get("namespaceSelector"), &namespace))
                .filter(|h| selector_matches(h.value.get("objectSelector"), &pod))
                .collect();
            let names: BTreeSet<String> = matching.iter().map(|h| h.name()).collect();
            if names.len() < 2 {
                continue;
            }
            for hook in matching {
                let own = hook.name();
                let others = bracketed(names.iter().filter(|n| **n != own));
                let text = format!(
                    "Webhook overlaps with others: {others}. This may cause injection to occur twice."
                );
                out.add(hook.object, "IST0139", "webhooks", &[&text]);
            }
        }
    }
    for hook in &hooks {
        let Some(service) = hook.value.pointer("/clientConfig/service").filter(|s| s.is_object()) else {
            continue;
        };
        let name = Name {
            namespace: text(service, "/namespace").to_owned(),
            name: text(service, "/name").to_owned(),
        };
        if world.find(Kind::Service, &name).is_none() {
            let text = format!("Injector refers to a control plane service that does not exist: {name}.");
            out.add(hook.object, "IST0139", "webhooks", &[&text]);
        }
    }
}

/// All that an object may be labelled with: nothing, yes or no, with no revision or one that exists.
fn combinations<'w>(label: &'w str, values: [&'w str; 2], revisions: &BTreeSet<&'w str>) -> Vec<Labels<'w>> {
    let plain = [None, Some(values[0]), Some(values[1])];
    let revisions = std::iter::once(None).chain(revisions.iter().copied().map(Some));
    revisions
        .flat_map(|revision| {
            plain.iter().map(move |value| {
                let own = value.map(|v| (label, v));
                own.into_iter().chain(revision.map(|r| (REVISION, r))).collect()
            })
        })
        .collect()
}

fn revisions_of(object: &Object) -> BTreeSet<&str> {
    let mut out: BTreeSet<&str> = object.labels().get(REVISION).copied().into_iter().collect();
    for hook in object.list("/webhooks") {
        for selector in ["/namespaceSelector", "/objectSelector"] {
            let Some(selector) = hook.pointer(selector) else { continue };
            out.extend(map(selector, "/matchLabels").get(REVISION).copied());
            let expressions = list(selector, "/matchExpressions").iter();
            out.extend(expressions.filter(|e| text(e, "/key") == REVISION).flat_map(|e| texts(e, "/values")));
        }
    }
    out
}

/// Addresses of a control plane outside the cluster.
pub(super) fn external_control_plane(world: &World, out: &mut Report) {
    let validating = world
        .all(Kind::ValidatingWebhookConfiguration)
        .iter()
        .filter(|o| o.name.name == "istiod-default-validator" || o.name.name.starts_with("istio-validator"));
    let mutating = world.all(Kind::MutatingWebhookConfiguration).iter();
    for object in validating.chain(mutating.filter(|o| o.name.name.starts_with("istio-sidecar-injector"))) {
        for (i, hook) in object.list("/webhooks").iter().enumerate() {
            let name = text(hook, "/name");
            let path = format!("webhooks[{i}].clientConfig");
            match hook.pointer("/clientConfig/url").and_then(Value::as_str) {
                Some(url) => match host_of(url) {
                    None => {
                        out.add(object, "IST0163", path, &[&url, &name, &"was provided in an invalid format"])
                    }
                    Some(host) if host.parse::<std::net::IpAddr>().is_ok() => {
                        out.add(object, "IST0164", path, &[&url, &name]);
                    }
                    Some(_) => {}
                },
                None if hook.pointer("/clientConfig/service").is_none_or(Value::is_null) => {
                    out.add(object, "IST0163", path, &[&"", &name, &"is blank"]);
                }
                None => {}
            }
        }
    }
}

/// The host of a URL; `None` when it is no URL.
fn host_of(url: &str) -> Option<&str> {
    if url.chars().any(|c| c.is_control() || c == ' ') {
        return None;
    }
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (scheme, rest),
        None if url.starts_with(':') => return None,
        // Without a scheme all of it is a path.
        None => return Some(""),
    };
    let first = scheme.chars().next()?;
    if !first.is_ascii_alphabetic() || !scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    {
        return None;
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split_once(']').map(|(host, _)| host);
    }
    let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
    port.chars().all(|c| c.is_ascii_digit()).then_some(host)
}
