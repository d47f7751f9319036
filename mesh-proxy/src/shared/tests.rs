use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use mesh_api::{Resource, model};
use mesh_core::{Client, HttpOutcome, RequestView};

use super::*;

struct Request(String);

impl RequestView for Request {
    fn method(&self) -> &str {
        "GET"
    }
    fn authority(&self) -> &str {
        &self.0
    }
    fn path_and_query(&self) -> &str {
        "/"
    }
    fn scheme(&self) -> &str {
        "http"
    }
    fn header_values(&self, _: &str, _: &mut dyn FnMut(&str) -> bool) -> bool {
        false
    }
}

fn host(i: usize) -> String {
    format!("s{i}.default.svc.cluster.local")
}

fn service(i: usize) -> Change {
    Change::Set(Resource::Service(model::Service {
        host: host(i),
        namespace: "default".into(),
        name: format!("s{i}"),
        kind: model::service::Kind::ClusterIp as i32,
        vips: vec![format!("10.96.{}.{}", i / 250, i % 250 + 1)],
        ports: vec![model::Port { number: 80, protocol: model::Protocol::Http as i32, ..Default::default() }],
        ..Default::default()
    }))
}

fn endpoints(i: usize, generation: usize) -> Change {
    let endpoint = |j: usize| model::Endpoint {
        address: format!("10.{}.{}.{}", 1 + j, i / 250, i % 250 + 1),
        weight: u32::try_from(generation).unwrap() + 1,
        ports: vec![model::PortMap { service_port: 80, target_port: 8080 }],
        node: format!("edge-{j}"),
        ready: true,
        ..Default::default()
    };
    Change::Set(Resource::Endpoints(model::Endpoints {
        host: host(i),
        endpoints: (0..3).map(endpoint).collect(),
    }))
}

/// Requests go on while the tables of 5,000 services change as fast as they can.
#[test]
fn a_swap_delays_no_request() {
    const SERVICES: usize = 5_000;
    let shared = Shared::new(Arc::new(Config::default()), prometheus::Registry::new());
    let start = Instant::now();
    let applied = shared.apply((0..SERVICES).flat_map(|i| [service(i), endpoints(i, 0)]).collect());
    assert_eq!((applied.clusters_built, applied.rejected.len()), (SERVICES, 0));
    println!("{SERVICES} services from nothing: {:?}", start.elapsed());

    let stop = AtomicBool::new(false);
    let (mut delays, changes) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let client = Client::in_namespace("default");
            let requests: Vec<_> = (0..64).map(|i| Request(host(i * 78))).collect();
            let mut delays = Vec::with_capacity(1 << 20);
            while !stop.load(Ordering::Relaxed) && delays.len() < 1 << 20 {
                let request = &requests[delays.len() % requests.len()];
                let began = Instant::now();
                let tables = shared.tables.load();
                let decision = tables.route_http(&client, 80, None, request, &mut |_| 0.0);
                assert!(matches!(decision.outcome, HttpOutcome::Forward { cluster, .. } if cluster.endpoints.len() == 3));
                delays.push(began.elapsed());
            }
            delays
        });
        let until = Instant::now() + Duration::from_secs(1);
        let mut changes = 0;
        while Instant::now() < until {
            changes += 1;
            let applied = shared.apply(vec![endpoints(changes * 7 % SERVICES, changes)]);
            assert_eq!(applied.clusters_built, 1);
        }
        stop.store(true, Ordering::Relaxed);
        (reader.join().unwrap(), changes)
    });
    delays.sort_unstable();
    let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize];
    println!(
        "{} requests during {changes} changes of one service: p50 {:?}, p99.9 {:?}, longest {:?}",
        delays.len(),
        at(0.5),
        at(0.999),
        at(1.0)
    );
    // The longest is the scheduler's on a busy machine; a swap that blocked would show in far more than one of 1,000.
    assert!(at(0.999) < Duration::from_millis(5), "{:?}", at(0.999));
    assert!(changes > 50, "{changes} changes in a second");
}

#[tokio::test]
async fn an_address_waits_for_its_capture_and_no_longer_than_it_must() {
    let shared = Shared::new(Arc::new(Config::default()), prometheus::Registry::new());
    let long = Duration::from_secs(60);
    // Nothing is captured here: nobody waits.
    shared.apply(vec![service(1)]);
    shared.captured(long).await;
    // The rules are behind: the answer waits until they have caught up.
    shared.set_captured(Some(0));
    let mut waits = Box::pin(shared.captured(long));
    assert!(futures::poll!(&mut waits).is_pending());
    shared.set_captured(Some(shared.vips()));
    waits.await;
    // A change without new addresses makes nobody wait.
    shared.apply(vec![endpoints(1, 0)]);
    shared.captured(long).await;
    // Rules that cannot be written hold nobody up, and no wait is longer than its limit.
    shared.apply(vec![service(2)]);
    shared.captured(Duration::from_millis(20)).await;
    shared.set_captured(None);
    shared.captured(long).await;
}
