//! docs/values.md, made of the chart's schema and defaults.

use serde_json::Value;

use super::chart::{at, defaults, root, schema};

const HEAD: &str = "\
# Values of charts/mesh

Generated from `charts/mesh/values.schema.json` and `values.yaml`; a test fails when this page is stale:
`REGENERATE=1 cargo test -p mesh-controller --test helm_chart reference` writes it.

A key that is not here is refused by `helm install` and `helm upgrade`, with its name. `false`, `0` and an empty list mean what they say.
Maps are merged with the defaults key by key, as Helm does; `null` takes a key out.
";

/// Compares the page, or writes it with `REGENERATE` set.
pub(crate) fn check() {
    let (file, want) = (root().join("docs/values.md"), page());
    if std::env::var_os("REGENERATE").is_some() {
        std::fs::write(&file, &want).unwrap();
    }
    let have = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        have == want,
        "docs/values.md is stale: REGENERATE=1 cargo test -p mesh-controller --test helm_chart reference"
    );
}

fn page() -> String {
    let (schema, defaults) = (schema(), defaults());
    let mut text = HEAD.to_owned();
    let parts = schema["properties"].as_object().unwrap();
    let (sections, single): (Vec<_>, Vec<_>) = parts.iter().partition(|(_, p)| p["properties"].is_object());
    text.push_str("\n## On their own\n\n");
    text.push_str(TABLE);
    for (key, part) in single {
        row(key, part, &defaults, &mut text);
    }
    for (key, part) in sections {
        text.push_str(&format!("\n## {key}\n\n{}\n\n{TABLE}", part["description"].as_str().unwrap()));
        rows(key, part, &defaults, &mut text);
    }
    text
}

const TABLE: &str = "| value | type | default | |\n|---|---|---|---|\n";

fn rows(path: &str, schema: &Value, defaults: &Value, text: &mut String) {
    for (key, part) in schema["properties"].as_object().unwrap() {
        let path = format!("{path}.{key}");
        if part["properties"].is_object() {
            let about = part["description"].as_str().unwrap();
            text.push_str(&format!("| **`{path}`** | | | {about} |\n"));
            rows(&path, part, defaults, text);
        } else {
            row(&path, part, defaults, text);
        }
    }
}

fn row(path: &str, part: &Value, defaults: &Value, text: &mut String) {
    let default = at(defaults, path).map_or_else(String::new, |v| format!("`{v}`"));
    let about = part["description"].as_str().unwrap().replace('|', "\\|");
    text.push_str(&format!("| `{path}` | {} | {default} | {about} |\n", kind(part)));
    // What an element of a list is made of.
    if let Some(fields) = part["items"]["properties"].as_object() {
        for (key, field) in fields {
            let about = field["description"].as_str().unwrap();
            text.push_str(&format!("| `{path}[].{key}` | {} | | {about} |\n", kind(field)));
        }
    }
}

/// What may stand there.
fn kind(part: &Value) -> String {
    if let Some(values) = part["enum"].as_array() {
        let all: Vec<String> =
            values.iter().map(|v| format!("`{}`", v.as_str().unwrap_or_default())).collect();
        return all.join(", ");
    }
    let name = match &part["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        kind => kind.as_str().unwrap_or_default().to_owned(),
    };
    match (part["minimum"].as_i64(), part["maximum"].as_i64()) {
        (Some(low), Some(high)) => format!("{name}, {low} to {high}"),
        _ if name == "array" => match part["items"]["enum"].as_array() {
            Some(_) => format!("list of {}", kind(&part["items"])),
            None => "list".to_owned(),
        },
        _ => name.replace("object", "map"),
    }
}
