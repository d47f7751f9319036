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
fn a_sidecar_that_goes_leaves_nothing() {
    let t = world(vec![sidecar("s", "default", &[(0, "default", "*")])]);
    let (t, _) = t.apply(vec![Change::Remove(mesh_api::ResourceType::Sidecar, "default/s".into())]);
    assert!(reaches(&t, &Client::in_namespace("default"), "bank.money"));
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
