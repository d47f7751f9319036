//! Replays the route vectors that the folder named by `CONFORMANCE_VECTORS` holds: what can be told without traffic.
//! How an endpoint or a client behaves (retries that happen, latency) is left to the tests that send requests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/vectors.rs"]
mod support;

use std::collections::BTreeMap;

use meshctl::simulate::{Answer, Request, World, WorldOptions};
use serde_json::{Value, json};
use support::{Report, vectors, world_objects};

#[test]
fn http() {
    let Some(dir) = vectors() else { return };
    let world = world_objects(&dir);
    let mut report = Report::new("routes");
    for case in support::cases(&dir, "routes/http.json") {
        let id = case["id"].as_str().unwrap();
        report.case(id, &http_case(&world, &case), case.get("note").is_some());
    }
    report.finish();
}

#[test]
fn l4() {
    let Some(dir) = vectors() else { return };
    let world = world_objects(&dir);
    let mut report = Report::new("l4");
    for case in support::cases(&dir, "routes/l4.json") {
        let id = case["id"].as_str().unwrap();
        report.case(id, &l4_case(&world, &case), case.get("note").is_some());
    }
    report.finish();
}

fn config(case: &Value) -> &Vec<Value> {
    case["config"].as_array().unwrap()
}

fn mesh(world: &[Value], case: &Value) -> World {
    let settings = support::mesh_config(case);
    World::new(world.iter().chain(config(case)).chain(&settings), &WorldOptions::default())
}

fn request(case: &Value) -> Request {
    let r = &case["request"];
    let client = &case["client"];
    serde_json::from_value(json!({
        "protocol": if r["headers"]["content-type"] == "application/grpc" { "grpc" } else { "http" },
        "host": r["authority"], "port": client["port"], "method": r["method"], "path": r["path"],
        "headers": r["headers"],
        "gateway": gateway(case),
        "source": { "namespace": client["namespace"], "labels": client["labels"] },
    }))
    .unwrap()
}

/// The first Gateway that the client's workload runs, or the mesh.
fn gateway(case: &Value) -> String {
    if case["client"]["type"] != "gateway" {
        return "mesh".to_owned();
    }
    let labels = &case["client"]["labels"];
    let selects = |o: &&Value| {
        o["kind"] == "Gateway"
            && o["spec"]["selector"].as_object().into_iter().flatten().all(|(k, v)| labels.get(k) == Some(v))
    };
    let name = |o: &Value| {
        format!(
            "{}/{}",
            o["metadata"]["namespace"].as_str().unwrap(),
            o["metadata"]["name"].as_str().unwrap()
        )
    };
    config(case).iter().find(selects).map_or("none/none".to_owned(), name)
}

/// Differences between what is expected and what comes out.
fn http_case(world: &[Value], case: &Value) -> Vec<String> {
    let expected = &case["expected"];
    let mesh = mesh(world, case);
    let answer = mesh.simulate(&request(case)).unwrap();
    let mut faults = Faults::default();
    let action = expected["action"].as_str().unwrap();
    let outcome = match action {
        "route" | "weighted" | "no_healthy_upstream" | "timeout" => "forward",
        "redirect" => "redirect",
        "direct_response" | "cors_preflight" => "direct_response",
        "fault_abort" => "abort",
        "no_route" | "cluster_not_found" => "not_found",
        other => other,
    };
    faults.same("outcome", &json!(outcome), &json!(answer.outcome));
    if !matches!(outcome, "forward" | "passthrough") {
        let status = answer.redirect.as_ref().map(|r| r.code).or(answer.status);
        faults.same("status", &expected["status"], &json!(status));
    }
    if let Some(want) = expected.get("destination") {
        faults.same("destination", want, &json!(answer.destination));
    }
    if let Some(want) = expected.get("destinations") {
        faults.same("destinations", want, &json!(answer.destinations));
    }
    if let Some(want) = expected.get("location") {
        faults.same("location", want, &json!(answer.redirect.as_ref().map(|r| &r.location)));
    }
    if let (Some(want), "direct_response" | "abort", false) =
        (expected.get("body"), outcome, case["request"]["method"] == "HEAD")
    {
        faults.same("body", want, &json!(answer.body));
    }
    upstream(&mut faults, case, &answer);
    response(&mut faults, case, &answer);
    policy(&mut faults, expected, &answer);
    mirrors(&mut faults, expected, &answer);
    if !faults.0.is_empty() {
        faults.0.push(format!("why: {}", answer.why.join("; ")));
        faults.0.push(format!("mesh: {}", mesh.problems().join("; ")));
    }
    faults.0
}

#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn same(&mut self, what: &str, want: &Value, got: &Value) {
        if want != got {
            self.0.push(format!("{what}: expected {want}, got {got}"));
        }
    }
}

/// Headers after an edit: removals, then what is set, then what is appended.
fn edited(mut headers: BTreeMap<String, Vec<String>>, edit: &Value) -> BTreeMap<String, Vec<String>> {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    for name in edit["remove"].as_array().into_iter().flatten() {
        headers.remove(&text(name));
    }
    for (name, value) in edit["set"].as_object().into_iter().flatten() {
        headers.insert(name.clone(), vec![text(value)]);
    }
    for (name, values) in edit["add"].as_object().into_iter().flatten() {
        headers.entry(name.clone()).or_default().extend(values.as_array().unwrap().iter().map(text));
    }
    headers
}

