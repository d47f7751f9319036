//! Hosts outside the mesh (ServiceEntry), and what a namespace may call (Sidecar).

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use http::StatusCode;
use mesh_api::{
    Resource,
    model::{self, Protocol, mesh_config::OutboundMode, service::Resolution},
};
use mesh_proxy::outbound::names::{Names, Resolved};

use crate::{
    upstream::{Upstream, collect},
    world::{Options, World},
};

const VIP: &str = "240.240.0.1";

/// Answers as told, and counts.
#[derive(Default)]
struct Told {
    answers: Mutex<std::collections::HashMap<String, Vec<IpAddr>>>,
    asked: Mutex<Vec<String>>,
    holds: Duration,
}

impl Names for Told {
    fn lookup<'a>(&'a self, name: &'a str) -> BoxFuture<'a, std::io::Result<Resolved>> {
        self.asked.lock().unwrap().push(name.to_owned());
        let found = self.answers.lock().unwrap().get(name).cloned();
        Box::pin(async move {
            let addresses = found.ok_or_else(|| std::io::Error::other("no such name"))?;
            Ok(Resolved { addresses, holds: self.holds })
        })
    }
}

fn told(list: &[(&str, &[&str])], holds: Duration) -> Arc<Told> {
    let answers = list
        .iter()
        .map(|(n, ips)| ((*n).to_owned(), ips.iter().map(|i| i.parse().unwrap()).collect()))
        .collect();
    Arc::new(Told { answers: Mutex::new(answers), asked: Mutex::default(), holds })
}

fn external(host: &str, vips: &[&str], port: u16, protocol: Protocol, how: Resolution) -> model::Service {
    model::Service {
        host: host.into(),
        namespace: "default".into(),
        name: host.into(),
        kind: model::service::Kind::External.into(),
        vips: vips.iter().map(|v| (*v).into()).collect(),
        ports: vec![model::Port { number: port.into(), name: "p".into(), protocol: protocol.into() }],
        resolution: how.into(),
        location: model::service::Location::MeshExternal.into(),
        ..Default::default()
    }
}

fn names(host: &str, port: u16, list: &[(&str, u16)]) -> Resource {
    let endpoint = |(fqdn, target): &(&str, u16)| model::Endpoint {
        fqdn: (*fqdn).into(),
        ports: vec![model::PortMap { service_port: port.into(), target_port: (*target).into() }],
        ready: true,
        ..Default::default()
    };
    Resource::Endpoints(model::Endpoints {
        host: host.into(),
        endpoints: list.iter().map(endpoint).collect(),
    })
}

fn at(vip: &str, port: u16) -> (String, Vec<SocketAddr>) {
    let to = format!("{vip}:{port}");
    let addr = to.parse().unwrap();
    (to, vec![addr])
}

