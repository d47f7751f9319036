use mesh_api::model;

use super::*;
use crate::fixtures::*;

fn mesh() -> Tables {
    let mut web = service("web", "default", "10.96.0.1", &[80]);
    web.vips.push("fd00::1".into());
    let mut db = service("db", "default", "", &[5432]);
    db.kind = model::service::Kind::Headless as i32;
    db.vips.clear();
    let mut outside = service("out", "default", "", &[80]);
    outside.kind = model::service::Kind::ExternalName as i32;
    outside.external_name = "example.com".into();
    outside.vips.clear();
    let mut udp = service("ns", "default", "10.96.0.2", &[53]);
    udp.ports[0].protocol = model::Protocol::Udp as i32;
    let mut db0 = endpoint("10.1.0.1", "a", &[(5432, 5432)], "v1");
    db0.hostname = "db-0".into();
    let db1 = endpoint("10.1.0.2", "a", &[(5432, 6000)], "v1");
    let mut unready = endpoint("10.1.0.3", "a", &[(5432, 5432)], "v1");
    unready.ready = false;
    unready.hostname = "db-2".into();
    tables(vec![
        set(web),
        set(db),
        set(outside),
        set(udp),
        endpoints("db.default.svc.cluster.local", vec![db0, db1, unready]),
    ])
}

fn a(ip: &str) -> Record {
    Record::A(ip.parse().unwrap())
}

#[test]
fn addresses_of_services() {
    let t = mesh();
    let ask = |n: &str, q| answer(&t, n, q);
    assert_eq!(ask("web.default.svc.cluster.local.", QueryType::A), Answer::Records(vec![a("10.96.0.1")]));
    assert_eq!(
        ask("web.default.svc.cluster.local", QueryType::Aaaa),
        Answer::Records(vec![Record::Aaaa("fd00::1".parse().unwrap())])
    );
    assert_eq!(ask("web.default.svc.cluster.local", QueryType::Other), Answer::NoData);
    assert_eq!(ask("ns.default.svc.cluster.local", QueryType::Aaaa), Answer::NoData, "not NXDOMAIN");
    assert_eq!(ask("ghost.default.svc.cluster.local", QueryType::A), Answer::NxDomain);
    assert_eq!(ask("x.web.default.svc.cluster.local", QueryType::A), Answer::NxDomain);
    for inner in ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"] {
        assert_eq!(ask(inner, QueryType::A), Answer::NoData, "{inner}");
    }
    assert_eq!(ask("nowhere.svc.cluster.local", QueryType::A), Answer::NxDomain);
    assert_eq!(ask("example.com", QueryType::A), Answer::NotOurs);
    assert_eq!(ask("notcluster.local", QueryType::A), Answer::NotOurs);
    assert_eq!(ask("", QueryType::A), Answer::NotOurs);
    assert_eq!(ask("out.default.svc.cluster.local", QueryType::A), Answer::Cname("example.com".into()));
}

#[test]
fn headless_services_show_their_ready_members() {
    let t = mesh();
    let ask = |n: &str, q| answer(&t, n, q);
    let db = "db.default.svc.cluster.local";
    assert_eq!(ask(db, QueryType::A), Answer::Records(vec![a("10.1.0.1"), a("10.1.0.2")]));
    assert_eq!(ask(&format!("db-0.{db}"), QueryType::A), Answer::Records(vec![a("10.1.0.1")]));
    assert_eq!(ask(&format!("10-1-0-2.{db}"), QueryType::A), Answer::Records(vec![a("10.1.0.2")]));
    assert_eq!(ask(&format!("db-2.{db}"), QueryType::A), Answer::NxDomain, "it is not ready");
    assert_eq!(ask(&format!("db-0.{db}"), QueryType::Aaaa), Answer::NoData);
}

#[test]
fn named_ports() {
    let t = mesh();
    let ask = |n: &str, q| answer(&t, n, q);
    let srv = |port, target: &str| Record::Srv { priority: 0, weight: 1, port, target: target.into() };
    let web = "web.default.svc.cluster.local";
    assert_eq!(ask(&format!("_p80._tcp.{web}"), QueryType::Srv), Answer::Records(vec![srv(80, web)]));
    assert_eq!(ask(&format!("_p80._tcp.{web}"), QueryType::A), Answer::NoData);
    assert_eq!(ask(&format!("_p80._udp.{web}"), QueryType::Srv), Answer::NxDomain);
    assert_eq!(ask(&format!("_p81._tcp.{web}"), QueryType::Srv), Answer::NxDomain);
    let db = "db.default.svc.cluster.local";
    assert_eq!(
        ask(&format!("_p5432._tcp.{db}"), QueryType::Srv),
        Answer::Records(vec![srv(5432, &format!("db-0.{db}")), srv(6000, &format!("10-1-0-2.{db}"))])
    );
    let ns = "_p53._udp.ns.default.svc.cluster.local";
    assert!(matches!(ask(ns, QueryType::Srv), Answer::Records(_)));
}

#[test]
fn names_of_addresses() {
    let t = mesh();
    let ask = |n: &str, q| answer(&t, n, q);
    let ptr = |s: &str| Answer::Records(vec![Record::Ptr(s.into())]);
    assert_eq!(ask("1.0.96.10.in-addr.arpa.", QueryType::Ptr), ptr("web.default.svc.cluster.local"));
    assert_eq!(ask("1.0.1.10.in-addr.arpa", QueryType::Ptr), ptr("db-0.db.default.svc.cluster.local"));
    assert_eq!(ask("1.0.96.10.in-addr.arpa", QueryType::A), Answer::NoData);
    let v6 = format!("1.{}d.f.ip6.arpa", "0.".repeat(29));
    assert_eq!(ask(&v6, QueryType::Ptr), ptr("web.default.svc.cluster.local"), "{v6}");
    for other in ["1.2.3.4.in-addr.arpa", "1.0.96.in-addr.arpa", "999.0.96.10.in-addr.arpa", "x.ip6.arpa"] {
        assert_eq!(ask(other, QueryType::Ptr), Answer::NotOurs, "{other}");
    }
}

#[test]
fn an_answer_is_bounded() {
    let mut s = service("big", "default", "", &[80]);
    s.kind = model::service::Kind::Headless as i32;
    s.vips.clear();
    let host = "big.default.svc.cluster.local";
    let list = (0..1000)
        .map(|i| endpoint(&format!("10.2.{}.{}", i / 250, i % 250), "a", &[(80, 80)], "v1"))
        .collect();
    let t = tables(vec![set(s), endpoints(host, list)]);
    for (name, q) in [(host.to_owned(), QueryType::A), (format!("_p80._tcp.{host}"), QueryType::Srv)] {
        let Answer::Records(r) = answer(&t, &name, q) else { panic!("{name}") };
        assert_eq!(r.len(), MAX_RECORDS);
    }
}
