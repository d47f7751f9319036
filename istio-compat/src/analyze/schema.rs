//! What admission would say of each object by itself.

use super::{
    judge::judge,
    reach,
    report::Report,
    world::{Kind, World},
};

/// Our warnings of rules that are never used; Istio has codes of their own for them.
const NEVER_USED: &str = "is never used";

/// Each kind as admission judges it.
pub(super) fn validation(world: &World, out: &mut Report) {
    for object in world.every() {
        if object.kind == Kind::VirtualService {
            reach::rules(object, out);
        }
        let Some(judgement) = judge(&object.value) else { continue };
        for error in judgement.errors {
            let text = format!("{}: {}", error.path, error.message);
            out.add(object, "IST0106", error.path, &[&text]);
        }
        for warning in judgement.warnings.into_iter().filter(|w| !w.message.starts_with(NEVER_USED)) {
            let text = format!("{}: {}", warning.path, warning.message);
            out.add(object, "IST0133", warning.path, &[&text]);
        }
    }
}
