use serde_json::{Value, json};

use super::*;

fn verdict(kind: &str, spec: Value) -> Verdict {
    let object = json!({
        "apiVersion": "networking.istio.io/v1", "kind": kind,
        "metadata": { "name": "x", "namespace": "shop" }, "spec": spec,
    });
    validate(&crate::parse(&object).unwrap().resource)
}

fn paths(kind: &str, spec: Value) -> Vec<String> {
    verdict(kind, spec).errors.into_iter().map(|f| f.path).collect()
}

/// Errors of one HTTP rule with a route.
fn rule(extra: Value) -> Vec<String> {
    let mut rule = json!({ "route": [{ "destination": { "host": "a" } }] });
    for (key, value) in extra.as_object().unwrap() {
        rule[key] = value.clone();
    }
    paths("VirtualService", json!({ "hosts": ["a"], "http": [rule] }))
}

#[test]
fn every_fault_is_named_where_it_is() {
    let found = paths(
        "VirtualService",
        json!({
            "hosts": ["a b", "b"], "gateways": ["bad gateway"], "exportTo": ["~", "*"],
            "http": [{
                "match": [{ "headers": { "x": { "regex": "(" }, "y": null }, "port": 70000 }],
                "route": [{ "destination": { "host": "*" } }, { "destination": { "host": "a", "port": {} }, "weight": -1 }],
                "timeout": "0s",
                "fault": { "abort": { "httpStatus": 99, "percentage": { "value": 101 } } },
            }],
            "tls": [{ "match": [{ "sniHosts": ["outside.example.com"] }] }],
        }),
    );
    let want = [
        "spec.gateways[0]",
        "spec.hosts[0]",
        "spec.http[0].match[0].headers[\"x\"].regex",
        "spec.http[0].match[0].headers[\"y\"]",
        "spec.http[0].match[0].port",
        "spec.http[0].route[0].destination.host",
        "spec.http[0].route[1].destination.port.number",
        "spec.http[0].route[1].weight",
        "spec.http[0].fault.abort.percentage.value",
        "spec.http[0].fault.abort.httpStatus",
        "spec.http[0].timeout",
        "spec.tls[0].match[0].sniHosts[0]",
        "spec.tls[0].route",
        "spec.exportTo[0]",
        "spec.exportTo",
    ];
    assert_eq!(found, want);
}

#[test]
fn actions_exclude_each_other() {
    let at = |extra: Value| !rule(extra).is_empty();
    assert!(!at(json!({})));
    assert!(at(json!({ "redirect": { "uri": "/" } })));
    assert!(at(json!({ "directResponse": { "status": 200 } })));
    assert!(at(json!({ "delegate": { "name": "d" } })));
    assert!(at(
        json!({ "route": [], "redirect": { "uri": "/" }, "fault": { "delay": { "fixedDelay": "1s" } } })
    ));
    assert!(!at(json!({ "route": [], "redirect": { "uri": "/" } })));
    assert!(at(json!({ "mirror": { "host": "a" }, "mirrors": [{ "destination": { "host": "a" } }] })));
    let twice =
        json!({ "rewrite": { "authority": "a" }, "headers": { "request": { "set": { "Host": "b" } } } });
    assert_eq!(rule(twice), ["spec.http[0]"]);
}

#[test]
fn values_are_checked() {
    for (ok, extra) in [
        (true, json!({ "timeout": "1ms" })),
        (false, json!({ "timeout": "1.0005ms" })),
        (false, json!({ "timeout": "10" })),
        (true, json!({ "retries": { "attempts": 2, "retryOn": "5xx,503" } })),
        (false, json!({ "retries": { "attempts": 2, "retryOn": "5xx, 503" } })),
        (false, json!({ "retries": { "attempts": 0, "retryOn": "5xx" } })),
        (true, json!({ "match": [{ "uri": { "prefix": "" } }] })),
        (false, json!({ "match": [{ "method": { "prefix": "" } }] })),
        (false, json!({ "match": [{ "uri": { "regex": "a".repeat(1025) } }] })),
        (true, json!({ "match": [{ "withoutHeaders": { "x": { "regex": "*" } } }] })),
        (false, json!({ "match": [{ "headers": { "x": { "regex": "*" } } }] })),
        (false, json!({ "match": [{ "headers": { "x": { "exact": "a", "prefix": "a" } } }] })),
        (false, json!({ "match": [{ "headers": { "@request.auth.claims.a": { "exact": "b" } } }] })),
        (true, json!({ "headers": { "response": { "set": { "x": "%START_TIME(%s.%3f)% 5%%" } } } })),
        (false, json!({ "headers": { "response": { "set": { "x": "50% off" } } } })),
        (false, json!({ "headers": { "response": { "remove": [":status"] } } })),
        (false, json!({ "corsPolicy": { "maxAge": "1.5s" } })),
        (false, json!({ "mirror": { "host": "a" }, "mirrorPercentage": { "value": 100.5 } })),
    ] {
        assert_eq!(rule(extra.clone()).is_empty(), ok, "{extra}");
    }
}

