//! The status of an object, from what is known of it. Pure. The shape is that of `IstioStatus`: `conditions`,
//! `validationMessages` and `observedGeneration`.

use istio_compat::{
    Finding as Field,
    analyze::{self, Judgement},
};
use mesh_index::{Finding, Level};
use serde_json::{Map, Value, json};

/// Whether the object is compiled into what proxies get.
const RECONCILED: &str = "Reconciled";
/// Whether all that it asks for has an effect.
const HONOURED: &str = "Honoured";
/// Our conditions; those of others in the same list stay.
const OURS: [&str; 2] = [RECONCILED, HONOURED];
/// Messages in a status, and characters of one text.
const MOST_MESSAGES: usize = 30;
const MOST_CHARACTERS: usize = 1024;

/// What is known of an object.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) kind: String,
    pub(super) generation: i64,
    /// Status as the cluster has it.
    pub(super) current: Value,
    pub(super) judgement: Judgement,
    /// What the compiler says of it.
    pub(super) findings: Vec<Finding>,
}

impl Known {
    /// Reads an object.
    pub(super) fn of(kind: &str, object: &Value) -> Self {
        Self {
            kind: kind.to_owned(),
            generation: object.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default(),
            current: object.get("status").cloned().unwrap_or_default(),
            judgement: analyze::judge(object).unwrap_or_default(),
            findings: Vec::new(),
        }
    }

    /// Errors of the compiler.
    pub(super) fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| f.level == Level::Error)
    }

    /// The part of the status that is ours, when it is not in the cluster yet.
    pub(super) fn patch(&self, now: &str) -> Option<Value> {
        let mut wanted = Map::new();
        wanted.insert("observedGeneration".to_owned(), self.generation.into());
        wanted.insert("conditions".to_owned(), self.conditions(now).into());
        wanted.insert("validationMessages".to_owned(), self.messages().into());
        let same = wanted.iter().all(|(key, value)| match self.current.get(key) {
            Some(current) => without_times(current) == without_times(value),
            None => value.as_array().is_some_and(Vec::is_empty),
        });
        (!same).then(|| json!({ "status": wanted }))
    }

    fn conditions(&self, now: &str) -> Vec<Value> {
        let current = self.current.get("conditions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let of_type = |c: &Value, wanted: &str| c.get("type").and_then(Value::as_str) == Some(wanted);
        let mut out: Vec<Value> =
            current.iter().filter(|c| !OURS.iter().any(|o| of_type(c, o))).cloned().collect();
        for (kind, fine, reason, message) in [self.reconciled(), self.honoured()] {
            let status = if fine { "True" } else { "False" };
            let before = current.iter().find(|c| of_type(c, kind) && c.get("status") == Some(&status.into()));
            let since =
                before.and_then(|c| c.get("lastTransitionTime")).cloned().unwrap_or_else(|| now.into());
            out.push(json!({
                "type": kind, "status": status, "reason": reason, "message": cut(&message),
                "observedGeneration": self.generation, "lastProbeTime": now, "lastTransitionTime": since,
            }));
        }
        out
    }

    fn reconciled(&self) -> (&'static str, bool, &'static str, String) {
        if let Some(instead) = analyze::not_honoured(&self.kind) {
            return (
                RECONCILED,
                false,
                "KindNotHonoured",
                format!("this mesh has no {}: {instead}", self.kind),
            );
        }
        let errors: Vec<String> = self.errors().map(|f| said(&f.path, &f.message)).collect();
        if errors.is_empty() {
            (RECONCILED, true, "Compiled", "proxies get what it says".to_owned())
        } else {
            let message = format!("{}; what it said before stays", errors.join("; "));
            (RECONCILED, false, "Refused", message)
        }
    }

    fn honoured(&self) -> (&'static str, bool, &'static str, String) {
        let ignored = self.judgement.unsupported.iter().chain(&self.judgement.unknown);
        let ignored: Vec<String> = ignored.map(|f| said(&f.path, &f.message)).collect();
        if ignored.is_empty() {
            (HONOURED, true, "AllFields", "every field has its effect".to_owned())
        } else {
            (HONOURED, false, "FieldsIgnored", ignored.join("; "))
        }
    }

    fn messages(&self) -> Vec<Value> {
        let found = |code: &'static str| move |f: &Field| message(code, &f.path, &f.message);
        let errors = self.errors().map(|f| message("IST0106", &f.path, &f.message));
        let judged = self.judgement.warnings.iter().map(found("IST0133"));
        let ignored = self.judgement.unsupported.iter().map(found("SLV0001"));
        let unknown = self.judgement.unknown.iter().map(found("SLV0002"));
        errors.chain(judged).chain(ignored).chain(unknown).flatten().take(MOST_MESSAGES).collect()
    }
}

