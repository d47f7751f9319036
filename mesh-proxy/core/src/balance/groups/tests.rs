use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_api::model;

use crate::{
    Client, Cluster, DiceKind, Place,
    balance::{Balancer, Pick},
    fixtures::*,
};

const HOST: &str = "web.default.svc.cluster.local";

fn at(address: &str, region: &str, zone: &str, site: &str) -> model::Endpoint {
    let locality =
        model::Locality { region: region.into(), zone: zone.into(), site: site.into(), ..Default::default() };
    model::Endpoint { locality: Some(locality), ..endpoint(address, "", &[(80, 80)], "v1") }
}

fn cluster(
    list: Vec<model::Endpoint>,
    locality: Option<model::LocalityPolicy>,
    outlier: bool,
) -> Arc<Cluster> {
    let mut s = service("web", "default", "10.0.0.1", &[80]);
    let lb = model::LoadBalancer {
        simple: model::load_balancer::Simple::Random as i32,
        locality,
        ..Default::default()
    };
    let outlier = outlier.then(|| model::OutlierDetection {
        consecutive_5xx: 1,
        max_ejection_percent: 100,
        ..Default::default()
    });
    s.policies = vec![model::DestinationPolicy {
        source: "default/web".into(),
        policy: Some(model::TrafficPolicy { load_balancer: Some(lb), outlier, ..Default::default() }),
        ..Default::default()
    }];
    let t = tables(vec![set(s), endpoints(HOST, list)]);
    t.service(HOST).unwrap().cluster(&Client::in_namespace("default"), "", 80).unwrap().clone()
}

