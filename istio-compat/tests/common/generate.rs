//! Objects that a schema allows, made from bytes.

#![allow(dead_code, reason = "each test uses a part of it")]

use serde_json::{Map, Value, json};

/// Choices made by bytes that proptest shrinks.
pub(crate) struct Choices<'a>(pub(crate) &'a [u8], pub(crate) usize);

impl Choices<'_> {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        let byte = self.0.get(self.1).copied().unwrap_or(0);
        self.1 += 1;
        usize::from(byte) % n.max(1)
    }

    pub(crate) fn one<'v, T>(&mut self, list: &'v [T]) -> &'v T {
        &list[self.below(list.len())]
    }
}

const WORDS: [&str; 56] = [
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
    "*/*",
    "./reviews.default.svc.cluster.local",
    "~/*",
    "ns1/*.example.com",
    "HTTP",
    "HTTPS",
    "TCP",
    "TLS",
    "a.example.com",
    "unix:///run/socket",
    "127.0.0.1:8080",
    "source.ip",
    "request.headers[x]",
    "https://example.com/keys",
    "app",
    "a/b/c",
];
const DURATIONS: [&str; 7] = ["1s", "0s", "1ms", "1.5s", "-1s", "soon", "9999999h"];

pub(crate) fn value(schema: &Value, c: &mut Choices<'_>, depth: usize) -> Value {
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array) {
        return c.one(allowed).clone();
    }
    match schema["type"].as_str().unwrap() {
        "object" if schema.get("x-kubernetes-preserve-unknown-fields").is_some() => {
            json!({ "any": c.one(&WORDS) })
        }
        "object" => object(schema, c, depth),
        "array" => {
            let n = if depth > 9 { 0 } else { c.below(3) };
            Value::Array((0..n).map(|_| value(&schema["items"], c, depth + 1)).collect())
        }
        "string" if is_duration(schema) => json!(c.one(&DURATIONS)),
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
        // Mostly absent, the deeper the more, as in real objects; what must be there mostly is.
        let required =
            schema.get("required").and_then(Value::as_array).is_some_and(|l| l.iter().any(|n| n == name));
        if if required { c.below(8) > 0 } else { c.below(2 + depth) == 0 } {
            out.insert(name.clone(), value(inner, c, depth + 1));
        }
    }
    Value::Object(out)
}

fn is_duration(schema: &Value) -> bool {
    let rules = schema.get("x-kubernetes-validations").and_then(Value::as_array);
    rules.is_some_and(|rules| {
        rules.iter().any(|r| r["rule"].as_str().is_some_and(|t| t.starts_with("duration(")))
    })
}

/// Changes a good value here and there, to what the schema allows as well.
pub(crate) fn mutate(good: &mut Value, schema: &Value, c: &mut Choices<'_>, depth: usize) {
    match good {
        Value::Object(map) => {
            for (name, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
                match map.get_mut(name) {
                    Some(old) => mutate(old, inner, c, depth + 1),
                    None if c.below(30) == 29 => {
                        map.insert(name.clone(), value(inner, c, depth + 1));
                    }
                    None => {}
                }
            }
        }
        Value::Array(list) => {
            let inner = &schema["items"];
            list.iter_mut().for_each(|item| mutate(item, inner, c, depth + 1));
            if c.below(20) == 19 {
                list.push(value(inner, c, depth + 1));
            }
        }
        other if c.below(24) == 23 => *other = value(schema, c, depth + 1),
        _ => {}
    }
}
