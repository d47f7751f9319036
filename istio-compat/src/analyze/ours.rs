//! What this mesh does not honour, though Istio accepts it.

use super::{
    judge::judge,
    report::Report,
    world::{Kind, World},
};

/// Kinds without effect here, and what to do instead.
const WITHOUT_EFFECT: [(Kind, &str); 3] = [
    (
        Kind::EnvoyFilter,
        "the proxy is not Envoy; most uses have a field in VirtualService or DestinationRule",
    ),
    (Kind::WasmPlugin, "the proxy runs no plugins"),
    (Kind::TrafficExtension, "the proxy runs no plugins"),
];

/// Fields and kinds from the table of support.
pub(super) fn support(world: &World, out: &mut Report) {
    for (kind, instead) in WITHOUT_EFFECT {
        for object in world.all(kind) {
            out.add(object, "SLV0003", "", &[&kind.as_str(), &instead]);
        }
    }
    for object in world.every() {
        let Some(judgement) = judge(&object.value) else { continue };
        for field in judgement.unsupported {
            out.add(object, "SLV0001", field.path, &[&field.message]);
        }
        for field in judgement.unknown {
            out.add(object, "SLV0002", field.path, &[]);
        }
        for field in judgement.violations {
            out.add(object, "SLV0004", field.path, &[&field.message]);
        }
    }
}

/// What to do instead of using a kind that has no effect here; `None` for kinds that have.
pub fn not_honoured(kind: &str) -> Option<&'static str> {
    WITHOUT_EFFECT.iter().find(|(k, _)| k.as_str() == kind).map(|(_, instead)| *instead)
}
