//! What concerns the mesh as a whole: its networks and the versions of Gateway API's definitions.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    report::Report,
    world::{Kind, World, list},
};

/// Lowest versions of Gateway API's bundle that hold what is read of these kinds.
const MINIMUM: [(&str, [u64; 3]); 4] = [
    ("grpcroutes.gateway.networking.k8s.io", [1, 1, 0]),
    ("backendtlspolicies.gateway.networking.k8s.io", [1, 4, 0]),
    ("tlsroutes.gateway.networking.k8s.io", [1, 5, 0]),
    ("tcproutes.gateway.networking.k8s.io", [1, 6, 0]),
];

/// Definitions that are too old.
pub(super) fn crd_versions(world: &World, out: &mut Report) {
    for definition in world.all(Kind::CustomResourceDefinition) {
        let name = definition.name.name.as_str();
        let Some((_, minimum)) = MINIMUM.iter().find(|(n, _)| *n == name) else { continue };
        let annotations = definition.annotations();
        let Some(text) = annotations.get("gateway.networking.k8s.io/bundle-version") else { continue };
        if version(text).is_none_or(|v| v >= *minimum) {
            continue;
        }
        let [a, b, c] = minimum;
        let shown = text.trim_start_matches('v');
        out.add(definition, "IST0176", "metadata.annotations", &[&name, &shown, &format!("{a}.{b}.{c}")]);
    }
}

fn version(text: &str) -> Option<[u64; 3]> {
    let numbers = text.trim_start_matches('v').split(['-', '+']).next()?;
    let mut out = [0; 3];
    for (i, part) in numbers.split('.').enumerate() {
        *out.get_mut(i)? = part.parse().ok()?;
    }
    Some(out)
}

/// Networks name registries that exist.
pub(super) fn networks(world: &World, out: &mut Report) {
    let mut known: BTreeSet<&str> = BTreeSet::from(["Mock", "Kubernetes", "External"]);
    for secret in
        world.all(Kind::Secret).iter().filter(|s| s.labels().get("istio/multiCluster") == Some(&"true"))
    {
        known.extend(secret.map("/data").into_keys());
    }
    let all = world.options.mesh_networks.pointer("/networks").and_then(Value::as_object);
    let Some(all) = all else { return };
    let object =
        serde_json::json!({"metadata": {"namespace": world.options.root_namespace, "name": "meshnetworks"}});
    let said =
        super::world::Object::unlisted("MeshNetworks", &world.options.root_namespace, "meshnetworks", object);
    for (network, value) in all {
        for (i, endpoint) in list(value, "/endpoints").iter().enumerate() {
            let Some(registry) = endpoint.get("fromRegistry").and_then(Value::as_str) else { continue };
            if !known.contains(registry) {
                let path = format!("networks[{network:?}].endpoints[{i}].fromRegistry");
                out.add(&said, "IST0126", path, &[&registry, network]);
            }
        }
    }
}
