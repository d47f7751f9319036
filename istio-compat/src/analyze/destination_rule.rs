//! DestinationRules against services and pods.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    hosts::Services,
    report::Report,
    world::{Kind, Labels, Object, World, map, number, selects, text, texts},
};

/// TLS to a server whose certificate nobody checks.
pub(super) fn ca_certificates(world: &World, out: &mut Report) {
    for rule in world.all(Kind::DestinationRule) {
        // A secret named for chosen workloads may hold the CA.
        let chosen = rule.has("/spec/workloadSelector");
        let unchecked = |tls| unchecked_mode(tls, chosen);
        let (name, namespace, host) = (&rule.name, rule.namespace(), rule.text("/spec/host"));
        if let Some(mode) = unchecked(rule.value.pointer("/spec/trafficPolicy/tls")) {
            out.add(rule, "IST0128", "spec.trafficPolicy.tls", &[name, &namespace, &mode, &host]);
        }
        for (i, port) in rule.list("/spec/trafficPolicy/portLevelSettings").iter().enumerate() {
            if let Some(mode) = unchecked(port.get("tls")) {
                let path = format!("spec.trafficPolicy.portLevelSettings[{i}].tls");
                let number = format!("number:{}", number(port, "/port/number"));
                out.add(rule, "IST0129", path, &[name, &namespace, &mode, &host, &number]);
            }
        }
    }
}

/// The mode of TLS that takes any certificate.
fn unchecked_mode(tls: Option<&Value>, chosen: bool) -> Option<&str> {
    let tls = tls?;
    let mode = text(tls, "/mode");
    let by_secret = chosen && !text(tls, "/credentialName").is_empty();
    let blind = matches!(mode, "SIMPLE" | "MUTUAL") && text(tls, "/caCertificates").is_empty();
    (blind && !by_secret).then_some(mode)
}

/// The host exists, and each subset selects a pod.
pub(super) fn subsets(world: &World, out: &mut Report) {
    let services = Services::of(world);
    let nodes: BTreeMap<&str, &Object> =
        world.all(Kind::Node).iter().map(|n| (n.name.name.as_str(), n)).collect();
    let pods: Vec<Labels<'_>> = world.all(Kind::Pod).iter().map(|p| with_place(p, &nodes)).collect();
    for rule in world.all(Kind::DestinationRule) {
        let host = rule.text("/spec/host");
        let Some(service) = services.find(host, rule.namespace(), texts(&rule.value, "/spec/exportTo"))
        else {
            out.add(rule, "IST0174", "spec.host", &[&host]);
            continue;
        };
        for (i, subset) in rule.list("/spec/subsets").iter().enumerate() {
            let mut selector = service.selector.clone();
            selector.extend(map(subset, "/labels"));
            if !pods.iter().any(|pod| selects(&selector, pod)) {
                out.add(rule, "IST0173", format!("spec.subsets[{i}]"), &[&text(subset, "/name")]);
            }
        }
    }
}

const PLACES: [&str; 3] =
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];

/// Labels of a pod, and those that it has from its node.
fn with_place<'w>(pod: &'w Object, nodes: &BTreeMap<&str, &'w Object>) -> Labels<'w> {
    let mut labels = pod.labels();
    let node = pod.text("/spec/nodeName");
    if node.is_empty() {
        return labels;
    }
    labels.insert("kubernetes.io/hostname", node);
    if let Some(node) = nodes.get(node) {
        let of_node = node.labels();
        labels.extend(PLACES.iter().filter_map(|p| of_node.get_key_value(p)).map(|(k, v)| (*k, *v)));
    }
    labels
}
