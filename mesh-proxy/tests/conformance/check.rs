//! What came out of a case against what was expected.

use std::{collections::BTreeMap, time::Duration};

use http::{HeaderMap, Request};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    mesh::{Mesh, Place},
    upstream::{Seen, collect, full},
    world::client1,
};

/// Differences between what was expected and what came.
#[derive(Default)]
pub struct Faults(pub Vec<String>);

impl Faults {
    fn same(&mut self, what: &str, want: &Value, got: &Value) {
        if want != got {
            self.0.push(format!("{what}: expected {want}, got {got}"));
        }
    }

    fn holds(&mut self, ok: bool, text: impl FnOnce() -> String) {
        if !ok {
            self.0.push(text());
        }
    }
}

struct Got {
    status: u16,
    headers: HeaderMap,
    body: String,
    took: Duration,
}

/// Sends the request of a case on a new connection.
async fn send(mesh: &Mesh, case: &Value) -> Result<Got, String> {
    let r = &case["request"];
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let mut request = Request::builder().method(text(&r["method"]).as_str()).uri(text(&r["path"]));
    let headers = request.headers_mut().ok_or("the request cannot be built")?;
    headers.insert("host", text(&r["authority"]).parse().unwrap());
    for (name, value) in r["headers"].as_object().into_iter().flatten() {
        let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        for v in values {
            headers.append(name.parse::<http::HeaderName>().unwrap(), text(&v).parse().unwrap());
        }
    }
    let request = request.body(full("")).map_err(|e| e.to_string())?;
    let mut client = client1(mesh.dial().await).await;
    let start = std::time::Instant::now();
    let answer = tokio::time::timeout(Duration::from_secs(20), client.send_request(request)).await;
    let response = answer.map_err(|_| "no answer in 20 s")?.map_err(|e| e.to_string())?;
    let took = start.elapsed();
    let (parts, body) = response.into_parts();
    let body = String::from_utf8_lossy(&collect(body).await.0).into_owned();
    Ok(Got { status: parts.status.as_u16(), headers: parts.headers, body, took })
}

fn reached(mesh: &Mesh) -> Vec<(&Place, Vec<Seen>)> {
    mesh.places
        .iter()
        .filter_map(|p| {
            let seen = p.http.as_ref()?.seen.lock().unwrap().clone();
            (!seen.is_empty()).then_some((p, seen))
        })
        .collect()
}

/// Whether a place serves a destination.
fn serves(mesh: &Mesh, place: &Place, to: &Value) -> bool {
    let host = to["host"].as_str().unwrap();
    let subset = to["subset"].as_str().unwrap_or_default();
    let in_subset = subset.is_empty()
        || mesh
            .subsets
            .get(&(host.to_owned(), subset.to_owned()))
            .is_some_and(|labels| labels.iter().all(|(k, v)| place.labels.get(k) == Some(v)));
    place.host == host && u64::from(place.port) == to["port"].as_u64().unwrap() && in_subset
}

fn describe(place: &Place) -> String {
    format!("{}:{} {:?}", place.host, place.port, place.labels)
}

pub async fn http(mesh: &Mesh, case: &Value) -> Faults {
    let mut faults = Faults::default();
    let expected = &case["expected"];
    if let Some(wanted) = expected["destinations"].as_array() {
        weighted(mesh, case, wanted, &mut faults).await;
        return faults;
    }
    let got = match send(mesh, case).await {
        Ok(got) => got,
        Err(e) => {
            faults.0.push(e);
            return faults;
        }
    };
    if let Some(status) = expected.get("status") {
        faults.same("status", status, &json!(got.status));
    }
    destination(mesh, expected, &mut faults);
    if let Some(location) = expected.get("location") {
        faults.same("location", location, &json!(value_of(&got.headers, "location")));
    }
    let not_head = case["request"]["method"] != "HEAD";
    if let Some(body) = expected.get("body").filter(|_| not_head) {
        faults.same("body", body, &json!(got.body));
    }
    compare(
        &mut faults,
        "response",
        &expected["response_headers"],
        &expected["response_absent"],
        &got.headers,
    );
    upstream(mesh, expected, &mut faults);
    latency(expected, &got, &mut faults);
    mirrors(mesh, expected, &mut faults).await;
    flags(mesh, expected, &mut faults).await;
    faults
}

