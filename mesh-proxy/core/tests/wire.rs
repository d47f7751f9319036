//! What arrives is not trusted: damaged resources are refused or used, and nothing ever panics, neither when they are
//! applied nor when they are asked afterwards.

use std::net::IpAddr;

use mesh_api::{
    Resource, ResourceType,
    model::{self, string_match::Kind},
};
use mesh_core::{
    Change, Client, RequestView, Tables,
    actions::CorsOutcome,
    dns::{self, QueryType},
};
use proptest::prelude::*;

const HOST: &str = "web.default.svc.cluster.local";

struct Request(String, String);

impl RequestView for Request {
    fn method(&self) -> &str {
        "OPTIONS"
    }
    fn authority(&self) -> &str {
        &self.0
    }
    fn path_and_query(&self) -> &str {
        &self.1
    }
    fn scheme(&self) -> &str {
        "http"
    }
    fn header_values(&self, _: &str, f: &mut dyn FnMut(&str) -> bool) -> bool {
        f("https://example.com")
    }
}

fn string(kind: Kind) -> Option<model::StringMatch> {
    Some(model::StringMatch { kind: Some(kind) })
}

/// A service that uses every part of the model.
fn service() -> model::Service {
    let millis = |value| Some(model::Millis { value });
    let to = model::WeightedDestination {
        destination: Some(model::Destination { host: HOST.into(), subset: "v1".into(), port: 0 }),
        weight: 10,
        headers: Some(model::HeaderOps {
            request: Some(model::HeaderOp {
                set: vec![model::HeaderValue { name: "x".into(), value: "y".into() }],
                ..Default::default()
            }),
            response: None,
        }),
    };
    let forward = model::HttpRule {
        matches: vec![model::HttpMatch {
            uri: string(Kind::Prefix("/a".into())),
            headers: vec![model::NamedMatch { name: "h".into(), r#match: string(Kind::Regex("a+".into())) }],
            port: 80,
            source_labels: [("app".to_owned(), "a".to_owned())].into(),
            ..Default::default()
        }],
        action: Some(model::http_rule::Action::Forward(model::Forward {
            destinations: vec![to.clone(), to.clone()],
        })),
        rewrite: Some(model::Rewrite {
            regex: "a(b)".into(),
            regex_rewrite: "\\1".into(),
            ..Default::default()
        }),
        timeout: millis(1000),
        retry: Some(model::RetryPolicy {
            attempts: 3,
            retry_on: vec!["5xx".into()],
            backoff: millis(5),
            ..Default::default()
        }),
        fault: Some(model::Fault {
            delay: Some(model::fault::Delay { parts_per_million: 500_000, fixed: millis(9) }),
            abort: Some(model::fault::Abort { parts_per_million: 500_000, http_status: 503, grpc: None }),
        }),
        mirrors: vec![model::Mirror { destination: to.destination.clone(), parts_per_million: 1_000_000 }],
        cors: Some(model::Cors {
            allow_origins: vec![model::StringMatch { kind: Some(Kind::Exact("*".into())) }],
            max_age: millis(1),
            ..Default::default()
        }),
        ..Default::default()
    };
    let redirect = model::HttpRule {
        index: 1,
        matches: vec![model::HttpMatch { uri: string(Kind::Prefix("/r".into())), ..Default::default() }],
        action: Some(model::http_rule::Action::Redirect(model::Redirect {
            prefix_rewrite: "/n".into(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let outlier = model::OutlierDetection { consecutive_5xx: 5, interval: millis(1), ..Default::default() };
    model::Service {
        host: HOST.into(),
        namespace: "default".into(),
        name: "web".into(),
        kind: model::service::Kind::ClusterIp as i32,
        vips: vec!["10.96.0.1".into(), "fd00::1".into()],
        ports: vec![model::Port { number: 80, name: "http".into(), protocol: model::Protocol::Http as i32 }],
        virtual_hosts: vec![model::VirtualHost {
            source: "default/vs".into(),
            http: vec![forward, redirect],
            tls: vec![model::TlsRule {
                index: 0,
                matches: vec![model::TlsMatch { sni_hosts: vec!["*.a".into()], ..Default::default() }],
                destinations: vec![to.clone()],
                ..Default::default()
            }],
            tcp: vec![model::TcpRule {
                index: 0,
                matches: vec![model::TcpMatch {
                    destination_subnets: vec!["10.0.0.0/8".into()],
                    ..Default::default()
                }],
                destinations: vec![to],
                ..Default::default()
            }],
            ..Default::default()
        }],
        policies: vec![model::DestinationPolicy {
            source: "default/dr".into(),
            policy: Some(model::TrafficPolicy { outlier: Some(outlier), ..Default::default() }),
            subsets: vec![model::Subset {
                name: "v1".into(),
                labels: [("version".to_owned(), "v1".to_owned())].into(),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn resources() -> Vec<Resource> {
    let workload = model::Workload {
        address: "10.1.0.1".into(),
        namespace: "default".into(),
        labels: [("version".to_owned(), "v1".to_owned())].into(),
        ..Default::default()
    };
    let endpoint = model::Endpoint {
        address: "10.1.0.1".into(),
        ports: vec![model::PortMap { service_port: 80, target_port: 8080 }],
        node: "a".into(),
        workload: Some(workload.clone()),
        ready: true,
        hostname: "web-0".into(),
        ..Default::default()
    };
    vec![
        Resource::MeshConfig(model::MeshConfig {
            cluster_domain: "cluster.local".into(),
            ..Default::default()
        }),
        Resource::Node(model::Node {
            name: "a".into(),
            addresses: vec!["/ip4/1.2.3.4/tcp/1".into()],
            ..Default::default()
        }),
        Resource::NodeWorkloads(model::NodeWorkloads { node: "a".into(), workloads: vec![workload] }),
        Resource::Service(service()),
        Resource::Endpoints(model::Endpoints { host: HOST.into(), endpoints: vec![endpoint] }),
    ]
}

/// Asks the tables everything that a proxy asks.
fn exercise(tables: &Tables, host: &str, path: &str) {
    let client = Client::in_namespace("default");
    for x in [0.0, 0.5, 0.999_999] {
        let mut dice = |_| x;
        for ip in tables.vips().chain([IpAddr::from([10, 1, 0, 1])]).take(20).collect::<Vec<_>>() {
            let vip = tables.by_vip(ip, 80);
            let request = Request(host.to_owned(), path.to_owned());
            let d = tables.route_http(&client, 80, vip.as_ref(), &request, &mut dice);
            if let Some(rule) = d.rule {
                let matched = d.matched.map(|m| m.1);
                let _ = (rule.rewritten_path(matched, path), rule.delay(&mut dice), rule.abort(&mut dice));
                let _ = tables.mirror_clusters(rule, &client, 80, &mut dice).count();
                let _ = matches!(rule.cors(&request), CorsOutcome::None);
                if let mesh_core::HttpOutcome::Redirect(r) = d.outcome {
                    let _ = r.location(matched, &request, 80);
                }
            }
            let _ = tables.route_tcp(&client, Some(ip), vip.as_ref(), 80, &mut dice);
            let _ = tables.route_tls(&client, Some(ip), vip.as_ref(), (80, host), &mut dice);
            let _ = (tables.workload(ip), tables.owner_of(ip), tables.endpoint_by_addr(ip, 8080));
        }
    }
    for q in [QueryType::A, QueryType::Aaaa, QueryType::Srv, QueryType::Ptr, QueryType::Other] {
        for name in
            [host, HOST, "web-0.web.default.svc.cluster.local", "_http._tcp.web.default.svc.cluster.local"]
        {
            let _ = dns::answer(tables, &name.to_lowercase(), q);
        }
        let _ = dns::answer(tables, "1.0.1.10.in-addr.arpa", q);
    }
}

#[derive(Debug, Clone)]
enum Damage {
    Set(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<usize>(), any::<u8>()).prop_map(|(at, b)| Damage::Set(at, b)),
        1 => any::<usize>().prop_map(Damage::Cut),
        1 => (any::<usize>(), prop::collection::vec(any::<u8>(), 1..8)).prop_map(|(at, b)| Damage::Insert(at, b)),
    ]
}

fn damaged(mut bytes: Vec<u8>, all: &[Damage]) -> Vec<u8> {
    for d in all {
        let length = bytes.len().max(1);
        match d {
            Damage::Set(at, b) if !bytes.is_empty() => bytes[at % length] = *b,
            Damage::Set(..) => {}
            Damage::Cut(at) => bytes.truncate(at % length),
            Damage::Insert(at, b) => {
                let at = (at % length).min(bytes.len());
                bytes.splice(at..at, b.iter().copied());
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_resources_do_no_harm(
        which in 0..5usize,
        damage in prop::collection::vec(damage(), 1..6),
        host in "[a-zA-Z0-9.*_:-]{0,40}",
        path in "/[a-z/?=&.%]{0,20}",
    ) {
        let all = resources();
        let (good, applied) = Tables::new().apply(all.iter().cloned().map(Change::Set).collect());
        prop_assert_eq!(applied.rejected.len(), 0);
        let bytes = damaged(all[which].encode(), &damage);
        if let Ok(resource) = Resource::decode(all[which].kind(), "x", &bytes) {
            let name = resource.name().to_owned();
            let (new, applied) = good.apply(vec![Change::Set(resource)]);
            exercise(&new, &host, &path);
            if !applied.rejected.is_empty() {
                // What was refused has changed nothing.
                prop_assert_eq!(new.service_count(), good.service_count());
                prop_assert!(new.service(HOST).is_some());
            }
            let (gone, _) = new.apply(vec![Change::Remove(all[which].kind(), name)]);
            exercise(&gone, &host, &path);
        }
    }

    #[test]
    fn noise_is_no_resource_or_a_harmless_one(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for kind in ResourceType::ALL {
            if let Ok(resource) = Resource::decode(kind, "x", &bytes) {
                exercise(&Tables::new().apply(vec![Change::Set(resource)]).0, "x", "/");
            }
        }
    }
}

#[test]
fn the_undamaged_one_uses_every_part() {
    let (tables, applied) = Tables::new().apply(resources().into_iter().map(Change::Set).collect());
    assert_eq!(applied.rejected, []);
    exercise(&tables, "web", "/a/ab?x=1");
    exercise(&tables, "web", "/r/x");
    assert_eq!(tables.vips().count(), 2);
}
