//! The steps of the demo.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;

use super::checks::Screen;
use crate::{
    echo::load::Report,
    lab::Kind,
    mesh::{Mesh, Plan, manifest, metric},
};

type Rules<'a> = &'a dyn Fn(&str) -> anyhow::Result<String>;

const REVIEWS: &str = "http://reviews.default.svc.cluster.local:9080/reviews/0";
/// A rule that is written takes effect within that.
const EFFECT: Duration = Duration::from_secs(2);

pub(super) fn bring_up(plan: &Plan, screen: &mut Screen) -> anyhow::Result<Mesh> {
    screen.step("A closed network on this machine: a cloud and two edge sites");
    let start = Instant::now();
    let mut mesh = Mesh::network(plan)?;
    screen.say(&topology(&mesh));
    screen.say(
        "Each site is behind a router in a network of its own, and nobody can call in: what is sent to the shop passes\n\
         only from where the shop has called, and nothing passes to the plant before it has called out. No port is\n\
         forwarded. The relay is a node that everyone can reach.",
    );
    let closed = mesh.world.check_closed();
    let figure =
        closed.as_ref().map_or_else(|e| e.full(), |()| format!("{} namespaces", mesh.world.places().len()));
    screen.check("the network has no way out", closed.is_ok(), &figure);

    screen.step("A controller in the cloud, a proxy on each node, a bookshop in pods");
    mesh.start_controller()?;
    screen.command("cloud", &format!("mesh-controller --source dir:{}", mesh.source().display()));
    for app in &plan.apps {
        mesh.start_app(app)?;
    }
    let mut tokens = Vec::new();
    for node in mesh.nodes() {
        screen.command("cloud", &format!("meshctl token create --node {node}"));
        tokens.push((node.clone(), mesh.token(&node)?));
    }
    for (node, token) in &tokens {
        screen.command(node, &format!("mesh-proxy --node {node} --controller … --join-token …"));
        mesh.start_proxy(node, Some(token))?;
    }
    for (node, _) in &tokens {
        mesh.wait_ready(node, Duration::from_secs(20))?;
    }
    screen.check(
        "controller, proxies and applications are ready",
        true,
        &format!("{:.1} s", start.elapsed().as_secs_f64()),
    );
    Ok(mesh)
}

fn topology(mesh: &Mesh) -> String {
    let places = mesh.world.places();
    let mut text = String::from("public segment 203.0.113.0/24\n");
    let nodes = |site: Option<&str>| {
        let mut text = String::new();
        for node in places.values().filter(|p| p.kind == Kind::Node && p.site.as_deref() == site) {
            let indent = if site.is_some() { "│   " } else { "" };
            text += &format!("{indent}├── node {:<10} {}\n", node.name, node.address);
            for pod in places.values().filter(|p| p.node.as_ref() == Some(&node.name)) {
                text += &format!("{indent}│     pod {:<15} {}\n", pod.name, pod.address);
            }
        }
        text
    };
    text += &nodes(None);
    for router in places.values().filter(|p| p.kind == Kind::Router) {
        let lan = mesh.world.spec().sites.get(&router.name).map(|s| s.lan.to_string()).unwrap_or_default();
        let kind = mesh.world.spec().sites.get(&router.name).map_or("", |s| s.nat.kind.as_str());
        text += &format!("├── router of {:<6} {}  ── {kind} NAT ── {lan}\n", router.name, router.address);
        text += &nodes(Some(&router.name));
    }
    text
}

pub(super) fn name_lookup(mesh: &Mesh, screen: &mut Screen) -> anyhow::Result<()> {
    screen.step("An application looks a service up");
    let name = "reviews.default.svc.cluster.local";
    screen.command("shopper", &format!("getent ahostsv4 {name}"));
    let start = Instant::now();
    let output = mesh.world.pod("shopper")?.exec(&["getent", "ahostsv4", name])?;
    let took = start.elapsed();
    let answer = output.stdout.split_whitespace().next().unwrap_or("no answer").to_owned();
    let expected = manifest::vip("default", "reviews").to_string();
    screen.check(
        "DNS answers with the service's address",
        answer == expected,
        &format!("{answer}, {} ms", took.as_millis()),
    );
    Ok(())
}

