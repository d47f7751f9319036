use mesh_api::model;

use super::*;
use crate::{Change, fixtures::*};

const REVIEWS: &str = "reviews.default.svc.cluster.local";

fn reviews(virtual_hosts: Vec<model::VirtualHost>) -> Tables {
    let mut s = service("reviews", "default", "10.0.0.1", &[80, 9080]);
    s.virtual_hosts = virtual_hosts;
    s.policies = vec![subsets("default/reviews", &["v1", "v2", "v3"])];
    let list = (1..=3)
        .map(|i| endpoint(&format!("10.1.0.{i}"), "edge-a", &[(80, 8080), (9080, 9080)], &format!("v{i}")))
        .collect();
    tables(vec![
        set(s),
        set(service("ratings", "default", "10.0.0.2", &[80])),
        set(service("api", "default", "10.0.0.4", &[8080])),
        set(service("reviews", "prod", "10.0.1.1", &[80])),
        endpoints(REVIEWS, list),
    ])
}

fn name(o: &HttpOutcome<'_>) -> String {
    match o {
        HttpOutcome::Forward { cluster, .. } => {
            let k = &cluster.key;
            format!("{}|{}|{}", k.host.split('.').take(2).collect::<Vec<_>>().join("."), k.subset, k.port)
        }
        HttpOutcome::Redirect(r) => format!("redirect {}", r.code),
        HttpOutcome::Direct(d) => format!("direct {}", d.status),
        HttpOutcome::NoRoute => "404".into(),
        HttpOutcome::UnknownCluster(m) => format!("503 {}|{}|{}", m.host, m.subset, m.port),
        HttpOutcome::Passthrough(c) => format!("passthrough {}", c.is_some()),
        HttpOutcome::Blackhole => "502".into(),
    }
}

fn ask(t: &Tables, client: &Client<'_>, port: u16, r: &Req) -> String {
    name(&t.route_http(client, port, None, r, &mut dice(0.0)).outcome)
}

fn default_client() -> Client<'static> {
    Client::in_namespace("default")
}

#[test]
fn every_form_of_a_name_leads_to_the_service() {
    let t = reviews(vec![]);
    let c = default_client();
    for host in [
        "reviews",
        "REVIEWS",
        "reviews:1234",
        "reviews.default",
        "reviews.default.svc",
        "Reviews.Default.svc.cluster.local",
        "reviews.default.svc.cluster.local.",
        "reviews.default.svc.cluster.local.:80",
        "10.0.0.1",
        "10.0.0.1:80",
    ] {
        assert_eq!(ask(&t, &c, 80, &get(host, "/")), "reviews.default||80", "{host}");
    }
    let prod = Client::in_namespace("prod");
    assert_eq!(ask(&t, &prod, 80, &get("reviews", "/")), "reviews.prod||80");
    assert_eq!(ask(&t, &prod, 80, &get("ratings", "/")), "passthrough false", "no short name of elsewhere");
    assert_eq!(ask(&t, &c, 8080, &get("reviews", "/")), "passthrough false", "it has no such port");
}