fn place(region: &str, zone: &str, site: &str) -> Arc<Place> {
    let locality =
        crate::Locality { region: region.into(), zone: zone.into(), site: site.into(), network: "".into() };
    Arc::new(Place { locality, node: "n1".into(), labels: labels(&[("tier", "gold")]) })
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

fn count(b: &mut Balancer, c: &Arc<Cluster>, now: Instant, n: usize) -> Vec<usize> {
    let mut d = rng();
    let mut out = vec![0; c.endpoints.len()];
    for _ in 0..n {
        let how = Pick { exclude: &[], load: &|_| 0, now, hash: None, remote: false };
        out[b.pick(c, &how, &mut d).unwrap()] += 1;
    }
    out
}

/// One in the same site, zone, region; two elsewhere.
fn world() -> Vec<model::Endpoint> {
    vec![
        at("10.1.0.1", "eu", "a", "shop"),
        at("10.1.0.2", "eu", "a", "depot"),
        at("10.1.0.3", "eu", "b", "shop"),
        at("10.1.0.4", "us", "a", "shop"),
        at("10.1.0.5", "asia", "a", "shop"),
    ]
}

#[test]
fn the_nearest_serves_and_the_next_helps_out() {
    let c = cluster(world(), None, true);
    let mut b = Balancer::at(place("eu", "a", "shop"));
    let now = Instant::now();
    assert_eq!(count(&mut b, &c, now, 100), [100, 0, 0, 0, 0]);
    for (i, then) in [(0, [0, 100, 0, 0, 0]), (1, [0, 0, 100, 0, 0])] {
        b.on_exchange(c.endpoints[i].id(), crate::outlier::Exchange::ServerError, now);
        assert_eq!(count(&mut b, &c, now, 100), then);
    }
    b.on_exchange(c.endpoints[2].id(), crate::outlier::Exchange::ServerError, now);
    let far = count(&mut b, &c, now, 1000);
    assert!(far[3] > 400 && far[4] > 400, "{far:?}");
    let later = now + Duration::from_secs(31);
    assert_eq!(count(&mut b, &c, later, 100), [100, 0, 0, 0, 0], "back when it is healthy again");
}

#[test]
fn without_outlier_detection_localities_do_not_count() {
    let c = cluster(world(), None, false);
    let mut b = Balancer::at(place("eu", "a", "shop"));
    assert!(count(&mut b, &c, Instant::now(), 1000).iter().all(|n| *n > 130));
    let off = model::LocalityPolicy::default();
    let c = cluster(world(), Some(off), true);
    assert!(count(&mut b, &c, Instant::now(), 1000).iter().all(|n| *n > 130));
}

#[test]
fn part_of_the_calls_go_on_when_part_is_ill() {
    // Ten near, ten far; five near ones are ill: 50 % x 1.4 stays.
    let list =
        (0..20).map(|i| at(&format!("10.1.1.{}", i + 1), if i < 10 { "eu" } else { "us" }, "", "")).collect();
    let c = cluster(list, None, true);
    let mut b = Balancer::at(place("eu", "", ""));
    let now = Instant::now();
    count(&mut b, &c, now, 1);
    for i in 0..5 {
        b.on_exchange(c.endpoints[i].id(), crate::outlier::Exchange::ServerError, now);
    }
    let n = count(&mut b, &c, now, 10_000);
    let near: usize = n[..10].iter().sum();
    assert!((6_700..7_300).contains(&near), "{near}");
    assert_eq!(n[..5], [0; 5]);
}

#[test]
fn a_region_has_the_successor_that_the_rule_names() {
    let failover = vec![model::locality_policy::Failover { from: "eu".into(), to: "asia".into() }];
    let policy = model::LocalityPolicy { enabled: true, failover, ..Default::default() };
    let c = cluster(world()[2..].to_vec(), Some(policy), true);
    let mut b = Balancer::at(place("eu", "a", "shop"));
    let now = Instant::now();
    count(&mut b, &c, now, 1);
    b.on_exchange(c.endpoints[0].id(), crate::outlier::Exchange::ServerError, now);
    assert_eq!(count(&mut b, &c, now, 100), [0, 0, 100]);
}

#[test]
fn labels_in_order_make_priorities() {
    let priority = |list: &[&str]| model::LocalityPolicy {
        enabled: true,
        failover_priority: list.iter().map(|s| (*s).to_owned()).collect(),
        ..Default::default()
    };
    let now = Instant::now();
    let mut b = Balancer::at(place("eu", "a", "depot"));
    let c = cluster(world(), Some(priority(&["selvage.io/site"])), true);
    assert_eq!(count(&mut b, &c, now, 100), [0, 100, 0, 0, 0]);
    let c = cluster(world(), Some(priority(&["topology.kubernetes.io/region=us", "version=v1"])), true);
    assert_eq!(count(&mut b, &c, now, 100), [0, 0, 0, 100, 0]);
    let mut list = world();
    list[4].node = "n1".into();
    let c = cluster(list, Some(priority(&["kubernetes.io/hostname", "topology.kubernetes.io/region"])), true);
    assert_eq!(count(&mut b, &c, now, 100), [0, 0, 0, 0, 100], "the node itself first");
}

#[test]
fn shares_go_to_localities() {
    let distribute = vec![model::locality_policy::Distribute {
        from: "eu/*".into(),
        to: [("eu/a/*".to_owned(), 70), ("us".to_owned(), 30)].into(),
    }];
    let policy = model::LocalityPolicy { enabled: true, distribute, ..Default::default() };
    let c = cluster(world(), Some(policy), false);
    let mut b = Balancer::at(place("eu", "b", "shop"));
    let n = count(&mut b, &c, Instant::now(), 20_000);
    assert!((13_600..14_400).contains(&(n[0] + n[1])) && n[2] == 0 && n[4] == 0, "{n:?}");
    // Somewhere else the rule says nothing.
    let mut b = Balancer::at(place("us", "", ""));
    assert!(count(&mut b, &c, Instant::now(), 1000).iter().all(|n| *n > 130));
}

#[test]
fn a_group_that_does_not_answer_is_followed_by_the_next() {
    let c = cluster(world(), None, true);
    let mut b = Balancer::at(place("eu", "a", "shop"));
    let now = Instant::now();
    let tried = [c.endpoints[0].id()];
    let how = Pick { exclude: &tried, load: &|_| 0, now, hash: None, remote: false };
    assert_eq!(b.pick(&c, &how, &mut rng()), Some(1));
    // A retry that wants another locality leaves the tried one alone.
    let list = vec![at("10.1.0.1", "eu", "", ""), at("10.1.0.2", "eu", "", ""), at("10.1.0.3", "us", "", "")];
    let c = cluster(list, None, true);
    let how = |remote| Pick { exclude: &tried, load: &|_| 0, now, hash: None, remote };
    let mut b = Balancer::at(place("eu", "", ""));
    assert_eq!(b.pick(&c, &how(false), &mut rng()), Some(1));
    assert_eq!(b.pick(&c, &how(true), &mut rng()), Some(2));
}
