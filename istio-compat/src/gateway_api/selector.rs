//! Label selectors over namespaces.

use super::types::{LabelSelector, Labels};

const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Whether a namespace is selected. An expression that nobody knows selects nothing.
pub(crate) fn selects(selector: &LabelSelector, name: &str, labels: &Labels) -> bool {
    let value = |key: &str| {
        if key == NAME_LABEL { Some(name) } else { labels.get(key).map(String::as_str) }
    };
    selector.match_labels.iter().all(|(k, v)| value(k) == Some(v))
        && selector.match_expressions.iter().all(|e| {
            let found = value(&e.key);
            let listed = found.is_some_and(|f| e.values.iter().any(|v| v == f));
            match e.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn namespaces_are_selected_by_label_and_name() {
        let labels = Labels::from([("team".to_owned(), "a".to_owned())]);
        let ok = |selector: serde_json::Value| {
            selects(&serde_json::from_value(selector).unwrap(), "shop", &labels)
        };
        let expression = |operator: &str, key: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        assert!(ok(json!({})));
        assert!(ok(json!({"matchLabels": {"team": "a", "kubernetes.io/metadata.name": "shop"}})));
        assert!(!ok(json!({"matchLabels": {"team": "b"}})));
        assert!(ok(expression("In", "team", &["a", "b"])) && !ok(expression("In", "none", &["a"])));
        assert!(ok(expression("NotIn", "none", &["a"])) && !ok(expression("NotIn", "team", &["a"])));
        assert!(ok(expression("Exists", "team", &[])) && !ok(expression("DoesNotExist", "team", &[])));
        assert!(!ok(expression("Near", "team", &["a"])));
    }
}
