//! The program as a user calls it: formats, exit codes, files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

const MESH: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default}
spec:
  clusterIP: 10.96.1.20
  ports: [{name: http, port: 9080}]
  selector: {app: reviews}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews
  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - name: jason
    match:
    - headers: {end-user: {exact: jason}}
      uri: {prefix: /api}
    rewrite: {uri: /v2}
    timeout: 10s
    retries: {attempts: 3, perTryTimeout: 2s, retryOn: 5xx}
    fault: {delay: {fixedDelay: 5s, percentage: {value: 100}}}
    route: [{destination: {host: reviews, subset: v2}}]
  - route: [{destination: {host: reviews, subset: v1}}]
"#;

fn meshctl(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read its input closes it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}{}", text(&output.stdout), text(&output.stderr)))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn validate_says_what_admission_would() {
    let good = meshctl(&["validate", "-f", "-", "-o", "json"], MESH);
    assert_eq!(good.status.code(), Some(0));
    let verdicts = json_of(&good);
    assert_eq!(verdicts.as_array().unwrap().len(), 2, "the Service is no Istio object");
    assert!(text(&good.stderr).contains("Service reviews is ignored"));
    assert_eq!(
        verdicts[1],
        json!({ "kind": "VirtualService", "namespace": "default", "name": "reviews", "valid": true,
                "errors": [], "warnings": [], "unsupported": [] })
    );
    let bad = MESH.replace("retryOn: 5xx", "retryOn: '5xx,never,retriable-headers'");
    let bad = meshctl(&["validate", "-f", "-", "-o", "json"], &bad);
    assert_eq!(bad.status.code(), Some(1));
    let verdicts = json_of(&bad);
    assert_eq!(verdicts[0]["valid"], true);
    assert_eq!(verdicts[1]["unsupported"][0]["path"], "spec.http[0].retries.retryOn");
    assert_eq!(verdicts[1]["valid"], false);
    assert_eq!(verdicts[1]["errors"][0]["path"], "spec.http[0].retries.retryOn");
    let people = meshctl(&["validate", "-f", "-"], MESH);
    let row: Vec<_> =
        text(&people.stdout).lines().last().unwrap().split_whitespace().map(str::to_owned).collect();
    assert_eq!(row, ["VirtualService", "default/reviews", "valid"]);
}

