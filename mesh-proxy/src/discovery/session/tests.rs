use std::sync::Arc;

use mesh_api::{model, xds};
use node_rt::Readiness;

use super::*;
use crate::{
    Config, Shared,
    store::{Store, Written},
};

fn discovery(dir: &std::path::Path) -> (Discovery, Readiness) {
    let config = Config { node: "edge-a".into(), ..Config::default() };
    let shared = Shared::new(Arc::new(config), prometheus::Registry::new());
    let (store, loaded) = Store::open(dir, &shared.metrics).unwrap();
    let readiness = Readiness::new();
    let guard = readiness.wait_for("configuration");
    (Discovery::new(shared, store, loaded, guard).unwrap(), readiness)
}

fn sent(r: &Resource, version: &str) -> xds::Resource {
    xds::Resource {
        name: r.name().to_owned(),
        version: version.to_owned(),
        resource: Some(prost_types::Any { type_url: r.kind().url().into(), value: r.encode() }),
        aliases: Vec::new(),
    }
}

fn service(name: &str, vip: &str) -> Resource {
    Resource::Service(model::Service {
        host: format!("{name}.default.svc.cluster.local"),
        kind: model::service::Kind::ClusterIp as i32,
        vips: vec![vip.to_owned()],
        ports: vec![model::Port { number: 80, ..Default::default() }],
        ..Default::default()
    })
}

#[tokio::test]
async fn a_bad_resource_is_refused_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (mut d, _) = discovery(dir.path());
    let good = service("good", "10.0.0.1");
    let old = service("old", "10.0.0.2");
    let (refused, _) = d.take(ResourceType::Service, vec![sent(&old, "1")], vec![]);
    assert_eq!(refused, None);
    let mut misnamed = sent(&good, "1");
    misnamed.name = "other".into();
    let mut garbage = sent(&service("garbage", "10.0.0.3"), "1");
    garbage.resource.as_mut().unwrap().value = vec![0xff; 20];
    let worse = service("old", "not an address");
    let (refused, writes) =
        d.take(ResourceType::Service, vec![misnamed, garbage, sent(&worse, "2"), sent(&good, "1")], vec![]);
    let refused = refused.expect("three are refused");
    for part in [
        "other: content is for",
        "garbage.default.svc.cluster.local: decode service",
        "old.default.svc.cluster.local: vips[0]",
    ] {
        assert!(refused.contains(part), "{part} is missing in {refused}");
    }
    assert_eq!(writes.iter().map(|w| w.name.as_str()).collect::<Vec<_>>(), [good.name()]);
    let tables = d.shared.tables.load();
    assert!(tables.by_vip("10.0.0.1".parse().unwrap(), 80).is_some());
    assert!(tables.by_vip("10.0.0.2".parse().unwrap(), 80).is_some(), "the last good one stays");
    assert_eq!(d.versions[&ResourceType::Service].get(old.name()).map(String::as_str), Some("1"));
}

#[tokio::test]
async fn a_complete_snapshot_makes_ready_without_a_controller() {
    let dir = tempfile::tempdir().unwrap();
    let (mut d, readiness) = discovery(dir.path());
    let s = service("s", "10.0.0.1");
    let (_, writes) = d.take(ResourceType::Service, vec![sent(&s, "7")], vec![]);
    assert_eq!(d.store.write(writes, false).await, Written::Durable);
    assert!(!readiness.is_ready());
    drop(d);
    let (d, readiness) = discovery(dir.path());
    assert!(!readiness.is_ready(), "nobody said that this was all");
    assert_eq!(d.store.write(Vec::new(), true).await, Written::Durable);
    drop(d);
    let (d, readiness) = discovery(dir.path());
    assert!(readiness.is_ready());
    assert!(d.shared.tables.load().by_vip("10.0.0.1".parse().unwrap(), 80).is_some());
    assert_eq!(d.versions[&ResourceType::Service][s.name()], "7");
}

#[tokio::test]
async fn what_is_removed_is_gone_from_tables_and_versions() {
    let dir = tempfile::tempdir().unwrap();
    let (mut d, _) = discovery(dir.path());
    let s = service("s", "10.0.0.1");
    d.take(ResourceType::Service, vec![sent(&s, "1")], vec![]);
    let (refused, writes) = d.take(ResourceType::Service, vec![], vec![s.name().to_owned()]);
    assert_eq!((refused, writes[0].value.is_none()), (None, true));
    assert!(d.shared.tables.load().service(s.name()).is_none());
    assert!(d.versions[&ResourceType::Service].is_empty());
}
