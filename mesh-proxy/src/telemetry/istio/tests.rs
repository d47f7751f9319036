//! How much the metrics of a large mesh are, and what a scrape of them costs.

use std::{sync::Arc, time::Instant};

use super::*;

fn peer(name: &str) -> Peer {
    Peer {
        workload: format!("{name}-v1"),
        namespace: "default".to_owned(),
        principal: format!("spiffe://cluster.local/ns/default/sa/{name}"),
        app: name.to_owned(),
        version: "v1".to_owned(),
        canonical_service: name.to_owned(),
        canonical_revision: "v1".to_owned(),
        cluster: "Kubernetes".to_owned(),
    }
}

fn service(i: usize) -> (Peer, Destination) {
    let name: Arc<str> = format!("service-{i}").into();
    let host = format!("{name}.default.svc.cluster.local").into();
    (peer(&name), Destination { host, name, namespace: "default".into() })
}

/// What a scrape writes.
fn exposed(telemetry: &Telemetry) -> Vec<u8> {
    let (mut out, mut next) = (Vec::new(), Some((0, 0)));
    while let Some(from) = next {
        next = telemetry.expose(from, &mut out);
    }
    out
}

fn called(telemetry: &Telemetry, source: &Peer, (destination, service): &(Peer, Destination)) {
    called_as(telemetry, Reporter::Source, source, (destination, service));
}

fn called_as(
    telemetry: &Telemetry,
    reporter: Reporter,
    source: &Peer,
    (destination, service): (&Peer, &Destination),
) {
    let call = Call { reporter, source, destination, service, security: Security::Unknown };
    let series = telemetry.request_series(&call, RequestProtocol::Http, Flags::NONE, 200, None).unwrap();
    series.total.inc();
    series.duration_ms.observe(1.0);
}

fn lines(text: &[u8]) -> usize {
    text.split(|b| *b == b'\n').filter(|l| !l.is_empty() && l[0] != b'#').count()
}

#[test]
fn a_thousand_services_and_a_hundred_peers_stay_below_fifty_thousand_series() {
    let registry = Registry::new();
    let telemetry = Telemetry::new(&registry, TelemetryConfig::default()).unwrap();
    let services: Vec<_> = (0..1000).map(service).collect();
    let mut calls = 0;
    for p in 0..100 {
        let source = peer(&format!("peer-{p}"));
        // All pairs until there is no room left, and a tenth of the others: they all take the same way.
        for (s, service) in services.iter().enumerate() {
            if p < 25 || (s + p) % 10 == 0 {
                called(&telemetry, &source, service);
                calls += 1;
            }
        }
    }
    let text = exposed(&telemetry);
    let series = lines(&text);
    println!("{calls} of 100,000 pairs called: {series} series, {} bytes a scrape", text.len());
    assert!((40_000..50_000).contains(&series), "{series}");
    let text = String::from_utf8(text).unwrap();
    let sum = |family: &str| -> f64 {
        let values = text.lines().filter(|l| l.starts_with(family)).map(|l| l.rsplit(' ').next().unwrap());
        values.map(|v| v.parse::<f64>().unwrap()).sum()
    };
    assert_eq!(sum("istio_requests_total{"), f64::from(calls), "no request is lost");
    assert_eq!(sum("istio_request_duration_milliseconds_count{"), f64::from(calls));
    assert!(telemetry.overflow.get() > 0 && telemetry.reduced.get() > 0);
}

#[test]
fn a_node_that_owns_what_a_hundred_peers_call_stays_below_as_well() {
    let telemetry = Telemetry::new(&Registry::new(), TelemetryConfig::default()).unwrap();
    // Fifty pods of this node, called by two pods of each of a hundred nodes, and callers of a thousand services.
    let own: Vec<_> = (0..50).map(service).collect();
    let all: Vec<_> = (0..1000).map(service).collect();
    let mut calls = 0;
    for p in 0..200 {
        let source = peer(&format!("peer-{p}"));
        for (destination, service) in &own {
            called_as(&telemetry, Reporter::Destination, &source, (destination, service));
            calls += 1;
        }
    }
    for p in 0..10 {
        let source = peer(&format!("here-{p}"));
        all.iter().for_each(|service| called(&telemetry, &source, service));
        calls += all.len();
    }
    let text = String::from_utf8(exposed(&telemetry)).unwrap();
    let series = lines(text.as_bytes());
    println!("{calls} pairs on both sides: {series} series, {} bytes a scrape", text.len());
    assert!(series < 50_000, "{series}");
    let of = |reporter: &str| {
        let head = format!("istio_requests_total{{reporter=\"{reporter}\"");
        text.lines().filter(|l| l.starts_with(&head)).count()
    };
    assert!(of("destination") > 1000 && of("source") > 1000, "{} {}", of("destination"), of("source"));
}

#[test]
fn a_scrape_and_a_gathering_say_the_same() {
    let registry = Registry::new();
    let telemetry = Telemetry::new(&registry, TelemetryConfig::default()).unwrap();
    let source = peer("odd \"name\"\\\n");
    (0..300).for_each(|i| called(&telemetry, &source, &service(i)));
    let call = Call {
        reporter: Reporter::Source,
        source: &source,
        destination: &Peer::unknown(),
        service: &Destination::passthrough(),
        security: Security::None,
    };
    telemetry.tcp_series(&call, Flags::NONE).unwrap().opened.inc();
    let sorted = |text: Vec<u8>| {
        let text = String::from_utf8(text).unwrap();
        let mut lines: Vec<_> = text.lines().filter(|l| l.contains("istio_")).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let scraped = sorted(exposed(&telemetry));
    assert!(scraped.len() > 300 * 60);
    assert_eq!(scraped, sorted(node_rt::exposition(&registry.gather())));
    let apart = Registry::new();
    Telemetry::apart(&apart, TelemetryConfig::default()).unwrap();
    assert!(apart.gather().iter().all(|f| !f.name().starts_with("istio_")));
}

#[test]
fn a_scrape_of_a_thousand_services_is_quick() {
    let telemetry = Telemetry::apart(&Registry::new(), TelemetryConfig::default()).unwrap();
    let source = peer("client");
    (0..1000).for_each(|i| called(&telemetry, &source, &service(i)));
    let mut times: Vec<_> = (0..10)
        .map(|_| {
            let start = Instant::now();
            let length = exposed(&telemetry).len();
            (start.elapsed(), length)
        })
        .collect();
    times.sort();
    let (median, slowest) = (times[5], times[9]);
    let share = median.0.as_secs_f64() / 15.0 * 100.0;
    println!(
        "1,000 services: a scrape of {} bytes takes {:?} (slowest of ten {:?}), {share:.2} % of a core every 15 s",
        median.1, median.0, slowest.0
    );
    // Loose: the machine that runs tests is busy, and this build may be without optimization.
    let limit = if cfg!(debug_assertions) { 10.0 } else { 1.0 };
    assert!(median.0.as_secs_f64() < limit, "{times:?}");
}
