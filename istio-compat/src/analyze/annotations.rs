//! Istio's annotations on Kubernetes objects: known, in the right place, with a value that can be read.

use super::{
    report::Report,
    world::{Kind, Object, World, list, text},
};

mod table;
mod values;

use table::Annotation;

/// Kinds whose annotations are looked at.
const KINDS: [Kind; 4] = [Kind::Namespace, Kind::Service, Kind::Pod, Kind::Deployment];
/// Set by controllers; nothing to say of them.
const IGNORED: [&str; 3] = ["sidecar.istio.io/status", "gateway.istio.io/controller-version", "istio.io/rev"];
/// Set by the injector on pods that need no init container.
const SET_BY_INJECTOR: [&str; 4] = [
    "sidecar.istio.io/interceptionMode",
    "traffic.sidecar.istio.io/includeInboundPorts",
    "traffic.sidecar.istio.io/excludeInboundPorts",
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
];
const INJECT: &str = "sidecar.istio.io/inject";

fn is_istios(name: &str) -> bool {
    name == "kubernetes.io/ingress.class" || name.split('/').next().is_some_and(|d| d.ends_with("istio.io"))
}

fn known(name: &str) -> Option<&'static Annotation> {
    table::ANNOTATIONS.iter().find(|a| a.name == name)
}

fn each(world: &World, mut look: impl FnMut(&Object, &str, &str, String)) {
    for object in KINDS.into_iter().flat_map(|k| world.all(k)) {
        for (name, value) in object.annotations() {
            if is_istios(name) {
                look(object, name, value, format!("metadata.annotations[{name:?}]"));
            }
        }
    }
}

/// Unknown, old, misplaced and unreadable annotations.
pub(super) fn kubernetes(world: &World, out: &mut Report) {
    each(world, |object, name, value, path| {
        if IGNORED.contains(&name) {
            return;
        }
        let Some(annotation) = known(name) else { return out.add(object, "IST0108", path, &[&name]) };
        if annotation.deprecated && !(name == INJECT && object.labels().contains_key(INJECT)) {
            let extra =
                if name == INJECT { " in favor of the \"sidecar.istio.io/inject\" label" } else { "" };
            out.add(object, "IST0135", path.as_str(), &[&name, &extra]);
        }
        if annotation.kinds.contains(&"Any") {
            return;
        }
        if !annotation.kinds.contains(&object.kind.as_str()) {
            return out.add(object, "IST0107", path, &[&name, &annotation.kinds.join(", ")]);
        }
        if let Err(problem) = values::check(name, value) {
            out.add(object, "IST0125", path, &[&name, &problem]);
        }
    });
}

/// Annotations that may change.
pub(super) fn alpha(world: &World, out: &mut Report) {
    each(world, |object, name, _, path| {
        let injector_set_it = object.kind == Kind::Pod
            && SET_BY_INJECTOR.contains(&name)
            && !list(&object.value, "/spec/initContainers").iter().any(|c| text(c, "/name") == "istio-init");
        if known(name).is_some_and(|a| a.alpha) && !IGNORED.contains(&name) && !injector_set_it {
            out.add(object, "IST0136", path, &[&name]);
        }
    });
}