#[tokio::test]
async fn a_name_is_resolved_for_its_virtual_address_and_asked_again_when_it_no_longer_holds() {
    let (a, b) = (Upstream::start("a").await, Upstream::start_at("b", "127.0.0.2:0".parse().unwrap()).await);
    let names_told = told(&[("api.example.com", &["127.0.0.1"])], Duration::from_millis(50));
    let (to, called) = at(VIP, 80);
    let resources = vec![
        Resource::Service(external("api.example.com", &[VIP], 80, Protocol::Http, Resolution::Dns)),
        names("api.example.com", 80, &[("api.example.com", a.addr.port())]),
    ];
    let options = Options { called, names: Some(names_told.clone()), ..Options::default() };
    let world = World::start(resources, options);
    assert_eq!(world.get(&to, "api.example.com", "/").await.headers()["x-upstream"], "a");
    // The port is the same at the new address; only the address differs.
    names_told.answers.lock().unwrap().insert("api.example.com".into(), vec!["127.0.0.2".parse().unwrap()]);
    world.apply(vec![names("api.example.com", 80, &[("api.example.com", b.addr.port())])]);
    let response = world.get(&to, "api.example.com", "/").await;
    assert_eq!(response.headers()["x-upstream"], "b");
    // When nobody answers any more, what was known is used.
    names_told.answers.lock().unwrap().clear();
    tokio::time::sleep(Duration::from_millis(120)).await;
    for _ in 0..5 {
        assert_eq!(world.get(&to, "api.example.com", "/").await.status(), StatusCode::OK);
    }
    world.metric(&["istio_requests_total", "destination_service=\"api.example.com\""]).await;
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_no_healthy_upstream() {
    let (to, called) = at(VIP, 80);
    let resources =
        vec![Resource::Service(external("gone.example.com", &[VIP], 80, Protocol::Http, Resolution::Dns))];
    let options = Options { called, names: Some(told(&[], Duration::from_secs(1))), ..Options::default() };
    let world = World::start(resources, options);
    let response = world.get(&to, "gone.example.com", "/").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_silent_address_of_a_name_is_overtaken() {
    let up = Upstream::start("up").await;
    // The first address drops everything (TEST-NET-1 has no route here or no answer).
    let names_told = told(&[("two.example.com", &["192.0.2.1", "127.0.0.1"])], Duration::from_secs(60));
    let (to, called) = at(VIP, 80);
    let resources = vec![
        Resource::Service(external("two.example.com", &[VIP], 80, Protocol::Http, Resolution::Dns)),
        names("two.example.com", 80, &[("two.example.com", up.addr.port())]),
    ];
    let world = World::start(resources, Options { called, names: Some(names_told), ..Options::default() });
    let start = std::time::Instant::now();
    for _ in 0..4 {
        assert_eq!(world.get(&to, "two.example.com", "/").await.status(), StatusCode::OK);
    }
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[tokio::test]
async fn without_resolution_the_called_address_is_used_under_the_entrys_name() {
    let up = Upstream::start("up").await;
    let (to, called) = (up.addr.to_string(), vec![up.addr]);
    let resources = vec![Resource::Service(external(
        "*.example.com",
        &[],
        up.addr.port(),
        Protocol::Http,
        Resolution::None,
    ))];
    let world = World::start(resources, Options { called, ..Options::default() });
    assert_eq!(world.get(&to, "any.example.com", "/").await.headers()["x-upstream"], "up");
    world.metric(&["istio_requests_total", "destination_service=\"*.example.com\""]).await;
}

#[tokio::test]
async fn a_wildcard_goes_to_the_name_that_is_asked_for() {
    let up = Upstream::start("up").await;
    let port = up.addr.port();
    let names_told = told(&[("one.example.com", &["127.0.0.1"])], Duration::from_secs(60));
    let (to, called) = at("203.0.113.9", port);
    let resources =
        vec![Resource::Service(external("*.example.com", &[], port, Protocol::Http, Resolution::DynamicDns))];
    let options = Options { called, names: Some(names_told.clone()), ..Options::default() };
    let world = World::start(resources, options);
    assert_eq!(world.get(&to, "one.example.com", "/").await.headers()["x-upstream"], "up");
    assert_eq!(world.get(&to, "two.example.com", "/").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(*names_told.asked.lock().unwrap(), ["one.example.com", "two.example.com"]);
}

#[tokio::test]
async fn static_endpoints_behind_an_address_range() {
    let up = Upstream::start("up").await;
    let mut entry = external("range.example.com", &[], 80, Protocol::Http, Resolution::Static);
    entry.cidrs = vec!["203.0.113.0/24".into()];
    let endpoint = model::Endpoint {
        address: "127.0.0.1".into(),
        ports: vec![model::PortMap { service_port: 80, target_port: up.addr.port().into() }],
        ready: true,
        ..Default::default()
    };
    let (to, called) = at("203.0.113.77", 80);
    let resources = vec![
        Resource::Service(entry),
        Resource::Endpoints(model::Endpoints { host: "range.example.com".into(), endpoints: vec![endpoint] }),
    ];
    let world = World::start(resources, Options { called, ..Options::default() });
    assert_eq!(world.get(&to, "range.example.com", "/").await.headers()["x-upstream"], "up");
}

fn mode(outbound: OutboundMode) -> Resource {
    Resource::MeshConfig(model::MeshConfig {
        cluster_domain: "cluster.local".into(),
        trust_domain: "cluster.local".into(),
        outbound: outbound.into(),
        ..Default::default()
    })
}

#[tokio::test]
async fn unknown_hosts_are_counted_under_istios_names() {
    let up = Upstream::start("up").await;
    let (to, called) = (up.addr.to_string(), vec![up.addr]);
    let world = World::start(vec![mode(OutboundMode::AllowAny)], Options { called, ..Options::default() });
    assert_eq!(world.get(&to, "stranger.example.com", "/").await.status(), StatusCode::OK);
    world.metric(&["istio_requests_total", "PassthroughCluster"]).await;
    world.apply(vec![mode(OutboundMode::RegistryOnly)]);
    assert_eq!(world.get(&to, "stranger.example.com", "/").await.status(), StatusCode::BAD_GATEWAY);
    world.metric(&["istio_requests_total", "BlackHoleCluster"]).await;
}

#[tokio::test]
async fn a_scope_hides_a_service_and_the_outside_rule_says_what_then_happens() {
    let up = Upstream::start("up").await;
    let mut bank = crate::world::service("bank", "10.96.0.7", 80, Protocol::Http);
    bank.namespace = "money".into();
    bank.host = "bank.money.svc.cluster.local".into();
    let endpoint = model::Endpoint {
        address: up.addr.ip().to_string(),
        ports: vec![model::PortMap { service_port: 80, target_port: up.addr.port().into() }],
        ready: true,
        // The test's client has the same address.
        workload: Some(model::Workload {
            address: up.addr.ip().to_string(),
            namespace: "default".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let list = model::Endpoints { host: bank.host.clone(), endpoints: vec![endpoint] };
    let (to, called) = at("10.96.0.7", 80);
    let resources = vec![Resource::Service(bank), Resource::Endpoints(list)];
    let world = World::start(resources, Options { called, ..Options::default() });
    let host = "bank.money.svc.cluster.local";
    assert_eq!(world.get(&to, host, "/").await.status(), StatusCode::OK);
    let own = model::HostScope { namespace: "default".into(), host: "*".into(), exclude: false };
    let scope = |outbound: OutboundMode| {
        Resource::Sidecar(model::Sidecar {
            name: "default/s".into(),
            namespace: "default".into(),
            egress: vec![model::EgressListener { hosts: vec![own.clone()], ..Default::default() }],
            outbound: outbound.into(),
            ..Default::default()
        })
    };
    world.apply(vec![scope(OutboundMode::RegistryOnly)]);
    assert_eq!(world.get(&to, host, "/").await.status(), StatusCode::BAD_GATEWAY);
    world.remove(mesh_api::ResourceType::Sidecar, &["default/s"]);
    let response = world.get(&to, host, "/").await;
    assert_eq!(response.status(), StatusCode::OK);
    collect(response.into_body()).await;
}
