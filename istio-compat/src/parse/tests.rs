use serde_json::json;

use super::*;

fn virtual_service(spec: Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1beta1",
        "kind": "VirtualService",
        "metadata": { "name": "reviews", "namespace": "prod", "creationTimestamp": null },
        "spec": spec,
    })
}

fn paths(list: &[Finding]) -> Vec<&str> {
    list.iter().map(|f| f.path.as_str()).collect()
}

#[test]
fn names_that_look_like_booleans_survive() {
    let object = crate::yaml::documents(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: y, namespace: n}\n\
         spec:\n  hosts: [on, yes]\n  http:\n  - name: off\n    match:\n    - headers: {y: {exact: n}}\n\
        \x20     sourceLabels: {on: off}\n    route: [{destination: {host: no}}]\n",
    )
    .unwrap()
    .remove(0);
    let Resource::VirtualService(vs) = parse(&object).unwrap().resource else { panic!() };
    assert_eq!((vs.meta.name.as_str(), vs.meta.namespace.as_str()), ("y", "n"));
    assert_eq!(vs.spec.hosts, ["on", "yes"]);
    let rule = &vs.spec.http[0];
    assert_eq!(rule.name, "off");
    assert_eq!(rule.matches[0].headers["y"].as_ref().unwrap().exact.as_deref(), Some("n"));
    assert_eq!(rule.matches[0].source_labels["on"], "off");
    assert_eq!(rule.route[0].destination.as_ref().unwrap().host, "no");
}

#[test]
fn unknown_and_unsupported_fields_are_named_where_they_are() {
    let parsed = parse(&virtual_service(json!({
        "hosts": ["reviews"],
        "gateways": ["mesh", "bookinfo"],
        "http": [
            { "route": [{ "destination": { "host": "reviews" } }] },
            {
                "match": [{ "uri": { "prefix": "/" }, "headers": { "@request.auth.claims.a": {} } }],
                "retries": { "attempts": 1, "retryOn": "retriable-headers" },
                "websocketUpgrade": true,
                "route": [{ "destination": { "host": "reviews", "zone": "z" } }],
            },
        ],
    })))
    .unwrap();
    assert_eq!(
        paths(&parsed.unknown),
        ["spec.http[1].route[0].destination.zone", "spec.http[1].websocketUpgrade"]
    );
    assert_eq!(paths(&parsed.unsupported), ["spec.http[1].match[0].headers", "spec.http[1].retries.retryOn"]);
}

#[test]
fn wrong_types_are_all_named() {
    let error = parse(&virtual_service(json!({
        "hosts": "reviews",
        "http": [{
            "timeout": 5,
            "match": [{ "port": -1, "sourceLabels": { "version": true } }],
            "corsPolicy": { "unmatchedPreflights": "MAYBE" },
        }],
    })))
    .unwrap_err();
    let ParseError::Malformed { problems } = error else { panic!("{error}") };
    assert_eq!(
        paths(&problems),
        [
            "spec.hosts",
            "spec.http[0].corsPolicy.unmatchedPreflights",
            "spec.http[0].match[0].port",
            "spec.http[0].match[0].sourceLabels[\"version\"]",
            "spec.http[0].timeout",
        ]
    );
}

#[test]
fn null_means_not_set() {
    let parsed = parse(&virtual_service(
        json!({ "hosts": ["a"], "http": null, "tcp": [{ "match": null, "route": [] }] }),
    ));
    let Resource::VirtualService(vs) = parsed.unwrap().resource else { panic!() };
    assert!(vs.spec.http.is_empty() && vs.spec.tcp[0].matches.is_empty());
}

#[test]
fn other_kinds_are_told_apart_from_mistakes() {
    for (version, kind) in [("v1", "Service"), ("networking.istio.io/v9", "VirtualService")] {
        let object = json!({ "apiVersion": version, "kind": kind, "metadata": { "name": "x" } });
        assert!(matches!(parse(&object), Err(ParseError::OtherKind { .. })), "{version}");
    }
    let nameless = json!({ "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "spec": {} });
    assert!(matches!(parse(&nameless), Err(ParseError::Malformed { .. })));
}

#[test]
fn what_is_written_is_kept() {
    let spec = json!({
        "hosts": ["a"],
        "http": [{
            "fault": { "abort": { "httpStatus": 0 } },
            "redirect": { "derivePort": "FROM_PROTOCOL_DEFAULT" },
            "route": [{ "destination": { "host": "b", "port": { "number": 80 } }, "weight": 5 }],
        }],
    });
    let Resource::VirtualService(vs) = parse(&virtual_service(spec.clone())).unwrap().resource else {
        panic!()
    };
    assert_eq!(serde_json::to_value(&vs.spec).unwrap(), spec);
}