#[test]
fn the_first_rule_that_fits_wins() {
    let t = reviews(vec![virtual_host(
        "default/vs",
        vec![
            rule(vec![uri(exact("/api/v1"))], vec![to(REVIEWS, "v2", 0)]),
            rule(vec![uri(prefix("/api"))], vec![to(REVIEWS, "v3", 0)]),
            rule(
                vec![model::HttpMatch {
                    headers: vec![named("end-user", exact("jason"))],
                    ..Default::default()
                }],
                vec![to(REVIEWS, "v2", 0)],
            ),
            rule(vec![], vec![to(REVIEWS, "v1", 0)]),
        ],
    )]);
    let c = default_client();
    assert_eq!(ask(&t, &c, 80, &get("reviews", "/api/v1")), "reviews.default|v2|80");
    assert_eq!(ask(&t, &c, 80, &get("reviews", "/api/v1?x=1")), "reviews.default|v2|80");
    assert_eq!(ask(&t, &c, 80, &get("reviews", "/api/v1/")), "reviews.default|v3|80");
    assert_eq!(ask(&t, &c, 80, &get("reviews", "/apiv2")), "reviews.default|v3|80");
    assert_eq!(ask(&t, &c, 9080, &get("reviews", "/?/api")), "reviews.default|v1|9080");
    assert_eq!(ask(&t, &c, 80, &get("reviews", "/").with("end-user", "jason")), "reviews.default|v2|80");
    let r = get("reviews", "/").with("end-user", "bob").with("end-user", "jason");
    let d = t.route_http(&c, 80, None, &r, &mut dice(0.0));
    assert_eq!(name(&d.outcome), "reviews.default|v2|80", "any value counts");
    assert_eq!((d.rule.unwrap().index, d.matched.map(|m| m.0)), (2, Some(0)));
    let cluster = match d.outcome {
        HttpOutcome::Forward { cluster, .. } => cluster,
        other => panic!("{other:?}"),
    };
    assert_eq!(cluster.endpoints.iter().map(|e| e.addr.to_string()).collect::<Vec<_>>(), ["10.1.0.2:8080"]);
}

#[test]
fn a_claimed_host_without_a_fitting_rule_is_not_found() {
    let t = reviews(vec![
        virtual_host("default/a", vec![rule(vec![uri(exact("/only"))], vec![to(REVIEWS, "v1", 0)])]),
        virtual_host("default/b", vec![rule(vec![], vec![to(REVIEWS, "v2", 0)])]),
    ]);
    assert_eq!(ask(&t, &default_client(), 80, &get("reviews", "/other")), "404");
}

#[test]
fn selectors_that_remove_every_rule_give_the_default_route_back() {
    let only = |m: model::HttpMatch| {
        reviews(vec![virtual_host("default/vs", vec![rule(vec![m], vec![to(REVIEWS, "v2", 0)])])])
    };
    let c = default_client();
    let at_81 = only(model::HttpMatch { port: 81, ..Default::default() });
    assert_eq!(ask(&at_81, &c, 80, &get("reviews", "/")), "reviews.default||80");
    let of_a = only(model::HttpMatch { source_labels: labels(&[("app", "a")]), ..Default::default() });
    assert_eq!(ask(&of_a, &c, 80, &get("reviews", "/")), "reviews.default||80");
    let a = labels(&[("app", "a"), ("x", "y")]);
    let client = Client { labels: &a, ..Client::in_namespace("default") };
    assert_eq!(ask(&of_a, &client, 80, &get("reviews", "/")), "reviews.default|v2|80");
    // A list of gateways in the match switches the source conditions off.
    let mesh = only(model::HttpMatch {
        source_labels: labels(&[("app", "a")]),
        source_namespace: "other".into(),
        gateways: vec!["mesh".into()],
        ..Default::default()
    });
    assert_eq!(ask(&mesh, &c, 80, &get("reviews", "/")), "reviews.default|v2|80");
    let gateway = only(model::HttpMatch { gateways: vec!["default/gw".into()], ..Default::default() });
    assert_eq!(ask(&gateway, &c, 80, &get("reviews", "/")), "reviews.default||80");
}

#[test]
fn a_virtual_service_is_seen_where_it_is_exported() {
    let mut private = virtual_host("prod/vs", vec![rule(vec![], vec![to(REVIEWS, "v3", 0)])]);
    private.visible_to = vec!["prod".into()];
    let t =
        reviews(vec![private, virtual_host("default/vs", vec![rule(vec![], vec![to(REVIEWS, "v1", 0)])])]);
    assert_eq!(
        ask(&t, &Client::in_namespace("prod"), 80, &get("reviews.default", "/")),
        "reviews.default|v3|80"
    );
    assert_eq!(ask(&t, &default_client(), 80, &get("reviews", "/")), "reviews.default|v1|80");
}

