//! What a scrape of the proxy costs once a thousand services have been called, and what it does to requests under way.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::{
    load::{self, Kind, Outcome},
    mesh::{replace, service},
    process::cpu_seconds,
    report::{Metric, P50, P99, Report},
    subject::Group,
    world::World,
};

const SERVICES: usize = 1000;
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15_020);
/// How often Prometheus scrapes; a share of a core is of this.
const INTERVAL: Duration = Duration::from_secs(15);
/// How often the load is scraped, so that a slice of it has some.
const PRESSED: Duration = Duration::from_secs(1);
const LOAD: Kind = Kind::Rate(2000, 16);
const LIMIT: Duration = Duration::from_secs(60);

const TIME_P50: Metric = Metric("scrape_p50_ms", "ms");
const TIME_P99: Metric = Metric("scrape_p99_ms", "ms");
const SIZE: Metric = Metric("scrape_mib", "MiB");
const CPU: Metric = Metric("cpu_ms_per_scrape", "ms");
const SHARE: Metric = Metric("core_percent_at_15s", "%");

/// Calls every service once, scrapes, and loads one service with and without scrapes, in turns.
pub(crate) fn measure(world: &World, quick: bool, report: &mut Report) -> Result<()> {
    let Some(group) = world.groups.iter().find(|g| g.name == "mesh-proxy") else { return Ok(()) };
    call_all(world)?;
    // What workers have counted is seen a moment later.
    std::thread::sleep(Duration::from_secs(1));
    let (scrapes, rounds, slice) =
        if quick { (20, 2, Duration::from_secs(3)) } else { (100, 6, Duration::from_secs(8)) };
    cost(group, scrapes, report)?;
    let Some((target, host)) =
        group.subjects.iter().find(|s| s.name.ends_with("-l7")).and_then(|s| Some((s.http?, &s.host)))
    else {
        return Ok(());
    };
    load::run(LOAD, target, host, Duration::from_secs(1))?;
    for round in 0..rounds {
        eprintln!("bench: scrape: round {} of {rounds}", round + 1);
        for turn in 0..2 {
            let scraped = (round + turn) % 2 == 0;
            let outcome = if scraped {
                under_scrapes(target, host, slice)?
            } else {
                load::run(LOAD, target, host, slice)?
            };
            let scenario =
                if scraped { "rate-2000-16-scraped-each-second" } else { "rate-2000-16-not-scraped" };
            for (metric, q) in [(P50, 0.5), (P99, 0.99)] {
                let value = outcome.latency.quantile_us(q).unwrap_or(f64::NAN);
                report.add(["scrape", scenario, "mesh-proxy-l7"], metric, round, value, None);
            }
            report.failed(scenario, "mesh-proxy-l7", outcome.failed);
        }
    }
    Ok(())
}

/// Makes the services, and calls each until it answers.
fn call_all(world: &World) -> Result<()> {
    eprintln!("bench: {SERVICES} services are called");
    let address = |i: usize| [10, 97, 100 + (i / 250) as u8, (i % 250 + 1) as u8];
    let ports = json!([{ "name": "http", "port": 80, "targetPort": 8080 }]);
    let of = |i| service(&format!("many-{i}"), address(i), &json!({ "app": "near" }), &ports);
    let all: Vec<_> = (0..SERVICES).map(of).collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": all });
    replace(&world.dir.path().join("objects").join("scrape.json"), &list)?;
    let start = Instant::now();
    for i in 0..SERVICES {
        let host = format!("many-{i}.default.svc.cluster.local");
        while !answers((address(i), 80).into(), &host) {
            if start.elapsed() > LIMIT {
                bail!("{host} does not answer");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

fn answers(target: SocketAddr, host: &str) -> bool {
    let call = || {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_millis(500))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(&load::request(host, true))?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok::<_, std::io::Error>(answer.starts_with(b"HTTP/1.1 200"))
    };
    call().unwrap_or(false)
}

/// One scrape: how long it took and how many bytes came.
fn scrape() -> Result<(Duration, usize)> {
    let start = Instant::now();
    let mut stream =
        TcpStream::connect_timeout(&METRICS, Duration::from_secs(5)).context("connect to metrics")?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let (mut buffer, mut bytes) = (vec![0; 1 << 20], 0);
    loop {
        match stream.read(&mut buffer).context("read metrics")? {
            0 => return Ok((start.elapsed(), bytes)),
            n => bytes += n,
        }
    }
}

/// Scrapes of a proxy that has nothing else to do.
fn cost(group: &Group, scrapes: usize, report: &mut Report) -> Result<()> {
    scrape()?;
    let before = cpu_seconds(&group.pids);
    let mut times = Vec::with_capacity(scrapes);
    let mut size = 0;
    for _ in 0..scrapes {
        let (took, bytes) = scrape()?;
        times.push(took.as_secs_f64() * 1000.0);
        size = bytes;
    }
    let cpu = (cpu_seconds(&group.pids) - before) / scrapes as f64;
    times.sort_by(f64::total_cmp);
    let place = ["scrape", "1000-services", "mesh-proxy"];
    let share = cpu / INTERVAL.as_secs_f64() * 100.0;
    for (metric, value) in [
        (TIME_P50, times[scrapes / 2]),
        (TIME_P99, times[(scrapes * 99 / 100).min(scrapes - 1)]),
        (SIZE, size as f64 / f64::from(1 << 20)),
        (CPU, cpu * 1000.0),
        (SHARE, share),
    ] {
        report.add(place, metric, 0, value, None);
    }
    Ok(())
}

/// A slice of load while the proxy is scraped.
fn under_scrapes(target: SocketAddr, host: &str, slice: Duration) -> Result<Outcome> {
    let over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let scraping = threads.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                scrape()?;
                std::thread::sleep(PRESSED);
            }
            anyhow::Ok(())
        });
        let outcome = load::run(LOAD, target, host, slice);
        over.store(true, Ordering::Relaxed);
        match scraping.join() {
            Ok(scraped) => scraped?,
            Err(_panicked) => bail!("the scrapes ended in a panic"),
        }
        Ok(outcome?)
    })
}
