//! One object by itself: what is wrong with it, whichever of the kinds of Istio or Gateway API it is.

use serde_json::Value;

use crate::{Finding, ParseError, gateway_api, parse, validate};

/// What is to be said of one object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Reasons of admission to refuse it.
    pub errors: Vec<Finding>,
    /// Accepted, but likely not what is meant.
    pub warnings: Vec<Finding>,
    /// Fields that nobody knows.
    pub unknown: Vec<Finding>,
    /// Fields that are accepted and have no or not the full effect here.
    pub unsupported: Vec<Finding>,
    /// What the API server refuses by itself, where the definitions are installed.
    pub violations: Vec<Finding>,
}

/// Judges an object; `None` when it is of a kind that is not ours.
pub fn judge(object: &Value) -> Option<Judgement> {
    match parse(object) {
        Ok(parsed) => {
            let verdict = validate::validate(&parsed.resource);
            Some(Judgement {
                errors: verdict.errors,
                warnings: verdict.warnings,
                unknown: parsed.unknown,
                unsupported: parsed.unsupported,
                violations: parsed.violations,
            })
        }
        Err(ParseError::Malformed { problems }) => {
            Some(Judgement { errors: problems, ..Judgement::default() })
        }
        Err(ParseError::OtherKind { .. }) => match gateway_api::read(object) {
            Ok(read) => Some(Judgement {
                unknown: read.unknown,
                unsupported: read.unsupported,
                ..Judgement::default()
            }),
            Err(ParseError::Malformed { problems }) => {
                Some(Judgement { errors: problems, ..Judgement::default() })
            }
            Err(ParseError::OtherKind { .. }) => None,
        },
    }
}