pub(super) fn across_sites(mesh: &Mesh, screen: &mut Screen) -> anyhow::Result<()> {
    screen.step("A call from the shop to a service in the plant");
    let url = "http://details:9080/details/0";
    screen.command("shopper", &format!("curl {url}"));
    let report = mesh.call("shopper", url, &[])?;
    screen.say(&report.last_body);
    let figure = figure(&report);
    screen.check("details at edge-b answers a pod at edge-a", report.by_node.contains_key("edge-b"), &figure);
    screen.command("shopper", "curl http://productpage:9080/productpage");
    let report = mesh.call("shopper", "http://productpage:9080/productpage", &[])?;
    let page: Value = serde_json::from_str(&report.last_body).unwrap_or_default();
    let parts = |part: &str| page[part]["body"]["name"].as_str().unwrap_or("nobody").to_owned();
    let ok = page["details"]["status"] == 200 && page["reviews"]["status"] == 200;
    let figure = format!("details by {}, reviews by {}", parts("details"), parts("reviews"));
    screen.check("the product page is put together across sites", ok, &figure);
    let many = mesh.call("shopper", "http://details:9080/details/0", &["-n", "200", "-c", "4"])?;
    let figure =
        format!("{}, p50 {:.1} ms, p99 {:.1} ms", failures(&many), many.latency_ms.p50, many.latency_ms.p99);
    screen.check("200 calls between the sites", many.sent == 200 && many.failed == 0, &figure);
    Ok(())
}

/// How many failed, and why if any did.
pub(super) fn failures(report: &Report) -> String {
    let why: Vec<String> = report.errors.iter().map(|(why, n)| format!("{why} ({n})")).collect();
    let why = if why.is_empty() { String::new() } else { format!(": {}", why.join(", ")) };
    format!("{} failed{why}", report.failed)
}

pub(super) fn figure(report: &Report) -> String {
    if let Some(why) = report.errors.keys().next() {
        return why.clone();
    }
    let status = report.by_status.keys().next().copied().unwrap_or(0);
    format!("status {status}, {:.1} ms", report.latency_ms.max)
}

fn shares(report: &Report) -> String {
    let share =
        |(v, n): (&String, &u64)| format!("{v} {:.0} %", 100.0 * *n as f64 / report.sent.max(1) as f64);
    let all: Vec<String> = report.by_version.iter().map(share).collect();
    format!("{}, {}", all.join(", "), failures(report))
}

fn versions(report: &Report) -> Vec<&str> {
    report.by_version.keys().map(String::as_str).collect()
}

