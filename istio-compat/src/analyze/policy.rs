//! Security policies: who they select, and whom they name.

use std::collections::BTreeMap;

use super::{
    report::Report,
    workload::{is_ambient_pod, pod_in_mesh},
    world::{Kind, Labels, Object, World, list, selector_text, selects, text, texts},
};

/// AuthorizationPolicies select workloads of the mesh and name namespaces that exist.
pub(super) fn authorization(world: &World, out: &mut Report) {
    let mut pods: BTreeMap<&str, Vec<Labels<'_>>> = BTreeMap::new();
    for pod in world.all(Kind::Pod).iter().filter(|p| pod_in_mesh(world, p) || is_ambient_pod(p)) {
        pods.entry(pod.namespace()).or_default().push(pod.labels());
    }
    for policy in world.all(Kind::AuthorizationPolicy) {
        selected(world, policy, &pods, out);
        namespaces(world, policy, out);
    }
}

fn selected(world: &World, policy: &Object, pods: &BTreeMap<&str, Vec<Labels<'_>>>, out: &mut Report) {
    let everywhere = policy.namespace() == world.root_namespace();
    let selector = policy.has("/spec/selector").then(|| policy.map("/spec/selector/matchLabels"));
    let own = pods.get(policy.namespace()).map_or(&[][..], Vec::as_slice);
    let (any, shown) = match &selector {
        None => (everywhere || !own.is_empty(), String::new()),
        Some(selector) => {
            let any = if everywhere {
                pods.values().flatten().any(|pod| selects(selector, pod))
            } else {
                own.iter().any(|pod| selects(selector, pod))
            };
            (any, selector_text(selector))
        }
    };
    if !any {
        out.add(policy, "IST0127", "spec.selector", &[&shown]);
    }
}

fn namespaces(world: &World, policy: &Object, out: &mut Report) {
    let known: Vec<&str> = world.all(Kind::Namespace).iter().map(|n| n.name.name.as_str()).collect();
    for (i, rule) in policy.list("/spec/rules").iter().enumerate() {
        for (j, from) in list(rule, "/from").iter().enumerate() {
            for field in ["namespaces", "notNamespaces"] {
                for (k, wanted) in texts(from, &format!("/source/{field}")).enumerate() {
                    if !known.iter().any(|name| pattern_matches(wanted, name)) {
                        let path = format!("spec.rules[{i}].from[{j}].source.{field}[{k}]");
                        out.missing(policy, path, "namespace", wanted);
                    }
                }
            }
        }
    }
}

/// `*`, `*suffix`, `prefix*`, or the name in any case.
fn pattern_matches(pattern: &str, name: &str) -> bool {
    if let Some(suffix) = pattern.strip_prefix('*') {
        return name.ends_with(suffix);
    }
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name.eq_ignore_ascii_case(pattern),
    }
}

/// Fetching keys for tokens from anywhere.
pub(super) fn blocked_cidrs(world: &World, out: &mut Report) {
    let rules = world.all(Kind::RequestAuthentication);
    if rules.is_empty() {
        return;
    }
    let mut names: Vec<String> = rules.iter().take(5).map(|r| r.name.to_string()).collect();
    if rules.len() > 5 {
        names.push(format!("and {} more", rules.len() - 5));
    }
    for deployment in world.all(Kind::Deployment).iter().filter(|d| d.labels().get("app") == Some(&"istiod"))
    {
        let containers = deployment.list("/spec/template/spec/containers").iter();
        let restricted = containers
            .flat_map(|c| list(c, "/env"))
            .any(|e| text(e, "/name") == "BLOCKED_CIDRS_IN_JWKS_URIS" && !text(e, "/value").is_empty());
        if !restricted {
            out.add(deployment, "IST0175", "", &[&rules.len(), &names.join(", ")]);
        }
    }
}

const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// Gateways of Gateway API are chosen by reference; a selector that finds their pods has no effect.
pub(super) fn kubernetes_gateway_selectors(world: &World, out: &mut Report) {
    let kinds = [Kind::AuthorizationPolicy, Kind::RequestAuthentication, Kind::Telemetry, Kind::WasmPlugin];
    for policy in kinds.into_iter().flat_map(|k| world.all(k)) {
        if policy.has("/spec/targetRef") || !policy.has("/spec/selector") {
            continue;
        }
        let selector = policy.map("/spec/selector/matchLabels");
        let own = world.all(Kind::Pod).iter().filter(|p| p.namespace() == policy.namespace());
        for pod in own {
            let labels = pod.labels();
            if let Some(gateway) = labels.get(GATEWAY_NAME).filter(|_| selects(&selector, &labels)) {
                out.add(policy, "IST0166", "spec.selector", &[gateway]);
            }
        }
    }
}
