//! What admission would say of each object by itself.

use super::{
    reach,
    report::Report,
    world::{Kind, World},
};
use crate::{ParseError, parse, validate};

/// Istio kinds as admission judges them. Rules that are never used have codes of their own.
pub(super) fn validation(world: &World, out: &mut Report) {
    for object in world.every() {
        if object.kind == Kind::VirtualService {
            reach::rules(object, out);
        }
        match parse(&object.value) {
            Err(ParseError::OtherKind { .. }) => {}
            Err(ParseError::Malformed { problems }) => {
                for problem in problems {
                    let text = format!("{}: {}", problem.path, problem.message);
                    out.add(object, "IST0106", problem.path, &[&text]);
                }
            }
            Ok(parsed) => {
                let verdict = validate::validate(&parsed.resource);
                for error in verdict.errors {
                    let text = format!("{}: {}", error.path, error.message);
                    out.add(object, "IST0106", error.path, &[&text]);
                }
                for warning in
                    verdict.warnings.into_iter().filter(|w| !w.message.starts_with("is never used"))
                {
                    let text = format!("{}: {}", warning.path, warning.message);
                    out.add(object, "IST0133", warning.path, &[&text]);
                }
            }
        }
    }
}
