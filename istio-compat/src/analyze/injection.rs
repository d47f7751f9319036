//! Labels of namespaces and pods that ask for a sidecar.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    proxy_image::injector_config_map,
    report::{Report, bracketed},
    webhook::selector_matches,
    workload::{self, DATAPLANE, INJECT, INJECTION, PROXY, REVISION},
    world::{Kind, Object, World, list, map, text},
};

/// Namespaces say plainly whether their pods are injected, and pods in those that are have a proxy.
pub(super) fn namespaces(world: &World, out: &mut Report) {
    let mut injected = BTreeSet::new();
    let mut by_default = false;
    for namespace in world.all(Kind::Namespace).iter().filter(|n| n.name.name != world.options.root_namespace)
    {
        let labels = namespace.labels();
        let injection = labels.get(INJECTION).copied();
        let revision = labels.get(REVISION).copied();
        several_labels(namespace, out);
        if labels.get(DATAPLANE) == Some(&"ambient") {
            continue;
        }
        let wanted = injector_config_map(revision.unwrap_or_default());
        if let Some(map) = world.all(Kind::ConfigMap).iter().find(|c| c.name.name == wanted) {
            by_default = enabled_by_default(map);
        }
        let name = namespace.name.name.as_str();
        match injection.unwrap_or_default() {
            "" if revision.is_none() && by_default => out.add(namespace, "IST0148", "", &[]),
            "" if revision.is_none() => out.add(namespace, "IST0102", "metadata.name", &[&name, &name]),
            "enabled" => {
                injected.insert(name);
            }
            _ => {}
        }
    }
    for pod in world.all(Kind::Pod).iter().filter(|p| injected.contains(p.namespace())) {
        let (labels, annotations) = (pod.labels(), pod.annotations());
        let inject = labels.get(INJECT).or_else(|| annotations.get(INJECT));
        let refuses = inject.is_some_and(|v| v.eq_ignore_ascii_case("false"));
        let spec = pod.value.get("spec").unwrap_or(&Value::Null);
        if !refuses
            && spec.get("hostNetwork") != Some(&Value::Bool(true))
            && workload::proxy_image(spec).is_none()
        {
            out.add(pod, "IST0103", "", &[&pod.name]);
        }
    }
}

fn several_labels(namespace: &Object, out: &mut Report) {
    let labels = namespace.labels();
    let injection = labels.get(INJECTION);
    let mut found: Vec<String> = injection.map(|v| format!("{INJECTION}={v}")).into_iter().collect();
    if injection.is_none_or(|v| *v == "enabled") {
        let others =
            [REVISION, DATAPLANE].into_iter().filter_map(|l| labels.get(l).map(|v| format!("{l}={v}")));
        found.extend(others);
    }
    if found.len() > 1 {
        out.add(namespace, "IST0123", "metadata.labels", &[&bracketed(found)]);
    }
}

fn enabled_by_default(config_map: &Object) -> bool {
    let values = config_map.text("/data/values");
    serde_json::from_str::<Value>(values).is_ok_and(|v| {
        v.pointer("/sidecarInjectorWebhook/enableNamespacesByDefault") == Some(&Value::Bool(true))
    })
}

/// `image: auto` works only where the injector replaces it.
pub(super) fn image_auto(world: &World, out: &mut Report) {
    let webhooks: Vec<&Value> = world
        .all(Kind::MutatingWebhookConfiguration)
        .iter()
        .flat_map(|c| c.list("/webhooks"))
        .filter(|w| text(w, "/name").ends_with("istio.io"))
        .collect();
    for pod in world.all(Kind::Pod).iter().filter(|p| has_auto(&p.value, "/spec/containers")) {
        out.add(pod, "IST0147", "spec.containers", &[&"Pod", &pod.name.name]);
    }
    let deployments = world.all(Kind::Deployment).iter();
    for deployment in deployments.filter(|d| has_auto(&d.value, "/spec/template/spec/containers")) {
        let namespace = world.namespace(deployment.namespace()).map(Object::labels).unwrap_or_default();
        let pod = map(&deployment.value, "/spec/template/metadata/labels");
        let injected = webhooks.iter().any(|w| {
            selector_matches(w.get("namespaceSelector"), &namespace)
                && selector_matches(w.get("objectSelector"), &pod)
        });
        if !injected {
            let path = "spec.template.spec.containers";
            out.add(deployment, "IST0146", path, &[&"Deployment", &deployment.name.name]);
        }
    }
}

fn has_auto(value: &Value, pointer: &str) -> bool {
    list(value, pointer).iter().any(|c| text(c, "/name") == PROXY && text(c, "/image") == "auto")
}
