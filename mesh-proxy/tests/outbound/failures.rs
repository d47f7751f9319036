//! Endpoints that are not there, and limits.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Request, StatusCode};
use mesh_api::{
    Resource,
    model::{self, Protocol},
};
use tokio::io::AsyncWriteExt;

use crate::{
    upstream::{Upstream, collect, full},
    world::{Options, VIP, World, drain, endpoints, forward, get, ms, ruled, service},
};

const TO: &str = "10.96.0.1:80";
const HOST: &str = "web";

fn start(resources: Vec<Resource>) -> World {
    World::start(resources, Options { called: vec![TO.parse().unwrap()], ..Options::default() })
}

fn policy(pool: model::ConnectionPool) -> model::DestinationPolicy {
    model::DestinationPolicy {
        source: "default/web".into(),
        policy: Some(model::TrafficPolicy { connection_pool: Some(pool), ..Default::default() }),
        ..Default::default()
    }
}

/// A listener whose queue is full: connecting to it gets no answer, as from a host that drops packets.
struct BlackHole {
    addr: SocketAddr,
    _listener: std::net::TcpListener,
    _fill: Vec<std::net::TcpStream>,
}

impl BlackHole {
    fn new() -> Self {
        let socket = socket(0);
        let addr = socket.local_addr().unwrap();
        let mut fill = Vec::new();
        // Fill the queue until a connection is no longer answered.
        for _ in 0..16 {
            match std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(150)) {
                Ok(s) => fill.push(s),
                Err(_) => return Self { addr, _listener: socket, _fill: fill },
            }
        }
        panic!("the listen queue takes everything");
    }
}

fn socket(backlog: i32) -> std::net::TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.listen(backlog).unwrap();
    socket.into()
}

fn refusing() -> SocketAddr {
    mesh_testkit::ports::free_address()
}

#[tokio::test]
async fn one_black_hole_of_three_slows_nobody_down() {
    let hole = BlackHole::new();
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let world = start(vec![
        Resource::Service(service("web", VIP, 80, Protocol::Http)),
        endpoints("web", 80, &[(hole.addr, "hole"), (a.addr, "a"), (b.addr, "b")]),
    ]);
    let mut times = Vec::new();
    for _ in 0..100 {
        let begin = Instant::now();
        let response = world.get(TO, HOST, "/").await;
        assert_eq!(response.status(), StatusCode::OK);
        times.push(begin.elapsed());
        collect(response.into_body()).await;
    }
    times.sort();
    assert!(times[98] < Duration::from_secs(1), "p99 {:?}", times[98]);
    assert!(
        times[90] < Duration::from_millis(100),
        "p90 {:?}: the hole is left alone after one try",
        times[90]
    );
}

