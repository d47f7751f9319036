//! HTTP conditions that no request ever reaches, because an earlier one takes all of theirs.

use std::collections::BTreeMap;

use super::Verdict;
use crate::types::{HttpMatchRequest, HttpRoute, StringMatch};

/// Every pair is looked at; above this, none is.
const MAX_CONDITIONS: usize = 2_000;

pub(super) fn check(rules: &[HttpRoute], out: &mut Verdict) {
    if rules.iter().map(|r| r.matches.len()).sum::<usize>() > MAX_CONDITIONS {
        return;
    }
    let mut earlier: Vec<(String, &HttpMatchRequest)> = Vec::new();
    let mut catch_all = None;
    for (i, rule) in rules.iter().enumerate() {
        let path = format!("spec.http[{i}]");
        if let Some(end) = catch_all {
            out.warn(path, format!("is never used: spec.http[{end}] takes every request"));
            continue;
        }
        if rule.matches.is_empty() {
            catch_all = Some(i);
        }
        for (j, m) in rule.matches.iter().enumerate() {
            let path = format!("{path}.match[{j}]");
            if let Some((by, _)) = earlier.iter().find(|(_, e)| covers(e, m)) {
                out.warn(path.as_str(), format!("is never used: {by} takes the same requests"));
            }
            earlier.push((path, m));
        }
    }
}

/// Whether every request that satisfies `b` satisfies `a`. Says no when it is not plain to see.
fn covers(a: &HttpMatchRequest, b: &HttpMatchRequest) -> bool {
    fn same<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
        a.is_none() || a == b
    }
    fn part<V: PartialEq>(a: &BTreeMap<String, V>, b: &BTreeMap<String, V>) -> bool {
        a.iter().all(|(k, v)| b.get(k) == Some(v))
    }
    covers_uri(a, b)
        && same(&a.scheme, &b.scheme)
        && same(&a.method, &b.method)
        && same(&a.authority, &b.authority)
        && part(&a.headers, &b.headers)
        && part(&a.without_headers, &b.without_headers)
        && part(&a.query_params, &b.query_params)
        && (a.port == 0 || a.port == b.port)
        && part(&a.source_labels, &b.source_labels)
        && (a.source_namespace.is_empty() || a.source_namespace == b.source_namespace)
        && a.gateways == b.gateways
}

fn covers_uri(a: &HttpMatchRequest, b: &HttpMatchRequest) -> bool {
    let Some(wide) = &a.uri else { return true };
    let Some(narrow) = &b.uri else { return false };
    if wide == narrow {
        return a.ignore_uri_case || !b.ignore_uri_case;
    }
    let starts_with = |prefix: &str, m: &StringMatch| {
        let value = m.prefix.as_deref().or(m.exact.as_deref());
        value.is_some_and(|v| v.starts_with(prefix))
    };
    !b.ignore_uri_case && wide.prefix.as_deref().is_some_and(|prefix| starts_with(prefix, narrow))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn warned(matches: Value) -> Vec<String> {
        let rule = |m: &Value| serde_json::from_value(json!({ "match": m })).unwrap();
        let rules: Vec<HttpRoute> = matches.as_array().unwrap().iter().map(rule).collect();
        let mut out = Verdict::default();
        check(&rules, &mut out);
        out.warnings.into_iter().map(|f| f.path).collect()
    }

    #[test]
    fn a_wider_condition_hides_a_narrower_one_behind_it() {
        let uri = |p: &str| json!({ "uri": { "prefix": p } });
        assert_eq!(warned(json!([[uri("/a")], [uri("/ab")]])), ["spec.http[1].match[0]"]);
        assert_eq!(warned(json!([[uri("/a"), uri("/a")]])), ["spec.http[0].match[1]"]);
        assert_eq!(warned(json!([[uri("/a")], [{ "uri": { "exact": "/a/b" }, "port": 80 }]])).len(), 1);
        assert_eq!(
            warned(json!([[{ "headers": { "x": {} } }], [{ "headers": { "x": {}, "y": {} } }]])).len(),
            1
        );
        assert_eq!(warned(json!([[], [uri("/a")], []])), ["spec.http[1]", "spec.http[2]"]);
    }

    #[test]
    fn what_may_be_reached_is_left_alone() {
        let uri = |p: &str| json!({ "uri": { "prefix": p } });
        for list in [
            json!([[uri("/ab")], [uri("/a")]]),
            json!([[{ "uri": { "prefix": "/a" }, "port": 80 }], [uri("/a")]]),
            json!([[{ "uri": { "regex": "/a.*" } }], [{ "uri": { "regex": "/ab" } }]]),
            json!([[uri("/a")], [{ "uri": { "prefix": "/a" }, "ignoreUriCase": true }]]),
            json!([[{ "sourceLabels": { "app": "a" } }], [{ "sourceLabels": { "app": "b" } }]]),
            json!([[uri("/a")], [{ "uri": { "prefix": "/a" }, "gateways": ["edge"] }]]),
            json!([[{ "headers": { "x": {} } }], [{ "headers": { "x": { "exact": "a" } } }]]),
        ] {
            assert_eq!(warned(list.clone()), [""; 0], "{list}");
        }
    }
}