fn destination(mesh: &Mesh, expected: &Value, faults: &mut Faults) {
    let mirrored: Vec<&str> =
        expected["mirrors"].as_array().into_iter().flatten().map(|m| m["host"].as_str().unwrap()).collect();
    let reached = reached(mesh);
    let names: Vec<_> = reached.iter().map(|(p, _)| describe(p)).collect();
    match expected["action"].as_str().unwrap() {
        "passthrough" => {
            let there = mesh.stranger.as_ref().is_some_and(|s| s.requests() > 0);
            faults.holds(there && reached.is_empty(), || {
                format!("expected the address that was called, reached {names:?}, stranger: {there}")
            });
        }
        "route" | "timeout" => {
            let Some(to) = expected.get("destination") else { return };
            let right = reached.iter().any(|(p, _)| serves(mesh, p, to));
            let wrong =
                reached.iter().find(|(p, _)| !serves(mesh, p, to) && !mirrored.contains(&p.host.as_str()));
            faults.holds(right && wrong.is_none(), || format!("expected {to}, reached {names:?}"));
        }
        _ => faults.holds(reached.is_empty(), || format!("expected no upstream, reached {names:?}")),
    }
    let attempts: usize = reached.iter().map(|(_, seen)| seen.len()).sum();
    if let Some(want) = expected.get("attempts") {
        faults.same("attempts", want, &json!(attempts));
    }
    if let Some(most) = expected["attempts_max"].as_u64() {
        faults.holds(attempts as u64 <= most, || format!("{attempts} attempts, at most {most} expected"));
    }
}

/// As many requests as there are steps of the dice, so that shares are exact.
async fn weighted(mesh: &Mesh, case: &Value, wanted: &[Value], faults: &mut Faults) {
    for _ in 0..100 {
        match send(mesh, case).await {
            Ok(got) => faults.same("status", &case["expected"]["status"], &json!(got.status)),
            Err(e) => faults.0.push(e),
        }
        if !faults.0.is_empty() {
            return;
        }
    }
    let total: u64 = wanted.iter().map(|d| d["weight"].as_u64().unwrap()).sum();
    let mut counted = 0;
    for to in wanted {
        let got: usize =
            reached(mesh).iter().filter(|(p, _)| serves(mesh, p, to)).map(|(_, seen)| seen.len()).sum();
        counted += got;
        let want = to["weight"].as_u64().unwrap() * 100 / total;
        faults.holds(got as u64 == want, || format!("expected {want} of 100 at {to}, got {got}"));
    }
    faults.holds(counted == 100, || format!("{counted} of 100 requests reached an expected destination"));
}

fn value_of(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|v| v.to_str().unwrap().to_owned())
}

fn values(v: &Value) -> Vec<String> {
    match v {
        Value::Array(list) => list.iter().map(|v| v.as_str().unwrap().to_owned()).collect(),
        Value::String(text) => vec![text.clone()],
        other => vec![other.to_string()],
    }
}

fn compare(faults: &mut Faults, what: &str, want: &Value, absent: &Value, got: &HeaderMap) {
    let all = |name: &str| -> Vec<String> {
        got.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).collect()
    };
    for (name, want) in want.as_object().into_iter().flatten() {
        faults.same(&format!("{what} header {name}"), &json!(values(want)), &json!(all(name)));
    }
    for name in absent.as_array().into_iter().flatten() {
        let name = name.as_str().unwrap();
        faults.holds(!got.contains_key(name), || {
            format!("{what} header {name}: expected none, got {:?}", all(name))
        });
    }
}

/// What the upstream saw of the last try.
fn upstream(mesh: &Mesh, expected: &Value, faults: &mut Faults) {
    let Some(want) = expected.get("upstream") else { return };
    let reached = reached(mesh);
    let stranger = mesh.stranger.as_ref().filter(|s| s.requests() > 0).map(|s| s.last());
    let Some(seen) = reached.iter().find_map(|(_, seen)| seen.last().cloned()).or(stranger) else {
        faults.0.push("no upstream saw the request".to_owned());
        return;
    };
    if let Some(path) = want.get("path") {
        faults.same("upstream path", path, &json!(seen.path));
    }
    if let Some(authority) = want.get("authority") {
        faults.same("upstream authority", authority, &json!(seen.authority));
    }
    compare(faults, "upstream", &want["headers"], &want["absent"], &seen.headers);
}

