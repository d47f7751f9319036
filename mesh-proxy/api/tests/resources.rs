//! Resources survive the wire, garbage does not pass, and what is refused is named.

use mesh_api::{
    DecodeError, Resource, ResourceType, check, model,
    resource::{MAX_RESOURCE_BYTES, version_of},
};
use proptest::prelude::*;

fn service(host: &str, vip: &str, port: u32) -> Resource {
    let port = model::Port { number: port, name: "http".to_owned(), protocol: model::Protocol::Http.into() };
    Resource::Service(model::Service {
        host: host.to_owned(),
        kind: model::service::Kind::ClusterIp.into(),
        vips: vec![vip.to_owned()],
        ports: vec![port],
        ..Default::default()
    })
}

fn paths(name: &str, resource: &Resource) -> Vec<String> {
    check(name, resource).into_iter().map(|p| p.path).collect()
}

#[test]
fn every_type_is_known_by_its_url() {
    for kind in ResourceType::ALL {
        assert_eq!(ResourceType::from_url(kind.url()), Some(kind));
    }
    assert_eq!(ResourceType::from_url("type.googleapis.com/envoy.config.cluster.v3.Cluster"), None);
}

#[test]
fn content_under_another_name_is_refused() {
    let resource = service("a.default.svc.cluster.local", "10.0.0.1", 80);
    assert!(paths("a.default.svc.cluster.local", &resource).is_empty());
    assert_eq!(paths("b.default.svc.cluster.local", &resource), ["name"]);
}

#[test]
fn every_mistake_is_named() {
    let resource = service("Bad Host", "10.0.0", 70_000);
    assert_eq!(paths("Bad Host", &resource), ["host", "vips[0]", "ports[0].number"]);
}

#[test]
fn an_unknown_enum_value_refuses_the_resource_that_carries_it() {
    let mut s = model::Service { host: "a.b".to_owned(), kind: 77, ..Default::default() };
    s.ports.push(model::Port { number: 1, name: String::new(), protocol: 99 });
    let name = s.host.clone();
    assert_eq!(paths(&name, &Resource::Service(s)), ["ports[0].protocol", "kind"]);
}

#[test]
fn a_rule_without_action_or_weight_is_refused() {
    let forward = |weights: &[u32]| {
        let destinations =
            weights.iter().map(|w| model::WeightedDestination { weight: *w, ..Default::default() }).collect();
        model::http_rule::Action::Forward(model::Forward { destinations })
    };
    let rule = |action| model::HttpRule { action, ..Default::default() };
    let http =
        vec![rule(None), rule(Some(forward(&[0, 0]))), rule(Some(forward(&[]))), rule(Some(forward(&[0])))];
    let virtual_hosts = vec![model::VirtualHost { http, ..Default::default() }];
    let s = model::Service {
        host: "a.b".to_owned(),
        kind: model::service::Kind::RouteOnly.into(),
        virtual_hosts,
        ..Default::default()
    };
    let want =
        ["virtual_hosts[0].http[0]", "virtual_hosts[0].http[1].forward", "virtual_hosts[0].http[2].forward"];
    assert_eq!(paths("a.b", &Resource::Service(s)), want);
}

#[test]
fn oversize_content_is_refused_before_it_is_decoded() {
    let bytes = vec![0; MAX_RESOURCE_BYTES + 1];
    let error = Resource::decode(ResourceType::Service, "x", &bytes).unwrap_err();
    assert_eq!(error, DecodeError::TooLarge { name: "x".to_owned(), size: bytes.len() });
}

#[test]
fn equal_content_has_an_equal_version() {
    let a = service("a.b", "10.0.0.1", 80).encode();
    assert_eq!(version_of(&a), version_of(&service("a.b", "10.0.0.1", 80).encode()));
    assert_ne!(version_of(&a), version_of(&service("a.b", "10.0.0.2", 80).encode()));
}

proptest! {
    #[test]
    fn services_survive_the_wire(host in "[a-z]{1,20}\\.[a-z]{1,9}", vip in any::<[u8; 4]>(), port in 1u32..65_536) {
        let resource = service(&host, &std::net::Ipv4Addr::from(vip).to_string(), port);
        let back = Resource::decode(ResourceType::Service, &host, &resource.encode()).unwrap();
        prop_assert_eq!(&back, &resource);
        prop_assert!(check(&host, &back).is_empty());
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        for kind in ResourceType::ALL {
            if let Ok(resource) = Resource::decode(kind, "n", &bytes) {
                // What decodes is checked, and what is checked can be named.
                for problem in check("n", &resource) {
                    prop_assert!(!problem.path.is_empty());
                }
            }
        }
    }
}
