//! Fuzz targets: resources and messages as a peer or a damaged file gives them.
#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use mesh_api::{
    Resource, ResourceType, check,
    model::{TunnelAnswer, TunnelOpen, Workload},
    xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as Wrapped},
};
use mesh_testkit::fuzz;
use prost::Message;

fn seeds() -> Vec<Vec<u8>> {
    use mesh_api::model::*;
    let endpoint = Endpoint {
        address: "10.1.0.7".into(),
        ports: vec![PortMap { service_port: 80, target_port: 8080 }],
        node: "edge-a".into(),
        ready: true,
        ..Default::default()
    };
    let rule = HttpRule {
        matches: vec![HttpMatch {
            uri: Some(StringMatch { kind: Some(string_match::Kind::Regex("/a.*".into())) }),
            headers: vec![NamedMatch { name: "x".into(), r#match: None }],
            ..Default::default()
        }],
        action: Some(http_rule::Action::Redirect(Redirect { code: 301, ..Default::default() })),
        timeout: Some(Millis { value: 1 }),
        ..Default::default()
    };
    let service = Service {
        host: "a.b.svc.cluster.local".into(),
        kind: service::Kind::ClusterIp.into(),
        vips: vec!["10.96.0.1".into(), "fd00::1".into()],
        ports: vec![Port { number: 80, name: "http".into(), protocol: Protocol::Http.into() }],
        virtual_hosts: vec![VirtualHost { source: "a/b".into(), http: vec![rule], ..Default::default() }],
        ..Default::default()
    };
    let node =
        Node { name: "edge-a".into(), addresses: vec!["/ip4/1.2.3.4/tcp/1".into()], ..Default::default() };
    vec![
        service.encode_to_vec(),
        Endpoints { host: "a.b".into(), endpoints: vec![endpoint] }.encode_to_vec(),
        node.encode_to_vec(),
        MeshConfig { cluster_domain: "cluster.local".into(), ..Default::default() }.encode_to_vec(),
    ]
}

#[test]
fn fuzz_resources() {
    fuzz::run("resource", &seeds(), |bytes| {
        ResourceType::ALL.map(|kind| match Resource::decode(kind, "n", bytes) {
            Ok(resource) => {
                let problems = check("n", &resource);
                // What is refused can be named, and what is kept is kept the same.
                assert!(problems.iter().all(|p| !p.path.is_empty()));
                let again = Resource::decode(kind, "n", &resource.encode()).unwrap();
                assert_eq!(again.encode(), resource.encode());
                problems.len().min(20)
            }
            Err(_) => usize::MAX,
        })
    });
}

#[test]
fn fuzz_messages() {
    let open = TunnelOpen {
        version: 1,
        address: "10.1.0.7".into(),
        port: 80,
        host: "a.b".into(),
        source: Some(Workload { address: "10.1.0.8".into(), ..Default::default() }),
        ..Default::default()
    };
    let response = DeltaDiscoveryResponse {
        type_url: ResourceType::Service.url().into(),
        resources: vec![Wrapped { name: "a.b".into(), version: "1".into(), ..Default::default() }],
        removed_resources: vec!["c.d".into()],
        nonce: "n".into(),
        ..Default::default()
    };
    let seeds = [
        open.encode_to_vec(),
        TunnelAnswer { code: 2, detail: "no".into() }.encode_to_vec(),
        response.encode_to_vec(),
        DeltaDiscoveryRequest { response_nonce: "n".into(), ..Default::default() }.encode_to_vec(),
    ];
    fuzz::run("message", &seeds, |bytes| {
        (
            TunnelOpen::decode(bytes).map_or(0, |m| 1 + m.encoded_len().min(64)),
            TunnelAnswer::decode(bytes).map_or(0, |m| 1 + usize::from(m.code != 0)),
            DeltaDiscoveryResponse::decode(bytes).map_or(0, |m| 1 + m.resources.len().min(8)),
            DeltaDiscoveryRequest::decode(bytes).is_ok(),
        )
    });
}
