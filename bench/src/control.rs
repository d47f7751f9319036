//! What the controller costs with a mesh of 5,000 services and 5,000 rules: the first compile, one changed rule, memory.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use mesh_testkit::bins;
use serde_json::{Value, json};

use crate::{
    mesh::{replace, service},
    process::rss_mib,
    report::{COMPILE, RSS, Report, WIRE},
    subject,
};

const SERVICES: usize = 5000;
/// Objects of one file: as a folder of somebody's manifests, neither one file nor five thousand.
const PER_FILE: usize = 100;
const LIMIT: Duration = Duration::from_secs(60);
/// Time between two changes.
const ALONE: Duration = Duration::from_millis(300);
const XDS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 17_012);
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 17_014);
const ADMIN: &str = "127.0.0.1:17016";

/// Starts a controller of its own on that folder, and changes one rule in each round.
pub(crate) fn measure(dir: &Path, rounds: usize, report: &mut Report) -> Result<()> {
    let objects = dir.join("control-objects");
    write_world(&objects)?;
    eprintln!("bench: controller with {SERVICES} services and as many rules");
    let program = bins::find("mesh-controller").map_err(|e| anyhow!("mesh-controller: {e}"))?;
    let mut command = Command::new(program);
    command
        .arg("--source")
        .arg(format!("dir:{}", objects.display()))
        .arg("--state-dir")
        .arg(dir.join("control-state"))
        .args(["--listen", &XDS.to_string(), "--metrics-listen", &METRICS.to_string()])
        .args(["--admin-listen", ADMIN, "--log-level", "warn"]);
    let controller = subject::start("control", dir, command, METRICS)?;
    wait(|| {
        Ok(metric("selvage_controller_resources{type=\"service\"}")?.is_some_and(|n| n >= SERVICES as f64))
    })
    .context("the controller does not know all services")?;
    let place = ["control", "5000-services-5000-rules", "mesh-controller"];
    let first = compile_seconds()?;
    report.add(place, RSS, 0, rss_mib(&[controller.pid()]), None);
    report.add(["control", "start", "mesh-controller"], COMPILE, 0, first * 1000.0, None);

    let mut before = first;
    for round in 0..rounds.max(5) {
        // A change that comes alone: one close behind another waits for it.
        std::thread::sleep(ALONE);
        let generation = metric("selvage_controller_generation")?.unwrap_or_default();
        let file = objects.join("rules-7.json");
        let start = Instant::now();
        replace(&file, &rules(7, round + 1))?;
        wait(|| Ok(metric("selvage_controller_generation")?.is_some_and(|g| g > generation)))
            .context("a changed rule is not published")?;
        report.add(place, WIRE, round, start.elapsed().as_secs_f64() * 1000.0, None);
        let now = compile_seconds()?;
        report.add(place, COMPILE, round, (now - before) * 1000.0, None);
        before = now;
    }
    Ok(())
}

fn write_world(objects: &Path) -> Result<()> {
    fs::create_dir_all(objects).with_context(|| format!("create {}", objects.display()))?;
    for file in 0..SERVICES / PER_FILE {
        let items: Vec<Value> = numbers(file)
            .map(|i| {
                let address = [10, 98, (i / 250) as u8, (i % 250 + 1) as u8];
                let ports = json!([{ "name": "http", "port": 80 }]);
                service(&format!("svc-{i}"), address, &json!({ "app": format!("svc-{i}") }), &ports)
            })
            .collect();
        replace(&objects.join(format!("services-{file}.json")), &list(items))?;
        replace(&objects.join(format!("rules-{file}.json")), &rules(file, 0))?;
    }
    Ok(())
}

fn numbers(file: usize) -> std::ops::Range<usize> {
    file * PER_FILE..(file + 1) * PER_FILE
}

fn list(items: Vec<Value>) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

/// The rules of a file; the first one is changed by `edition`.
fn rules(file: usize, edition: usize) -> Value {
    let each = numbers(file).map(|i| {
        let edition = if i % PER_FILE == 0 { edition } else { 0 };
        let host = format!("svc-{i}");
        let route = json!([{ "destination": { "host": host } }]);
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": { "name": host, "namespace": "default" },
            "spec": { "hosts": [host], "http": [
                { "match": [{ "uri": { "prefix": format!("/edition-{edition}") } }], "route": route, "timeout": "3s" },
                { "match": [{ "headers": { "end-user": { "exact": "jason" } } }], "route": route },
                { "route": route },
            ] },
        })
    });
    list(each.collect())
}

fn wait(mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done()? {
        if start.elapsed() > LIMIT {
            bail!("not within {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Seconds that the controller has spent on applying and compiling so far.
fn compile_seconds() -> Result<f64> {
    metric("selvage_controller_compile_seconds_sum")?
        .ok_or_else(|| anyhow!("the controller has no compile time"))
}

/// The value of one line of the controller's metrics.
fn metric(name: &str) -> Result<Option<f64>> {
    let mut stream =
        TcpStream::connect_timeout(&METRICS, Duration::from_secs(5)).context("connect to metrics")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read metrics")?;
    Ok(answer.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok()))
}
