use mesh_api::Resource;

use super::*;
use crate::tables::{Change, Tables};

fn server(
    id: &str,
    port: u32,
    protocol: GatewayProtocol,
    hosts: &[&str],
    mode: Mode,
) -> model::GatewayServer {
    model::GatewayServer {
        id: id.into(),
        port,
        protocol: protocol.into(),
        hosts: hosts.iter().map(|h| (*h).into()).collect(),
        tls: (mode != Mode::Unspecified).then(|| ServerTls { mode: mode.into(), ..Default::default() }),
        ..Default::default()
    }
}

fn gateway(name: &str, created: &str, label: &str, servers: Vec<model::GatewayServer>) -> Change {
    Change::Set(Resource::Gateway(model::Gateway {
        name: name.into(),
        created: created.into(),
        selector: [("istio".to_owned(), label.to_owned())].into(),
        servers,
        client_secret: String::new(),
    }))
}

fn planned(changes: Vec<Change>) -> (Plan, Vec<String>) {
    let (tables, applied) = Tables::new().apply(changes);
    assert!(applied.rejected.is_empty(), "{:?}", applied.rejected);
    let labels = BTreeMap::from([("istio", "edge"), ("app", "gw")]);
    let selected = |g: &model::Gateway| g.selector.iter().all(|(k, v)| labels.get(&**k) == Some(&&**v));
    plan(&tables, selected, &[(80, 8080)].into())
}

#[test]
fn selected_servers_share_a_port_and_the_older_gateway_wins_conflicts() {
    use GatewayProtocol::{GatewayHttp, GatewayHttps, GatewayTcp};
    let (plan, problems) = planned(vec![
        gateway(
            "ns/young",
            "2025",
            "edge",
            vec![
                server("a", 80, GatewayHttp, &["y.example.com"], Mode::Unspecified),
                server("b", 443, GatewayTcp, &["*"], Mode::Unspecified),
            ],
        ),
        gateway(
            "ns/old",
            "2024",
            "edge",
            vec![
                server("a", 80, GatewayHttp, &["o.example.com"], Mode::Unspecified),
                server("b", 443, GatewayHttps, &["*"], Mode::Simple),
            ],
        ),
        gateway(
            "ns/other",
            "2023",
            "elsewhere",
            vec![server("a", 81, GatewayHttp, &["*"], Mode::Unspecified)],
        ),
    ]);
    let at = |port: u16| plan.get(&SocketAddr::from(([0, 0, 0, 0], port))).cloned();
    assert_eq!(plan.len(), 2);
    let http = at(8080).unwrap();
    assert_eq!((http.port, http.nature), (80, Nature::Http));
    assert_eq!(http.keys.iter().map(|k| &**k).collect::<Vec<_>>(), ["ns/old|a", "ns/young|a"]);
    assert_eq!(at(443).unwrap().nature, Nature::Tls);
    assert_eq!(problems.len(), 1, "{problems:?}");
}

#[test]
fn the_most_specific_host_has_the_connection() {
    use GatewayProtocol::GatewayHttps;
    let (plan, _) = planned(vec![gateway(
        "ns/g",
        "",
        "edge",
        vec![
            server("all", 443, GatewayHttps, &["*"], Mode::Simple),
            server("wild", 443, GatewayHttps, &["*.example.com"], Mode::Simple),
            server("longer", 443, GatewayHttps, &["*.a.example.com"], Mode::Simple),
            server("exact", 443, GatewayHttps, &["x.a.example.com"], Mode::Simple),
        ],
    )]);
    let listener = plan.values().next().unwrap();
    for (name, id) in [
        ("X.a.example.com", "exact"),
        ("y.a.example.com", "longer"),
        ("a.example.com", "wild"),
        ("example.com", "all"),
    ] {
        assert_eq!(&*listener.server(name).unwrap().keys[0], format!("ns/g|{id}"), "{name}");
    }
}
