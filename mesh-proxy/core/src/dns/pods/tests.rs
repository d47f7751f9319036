use super::*;
use crate::{
    Change,
    dns::{Answer, QueryType, Record, answer},
    fixtures::*,
};
use mesh_api::{Resource, model};

const WEB: &str = "web.default.svc.cluster.local";

/// Pods of two sites, which use the same addresses.
fn pod(name: &str, address: &str, node: &str) -> model::Endpoint {
    let mut e = endpoint(address, node, &[(80, 8080)], "v1");
    e.udp_ports = vec![model::PortMap { service_port: 53, target_port: 5353 }];
    e.hostname = name.into();
    if let Some(w) = &mut e.workload {
        w.name = name.into();
    }
    e
}

fn headless(pods: Vec<model::Endpoint>) -> Vec<Change> {
    let mut web = service("web", "default", "", &[80]);
    web.kind = model::service::Kind::Headless as i32;
    web.vips.clear();
    web.ports.push(model::Port { number: 53, name: "q".into(), protocol: model::Protocol::Udp as i32 });
    vec![set(web), endpoints(WEB, pods)]
}

fn here(changes: Vec<Change>) -> Tables {
    let (tables, applied) = Tables::of_node("a", POD_RANGE).apply(changes);
    assert_eq!(applied.rejected, []);
    tables
}

