use mesh_api::{Resource, model};

use super::*;
use crate::{Change, Client, DiceKind, fixtures::*};

const HOST: &str = "web.default.svc.cluster.local";

fn cluster(weights: &[u32], lb: Simple, outlier: Option<model::OutlierDetection>) -> Arc<Cluster> {
    let mut s = service("web", "default", "10.0.0.1", &[80]);
    s.policies = vec![model::DestinationPolicy {
        source: "default/web".into(),
        policy: Some(model::TrafficPolicy {
            load_balancer: Some(model::LoadBalancer { simple: lb as i32, ..Default::default() }),
            outlier,
            ..Default::default()
        }),
        ..Default::default()
    }];
    let list = weights
        .iter()
        .zip(1..)
        .map(|(w, i)| model::Endpoint {
            weight: *w,
            ..endpoint(&format!("10.1.0.{i}"), "a", &[(80, 80)], "v1")
        })
        .collect();
    let e = Change::Set(Resource::Endpoints(model::Endpoints { host: HOST.into(), endpoints: list }));
    let t = tables(vec![set(s), e]);
    t.service(HOST).unwrap().cluster(&Client::in_namespace("default"), "", 80).unwrap().clone()
}

fn rng() -> impl FnMut(DiceKind) -> f64 {
    let mut x: u64 = 0x9e37_79b9_7f4a_7c15;
    move |_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) as f64 / (1u64 << 53) as f64
    }
}

struct Run {
    balancer: Balancer,
    cluster: Arc<Cluster>,
    now: Instant,
    load: Vec<u32>,
    hash: Option<u64>,
}

impl Run {
    fn new(cluster: Arc<Cluster>) -> Self {
        let load = vec![0; cluster.endpoints.len()];
        Self { balancer: Balancer::new(), cluster, now: Instant::now(), load, hash: None }
    }
    fn pick(&mut self, exclude: &[EndpointId], dice: &mut impl Dice) -> Option<usize> {
        let load = &self.load;
        let how = Pick { exclude, load: &|i| load[i], now: self.now, hash: self.hash, remote: false };
        self.balancer.pick(&self.cluster, &how, dice)
    }
    fn count(&mut self, n: usize, dice: &mut impl Dice) -> Vec<usize> {
        let mut out = vec![0; self.cluster.endpoints.len()];
        for _ in 0..n {
            out[self.pick(&[], dice).unwrap()] += 1;
        }
        out
    }
    fn id(&self, i: usize) -> EndpointId {
        self.cluster.endpoints[i].id()
    }
}

use model::load_balancer::Simple;

#[test]
fn round_robin_takes_turns_by_weight() {
    let mut d = rng();
    assert_eq!(Run::new(cluster(&[1, 1, 1], Simple::RoundRobin, None)).count(9, &mut d), [3, 3, 3]);
    let mut r = Run::new(cluster(&[5, 1, 1], Simple::RoundRobin, None));
    let order: Vec<_> = (0..7).map(|_| r.pick(&[], &mut d).unwrap()).collect();
    assert_eq!(order, [0, 0, 1, 0, 2, 0, 0], "spread, not in a row");
}

#[test]
fn random_and_least_request_follow_the_weights() {
    for lb in [Simple::Random, Simple::LeastRequest] {
        let mut d = rng();
        let even = Run::new(cluster(&[1; 4], lb, None)).count(40_000, &mut d);
        assert!(even.iter().all(|n| (9_000..11_000).contains(n)), "{lb:?} {even:?}");
        let uneven = Run::new(cluster(&[3, 1], lb, None)).count(40_000, &mut d);
        assert!(uneven[0] > uneven[1] * 2, "{lb:?} {uneven:?}");
    }
}

#[test]
fn least_request_shuns_the_busy_one() {
    let mut r = Run::new(cluster(&[1, 1, 1, 1], Simple::LeastRequest, None));
    r.load = vec![50, 0, 0, 0];
    let n = r.count(10_000, &mut rng());
    // Alone in both draws only once in 16, less with further draws for the second.
    assert!(n[0] < 700, "{n:?}");
}

