//! What rules do: faults, times, edits, answers, mirrors, cross-origin, weights.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use http::{Request, StatusCode};
use mesh_api::{
    Resource,
    model::{self, Protocol, fault, http_rule::Action},
};
use mesh_core::DiceKind;

use crate::{
    upstream::{Upstream, collect, full},
    world::{Options, VIP, World, endpoints, forward, get, ms, ruled, service},
};

pub const TO: &str = "10.96.0.1:80";
pub const HOST: &str = "web";

pub async fn world(rule: model::HttpRule) -> (World, Arc<Upstream>) {
    world_with(rule, Options::default()).await
}

async fn world_with(rule: model::HttpRule, mut options: Options) -> (World, Arc<Upstream>) {
    let upstream = Upstream::start("v1").await;
    options.called = vec![TO.parse().unwrap()];
    let resources = vec![
        ruled(service("web", VIP, 80, Protocol::Http), rule),
        endpoints("web", 80, &[(upstream.addr, "v1")]),
    ];
    (World::start(resources, options), upstream)
}

pub fn with(name: &str, value: &str) -> Request<crate::world::ClientBody> {
    Request::get("/").header("host", HOST).header(name, value).body(full("")).unwrap()
}

#[tokio::test]
async fn faults_hit_the_share_that_the_rule_names() {
    // Dice that go round in steps of a tenth: exactly three in ten are below 0.3.
    let turn = Arc::new(AtomicU64::new(0));
    let dice: Arc<dyn Fn(DiceKind) -> f64 + Send + Sync> = Arc::new(move |kind| match kind {
        DiceKind::FaultAbort => (turn.fetch_add(1, Ordering::SeqCst) % 10) as f64 / 10.0,
        _ => 0.0,
    });
    let rule = model::HttpRule {
        fault: Some(model::Fault {
            abort: Some(fault::Abort { parts_per_million: 300_000, http_status: 418, grpc: None }),
            delay: None,
        }),
        ..forward("web")
    };
    let (world, upstream) = world_with(rule, Options { dice: Some(dice), ..Options::default() }).await;
    let mut client = world.http1(TO).await;
    let mut aborted = 0;
    for _ in 0..100 {
        let response = client.send_request(get(HOST, "/")).await.unwrap();
        if response.status() == 418 {
            aborted += 1;
            assert_eq!(collect(response.into_body()).await.0, "fault filter abort");
        } else {
            assert_eq!(collect(response.into_body()).await.0, "v1");
        }
    }
    assert_eq!((aborted, upstream.requests()), (30, 70));
    world.metric(&["istio_requests_total{", "response_flags=\"FI\"", "response_code=\"418\"", "} 30"]).await;
}

#[tokio::test]
async fn a_delay_comes_before_the_routes_time_and_before_an_abort() {
    let rule = model::HttpRule {
        timeout: ms(100),
        fault: Some(model::Fault {
            delay: Some(fault::Delay { parts_per_million: 1_000_000, fixed: ms(300) }),
            abort: None,
        }),
        ..forward("web")
    };
    let (world, _upstream) = world(rule).await;
    let start = Instant::now();
    assert_eq!(world.get(TO, HOST, "/").await.status(), StatusCode::OK);
    assert!(start.elapsed() >= Duration::from_millis(300));
    world.metric(&["istio_requests_total{", "response_flags=\"DI\""]).await;
}