fn ask(t: &Tables, name: &str) -> Vec<IpAddr> {
    match answer(t, name, QueryType::A) {
        Answer::Records(records) => records
            .into_iter()
            .map(|r| match r {
                Record::A(ip) => IpAddr::V4(ip),
                other => panic!("{other:?}"),
            })
            .collect(),
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn pods_of_other_nodes_have_addresses_of_their_own_here() {
    let t = here(headless(vec![pod("web-0", "10.1.1.2", "a"), pod("web-1", "10.1.1.2", "b")]));
    assert_eq!(ask(&t, &format!("web-0.{WEB}")), ["10.1.1.2".parse::<IpAddr>().unwrap()]);
    let [remote] = ask(&t, &format!("web-1.{WEB}"))[..] else { panic!("one address") };
    assert!(matches!(remote, IpAddr::V4(ip) if POD_RANGE.contains(&ip)), "{remote}");
    assert_eq!(ask(&t, WEB).len(), 2);
    // It stands for that pod, for connections and datagrams, at the pod's ports.
    let found = t.endpoint_by_addr(remote, 8080).unwrap();
    assert_eq!((found.endpoint.node.as_deref(), found.port.number), (Some("b"), 80));
    assert_eq!(t.udp_pod(remote, 5353).unwrap().port.number, 53);
    assert!(t.endpoint_by_addr(remote, 53).is_none() && t.udp_pod(remote, 8080).is_none());
    // What is captured: both for connections; for datagrams only the one that needs it.
    let mut captured: Vec<IpAddr> = t.vips().collect();
    captured.sort();
    assert_eq!(captured, ["10.1.1.2".parse().unwrap(), remote]);
    assert_eq!(t.udp_vips().collect::<Vec<_>>(), [(remote, 5353)]);
    // The way back.
    let reversed = match remote {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(_) => unreachable!(),
    };
    let name = Answer::Records(vec![Record::Ptr(format!("web-1.{WEB}"))]);
    assert_eq!(answer(&t, &reversed, QueryType::Ptr), name);
}

#[test]
fn an_address_stays_while_the_pod_is_known_and_comes_back_with_it() {
    let t = here(headless(vec![pod("web-0", "10.1.1.2", "b"), pod("web-1", "10.1.1.3", "b")]));
    let [first, second] = [0, 1].map(|i| ask(&t, &format!("web-{i}.{WEB}"))[0]);
    assert_ne!(first, second);
    // Another pod joins, and the first one is restarted on another node with another address.
    let moved =
        vec![pod("web-2", "10.1.1.4", "b"), pod("web-1", "10.1.1.3", "b"), pod("web-0", "10.1.1.9", "c")];
    let (t, applied) = t.apply(vec![endpoints(WEB, moved)]);
    assert!(applied.vips_changed);
    assert_eq!([0, 1].map(|i| ask(&t, &format!("web-{i}.{WEB}"))[0]), [first, second]);
    assert_eq!(t.endpoint_by_addr(first, 8080).unwrap().endpoint.node.as_deref(), Some("c"));
    // It moves here: no address is needed.
    let (t, _) = t.apply(vec![endpoints(WEB, vec![pod("web-0", "10.1.1.7", "a")])]);
    assert_eq!(ask(&t, &format!("web-0.{WEB}")), ["10.1.1.7".parse::<IpAddr>().unwrap()]);
    assert_eq!((t.pod_addresses(), t.udp_vips().count()), (0, 0));
    assert!(t.is_vip(first), "an address that was given out never leads outside");
    let (t, _) = t.apply(vec![endpoints(WEB, vec![pod("web-0", "10.1.1.2", "b")])]);
    assert_eq!(ask(&t, &format!("web-0.{WEB}"))[0], first);
    // The service goes.
    let (t, applied) = t.apply(vec![Change::Remove(mesh_api::ResourceType::Service, WEB.to_owned())]);
    assert!(applied.vips_changed);
    assert_eq!((t.pod_addresses(), t.vips().count()), (0, 0));
}

#[test]
fn a_pod_of_two_services_has_one_address() {
    let mut changes = headless(vec![pod("web-0", "10.1.1.2", "b")]);
    let mut all = service("all", "default", "", &[80]);
    all.kind = model::service::Kind::Headless as i32;
    all.vips.clear();
    let host = "all.default.svc.cluster.local";
    changes.extend([set(all), endpoints(host, vec![pod("web-0", "10.1.1.2", "b")])]);
    let t = here(changes);
    assert_eq!(ask(&t, WEB), ask(&t, host));
    let address = ask(&t, WEB)[0];
    let (t, _) = t.apply(vec![Change::Remove(mesh_api::ResourceType::Service, WEB.to_owned())]);
    assert_eq!(t.endpoint_by_addr(address, 8080).unwrap().service.host.as_ref(), host);
}

#[test]
fn a_range_that_is_used_up_refuses_and_gives_back() {
    let small = "240.241.0.0/29".parse().unwrap();
    let pods = |n: u8| (0..n).map(|i| pod(&format!("web-{i}"), &format!("10.1.1.{i}"), "b")).collect();
    let (t, _) = Tables::of_node("a", small).apply(headless(pods(8)));
    assert_eq!(t.pod_addresses(), 6, "without the first and the last");
    let answers = ask(&t, WEB);
    assert_eq!(answers.len(), 8);
    assert_eq!(answers.iter().filter(|ip| t.is_pod_address(**ip)).count(), 6, "others by their own");
    let (t, _) = t.apply(vec![endpoints(WEB, vec![pod("web-9", "10.1.1.9", "b")])]);
    assert_eq!(t.pod_addresses(), 1);
    assert!(t.is_pod_address(ask(&t, WEB)[0]));
}

#[test]
fn a_caller_with_an_address_that_another_site_uses_too_is_the_one_of_this_node() {
    let list = |node: &str, name: &str| {
        let workload = model::Workload {
            address: "10.1.1.2".into(),
            namespace: "default".into(),
            name: name.into(),
            ..model::Workload::default()
        };
        Change::Set(Resource::NodeWorkloads(model::NodeWorkloads {
            node: node.into(),
            workloads: vec![workload],
        }))
    };
    let ip = "10.1.1.2".parse().unwrap();
    for order in [["a", "b"], ["b", "a"]] {
        let t = here(order.iter().map(|node| list(node, &format!("pod-of-{node}"))).collect());
        assert_eq!(&*t.workload(ip).unwrap().name, "pod-of-a", "{order:?}");
    }
    // The same where only endpoints tell of pods.
    let t = here(headless(vec![pod("web-1", "10.1.1.2", "b"), pod("web-0", "10.1.1.2", "a")]));
    assert_eq!(&*t.workload(ip).unwrap().name, "web-0");
}

#[test]
fn tcp_and_udp_have_port_numbers_of_their_own() {
    let mut names = service("names", "default", "10.96.0.10", &[53]);
    names.ports[0].protocol = model::Protocol::Tcp as i32;
    names.ports.push(model::Port { number: 53, name: "dns".into(), protocol: model::Protocol::Udp as i32 });
    let host = names.host.clone();
    let mut e = endpoint("10.1.1.2", "b", &[(53, 1053)], "v1");
    e.udp_ports = vec![model::PortMap { service_port: 53, target_port: 2053 }];
    let t = here(vec![set(names), endpoints(&host, vec![e])]);
    let vip = "10.96.0.10".parse().unwrap();
    let entry = t.service(&host).unwrap();
    let client = crate::Client::in_namespace("default");
    let tcp = entry.cluster(&client, "", 53).unwrap();
    let udp = entry.udp_cluster(&client, 53).unwrap();
    assert_eq!([tcp, udp].map(|c| c.endpoints[0].addr.port()), [1053, 2053]);
    assert_ne!(tcp.id, udp.id, "what is known of one must not count for the other");
    assert_eq!(t.by_vip(vip, 53).unwrap().port.protocol, crate::Protocol::Tcp);
    assert_eq!(t.udp_by_vip(vip, 53).unwrap().port.protocol, crate::Protocol::Udp);
    assert_eq!(t.udp_vips().collect::<Vec<_>>(), [(vip, 53)]);
    // A service of datagrams only has no port for connections.
    let mut only = service("only", "default", "10.96.0.11", &[9000]);
    only.ports[0].protocol = model::Protocol::Udp as i32;
    let (t, applied) = t.apply(vec![set(only)]);
    assert!(applied.vips_changed);
    assert!(t.by_vip("10.96.0.11".parse().unwrap(), 9000).is_none());
}