#[test]
fn what_was_tried_is_left_out() {
    for lb in [Simple::Random, Simple::LeastRequest, Simple::RoundRobin] {
        let mut r = Run::new(cluster(&[1, 1, 1], lb, None));
        let tried = [r.id(0), r.id(2)];
        for _ in 0..100 {
            assert_eq!(r.pick(&tried, &mut rng()), Some(1), "{lb:?}");
        }
        let all = [r.id(0), r.id(1), r.id(2)];
        assert_eq!(r.pick(&all, &mut rng()), None, "{lb:?}");
    }
}

#[test]
fn no_endpoints_no_pick() {
    assert_eq!(Run::new(cluster(&[], Simple::LeastRequest, None)).pick(&[], &mut rng()), None);
}

#[test]
fn an_endpoint_that_does_not_answer_is_tried_ever_less() {
    let mut r = Run::new(cluster(&[1, 1, 1], Simple::RoundRobin, None));
    let mut d = rng();
    r.pick(&[], &mut d);
    let dead = r.id(1);
    let mut trials = Vec::new();
    let start = r.now;
    for ms in (0..60_000).step_by(10) {
        r.now = start + Duration::from_millis(ms);
        if r.pick(&[], &mut d) == Some(1) {
            trials.push(ms);
            r.balancer.on_connect_failure(dead, r.now);
        }
    }
    assert!(trials.len() <= 7, "{trials:?}");
    assert!(trials.windows(3).all(|w| w[2] - w[1] >= w[1] - w[0]), "{trials:?}");
    // It comes back.
    r.now += Duration::from_secs(40);
    while r.pick(&[], &mut d) != Some(1) {}
    r.balancer.on_connected(dead);
    assert_eq!(r.count(9, &mut d), [3, 3, 3]);
}

#[test]
fn only_one_tries_an_endpoint_that_failed() {
    let mut r = Run::new(cluster(&[1, 1], Simple::RoundRobin, None));
    let mut d = rng();
    r.pick(&[], &mut d);
    r.balancer.on_connect_failure(r.id(1), r.now);
    r.now += Duration::from_secs(2);
    assert_eq!(r.count(100, &mut d), [99, 1]);
}

#[test]
fn when_all_fail_all_are_used() {
    let mut r = Run::new(cluster(&[1, 1], Simple::LeastRequest, None));
    let mut d = rng();
    r.pick(&[], &mut d);
    for i in 0..2 {
        r.balancer.on_connect_failure(r.id(i), r.now);
    }
    assert!(r.count(1000, &mut d).iter().all(|n| *n > 300));
}

#[test]
fn an_ejected_endpoint_is_out_until_its_time_is_over() {
    let policy = model::OutlierDetection {
        consecutive_5xx: 2,
        max_ejection_percent: 100,
        base_ejection: Some(model::Millis { value: 30_000 }),
        ..Default::default()
    };
    let mut r = Run::new(cluster(&[1, 1], Simple::RoundRobin, Some(policy.clone())));
    let mut d = rng();
    r.pick(&[], &mut d);
    for i in [0, 0, 1, 1] {
        r.balancer.on_exchange(r.id(i), Exchange::ServerError, r.now);
    }
    assert_eq!(r.pick(&[], &mut d), None, "all ejected: nothing is healthy");
    r.now += Duration::from_secs(31);
    assert_eq!(r.count(4, &mut d), [2, 2]);

    let panic = model::OutlierDetection { min_health_percent: 50, ..policy };
    let mut r = Run::new(cluster(&[1, 1], Simple::RoundRobin, Some(panic)));
    r.pick(&[], &mut d);
    for i in [0, 0] {
        r.balancer.on_exchange(r.id(i), Exchange::ServerError, r.now);
    }
    assert_eq!(r.count(4, &mut d), [0, 4]);
    for i in [1, 1] {
        r.balancer.on_exchange(r.id(i), Exchange::ServerError, r.now);
    }
    assert_eq!(r.count(4, &mut d), [2, 2], "too few are left: all are used");
}

