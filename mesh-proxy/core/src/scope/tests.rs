use mesh_api::{Resource, model};

use crate::{Change, Client, HttpOutcome, L4Outcome, Tables, fixtures::*};

fn sidecar(name: &str, namespace: &str, hosts: &[(u32, &str, &str)]) -> model::Sidecar {
    model::Sidecar {
        name: format!("{namespace}/{name}"),
        namespace: namespace.into(),
        egress: hosts
            .iter()
            .map(|(port, ns, host)| model::EgressListener {
                port: *port,
                hosts: vec![model::HostScope {
                    namespace: (*ns).into(),
                    host: (*host).into(),
                    exclude: false,
                }],
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

fn world(sidecars: Vec<model::Sidecar>) -> Tables {
    let mut changes = vec![
        set(service("web", "default", "10.0.0.1", &[80])),
        endpoints("web.default.svc.cluster.local", vec![endpoint("10.1.0.1", "a", &[(80, 80)], "v1")]),
        set(service("bank", "money", "10.0.0.2", &[80])),
        endpoints("bank.money.svc.cluster.local", vec![endpoint("10.1.0.2", "a", &[(80, 80)], "v1")]),
    ];
    changes.extend(sidecars.into_iter().map(|s| Change::Set(Resource::Sidecar(s))));
    tables(changes)
}

fn reaches(t: &Tables, client: &Client<'_>, host: &str) -> bool {
    let d = t.route_http(client, 80, None, &get(host, "/"), &mut dice(0.0));
    matches!(d.outcome, HttpOutcome::Forward { .. })
}

#[test]
fn only_what_is_listed_is_seen() {
    let t = world(vec![sidecar("s", "default", &[(0, "default", "*")])]);
    let client = Client::in_namespace("default");
    assert!(reaches(&t, &client, "web"));
    assert!(!reaches(&t, &client, "bank.money"));
    assert!(reaches(&t, &Client::in_namespace("money"), "bank.money"), "others are not concerned");
    let bank = t.service("bank.money.svc.cluster.local").unwrap();
    assert!(!t.sees(&client, bank, 80));
    let t = world(vec![sidecar(
        "s",
        "default",
        &[(80, "*", "bank.money.svc.cluster.local"), (0, "default", "*")],
    )]);
    assert!(
        reaches(&t, &client, "bank.money") && !reaches(&t, &client, "web"),
        "the port's own list replaces"
    );
}

#[test]
fn a_selector_comes_first_and_the_root_last() {
    let one = model::Sidecar {
        selector: labels(&[("app", "x")]),
        ..sidecar("one", "default", &[(0, "money", "*")])
    };
    let rest = sidecar("rest", "default", &[(0, "default", "*")]);
    let root =
        model::Sidecar { mesh_default: true, ..sidecar("root", "istio-system", &[(0, "nowhere", "*")]) };
    let t = world(vec![root, rest, one]);
    let x = labels(&[("app", "x")]);
    let selected = Client { labels: &x, ..Client::in_namespace("default") };
    assert!(reaches(&t, &selected, "bank.money") && !reaches(&t, &selected, "web"));
    assert!(reaches(&t, &Client::in_namespace("default"), "web"));
    assert!(!reaches(&t, &Client::in_namespace("money"), "bank.money"), "the mesh's default");
}

#[test]
fn what_is_not_seen_is_treated_as_the_outside() {
    use model::mesh_config::OutboundMode;
    let hidden = |mode: OutboundMode| {
        let s = model::Sidecar { outbound: mode as i32, ..sidecar("s", "default", &[(0, "default", "*")]) };
        let t = world(vec![s]);
        let client = Client::in_namespace("default");
        let http = t.route_http(&client, 80, None, &get("bank.money", "/"), &mut dice(0.0));
        let l4 = t.route_tcp(&client, None, None, 80, &mut dice(0.0));
        (format!("{:?}", http.outcome), matches!(l4.outcome, L4Outcome::Blackhole))
    };
    assert_eq!(hidden(OutboundMode::RegistryOnly), ("Blackhole".to_owned(), true));
    assert_eq!(hidden(OutboundMode::AllowAny), ("Passthrough(None)".to_owned(), false));
    assert_eq!(hidden(OutboundMode::OutboundUnspecified).0, "Passthrough(None)");
}

#[test]
fn unknown_hosts_go_to_the_proxy_that_a_sidecar_names() {
    use model::mesh_config::OutboundMode;
    let through = |mode: OutboundMode, host: &str| {
        let proxy = model::Destination { host: host.into(), port: 80, ..Default::default() };
        let s = model::Sidecar {
            outbound: mode as i32,
            egress_proxy: Some(proxy),
            ..sidecar("s", "default", &[(0, "default", "*")])
        };
        let t = world(vec![s]);
        let client = Client::in_namespace("default");
        let http = t.route_http(&client, 80, None, &get("unknown.example.com", "/"), &mut dice(0.0)).outcome;
        let http = match http {
            HttpOutcome::Forward { cluster, .. } => cluster.key.host.to_string(),
            other => format!("{other:?}"),
        };
        let l4 = match t.route_tcp(&client, None, None, 9000, &mut dice(0.0)).outcome {
            L4Outcome::Forward { cluster, .. } => cluster.key.host.to_string(),
            other => format!("{other:?}"),
        };
        let known = t.route_http(&client, 80, None, &get("web", "/"), &mut dice(0.0)).outcome;
        assert!(
            matches!(known, HttpOutcome::Forward { cluster, .. } if &*cluster.key.host == "web.default.svc.cluster.local")
        );
        (http, l4)
    };
    let bank = "bank.money.svc.cluster.local";
    assert_eq!(through(OutboundMode::AllowAny, bank), (bank.to_owned(), bank.to_owned()));
    assert_eq!(through(OutboundMode::RegistryOnly, bank).0, "Blackhole");
    assert!(through(OutboundMode::AllowAny, "nowhere.svc").0.starts_with("UnknownCluster"));
}

#[test]
fn a_listener_bound_to_an_address_is_for_calls_to_it() {
    let mut s = sidecar("s", "default", &[(80, "money", "*"), (80, "default", "*"), (0, "nobody", "*")]);
    s.egress[0].bind = "10.0.0.2".into();
    let t = world(vec![s.clone()]);
    let called = |address: &str| Client { called: address.parse().ok(), ..Client::in_namespace("default") };
    assert!(reaches(&t, &called("10.0.0.2"), "bank.money"));
    assert!(!reaches(&t, &called("10.0.0.2"), "web"));
    assert!(!reaches(&t, &called("10.0.0.1"), "bank.money"), "the port's own listener");
    assert!(reaches(&t, &called("10.0.0.1"), "web") && reaches(&t, &called(""), "web"));
    // A socket is nobody's address, and any address is no address.
    s.egress[0].bind = "unix:///run/x".into();
    let t = world(vec![s.clone()]);
    assert!(!reaches(&t, &called("10.0.0.2"), "bank.money") && reaches(&t, &called("10.0.0.2"), "web"));
    s.egress[0].bind = "0.0.0.0".into();
    assert!(reaches(&world(vec![s]), &called("10.0.0.7"), "bank.money"));
}

#[test]
fn a_sidecar_that_goes_leaves_nothing() {
    let t = world(vec![sidecar("s", "default", &[(0, "default", "*")])]);
    let (t, _) = t.apply(vec![Change::Remove(mesh_api::ResourceType::Sidecar, "default/s".into())]);
    assert!(reaches(&t, &Client::in_namespace("default"), "bank.money"));
}

#[test]
fn each_namespace_prefers_its_own_owner_of_a_host() {
    use crate::dns::{Answer, QueryType, Record, answer_for};
    use model::service::OtherOwner;
    let host = "api.example.com";
    let owner = |namespace: &str, vip: &str, port: u32, visible_to: &[&str]| model::Service {
        host: host.into(),
        name: namespace.into(),
        namespace: namespace.into(),
        kind: model::service::Kind::External as i32,
        resolution: model::service::Resolution::Static as i32,
        vips: vec![vip.into()],
        ports: vec![model::Port {
            number: port,
            protocol: model::Protocol::Http as i32,
            ..Default::default()
        }],
        visible_to: visible_to.iter().map(|n| (*n).to_owned()).collect(),
        ..Default::default()
    };
    let at = |address: &str| model::Endpoints {
        host: host.into(),
        endpoints: vec![endpoint(address, "", &[(80, 80)], "v1")],
    };
    let other = |service, address: &str| OtherOwner { service: Some(service), endpoints: Some(at(address)) };
    let first = model::Service {
        others: vec![
            other(owner("two", "240.240.0.2", 80, &[]), "1.0.0.2"),
            other(owner("three", "240.240.0.3", 80, &["three"]), "1.0.0.3"),
        ],
        ..owner("one", "240.240.0.1", 80, &["one", "four"])
    };
    let workload = |ip: &str, namespace: &str| model::Workload {
        address: ip.into(),
        namespace: namespace.into(),
        ..Default::default()
    };
    let namespaces = ["one", "two", "three", "four", "five"];
    let workloads = namespaces.iter().enumerate().map(|(i, n)| workload(&format!("10.1.0.{i}"), n)).collect();
    let node = model::NodeWorkloads { node: "a".into(), workloads };
    let change = Change::Set(Resource::Endpoints(at("1.0.0.1")));
    let t = tables(vec![set(first.clone()), change, Change::Set(Resource::NodeWorkloads(node))]);
    let mut ids = std::collections::BTreeSet::new();
    for (i, (namespace, own)) in namespaces.iter().zip([1, 2, 3, 1, 2]).enumerate() {
        let client = Client::in_namespace(namespace);
        let d = t.route_http(&client, 80, None, &get(host, "/"), &mut dice(0.0));
        let HttpOutcome::Forward { cluster, .. } = d.outcome else { panic!("{namespace}: {:?}", d.outcome) };
        ids.insert(cluster.id);
        assert_eq!(cluster.endpoints[0].addr.to_string(), format!("1.0.0.{own}:80"), "{namespace}");
        let vip = format!("240.240.0.{own}");
        let asked = answer_for(&t, format!("10.1.0.{i}").parse().unwrap(), host, QueryType::A);
        assert_eq!(asked, Answer::Records(vec![Record::A(vip.parse().unwrap())]), "{namespace}");
        let found = |ip: &str| t.by_vip_for(ip.parse().unwrap(), 80, |s| t.sees(&client, s, 80)).is_some();
        assert!(found(&vip), "{namespace}");
        assert_eq!((1..4).filter(|n| found(&format!("240.240.0.{n}"))).count(), 1, "{namespace}");
    }
    assert_eq!(ids.len(), 3, "each is a cluster of its own");
    assert_eq!(t.vips().count(), 3, "all are captured");
    // The second goes: its address with it, and its clients go to the first that they may see.
    let mut fewer = first;
    fewer.others.remove(0);
    let (t, applied) = t.apply(vec![set(fewer)]);
    assert!(applied.vips_changed);
    assert_eq!((t.vips().count(), t.is_vip("240.240.0.2".parse().unwrap())), (2, false));
    let d = t.route_http(&Client::in_namespace("two"), 80, None, &get(host, "/"), &mut dice(0.0));
    assert!(matches!(d.outcome, HttpOutcome::Passthrough(_)), "{:?}", d.outcome);
}

#[test]
fn a_host_outside_that_is_hidden_is_not_ours_to_answer() {
    use crate::dns::{Answer, QueryType, answer_for};
    let outside = |host: &str, vip: &str| model::Service {
        host: host.into(),
        namespace: "default".into(),
        kind: model::service::Kind::External as i32,
        vips: vec![vip.into()],
        ports: vec![model::Port { number: 443, ..Default::default() }],
        visible_to: vec!["default".into()],
        ..Default::default()
    };
    let workload = |ip: &str, namespace: &str| model::Workload {
        address: ip.into(),
        namespace: namespace.into(),
        ..Default::default()
    };
    let node = model::NodeWorkloads {
        node: "a".into(),
        workloads: vec![workload("10.1.0.1", "default"), workload("10.1.0.2", "other")],
    };
    let t = tables(vec![
        set(outside("api.example.com", "240.240.0.1")),
        set(outside("*.wild.example", "240.240.0.2")),
        Change::Set(Resource::NodeWorkloads(node)),
    ]);
    let asked = |from: &str, name: &str| answer_for(&t, from.parse().unwrap(), name, QueryType::A);
    assert!(matches!(asked("10.1.0.1", "api.example.com."), Answer::Records(_)));
    assert!(matches!(asked("10.1.0.1", "any.wild.example"), Answer::Records(_)));
    assert_eq!(asked("10.1.0.2", "api.example.com"), Answer::NotOurs);
    assert_eq!(asked("10.1.0.2", "any.wild.example"), Answer::NotOurs);
    assert_eq!(asked("10.1.0.1", "wild.example"), Answer::NotOurs);
}
