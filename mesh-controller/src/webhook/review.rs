//! One AdmissionReview (`admission.k8s.io/v1`) to its answer. Pure.

use istio_compat::{Finding, analyze::judge};
use serde_json::{Value, json};

/// Reasons in one message, and warnings in one answer; how many more there are is said.
const MOST_SAID: usize = 20;
/// Longer warnings are cut off by the API server.
const WARNING_BYTES: usize = 250;

/// How a review ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Fine.
    Allowed,
    /// Fine, with something to say.
    Warned,
    /// Refused.
    Denied,
    /// Of a kind that is none of ours; allowed.
    Ignored,
}

impl Outcome {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Warned => "warned",
            Self::Denied => "denied",
            Self::Ignored => "ignored",
        }
    }
}

/// The answer, and what is counted of it.
#[derive(Debug)]
pub(super) struct Reviewed {
    pub(super) kind: String,
    pub(super) outcome: Outcome,
    pub(super) response: Value,
}

/// Answers a review; an error is about the request itself.
pub(super) fn answer(body: &[u8]) -> Result<Reviewed, String> {
    let mut review: Value = serde_json::from_slice(body).map_err(|e| format!("not JSON: {e}"))?;
    let text = |pointer: &str| review.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    if text("/kind") != "AdmissionReview" || text("/apiVersion") != "admission.k8s.io/v1" {
        return Err("must be an AdmissionReview of admission.k8s.io/v1".to_owned());
    }
    let uid = text("/request/uid");
    if uid.is_empty() {
        return Err("request.uid is missing".to_owned());
    }
    let (kind, operation) = (text("/request/kind/kind"), text("/request/operation"));
    let (namespace, name) = (text("/request/namespace"), text("/request/name"));
    let object = review.pointer_mut("/request/object").map(Value::take).unwrap_or_default();
    let judged = match operation.as_str() {
        "CREATE" | "UPDATE" if object.is_object() => look(object, &namespace, &name),
        _ => Judged { known: true, ..Judged::default() },
    };
    let outcome = match (judged.known, judged.errors.is_empty(), judged.warnings.is_empty()) {
        (false, ..) => Outcome::Ignored,
        (_, false, _) => Outcome::Denied,
        (_, _, false) => Outcome::Warned,
        _ => Outcome::Allowed,
    };
    let mut response = json!({ "uid": uid, "allowed": outcome != Outcome::Denied });
    if outcome == Outcome::Denied {
        let shown = format!("{kind} {namespace}/{}", judged.name);
        let message = format!("{shown} is refused: {}", joined(&judged.errors));
        response["status"] =
            json!({ "status": "Failure", "code": 400, "reason": "BadRequest", "message": message });
    }
    if !judged.warnings.is_empty() {
        response["warnings"] = warnings(&judged.warnings).into();
    }
    let response =
        json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response });
    // Labels are made of what we know, not of what is asked.
    let kind = if judged.known { kind } else { "other".to_owned() };
    Ok(Reviewed { kind, outcome, response })
}

#[derive(Debug, Default)]
struct Judged {
    known: bool,
    name: String,
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
}

fn look(mut object: Value, namespace: &str, name: &str) -> Judged {
    let name = complete(&mut object, namespace, name);
    let mut judged = Judged { known: true, name, ..Judged::default() };
    match judge(&object) {
        None => judged.known = false,
        // What the schema refuses the API server has refused already.
        Some(judgement) => {
            judged.errors = judgement.errors;
            let ignored = judgement.unsupported.into_iter();
            let said =
                |f: Finding| Finding::new(f.path, format!("has no effect in this mesh: {}", f.message));
            judged.warnings = ignored.map(said).collect();
            judged.warnings.extend(judgement.warnings);
            judged.warnings.extend(judgement.unknown);
        }
    }
    judged
}

/// The API server fills in namespace and generated names only after admission.
fn complete(object: &mut Value, namespace: &str, name: &str) -> String {
    let generated = object.pointer("/metadata/generateName").and_then(Value::as_str).unwrap_or_default();
    let own = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let name = match (own, name) {
        ("", "") => format!("{generated}x"),
        ("", given) => given.to_owned(),
        (own, _) => own.to_owned(),
    };
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.insert("name".to_owned(), name.as_str().into());
        if !namespace.is_empty() {
            meta.insert("namespace".to_owned(), namespace.into());
        }
    }
    name
}