#[test]
fn conditions_of_one_entry_all_count() {
    let all = model::HttpMatch {
        method: Some(exact("GET")),
        authority: Some(exact("reviews:80")),
        query_params: vec![named("k", exact("")), named("v", regex("\\d+"))],
        without_headers: vec![named("x", regex(".*")), named("y", model::StringMatch::default())],
        ..Default::default()
    };
    let t = reviews(vec![virtual_host(
        "default/vs",
        vec![rule(vec![all], vec![to(REVIEWS, "v2", 0)]), rule(vec![], vec![to(REVIEWS, "v1", 0)])],
    )]);
    let c = default_client();
    let good = get("reviews:80", "/?k&v=12&v=x").with("x", "");
    // `x: .*` also excludes a request without the header, as a missing header counts as empty.
    assert_eq!(ask(&t, &c, 80, &good), "reviews.default|v1|80");
    let t = reviews(vec![virtual_host(
        "default/vs",
        vec![
            rule(
                vec![model::HttpMatch {
                    method: Some(exact("GET")),
                    authority: Some(exact("reviews:80")),
                    query_params: vec![named("k", exact("")), named("v", regex("\\d+"))],
                    without_headers: vec![
                        named("x", exact("bad")),
                        named("y", model::StringMatch::default()),
                    ],
                    ..Default::default()
                }],
                vec![to(REVIEWS, "v2", 0)],
            ),
            rule(vec![], vec![to(REVIEWS, "v1", 0)]),
        ],
    )]);
    assert_eq!(ask(&t, &c, 80, &good), "reviews.default|v2|80");
    assert_eq!(ask(&t, &c, 80, &get("reviews:80", "/?k&v=12").with("x", "bad")), "reviews.default|v1|80");
    assert_eq!(ask(&t, &c, 80, &get("reviews:80", "/?k&v=12").with("y", "")), "reviews.default|v1|80");
    assert_eq!(ask(&t, &c, 80, &get("reviews", "/?k&v=12")), "reviews.default|v1|80");
    assert_eq!(ask(&t, &c, 80, &get("reviews:80", "/?k=1&v=12")), "reviews.default|v1|80");
    assert_eq!(ask(&t, &c, 80, &get("reviews:80", "/?k&v=x12")), "reviews.default|v1|80");
    assert_eq!(ask(&t, &c, 80, &get("reviews:80", "/?k&v=12").method("get")), "reviews.default|v1|80");
}

#[test]
fn the_case_of_a_path_counts_unless_told_otherwise() {
    let m = |u, ignore| model::HttpMatch { uri: Some(u), ignore_uri_case: ignore, ..Default::default() };
    let t = reviews(vec![virtual_host(
        "default/vs",
        vec![
            rule(vec![m(exact("/Exact"), true)], vec![to(REVIEWS, "v1", 0)]),
            rule(vec![m(prefix("/Pre"), true)], vec![to(REVIEWS, "v2", 0)]),
            rule(vec![m(regex("/re[a-z]+"), true)], vec![to(REVIEWS, "v3", 0)]),
        ],
    )]);
    let c = default_client();
    assert_eq!(ask(&t, &c, 80, &get("reviews", "/eXACT")), "reviews.default|v1|80");
    assert_eq!(ask(&t, &c, 80, &get("reviews", "/pREfix")), "reviews.default|v2|80");
    assert_eq!(ask(&t, &c, 80, &get("reviews", "/REX")), "404", "never for a regular expression");
}

