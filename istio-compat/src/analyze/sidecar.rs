//! Sidecars: which pods they select, and which of them select the same.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    report::{Report, bracketed},
    workload::{is_ambient_namespace, is_ambient_pod},
    world::{Kind, Name, Object, World, selector_text, selects},
};

const AMBIENT_POD: &str = "selected workload is in ambient mode, the policy has no impact";
const AMBIENT_NAMESPACE: &str = "namespace is in ambient mode, the policy has no impact";

/// Names of objects, sorted, as Go prints a list.
pub(super) fn names(objects: &[&Object]) -> String {
    let mut names: Vec<&str> = objects.iter().map(|o| o.name.name.as_str()).collect();
    names.sort_unstable();
    bracketed(names)
}

/// Objects by the pods of their namespace that `pointer` selects; selectors without a pod are said.
pub(super) fn by_pod<'w>(
    world: &'w World,
    kind: Kind,
    pointer: &str,
    out: &mut Report,
) -> BTreeMap<&'w Name, Vec<&'w Object>> {
    let mut found: BTreeMap<&Name, Vec<&Object>> = BTreeMap::new();
    for object in world.all(kind) {
        let selector = object.map(pointer);
        if selector.is_empty() {
            continue;
        }
        let in_place = world.all(Kind::Pod).iter().filter(|p| p.namespace() == object.namespace());
        let mut any = false;
        for pod in in_place.filter(|p| selects(&selector, &p.labels())) {
            any = true;
            found.entry(&pod.name).or_default().push(object);
        }
        if !any {
            let path = pointer.trim_start_matches('/').replace('/', ".");
            out.missing(object, path, "selector", &selector_text(&selector));
        }
    }
    found
}

/// Each selects a pod, and no pod is selected twice.
pub(super) fn selectors(world: &World, out: &mut Report) {
    let mut said: BTreeSet<&Name> = BTreeSet::new();
    for (pod, sidecars) in by_pod(world, Kind::Sidecar, "/spec/workloadSelector/labels", out) {
        let ambient = world.find(Kind::Pod, pod).is_some_and(is_ambient_pod);
        for sidecar in &sidecars {
            if ambient {
                if said.insert(&sidecar.name) {
                    out.add(sidecar, "IST0167", "", &[&AMBIENT_POD]);
                }
            } else if sidecars.len() > 1 {
                let parts: [&dyn std::fmt::Display; 3] = [&names(&sidecars), &pod.namespace, &pod.name];
                out.add(sidecar, "IST0110", "metadata.name", &parts);
            }
        }
    }
    let mut of_namespaces: BTreeMap<&str, Vec<&Object>> = BTreeMap::new();
    for sidecar in
        world.all(Kind::Sidecar).iter().filter(|s| s.map("/spec/workloadSelector/labels").is_empty())
    {
        of_namespaces.entry(sidecar.namespace()).or_default().push(sidecar);
    }
    for (namespace, sidecars) in of_namespaces {
        let ambient = world.namespace(namespace).is_some_and(is_ambient_namespace);
        for sidecar in &sidecars {
            if ambient && said.insert(&sidecar.name) {
                out.add(sidecar, "IST0167", "", &[&AMBIENT_NAMESPACE]);
            } else if !ambient && sidecars.len() > 1 {
                out.add(sidecar, "IST0111", "", &[&names(&sidecars), &namespace]);
            }
        }
    }
}