fn joined(findings: &[Finding]) -> String {
    let mut parts: Vec<String> =
        findings.iter().take(MOST_SAID).map(|f| format!("{}: {}", f.path, f.message)).collect();
    if findings.len() > MOST_SAID {
        parts.push(format!("and {} more", findings.len() - MOST_SAID));
    }
    parts.join("; ")
}

fn warnings(findings: &[Finding]) -> Vec<String> {
    let mut out: Vec<String> =
        findings.iter().take(MOST_SAID).map(|f| shortened(&format!("{}: {}", f.path, f.message))).collect();
    if findings.len() > MOST_SAID {
        out.push(format!("and {} more; see the object's status", findings.len() - MOST_SAID));
    }
    out
}

fn shortened(text: &str) -> String {
    match text.char_indices().map(|(i, _)| i).find(|i| *i >= WARNING_BYTES) {
        Some(end) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(operation: &str, object: Value) -> Value {
        let kind = object["kind"].clone();
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u-1", "kind": { "group": "networking.istio.io", "version": "v1", "kind": kind },
                "namespace": "shop", "name": "", "operation": operation, "object": object,
            },
        })
    }

    fn rule(spec: Value) -> Value {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": { "name": "reviews" }, "spec": spec,
        })
    }

    fn ask(review: &Value) -> Reviewed {
        answer(review.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_bad_object_is_refused_with_field_and_reason() {
        let bad = rule(
            json!({ "hosts": ["reviews"], "http": [{ "route": [{ "destination": { "host": "reviews" } }],
            "mirror": { "host": "a" }, "mirrorPercentage": { "value": 101.0 } }] }),
        );
        let got = ask(&review("CREATE", bad.clone()));
        assert_eq!((got.kind.as_str(), got.outcome), ("VirtualService", Outcome::Denied));
        let response = &got.response["response"];
        assert_eq!(got.response["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(response["uid"], "u-1");
        assert_eq!(response["allowed"], false);
        let message = response["status"]["message"].as_str().unwrap();
        assert!(
            message.starts_with("VirtualService shop/reviews is refused: spec.http[0].mirrorPercentage"),
            "{message}"
        );
        // Deleting must always be possible.
        assert_eq!(ask(&review("DELETE", bad)).response["response"]["allowed"], true);
    }

    #[test]
    fn a_good_object_is_allowed_and_what_is_ignored_is_warned_of() {
        let route = json!([{ "route": [{ "destination": { "host": "reviews" } }] }]);
        let got = ask(&review("UPDATE", rule(json!({ "hosts": ["reviews"], "http": route }))));
        assert_eq!(got.response["response"], json!({ "uid": "u-1", "allowed": true }));
        let unknown = rule(json!({ "hosts": ["reviews"], "http": route, "nonsense": 1 }));
        let got = ask(&review("UPDATE", unknown));
        assert_eq!(got.outcome, Outcome::Warned);
        assert!(got.response["response"]["warnings"][0].as_str().unwrap().starts_with("spec.nonsense: "));
    }

    #[test]
    fn generated_names_and_other_kinds_are_no_fault() {
        let mut object =
            rule(json!({ "hosts": ["a"], "http": [{ "route": [{ "destination": { "host": "a" } }] }] }));
        object["metadata"] = json!({ "generateName": "a-" });
        assert_eq!(ask(&review("CREATE", object)).outcome, Outcome::Allowed);
        let other = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a" } });
        let got = ask(&review("CREATE", other));
        assert_eq!((got.kind.as_str(), got.outcome), ("other", Outcome::Ignored));
    }

    #[test]
    fn what_is_no_review_is_said() {
        for body in ["", "{}", r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1beta1"}"#] {
            assert!(answer(body.as_bytes()).is_err(), "{body}");
        }
        let no_uid = json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {} });
        assert_eq!(answer(no_uid.to_string().as_bytes()).unwrap_err(), "request.uid is missing");
    }

    #[test]
    fn long_and_many_warnings_are_cut() {
        let many: Vec<Finding> =
            (0..30).map(|i| Finding::new(format!("spec.a[{i}]"), "ä".repeat(400))).collect();
        let got = warnings(&many);
        assert_eq!(got.len(), MOST_SAID + 1);
        assert!(got.iter().all(|w| w.len() <= WARNING_BYTES + 4));
        assert!(joined(&many).ends_with("and 10 more"));
    }

    proptest::proptest! {
        #[test]
        fn no_body_stops_it(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            answer(&body).ok();
        }
    }
}