#[test]
fn weights_are_shares() {
    let t = reviews(vec![virtual_host(
        "default/vs",
        vec![rule(vec![], vec![to(REVIEWS, "v1", 20), to(REVIEWS, "v2", 0), to(REVIEWS, "v3", 60)])],
    )]);
    let at =
        |x: f64| name(&t.route_http(&default_client(), 80, None, &get("reviews", "/"), &mut dice(x)).outcome);
    assert_eq!(at(0.0), "reviews.default|v1|80");
    assert_eq!(at(0.2499), "reviews.default|v1|80");
    assert_eq!(at(0.25), "reviews.default|v3|80");
    assert_eq!(at(0.999_999), "reviews.default|v3|80");
}

#[test]
fn a_destination_that_is_not_there_is_said() {
    let t = |d| reviews(vec![virtual_host("default/vs", vec![rule(vec![], vec![d])])]);
    let c = default_client();
    let r = get("reviews", "/");
    assert_eq!(ask(&t(to(REVIEWS, "nope", 0)), &c, 80, &r), format!("503 {REVIEWS}|nope|80"));
    assert_eq!(ask(&t(to("ghost", "", 0)), &c, 80, &r), "503 ghost||80");
    let api = "api.default.svc.cluster.local";
    assert_eq!(ask(&t(to(api, "", 0)), &c, 80, &r), format!("503 {api}||80"), "the called port is kept");
    let mut explicit = to(api, "", 0);
    explicit.destination.as_mut().unwrap().port = 8080;
    assert_eq!(ask(&t(explicit), &c, 80, &r), "api.default||8080");
}

#[test]
fn hosts_of_rules_only_count_on_port_80() {
    let only = |host: &str, to_host: &str| {
        set(model::Service {
            host: host.into(),
            kind: model::service::Kind::RouteOnly as i32,
            virtual_hosts: vec![virtual_host("default/vs", vec![rule(vec![], vec![to(to_host, "", 0)])])],
            ..Default::default()
        })
    };
    let (t, applied) = reviews(vec![]).apply(vec![
        only("foo.example.com", REVIEWS),
        only("*.example.com", "ratings.default.svc.cluster.local"),
        only("*.a.example.com", REVIEWS),
        only("192.0.2.10", REVIEWS),
    ]);
    assert_eq!(applied.rejected, []);
    let c = default_client();
    assert_eq!(ask(&t, &c, 80, &get("foo.example.com", "/")), "reviews.default||80");
    assert_eq!(ask(&t, &c, 8080, &get("foo.example.com:8080", "/")), "passthrough false");
    assert_eq!(ask(&t, &c, 80, &get("bar.example.com", "/")), "ratings.default||80");
    assert_eq!(ask(&t, &c, 80, &get("x.a.example.com", "/")), "reviews.default||80");
    assert_eq!(ask(&t, &c, 80, &get("x.y.a.example.com", "/")), "reviews.default||80");
    assert_eq!(ask(&t, &c, 80, &get("example.com", "/")), "passthrough false");
    assert_eq!(ask(&t, &c, 80, &get("192.0.2.10", "/")), "reviews.default||80");
    let (t, _) = t.apply(vec![
        Change::Remove(mesh_api::ResourceType::Service, "*.example.com".into()),
        Change::Remove(mesh_api::ResourceType::Service, "*.a.example.com".into()),
    ]);
    assert_eq!(ask(&t, &c, 80, &get("x.a.example.com", "/")), "passthrough false");
    assert_eq!(t.wildcards, 0);
}

#[test]
fn an_unknown_host_follows_the_mode() {
    let t = reviews(vec![]);
    let c = default_client();
    let vip = t.by_vip("10.0.0.1".parse().unwrap(), 80);
    let r = get("elsewhere.example", "/");
    assert_eq!(name(&t.route_http(&c, 80, vip.as_ref(), &r, &mut dice(0.0)).outcome), "passthrough true");
    let strict = model::MeshConfig {
        cluster_domain: "cluster.local".into(),
        outbound: model::mesh_config::OutboundMode::RegistryOnly as i32,
        ..Default::default()
    };
    let (t, _) = t.apply(vec![Change::Set(mesh_api::Resource::MeshConfig(strict))]);
    assert_eq!(ask(&t, &c, 80, &r), "502");
    let long = get(&"x".repeat(5000), "/");
    assert_eq!(ask(&t, &c, 80, &long), "502", "no name is that long");
}

