//! Kubernetes YAML and JSON to values. Words such as `y`, `n`, `on` and `no` stay text: they are legal names, and a
//! reader that makes booleans of them loses objects. Size is bounded, so that no file can exhaust memory.

use serde_json::Value;

const MAX_DOCUMENTS: usize = 200_000;
const MAX_NODES: usize = 10_000_000;

/// Text that is not YAML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadYaml(String);

/// All documents of a file as they are, empty ones as null.
pub fn values(text: &str) -> Result<Vec<Value>, BadYaml> {
    let mut options = serde_saphyr::Options::default();
    options.strict_booleans = true;
    if let Some(budget) = &mut options.budget {
        budget.max_documents = MAX_DOCUMENTS;
        budget.max_nodes = MAX_NODES;
        budget.max_events = 2 * MAX_NODES;
    }
    serde_saphyr::from_multiple_with_options(text, options).map_err(|e| BadYaml(e.to_string()))
}

/// All documents of a file, empty ones left out; the items of `List` objects come one by one.
pub fn documents(text: &str) -> Result<Vec<Value>, BadYaml> {
    let documents = values(text)?;
    let mut out = Vec::with_capacity(documents.len());
    for document in documents {
        flatten(document, &mut out);
    }
    Ok(out)
}

fn flatten(document: Value, out: &mut Vec<Value>) {
    match document {
        Value::Null => {}
        Value::Array(items) => items.into_iter().for_each(|item| flatten(item, out)),
        Value::Object(mut map) if is_list(&map) => {
            if let Some(Value::Array(items)) = map.remove("items") {
                items.into_iter().for_each(|item| flatten(item, out));
            }
        }
        other => out.push(other),
    }
}

fn is_list(map: &serde_json::Map<String, Value>) -> bool {
    map.get("kind").and_then(Value::as_str).is_some_and(|k| k.ends_with("List"))
        && map.get("items").is_some_and(Value::is_array)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_stay_text_and_booleans_stay_booleans() {
        let text = "y: n\non: off\nyes: no\nreal: true\nnumber: 080\nquoted: \"true\"\n";
        let got = documents(text).unwrap();
        assert_eq!(got[0]["y"], "n");
        assert_eq!(got[0]["on"], "off");
        assert_eq!(got[0]["yes"], "no");
        assert_eq!(got[0]["real"], true);
        assert_eq!(got[0]["quoted"], "true");
    }

    #[test]
    fn documents_and_lists_come_one_by_one() {
        let text = "---\n# nothing\n---\na: 1\n---\nkind: List\nitems:\n- {b: 2}\n- {c: 3}\n";
        assert_eq!(documents(text).unwrap(), [json!({"a": 1}), json!({"b": 2}), json!({"c": 3})]);
        assert_eq!(documents("{\"a\": {\"b\": [1, null]}}").unwrap(), [json!({"a": {"b": [1, null]}})]);
        assert_eq!(documents("").unwrap(), Vec::<Value>::new());
    }

    #[test]
    fn garbage_is_an_error() {
        for text in ["a: [", "\u{0}", "a: b: c", "&a [*a, *a]: {", "a: 1\na: 2"] {
            assert!(documents(text).is_err(), "{text:?}");
        }
        assert!(documents(&"[".repeat(10_000)).is_err());
    }
}
