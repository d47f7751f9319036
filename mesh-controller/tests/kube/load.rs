//! Rules are applied, changed and deleted with kubectl, several times a second, while wrk calls a service of the mesh and
//! h2load calls the gateway by TLS: no request fails.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use mesh_testkit::{kube::eventually, lab::Proc};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use crate::{manifests, mesh::Mesh};

const SECONDS: u64 = 8;
const PORT: u16 = 8443;
const HOST: &str = "load.example.com";

/// Goes on for some seconds.
pub(crate) fn fails_no_request(mesh: &Mesh) {
    let certificates = [certificate(), certificate()];
    apply(mesh, 0, &certificates);
    let gateway = mesh.world.node("edge-b").unwrap().address();
    eventually(Duration::from_secs(40), Duration::from_millis(100), || {
        let resolve = format!("{HOST}:{PORT}:{gateway}");
        let url = format!("https://{HOST}:{PORT}/details/0");
        let args = ["curl", "-s", "-k", "-m", "5", "-w", "\n%{http_code}", "--resolve", &resolve, &url];
        let output = mesh.world.node("cloud").unwrap().exec(&args).unwrap();
        if output.stdout.ends_with("\n200") { Ok(()) } else { Err(output.stdout + &output.stderr) }
    })
    .unwrap();

    let seconds = format!("{SECONDS}s");
    let mut inside = start(
        mesh,
        "client",
        &["wrk", "-t", "1", "-c", "8", "-d", &seconds, "--timeout", "8s", "http://details:9080/details/0"],
    );
    let at = format!("--connect-to={gateway}:{PORT}");
    let url = format!("https://{HOST}:{PORT}/details/0");
    let duration = SECONDS.to_string();
    let mut outside = start(mesh, "cloud", &["h2load", "-c", "4", "-m", "4", "-D", &duration, &at, &url]);

    let start = Instant::now();
    let mut changes = 0;
    while start.elapsed() < Duration::from_secs(SECONDS - 1) {
        changes += apply(mesh, changes, &certificates);
        if changes % 3 == 2 {
            changes += delete(mesh);
        }
    }
    let limit = Duration::from_secs(SECONDS + 30);
    let (ended, gone) = (inside.wait(limit), outside.wait(limit));
    assert!(ended.is_some() && gone.is_some(), "{}{}", inside.tail(), outside.tail());
    let (calls, failed) = wrk(&inside.log());
    println!("wrk on the mesh: {calls} calls, {failed} failed, {changes} changes of rules meanwhile");
    assert!(failed == 0 && calls > 200, "{}", inside.log());
    let (calls, failed) = h2load(&outside.log());
    println!("h2load on the gateway: {calls} calls, {failed} failed, {changes} changes of rules meanwhile");
    assert!(failed == 0 && calls > 200, "{}", outside.log());
    assert!(changes >= 6, "{changes} changes");
    delete(mesh);
    let rest = ["virtualservices/load", "gateways.networking.istio.io/load", "secrets/load"];
    mesh.cluster.kubectl(&[&["delete"], &rest[..]].concat()).unwrap();
}

fn start(mesh: &Mesh, place: &str, args: &[&str]) -> Proc {
    let mut command = Command::new(args[0]);
    command.args(&args[1..]);
    mesh.world.place(place).unwrap().spawn(args[0], &command).unwrap()
}

/// Requests, and those that failed or were not answered with 2xx or 3xx.
fn wrk(log: &str) -> (u64, u64) {
    let first = |line: &str| line.split_whitespace().find_map(|w| w.parse::<u64>().ok()).unwrap_or(0);
    let mut seen = (0, 0);
    for line in log.lines().map(str::trim) {
        if line.contains(" requests in ") {
            seen.0 = first(line);
        } else if line.starts_with("Non-2xx") {
            seen.1 += line.rsplit(' ').next().and_then(|w| w.parse::<u64>().ok()).unwrap_or(1);
        } else if let Some(errors) = line.strip_prefix("Socket errors:") {
            // `connect 0, read 0, write 0, timeout 0`
            seen.1 += errors.split(',').map(first).sum::<u64>();
        }
    }
    seen
}