#[test]
fn unreadable_input_and_wrong_usage_have_their_own_code() {
    for (args, input) in [
        (&["validate", "-f", "/does/not/exist"][..], ""),
        (&["validate", "-f", "-"][..], "a: [\n"),
        (&["validate"][..], ""),
        (&["simulate", "-f", "-", "--request", "/does/not/exist"][..], MESH),
        (&["simulate", "-f", "-", "--request", "-"][..], MESH),
        (&["proxy", "status", "--admin", "http://127.0.0.1:1"][..], ""),
        (&["no-such-command"][..], ""),
    ] {
        let output = meshctl(args, input);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn files_are_read_in_sorted_order() {
    let dir = tempfile::tempdir().unwrap();
    let (service, rules) = MESH.split_once("---").unwrap();
    std::fs::create_dir(dir.path().join("b")).unwrap();
    std::fs::write(dir.path().join("b/rules.yaml"), rules).unwrap();
    std::fs::write(dir.path().join("a.yml"), service).unwrap();
    std::fs::write(dir.path().join("notes.txt"), "a: [").unwrap();
    let output = meshctl(&["validate", "-f", dir.path().to_str().unwrap(), "-o", "json"], "");
    let names: Vec<_> =
        json_of(&output).as_array().unwrap().iter().map(|v| v["kind"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["DestinationRule", "VirtualService"]);
}

#[test]
fn simulate_says_where_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let request = dir.path().join("request.json");
    let ask = |value: Value| {
        std::fs::write(&request, value.to_string()).unwrap();
        let output =
            meshctl(&["simulate", "-f", "-", "--request", request.to_str().unwrap(), "-o", "json"], MESH);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        json_of(&output)
    };
    let base = json!({ "host": "reviews", "port": 9080, "path": "/api/x?y=1", "source": { "namespace": "default" } });
    let mut jason = base.clone();
    jason["headers"] = json!({ "End-User": "jason" });
    let answers = ask(json!([jason, base]));
    let (first, second) = (&answers[0], &answers[1]);
    let v =
        |subset: &str| json!({ "host": "reviews.default.svc.cluster.local", "subset": subset, "port": 9080 });
    assert_eq!(first["outcome"], "forward");
    assert_eq!((&first["virtualService"], &first["route"]), (&json!("default/reviews"), &json!("http[0]")));
    assert_eq!((&first["routeName"], &first["matchIndex"]), (&json!("jason"), &json!(0)));
    assert_eq!(first["destination"], v("v2"));
    assert_eq!(first["request"]["path"], "/v2/x?y=1");
    assert_eq!((&first["delay"], &first["timeout"]), (&json!("5s"), &json!("10s")));
    assert_eq!(
        first["retries"],
        json!({ "attempts": 3, "perTryTimeout": "2s", "retryOn": ["5xx"], "backoff": "25ms" })
    );
    assert_eq!(first["policy"]["destinationRule"], "default/reviews");
    assert_eq!(first["policy"]["loadBalancer"]["simple"], "ROUND_ROBIN");
    assert_eq!((&second["route"], &second["destination"]), (&json!("http[1]"), &v("v1")));
    assert!(
        second.get("delay").is_none() && second.get("matchIndex").is_none(),
        "what does not apply is left out"
    );
    let why: Vec<_> = second["why"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    assert!(why.contains(&"http[0] match[0]: no, header end-user is not exactly \"jason\""), "{why:?}");
    // One request gives one answer, not a list; an address stands for a host that is not sent.
    let tcp = ask(json!({ "protocol": "tcp", "address": "10.96.1.20", "port": 9080 }));
    assert_eq!(tcp["outcome"], "forward");
    assert_eq!(ask(json!({ "host": "elsewhere.example.com" }))["outcome"], "passthrough");
}

#[test]
fn a_mistake_in_a_request_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let request = dir.path().join("request.json");
    std::fs::write(&request, json!({ "hots": "reviews" }).to_string()).unwrap();
    let output = meshctl(&["simulate", "-f", "-", "--request", request.to_str().unwrap()], MESH);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("hots"), "{}", text(&output.stderr));
}

#[test]
fn tokens_are_made_listed_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let state = ["--state-dir", dir.path().to_str().unwrap()];
    let run = |args: &[&str]| meshctl(&[args, &state].concat(), "");
    let made =
        json_of(&run(&["token", "create", "--node", "edge-a", "--controller", "c:15012", "-o", "json"]));
    let token = mesh_ca::JoinToken::parse(made["token"].as_str().unwrap()).unwrap();
    assert_eq!((token.node.as_str(), &token.controllers[..]), ("edge-a", &["c:15012".to_owned()][..]));
    let plain = text(&run(&["token", "create", "--node", "edge-b", "--ttl", "1h"]).stdout);
    assert!(mesh_ca::JoinToken::parse(&plain).is_ok(), "the bare token, to be redirected into a file");
    let list = run(&["token", "list", "-o", "json"]);
    assert!(!text(&list.stdout).contains(made["token"].as_str().unwrap()));
    let nodes: Vec<_> = json_of(&list).as_array().unwrap().iter().map(|t| t["node"].clone()).collect();
    assert!(nodes.contains(&json!("edge-a")) && nodes.contains(&json!("edge-b")));
    let id = made["id"].as_str().unwrap();
    assert_eq!(run(&["token", "revoke", id]).status.code(), Some(0));
    assert_eq!(run(&["token", "revoke", id]).status.code(), Some(2));
    assert_eq!(json_of(&run(&["token", "list", "-o", "json"])).as_array().unwrap().len(), 1);
    for bad in [["--node", "Not A Name"], ["--ttl", "0s"]] {
        let args = [&["token", "create", "--node", "x"][..usize::from(bad[0] == "--ttl") * 2 + 2], &bad[..]]
            .concat();
        assert_eq!(run(&args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn crds_are_printed_and_written() {
    let printed = meshctl(&["crds"], "");
    let crds = istio_compat::yaml::documents(&text(&printed.stdout)).unwrap();
    let (istio, own) = crds.split_at(crds.len() - 1);
    assert_eq!(istio, istio_compat::crd::all());
    assert_eq!(own[0]["metadata"]["name"], "meshnodes.selvage.dev");
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(meshctl(&["crds", "--write", dir.path().to_str().unwrap()], "").status.code(), Some(0));
    assert!(dir.path().join("virtualservices.networking.istio.io.yaml").exists());
    assert!(dir.path().join("meshnodes.selvage.dev.yaml").exists());
}

#[test]
fn the_examples_are_valid_and_fully_honoured() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/bookinfo");
    let output = meshctl(&["validate", "-f", examples, "-o", "json"], "");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    let verdicts = json_of(&output);
    assert!(!verdicts.as_array().unwrap().is_empty());
    for v in verdicts.as_array().unwrap() {
        assert_eq!((&v["warnings"], &v["unsupported"]), (&json!([]), &json!([])), "{v}");
    }
}

#[test]
fn completion_and_help_are_there() {
    assert!(text(&meshctl(&["completion", "bash"], "").stdout).contains("meshctl"));
    for command in ["validate", "analyze", "simulate", "proxy", "crds", "webhook"] {
        let help = text(&meshctl(&[command, "--help"], "").stdout);
        assert!(help.contains("Example"), "{command}: {help}");
    }
}

#[test]
fn proxy_shows_the_admin_page() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let dump = json!({
        "node": "edge-a", "ready": true, "pending": [], "nodes": [{}, {}],
        "services": [
            { "host": "reviews.default.svc.cluster.local", "kind": "cluster_ip", "vips": ["10.96.1.20"],
              "ports": [{ "number": 9080, "protocol": "http" }],
              "endpoints": [{ "address": "10.1.0.7", "node": "edge-a", "ready": true, "weight": 1, "workload": "reviews-v1" }],
              "virtual_hosts": [{ "source": "default/reviews", "tls": [], "tcp": [], "http": [
                  { "index": 0, "name": "x", "action": { "forward": [
                      { "host": "reviews.default.svc.cluster.local", "subset": "v1", "port": 0, "weight": 1 }] } }] }] },
            { "host": "ratings.default.svc.cluster.local", "kind": "headless", "vips": [], "ports": [], "endpoints": [],
              "virtual_hosts": [] },
        ],
    });
    // Serves until the test ends.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).unwrap();
            write!(stream, "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{dump}").unwrap();
        }
    });
    let show = |args: &[&str]| {
        let output = meshctl(&[&["proxy"], args, &["--admin", &url]].concat(), "");
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let services = show(&["services", "reviews"]);
    assert!(services.contains("10.96.1.20") && services.contains("9080/http"), "{services}");
    assert!(!services.contains("ratings"), "{services}");
    let routes = show(&["routes"]);
    assert!(
        routes.contains("http[0]") && routes.contains("reviews.default.svc.cluster.local (v1) x1"),
        "{routes}"
    );
    assert!(show(&["endpoints"]).contains("reviews-v1"));
    let status: Value = serde_json::from_str(&show(&["status", "-o", "json"])).unwrap();
    assert_eq!((&status["node"], &status["services"]), (&json!("edge-a"), &json!(2)));
}