#[test]
fn what_is_known_survives_a_change_of_the_cluster() {
    let mut r = Run::new(cluster(&[1, 1, 1], Simple::RoundRobin, None));
    let mut d = rng();
    r.pick(&[], &mut d);
    r.balancer.on_connect_failure(r.id(1), r.now);
    r.cluster = cluster(&[1, 1], Simple::RoundRobin, None);
    r.load = vec![0; 2];
    assert_eq!(r.count(10, &mut d), [10, 0]);
    assert!(r.balancer.is_unhealthy(r.id(1), r.now));
}

/// Pearson's statistic against expected shares, and its limit at p = 0.001 for so many categories.
fn chi_square(counts: &[usize], shares: &[u32]) -> (f64, f64) {
    let n: usize = counts.iter().sum();
    let all: u32 = shares.iter().sum();
    let stat = counts
        .iter()
        .zip(shares)
        .map(|(got, share)| {
            let expected = n as f64 * f64::from(*share) / f64::from(all);
            (*got as f64 - expected).powi(2) / expected
        })
        .sum();
    let limit = [0.0, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12];
    (stat, limit[counts.len() - 1])
}

#[test]
fn calls_are_spread_by_weight() {
    for lb in [Simple::Random, Simple::LeastRequest, Simple::RoundRobin] {
        for weights in [&[1, 1, 1, 1][..], &[5, 3, 1, 1], &[1, 100], &[7, 7, 7, 1, 1, 1]] {
            let counts = Run::new(cluster(weights, lb, None)).count(20_000, &mut rng());
            let (stat, limit) = chi_square(&counts, weights);
            assert!(stat < limit, "{lb:?} {weights:?}: {counts:?}, {stat} over {limit}");
        }
    }
    // The test can fail.
    let (stat, limit) = chi_square(&[5200, 4800], &[1, 1]);
    assert!(stat > limit);
}

#[test]
fn calls_are_spread_by_weight_among_those_that_are_left() {
    for lb in [Simple::Random, Simple::LeastRequest] {
        let mut r = Run::new(cluster(&[1; 40], lb, None));
        let mut d = rng();
        // All but four stand in a row and are excluded: a walk from a random place would favour the next one.
        let tried: Vec<_> = (0..36).map(|i| r.id(i)).collect();
        let mut counts = vec![0; 40];
        for _ in 0..8_000 {
            counts[r.pick(&tried, &mut d).unwrap()] += 1;
        }
        let (stat, limit) = chi_square(&counts[36..], &[1; 4]);
        assert!(stat < limit, "{lb:?}: {counts:?}");
    }
}

#[test]
fn destinations_are_chosen_by_weight() {
    let destinations = crate::route::Destinations::for_test(&[90, 10, 0, 25]);
    let mut d = rng();
    let mut counts = [0; 4];
    for _ in 0..40_000 {
        let to = destinations.pick(&mut d).unwrap();
        counts[destinations.all.iter().position(|x| std::ptr::eq(x, to)).unwrap()] += 1;
    }
    assert_eq!(counts[2], 0, "a weight of 0 is never chosen");
    let (stat, limit) = chi_square(&[counts[0], counts[1], counts[3]], &[90, 10, 25]);
    assert!(stat < limit, "{counts:?}");
}

#[test]
fn a_new_endpoint_warms_up() {
    let warmup = model::Warmup {
        duration: Some(model::Millis { value: 100_000 }),
        minimum_percent: 10.0,
        aggression: 1.0,
    };
    for simple in [Simple::RoundRobin, Simple::LeastRequest] {
        let lb = model::LoadBalancer { simple: simple as i32, warmup: Some(warmup), ..Default::default() };
        let mut r = Run::new(with_balancer(2, lb.clone()));
        let mut d = rng();
        r.pick(&[], &mut d);
        r.now += Duration::from_secs(1000);
        r.cluster = with_balancer(3, lb);
        r.load = vec![0; 3];
        let share = |r: &mut Run, d: &mut dyn FnMut(DiceKind) -> f64| {
            r.count(6_000, &mut |k| d(k))[2] as f64 / 6_000.0
        };
        let young = share(&mut r, &mut d);
        assert!((0.02..0.09).contains(&young), "{simple:?}: a tenth of a share at first, {young}");
        r.now += Duration::from_secs(50);
        let half = share(&mut r, &mut d);
        assert!((0.16..0.24).contains(&half), "{simple:?}: half a share, {half}");
        r.now += Duration::from_secs(51);
        let whole = share(&mut r, &mut d);
        assert!((0.29..0.37).contains(&whole), "{simple:?}: {whole}");
    }
}

