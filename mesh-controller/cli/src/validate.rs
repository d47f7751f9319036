//! `meshctl validate`: what admission would say.

use anyhow::Result;
use istio_compat::{Finding, ParseError, gateway_api, parse, validate};
use serde::Serialize;

use crate::{Object, Outcome, args, input, output};

#[derive(Debug, Serialize)]
struct Verdict {
    kind: String,
    namespace: String,
    name: String,
    valid: bool,
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
    unsupported: Vec<Finding>,
}

pub(crate) fn run(args: &args::Validate) -> Result<Outcome> {
    let mut verdicts = Vec::new();
    for object in input::objects(&args.files.files)? {
        match judge(&object) {
            Some(verdict) => verdicts.push(verdict),
            None => eprintln!(
                "meshctl: {}: {} {} is ignored",
                object.file,
                object.text("/kind"),
                object.text("/metadata/name")
            ),
        }
    }
    output::print(args.output.format, &verdicts, || table(&verdicts))?;
    Ok(if verdicts.iter().all(|v| v.valid) { Outcome::Fine } else { Outcome::Findings })
}

/// `None` for a kind that is not validated.
fn judge(object: &Object) -> Option<Verdict> {
    let text = |pointer| object.text(pointer).to_owned();
    let mut verdict = Verdict {
        kind: text("/kind"),
        namespace: text("/metadata/namespace"),
        name: text("/metadata/name"),
        valid: false,
        errors: Vec::new(),
        warnings: Vec::new(),
        unsupported: Vec::new(),
    };
    match parse(&object.value) {
        Err(ParseError::OtherKind { .. }) => match gateway_api::read(&object.value) {
            Err(ParseError::OtherKind { .. }) => return None,
            Err(ParseError::Malformed { problems }) => verdict.errors = problems,
            Ok(read) => {
                verdict.namespace.clone_from(&read.object.meta().namespace);
                verdict.valid = true;
                verdict.warnings = read.unknown;
                verdict.unsupported = read.unsupported;
            }
        },
        Err(ParseError::Malformed { problems }) => verdict.errors = problems,
        Ok(parsed) => {
            let judged = validate::judge(&parsed);
            verdict.namespace = parsed.resource.meta().namespace.clone();
            verdict.valid = judged.is_valid();
            verdict.errors = judged.errors;
            verdict.warnings = judged.warnings;
            verdict.warnings.extend(parsed.unknown);
            verdict.unsupported = parsed.unsupported;
        }
    }
    Some(verdict)
}

fn table(verdicts: &[Verdict]) -> String {
    let mut rows = Vec::new();
    for v in verdicts {
        let object = format!("{} {}/{}", v.kind, v.namespace, v.name);
        let word = if v.valid { "valid" } else { "refused" };
        rows.push(vec![object, word.to_owned(), String::new(), String::new()]);
        for (level, list) in [("error", &v.errors), ("warning", &v.warnings), ("no effect", &v.unsupported)] {
            let row = |f: &Finding| vec![String::new(), level.to_owned(), f.path.clone(), f.message.clone()];
            rows.extend(list.iter().map(row));
        }
    }
    output::table(&["object", "verdict", "field", "message"], &rows)
}
