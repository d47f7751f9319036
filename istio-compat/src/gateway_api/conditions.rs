//! Status conditions: what is new is merged into what an object carries, so that a condition that stays keeps its time and
//! those of other controllers stay.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Why something is not as the user asked; ends up as reason and message of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Problem {
    pub(crate) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// The first problem, with what others say appended.
pub(crate) fn join(a: Option<Problem>, b: Option<Problem>) -> Option<Problem> {
    match (a, b) {
        (Some(mut a), Some(b)) => {
            a.message = format!("{}; {}", a.message, b.message);
            Some(a)
        }
        (a, b) => a.or(b),
    }
}

/// State of one condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) status: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Says, where it is false, which fields of an object have no effect. It is there only then: nobody else knows the type.
pub(crate) const HONOURED: &str = "selvage.dev/Honoured";

/// Conditions of one object by type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Conditions(BTreeMap<&'static str, State>);

impl Conditions {
    /// A condition with the status that means "well".
    pub(crate) fn set(
        mut self,
        kind: &'static str,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        self.put(kind, true, reason, message);
        self
    }

    pub(crate) fn put(
        &mut self,
        kind: &'static str,
        status: bool,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.0.insert(kind, State { status, reason, message: message.into() });
    }

    /// The condition is not met.
    pub(crate) fn fail(&mut self, kind: &'static str, problem: &Problem) {
        self.put(kind, false, problem.reason, problem.message.clone());
    }

    /// The same if there is a problem.
    pub(crate) fn check(&mut self, kind: &'static str, problem: Option<&Problem>) {
        if let Some(problem) = problem {
            self.fail(kind, problem);
        }
    }

    /// More to say about a condition that is met.
    pub(crate) fn append_message(&mut self, kind: &'static str, text: &str) {
        if let Some(state) = self.0.get_mut(kind) {
            state.message.push_str(text);
        }
    }

    /// These conditions merged into `existing` ones: in place where the type is there, else at the end in order of type.
    pub(crate) fn merged(&self, existing: Option<&Value>, clock: Clock<'_>) -> Value {
        let mut out = existing.and_then(Value::as_array).cloned().unwrap_or_default();
        out.retain(|c| {
            c.get("type").and_then(Value::as_str) != Some(HONOURED) || self.0.contains_key(HONOURED)
        });
        for (kind, state) in &self.0 {
            let status = if state.status { "True" } else { "False" };
            let mut new = Map::new();
            new.insert("lastTransitionTime".into(), clock.now.into());
            new.insert("message".into(), state.message.clone().into());
            if clock.generation != 0 {
                new.insert("observedGeneration".into(), clock.generation.into());
            }
            new.insert("reason".into(), state.reason.into());
            new.insert("status".into(), status.into());
            new.insert("type".into(), (*kind).into());
            match out.iter_mut().find(|c| c.get("type").and_then(Value::as_str) == Some(kind)) {
                None => out.push(Value::Object(new)),
                Some(old) => {
                    if let Some(time) = old
                        .get("lastTransitionTime")
                        .filter(|_| old.get("status").and_then(Value::as_str) == Some(status))
                    {
                        new.insert("lastTransitionTime".into(), time.clone());
                    }
                    *old = Value::Object(new);
                }
            }
        }
        Value::Array(out)
    }
}

/// The time for conditions that change, and the generation that they are about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock<'a> {
    pub(crate) now: &'a str,
    pub(crate) generation: i64,
}

/// `a, b, and c`.
pub(crate) fn enumerate(list: &[String]) -> String {
    match list {
        [] => String::new(),
        [one] => one.clone(),
        [one, two] => format!("{one} and {two}"),
        [first @ .., last] => format!("{}, and {last}", first.join(", ")),
    }
}

