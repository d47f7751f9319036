//! The test application over every protocol that it speaks, and every way in which it misbehaves on request.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use mesh_testkit::echo::load::Report;
use serde_json::Value;

struct Server {
    child: Child,
    ports: [u16; 4],
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn server(extra: &[&str]) -> Server {
    let ports = [0; 4].map(|_: u16| mesh_testkit::ports::free_port());
    let [http, tls, tcp, udp] = ports.map(|p| p.to_string());
    let child = Command::new(env!("CARGO_BIN_EXE_echo"))
        .args(["serve", "--name", "e1", "--version", "v7", "--node", "n1", "--bind", "127.0.0.1"])
        .args(["--http", &http, "--tls", &tls, "--tcp", &tcp, "--udp", &udp])
        .args(extra)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(("127.0.0.1", ports[2])).is_err() {
        assert!(Instant::now() < deadline, "echo does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    Server { child, ports }
}

fn call(url: &str, args: &[&str]) -> Report {
    let output = Command::new(env!("CARGO_BIN_EXE_echo"))
        .args(["call", url, "-o", "json", "--timeout", "5"])
        .args(args)
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

#[test]
fn every_protocol_says_who_answers() {
    let server = server(&[]);
    let [http, tls, tcp, udp] = server.ports;
    for (url, args) in [
        (format!("http://127.0.0.1:{http}/p?q=1"), vec![]),
        (format!("http://127.0.0.1:{http}/p"), vec!["--h2"]),
        (format!("http://127.0.0.1:{http}/"), vec!["--grpc"]),
        (format!("ws://127.0.0.1:{http}/"), vec![]),
        (format!("https://127.0.0.1:{tls}/"), vec![]),
        (format!("https://127.0.0.1:{tls}/"), vec!["--h2"]),
        (format!("tcp://127.0.0.1:{tcp}"), vec![]),
        (format!("udp://127.0.0.1:{udp}"), vec![]),
    ] {
        let report = call(&url, &[vec!["-n", "5"], args.clone()].concat());
        assert_eq!((report.sent, report.failed), (5, 0), "{url} {args:?}: {report:?}");
        assert_eq!(report.by_version.get("v7"), Some(&5), "{url} {args:?}: {report:?}");
        assert_eq!(report.by_name.get("e1"), Some(&5), "{url} {args:?}");
    }
}

#[test]
fn http_reports_what_it_received() {
    let server = server(&[]);
    let url = format!("http://127.0.0.1:{}/a/b?c=d", server.ports[0]);
    let report =
        call(&url, &["-X", "POST", "-H", "Host: some.name:81", "-H", "X-Two: 1", "--body-bytes", "1000"]);
    let body: Value = serde_json::from_str(&report.last_body).unwrap();
    assert_eq!(body["method"], "POST");
    assert_eq!(body["path"], "/a/b?c=d");
    assert_eq!(body["authority"], "some.name:81");
    assert_eq!(body["headers"]["x-two"], "1");
    assert_eq!(body["bodyBytes"], 1000);
    assert_eq!(body["bodySha256"].as_str().unwrap().len(), 64);
    assert_eq!(body["protocol"], "HTTP/1.1");
    // One connection for all calls, unless told otherwise.
    assert_eq!(call(&url, &["-n", "4"]).connections, 1);
    assert_eq!(call(&url, &["-n", "4", "--no-keep-alive"]).connections, 4);
}

#[test]
fn it_misbehaves_on_request() {
    let server = server(&[]);
    let http = format!("http://127.0.0.1:{}/", server.ports[0]);
    assert_eq!(call(&http, &["-H", "x-echo-status: 418"]).by_status.get(&418), Some(&1));
    assert_eq!(call(&format!("{http}?x-echo-status=503"), &[]).failed, 1);
    assert_eq!(call(&http, &["-H", "x-echo-close: 1"]).failed, 1);
    assert!(call(&http, &["-H", "x-echo-delay-ms: 200"]).latency_ms.max >= 200.0);
    let silent = call(&http, &["-H", "x-echo-silent: 1", "--timeout", "0.2"]);
    assert_eq!(silent.errors.get("timeout"), Some(&1), "{silent:?}");
    let chunked =
        call(&http, &["-H", "x-echo-bytes: 64", "-H", "x-echo-chunks: 4", "-H", "x-echo-chunk-delay-ms: 20"]);
    assert_eq!(chunked.last_body.len(), 64);
    assert!(chunked.latency_ms.max >= 60.0);
}

#[test]
fn tcp_keeps_half_closed_connections_open() {
    let server = server(&["--tcp-mode", "half-close"]);
    let report = call(&format!("tcp://127.0.0.1:{}", server.ports[2]), &[]);
    assert_eq!(report.failed, 0, "{report:?}");
    drop(server);
    let server = self::server(&[]);
    // Every byte comes back, and the last line after the client's end does too.
    let report = call(&format!("tcp://127.0.0.1:{}", server.ports[2]), &["--body-bytes", "3000000"]);
    assert_eq!(report.failed, 0, "{report:?}");
    assert!(report.last_body.starts_with("@end 3000000 "), "{report:?}");
}

#[test]
fn a_load_keeps_its_rate_and_ends_on_a_signal() {
    let server = server(&[]);
    let url = format!("http://127.0.0.1:{}/", server.ports[0]);
    let report = call(&url, &["-r", "200", "-d", "0.5", "-c", "4"]);
    assert_eq!((report.sent, report.failed), (100, 0), "{report:?}");
    assert!(report.seconds >= 0.45);
    let load = Command::new(env!("CARGO_BIN_EXE_echo"))
        .args(["call", &url, "-d", "60", "-r", "50", "-o", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(load.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let output = load.wait_with_output().unwrap();
    let report: Report = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report.sent > 5 && report.failed == 0 && report.seconds < 30.0, "{report:?}");
}

#[test]
fn bookinfo_pages_survive_a_missing_part() {
    let server = server(&["--app", "productpage"]);
    let report =
        call(&format!("http://127.0.0.1:{}/productpage", server.ports[0]), &["-H", "end-user: jason"]);
    let body: Value = serde_json::from_str(&report.last_body).unwrap();
    assert_eq!(report.by_status.get(&200), Some(&1));
    assert_eq!(body["endUser"], "jason");
    assert!(body["details"]["error"].is_string(), "{body}");
}
