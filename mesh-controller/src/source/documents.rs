//! Manifest files to objects: multi-document YAML or JSON, lists unpacked.

use serde_json::Value;

/// A manifest folder holds thousands of objects, not gigabytes.
pub(super) const MAX_FILE_BYTES: u64 = 32 << 20;

/// The objects of a file, in order. Empty documents are skipped.
pub(super) fn parse(text: &str, is_json: bool) -> Result<Vec<Value>, String> {
    let documents: Vec<Value> = if is_json {
        let stream = serde_json::Deserializer::from_str(text).into_iter();
        stream.collect::<Result<_, _>>().map_err(|e| e.to_string())?
    } else {
        istio_compat::yaml::values(text).map_err(|e| first_lines(&e.to_string()))?
    };
    let mut out = Vec::new();
    for (i, document) in documents.into_iter().enumerate() {
        unpack(document, &mut out).map_err(|reason| format!("document {}: {reason}", i + 1))?;
    }
    Ok(out)
}

fn unpack(value: Value, out: &mut Vec<Value>) -> Result<(), String> {
    let Value::Object(mut map) = value else {
        return if value.is_null() { Ok(()) } else { Err("is not an object".to_owned()) };
    };
    let kind = map.get("kind").and_then(Value::as_str).unwrap_or_default();
    if kind.is_empty() {
        return Err("has no kind".to_owned());
    }
    if kind == "List" || (kind.ends_with("List") && map.contains_key("items")) {
        let Some(Value::Array(items)) = map.remove("items") else {
            return Err("is a list without items".to_owned());
        };
        return items.into_iter().try_for_each(|item| unpack(item, out));
    }
    out.push(Value::Object(map));
    Ok(())
}

/// The parser appends an excerpt of the source; the log wants the reason.
fn first_lines(text: &str) -> String {
    text.lines().take(2).collect::<Vec<_>>().join(" ").chars().take(500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_are_unpacked() {
        let yaml = "kind: A\n---\n# nothing\n---\nkind: List\nitems:\n- kind: B\n- kind: C\n";
        let kinds =
            |v: Vec<Value>| v.iter().map(|o| o["kind"].as_str().unwrap().to_owned()).collect::<String>();
        assert_eq!(kinds(parse(yaml, false).unwrap()), "ABC");
        assert_eq!(kinds(parse(r#"{"kind":"A"} {"kind":"B"}"#, true).unwrap()), "AB");
        assert!(parse("", false).unwrap().is_empty());
    }

    #[test]
    fn names_stay_text_and_a_file_may_hold_many_objects() {
        assert_eq!(parse("kind: A\nmetadata: {name: on}\n", false).unwrap()[0]["metadata"]["name"], "on");
        let many = "---\nkind: Service\nmetadata: {name: a}\n".repeat(5_000);
        assert_eq!(parse(&many, false).unwrap().len(), 5_000);
    }

    #[test]
    fn what_is_no_manifest_is_refused_with_a_reason() {
        assert!(parse("kind: [", false).is_err());
        assert_eq!(parse("kind: A\n---\njust text\n", false).unwrap_err(), "document 2: is not an object");
        assert_eq!(parse("a: 1", false).unwrap_err(), "document 1: has no kind");
        assert!(parse("{\"kind\": ", true).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_stops_the_reader(text in "[ -~\n]{0,300}", json in proptest::prelude::any::<bool>()) {
            parse(&text, json).ok();
            parse(&format!("kind: A\n{text}\n---\n{text}"), json).ok();
        }
    }
}