/// `requests: 9 total, 9 started, 9 done, 9 succeeded, 0 failed, 0 errored, 0 timeout` and
/// `status codes: 9 2xx, 0 3xx, 0 4xx, 0 5xx`.
fn h2load(log: &str) -> (u64, u64) {
    let of = |line: &str, wanted: &[&str]| -> u64 {
        let words: Vec<&str> = line.split([' ', ',']).filter(|w| !w.is_empty()).collect();
        let pairs = words.windows(2).filter(|w| wanted.contains(&w[1]));
        pairs.filter_map(|w| w[0].parse::<u64>().ok()).sum()
    };
    let line = |name: &str| log.lines().find(|l| l.starts_with(name)).unwrap_or_default();
    let (requests, codes) = (line("requests:"), line("status codes:"));
    let failed = of(requests, &["failed", "errored", "timeout"]) + of(codes, &["3xx", "4xx", "5xx"]);
    (of(requests, &["succeeded"]), failed)
}

fn certificate() -> Value {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![HOST.to_owned()]).unwrap().self_signed(&key).unwrap();
    json!({ "tls.crt": certificate.pem(), "tls.key": key.serialize_pem() })
}

/// One `kubectl apply` of all of them, each time otherwise; returns how many objects change.
fn apply(mesh: &Mesh, round: usize, certificates: &[Value; 2]) -> usize {
    let istio = |kind: &str, name: &str, spec: Value| json!({ "apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": { "name": name }, "spec": spec });
    let odd = round % 2 == 1;
    let mut route = json!({ "route": [{ "destination": { "host": "details" } }] });
    match round % 4 {
        1 => route["timeout"] = "9s".into(),
        2 => route["headers"] = json!({ "request": { "set": { "x-round": round.to_string() } } }),
        3 => route["retries"] = json!({ "attempts": 2 }),
        _ => {}
    }
    let policy = match round % 5 {
        1 => json!({ "loadBalancer": { "simple": "ROUND_ROBIN" } }),
        2 => json!({ "connectionPool": { "http": { "http2MaxRequests": 1000 } } }),
        3 => json!({ "loadBalancer": { "consistentHash": { "httpHeaderName": "x-user" } } }),
        4 => json!({ "outlierDetection": { "consecutive5xxErrors": 5 } }),
        _ => json!({ "loadBalancer": { "simple": "RANDOM" } }),
    };
    let mut servers = vec![json!({
        "port": { "number": PORT, "name": "https", "protocol": "HTTPS" }, "hosts": [HOST],
        "tls": { "mode": "SIMPLE", "credentialName": "load" } })];
    if odd {
        servers
            .push(json!({ "port": { "number": 8091, "name": "more", "protocol": "HTTP" }, "hosts": ["*"] }));
        servers[0]["hosts"] = json!([HOST, "more.example.com"]);
    }
    let mut bound = route.clone();
    bound["match"] = json!([{ "uri": { "prefix": "/" } }]);
    let selector = json!({ "gateway.networking.k8s.io/gateway-name": "front" });
    let items = vec![
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "load" }, "type": "kubernetes.io/tls",
            "stringData": certificates[usize::from(odd)] }),
        istio("Gateway", "load", json!({ "selector": selector, "servers": servers })),
        istio("VirtualService", "load", json!({ "hosts": [HOST], "gateways": ["load"], "http": [bound] })),
        istio("VirtualService", "load-inside", json!({ "hosts": ["details"], "http": [route] })),
        istio("DestinationRule", "load", json!({ "host": "details", "trafficPolicy": policy })),
    ];
    let count = items.len();
    manifests::apply_list(&mesh.cluster, items);
    count
}

fn delete(mesh: &Mesh) -> usize {
    let names = ["virtualservices/load-inside", "destinationrules/load"];
    mesh.cluster.kubectl(&[&["delete", "--ignore-not-found"], &names[..]].concat()).unwrap();
    names.len()
}