/// Writes a rule file and calls until `seen`; how long it took, or nothing when it never came.
fn until(
    mesh: &Mesh,
    args: &[&str],
    url: &str,
    seen: impl Fn(&Report) -> bool,
) -> anyhow::Result<Option<Duration>> {
    let start = Instant::now();
    while start.elapsed() < 2 * EFFECT {
        if seen(&mesh.call("shopper", url, args)?) {
            return Ok(Some(start.elapsed()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(None)
}

fn in_time(took: Option<Duration>) -> (bool, String) {
    match took {
        Some(took) => (took < EFFECT, format!("{} ms after the file was written", took.as_millis())),
        None => (false, "never".to_owned()),
    }
}

pub(super) fn splits(mesh: &Mesh, screen: &mut Screen, rules: Rules<'_>) -> anyhow::Result<()> {
    screen.step("Istio's rules steer the calls");
    let call = |n: &str| mesh.call("shopper", REVIEWS, &["-n", n, "-c", "4"]);
    let report = call("60")?;
    let all = versions(&report) == ["v1", "v2", "v3"] && report.failed == 0;
    screen.check("no rule: all versions of reviews", all, &shares(&report));

    let subsets = rules("destination-rule-all")?;
    mesh.apply("destination-rules.yaml", &subsets)?;
    mesh.apply("rules.yaml", &rules("virtual-service-all-v1")?)?;
    screen.command("cloud", "cp virtual-service-all-v1.yaml rules.yaml");
    let took = until(mesh, &["-n", "12"], REVIEWS, |r| versions(r) == ["v1"] && r.failed == 0)?;
    let (ok, figure) = in_time(took);
    screen.check("the rule takes effect within 2 s", ok, &figure);
    let report = call("60")?;
    screen.check("all to v1", versions(&report) == ["v1"] && report.failed == 0, &shares(&report));

    mesh.apply("rules.yaml", &without(&rules("virtual-service-all-v1")?, "reviews")?)?;
    mesh.apply("reviews.yaml", &rules("virtual-service-reviews-50-v3")?)?;
    screen.command("cloud", "cp virtual-service-reviews-50-v3.yaml reviews.yaml");
    let took = until(mesh, &["-n", "12"], REVIEWS, |r| versions(r) == ["v1", "v3"] && r.failed == 0)?;
    let (ok, figure) = in_time(took);
    screen.check("the replaced rule takes effect within 2 s", ok, &figure);
    let report = call("400")?;
    let v3 = report.by_version.get("v3").copied().unwrap_or(0);
    // Five standard deviations of a fair split of 400.
    let fair = (150..=250).contains(&v3) && versions(&report) == ["v1", "v3"];
    screen.check("half to v1, half to v3", fair && report.failed == 0, &shares(&report));

    mesh.apply("reviews.yaml", &rules("virtual-service-reviews-test-v2")?)?;
    screen.command("cloud", "cp virtual-service-reviews-test-v2.yaml reviews.yaml");
    let jason = ["-n", "20", "-H", "end-user: jason"];
    let took = until(mesh, &jason, REVIEWS, |r| versions(r) == ["v2"])?;
    let (mine, others) = (mesh.call("shopper", REVIEWS, &jason)?, call("20")?);
    let ok = took.is_some() && versions(&mine) == ["v2"] && versions(&others) == ["v1"];
    let figure = format!("jason: {}; others: {}", shares(&mine), shares(&others));
    screen.check("by header: jason sees v2, others v1", ok, &figure);
    Ok(())
}

/// A manifest without the objects of that name.
fn without(text: &str, name: &str) -> anyhow::Result<String> {
    let all = manifest::documents(text).context("reading rules")?;
    let rest = all.iter().filter(|d| d["metadata"]["name"] != name);
    Ok(rest.map(|d| format!("---\n{d:#}\n")).collect())
}

pub(super) fn faults(mesh: &Mesh, screen: &mut Screen, rules: Rules<'_>) -> anyhow::Result<()> {
    screen.step("A fault on purpose, for one user");
    let url = "http://ratings:9080/ratings/0";
    mesh.apply("rules.yaml", &without(&without(&rules("virtual-service-all-v1")?, "reviews")?, "ratings")?)?;
    mesh.apply("ratings.yaml", &rules("virtual-service-ratings-test-abort")?)?;
    screen.command("cloud", "cp virtual-service-ratings-test-abort.yaml ratings.yaml");
    let jason = ["-H", "end-user: jason"];
    let took = until(mesh, &jason, url, |r| r.by_status.contains_key(&500))?;
    let others = mesh.call("shopper", url, &["-n", "20"])?;
    let ok = took.is_some_and(|t| t < EFFECT) && others.failed == 0;
    screen.check("jason gets status 500, others 200", ok, &in_time(took).1);
    let page = mesh.call("shopper", "http://productpage:9080/productpage", &jason)?;
    let text: Value = serde_json::from_str(&page.last_body).unwrap_or_default();
    let rating = &text["reviews"]["body"]["reviews"][0]["rating"];
    let ok = page.by_status.contains_key(&200) && rating["status"] == 500;
    let figure = format!("reviews by {}, rating: {rating}", text["reviews"]["body"]["name"]);
    screen.check("the page shows the fault four calls deep", ok, &figure);
    Ok(())
}

pub(super) fn metrics(mesh: &Mesh, screen: &mut Screen) -> anyhow::Result<()> {
    screen.step("Metrics under Istio's names");
    let labels = ["destination_service_name=\"details\"", "response_code=\"200\"", "reporter=\"source\""];
    let count = || anyhow::Ok(metric(&mesh.metrics("edge-a")?, "istio_requests_total", &labels));
    // The proxy's threads hand their counts over every now and then: a count is final when it no longer moves.
    let settled = || {
        let mut last = count()?;
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(400));
            let now = count()?;
            if (now - last).abs() < 0.5 {
                break;
            }
            last = now;
        }
        anyhow::Ok(last)
    };
    let before = settled()?;
    mesh.call("shopper", "http://details:9080/details/0", &["-n", "50"])?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while count()? < before + 49.5 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    let after = settled()?;
    screen.say(&format!("istio_requests_total{{{}}} {before} → {after}", labels.join(",")));
    screen.check(
        "50 calls are 50 more requests",
        (after - before - 50.0).abs() < 0.5,
        &format!("+{}", after - before),
    );
    let inbound = metric(&mesh.metrics("edge-b")?, "istio_requests_total", &["reporter=\"destination\""]);
    let tcp =
        metric(&mesh.metrics("edge-b")?, "istio_tcp_connections_opened_total", &["reporter=\"destination\""]);
    let figure = format!("{inbound} requests, {tcp} connections");
    screen.check("the other side counts too", inbound + tcp > 0.0, &figure);
    Ok(())
}

pub(super) fn without_cloud(mesh: &mut Mesh, screen: &mut Screen) -> anyhow::Result<()> {
    screen.step("The controller stops, and the cloud is cut off");
    let url = "http://details:9080/details/0";
    let kept = mesh.load("shopper", url, &["--rate", "50", "-c", "2"])?;
    let fresh = mesh.load("shopper", url, &["--rate", "20", "-c", "2", "--no-keep-alive"])?;
    std::thread::sleep(Duration::from_millis(1500));
    screen.command("cloud", "kill mesh-controller");
    if let Some(mut controller) = mesh.controller.take() {
        controller.stop(Duration::from_secs(10));
    }
    std::thread::sleep(Duration::from_millis(1000));
    screen.command("lab", "cut cloud");
    mesh.world.cut("cloud", None)?;
    std::thread::sleep(Duration::from_millis(3000));
    let (kept, fresh) = (kept.finish()?, fresh.finish()?);
    let figure = format!("{} calls, {}", kept.sent, failures(&kept));
    screen.check("calls on open connections go on", kept.sent > 200 && kept.failed == 0, &figure);
    let figure = format!("{} connections, {}", fresh.sent, failures(&fresh));
    screen.check(
        "new connections, with a DNS lookup each, go on",
        fresh.sent > 80 && fresh.failed == 0,
        &figure,
    );

    screen.step("A node restarts its proxy with no cloud");
    screen.command("edge-a", "kill mesh-proxy; mesh-proxy --node edge-a …");
    if let Some(mut proxy) = mesh.procs.remove("edge-a") {
        proxy.stop(Duration::from_secs(40));
    }
    let start = Instant::now();
    mesh.start_proxy("edge-a", None)?;
    mesh.wait_ready("edge-a", Duration::from_secs(20))?;
    let took = start.elapsed();
    let figure = format!("{} ms", took.as_millis());
    screen.check("ready in less than 2 s, from its snapshot", took < Duration::from_secs(2), &figure);
    let report = mesh.call("shopper", url, &["-n", "50"])?;
    let total = start.elapsed();
    let figure = format!(
        "{} calls, {}, done {} ms after the start",
        report.sent,
        failures(&report),
        total.as_millis()
    );
    screen.check("calls between the sites go on", report.failed == 0 && report.sent == 50, &figure);
    let jason = mesh.call("shopper", REVIEWS, &["-n", "10", "-H", "end-user: jason"])?;
    let others = mesh.call("shopper", REVIEWS, &["-n", "10"])?;
    let ok = versions(&jason) == ["v2"] && versions(&others) == ["v1"];
    let figure = format!("jason: {}; others: {}", shares(&jason), shares(&others));
    screen.check("the rules still hold", ok, &figure);
    Ok(())
}
