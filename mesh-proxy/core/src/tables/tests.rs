use std::time::Instant;

use super::*;
use crate::fixtures::*;

fn host(i: usize) -> String {
    format!("s{i}.default.svc.cluster.local")
}

fn many(n: usize) -> Tables {
    let mut changes = Vec::new();
    for i in 0..n {
        let vip = format!("10.{}.{}.{}", 96 + i / 65536, i / 256 % 256, i % 256);
        changes.push(set(service(&format!("s{i}"), "default", &vip, &[80])));
        let address = format!("10.{}.{}.{}", 1 + i / 65536, i / 256 % 256, i % 256);
        changes.push(endpoints(&host(i), vec![endpoint(&address, "edge-a", &[(80, 8080)], "v1")]));
    }
    tables(changes)
}

#[test]
fn only_the_touched_service_is_built_again() {
    let t = many(5_000);
    let before = Instant::now();
    let (new, applied) =
        t.apply(vec![endpoints(&host(7), vec![endpoint("10.200.0.1", "edge-b", &[(80, 8080)], "v1")])]);
    let took = before.elapsed();
    assert_eq!((applied.rules_compiled, applied.clusters_built), (0, 1));
    assert_eq!(applied.hosts.iter().map(|h| &**h).collect::<Vec<_>>(), [host(7)]);
    assert!(!applied.vips_changed && applied.workloads_changed);
    let kept =
        (0..5_000).filter(|i| Arc::ptr_eq(t.service(&host(*i)).unwrap(), new.service(&host(*i)).unwrap()));
    assert_eq!(kept.count(), 4_999);
    assert_eq!(new.owner_of("10.200.0.1".parse().unwrap()).map(|n| &**n), Some("edge-b"));
    assert_eq!(new.owner_of("10.1.0.7".parse().unwrap()), None);
    assert_eq!(t.owner_of("10.1.0.7".parse().unwrap()).map(|n| &**n), Some("edge-a"));
    // A debug build on a busy machine: this guards the order of magnitude only.
    assert!(took.as_millis() < 100, "{took:?}");
}

#[test]
fn equal_endpoints_change_nothing() {
    let t = many(10);
    let (new, applied) =
        t.apply(vec![endpoints(&host(3), vec![endpoint("10.1.0.3", "edge-a", &[(80, 8080)], "v1")])]);
    assert_eq!((applied.clusters_built, applied.hosts.len()), (0, 0));
    assert!(Arc::ptr_eq(t.service(&host(3)).unwrap(), new.service(&host(3)).unwrap()));
}

#[test]
fn new_rules_keep_equal_clusters() {
    let t = many(10);
    let mut s = service("s3", "default", "10.96.0.3", &[80]);
    s.virtual_hosts = vec![virtual_host("default/vs", vec![rule(vec![], vec![to(&host(4), "", 0)])])];
    let (new, applied) = t.apply(vec![set(s)]);
    assert_eq!((applied.rules_compiled, applied.clusters_built), (1, 1));
    assert!(!applied.vips_changed);
    let cluster = |t: &Tables| t.service(&host(3)).unwrap().clusters().next().unwrap().clone();
    assert!(Arc::ptr_eq(&cluster(&t), &cluster(&new)));
    assert_eq!(cluster(&new).id, cluster(&new).key.id());
}

#[test]
fn a_bad_resource_is_refused_alone_and_the_last_good_one_stays() {
    let t = many(3);
    let mut bad = service("s1", "default", "10.96.0.1", &[80]);
    bad.virtual_hosts =
        vec![virtual_host("default/vs", vec![rule(vec![uri(regex("("))], vec![to(&host(0), "", 0)])])];
    let mut worse = service("s2", "default", "not an address", &[80]);
    worse.ports[0].number = 70_000;
    let (new, applied) =
        t.apply(vec![set(bad), set(worse), set(service("s9", "default", "10.96.0.9", &[80]))]);
    assert_eq!(applied.rejected.len(), 2);
    assert_eq!(applied.rejected[0].name, host(1));
    assert!(
        applied.rejected[0].reason.starts_with("virtual_hosts[0].http[0].matches[0].uri: "),
        "{applied:?}"
    );
    assert!(applied.rejected[1].reason.contains("vips[0]") && applied.rejected[1].reason.contains("70000"));
    assert!(Arc::ptr_eq(t.service(&host(1)).unwrap(), new.service(&host(1)).unwrap()));
    assert!(new.by_vip("10.96.0.9".parse().unwrap(), 80).is_some());
}

