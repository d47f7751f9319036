//! Cases beside those of Istio: what admission accepts and refuses, field by field.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use istio_compat::{parse, types, validate, yaml};
use serde_json::{Value, json};

/// Puts a value at a pointer, making what is not there; null takes the field away.
fn put(spec: &mut Value, at: &str, value: &Value) {
    let mut place = spec;
    let mut keys = at.trim_start_matches('/').split('/').peekable();
    while let Some(key) = keys.next() {
        let last = keys.peek().is_none();
        let next_is_index = keys.peek().is_some_and(|k| k.parse::<usize>().is_ok());
        let empty = if next_is_index { json!([]) } else { json!({}) };
        place = match key.parse::<usize>() {
            Ok(i) => {
                let list = place.as_array_mut().unwrap();
                if i == list.len() {
                    list.push(empty);
                }
                &mut list[i]
            }
            Err(_) if last && value.is_null() => {
                place.as_object_mut().unwrap().remove(key);
                return;
            }
            Err(_) => place.as_object_mut().unwrap().entry(key).or_insert(empty),
        };
    }
    *place = value.clone();
}

fn errors(kind: &str, spec: &Value) -> Vec<String> {
    let info = types::kind_info(kind).unwrap();
    let object = json!({
        "apiVersion": format!("{}/{}", info.group, info.versions[0]), "kind": kind,
        "metadata": { "name": "test", "namespace": "default" }, "spec": spec,
    });
    match parse(&object) {
        Err(e) => vec![e.to_string()],
        Ok(parsed) => {
            validate::judge(&parsed).errors.iter().map(|f| format!("{}: {}", f.path, f.message)).collect()
        }
    }
}

#[test]
fn each_neighbour_is_judged_as_istio_judges_it() {
    let cases = yaml::documents(include_str!("cases/validation.yaml")).unwrap();
    let (mut count, mut wrong) = (0, Vec::new());
    for case in &cases {
        let (kind, at) = (case["kind"].as_str().unwrap(), case["at"].as_str().unwrap());
        for (verdict, accepted) in [("valid", true), ("invalid", false)] {
            for value in case[verdict].as_array().unwrap() {
                let mut spec = case["base"].clone();
                put(&mut spec, at, value);
                let errors = errors(kind, &spec);
                count += 1;
                if errors.is_empty() != accepted {
                    wrong.push(format!("{kind}{at} = {value} should be {verdict}: {errors:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 600, "{count} cases were read");
}

/// A refusal names the fields that are wrong, no more and no fewer.
#[test]
fn what_is_refused_is_named_where_it_is() {
    let groups = yaml::documents(include_str!("cases/paths.yaml")).unwrap();
    let (mut count, mut wrong) = (0, Vec::new());
    for group in &groups {
        let kind = group["kind"].as_str().unwrap();
        let info = types::kind_info(kind).unwrap();
        for case in group["cases"].as_array().unwrap() {
            let mut spec = group["base"].clone();
            put(&mut spec, case["at"].as_str().unwrap(), &case["value"]);
            let object = json!({
                "apiVersion": format!("{}/{}", info.group, info.versions[0]), "kind": kind,
                "metadata": { "name": "test", "namespace": "default" }, "spec": spec,
            });
            let (errors, warnings) = match parse(&object) {
                Ok(parsed) => {
                    let verdict = validate::judge(&parsed);
                    (verdict.errors, verdict.warnings)
                }
                Err(e) => panic!("{kind} {case}: {e}"),
            };
            count += 1;
            for (what, said) in [("errors", errors), ("warnings", warnings)] {
                let paths: Vec<&str> = said.iter().map(|f| f.path.as_str()).collect();
                if case.get(what).is_some_and(|want| *want != json!(paths)) {
                    wrong.push(format!(
                        "{kind} {} = {}: {what} {}, got {said:?}",
                        case["at"], case["value"], case[what]
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 80, "{count} cases");
}

/// What analysis says of small worlds, one step beside those of Istio: one case a line, objects and the codes with the
/// objects that they are about.
#[test]
fn neighbours_of_analysis_cases() {
    use istio_compat::analyze::{self, Options, World};
    let (mut count, mut wrong) = (0, Vec::new());
    for line in include_str!("cases/analyze.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let mut world = World::new(Options::default());
        for object in case["objects"].as_array().unwrap() {
            assert!(world.add(object.clone()), "{}: {}", case["id"], object["kind"]);
        }
        let said = analyze::analyze(&world).into_iter().filter(|m| m.code.starts_with("IST"));
        let mut got: Vec<String> = said.map(|m| format!("{} {}", m.code, m.resource)).collect();
        got.sort();
        got.dedup();
        count += 1;
        if json!(got) != case["want"] {
            wrong.push(format!("{}: expected {}, got {got:?}", case["id"], case["want"]));
        }
    }
    assert!(wrong.is_empty(), "{} wrong of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 80, "{count} cases");
}

/// What analysis says word for word, as Istio's own says it: level, field and text. One case a line; what is null is not
/// looked at.
#[test]
fn messages_are_those_of_istio() {
    use istio_compat::analyze::{self, Options, World};
    let (mut count, mut wrong) = (0, Vec::new());
    for line in include_str!("cases/messages.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let mut world = World::new(Options::default());
        for object in case["objects"].as_array().unwrap() {
            assert!(world.add(object.clone()), "{}: {}", case["id"], object["kind"]);
        }
        let said = analyze::analyze(&world).into_iter().filter(|m| m.code.starts_with("IST"));
        let mut left: Vec<Value> = said.map(|m| serde_json::to_value(m).unwrap()).collect();
        for want in case["want"].as_array().unwrap() {
            count += 1;
            let fits = |m: &Value| want.as_object().unwrap().iter().all(|(k, v)| v.is_null() || m[k] == *v);
            match left.iter().position(fits) {
                Some(at) => drop(left.remove(at)),
                None => wrong.push(format!("{}: nobody said {want}, but {left:?}", case["id"])),
            }
        }
        if !left.is_empty() {
            wrong.push(format!("{}: nobody expected {left:?}", case["id"]));
        }
    }
    assert!(wrong.is_empty(), "{} wrong of {count} messages:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 35, "{count} messages");
}