#[tokio::test]
async fn the_routes_time_is_kept() {
    let (world, _upstream) = world(model::HttpRule { timeout: ms(150), ..forward("web") }).await;
    let mut client = world.http1(TO).await;
    let start = Instant::now();
    let response = client.send_request(with("x-test-delay-ms", "5000")).await.unwrap();
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(collect(response.into_body()).await.0, "upstream request timeout");
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    world.metric(&["istio_requests_total{", "response_flags=\"UT\"", "response_code=\"504\""]).await;
    // The connection to the client is not harmed.
    assert_eq!(client.send_request(get(HOST, "/")).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn the_routes_time_ends_a_response_that_takes_too_long() {
    let (world, _upstream) = world(model::HttpRule { timeout: ms(300), ..forward("web") }).await;
    let response = world.get(TO, HOST, "/trickle").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(http_body_util::BodyExt::collect(response.into_body()).await.is_err());
    world.metric(&["istio_requests_total{", "response_flags=\"UT\"", "response_code=\"200\""]).await;
}

#[tokio::test]
async fn paths_authorities_and_headers_are_edited() {
    let value = |name: &str, value: &str| model::HeaderValue { name: name.into(), value: value.into() };
    let ops = |prefix: &str| model::HeaderOp {
        set: vec![value(&format!("{prefix}-set"), "new")],
        add: vec![value(&format!("{prefix}-add"), "more")],
        remove: vec![format!("{prefix}-gone")],
    };
    let rule = model::HttpRule {
        matches: vec![model::HttpMatch {
            uri: Some(model::StringMatch { kind: Some(model::string_match::Kind::Prefix("/api".into())) }),
            ..Default::default()
        }],
        rewrite: Some(model::Rewrite {
            uri: "/v2".into(),
            authority: "other.example".into(),
            ..Default::default()
        }),
        headers: Some(model::HeaderOps { request: Some(ops("x-q")), response: Some(ops("x-r")) }),
        ..forward("web")
    };
    let (world, upstream) = world(rule).await;
    upstream.extra_headers.lock().unwrap().insert("x-r-gone", "1".parse().unwrap());
    upstream.extra_headers.lock().unwrap().insert("x-r-set", "old".parse().unwrap());
    upstream.extra_headers.lock().unwrap().insert("x-r-add", "one".parse().unwrap());
    let mut client = world.http1(TO).await;
    let request = Request::get("/api/items?x=1")
        .header("host", HOST)
        .header("x-q-gone", "1")
        .header("x-q-set", "old")
        .header("x-q-add", "one")
        .body(full(""))
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    let all = |h: &http::HeaderMap, n: &str| {
        h.get_all(n).iter().map(|v| v.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let seen = upstream.last();
    assert_eq!(seen.path, "/v2/items?x=1");
    assert_eq!(seen.authority, "other.example");
    assert_eq!(seen.headers["x-envoy-original-path"], "/api/items?x=1");
    assert_eq!(all(&seen.headers, "x-q-set"), ["new"]);
    assert_eq!(all(&seen.headers, "x-q-add"), ["one", "more"]);
    assert!(!seen.headers.contains_key("x-q-gone"));
    assert_eq!(all(response.headers(), "x-r-set"), ["new"]);
    assert_eq!(all(response.headers(), "x-r-add"), ["one", "more"]);
    assert!(!response.headers().contains_key("x-r-gone"));
    // The rule is for that path only.
    assert_eq!(world.get(TO, HOST, "/elsewhere").await.status(), StatusCode::NOT_FOUND);
    world.metric(&["istio_requests_total{", "response_flags=\"NR\""]).await;
}

/// What Envoy's operators make of headers, on both messages.
#[tokio::test]
async fn headers_are_made_of_what_a_call_says() {
    let ops = |all: &[(&str, &str)]| {
        let value = |(name, value): &(&str, &str)| model::HeaderValue {
            name: (*name).into(),
            value: (*value).into(),
        };
        model::HeaderOp { set: all.iter().map(value).collect(), ..Default::default() }
    };
    let request = ops(&[
        ("x-client", "%DOWNSTREAM_REMOTE_ADDRESS%"),
        ("x-client-ip", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
        ("x-called", "%DOWNSTREAM_LOCAL_ADDRESS%"),
        ("x-first", "%REQ(x-none?X-A)%"),
        ("x-cut", "%REQ(x-a):3%"),
        ("x-path", "%REQ(:PATH)% by %REQ(:METHOD)% at %REQ(:AUTHORITY)%"),
        ("x-share", "100%% of %PROTOCOL%"),
        ("x-stays-away", "%REQ(x-none)%"),
        ("x-unknown", "%OF_NO_PROXY%"),
        ("x-a-cleared", "%RESPONSE_CODE%"),
    ]);
    let response = ops(&[
        ("x-status", "%RESPONSE_CODE%"),
        ("x-upstream", "%UPSTREAM_HOST%"),
        ("x-asked", "%REQ(x-a)% and %RESP(x-r)%"),
        ("x-when", "%START_TIME(%s)%"),
        ("x-stays-away", "%RESP(x-none)%"),
    ]);
    let headers = model::HeaderOps { request: Some(request), response: Some(response) };
    let (world, upstream) = world(model::HttpRule { headers: Some(headers), ..forward("web") }).await;
    upstream.extra_headers.lock().unwrap().insert("x-r", "said".parse().unwrap());
    let mut client = world.http1(TO).await;
    let request = Request::get("/p?q=1").header("host", HOST).header("x-a", "alpha").body(full("")).unwrap();
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let answer = client.send_request(request).await.unwrap();
    let seen = upstream.last();
    let asked = |name: &str| seen.headers.get(name).map(|v| v.to_str().unwrap().to_owned());
    let client: SocketAddr = asked("x-client").unwrap().parse().unwrap();
    assert_eq!(asked("x-client-ip").unwrap(), client.ip().to_string());
    let expected = [
        ("x-called", Some(TO)),
        ("x-first", Some("alpha")),
        ("x-cut", Some("alp")),
        ("x-path", Some("/p?q=1 by GET at web")),
        ("x-share", Some("100% of HTTP/1.1")),
        ("x-stays-away", None),
        ("x-unknown", Some("%OF_NO_PROXY%")),
        ("x-a-cleared", None),
    ];
    for (name, value) in expected {
        assert_eq!(asked(name).as_deref(), value, "{name}");
    }
    let said = |name: &str| answer.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
    assert_eq!(said("x-status").as_deref(), Some("200"));
    assert_eq!(said("x-upstream"), Some(upstream.addr.to_string()));
    assert_eq!(said("x-asked").as_deref(), Some("alpha and said"));
    assert!((before..=before + 60).contains(&said("x-when").unwrap().parse().unwrap()));
    assert_eq!(said("x-stays-away"), None);
}

#[tokio::test]
async fn dot_segments_are_gone_before_rules_and_endpoint_see_the_path() {
    let (world, upstream) = world(forward("web")).await;
    let mut stream = world.dial(TO).await;
    use tokio::io::AsyncWriteExt;
    stream.write_all(b"GET /a/../b/./c?d=/../e HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
    let mut one = [0];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut one).await.unwrap();
    assert_eq!(upstream.last().path, "/b/c?d=/../e");
}

#[tokio::test]
async fn redirects_and_direct_answers_reach_no_endpoint() {
    let redirect = model::HttpRule {
        action: Some(Action::Redirect(model::Redirect { uri: "/new".into(), ..Default::default() })),
        ..Default::default()
    };
    let (world, upstream) = world(redirect).await;
    let response = world.get(TO, HOST, "/old").await;
    assert_eq!(response.status(), 301);
    assert_eq!(response.headers()["location"], "http://web/new");
    assert_eq!(upstream.requests(), 0);
    let direct = model::HttpRule {
        action: Some(Action::DirectResponse(model::DirectResponse {
            status: 503,
            body: b"closed"[..].into(),
        })),
        ..Default::default()
    };
    world.apply(vec![ruled(service("web", VIP, 80, Protocol::Http), direct)]);
    let response = world.get(TO, HOST, "/").await;
    assert_eq!(response.status(), 503);
    assert_eq!(collect(response.into_body()).await.0, "closed");
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn a_preflight_is_answered_and_an_actual_request_is_marked() {
    let cors = model::Cors {
        allow_origins: vec![model::StringMatch {
            kind: Some(model::string_match::Kind::Exact("https://a.example".into())),
        }],
        allow_methods: vec!["GET".into(), "POST".into()],
        allow_credentials: true,
        ..Default::default()
    };
    let (world, upstream) = world(model::HttpRule { cors: Some(cors), ..forward("web") }).await;
    let mut client = world.http1(TO).await;
    let preflight = Request::options("/")
        .header("host", HOST)
        .header("origin", "https://a.example")
        .header("access-control-request-method", "PUT")
        .body(full(""))
        .unwrap();
    let response = client.send_request(preflight).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["access-control-allow-origin"], "https://a.example");
    assert_eq!(response.headers()["access-control-allow-methods"], "GET,POST");
    assert_eq!(upstream.requests(), 0);
    let response = client.send_request(with("origin", "https://a.example")).await.unwrap();
    assert_eq!(response.headers()["access-control-allow-credentials"], "true");
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn mirrors_get_a_copy_and_nobody_waits_for_them() {
    let mirror = Upstream::start("mirror").await;
    let rule = model::HttpRule {
        mirrors: vec![model::Mirror {
            destination: Some(model::Destination {
                host: "copy.default.svc.cluster.local".into(),
                ..Default::default()
            }),
            parts_per_million: 1_000_000,
        }],
        ..forward("web")
    };
    let (world, upstream) = world(rule).await;
    world.apply(vec![
        Resource::Service(service("copy", "10.96.0.2", 80, Protocol::Http)),
        endpoints("copy", 80, &[(mirror.addr, "v1")]),
    ]);
    let mut client = world.http1(TO).await;
    let request = Request::post("/echo?q=1").header("host", HOST).body(full("payload")).unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(collect(response.into_body()).await.0, "payload");
    for _ in 0..200 {
        if mirror.requests() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((mirror.last().path.as_str(), mirror.last().method.as_str()), ("/echo?q=1", "POST"));
    assert_eq!(mirror.last().headers["content-length"], "7");
    assert_eq!(upstream.requests(), 1);
    // A mirror that is not there harms nobody.
    world.apply(vec![endpoints("copy", 80, &[("127.0.0.1:1".parse().unwrap(), "v1")])]);
    assert_eq!(world.get(TO, HOST, "/").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn weights_share_requests() {
    let other = Upstream::start("v2").await;
    let to = |subset: &str, weight| model::WeightedDestination {
        destination: Some(model::Destination {
            host: "web.default.svc.cluster.local".into(),
            subset: subset.into(),
            port: 0,
        }),
        weight,
        headers: None,
    };
    let rule = model::HttpRule {
        action: Some(Action::Forward(model::Forward { destinations: vec![to("v1", 80), to("v2", 20)] })),
        ..Default::default()
    };
    let (world, upstream) = world(rule.clone()).await;
    let subset = |v: &str| model::Subset {
        name: v.into(),
        labels: [("version".to_owned(), v.to_owned())].into_iter().collect(),
        ..Default::default()
    };
    let Resource::Service(mut web) = ruled(service("web", VIP, 80, Protocol::Http), rule) else {
        unreachable!()
    };
    web.policies = vec![model::DestinationPolicy {
        source: "default/web".into(),
        subsets: vec![subset("v1"), subset("v2")],
        ..Default::default()
    }];
    world.apply(vec![
        Resource::Service(web),
        endpoints("web", 80, &[(upstream.addr, "v1"), (other.addr, "v2")]),
    ]);
    let mut client = world.http1(TO).await;
    for _ in 0..500 {
        collect(client.send_request(get(HOST, "/")).await.unwrap().into_body()).await;
    }
    let second = other.requests();
    assert_eq!(second + upstream.requests(), 500);
    assert!((50..=160).contains(&second), "{second} of 500 at weight 20");
}

#[tokio::test]
async fn a_swap_of_tables_under_load_fails_nothing_and_delays_little() {
    let (world, _upstream) = world(forward("web")).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let world = Arc::new(world);
    let swapper = {
        let (world, stop) = (Arc::clone(&world), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut swaps = 0_u32;
            while !stop.load(Ordering::SeqCst) {
                let many = (0..50)
                    .map(|i| {
                        let vip = format!("10.97.{}.{i}", swaps % 200);
                        Resource::Service(service(&format!("s{i}"), &vip, 80, Protocol::Http))
                    })
                    .chain([ruled(
                        service("web", VIP, 80, Protocol::Http),
                        model::HttpRule { name: format!("rule-{swaps}"), ..forward("web") },
                    )])
                    .collect();
                world.apply(many);
                swaps += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            swaps
        })
    };
    let mut client = world.http1(TO).await;
    let mut times = Vec::new();
    for _ in 0..1000 {
        let start = Instant::now();
        let response = client.send_request(get(HOST, "/")).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        collect(response.into_body()).await;
        times.push(start.elapsed());
    }
    stop.store(true, Ordering::SeqCst);
    let swaps = swapper.join().unwrap();
    times.sort();
    let median = times[times.len() / 2];
    assert!(swaps > 20, "{swaps} swaps");
    // The machine's own hiccups hit more than the median; a swap that stops requests would hit it too, as there is
    // one every few requests.
    assert!(median < Duration::from_millis(5), "median {median:?} with {swaps} swaps");
}
