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

fn called(telemetry: &Telemetry, source: &Peer, (destination, service): &(Peer, Destination)) {
    let security = Security::Unknown;
    let call = Call { reporter: Reporter::Source, source, destination, service, security };
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
    let text = node_rt::exposition(&registry.gather());
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
    assert!(sum("selvage_telemetry_overflow_total") > 0.0 && sum("selvage_telemetry_reduced_total") > 0.0);
}

#[test]
fn a_scrape_of_a_thousand_services_is_quick() {
    let registry = Registry::new();
    let telemetry = Telemetry::new(&registry, TelemetryConfig::default()).unwrap();
    let source = peer("client");
    (0..1000).for_each(|i| called(&telemetry, &source, &service(i)));
    let mut times: Vec<_> = (0..10)
        .map(|_| {
            let start = Instant::now();
            let length = node_rt::exposition(&registry.gather()).len();
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
