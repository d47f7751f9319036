//! What each value of the chart is for: a rendering with it does what the case says, one without it does not. A value of
//! the schema without a case fails the test.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{
    cases::{Case, cases},
    chart::{at, defaults, leaves, merged, nested, schema},
    expect::{Rendered, render},
};

/// Values whose effect another test shows, or that have none on purpose.
const ELSEWHERE: [&str; 3] = ["global", "crds.install", "crds.keep"];

/// Renders every case, and finds values without one.
pub(crate) fn check_all() {
    let (schema, defaults) = (leaves(&schema()), defaults());
    let mut renderings: BTreeMap<String, Rendered> = BTreeMap::new();
    let mut of =
        |values: &Value| renderings.entry(values.to_string()).or_insert_with(|| render(values)).clone();
    // What is said as it is anyway changes nothing.
    let (mut covered, mut changed, mut wrong, mut count) = (BTreeSet::new(), BTreeSet::new(), Vec::new(), 0);
    assert!(of(&defaults) == of(&json!({})), "the chart's own values, given once more, make a difference");
    for case in cases() {
        let before = of(&case.base);
        let after = render(&merged(&case.base, &nested(&case.path, case.value.clone())));
        for expect in &case.expect {
            if let Err(reason) = expect.holds(&after) {
                wrong.push(format!("{} = {}: {reason}", case.path, case.value));
            }
            if expect.holds(&before).is_ok() {
                wrong.push(format!("{} = {}: the same without it", case.path, case.value));
            }
        }
        count += 1;
        let below = format!("{}.", case.path);
        covered.extend(
            schema.iter().map(|(p, _)| p.clone()).filter(|p| *p == case.path || p.starts_with(&below)),
        );
        wrong.extend(emptied(&case, &defaults, &before));
        if at(&merged(&defaults, &case.base), &case.path) != Some(&case.value) {
            changed.insert(case.path);
        }
    }
    for (path, _) in &schema {
        if !covered.contains(path) && !ELSEWHERE.contains(&path.as_str()) {
            wrong.push(format!("{path} has no case here"));
        }
        // Its case says what differs, so true and false differ.
        let is_boolean = at(&defaults, path).is_some_and(Value::is_boolean);
        if is_boolean && !changed.contains(path) && !ELSEWHERE.contains(&path.as_str()) {
            wrong.push(format!("{path} is never the other way round"));
        }
    }
    println!("{count} cases of {} values", schema.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A list that is emptied is empty, whatever it holds by default.
fn emptied(case: &Case, defaults: &Value, before: &Rendered) -> Option<String> {
    let set = merged(defaults, &case.base);
    let full = at(&set, &case.path)?.as_array().is_some_and(|list| !list.is_empty());
    // A gateway without ports is refused.
    if !full || case.path == "gateway.ports" {
        return None;
    }
    let rendered = render(&merged(&case.base, &nested(&case.path, json!([]))));
    (rendered == *before).then(|| format!("{} = []: no difference", case.path))
}