#[test]
fn tcp_rules_choose_by_port_and_network() {
    let mut s = service("echo", "default", "10.0.2.1", &[9000]);
    let rule = |matches, host: &str, index| model::TcpRule {
        index,
        matches,
        destinations: vec![to(host, "", 0)],
        ..Default::default()
    };
    let net = model::TcpMatch { destination_subnets: vec!["10.9.0.0/16".into()], ..Default::default() };
    let port = model::TcpMatch { port: 9001, ..Default::default() };
    let v2 = "echo-v2.default.svc.cluster.local";
    s.virtual_hosts = vec![model::VirtualHost {
        source: "default/vs".into(),
        tcp: vec![rule(vec![port], "ghost", 0), rule(vec![net], v2, 1)],
        ..Default::default()
    }];
    let t = tables(vec![set(s), set(service("echo-v2", "default", "10.0.2.2", &[9000]))]);
    let c = default_client();
    let vip = t.by_vip("10.0.2.1".parse().unwrap(), 9000);
    let ask = |ip: &str| {
        let d = t.route_tcp(&c, Some(ip.parse().unwrap()), vip.as_ref(), 9000, &mut dice(0.0));
        match d.outcome {
            L4Outcome::Forward { cluster, .. } => (cluster.key.host.to_string(), d.rule_index),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ask("10.0.2.1").1, None, "no rule fits: the service itself");
    assert_eq!(ask("10.9.1.1"), (v2.to_owned(), Some(1)));
    let unknown = t.route_tcp(&c, None, None, 9000, &mut dice(0.0));
    assert!(matches!(unknown.outcome, L4Outcome::Passthrough));
}

#[test]
fn tls_rules_choose_by_name_and_take_the_default_away() {
    let host = "secure.default.svc.cluster.local";
    let mut s = service("secure", "default", "10.0.2.3", &[443]);
    let m = |sni: &[&str]| model::TlsMatch {
        sni_hosts: sni.iter().map(|s| (*s).to_owned()).collect(),
        ..Default::default()
    };
    let v2 = "echo-v2.default.svc.cluster.local";
    s.virtual_hosts = vec![model::VirtualHost {
        source: "default/vs".into(),
        tls: vec![
            model::TlsRule {
                index: 0,
                matches: vec![m(&[host])],
                destinations: vec![to(host, "", 30), to(v2, "", 70)],
                ..Default::default()
            },
            model::TlsRule {
                index: 1,
                matches: vec![m(&["*.Example.com"])],
                destinations: vec![to(v2, "", 0)],
                ..Default::default()
            },
        ],
        ..Default::default()
    }];
    let t = tables(vec![set(s), set(service("echo-v2", "default", "10.0.2.2", &[9000]))]);
    let c = default_client();
    let vip = t.by_vip("10.0.2.3".parse().unwrap(), 443);
    let ask = |sni: &str, x: f64| match t.route_tls(&c, None, vip.as_ref(), (443, sni), &mut dice(x)).outcome
    {
        L4Outcome::Forward { cluster, .. } => format!("{}:{}", cluster.key.host, cluster.key.port),
        L4Outcome::UnknownCluster(_) => "unknown".into(),
        L4Outcome::Passthrough => "passthrough".into(),
        L4Outcome::Blackhole => "blackhole".into(),
    };
    assert_eq!(ask(host, 0.0), format!("{host}:443"));
    assert_eq!(ask(host, 0.31), format!("{v2}:9000"), "the only port is meant");
    assert_eq!(ask("a.EXAMPLE.com", 0.0), format!("{v2}:9000"));
    assert_eq!(ask("example.com", 0.0), "passthrough");
}