fn lines(headers: &Value) -> BTreeMap<String, Vec<String>> {
    let values = |v: &Value| match v {
        Value::Array(list) => list.iter().map(|v| v.as_str().unwrap().to_owned()).collect(),
        v => vec![v.as_str().unwrap().to_owned()],
    };
    headers.as_object().into_iter().flatten().map(|(n, v)| (n.to_ascii_lowercase(), values(v))).collect()
}

fn compare(
    faults: &mut Faults,
    what: &str,
    want: &Value,
    absent: &Value,
    got: &BTreeMap<String, Vec<String>>,
) {
    for (name, want) in lines(want) {
        let name = name.to_ascii_lowercase();
        faults.same(&format!("{what} header {name}"), &json!(want), &json!(got.get(&name)));
    }
    for name in absent.as_array().into_iter().flatten() {
        let name = name.as_str().unwrap().to_ascii_lowercase();
        faults.same(&format!("{what} header {name}"), &Value::Null, &json!(got.get(&name)));
    }
}

fn upstream(faults: &mut Faults, case: &Value, answer: &Answer) {
    let want = &case["expected"]["upstream"];
    let Some(edit) = &answer.request else { return };
    for (key, got) in [("path", &edit.path), ("authority", &edit.authority)] {
        if let Some(want) = want.get(key) {
            faults.same(key, want, &json!(got));
        }
    }
    let got = edited(lines(&case["request"]["headers"]), &json!(edit.headers));
    let mut want_headers = want["headers"].clone();
    if let Some(map) = want_headers.as_object_mut() {
        // Names that a data plane adds.
        map.retain(|name, _| !name.starts_with("x-envoy-"));
    }
    compare(faults, "upstream", &want_headers, &want["absent"], &got);
}

fn response(faults: &mut Faults, case: &Value, answer: &Answer) {
    let expected = &case["expected"];
    let mut got = lines(&case["upstream"]["response_headers"]);
    if let Some(edit) = &answer.response {
        got = edited(got, &json!(edit.headers));
    }
    for (name, value) in answer.cors.iter().flat_map(|c| &c.headers) {
        got.insert(name.clone(), vec![value.clone()]);
    }
    if let Some(status) = answer.grpc_status {
        got.insert("grpc-status".to_owned(), vec![status.to_string()]);
    }
    compare(faults, "response", &expected["response_headers"], &expected["response_absent"], &got);
}

fn policy(faults: &mut Faults, expected: &Value, answer: &Answer) {
    let Some(want) = expected.get("policy") else { return };
    if let Some(timeout) = want.get("timeout_ms") {
        faults.same("timeout", timeout, &json!(millis(answer.timeout.as_deref())));
    }
    let Some(retries) = want.get("retries") else { return };
    let Some(got) = &answer.retries else { return faults.same("retries", retries, &Value::Null) };
    faults.same("attempts", &retries["attempts"], &json!(got.attempts));
    let sorted = |v: &Value| {
        let mut list: Vec<String> = v
            .as_array()
            .into_iter()
            .flatten()
            .map(|v| v.as_str().map_or(v.to_string(), str::to_owned))
            .collect();
        list.sort();
        list
    };
    if retries.get("retryOn").is_some() {
        let mut want = sorted(&retries["retryOn"]);
        want.extend(sorted(&retries["retriableStatusCodes"]));
        want.sort();
        faults.same("retryOn", &json!(want), &json!(sorted(&json!(got.retry_on))));
    }
    if let Some(limit) = retries.get("perTryTimeout_ms") {
        faults.same("perTryTimeout", limit, &json!(millis(got.per_try_timeout.as_deref())));
    }
    if let Some(backoff) = retries.get("backoff_ms") {
        faults.same("backoff", backoff, &json!(millis(Some(&got.backoff))));
    }
}

fn millis(text: Option<&str>) -> i64 {
    text.map_or(0, |t| istio_compat::duration::parse(t).unwrap() / 1_000_000)
}

fn mirrors(faults: &mut Faults, expected: &Value, answer: &Answer) {
    let Some(want) = expected.get("mirrors").and_then(Value::as_array) else { return };
    let got: Vec<Value> = answer
        .mirrors
        .iter()
        .map(|m| {
            let mut value = json!(m.target);
            value["percent"] = json!(m.percentage);
            value
        })
        .collect();
    let plain = |list: &[Value]| -> Vec<Value> {
        let number = |mut v: Value| {
            v["percent"] = json!(v["percent"].as_f64());
            v
        };
        list.iter().cloned().map(number).collect()
    };
    faults.same("mirrors", &json!(plain(want)), &json!(plain(&got)));
}

fn l4_case(world: &[Value], case: &Value) -> Vec<String> {
    let connection = &case["connection"];
    let sni = connection.get("sni");
    let request: Request = serde_json::from_value(json!({
        "protocol": if sni.is_some() { "tls" } else { "tcp" },
        "host": sni.cloned().unwrap_or(json!("")), "port": connection["port"], "address": connection["address"],
        "gateway": gateway(case),
        "source": { "namespace": case["client"]["namespace"], "labels": case["client"]["labels"] },
    }))
    .unwrap();
    let answer = mesh(world, case).simulate(&request).unwrap();
    let mut faults = Faults::default();
    let expected = &case["expected"];
    let outcome =
        if expected["action"] == "route" { "forward" } else { expected["action"].as_str().unwrap() };
    faults.same("outcome", &json!(outcome), &json!(answer.outcome));
    if let Some(want) = expected.get("destinations") {
        let mut got = json!(answer.destinations);
        if answer.destinations.is_empty() {
            got = json!([answer.destination]);
            got[0]["weight"] = json!(1);
        }
        faults.same("destinations", want, &got);
    }
    faults.0
}
