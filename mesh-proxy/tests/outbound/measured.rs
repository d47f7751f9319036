//! Policies at the sockets, with numbers: how calls are spread, who moves when endpoints come and go, when an ill endpoint
//! is left alone and when it is back, how many are let in at once, what a mirror costs.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Request, StatusCode};
use mesh_api::{
    Resource,
    model::{
        self, Protocol,
        consistent_hash::{Algorithm, Key},
        load_balancer::Simple,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

use crate::{
    upstream::{Upstream, collect, full, tcp},
    world::{ClientBody, Options, VIP, World, endpoints, forward, get, ms, ruled, service},
};

const TO: &str = "10.96.0.1:80";
/// Chi-square of correct code exceeds these once in a million runs, by degrees of freedom.
const ONE_IN_A_MILLION: [f64; 5] = [0.0, 23.93, 27.63, 30.66, 33.38];

fn world(policy: model::TrafficPolicy, at: &[(SocketAddr, &str)]) -> World {
    of_protocol(Protocol::Http, policy, at)
}

fn of_protocol(protocol: Protocol, policy: model::TrafficPolicy, at: &[(SocketAddr, &str)]) -> World {
    let mut web = service("web", VIP, 80, protocol);
    web.policies = vec![model::DestinationPolicy {
        source: "default/web".into(),
        policy: Some(policy),
        ..Default::default()
    }];
    let options = Options { called: vec![TO.parse().unwrap()], ..Options::default() };
    World::start(vec![Resource::Service(web), endpoints("web", 80, at)], options)
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

fn chi_square(seen: &[usize], shares: &[f64]) -> f64 {
    let (sum, whole): (usize, f64) = (seen.iter().sum(), shares.iter().sum());
    let one = |(seen, share): (&usize, &f64)| {
        let expected = sum as f64 * share / whole;
        (*seen as f64 - expected).powi(2) / expected
    };
    seen.iter().zip(shares).map(one).sum()
}

async fn calls(world: &World, count: usize) {
    let mut client = world.http1(TO).await;
    for _ in 0..count {
        client.ready().await.unwrap();
        let response = client.send_request(get("web", "/")).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        collect(response.into_body()).await;
    }
}

#[tokio::test]
async fn weights_and_balancers_spread_calls_as_chance_would() {
    let (all, at) = five().await;
    let counts = || -> Vec<usize> {
        all.iter()
            .map(|u| {
                let seen = u.requests();
                u.seen.lock().unwrap().clear();
                seen
            })
            .collect()
    };
    for simple in [Simple::Random, Simple::LeastRequest, Simple::RoundRobin] {
        let lb = model::LoadBalancer { simple: simple.into(), ..Default::default() };
        let world = world(model::TrafficPolicy { load_balancer: Some(lb), ..Default::default() }, &at);
        calls(&world, 600).await;
        let seen = counts();
        let found = chi_square(&seen, &[1.0; 5]);
        println!("{simple:?}: {seen:?}, chi-square {found:.1}");
        assert!(found < ONE_IN_A_MILLION[4], "{simple:?}: {seen:?}");
        if simple == Simple::RoundRobin {
            assert_eq!(seen, [120; 5], "turns are exact");
        }
    }
    // Destinations of a rule: 60, 30 and 10 of a hundred.
    let weights = [60u32, 30, 10];
    let to = |(i, weight): (usize, &u32)| model::WeightedDestination {
        destination: Some(model::Destination {
            host: "web.default.svc.cluster.local".into(),
            subset: at[i].1.into(),
            port: 0,
        }),
        weight: *weight,
        headers: None,
    };
    let destinations = weights.iter().enumerate().map(to).collect();
    let action = model::http_rule::Action::Forward(model::Forward { destinations });
    let rule = model::HttpRule { action: Some(action), ..Default::default() };
    let Resource::Service(mut web) = ruled(service("web", VIP, 80, Protocol::Http), rule) else {
        unreachable!()
    };
    let subset = |name: &str| model::Subset {
        name: name.into(),
        labels: [("version".to_owned(), name.to_owned())].into(),
        ..Default::default()
    };
    web.policies = vec![model::DestinationPolicy {
        source: "default/web".into(),
        subsets: at.iter().map(|a| subset(a.1)).collect(),
        ..Default::default()
    }];
    let options = Options { called: vec![TO.parse().unwrap()], ..Options::default() };
    let world = World::start(vec![Resource::Service(web), endpoints("web", 80, &at)], options);
    calls(&world, 1000).await;
    let seen = &counts()[..3];
    let found = chi_square(seen, &[60.0, 30.0, 10.0]);
    println!("60/30/10: {seen:?}, chi-square {found:.1}");
    assert!(seen.iter().sum::<usize>() == 1000 && found < ONE_IN_A_MILLION[2], "{seen:?}");
    let shifted = chi_square(&[520, 380, 100], &[60.0, 30.0, 10.0]);
    assert!(shifted > ONE_IN_A_MILLION[2], "the measure sees a shift of eight points");
}

/// Where each of many users goes.
async fn homes(world: &World, users: usize) -> Vec<String> {
    let mut client = world.http1(TO).await;
    let mut out = Vec::new();
    for user in 0..users {
        client.ready().await.unwrap();
        let request: Request<ClientBody> = Request::get("/")
            .header("host", "web")
            .header("x-user", format!("user-{user}"))
            .body(full(""))
            .unwrap();
        let response = client.send_request(request).await.unwrap();
        out.push(response.headers()["x-upstream"].to_str().unwrap().to_owned());
        collect(response.into_body()).await;
    }
    out
}

#[tokio::test]
async fn few_users_move_when_an_endpoint_goes_and_all_are_home_when_it_is_back() {
    const USERS: usize = 250;
    let (_all, at) = five().await;
    let ring = Algorithm::Ring(model::RingHash { min_size: 1024 });
    let maglev = Algorithm::Maglev(model::Maglev { table_size: 65_537 });
    // Of those whose endpoint stays, Maglev moves a few of a hundred. A ring keeps its size: the others get the points of
    // the one that goes, a fifth, and about three of four keys there change hands.
    let stay = USERS * 4 / 5;
    for (name, algorithm, bound) in [("ring", ring, stay * 3 / 10), ("maglev", maglev, stay * 8 / 100)] {
        let hash = model::ConsistentHash {
            key: Some(Key::Header("x-user".into())),
            algorithm: Some(algorithm),
            ..Default::default()
        };
        let lb = model::LoadBalancer { consistent_hash: Some(hash), ..Default::default() };
        let world = world(model::TrafficPolicy { load_balancer: Some(lb), ..Default::default() }, &at);
        let before = homes(&world, USERS).await;
        world.apply(vec![endpoints("web", 80, &at[..4])]);
        let without = homes(&world, USERS).await;
        let stayed = before.iter().zip(&without).filter(|(b, _)| *b != "e");
        let moved = stayed.filter(|(b, w)| b != w).count();
        let mut spread: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, now) in before.iter().zip(&without).filter(|(b, _)| *b == "e") {
            *spread.entry(now).or_default() += 1;
        }
        println!("{name}: {moved} of {USERS} users moved without need; those of e went to {spread:?}");
        assert!(moved <= bound, "{name}: {moved} users moved");
        assert!(!without.contains(&"e".to_owned()) && spread.len() >= 3, "{name}: {spread:?}");
        world.apply(vec![endpoints("web", 80, &at)]);
        assert_eq!(homes(&world, USERS).await, before, "{name}: as before");
    }
}

/// An HTTP server that answers 500 while it is ill, and counts.
async fn patient() -> (SocketAddr, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (ill, seen) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (state, count) = (Arc::clone(&ill), Arc::clone(&seen));
    let addr = tcp(move |mut stream| {
        let (state, count) = (Arc::clone(&state), Arc::clone(&count));
        async move {
            let mut text = Vec::new();
            while let Ok(n) = stream.read_buf(&mut text).await {
                if n == 0 {
                    return;
                }
                while let Some(end) = text.windows(4).position(|w| w == b"\r\n\r\n") {
                    text.drain(..end + 4);
                    count.fetch_add(1, Ordering::SeqCst);
                    let status = if state.load(Ordering::SeqCst) { "500 Ill" } else { "200 OK" };
                    let answer =
                        format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nx-upstream: patient\r\n\r\n");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        }
    })
    .await;
    (addr, ill, seen)
}

#[tokio::test]
async fn an_ill_endpoint_is_left_alone_for_its_time_and_is_back_then() {
    let away = Duration::from_millis(1500);
    let healthy = Upstream::start("healthy").await;
    let (addr, ill, seen) = patient().await;
    let policy = model::TrafficPolicy {
        load_balancer: Some(model::LoadBalancer { simple: Simple::RoundRobin.into(), ..Default::default() }),
        outlier: Some(model::OutlierDetection {
            consecutive_5xx: 4,
            interval: ms(50),
            base_ejection: ms(1500),
            max_ejection_percent: 100,
            ..Default::default()
        }),
        ..Default::default()
    };
    // No retries: each failure is seen.
    let mut rule = forward("web");
    rule.retry = Some(model::RetryPolicy::default());
    let mut web = service("web", VIP, 80, Protocol::Http);
    web.policies = vec![model::DestinationPolicy {
        source: "default/web".into(),
        policy: Some(policy),
        ..Default::default()
    }];
    let resources = vec![ruled(web, rule), endpoints("web", 80, &[(healthy.addr, "v1"), (addr, "v2")])];
    let world = World::start(resources, Options { called: vec![TO.parse().unwrap()], ..Options::default() });
    let mut client = world.http1(TO).await;
    let mut ask = async || {
        client.ready().await.unwrap();
        let response = client.send_request(get("web", "/")).await.unwrap();
        let status = response.status();
        collect(response.into_body()).await;
        status
    };
    let mut failures = 0;
    for _ in 0..60 {
        failures += usize::from(ask().await == StatusCode::INTERNAL_SERVER_ERROR);
        if failures == 4 {
            break;
        }
    }
    // From here on the time runs; a busy machine may be slow, but not early.
    let ejected = Instant::now();
    assert_eq!((failures, seen.load(Ordering::SeqCst)), (4, 4));
    ill.store(false, Ordering::SeqCst);
    while seen.load(Ordering::SeqCst) == 4 {
        assert_eq!(ask().await, StatusCode::OK);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(ejected.elapsed() < Duration::from_secs(30), "it is not back");
    }
    let returned = ejected.elapsed();
    println!("ejected after 4 failures, back after {returned:?} of {away:?}");
    assert!(returned + Duration::from_millis(50) >= away, "{returned:?}");
    for _ in 0..40 {
        assert_eq!(ask().await, StatusCode::OK);
    }
    assert!(seen.load(Ordering::SeqCst) >= 4 + 15, "it has its share again");
}

#[tokio::test]
async fn limits_are_exact_wave_after_wave() {
    let up = Upstream::start("up").await;
    let pool = model::ConnectionPool { max_requests: 7, ..Default::default() };
    let world = Arc::new(world(
        model::TrafficPolicy { connection_pool: Some(pool), ..Default::default() },
        &[(up.addr, "v1")],
    ));
    for wave in 0..3 {
        let mut all = JoinSet::new();
        for _ in 0..40 {
            let world = Arc::clone(&world);
            all.spawn(async move {
                let slow = Request::get("/").header("host", "web").header("x-test-delay-ms", "1200");
                world.http1(TO).await.send_request(slow.body(full("")).unwrap()).await.unwrap().status()
            });
        }
        let statuses = all.join_all().await;
        let count = |s: StatusCode| statuses.iter().filter(|x| **x == s).count();
        assert_eq!((count(StatusCode::OK), count(StatusCode::SERVICE_UNAVAILABLE)), (7, 33), "wave {wave}");
    }
    assert_eq!(up.requests(), 21, "no more than that reached the endpoint");
}

#[tokio::test]
async fn connections_are_limited_exactly() {
    let open = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&open);
    let addr = tcp(move |mut stream| {
        let count = Arc::clone(&count);
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            let _closed = stream.write_all(b"hello").await;
            let _ended = stream.read_to_end(&mut Vec::new()).await;
        }
    })
    .await;
    let pool = model::ConnectionPool { max_connections: 5, ..Default::default() };
    let policy = model::TrafficPolicy { connection_pool: Some(pool), ..Default::default() };
    let world = of_protocol(Protocol::Tcp, policy, &[(addr, "v1")]);
    let (mut let_in, mut refused) = (Vec::new(), 0);
    for _ in 0..20 {
        let mut stream = world.dial(TO).await;
        let mut said = [0; 5];
        match stream.read_exact(&mut said).await {
            Ok(_) => let_in.push(stream),
            Err(_) => refused += 1,
        }
    }
    assert_eq!((let_in.len(), refused, open.load(Ordering::SeqCst)), (5, 15, 5));
    // One that leaves makes room for one.
    drop(let_in.pop());
    let mut again = 0;
    for _ in 0..200 {
        let mut stream = world.dial(TO).await;
        if stream.read_exact(&mut [0; 5]).await.is_ok() {
            let_in.push(stream);
            again += 1;
            if again == 1 {
                continue;
            }
        }
        if again > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(again, 1);
}

#[tokio::test]
async fn a_mirror_that_never_answers_slows_nobody() {
    let up = Upstream::start("up").await;
    // It takes connections and reads nothing.
    let silent = tcp(|stream| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    })
    .await;
    let mirrored = model::HttpRule {
        mirrors: vec![model::Mirror {
            destination: Some(model::Destination {
                host: "copy.default.svc.cluster.local".into(),
                ..Default::default()
            }),
            parts_per_million: 1_000_000,
        }],
        ..forward("web")
    };
    let web = || service("web", VIP, 80, Protocol::Http);
    let options = Options { called: vec![TO.parse().unwrap()], ..Options::default() };
    let world = World::start(
        vec![
            ruled(web(), forward("web")),
            endpoints("web", 80, &[(up.addr, "v1")]),
            Resource::Service(service("copy", "10.96.0.2", 80, Protocol::Http)),
            endpoints("copy", 80, &[(silent, "v1")]),
        ],
        options,
    );
    let mut client = world.http1(TO).await;
    let mut medians = Vec::new();
    for rule in [forward("web"), mirrored] {
        world.apply(vec![ruled(web(), rule)]);
        let mut times = Vec::new();
        for _ in 0..150 {
            client.ready().await.unwrap();
            let request = Request::post("/echo").header("host", "web").body(full("payload")).unwrap();
            let start = Instant::now();
            let response = client.send_request(request).await.unwrap();
            assert_eq!(collect(response.into_body()).await.0, "payload");
            times.push(start.elapsed());
        }
        times.sort();
        medians.push(times[75]);
    }
    println!("median {:?}, with a silent mirror {:?}", medians[0], medians[1]);
    // A request that waited for its mirror would take seconds; making a copy takes its part of a millisecond.
    assert!(medians[1] < medians[0] * 4 + Duration::from_millis(3), "{medians:?}");
}
