//! `meshctl paths` and `meshctl doctor` against the pages of a proxy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::{Command, Output},
};

use serde_json::{Value, json};

/// Serves these pages for as long as the test runs; gives the address.
fn pages(pages: Vec<(&'static str, String)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let n = stream.read(&mut request).unwrap();
            let request = String::from_utf8_lossy(&request[..n]).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default();
            let answer = match pages.iter().find(|(p, _)| *p == path) {
                Some((_, body)) => format!("HTTP/1.0 200 OK\r\n\r\n{body}"),
                None => "HTTP/1.0 404 Not Found\r\n\r\n".to_owned(),
            };
            let _gone = stream.write_all(answer.as_bytes());
        }
    });
    url
}

fn meshctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meshctl")).args(args).output().unwrap()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn path(peer: &str) -> Value {
    json!({
        "node": "edge-a", "peer": peer, "path": "relayed", "relay": "cloud", "transport": "tcp", "rtt_ms": 21.4,
        "loss": 0.0, "since": "2026-01-01T00:00:00Z", "bytes_sent": 1, "bytes_received": 2,
        "nat": { "local": "symmetric", "remote": "symmetric" }, "last_punch": null,
        "why_not_better": "both NATs are symmetric.",
    })
}

#[test]
fn paths_are_passed_on_as_they_are_and_read_by_people() {
    let both = json!([path("edge-b"), path("edge-c")]);
    let url = pages(vec![("/paths", both.to_string())]);
    let all = meshctl(&["paths", "--admin", &url, "-o", "json"]);
    assert_eq!(json_of(&all), both);
    let one = meshctl(&["paths", "edge-c", "--admin", &url, "-o", "json"]);
    assert_eq!(json_of(&one), json!([path("edge-c")]));
    let text = String::from_utf8(meshctl(&["paths", "--admin", &url]).stdout).unwrap();
    assert!(text.starts_with("PEER"), "{text}");
    assert!(text.contains("edge-b: both NATs are symmetric."), "{text}");
    // Nobody there: usage, not an empty list.
    assert_eq!(meshctl(&["paths", "--admin", "http://127.0.0.1:1"]).status.code(), Some(2));
}

#[test]
fn doctor_says_what_is_wrong_and_its_exit_code_too() {
    let nobody = meshctl(&["doctor", "--admin", "http://127.0.0.1:1", "-o", "json"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert_eq!(
        (&json_of(&nobody)[0]["check"], &json_of(&nobody)[0]["status"]),
        (&json!("proxy"), &json!("fail"))
    );

    // A peer that answers as a QUIC server does, and takes TCP connections.
    let quic = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = quic.local_addr().unwrap();
    let tcp = TcpListener::bind(at).unwrap();
    std::thread::spawn(move || {
        let mut packet = [0; 2048];
        while let Ok((n, from)) = quic.recv_from(&mut packet) {
            // What is larger than this path's MTU does not arrive.
            if n > 1372 {
                continue;
            }
            let mut answer = vec![0x80, 0, 0, 0, 0];
            answer.extend([&packet[14..23], &packet[5..14], &[0, 0, 0, 1]].concat());
            quic.send_to(&answer, from).unwrap();
        }
    });
    let node = |name: &str, relay: bool, addresses: &[String]| json!({ "name": name, "relay": relay, "addresses": addresses });
    let there =
        [format!("/ip4/127.0.0.1/udp/{}/quic-v1", at.port()), format!("/ip4/127.0.0.1/tcp/{}", at.port())];
    let dump = json!({
        "node": "edge-a", "version": "0", "ready": true, "pending": [], "service_count": 7, "services": [],
        "nodes": [node("edge-a", false, &there), node("cloud", true, &there)],
    });
    let in_a_year =
        std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs()
            + 31_000_000;
    let metrics = |ahead: i32| {
        format!(
            "selvage_capture_addresses 9\nselvage_udp_sessions{{side=\"outbound\"}} 0\nselvage_discovery_connected 1\n\
             selvage_discovery_responses_total 3\nselvage_clock_ahead_seconds {ahead}\n\
             selvage_certificate_expires_seconds {in_a_year}\n"
        )
    };
    let config = json!({ "capture": { "enabled": true }, "dns": { "enabled": false }, "listen": {} });
    let ask = |ahead: i32| {
        let url = pages(vec![
            ("/config", config.to_string()),
            ("/config_dump", dump.to_string()),
            ("/paths", "[]".to_owned()),
            ("/stats/prometheus", metrics(ahead)),
        ]);
        meshctl(&["doctor", "--admin", &url, "-o", "json", "--wait-ms", "300"])
    };
    let well = ask(0);
    let found = json_of(&well);
    let status = |found: &Value, check: &str| {
        let checks = found.as_array().unwrap().iter();
        checks.clone().find(|c| c["check"] == check).unwrap_or_else(|| panic!("{check}: {found:#}"))["status"]
            .clone()
    };
    for check in
        ["proxy", "capture", "udp services", "controller", "clock", "certificate", "udp", "relay", "mtu"]
    {
        assert_eq!(status(&found, check), "ok", "{check}: {found:#}");
    }
    assert_eq!(status(&found, "dns"), "warn");
    assert_eq!(well.status.code(), Some(0));
    assert!(found.to_string().contains("1400 bytes to cloud"), "{found:#}");
    let wrong = ask(-4000);
    assert_eq!((wrong.status.code(), status(&json_of(&wrong), "clock")), (Some(1), json!("fail")));
    drop(tcp);
}

#[test]
fn help_shows_examples() {
    for command in ["paths", "doctor"] {
        let help = String::from_utf8(meshctl(&[command, "--help"]).stdout).unwrap();
        assert!(
            help.contains("Examples:") && help.contains(&format!("meshctl {command} -o json"))
                || command == "paths",
            "{help}"
        );
    }
}