#[test]
fn hosts_of_one_object_do_not_overlap() {
    let hosts = |list: Value| {
        paths(
            "VirtualService",
            json!({ "hosts": list, "http": [{ "route": [{ "destination": { "host": "a" } }] }] }),
        )
    };
    assert_eq!(hosts(json!(["a.com", "b.com", "*.c.com"])), [""; 0]);
    assert_eq!(hosts(json!(["a.com", "a.com"])), ["spec.hosts[1]"]);
    assert_eq!(hosts(json!(["a.123"])), ["spec.hosts[0]"]);
    assert_eq!(hosts(json!(["a.b.com", "*.b.com"])), ["spec.hosts[1]"]);
    assert_eq!(hosts(json!(["10.0.0.1"])), [""; 0]);
    assert_eq!(hosts(json!(["*"])), ["spec.hosts[0]"]);
}

#[test]
fn policies_are_checked() {
    let policy = |p: Value| paths("DestinationRule", json!({ "host": "a", "trafficPolicy": p }));
    let hash = |h: Value| policy(json!({ "loadBalancer": { "consistentHash": h } }));
    assert_eq!(policy(json!({})), ["spec.trafficPolicy"]);
    assert!(policy(json!({ "loadBalancer": {} })).is_empty());
    assert!(hash(json!({ "maglev": { "tableSize": 65537 } })).is_empty());
    assert!(!hash(json!({ "maglev": { "tableSize": 65536 } })).is_empty());
    assert!(!hash(json!({ "maglev": {} })).is_empty());
    let attributes = |list: Value| hash(json!({ "httpCookie": { "name": "c", "attributes": list } }));
    assert!(!attributes(json!([{ "name": "a" }, { "name": "a" }])).is_empty());
    assert!(attributes(json!([{ "name": "a" }, { "name": "A" }])).is_empty());
    let distribute = |to: Value| {
        policy(
            json!({ "loadBalancer": { "localityLbSetting": { "distribute": [{ "from": "a/*", "to": to }] } } }),
        )
    };
    assert!(distribute(json!({ "a/x/*": 80, "a/y/*": 20 })).is_empty());
    assert!(!distribute(json!({ "a/x/*": 80 })).is_empty());
    assert!(!distribute(json!({ "a/*": 50, "a/y/*": 50 })).is_empty());
    assert!(!distribute(json!({ "*/x": 100 })).is_empty());
    let subsets = |list: Value| paths("DestinationRule", json!({ "host": "a", "subsets": list }));
    assert_eq!(subsets(json!([{ "name": "v1" }, { "name": "v1" }])), ["spec.subsets[1].name"]);
    let selected = |export_to: Value| {
        let selector = json!({ "matchLabels": { "app": "a" } });
        paths("DestinationRule", json!({ "host": "a", "workloadSelector": selector, "exportTo": export_to }))
    };
    assert!(selected(json!(["."])).is_empty() && selected(json!(["shop"])).is_empty());
    assert!(!selected(json!(["*"])).is_empty());
}

#[test]
fn a_rule_behind_a_catch_all_is_a_warning() {
    let rule = json!({ "route": [{ "destination": { "host": "a" } }] });
    let verdict = verdict("VirtualService", json!({ "hosts": ["a"], "http": [rule, rule] }));
    assert!(verdict.is_valid());
    assert_eq!(verdict.warnings[0].path, "spec.http[1]");
}

#[test]
fn header_values_have_commands_or_doubled_percent_signs() {
    for good in
        ["", "a", "100%%", "%A%", "a %A% b %B%%%", "%A(b c)%", "%A([\"x\", \"y\"])%", "%A( [ \"x\" ] ) %"]
    {
        assert_eq!(text::header_value(good), Ok(()), "{good}");
    }
    for bad in ["%", "a%b", "%A", "%A(b%", "%A([x])%", "%A([\"x\" \"y\"])%", "%A(b) c%", "a\u{1}"] {
        assert!(text::header_value(bad).is_err(), "{bad}");
    }
}

#[test]
fn header_names_and_claims() {
    for good in ["x-a", ":method", "@request.auth.claims.a", "@Request.auth.claims[a][b]", "a_b"] {
        assert_eq!(text::header_name(good), Ok(()), "{good}");
    }
    for bad in ["", "a b", ":other", "@request.auth.claims", "@request.auth.claims.", "é"] {
        assert!(text::header_name(bad).is_err(), "{bad}");
    }
}

#[test]
fn localities_do_not_overlap() {
    let distribute = |from: &[&str]| {
        let list: Vec<Value> = from.iter().map(|f| json!({ "from": f, "to": { "x": 100 } })).collect();
        let lb = json!({ "localityLbSetting": { "distribute": list } });
        paths("DestinationRule", json!({ "host": "a", "trafficPolicy": { "loadBalancer": lb } })).len()
    };
    for good in [&["a", "b"][..], &["a/x", "a/y"], &["a/x/1", "a/x/2", "a/y"], &["a/x*"], &["a/x/*", "b/*"]] {
        assert_eq!(distribute(good), 0, "{good:?}");
    }
    for bad in [
        &["a", "a"][..],
        &["*", "a"],
        &["a", "a/x"],
        &["a/x", "a"],
        &["a/*", "a/x"],
        &["a//x"],
        &["a/*/x"],
        &["*/*"],
        &[""],
    ] {
        assert_eq!(distribute(bad), 1, "{bad:?}");
    }
}

#[test]
fn a_config_map_is_of_the_own_namespace() {
    let tls = |name: &str| {
        let tls = json!({ "mode": "SIMPLE", "credentialName": name });
        paths("DestinationRule", json!({ "host": "a", "trafficPolicy": { "tls": tls } })).is_empty()
    };
    assert!(tls("secret") && tls("configmap://roots") && tls("configmap://shop/roots"));
    assert!(!tls("configmap://other/roots") && !tls("configmap://"));
}
