//! The reasons that `simulate` gives, condition by condition.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use meshctl::simulate::{Request, World, WorldOptions};
use serde_json::{Value, json};

/// Why the only condition of a rule is not met by a request.
fn reason(condition: &str, request: Value) -> String {
    let text = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: reviews, namespace: default}}, \
         spec: {{clusterIP: 10.96.0.1, ports: [{{name: http, port: 80}}]}}}}\n---\n\
         {{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: vs, namespace: default}}, \
         spec: {{hosts: [reviews], http: [{{match: [{condition}], route: [{{destination: {{host: reviews}}}}]}}, \
         {{route: [{{destination: {{host: reviews}}}}]}}]}}}}"
    );
    let world = World::new(&istio_compat::yaml::documents(&text).unwrap(), &WorldOptions::default());
    let request: Request = serde_json::from_value(request).unwrap();
    let why = world.simulate(&request).unwrap().why;
    why.iter()
        .find_map(|w| w.strip_prefix("http[0] match[0]: "))
        .unwrap_or_else(|| panic!("{why:?}"))
        .to_owned()
}

#[test]
fn each_condition_says_what_it_misses() {
    let with = |more: Value| {
        let mut request =
            json!({ "host": "reviews", "path": "/a?k=v", "source": { "namespace": "default" } });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    for (condition, request, want) in [
        ("{uri: {prefix: /b}}", with(json!({})), "no, path \"/a\" is not with prefix \"/b\""),
        ("{uri: {regex: /b.*}}", with(json!({})), "no, path \"/a\" is not like"),
        ("{uri: {exact: /A}, ignoreUriCase: true}", with(json!({})), "yes"),
        ("{method: {exact: POST}}", with(json!({})), "no, method \"GET\" is not exactly \"POST\""),
        (
            "{authority: {exact: other}}",
            with(json!({})),
            "no, authority \"reviews\" is not exactly \"other\"",
        ),
        ("{headers: {x: {}}}", with(json!({})), "no, header x is not present"),
        ("{headers: {x: {}}}", with(json!({ "headers": { "X": "1" } })), "yes"),
        (
            "{withoutHeaders: {x: {}}}",
            with(json!({ "headers": { "x": ["1", "2"] } })),
            "no, header x is present",
        ),
        ("{queryParams: {k: {exact: w}}}", with(json!({})), "no, query parameter k is not exactly \"w\""),
        ("{queryParams: {k: {exact: v}}}", with(json!({})), "yes"),
        ("{port: 81}", with(json!({})), "no, port is 80, not 81"),
        ("{sourceNamespace: prod}", with(json!({})), "no, client is in namespace default, not prod"),
        ("{sourceLabels: {app: a}}", with(json!({})), "no, client has no label app=a"),
        (
            "{sourceLabels: {app: a}}",
            with(json!({ "source": { "namespace": "default", "labels": { "app": "a" } } })),
            "yes",
        ),
        ("{gateways: [other/edge]}", with(json!({})), "no, not for mesh"),
    ] {
        let got = reason(condition, request.clone());
        assert!(got.starts_with(want), "{condition} {request}: {got}");
    }
}
