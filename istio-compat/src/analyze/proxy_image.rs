//! Pods whose sidecar is of another version than the injector would give them now.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    report::{Report, bracketed},
    workload::{INJECTION, PROXY, REVISION, containers},
    world::{Kind, Object, World, map, selects, text},
};

const CONFIG_MAP: &str = "istio-sidecar-injector";

/// The ConfigMap of the injector of a revision.
pub(super) fn injector_config_map(revision: &str) -> String {
    match revision {
        "" | "default" => CONFIG_MAP.to_owned(),
        revision => format!("{CONFIG_MAP}-{revision}"),
    }
}

/// Compares the proxies that run with those that would be injected.
pub(super) fn mismatch(world: &World, out: &mut Report) {
    let images: BTreeMap<&str, String> = world
        .all(Kind::ConfigMap)
        .iter()
        .filter(|c| c.name.name.starts_with(CONFIG_MAP))
        .map(|c| (c.name.name.as_str(), injected_image(c)))
        .collect();
    let mut wrong: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for pod in world.all(Kind::Pod) {
        let Some(namespace) = world.namespace(pod.namespace()) else { continue };
        let labels = namespace.labels();
        let revision = match (labels.get(REVISION), labels.get(INJECTION)) {
            (Some(revision), _) => revision,
            (None, Some(&"enabled")) => "default",
            _ => continue,
        };
        let Some(image) = images.get(injector_config_map(revision).as_str()) else { continue };
        if pod.annotations().get("sidecar.istio.io/proxyImage").is_some_and(|i| !i.is_empty()) {
            continue;
        }
        let variant = format!("{image}-{}", image_type(world, pod));
        let spec = pod.value.get("spec").unwrap_or(&Value::Null);
        for container in containers(spec).filter(|c| text(c, "/name") == PROXY) {
            let runs = text(container, "/image");
            if runs != image && runs != variant {
                wrong.entry(pod.namespace()).or_default().push(&pod.name.name);
            }
        }
    }
    for (namespace, mut pods) in wrong {
        pods.sort_unstable();
        if let Some(namespace) = world.namespace(namespace) {
            out.add(namespace, "IST0158", "", &[&bracketed(pods)]);
        }
    }
}

fn injected_image(config_map: &Object) -> String {
    let values: Value = serde_json::from_str(config_map.text("/data/values")).unwrap_or_default();
    let image = text(&values, "/global/proxy/image");
    if image.contains('/') {
        return image.to_owned();
    }
    let tag = values.pointer("/global/tag").map(|t| t.as_str().map_or_else(|| t.to_string(), str::to_owned));
    format!("{}/{image}:{}", text(&values, "/global/hub"), tag.unwrap_or_default())
}

/// The kind of image that a pod's proxy has: of the mesh, its namespace, the workload, the pod, the last one winning.
fn image_type(world: &World, pod: &Object) -> String {
    const TYPE: &str = "/spec/image/imageType";
    let mut found = text(&world.options.mesh_config, "/defaultConfig/image/imageType").to_owned();
    let configs = world.all(Kind::ProxyConfig);
    let root = world.root_namespace();
    let (labels, own) = (pod.labels(), pod.namespace());
    let of_root = configs.iter().filter(|c| c.namespace() == root);
    let of_namespace =
        configs.iter().filter(|c| c.namespace() == own && own != root && !c.has("/spec/selector"));
    let of_pods = configs.iter().filter(|c| {
        let selected = selects(&map(&c.value, "/spec/selector/matchLabels"), &labels);
        c.namespace() == own && own != root && c.has("/spec/selector") && selected
    });
    for config in of_root.chain(of_namespace).chain(of_pods).filter(|c| !c.text(TYPE).is_empty()) {
        found = config.text(TYPE).to_owned();
    }
    if let Some(own) =
        pod.annotations().get("proxy.istio.io/config").and_then(|t| crate::yaml::values(t).ok())
    {
        let wanted = own.first().map(|v| text(v, "/image/imageType")).unwrap_or_default();
        if !wanted.is_empty() {
            found = wanted.to_owned();
        }
    }
    if found == "default" { String::new() } else { found }
}
