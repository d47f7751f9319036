use mesh_api::{Resource, model};

use super::*;
use crate::{Change, fixtures::*};

const WEB: &str = "web.default.svc.cluster.local";

fn host(gateway: &str, server: &str, domain: &str, parts: Vec<model::VirtualHost>) -> Change {
    let parts = parts.into_iter().map(|p| model::VirtualHost { gateways: vec![gateway.into()], ..p });
    Change::Set(Resource::GatewayHost(mesh_api::NamedGatewayHost::new(model::GatewayHost {
        gateway: gateway.into(),
        server: server.into(),
        domain: domain.into(),
        parts: parts.collect(),
    })))
}

fn direct(matches: Vec<model::HttpMatch>, status: u32) -> model::HttpRule {
    model::HttpRule {
        matches,
        action: Some(model::http_rule::Action::DirectResponse(model::DirectResponse {
            status,
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn status(t: &Tables, servers: &[Arc<str>], host: &str, path: &str) -> u16 {
    let client = Client { gateway: Some("istio-system/gw"), ..Client::in_namespace("istio-system") };
    let d = t.route_gateway_http(&client, servers, 80, &get(host, path), &mut dice(0.0));
    match d.outcome {
        HttpOutcome::Direct(d) => d.status,
        HttpOutcome::NoRoute => 404,
        HttpOutcome::Forward { .. } => 200,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_most_specific_domain_decides_and_rules_for_every_path_come_last() {
    let vh = |source: &str, rules| virtual_host(source, rules);
    let t = tables(vec![
        set(service("web", "default", "10.0.0.1", &[80])),
        endpoints(WEB, vec![endpoint("10.1.0.1", "a", &[(80, 80)], "v1")]),
        host(
            "ns/a",
            "http",
            "shop.example.com",
            vec![
                vh(
                    "ns/first",
                    vec![direct(vec![uri(prefix("/"))], 201), direct(vec![uri(prefix("/one"))], 202)],
                ),
                vh("ns/second", vec![direct(vec![uri(exact("/two"))], 203)]),
            ],
        ),
        host("ns/a", "http", "*.example.com", vec![vh("ns/wild", vec![direct(vec![], 210)])]),
        host(
            "ns/b",
            "http",
            "shop.example.com",
            vec![vh("ns/third", vec![direct(vec![uri(prefix("/three"))], 204)])],
        ),
        host(
            "ns/b",
            "http",
            "*",
            vec![vh("ns/rest", vec![rule(vec![uri(prefix("/w"))], vec![to(WEB, "", 1)])])],
        ),
    ]);
    let both = [server_key("ns/a", "http"), server_key("ns/b", "http")];
    for (host, path, expected) in [
        ("shop.example.com", "/one", 202),
        ("shop.example.com:8080", "/two", 203),
        ("SHOP.example.com", "/three", 204),
        ("shop.example.com", "/else", 201),
        ("a.b.example.com", "/", 210),
        ("example.com", "/w", 200),
        ("example.com", "/", 404),
    ] {
        assert_eq!(status(&t, &both, host, path), expected, "{host}{path}");
    }
    let one = [server_key("ns/a", "http")];
    assert_eq!(status(&t, &one, "shop.example.com", "/three"), 201, "another server's rules do not count");
    assert_eq!(status(&t, &one, "other.org", "/"), 404);
    let name = "ns/a|http|shop.example.com".to_owned();
    let (t, _) = t.apply(vec![Change::Remove(mesh_api::ResourceType::GatewayHost, name)]);
    assert_eq!(status(&t, &one, "shop.example.com", "/one"), 210, "the wildcard is left");
}

#[test]
fn a_name_leads_a_closed_connection() {
    let tls = model::VirtualHost {
        source: "ns/tls".into(),
        tls: vec![model::TlsRule {
            matches: vec![model::TlsMatch { sni_hosts: vec!["a.example.com".into()], ..Default::default() }],
            destinations: vec![to(WEB, "", 1)],
            ..Default::default()
        }],
        ..Default::default()
    };
    let t = tables(vec![
        set(service("web", "default", "10.0.0.1", &[443])),
        endpoints(WEB, vec![endpoint("10.1.0.1", "a", &[(443, 443)], "v1")]),
        host("ns/a", "tls", "a.example.com", vec![tls]),
    ]);
    let servers = [server_key("ns/a", "tls")];
    let client = Client::in_namespace("istio-system");
    let reaches = |sni: &str| {
        let d = t.route_gateway_l4(&client, &servers, (8443, Some(sni)), &mut dice(0.0));
        matches!(d.outcome, L4Outcome::Forward { cluster, .. } if cluster.key.port == 443)
    };
    assert!(reaches("a.example.com") && !reaches("b.example.com"));
}