#[test]
fn endpoints_may_come_before_their_service() {
    let (t, _) = Tables::new()
        .apply(vec![endpoints(&host(0), vec![endpoint("10.1.0.1", "edge-a", &[(80, 8080)], "v1")])]);
    let (t, _) = t.apply(vec![set(service("s0", "default", "10.96.0.1", &[80]))]);
    assert_eq!(t.service(&host(0)).unwrap().clusters().next().unwrap().endpoints.len(), 1);
    let (t, _) = t.apply(vec![Change::Remove(ResourceType::Service, host(0))]);
    assert!(t.by_vip("10.96.0.1".parse().unwrap(), 80).is_none() && t.vips().next().is_none());
    let (t, _) = t.apply(vec![set(service("s0", "default", "10.96.0.1", &[80]))]);
    assert_eq!(t.service(&host(0)).unwrap().clusters().next().unwrap().endpoints.len(), 1);
}

#[test]
fn a_moved_virtual_address_moves() {
    let t = many(2);
    let (t, applied) = t.apply(vec![set(service("s1", "default", "10.99.0.1", &[80]))]);
    assert!(applied.vips_changed);
    assert!(t.by_vip("10.96.0.1".parse().unwrap(), 80).is_none());
    assert_eq!(&*t.by_vip("10.99.0.1".parse().unwrap(), 80).unwrap().service.host, host(1));
    assert_eq!(t.vips().count(), 2);
}

#[test]
fn a_service_that_is_left_to_others_is_known_and_not_captured() {
    let mut s = service("s1", "default", "10.96.1.1", &[80]);
    s.ports.push(model::Port { number: 53, name: "dns".into(), protocol: model::Protocol::Udp.into() });
    let t = tables(vec![set(s.clone())]);
    assert_eq!((t.vips().count(), t.udp_vips().count()), (1, 1));
    s.uncaptured = true;
    let (t, applied) = t.apply(vec![set(s.clone())]);
    assert_eq!((t.vips().count(), t.udp_vips().count(), applied.vips_changed), (0, 0, true));
    assert!(t.by_vip("10.96.1.1".parse().unwrap(), 80).is_some());
    s.uncaptured = false;
    assert!(t.apply(vec![set(s)]).1.vips_changed);
}

#[test]
fn headless_members_are_captured_and_found_by_address() {
    let mut s = service("db", "default", "10.96.1.1", &[5432]);
    s.kind = model::service::Kind::Headless as i32;
    s.vips.clear();
    let db = "db.default.svc.cluster.local";
    let e = endpoint("10.1.9.1", "edge-a", &[(5432, 15432)], "v1");
    let t = tables(vec![set(s), endpoints(db, vec![e.clone()])]);
    assert_eq!(t.vips().map(|v| v.to_string()).collect::<Vec<_>>(), ["10.1.9.1"]);
    let m = t.endpoint_by_addr("10.1.9.1".parse().unwrap(), 15432).unwrap();
    assert_eq!((&*m.service.host, m.port.number), (db, 5432));
    assert!(t.endpoint_by_addr("10.1.9.1".parse().unwrap(), 5432).is_none());
    let (t, applied) = t.apply(vec![endpoints(db, vec![])]);
    assert!(applied.vips_changed && t.vips().next().is_none());
}

#[test]
fn a_node_speaks_for_its_workloads() {
    let w = |address: &str, name: &str| model::Workload {
        address: address.into(),
        name: name.into(),
        namespace: "default".into(),
        service_account: "sa".into(),
        ..Default::default()
    };
    let of = |node: &str, workloads| {
        Change::Set(Resource::NodeWorkloads(model::NodeWorkloads { node: node.into(), workloads }))
    };
    let ip = "10.1.0.5".parse().unwrap();
    let t = tables(vec![of("edge-a", vec![w("10.1.0.5", "a"), w("10.1.0.6", "b")])]);
    assert_eq!(&*t.workload(ip).unwrap().name, "a");
    assert_eq!(t.workload(ip).unwrap().spiffe("td"), "spiffe://td/ns/default/sa/sa");
    assert!(t.owns("edge-a", ip) && !t.owns("edge-b", ip));
    let (t, applied) =
        t.apply(vec![of("edge-a", vec![w("10.1.0.6", "b")]), of("edge-b", vec![w("10.1.0.5", "c")])]);
    assert!(applied.workloads_changed);
    assert_eq!(t.owner_of(ip).map(|n| &**n), Some("edge-b"));
    assert_eq!(t.workloads_of("edge-a").count(), 1);
    let (t, _) = t.apply(vec![Change::Remove(ResourceType::NodeWorkloads, "edge-b".into())]);
    assert!(t.workload(ip).is_none());
}

