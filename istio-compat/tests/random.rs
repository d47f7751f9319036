//! Objects that the schema allows never make parsing, validation or translation panic, and what is compiled from an
//! object that validation accepts is never refused by a node.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::LazyLock;

use istio_compat::{
    crd, parse, translate,
    types::{Resource, VirtualService},
    validate,
};
use mesh_api::{Resource as Compiled, check, model};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Choices made by bytes that proptest shrinks.
struct Choices<'a>(&'a [u8], usize);

impl Choices<'_> {
    fn below(&mut self, n: usize) -> usize {
        let byte = self.0.get(self.1).copied().unwrap_or(0);
        self.1 += 1;
        usize::from(byte) % n.max(1)
    }

    fn one<'v, T>(&mut self, list: &'v [T]) -> &'v T {
        &list[self.below(list.len())]
    }
}

const WORDS: [&str; 40] = [
    "",
    "a",
    "reviews",
    "reviews.prod",
    "reviews.default.svc.cluster.local",
    "*",
    "*.example.com",
    "*.com",
    ".",
    "~",
    "mesh",
    "ns/gateway",
    "default",
    "v1",
    "10.0.0.0/8",
    "10.0.0.1",
    "fd00::/8",
    "not a name!",
    "/api",
    "/",
    "GET",
    "^/a(.*)$",
    "(",
    "*",
    "%",
    "%%",
    "%REQ(x)%",
    "host",
    ":authority",
    "x-header",
    "5xx,503",
    "5xx, reset",
    "UNAVAILABLE",
    "region/zone",
    "region/*",
    "é",
    "@request.auth.claims.a",
    "https",
    "FROM",
    "-",
];
const DURATIONS: [&str; 7] = ["1s", "0s", "1ms", "1.5s", "-1s", "soon", "9999999h"];

fn value(schema: &Value, c: &mut Choices<'_>, depth: usize) -> Value {
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array) {
        return c.one(allowed).clone();
    }
    match schema["type"].as_str().unwrap() {
        "object" => object(schema, c, depth),
        "array" => {
            let n = if depth > 9 { 0 } else { c.below(3) };
            Value::Array((0..n).map(|_| value(&schema["items"], c, depth + 1)).collect())
        }
        "string" if schema.get("x-kubernetes-validations").is_some() => json!(c.one(&DURATIONS)),
        "string" => json!(c.one(&WORDS)),
        "boolean" => json!(c.below(2) == 1),
        "number" => json!(c.one(&[0.0, 1.0, 100.0, 100.5, -1.0, 0.0001, 0.00001, 1e300])),
        _ => {
            let least = schema.get("minimum").and_then(Value::as_i64).unwrap_or(-2);
            let most =
                schema.get("maximum").and_then(Value::as_i64).unwrap_or(i64::from(i32::MAX)).max(least);
            json!(c.one(&[0_i64, 1, 2, 80, 200, 302, 503, 599, 65_536, -1]).clamp(&least, &most))
        }
    }
}

fn object(schema: &Value, c: &mut Choices<'_>, depth: usize) -> Value {
    let mut out = Map::new();
    if let Some(inner) = schema.get("additionalProperties") {
        for _ in 0..c.below(3) {
            out.insert((*c.one(&WORDS)).to_owned(), value(inner, c, depth + 1));
        }
    }
    for (name, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        // Mostly absent, the deeper the more, as in real objects.
        if c.below(2 + depth) == 0 {
            out.insert(name.clone(), value(inner, c, depth + 1));
        }
    }
    Value::Object(out)
}

fn spec_schema(kind: &str) -> &'static Value {
    let crd = CRDS.iter().find(|c| c["spec"]["names"]["kind"] == kind).unwrap();
    &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
}

static CRDS: LazyLock<Vec<Value>> = LazyLock::new(crd::all);

fn run(kind: &str, bytes: &[u8]) -> Option<Resource> {
    let spec = value(spec_schema(kind), &mut Choices(bytes, 0), 0);
    let object = json!({
        "apiVersion": "networking.istio.io/v1", "kind": kind,
        "metadata": { "name": "random", "namespace": "default" }, "spec": spec,
    });
    let parsed = parse(&object).expect("what the schema allows is read");
    assert!(parsed.unknown.is_empty(), "{:?}", parsed.unknown);
    let valid = validate::validate(&parsed.resource).is_valid();
    translate_all(&parsed.resource, valid);
    valid.then_some(parsed.resource)
}

fn translate_all(resource: &Resource, valid: bool) {
    let ctx = translate::Context::default();
    let mut service =
        model::Service { host: "reviews.default.svc.cluster.local".to_owned(), ..Default::default() };
    match resource {
        Resource::VirtualService(vs) => {
            let itself = |_: &str, _: &str| -> Option<&VirtualService> { Some(vs) };
            translate::virtual_service(vs, &ctx, &itself);
            service.virtual_hosts =
                translate::virtual_hosts(&service.host, true, &[vs], &ctx, &translate::no_delegates);
        }
        Resource::DestinationRule(dr) => {
            translate::destination_rule(dr, &ctx);
            service.policies = translate::policies(&service.host, "default", &[dr], &ctx);
        }
        _ => {}
    }
    if valid {
        let problems = check(&service.host.clone(), &Compiled::Service(service));
        assert!(problems.is_empty(), "accepted, but nodes refuse it: {problems:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn virtual_services(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        run("VirtualService", &bytes);
    }

    #[test]
    fn destination_rules(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        run("DestinationRule", &bytes);
    }

    /// Any JSON at all is answered, not only what the schema allows.
    #[test]
    fn garbage(text in "[\\PC]{0,200}", kind in "VirtualService|DestinationRule|Service") {
        let metadata = json!({ "name": text });
        let spec = json!({ "hosts": [text], "host": text, "http": [{ "timeout": text, "match": text }], (text.clone()): 1 });
        let _ = parse(&json!({ "apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec }));
        let _ = istio_compat::yaml::documents(&text);
        let _ = istio_compat::duration::parse(&text);
    }
}