fn latency(expected: &Value, got: &Got, faults: &mut Faults) {
    let took = got.took.as_millis() as u64;
    if let Some(least) = expected["min_latency_ms"].as_u64() {
        faults.holds(took >= least, || format!("answered after {took} ms, at least {least} expected"));
    }
    if let Some(most) = expected["max_latency_ms"].as_u64() {
        faults.holds(took <= most, || format!("answered after {took} ms, at most {most} expected"));
    }
}

async fn mirrors(mesh: &Mesh, expected: &Value, faults: &mut Faults) {
    for host in expected["mirror_received"].as_array().into_iter().flatten() {
        let host = host.as_str().unwrap();
        let mut there = false;
        for _ in 0..200 {
            there = reached(mesh).iter().any(|(p, _)| p.host == host);
            if there {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        faults.holds(there, || format!("no copy reached {host}"));
    }
}

/// Flags are Envoy's; the metric tells them.
async fn flags(mesh: &Mesh, expected: &Value, faults: &mut Faults) {
    let wanted: Vec<String> = match (&expected["responseFlag"], &expected["responseFlags"]) {
        (Value::String(one), _) => vec![one.clone()],
        (_, Value::Array(_)) => values(&expected["responseFlags"]),
        _ => return,
    };
    for _ in 0..100 {
        let text = mesh.world.scrape();
        let said: BTreeMap<_, _> = text
            .lines()
            .filter(|l| l.starts_with("istio_requests_total{"))
            .filter_map(|l| l.split("response_flags=\"").nth(1)?.split('"').next())
            .map(|f| (f.to_owned(), f.split(',').map(str::to_owned).collect::<Vec<_>>()))
            .collect();
        if said.values().any(|got| wanted.iter().all(|w| got.contains(w))) {
            return;
        }
        if !said.is_empty() {
            faults.same("response flags", &json!(wanted), &json!(said.keys().collect::<Vec<_>>()));
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    faults.0.push(format!("response flags: expected {wanted:?}, no request was counted"));
}

pub async fn l4(mesh: &Mesh, case: &Value) -> Faults {
    let mut faults = Faults::default();
    let expected = &case["expected"];
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..100 {
        let mut stream = mesh.world.dial(&mesh.called.to_string()).await;
        if let Some(sni) = case["connection"]["sni"].as_str() {
            stream.write_all(&client_hello(sni)).await.unwrap();
        }
        let mut text = String::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut text)).await;
        faults.holds(read.is_ok(), || "nothing was heard in 10 s".to_owned());
        let mut parts = text.trim().split('|');
        let (host, port) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        *counts.entry(format!("{host}:{port}")).or_default() += 1;
    }
    let wanted = expected["destinations"].as_array().cloned().unwrap_or_default();
    let total: u64 = wanted.iter().map(|d| d["weight"].as_u64().unwrap()).sum();
    for to in &wanted {
        let name = format!("{}:{}", to["host"].as_str().unwrap(), to["port"]);
        let want = to["weight"].as_u64().unwrap() * 100 / total;
        let got = counts.get(&name).copied().unwrap_or_default();
        faults.holds(got == want, || format!("expected {want} of 100 at {name}, got {counts:?}"));
    }
    if expected["action"] != "route" {
        faults.holds(counts.keys().all(|k| k == ":"), || {
            format!("expected {}, got {counts:?}", expected["action"])
        });
    }
    faults
}

fn client_hello(sni: &str) -> Vec<u8> {
    let name = sni.as_bytes();
    let entry = [&[0][..], &(name.len() as u16).to_be_bytes(), name].concat();
    let list = [&(entry.len() as u16).to_be_bytes()[..], &entry].concat();
    let extension = [&[0, 0][..], &(list.len() as u16).to_be_bytes(), &list].concat();
    let extensions = [&(extension.len() as u16).to_be_bytes()[..], &extension].concat();
    let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 0x01], &[1, 0], &extensions].concat();
    let length = (body.len() as u32).to_be_bytes();
    let handshake = [&[1][..], &length[1..], &body].concat();
    [&[22, 3, 1][..], &(handshake.len() as u16).to_be_bytes(), &handshake].concat()
}
