//! Through two NATs: the path of the first call, the better one that follows, and calls that are not HTTP to a Service.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use super::{
    checks::Screen,
    steps::{failures, figure},
};
use crate::{
    matrix::{PathView, Paths},
    mesh::{Mesh, manifest},
};

/// A pair of nodes leaves the relay within that; the matrix asks for 3 s of half of the pairs.
const PATIENCE: Duration = Duration::from_secs(15);

/// What was seen of a path, and when.
type Seen = Vec<(PathView, Duration)>;

pub(super) fn paths(mesh: &Mesh, screen: &mut Screen) -> anyhow::Result<()> {
    screen.step("The first call goes through the relay, the next ones through a hole in both NATs");
    let url = "http://details:9080/details/0";
    let (done, start) = (AtomicBool::new(false), Instant::now());
    let (seen, report) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(mesh, start, &done));
        // The watcher's connection to the admin pages is there before the first call.
        std::thread::sleep(Duration::from_millis(200));
        let report = mesh.call("shopper", url, &["--timeout", "10"]);
        done.store(true, Ordering::Relaxed);
        (watcher.join().unwrap_or_default(), report)
    });
    let report = report?;
    screen.command("shopper", &format!("curl {url}"));
    let ok = report.by_node.contains_key("edge-b") && report.latency_ms.max < 1_000.0;
    screen.check("the first answer comes within 1 s", ok, &figure(&report));
    screen.command("edge-a", "meshctl paths");
    let (first, last) = (seen.first(), seen.last());
    for (path, at) in &seen {
        let through = path.relay.as_ref().map_or_else(String::new, |r| format!(" through {r}"));
        let ms = at.as_millis();
        screen.say(&format!(
            "edge-b: {}{through}, {}, {ms} ms after the start of this step",
            path.path, path.transport
        ));
    }
    let text = |view: Option<&(PathView, Duration)>| {
        view.map_or_else(|| "no path".to_owned(), |(p, _)| format!("{} over {}", p.path, p.transport))
    };
    let relayed = first.is_some_and(|(p, _)| p.path == "relayed");
    screen.check("the path begins at the relay", relayed, &text(first));
    let punched = last.is_some_and(|(p, _)| p.path == "punched");
    let took = first.zip(last).map_or(0, |((_, a), (_, b))| b.saturating_sub(*a).as_millis());
    let attempts = last.and_then(|(p, _)| p.attempts).unwrap_or(0);
    let why = last.map_or("", |(p, _)| p.why.as_str());
    let figure = match punched {
        true => format!("{}, {took} ms later, attempts: {attempts}", text(last)),
        false => format!("{} ({why})", text(last)),
    };
    screen.check("it becomes a straight one through both NATs", punched, &figure);
    let report = mesh.call("shopper", url, &["-n", "50"])?;
    let figure = format!("{}, p50 {:.1} ms", failures(&report), report.latency_ms.p50);
    screen.check("calls take it", report.failed == 0 && report.sent == 50, &figure);
    Ok(())
}

/// Follows a path until it is punched, or for as long as that may take after the first call.
fn watch(mesh: &Mesh, start: Instant, called: &AtomicBool) -> Seen {
    let mut paths = Paths::of(mesh, "edge-a");
    let mut seen: Seen = Vec::new();
    let mut answered = None;
    loop {
        if let Some(now) = paths.to("edge-b") {
            match seen.last_mut() {
                // The number of punches may come a moment later.
                Some((last, _)) if last.path == now.path && last.transport == now.transport => *last = now,
                _ => seen.push((now, start.elapsed())),
            }
        }
        if called.load(Ordering::Relaxed) {
            answered.get_or_insert_with(Instant::now);
        }
        let punched = seen.last().is_some_and(|(p, _)| p.path == "punched" && p.attempts.is_some());
        let waited = answered.map_or(Duration::ZERO, |a| a.elapsed());
        if (punched && answered.is_some()) || waited > PATIENCE {
            return seen;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Datagrams to a Service, and one pod of a StatefulSet by its name.
pub(super) fn other_calls(mesh: &Mesh, screen: &mut Screen) -> anyhow::Result<()> {
    screen.step("Datagrams, and a single pod by its name");
    mesh.apply("web.yaml", &manifest::headless(&mesh.world, "web", &["web-0"], &[("http", 8080, "TCP")])?)?;
    let url = "udp://sensor:9000";
    screen.command("shopper", &format!("echo call {url} -n 20"));
    let report = mesh.call("shopper", url, &["-n", "20", "--timeout", "1"])?;
    let figure = format!("{} sent, {}, p50 {:.1} ms", report.sent, failures(&report), report.latency_ms.p50);
    screen.check("datagrams to a service in the plant are answered", report.failed == 0, &figure);
    let url = "http://web-0.web.default.svc.cluster.local:8080/";
    screen.command("shopper", &format!("curl {url}"));
    let start = Instant::now();
    let mut report = mesh.call("shopper", url, &["--timeout", "3"])?;
    // The Service was written a moment ago.
    while !report.by_name.contains_key("web-0") && start.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(50));
        report = mesh.call("shopper", url, &["--timeout", "3"])?;
    }
    let who = report.by_name.keys().next().cloned().unwrap_or_else(|| super::steps::figure(&report));
    let ok = report.by_name.contains_key("web-0") && report.by_node.contains_key("edge-b");
    screen.check("web-0.web of a StatefulSet in the plant answers", ok, &who);
    Ok(())
}
