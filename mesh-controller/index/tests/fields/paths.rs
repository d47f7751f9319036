//! Places in objects, written as the table of support writes them: `a[].b{}.c`.

use serde_json::{Value, json};

/// `a[].b{}` as the steps to it.
pub(crate) fn steps(path: &str) -> Vec<&str> {
    let mut out = Vec::new();
    for mut part in path.split('.') {
        let end = part.find(['[', '{']).unwrap_or(part.len());
        out.push(&part[..end]);
        part = &part[end..];
        while part.len() >= 2 {
            out.push(&part[..2]);
            part = &part[2..];
        }
    }
    out
}

/// Sets a leaf, making what is above it. Lists get one item; maps that are there are set at their first key. Returns the
/// leaf's place as findings write it.
pub(crate) fn set(spec: &mut Value, path: &str, value: &Value) -> String {
    let (mut at, mut place) = ("spec".to_owned(), spec);
    let steps = steps(path);
    for (i, step) in steps.iter().enumerate() {
        let empty = if steps.get(i + 1) == Some(&"[]") { json!([]) } else { json!({}) };
        place = match *step {
            "[]" => {
                let list = place.as_array_mut().unwrap();
                if list.is_empty() {
                    list.push(empty);
                }
                at.push_str("[0]");
                &mut list[0]
            }
            "{}" => {
                let map = place.as_object_mut().unwrap();
                let key = map.keys().next().cloned().unwrap_or_else(|| "sample".to_owned());
                at.push_str(&format!("[{key:?}]"));
                map.entry(key).or_insert(empty)
            }
            name => {
                at.push('.');
                at.push_str(name);
                let map = place.as_object_mut().unwrap_or_else(|| panic!("{path}: {at} is no object"));
                let slot = map.entry(name.to_owned()).or_insert(Value::Null);
                if slot.is_null() {
                    *slot = empty;
                }
                slot
            }
        };
    }
    *place = value.clone();
    at
}

/// What the table has for a path: for its kind and the whole of it, else for the longest end of it.
pub(crate) fn sampled(kind: &str, path: &str, table: &Value) -> Option<Vec<Value>> {
    let own = format!("{kind}:{path}");
    let fits = |end: &str| path.strip_suffix(end).is_some_and(|b| b.is_empty() || b.ends_with('.'));
    let table = table.as_object().unwrap();
    let by_end = table.iter().filter(|(end, _)| fits(end)).max_by_key(|(end, _)| end.len());
    table.get(&own).or(by_end.map(|(_, v)| v)).map(|v| v.as_array().unwrap().clone())
}

/// `spec.a[0].b["c"]` names `spec.a` and what is below it.
pub(crate) fn names(finding: &str, place: &str) -> bool {
    place.strip_prefix(finding).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Takes the leaf away again, or puts back what the base has there.
pub(crate) fn take(spec: &mut Value, path: &str, base: &Value) {
    let (mut place, mut old) = (spec, Some(base));
    let steps = steps(path);
    for (i, step) in steps.iter().enumerate() {
        let last = i + 1 == steps.len();
        let key = match *step {
            "[]" => None,
            "{}" => place.as_object().unwrap().keys().next().cloned(),
            name => Some(name.to_owned()),
        };
        old = old.and_then(|o| key.as_ref().map_or_else(|| o.get(0), |k| o.get(k)));
        match (key, last) {
            (None, true) => match old {
                Some(old) => place[0] = old.clone(),
                None => drop(place.as_array_mut().unwrap().remove(0)),
            },
            (Some(key), true) => match old {
                Some(old) => place[&key] = old.clone(),
                None => drop(place.as_object_mut().unwrap().remove(&key)),
            },
            (None, false) => place = &mut place[0],
            (Some(key), false) => place = &mut place[&key],
        }
    }
}
