//! What DestinationRules do to connections: hashing, localities, limits, TLS, the PROXY header, HTTP tunnels.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Request, StatusCode, Version};
use mesh_api::{
    Resource,
    model::{self, Protocol, client_tls::Mode},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    tls::{Ca, https},
    upstream::{Upstream, collect, full, tcp},
    world::{Options, VIP, World, endpoints, forward, get, ms, ruled, service},
};

const TO: &str = "10.96.0.1:80";

fn with_policy(protocol: Protocol, policy: model::TrafficPolicy) -> model::Service {
    let mut s = service("web", VIP, 80, protocol);
    s.policies = vec![model::DestinationPolicy {
        source: "default/web".into(),
        policy: Some(policy),
        ..Default::default()
    }];
    s
}

fn world(protocol: Protocol, policy: model::TrafficPolicy, at: &[(SocketAddr, &str)]) -> World {
    let options = Options { called: vec![TO.parse().unwrap()], ..Options::default() };
    let service = with_policy(protocol, policy);
    World::start(vec![Resource::Service(service), endpoints("web", 80, at)], options)
}

async fn five() -> (Vec<Arc<Upstream>>, Vec<(SocketAddr, &'static str)>) {
    let names = ["a", "b", "c", "d", "e"];
    let mut all = Vec::new();
    for name in names {
        all.push(Upstream::start(name).await);
    }
    let at = all.iter().zip(names).map(|(u, n)| (u.addr, n)).collect();
    (all, at)
}

fn hashed(key: model::consistent_hash::Key) -> model::TrafficPolicy {
    let hash = model::ConsistentHash { key: Some(key), ..Default::default() };
    let lb = model::LoadBalancer { consistent_hash: Some(hash), ..Default::default() };
    model::TrafficPolicy { load_balancer: Some(lb), ..Default::default() }
}

async fn who(world: &World, request: Request<crate::world::ClientBody>) -> (String, Option<String>) {
    let response = world.http1(TO).await.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let text = |name: &str| response.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
    (text("x-upstream").unwrap(), text("set-cookie"))
}

fn with(name: &str, value: &str) -> Request<crate::world::ClientBody> {
    Request::get("/").header("host", "web").header(name, value).body(full("")).unwrap()
}

#[tokio::test]
async fn a_header_keeps_a_client_with_its_endpoint() {
    let (_upstreams, at) = five().await;
    let world = world(Protocol::Http, hashed(model::consistent_hash::Key::Header("x-user".into())), &at);
    let mut seen = BTreeSet::new();
    for user in 0..20 {
        let user = format!("user-{user}");
        let first = who(&world, with("x-user", &user)).await.0;
        for _ in 0..3 {
            assert_eq!(who(&world, with("x-user", &user)).await.0, first);
        }
        seen.insert(first);
    }
    assert!(seen.len() >= 4, "{seen:?}");
}

#[tokio::test]
async fn a_cookie_is_given_and_keeps_a_client_with_its_endpoint() {
    let (_upstreams, at) = five().await;
    let cookie =
        model::HashCookie { name: "stay".into(), path: "/".into(), ttl: ms(60_000), ..Default::default() };
    let world = world(Protocol::Http, hashed(model::consistent_hash::Key::Cookie(cookie)), &at);
    for _ in 0..5 {
        let (first, given) = who(&world, get("web", "/")).await;
        let given = given.expect("a cookie");
        assert!(given.starts_with("stay=\"") && given.contains("; Max-Age=60; Path=/; HttpOnly"), "{given}");
        let mine = given.split(';').next().unwrap().to_owned();
        for _ in 0..3 {
            assert_eq!(who(&world, with("cookie", &mine)).await, (first.clone(), None));
        }
    }
}

#[tokio::test]
async fn connections_stay_with_their_endpoint_by_source_address() {
    let mut at = Vec::new();
    for name in ["a", "b", "c", "d"] {
        at.push((tcp(move |mut s| async move { s.write_all(name.as_bytes()).await.unwrap() }).await, name));
    }
    let world = world(Protocol::Tcp, hashed(model::consistent_hash::Key::SourceIp(true)), &at);
    let mut seen = BTreeSet::new();
    for _ in 0..10 {
        let mut said = String::new();
        world.dial(TO).await.read_to_string(&mut said).await.unwrap();
        seen.insert(said);
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
}

#[tokio::test]
async fn the_own_site_serves_until_it_does_not_answer() {
    let (near, far) = (Upstream::start("near").await, Upstream::start("far").await);
    let outlier =
        model::OutlierDetection { consecutive_5xx: 2, max_ejection_percent: 100, ..Default::default() };
    let policy = model::TrafficPolicy { outlier: Some(outlier), ..Default::default() };
    let place = |region: &str| Some(model::Locality { region: region.into(), ..Default::default() });
    let Resource::Endpoints(mut list) = endpoints("web", 80, &[(near.addr, "v1"), (far.addr, "v2")]) else {
        unreachable!()
    };
    list.endpoints[0].locality = place("eu");
    list.endpoints[1].locality = place("us");
    let node = model::Node { name: "here".into(), locality: place("eu"), ..Default::default() };
    let resources = vec![
        Resource::Node(node),
        Resource::Service(with_policy(Protocol::Http, policy)),
        Resource::Endpoints(list),
    ];
    let world = World::start(resources, Options { called: vec![TO.parse().unwrap()], ..Options::default() });
    for _ in 0..10 {
        assert_eq!(who(&world, get("web", "/")).await.0, "near");
    }
    for _ in 0..2 {
        let failing = with("x-test-status", "500");
        world.http1(TO).await.send_request(failing).await.unwrap();
    }
    for _ in 0..10 {
        assert_eq!(who(&world, get("web", "/")).await.0, "far");
    }
    // The node moves: what was far is near.
    let node = model::Node { name: "here".into(), locality: place("us"), ..Default::default() };
    world.apply(vec![Resource::Node(node)]);
    assert_eq!(who(&world, get("web", "/")).await.0, "far");
}

fn pool(pool: model::ConnectionPool) -> model::TrafficPolicy {
    model::TrafficPolicy { connection_pool: Some(pool), ..Default::default() }
}

#[tokio::test]
async fn http_is_upgraded_where_the_rule_says_so() {
    let up = Upstream::start("up").await;
    let upgrade = model::connection_pool::H2Upgrade::Upgrade.into();
    let world = world(
        Protocol::Http,
        pool(model::ConnectionPool { h2_upgrade: upgrade, ..Default::default() }),
        &[(up.addr, "v1")],
    );
    assert_eq!(world.get(TO, "web", "/").await.status(), StatusCode::OK);
    assert_eq!(up.last().version, Version::HTTP_2);
}

#[tokio::test]
async fn a_connection_lives_as_long_as_the_rule_says() {
    let up = Upstream::start("up").await;
    let short = || pool(model::ConnectionPool { max_connection_duration: ms(300), ..Default::default() });
    let http = world(Protocol::Http, short(), &[(up.addr, "v1")]);
    let mut client = http.http1(TO).await;
    for _ in 0..3 {
        client.ready().await.unwrap();
        collect(client.send_request(get("web", "/")).await.unwrap().into_body()).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    assert_eq!(
        up.connections.load(std::sync::atomic::Ordering::SeqCst),
        3,
        "each too old for the next request"
    );
    let silent = tcp(|mut s| async move {
        let mut rest = Vec::new();
        let _ended = s.read_to_end(&mut rest).await;
    })
    .await;
    let bytes = world(Protocol::Tcp, short(), &[(silent, "v1")]);
    let start = Instant::now();
    let mut stream = bytes.dial(TO).await;
    let _ended = stream.read(&mut [0; 1]).await;
    assert!(
        (Duration::from_millis(290)..Duration::from_secs(10)).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn a_full_limit_is_exact_and_says_so() {
    let up = Upstream::start("up").await;
    let policy = pool(model::ConnectionPool { max_requests: 3, ..Default::default() });
    let world = Arc::new(world(Protocol::Http, policy, &[(up.addr, "v1")]));
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::task::spawn(async move {
                let slow = with("x-test-delay-ms", "1500");
                let response = world.http1(TO).await.send_request(slow).await.unwrap();
                (response.status(), response.headers().contains_key("x-envoy-overloaded"))
            })
        })
        .collect();
    let mut results = Vec::new();
    for c in calls {
        results.push(c.await.unwrap());
    }
    assert_eq!(results.iter().filter(|r| r.0 == StatusCode::OK).count(), 3, "{results:?}");
    assert!(
        results
            .iter()
            .filter(|r| r.0 != StatusCode::OK)
            .all(|r| *r == (StatusCode::SERVICE_UNAVAILABLE, true))
    );
    world.metric(&["istio_requests_total", "response_flags=\"UO\""]).await;
}

fn tls(tls: model::ClientTls) -> model::TrafficPolicy {
    model::TrafficPolicy { tls: Some(tls), ..Default::default() }
}

fn file(dir: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

async fn said(world: &World, host: &str) -> (StatusCode, String) {
    let response = world.get(TO, host, "/").await;
    let status = response.status();
    let (body, _) = collect(response.into_body()).await;
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn tls_begins_here_with_the_name_of_the_rule_or_the_request() {
    let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
    let at = https(ca.pair(&["web", "named.example.com"]).acceptor(&["h2", "http/1.1"], None)).await;
    let simple = model::ClientTls {
        mode: Mode::Simple.into(),
        ca_certificates: file(&dir, "ca.pem", &ca.pem),
        ..Default::default()
    };
    let by_host = world(Protocol::Http, tls(simple.clone()), &[(at, "v1")]);
    assert_eq!(said(&by_host, "web").await, (StatusCode::OK, "web http/1.1 0".into()));
    let named = model::ClientTls { sni: "named.example.com".into(), ..simple.clone() };
    let by_rule = world(Protocol::Http2, tls(named), &[(at, "v1")]);
    assert_eq!(said(&by_rule, "web").await, (StatusCode::OK, "named.example.com h2 0".into()));
    // The server's certificate is for other names than the rule wants.
    let wanted = model::ClientTls { subject_alt_names: vec!["spiffe://x/y".into()], ..simple.clone() };
    let refused = world(Protocol::Http, tls(wanted), &[(at, "v1")]);
    assert_eq!(said(&refused, "web").await.0, StatusCode::SERVICE_UNAVAILABLE);
    let other = model::ClientTls { ca_certificates: file(&dir, "other.pem", &Ca::new().pem), ..simple };
    let refused = world(Protocol::Http, tls(other), &[(at, "v1")]);
    assert_eq!(said(&refused, "web").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn mutual_tls_by_a_secret_that_changes() {
    let (ca, new) = (Ca::new(), Ca::new());
    let at = https(ca.pair(&["web"]).acceptor(&[], Some(&ca))).await;
    let mutual =
        model::ClientTls { mode: Mode::Mutual.into(), secret: "default/me".into(), ..Default::default() };
    let policy = model::TrafficPolicy {
        // A connection for each request: each handshake shows what is in force.
        connection_pool: Some(model::ConnectionPool { max_requests_per_connection: 1, ..Default::default() }),
        ..tls(mutual)
    };
    let world = world(Protocol::Http, policy, &[(at, "v1")]);
    assert_eq!(said(&world, "web").await.0, StatusCode::SERVICE_UNAVAILABLE, "no secret yet");
    world.apply(vec![Resource::Secret(ca.pair(&["me"]).secret("default/me", Some(&ca)))]);
    // An endpoint that failed is left alone for a moment.
    let mut answer = said(&world, "web").await;
    for _ in 0..100 {
        if answer.0 == StatusCode::OK {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        answer = said(&world, "web").await;
    }
    assert_eq!(answer, (StatusCode::OK, "web - 1".into()));
    world.apply(vec![Resource::Secret(new.pair(&["me"]).secret("default/me", Some(&new)))]);
    assert_eq!(said(&world, "web").await.0, StatusCode::SERVICE_UNAVAILABLE, "another authority now");
}

#[tokio::test]
async fn the_proxy_header_comes_first() {
    for (version, first) in
        [(1, &b"PROXY TCP4 127.0.0.1 10.96.0.1 "[..]), (2, &b"\r\n\r\n\0\r\nQUIT\n\x21\x11"[..])]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let policy = model::TrafficPolicy {
            proxy_protocol: Some(model::ProxyProtocol { version }),
            ..Default::default()
        };
        let world = world(Protocol::Tcp, policy, &[(at, "v1")]);
        let mut client = world.dial(TO).await;
        client.write_all(b"payload").await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"payload") {
            assert_ne!(server.read_buf(&mut got).await.unwrap(), 0);
        }
        assert!(got.starts_with(first), "{:?}", String::from_utf8_lossy(&got));
    }
}

#[tokio::test]
async fn bytes_go_through_an_http_proxy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let tunnel = model::HttpTunnel { method: "CONNECT".into(), host: "db.example.com".into(), port: 5432 };
    let policy = model::TrafficPolicy { tunnel: Some(tunnel), ..Default::default() };
    let world = world(Protocol::Tcp, policy, &[(at, "v1")]);
    let mut client = world.dial(TO).await;
    client.write_all(b"ping").await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n\r\n") {
        assert_ne!(server.read_buf(&mut got).await.unwrap(), 0);
    }
    assert!(got.starts_with(b"CONNECT db.example.com:5432 HTTP/1.1\r\n"));
    server.write_all(b"HTTP/1.1 200 OK\r\n\r\npong").await.unwrap();
    let mut answer = [0; 4];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"pong");
    let mut asked = [0; 4];
    server.read_exact(&mut asked).await.unwrap();
    assert_eq!(&asked, b"ping");
}

#[tokio::test]
async fn passthrough_leaves_the_choice_to_the_caller_also_behind_a_rule() {
    use model::load_balancer::Simple;
    let (_upstreams, at) = five().await;
    let (called, name) = at[2];
    for (simple, alone) in [(Simple::Passthrough, true), (Simple::RoundRobin, false)] {
        let lb = model::LoadBalancer { simple: simple.into(), ..Default::default() };
        let policy = model::TrafficPolicy { load_balancer: Some(lb), ..Default::default() };
        let web = ruled(with_policy(Protocol::Http, policy), forward("web"));
        let options = Options { called: vec![called], ..Options::default() };
        let world = World::start(vec![web, endpoints("web", 80, &at)], options);
        let mut seen = BTreeSet::new();
        for _ in 0..10 {
            let response = world.get(&called.to_string(), "web", "/").await;
            seen.insert(collect(response.into_body()).await.0);
        }
        assert!(seen.contains(name.as_bytes()), "{simple:?}: {seen:?}");
        assert_eq!(seen.len() == 1, alone, "{simple:?}: {seen:?}");
    }
}