#[test]
fn a_key_keeps_its_endpoint_and_others_are_spread() {
    for algorithm in
        [None, Some(model::consistent_hash::Algorithm::Maglev(model::Maglev { table_size: 1009 }))]
    {
        let hash = model::ConsistentHash {
            key: Some(model::consistent_hash::Key::SourceIp(true)),
            algorithm,
            ..Default::default()
        };
        let lb = model::LoadBalancer { consistent_hash: Some(hash), ..Default::default() };
        let mut r = Run::new(with_balancer(10, lb));
        let mut d = rng();
        let mut seen = std::collections::BTreeSet::new();
        for key in 0..200u64 {
            r.hash = Some(crate::hash::mix(key));
            let first = r.pick(&[], &mut d).unwrap();
            assert!((0..5).all(|_| r.pick(&[], &mut d) == Some(first)));
            // While its endpoint does not answer a key has another one, and always the same.
            let other = r.pick(&[r.id(first)], &mut d).unwrap();
            assert!(other != first && (0..5).all(|_| r.pick(&[r.id(first)], &mut d) == Some(other)));
            seen.insert(first);
        }
        assert_eq!(seen.len(), 10);
        r.hash = None;
        assert!(r.count(2000, &mut d).iter().all(|n| *n > 100), "without a key: any");
    }
}

#[test]
fn an_endpoint_takes_no_more_than_its_bound() {
    let hash = model::ConsistentHash {
        key: Some(model::consistent_hash::Key::SourceIp(true)),
        bound_percent: 125,
        ..Default::default()
    };
    let lb = model::LoadBalancer { consistent_hash: Some(hash), ..Default::default() };
    let mut r = Run::new(with_balancer(4, lb));
    r.hash = Some(42);
    let mut d = rng();
    for _ in 0..100 {
        let i = r.pick(&[], &mut d).unwrap();
        r.load[i] += 1;
    }
    assert!(r.load.iter().all(|n| *n <= 33), "{:?}", r.load);
}

fn with_balancer(n: usize, lb: model::LoadBalancer) -> Arc<Cluster> {
    let mut s = service("web", "default", "10.0.0.1", &[80]);
    s.policies = vec![model::DestinationPolicy {
        source: "default/web".into(),
        policy: Some(model::TrafficPolicy { load_balancer: Some(lb), ..Default::default() }),
        ..Default::default()
    }];
    let list = (1..=n).map(|i| endpoint(&format!("10.1.0.{i}"), "a", &[(80, 80)], "v1")).collect();
    let t = tables(vec![set(s), endpoints(HOST, list)]);
    t.service(HOST).unwrap().cluster(&Client::in_namespace("default"), "", 80).unwrap().clone()
}

/// Two sites that use the same prefix for their pods.
#[test]
fn the_same_address_on_another_node_is_another_endpoint() {
    let mut s = service("web", "default", "10.0.0.1", &[80]);
    s.policies = Vec::new();
    let list =
        ["a", "b"].map(|node| model::Endpoint { weight: 1, ..endpoint("10.1.0.1", node, &[(80, 80)], "v1") });
    let e = Change::Set(Resource::Endpoints(model::Endpoints { host: HOST.into(), endpoints: list.into() }));
    let t = tables(vec![set(s), e]);
    let c = t.service(HOST).unwrap().cluster(&Client::in_namespace("default"), "", 80).unwrap().clone();
    let mut r = Run::new(c);
    let mut dice = rng();
    assert_eq!(r.id(0).addr, r.id(1).addr);
    assert_ne!(r.id(0), r.id(1));
    r.count(2, &mut dice);
    r.balancer.on_connect_failure(r.id(0), r.now);
    assert!(r.balancer.is_unhealthy(r.id(0), r.now) && !r.balancer.is_unhealthy(r.id(1), r.now));
    assert_eq!(r.count(20, &mut dice), [0, 20]);
    let tried = [r.id(1)];
    assert_eq!(r.pick(&tried, &mut dice), Some(0), "what was tried is not taken for the other one");
}