#[test]
fn two_services_may_share_an_address() {
    let t = tables(vec![
        set(service("a", "default", "10.96.0.1", &[80])),
        set(service("b", "default", "10.96.0.1", &[81])),
    ]);
    let at = |p| t.by_vip("10.96.0.1".parse().unwrap(), p).map(|m| m.service.name.to_string());
    assert_eq!((at(80).as_deref(), at(81).as_deref(), at(82)), (Some("a"), Some("b"), None));
    let (t, _) = t.apply(vec![Change::Remove(ResourceType::Service, "a.default.svc.cluster.local".into())]);
    assert_eq!(
        t.by_vip("10.96.0.1".parse().unwrap(), 81).map(|m| m.service.name.to_string()).as_deref(),
        Some("b")
    );
}

#[test]
fn what_rules_leave_open_is_the_meshs_to_say() {
    use std::time::Duration;

    use crate::{Client, policy::H2Upgrade};

    let service = model::Service {
        host: "a.default.svc.cluster.local".into(),
        namespace: "default".into(),
        kind: model::service::Kind::ClusterIp.into(),
        vips: vec!["10.0.0.1".into()],
        ports: vec![model::Port { number: 80, ..Default::default() }],
        ..Default::default()
    };
    let mut ruled = service.clone();
    ruled.host = "b.default.svc.cluster.local".into();
    ruled.vips = vec!["10.0.0.2".into()];
    let pool = model::ConnectionPool { max_connections: 7, ..Default::default() };
    ruled.policies = vec![model::DestinationPolicy {
        policy: Some(model::TrafficPolicy { connection_pool: Some(pool), ..Default::default() }),
        ..Default::default()
    }];
    let mesh = model::MeshConfig {
        cluster_domain: "cluster.local".into(),
        connect_timeout: Some(model::Millis { value: 3000 }),
        h2_upgrade: true,
        default_outlier: Some(model::OutlierDetection { consecutive_5xx: 2, ..Default::default() }),
        default_pool: Some(model::ConnectionPool { max_retries: 5, ..Default::default() }),
        ..Default::default()
    };
    let set = |r| Change::Set(r);
    let (tables, _) =
        Tables::new().apply(vec![set(Resource::Service(service)), set(Resource::Service(ruled))]);
    let client = Client::in_namespace("default");
    let policy = |t: &Tables, name: &str| {
        let service = t.service(&format!("{name}.default.svc.cluster.local")).unwrap();
        service.cluster(&client, "", 80).unwrap().policy.clone()
    };
    assert_eq!(policy(&tables, "a").pool.connect_timeout, Duration::from_secs(10));
    let (tables, applied) = tables.apply(vec![set(Resource::MeshConfig(mesh))]);
    assert_eq!(applied.clusters_built, 2);
    for name in ["a", "b"] {
        let policy = policy(&tables, name);
        assert_eq!(policy.pool.connect_timeout, Duration::from_secs(3), "{name}");
        assert_eq!(policy.pool.h2_upgrade, H2Upgrade::Upgrade);
        assert_eq!(policy.outlier.as_ref().map(|o| o.consecutive_5xx), Some(2));
    }
    // The block as a whole is for rules without one.
    assert_eq!(policy(&tables, "a").pool.max_retries, Some(5));
    assert_eq!(
        (policy(&tables, "b").pool.max_retries, policy(&tables, "b").pool.max_connections),
        (None, Some(7))
    );
    let (tables, _) = tables.apply(vec![Change::Remove(ResourceType::MeshConfig, "mesh".into())]);
    assert_eq!(policy(&tables, "b").pool.connect_timeout, Duration::from_secs(10));
}