#[tokio::test]
async fn at_l4_a_black_hole_slows_nobody_down_either() {
    let hole = BlackHole::new();
    let good = crate::upstream::tcp(|mut s| async move {
        let _sent = s.write_all(b"hello").await;
    })
    .await;
    let world = start(vec![
        Resource::Service(service("web", VIP, 80, Protocol::Tcp)),
        endpoints("web", 80, &[(hole.addr, "hole"), (good, "a"), (good, "b")]),
    ]);
    let mut slowest = Duration::ZERO;
    for _ in 0..40 {
        let begin = Instant::now();
        let mut stream = world.dial(TO).await;
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut text).await.unwrap();
        assert_eq!(text, "hello");
        slowest = slowest.max(begin.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

#[tokio::test]
async fn a_refusing_endpoint_is_passed_over_at_once() {
    let good = Upstream::start("good").await;
    let world = start(vec![
        Resource::Service(service("web", VIP, 80, Protocol::Http)),
        endpoints("web", 80, &[(refusing(), "a"), (refusing(), "b"), (good.addr, "good")]),
    ]);
    for _ in 0..30 {
        let begin = Instant::now();
        assert_eq!(world.get(TO, HOST, "/").await.status(), StatusCode::OK);
        assert!(begin.elapsed() < Duration::from_millis(240), "{:?}", begin.elapsed());
    }
    assert_eq!(good.requests(), 30);
}

#[tokio::test]
async fn nobody_there() {
    let world = start(vec![
        Resource::Service(service("web", VIP, 80, Protocol::Http)),
        endpoints("web", 80, &[(refusing(), "a")]),
    ]);
    let response = world.get(TO, HOST, "/").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let body = collect(response.into_body()).await.0;
    assert!(String::from_utf8_lossy(&body).contains("upstream connect error"), "{body:?}");
    world
        .metric(&["istio_requests_total{", "response_flags=\"UF,URX\"", "destination_workload=\"web-a\""])
        .await;
    world.apply(vec![endpoints("web", 80, &[])]);
    let response = world.get(TO, HOST, "/").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(collect(response.into_body()).await.0, "no healthy upstream");
    world.metric(&["istio_requests_total{", "response_flags=\"UH\""]).await;
}

#[tokio::test]
async fn a_black_hole_alone_ends_with_the_connect_timeout() {
    let hole = BlackHole::new();
    let mut web = service("web", VIP, 80, Protocol::Http);
    web.policies = vec![policy(model::ConnectionPool { connect_timeout: ms(200), ..Default::default() })];
    let Resource::Service(web) = ruled(
        web,
        model::HttpRule {
            retry: Some(model::RetryPolicy { attempts: 0, ..Default::default() }),
            ..forward("web")
        },
    ) else {
        unreachable!()
    };
    let world = start(vec![Resource::Service(web), endpoints("web", 80, &[(hole.addr, "a")])]);
    let begin = Instant::now();
    let response = world.get(TO, HOST, "/").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    let body = collect(response.into_body()).await.0;
    assert!(String::from_utf8_lossy(&body).contains("connection timeout"), "{body:?}");
}

#[tokio::test]
async fn a_rule_to_nowhere_says_so() {
    let world = start(vec![ruled(service("web", VIP, 80, Protocol::Http), forward("missing"))]);
    assert_eq!(world.get(TO, HOST, "/").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    world.metric(&["istio_requests_total{", "response_flags=\"NC\""]).await;
}

#[tokio::test]
async fn outside_the_mesh_is_closed_when_only_the_mesh_may_be_called() {
    let world = World::start(
        vec![Resource::MeshConfig(model::MeshConfig {
            cluster_domain: "cluster.local".into(),
            outbound: model::mesh_config::OutboundMode::RegistryOnly.into(),
            ..Default::default()
        })],
        Options { called: vec!["192.0.2.1:80".parse().unwrap()], ..Options::default() },
    );
    let response = world.get("192.0.2.1:80", "stranger.example", "/").await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn outside_the_mesh_is_reached_by_address() {
    let stranger = Upstream::start("stranger").await;
    let to = stranger.addr.to_string();
    let world = World::start(Vec::new(), Options { called: vec![stranger.addr], ..Options::default() });
    assert_eq!(world.get(&to, "stranger.example", "/").await.status(), StatusCode::OK);
    world.metric(&["istio_requests_total{", "destination_service=\"PassthroughCluster\""]).await;
}

#[tokio::test]
async fn requests_beyond_the_limit_are_refused_at_once() {
    let upstream = Upstream::start("v1").await;
    let mut web = service("web", VIP, 80, Protocol::Http);
    web.policies = vec![policy(model::ConnectionPool { max_requests: 1, ..Default::default() })];
    let world = start(vec![Resource::Service(web), endpoints("web", 80, &[(upstream.addr, "v1")])]);
    let mut first = world.http1(TO).await;
    let slow =
        Request::get("/").header("host", HOST).header("x-test-delay-ms", "600").body(full("")).unwrap();
    let slow = tokio::task::spawn(async move { first.send_request(slow).await.unwrap().status() });
    while upstream.requests() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let begin = Instant::now();
    let response = world.get(TO, HOST, "/").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["x-envoy-overloaded"], "true");
    assert!(begin.elapsed() < Duration::from_millis(400));
    assert_eq!(slow.await.unwrap(), StatusCode::OK);
    assert_eq!(world.get(TO, HOST, "/").await.status(), StatusCode::OK, "the place is free again");
    world.metric(&["istio_requests_total{", "response_flags=\"UO\""]).await;
}

#[tokio::test]
async fn requests_wait_for_one_of_few_connections() {
    let upstream = Upstream::start("v1").await;
    let mut web = service("web", VIP, 80, Protocol::Http);
    web.policies = vec![policy(model::ConnectionPool { max_connections: 1, ..Default::default() })];
    let world = Arc::new(start(vec![Resource::Service(web), endpoints("web", 80, &[(upstream.addr, "v1")])]));
    let calls = (0..5).map(|_| {
        let world = Arc::clone(&world);
        async move {
            let mut client = world.http1(TO).await;
            let request = Request::get("/")
                .header("host", HOST)
                .header("x-test-delay-ms", "30")
                .body(full(""))
                .unwrap();
            let response = client.send_request(request).await.unwrap();
            let status = response.status();
            collect(response.into_body()).await;
            status
        }
    });
    let all = tokio::time::timeout(Duration::from_secs(10), futures::future::join_all(calls)).await.unwrap();
    assert_eq!(all, [StatusCode::OK; 5]);
    assert_eq!(upstream.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_endpoint_that_fails_is_ejected() {
    let (good, bad) = (Upstream::start("good").await, Upstream::start("bad").await);
    let mut web = service("web", VIP, 80, Protocol::Http);
    web.policies = vec![model::DestinationPolicy {
        source: "default/web".into(),
        policy: Some(model::TrafficPolicy {
            outlier: Some(model::OutlierDetection {
                consecutive_5xx: 2,
                interval: ms(10_000),
                base_ejection: ms(30_000),
                max_ejection_percent: 50,
                ..Default::default()
            }),
            load_balancer: Some(model::LoadBalancer {
                simple: model::load_balancer::Simple::RoundRobin.into(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }];
    let world =
        start(vec![Resource::Service(web), endpoints("web", 80, &[(good.addr, "good"), (bad.addr, "bad")])]);
    let mut client = world.http1(TO).await;
    for _ in 0..20 {
        // Both fail the same way, but only one may be ejected.
        let request =
            Request::get("/").header("host", HOST).header("x-test-status", "500").body(full("")).unwrap();
        collect(client.send_request(request).await.unwrap().into_body()).await;
    }
    let (a, b) = (good.requests(), bad.requests());
    assert!(a.min(b) <= 3, "one of them is out: {a} and {b}");
}

#[tokio::test]
async fn a_drain_finishes_what_is_under_way_and_no_request_fails() {
    let upstream = Upstream::start("v1").await;
    let world = start(vec![
        Resource::Service(service("web", VIP, 80, Protocol::Http)),
        endpoints("web", 80, &[(upstream.addr, "v1")]),
    ]);
    let mut idle = world.http1(TO).await;
    collect(idle.send_request(get(HOST, "/")).await.unwrap().into_body()).await;
    let mut busy = world.http1(TO).await;
    let slow =
        Request::get("/").header("host", HOST).header("x-test-delay-ms", "300").body(full("")).unwrap();
    let slow = tokio::task::spawn(async move {
        let response = busy.send_request(slow).await.unwrap();
        (response.status(), collect(response.into_body()).await.0)
    });
    while upstream.requests() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let begin = Instant::now();
    let report = drain(&world, Duration::from_secs(10));
    let (status, body) = slow.await.unwrap();
    assert_eq!((status, &body[..]), (StatusCode::OK, &b"v1"[..]));
    let report = report.join().unwrap();
    assert_eq!(report.cut_off, 0, "the idle connection was closed, the busy one finished");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn an_idle_connection_makes_room_for_one_to_another_endpoint() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let mut web = service("web", VIP, 80, Protocol::Http);
    let mut limited = policy(model::ConnectionPool { max_connections: 1, ..Default::default() });
    if let Some(p) = &mut limited.policy {
        let simple = model::load_balancer::Simple::RoundRobin.into();
        p.load_balancer = Some(model::LoadBalancer { simple, ..Default::default() });
    }
    web.policies = vec![limited];
    let world = start(vec![Resource::Service(web), endpoints("web", 80, &[(a.addr, "a"), (b.addr, "b")])]);
    let mut client = world.http1(TO).await;
    for _ in 0..10 {
        let begin = Instant::now();
        let response = client.send_request(get(HOST, "/")).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        collect(response.into_body()).await;
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    }
    assert_eq!((a.requests(), b.requests()), (5, 5));
}