/// One entry of `validationMessages`.
fn message(code: &str, path: &str, text: &str) -> Option<Value> {
    let code = analyze::CODES.iter().find(|c| c.code == code)?;
    let mut out = json!({
        "type": { "name": code.name, "code": code.code },
        "level": code.level.as_str().to_ascii_uppercase(),
        // Beyond Istio's fields: without it the author would have to run the analysis again.
        "message": cut(&said(path, text)),
    });
    if code.code.starts_with("IST") {
        let page = code.code.to_ascii_lowercase();
        out["documentationUrl"] =
            format!("https://istio.io/latest/docs/reference/config/analysis/{page}/").into();
    }
    Some(out)
}

fn said(path: &str, message: &str) -> String {
    if path.is_empty() { message.to_owned() } else { format!("{path}: {message}") }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MOST_CHARACTERS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// A status without the times at which it was looked at.
pub(super) fn without_times(status: &Value) -> Value {
    match status {
        Value::Array(items) => items.iter().map(without_times).collect(),
        Value::Object(fields) => {
            let kept =
                fields.iter().filter(|(k, _)| !["lastProbeTime", "lastTransitionTime"].contains(&k.as_str()));
            kept.map(|(k, v)| (k.clone(), without_times(v))).collect::<Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use mesh_index::{Kind, ObjectKey};

    use super::*;

    fn rule(spec: Value, status: Value) -> Value {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": { "name": "a", "namespace": "shop", "generation": 3 }, "spec": spec, "status": status,
        })
    }

    fn good() -> Value {
        json!({ "hosts": ["a"], "http": [{ "route": [{ "destination": { "host": "a" } }] }] })
    }

    fn known(spec: Value, status: Value) -> Known {
        Known::of("VirtualService", &rule(spec, status))
    }

    fn condition<'a>(patch: &'a Value, kind: &str) -> &'a Value {
        patch["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == kind).unwrap()
    }

    #[test]
    fn a_good_rule_is_reconciled_and_honoured_and_said_so_once() {
        let patch = known(good(), Value::Null).patch("T1").unwrap();
        assert_eq!(condition(&patch, "Reconciled")["status"], "True");
        assert_eq!(condition(&patch, "Honoured")["status"], "True");
        assert_eq!(patch["status"]["observedGeneration"], 3);
        assert_eq!(patch["status"]["validationMessages"], json!([]));
        assert_eq!(known(good(), patch["status"].clone()).patch("T2"), None, "nothing is new");
    }

    #[test]
    fn errors_and_ignored_fields_are_named() {
        let mut spec = good();
        spec["nonsense"] = 1.into();
        let mut known = known(spec, Value::Null);
        known.findings.push(Finding {
            object: ObjectKey::new(Kind::VirtualService, "shop", "a"),
            level: Level::Error,
            path: "spec.http[0]".to_owned(),
            message: "is wrong".to_owned(),
        });
        let patch = known.patch("T1").unwrap();
        let reconciled = condition(&patch, "Reconciled");
        assert_eq!((&reconciled["status"], &reconciled["reason"]), (&"False".into(), &"Refused".into()));
        assert!(reconciled["message"].as_str().unwrap().starts_with("spec.http[0]: is wrong"));
        let honoured = condition(&patch, "Honoured");
        assert_eq!(honoured["status"], "False");
        assert!(honoured["message"].as_str().unwrap().starts_with("spec.nonsense: "));
        let codes: Vec<_> = patch["status"]["validationMessages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| &m["type"]["code"])
            .collect();
        assert_eq!(codes, ["IST0106", "SLV0002"]);
        assert_eq!(patch["status"]["validationMessages"][0]["level"], "ERROR");
    }

    #[test]
    fn conditions_of_others_and_times_of_change_stay() {
        let first = known(good(), Value::Null).patch("T1").unwrap()["status"].clone();
        let mut status = first;
        status["conditions"].as_array_mut().unwrap().push(json!({ "type": "Theirs", "status": "True" }));
        let mut changed = good();
        changed["nonsense"] = 1.into();
        let patch = known(changed, status).patch("T2").unwrap();
        assert_eq!(condition(&patch, "Theirs")["status"], "True");
        assert_eq!(condition(&patch, "Reconciled")["lastTransitionTime"], "T1");
        assert_eq!(condition(&patch, "Honoured")["lastTransitionTime"], "T2");
    }

    #[test]
    fn a_kind_without_effect_says_what_to_do_instead() {
        let filter = json!({ "apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter",
            "metadata": { "name": "a" }, "spec": {} });
        let patch = Known::of("EnvoyFilter", &filter).patch("T").unwrap();
        assert_eq!(condition(&patch, "Reconciled")["reason"], "KindNotHonoured");
    }

    #[test]
    fn texts_are_bounded() {
        assert_eq!(cut(&"ä".repeat(5000)).chars().count(), MOST_CHARACTERS + 1);
    }
}
