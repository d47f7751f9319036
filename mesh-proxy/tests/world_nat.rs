//! Sites behind NATs when something breaks: the cloud is cut off, proxies restart in the dark, a relay dies. With the real
//! programs in a closed network, a load running all the while.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(missing_docs, unreachable_pub, reason = "a test is no interface")]

use std::time::{Duration, Instant};

use mesh_testkit::{
    bins,
    echo::load::Report,
    lab::{Nat, Spec},
    matrix::Paths,
    mesh::{App, Load, Mesh, Plan, manifest},
};

/// How long the cloud is gone; ten minutes is what is promised.
fn cut() -> Duration {
    let seconds = std::env::var("SELVAGE_CUT_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(8))
}

/// What is promised of durations holds on an idle machine; the one that runs all tests gets so many times as much.
const BUSY: u32 = 2;

/// `a` and `a2` on one LAN, `b` elsewhere, each with a client and a server; relays and the controller are public.
fn up(name: &str, relays: &[&str], left: Nat, right: Nat) -> Mesh {
    bins::know("mesh-proxy", env!("CARGO_BIN_EXE_mesh-proxy"));
    let net = |text: &str| text.parse().unwrap();
    let mut world = Spec::named(name)
        .site("shop", net("192.168.1.0/24"), left)
        .site("plant", net("192.168.1.0/24"), right)
        .node("cloud", None, None)
        .node("a", Some("shop"), Some(net("10.1.1.0/24")))
        .node("a2", Some("shop"), Some(net("10.1.2.0/24")))
        .node("b", Some("plant"), Some(net("10.1.3.0/24")))
        .pod("client", "a");
    let (mut apps, mut services) = (Vec::new(), Vec::new());
    for (service, node) in [("here", "a2"), ("far", "b")] {
        let pod = format!("{service}-1");
        world = world.pod(&pod, node);
        apps.push(App::new(&pod, service, "v1", &["--http", "8080", "--tcp", "9000"]));
        services.push(manifest::service(service, service, &[("http", 8080, "TCP"), ("tcp", 9000, "TCP")]));
    }
    for relay in relays {
        world = world.node(relay, None, None);
    }
    let plan = Plan {
        world,
        controller: "cloud".to_owned(),
        apps,
        manifests: services,
        relays: relays.iter().map(|r| (*r).to_owned()).collect(),
        proxy_settings: vec!["drain_seconds=1".to_owned()],
        ..Plan::default()
    };
    Mesh::up(&plan).unwrap_or_else(|e| panic!("{}", e.full()))
}

/// Waits until something holds; a test fails when it does not within `limit`.
fn until(mesh: &Mesh, what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > limit {
            let logs: Vec<String> =
                mesh.procs.iter().map(|(name, p)| format!("--- {name}\n{}", p.tail())).collect();
            panic!("{what} did not come within {limit:?}\n{}", logs.join("\n"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    start.elapsed()
}

fn answers(mesh: &Mesh, service: &str) -> bool {
    mesh.call("client", &format!("http://{service}:8080/"), &["--timeout", "1"]).is_ok_and(|r| r.failed == 0)
}

/// The path of `a` to another node; empty when there is none.
fn path(mesh: &Mesh, to: &str) -> String {
    Paths::of(mesh, "a").to(to).map(|p| p.path).unwrap_or_default()
}

/// The relay on the path of `a` to `b`.
fn relay(mesh: &Mesh) -> Option<String> {
    Paths::of(mesh, "a").to("b").and_then(|p| p.relay)
}

fn loads(mesh: &Mesh, services: &[&str]) -> Vec<(String, Load)> {
    let mut all = Vec::new();
    for service in services {
        let mut start = |what: &str, url: String, args: &[&str]| {
            all.push((format!("{what} to {service}"), mesh.load("client", &url, args).unwrap()));
        };
        start("kept HTTP", format!("http://{service}:8080/"), &["--rate", "30", "-c", "2"]);
        start("new HTTP", format!("http://{service}:8080/"), &["--rate", "15", "-c", "2", "--no-keep-alive"]);
    }
    all
}

fn finish(loads: Vec<(String, Load)>) -> Vec<(String, Report)> {
    loads.into_iter().map(|(what, load)| (what, load.finish().unwrap())).collect()
}

fn none_failed(reports: &[(String, Report)], least: u64) {
    for (what, report) in reports {
        eprintln!(
            "{what}: {} calls, {} failed, max {:.0} ms",
            report.sent, report.failed, report.latency_ms.max
        );
    }
    for (what, report) in reports {
        assert_eq!(report.failed, 0, "{what}: {report:?}");
        assert!(report.sent >= least, "{what} made only {} calls: {report:?}", report.sent);
    }
}

#[test]
fn neighbours_and_punched_pairs_need_no_cloud() {
    let mut mesh = up("dark", &["relay"], Nat::PortRestricted, Nat::PortRestricted);
    for service in ["here", "far"] {
        until(&mesh, "a first answer", Duration::from_secs(20), || answers(&mesh, service));
    }
    let took = until(&mesh, "the punched path", Duration::from_secs(30), || path(&mesh, "b") == "punched");
    eprintln!("punched {took:?} after the first call");
    until(&mesh, "the path on the LAN", Duration::from_secs(20), || path(&mesh, "a2") == "lan");

    // The controller and the relay are gone.
    let running = loads(&mesh, &["here", "far"]);
    std::thread::sleep(Duration::from_millis(500));
    for node in ["cloud", "relay"] {
        mesh.world.cut(node, None).unwrap();
    }
    std::thread::sleep(cut());
    // A machine that does much else makes fewer.
    none_failed(&finish(running), cut().as_secs() * 5);
    assert_eq!((path(&mesh, "b").as_str(), path(&mesh, "a2").as_str()), ("punched", "lan"));

    // Restarted in the dark, neighbours find each other; with a relay back, so do the others.
    let promised = Duration::from_secs(5);
    let neighbour = restart(&mut mesh, "here", promised);
    mesh.world.heal_one("relay", None).unwrap();
    let site = restart(&mut mesh, "far", promised);
    println!(
        "figure: cloud cut for {} s with load on: proxies restarted in the dark found their neighbour {:.2} s after they \
         were ready; restarted with a relay back, the other site after {:.2} s",
        cut().as_secs(),
        neighbour.as_secs_f64(),
        site.as_secs_f64()
    );
}

/// Kills and starts all three proxies; gives the time from their readiness to the first answer of a service.
fn restart(mesh: &mut Mesh, service: &str, promised: Duration) -> Duration {
    for node in ["a", "a2", "b"] {
        mesh.procs.remove(node).unwrap().kill();
        mesh.start_proxy(node, None).unwrap();
    }
    for node in ["a", "a2", "b"] {
        mesh.wait_ready(node, Duration::from_secs(20)).unwrap();
    }
    until(mesh, service, promised * BUSY, || answers(mesh, service))
}

#[test]
fn a_relay_that_dies_is_replaced_while_calls_go_on() {
    let mut mesh = up("relays", &["relay-1", "relay-2"], Nat::Symmetric, Nat::Symmetric);
    until(&mesh, "a first answer", Duration::from_secs(20), || answers(&mesh, "far"));
    until(&mesh, "the relay's name", Duration::from_secs(10), || relay(&mesh).is_some());
    let used = relay(&mesh).unwrap();
    // Reservations at the other relay, too, are known to both by now.
    std::thread::sleep(Duration::from_secs(2));
    let running = loads(&mesh, &["far"]);
    std::thread::sleep(Duration::from_millis(1_000));
    mesh.procs.get_mut(&used).unwrap().kill();
    let start = Instant::now();
    let promised = Duration::from_secs(2);
    let took = until(&mesh, "an answer through another relay", promised * BUSY, || {
        answers(&mesh, "far") && relay(&mesh).is_some_and(|r| r != used)
    });
    eprintln!("{used} killed: the other relay was in use after {took:?}");
    std::thread::sleep(Duration::from_secs(3).saturating_sub(start.elapsed()));
    // A call that waits for the new path holds its client up, and fewer are made.
    none_failed(&finish(running), 10);
}