/// Entries of a status list that other controllers own stay; ours are replaced where they are, left out when they are no
/// longer there, and new ones come at the end.
pub(crate) fn replace_ours(
    existing: Option<&Value>,
    reference: &str,
    controllers: &[&str],
    mut ours: Vec<Value>,
) -> Vec<Value> {
    let mut out = Vec::new();
    for old in existing.and_then(Value::as_array).into_iter().flatten() {
        let controller = old.get("controllerName").and_then(Value::as_str).unwrap_or_default();
        if !controllers.contains(&controller) {
            out.push(old.clone());
        } else if let Some(at) = ours.iter().position(|new| {
            new.get(reference) == old.get(reference) && new.get("controllerName") == old.get("controllerName")
        }) {
            out.push(ours.remove(at));
        }
    }
    out.append(&mut ours);
    out
}

/// The conditions that an entry of a status list has now.
pub(crate) fn existing_entry<'a>(
    list: Option<&'a Value>,
    reference: &str,
    wanted: &Value,
    controller: &str,
) -> Option<&'a Value> {
    list?
        .as_array()?
        .iter()
        .find(|e| {
            e.get(reference) == Some(wanted)
                && e.get("controllerName").and_then(Value::as_str) == Some(controller)
        })?
        .get("conditions")
}

/// One entry of `parents` or `ancestors`.
pub(crate) fn entry(reference: &str, value: Value, controller: &str, conditions: Value) -> Value {
    json!({ "conditions": conditions, "controllerName": controller, reference: value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_move_only_when_the_status_does() {
        let first = Conditions::default().set("Accepted", "Accepted", "fine");
        let clock = Clock { now: "t1", generation: 3 };
        let one = first.merged(None, clock);
        assert_eq!(one[0]["lastTransitionTime"], "t1");
        assert_eq!(one[0]["observedGeneration"], 3);
        let again = first.merged(Some(&one), Clock { now: "t2", generation: 4 });
        assert_eq!(again[0]["lastTransitionTime"], "t1");
        assert_eq!(again[0]["observedGeneration"], 4);
        let mut second = first.clone();
        second.fail("Accepted", &Problem::new("Bad", "no"));
        let bad = second.merged(Some(&again), Clock { now: "t3", generation: 4 });
        assert_eq!(bad[0]["lastTransitionTime"], "t3");
        assert_eq!((bad[0]["status"].as_str(), bad[0]["reason"].as_str()), (Some("False"), Some("Bad")));
    }

    #[test]
    fn fields_without_effect_are_said_while_they_are_there() {
        let clock = Clock { now: "t", generation: 1 };
        let mut state = Conditions::default().set("Accepted", "Accepted", "fine");
        let plain = state.merged(None, clock);
        state.fail(HONOURED, &Problem::new("UnsupportedField", "spec.x"));
        let said = state.merged(Some(&plain), clock);
        assert_eq!((said[1]["type"].as_str(), said[1]["status"].as_str()), (Some(HONOURED), Some("False")));
        let again = Conditions::default().set("Accepted", "Accepted", "fine").merged(Some(&said), clock);
        assert_eq!(again, plain);
    }

    #[test]
    fn entries_of_others_stay() {
        let list = json!([
            {"controllerName": "other", "parentRef": {"name": "a"}, "conditions": []},
            {"controllerName": "us", "parentRef": {"name": "gone"}, "conditions": []},
            {"controllerName": "us", "parentRef": {"name": "a"}, "conditions": [1]},
        ]);
        let new = vec![
            entry("parentRef", json!({"name": "b"}), "us", json!([])),
            entry("parentRef", json!({"name": "a"}), "us", json!([2])),
        ];
        let got = replace_ours(Some(&list), "parentRef", &["us"], new);
        let names: Vec<_> = got
            .iter()
            .map(|e| format!("{}:{}", e["controllerName"], e["parentRef"]["name"]).replace('"', ""))
            .collect();
        assert_eq!(names, ["other:a", "us:a", "us:b"]);
        assert_eq!(got[1]["conditions"], json!([2]));
        assert_eq!(enumerate(&["a".into(), "b".into(), "c".into()]), "a, b, and c");
    }
}
