//! What breaks, and who notices: with the real programs in a closed network, a load running all the while.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(missing_docs, unreachable_pub, reason = "a test is no interface")]

#[path = "world/support.rs"]
mod support;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use mesh_testkit::{
    bins,
    echo::load::Report,
    lab::Signal,
    mesh::{Load, Mesh, manifest::service, metric},
};
use support::{call, connect, received, up};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Waits until something holds; a test fails when it does not within `limit`.
fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "{what} did not come within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    start.elapsed()
}

/// Loads over kept and over new connections, at L7 and at L4, to another node.
fn loads(mesh: &Mesh) -> Vec<(&'static str, Load)> {
    let start = |what, url: &str, args: &[&str]| (what, mesh.load("client", url, args).unwrap());
    vec![
        start("kept HTTP", "http://far:8080/", &["--rate", "40", "-c", "2"]),
        start("new HTTP", "http://far:8080/", &["--rate", "20", "-c", "2", "--no-keep-alive"]),
        start("kept HTTP/2", "http://far:8081/", &["--rate", "20", "--h2"]),
        start("new TCP", "tcp://far:9000", &["--rate", "20", "-c", "2"]),
        start("WebSocket", "ws://far:8080/", &["--rate", "20"]),
    ]
}

/// Every load ran all the time, and no call of it failed.
fn none_failed(mesh: &Mesh, loads: Vec<(&'static str, Load)>, least: u64) {
    let reports: Vec<(&str, Report)> =
        loads.into_iter().map(|(what, load)| (what, load.finish().unwrap())).collect();
    if reports.iter().any(|(_, r)| r.failed > 0) {
        // Why the proxies say that calls failed.
        for node in mesh.nodes() {
            let text = mesh.metrics(&node).unwrap_or_default();
            let odd = |l: &&str| {
                l.starts_with("istio_") && l.contains("_total{") && !l.contains("response_flags=\"-\"")
            };
            text.lines().filter(odd).for_each(|l| eprintln!("{node}: {l}"));
        }
    }
    for (what, report) in &reports {
        assert_eq!(report.failed, 0, "{what}: {report:?}");
        assert!(report.sent >= least, "{what} made only {} calls: {report:?}", report.sent);
        eprintln!("{what}: {} calls, max {:.0} ms", report.sent, report.latency_ms.max);
    }
}

fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

#[test]
fn a_black_hole_among_three_endpoints_slows_nobody() {
    let mesh = up("blackhole");
    // Each hole on a port of its own: it is about new connections, and none is pooled there yet.
    for (what, pod, port) in [("on another node", "trio-2", 8080), ("on the same node", "trio-1", 8084)] {
        mesh.world.cut(pod, None).unwrap();
        let other = mesh.load("client", "http://near:8080/", &["--rate", "50", "--no-keep-alive"]).unwrap();
        for url in [format!("http://trio:{port}/"), "tcp://trio:9000".to_owned()] {
            let report = call(&mesh, &url, &["-n", "120", "-c", "4", "--no-keep-alive"]);
            assert!(report.latency_ms.p99 < 1_000.0, "{what} {url}: {report:?}");
            assert!(!report.by_name.contains_key(pod), "{report:?}");
            eprintln!(
                "black hole {what}, {url}: p50 {:.0} p99 {:.0} ms",
                report.latency_ms.p50, report.latency_ms.p99
            );
        }
        let other = other.finish().unwrap();
        assert_eq!(other.failed, 0, "{other:?}");
        assert!(other.latency_ms.p99 < 500.0, "another service slows down: {other:?}");
        mesh.world.heal().unwrap();
    }
    // Healed, all three serve again.
    until("the healed endpoint", Duration::from_secs(30), || {
        call(&mesh, "http://trio:8080/", &["-n", "30", "--no-keep-alive"]).by_name.len() == 3
    });
}

#[test]
fn the_controller_may_die_come_back_and_talk_garbage() {
    let mut mesh = up("controller");
    let running = loads(&mesh);
    pause(1_000);
    // Killed.
    mesh.controller.as_mut().unwrap().kill();
    pause(1_000);
    // Something else answers at its address.
    let mut noise = Command::new(bins::find("echo").unwrap());
    noise.args(["serve", "--tcp", "15012", "--tcp-mode", "banner"]);
    let mut noise = mesh.world.node("cloud").unwrap().spawn("noise", &noise).unwrap();
    noise.wait_for_log("echo ready", Duration::from_secs(10)).unwrap();
    pause(1_500);
    noise.kill();
    // Back again, and fed with garbage.
    mesh.start_controller().unwrap();
    mesh.apply("broken.yaml", "kind: VirtualService\nspec: [not, a, spec").unwrap();
    mesh.apply("binary.yaml", "\u{1}\u{2}---\u{fffd}: :: -\n").unwrap();
    let bad = r#"{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"far"},"spec":{"hosts":["far"],"http":[{"route":[{"destination":{"host":"far","port":{"number":99999999}}}]}]}}"#;
    mesh.apply("invalid.yaml", bad).unwrap();
    pause(1_000);
    // Restarted in the middle of it.
    mesh.controller.as_mut().unwrap().stop(Duration::from_secs(10));
    mesh.start_controller().unwrap();
    for file in ["broken.yaml", "binary.yaml", "invalid.yaml"] {
        mesh.remove(file).unwrap();
    }
    // Cut off, and healed.
    mesh.world.cut("cloud", None).unwrap();
    pause(2_000);
    mesh.world.heal().unwrap();
    none_failed(&mesh, running, 100);
    // The proxies find it again, and new rules arrive.
    let rule = r#"{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"far"},"spec":{"hosts":["far"],"http":[{"directResponse":{"status":418}}]}}"#;
    mesh.apply("teapot.yaml", rule).unwrap();
    let took = until("the new rule", Duration::from_secs(45), || {
        mesh.call("client", "http://far:8080/", &[]).unwrap().by_status.contains_key(&418)
    });
    eprintln!("a new rule arrived {took:?} after the cut had healed");
}

#[test]
fn a_second_proxy_takes_over_without_a_refused_connection() {
    let mut mesh = up("restart");
    let mut running = loads(&mesh);
    // A WebSocket lives as long as its process; the drain's end ends it. Everything else moves.
    running.retain(|(what, _)| *what != "WebSocket");
    pause(500);
    for node in ["a", "b"] {
        let mut old = mesh.procs.remove(node).unwrap();
        // The same state directory: the new process asks the old one for its sockets.
        mesh.start_proxy(node, None).unwrap();
        let start = Instant::now();
        let status = old.wait(Duration::from_secs(25)).expect("the old process ends by itself");
        assert!(status.success(), "{status:?}\n{}", old.tail());
        // What peers keep for later use would hold it until its deadline, and would be cut then.
        assert!(old.tail().contains("cut_off=0"), "{node}: {}", old.tail());
        eprintln!("the old process of {node} ended after {:?}", start.elapsed());
        pause(500);
    }
    none_failed(&mesh, running, 30);
}

#[test]
fn sigterm_lets_running_requests_end() {
    let mut mesh = up("drain");
    for node in ["a", "b"] {
        let slow = mesh.load("client", "http://far:8080/?x-echo-delay-ms=1500", &["-n", "1"]).unwrap();
        let stream = mesh
            .load(
                "client",
                "http://far:8080/?x-echo-bytes=1600&x-echo-chunks=10&x-echo-chunk-delay-ms=150",
                &["-n", "1"],
            )
            .unwrap();
        // A WebSocket that still has messages to send.
        let chat = mesh.load("client", "ws://far:8080/", &["-n", "40", "--rate", "20"]).unwrap();
        pause(500);
        let mut proxy = mesh.procs.remove(node).unwrap();
        proxy.signal(Signal::SIGTERM).unwrap();
        let status = proxy.wait(Duration::from_secs(15)).expect("the drain ends");
        assert!(status.success(), "{node}: {status:?}\n{}", proxy.tail());
        // One call each, and the load ends with it.
        for load in [slow, stream] {
            let report = load.finish().unwrap();
            assert_eq!((report.sent, report.failed), (1, 0), "{node}: {report:?}");
        }
        let report = chat.finish().unwrap();
        assert_eq!((report.sent, report.failed), (40, 0), "{node}: {report:?}");
        mesh.start_proxy(node, None).unwrap();
        mesh.wait_ready(node, Duration::from_secs(10)).unwrap();
        until("calls after the restart", Duration::from_secs(15), || {
            mesh.call("client", "http://far:8080/", &["--timeout", "2"]).unwrap().failed == 0
        });
    }
}

#[test]
fn capture_heals_itself_when_its_rules_are_flushed() {
    let mesh = up("flush");
    let node = mesh.world.node("a").unwrap();
    let tables = || node.exec(&["/usr/sbin/nft", "list", "tables"]).unwrap().stdout;
    let ours = || tables().lines().filter(|l| l.contains("selvage")).count();
    assert!(ours() > 0, "{}", tables());
    for _ in 0..3 {
        node.exec(&["/usr/sbin/nft", "flush", "ruleset"]).unwrap();
        let took = until("the rules", Duration::from_secs(3), || ours() > 0);
        eprintln!("rules were back after {took:?}");
        call(&mesh, "http://far:8080/", &["-n", "10", "--no-keep-alive"]);
    }
    let repaired = metric(&mesh.metrics("a").unwrap(), "selvage_capture_repaired_total", &[]);
    assert!(repaired >= 3.0, "{repaired}");
}

#[test]
fn an_owner_that_reboots_is_found_again() {
    let mut mesh = up("reboot");
    call(&mesh, "http://far:8080/", &["-n", "5"]);
    mesh.procs.get_mut("b").unwrap().kill();
    let report = mesh.call("client", "http://far:8080/", &["-n", "3", "--timeout", "8"]).unwrap();
    assert_eq!(report.failed, 3, "nobody can answer: {report:?}");
    // An error, and soon: a caller must not hang on a node that is gone.
    assert!(report.errors.is_empty() && report.by_status.contains_key(&503), "{report:?}");
    call(&mesh, "http://near:8080/", &["-n", "5"]);
    mesh.start_proxy("b", None).unwrap();
    mesh.wait_ready("b", Duration::from_secs(10)).unwrap();
    let took = until("calls to the owner", Duration::from_secs(15), || {
        mesh.call("client", "http://far:8080/", &["--timeout", "2"]).unwrap().failed == 0
    });
    eprintln!("calls went on {took:?} after the owner was ready");
}

#[test]
fn without_capture_applications_use_the_proxy_on_loopback() {
    let mesh = up("loopback");
    let node = mesh.world.node("a").unwrap();
    assert!(node.info().pods.is_some());
    // A process of the node itself (not of a pod), absolute form, then CONNECT.
    for (request, expect) in [
        (
            "GET http://far:8080/abs HTTP/1.1\r\nHost: far:8080\r\nConnection: close\r\n\r\n",
            "\"path\":\"/abs\"",
        ),
        ("CONNECT far:9000 HTTP/1.1\r\nHost: far:9000\r\n\r\n", "HTTP/1.1 200"),
    ] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(async {
            let mut wire = connect(&mesh, "a", "127.0.0.1:15080");
            wire.io.write_all(request.as_bytes()).await.unwrap();
            wire.io.flush().await.unwrap();
            let mut all = Vec::new();
            let mut buffer = [0_u8; 4096];
            tokio::time::timeout(Duration::from_secs(10), async {
                while !String::from_utf8_lossy(&all).contains(expect) {
                    let n = wire.io.read(&mut buffer).await.unwrap();
                    assert!(n > 0, "{request}: {}", String::from_utf8_lossy(&all));
                    all.extend_from_slice(&buffer[..n]);
                }
            })
            .await
            .unwrap();
            String::from_utf8_lossy(&all).into_owned()
        });
        runtime.shutdown_background();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    // And over the load generator's own idea of the service, from a pod.
    let body = received(call(&mesh, "http://far:8080/", &[]).last_body.as_bytes());
    assert_eq!(body["name"], "far-1");
}

#[test]
fn five_thousand_services_arrive_while_calls_go_on() {
    let mesh = up("many");
    let running = loads(&mesh);
    pause(500);
    // A folder of files, as one would keep so many.
    let apply = |label: &str| {
        for file in 0..10_usize {
            let one = |i: usize| {
                let text = service(&format!("many-{i:04}"), label, &[("http", 8080, "TCP")]);
                let address = format!("\"clusterIP\": \"10.97.{}.{}\", \"ports\"", i / 200, i % 200 + 1);
                text.replacen("\"ports\"", &address, 1)
            };
            let text: String = (file * 500..(file + 1) * 500).map(one).collect();
            mesh.apply(&format!("many-{file}.yaml"), &text).unwrap();
        }
    };
    let start = Instant::now();
    apply("nobody");
    let known = || {
        let found = mesh.world.pod("client").unwrap().exec(&["getent", "ahostsv4", "many-4999"]).unwrap();
        found.stdout.starts_with("10.97.24.200 ")
    };
    until("the last of 5,000 services", Duration::from_secs(30), known);
    eprintln!("5,000 services known after {:?}", start.elapsed());
    let captured = || metric(&mesh.metrics("a").unwrap(), "selvage_capture_addresses", &[]) >= 5_000.0;
    until("their capture", Duration::from_secs(10), captured);
    eprintln!("captured after {:?}", start.elapsed());
    // Every one of them changes: now they lead to an application.
    let start = Instant::now();
    apply("far");
    until("the last change", Duration::from_secs(30), || {
        mesh.call("client", "http://many-4999:8080/", &["--timeout", "2"])
            .unwrap()
            .by_status
            .contains_key(&200)
    });
    eprintln!("5,000 services changed after {:?}", start.elapsed());
    none_failed(&mesh, running, 50);
}
