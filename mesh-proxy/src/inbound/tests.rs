//! The owner's checks, and two nodes in one process with a real tunnel between them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use mesh_api::{
    Resource,
    model::{self, TunnelOpen, tunnel_open::Kind},
};
use mesh_core::{Change, Tables};
use mesh_tunnel::{Executors, NodeKey, OpenError, Refusal, Tunnel, TunnelConfig};
use prometheus::Registry;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::{LocalSet, spawn_local},
};

use super::{
    check::{Denied, Owner, check},
    serve::{Inbound, InboundConfig},
};
use crate::{
    telemetry::{AccessLog, Telemetry, TelemetryConfig},
    udp::{Udp, UdpConfig, frame},
};

fn workload(address: &str, name: &str) -> model::Workload {
    model::Workload {
        address: address.into(),
        namespace: "default".into(),
        name: format!("{name}-pod"),
        owner: name.into(),
        service_account: name.into(),
        host_network: address == "192.168.7.2",
        ..Default::default()
    }
}

fn node_workloads(node: &str, workloads: &[(&str, &str)]) -> Change {
    let workloads = workloads.iter().map(|(a, n)| workload(a, n)).collect();
    Change::Set(Resource::NodeWorkloads(model::NodeWorkloads { node: node.into(), workloads }))
}

/// `client` runs on `a`; `server` and a host-network pod on `b`; `other` on `c`.
fn tables() -> Tables {
    let port =
        |number: u32| model::Port { number, name: "tcp".into(), protocol: model::Protocol::Tcp.into() };
    let service = model::Service {
        host: "server.default.svc.cluster.local".into(),
        namespace: "default".into(),
        name: "server".into(),
        kind: model::service::Kind::ClusterIp.into(),
        vips: vec!["10.96.0.7".into()],
        ports: vec![port(80)],
        ..Default::default()
    };
    let endpoint = |address: &str, name: &str, target| model::Endpoint {
        address: address.into(),
        node: "b".into(),
        ready: true,
        workload: Some(workload(address, name)),
        ports: vec![model::PortMap { service_port: 80, target_port: target }],
        ..Default::default()
    };
    let endpoints = model::Endpoints {
        host: service.host.clone(),
        endpoints: vec![endpoint("10.1.2.1", "server", 8080), endpoint("192.168.7.2", "agent", 9100)],
    };
    let (tables, applied) = Tables::new().apply(vec![
        node_workloads("a", &[("10.1.1.1", "client"), ("10.1.1.2", "second")]),
        node_workloads("b", &[("10.1.2.1", "server"), ("192.168.7.2", "agent"), ("fd00::2", "six")]),
        node_workloads("c", &[("10.1.3.1", "other")]),
        Change::Set(Resource::Service(service)),
        Change::Set(Resource::Endpoints(endpoints)),
    ]);
    assert!(applied.rejected.is_empty(), "{:?}", applied.rejected);
    tables
}

fn open(address: &str, port: u32, source: Option<(&str, &str)>) -> TunnelOpen {
    TunnelOpen {
        address: address.into(),
        port,
        host: "server.default.svc.cluster.local".into(),
        source: source.map(|(a, n)| workload(a, n)),
        kind: Kind::Tcp.into(),
        ..Default::default()
    }
}

/// The same for datagrams.
fn datagrams(open: TunnelOpen) -> TunnelOpen {
    TunnelOpen { kind: Kind::Udp.into(), ..open }
}

const CLIENT: Option<(&str, &str)> = Some(("10.1.1.1", "client"));

#[test]
fn each_check_refuses_what_it_is_for() {
    let tables = tables();
    let decide = |open: &TunnelOpen| {
        let owner = Owner { node: "b", own_ports: &[15008, 9100] };
        check(&tables, owner, "a", open).map(|a| (a.endpoint, a.source.map(|s| s.name.to_string())))
    };
    let endpoint: SocketAddr = "10.1.2.1:8080".parse().unwrap();
    assert_eq!(decide(&open("10.1.2.1", 8080, CLIENT)), Ok((endpoint, Some("client-pod".into()))));
    assert_eq!(decide(&open("10.1.2.1", 8080, None)), Ok((endpoint, None)), "a process of the peer's host");
    assert!(decide(&open("10.1.2.1", 1234, CLIENT)).is_ok(), "any port of a pod with its own address");
    assert!(decide(&open("::ffff:10.1.2.1", 8080, CLIENT)).is_ok(), "the same address, mapped");
    assert!(decide(&open("fd00::2", 80, CLIENT)).is_ok());

    let refused = [
        (open("not an address", 80, CLIENT), Denied::BadAddress),
        (open("10.1.2.1", 0, CLIENT), Denied::BadAddress),
        (open("10.1.2.1", 65_536, CLIENT), Denied::BadAddress),
        (open("127.0.0.1", 80, CLIENT), Denied::Loopback),
        (open("::1", 80, CLIENT), Denied::Loopback),
        (open("::ffff:127.0.0.1", 80, CLIENT), Denied::Loopback),
        (open("0.0.0.0", 80, CLIENT), Denied::Loopback),
        (open("0.1.2.3", 80, CLIENT), Denied::Loopback),
        (open("224.0.0.1", 80, CLIENT), Denied::Loopback),
        (open("255.255.255.255", 80, CLIENT), Denied::Loopback),
        (open("169.254.10.1", 80, CLIENT), Denied::LinkLocal),
        (open("fe80::1", 80, CLIENT), Denied::LinkLocal),
        (open("169.254.169.254", 80, CLIENT), Denied::Metadata),
        (open("::ffff:169.254.169.254", 80, CLIENT), Denied::Metadata),
        (open("100.100.100.200", 80, CLIENT), Denied::Metadata),
        (open("fd00:ec2::254", 80, CLIENT), Denied::Metadata),
        (open("10.1.3.1", 80, CLIENT), Denied::NotOwner),
        (open("8.8.8.8", 53, CLIENT), Denied::NotOwner),
        (open("10.96.0.7", 80, CLIENT), Denied::NotOwner),
        (open("192.168.7.2", 22, CLIENT), Denied::HostPort),
        (open("192.168.7.2", 15008, CLIENT), Denied::OwnListener),
        (open("10.1.2.1", 8080, Some(("10.1.3.1", "other"))), Denied::Impersonation),
        (open("10.1.2.1", 8080, Some(("10.1.1.1", "second"))), Denied::Impersonation),
        (open("10.1.2.1", 8080, Some(("10.1.1.9", "client"))), Denied::Impersonation),
        (open("10.1.2.1", 8080, Some(("10.1.2.1", "server"))), Denied::Impersonation),
        (open("10.1.2.1", 8080, Some(("nowhere", "client"))), Denied::BadSource),
    ];
    for (open, why) in refused {
        assert_eq!(decide(&open), Err(why), "{open:?}");
        assert_eq!(decide(&datagrams(open.clone())), Err(why), "{open:?}");
    }
    assert!(decide(&datagrams(open("10.1.2.1", 5353, CLIENT))).is_ok());
    for kind in [Kind::Unspecified as i32, 77] {
        let open = TunnelOpen { kind, ..open("10.1.2.1", 80, CLIENT) };
        assert_eq!(decide(&open), Err(Denied::BadKind));
    }
}

/// Node `a` with a bare tunnel, node `b` with the inbound path; `b`'s pods are found on `pods`.
struct World {
    a: Tunnel,
    registry: Registry,
    tables: Arc<ArcSwap<Tables>>,
    drain: node_rt::Drain,
    _b: Tunnel,
}

async fn world(
    config: InboundConfig,
    initial: Tables,
    pods: impl Fn(SocketAddr) -> SocketAddr + Send + Sync + 'static,
) -> World {
    let tunnel = |registry: Registry| async move {
        let mut config = TunnelConfig::new(NodeKey::generate(), 0);
        config.listen = vec!["/ip4/127.0.0.1/tcp/0".into()];
        Tunnel::start(config, Executors::current(), &registry).await.unwrap()
    };
    let registry = Registry::new();
    let ((a, _), (b, acceptors)) = (tunnel(Registry::new()).await, tunnel(registry.clone()).await);
    let peer = |node: &str, t: &Tunnel| mesh_tunnel::Peer {
        node: node.into(),
        peer_id: t.peer_id(),
        addresses: t.addresses().borrow().clone(),
        ..Default::default()
    };
    a.set_peers(&[peer("b", &b)]).await;
    b.set_peers(&[peer("a", &a)]).await;
    let telemetry = Arc::new(Telemetry::new(&registry, TelemetryConfig::default()).unwrap());
    let tables = Arc::new(ArcSwap::from_pointee(initial));
    let mut inbound =
        Inbound::new(config, "b".into(), tables.clone(), telemetry, AccessLog::off(), &registry).unwrap();
    inbound.translate = Some(Arc::new(pods));
    inbound.udp = Some(Arc::new(Udp::new(UdpConfig::default(), &registry).unwrap()));
    let (inbound, drain) = (Arc::new(inbound), node_rt::Drain::new());
    for acceptor in acceptors {
        spawn_local(inbound.clone().run(acceptor, drain.clone()));
    }
    World { a, registry, tables, drain, _b: b }
}

fn quick() -> InboundConfig {
    InboundConfig {
        connect_timeout: Duration::from_millis(300),
        grace: Duration::from_millis(60),
        ..InboundConfig::default()
    }
}

/// An echo server that ends when its client does.
async fn echo_pod() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            spawn_local(async move {
                let (mut r, mut w) = socket.split();
                let _ = tokio::io::copy(&mut r, &mut w).await;
                let _ = w.shutdown().await;
            });
        }
    });
    address
}

fn metric(registry: &Registry, name: &str, labels: &[(&str, &str)]) -> f64 {
    let families = registry.gather();
    let samples = families.iter().filter(|f| f.name() == name).flat_map(|f| f.get_metric().iter());
    let carries = |m: &&prometheus::proto::Metric, (k, v): &(&str, &str)| {
        m.get_label().iter().any(|l| l.name() == *k && l.value() == *v)
    };
    samples
        .filter(|m| labels.iter().all(|l| carries(m, l)))
        .map(|m| m.get_counter().get_value() + m.get_gauge().get_value())
        .sum()
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}");
}

fn refusal(result: Result<mesh_tunnel::TunnelStream, OpenError>) -> Refusal {
    match result {
        Err(OpenError::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_call_reaches_the_pod_and_is_counted_on_the_owners_side() {
    let body = async {
        let pod = echo_pod().await;
        let w = world(quick(), tables(), move |_| pod).await;
        let mut stream = w.a.open("b", open("10.1.2.1", 8080, CLIENT)).await.unwrap();
        stream.write_all(b"over the tunnel").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.unwrap();
        assert_eq!(back, b"over the tunnel");
        let labels = [
            ("reporter", "destination"),
            ("source_workload", "client"),
            ("source_principal", "spiffe://cluster.local/ns/default/sa/client"),
            ("destination_workload", "server"),
            ("destination_service_name", "server"),
            ("connection_security_policy", "mutual_tls"),
            ("request_protocol", "tcp"),
        ];
        eventually("the connection is counted as closed", || {
            metric(&w.registry, "istio_tcp_connections_closed_total", &labels) == 1.0
        })
        .await;
        assert_eq!(metric(&w.registry, "istio_tcp_connections_opened_total", &labels), 1.0);
        assert_eq!(metric(&w.registry, "istio_tcp_received_bytes_total", &labels), 15.0);
        assert_eq!(metric(&w.registry, "istio_tcp_sent_bytes_total", &labels), 15.0);
        assert_eq!(metric(&w.registry, "selvage_inbound_connections", &[]), 0.0);
    };
    LocalSet::new().run_until(body).await;
}

#[tokio::test]
async fn datagrams_reach_the_pod_and_are_counted() {
    let body = async {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let pod = socket.local_addr().unwrap();
        spawn_local(async move {
            let mut buffer = vec![0; 1 << 16];
            while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
                socket.send_to(&buffer[..n], from).await.unwrap();
            }
        });
        let w = world(quick(), tables(), move |_| pod).await;
        let stream = w.a.open("b", datagrams(open("10.1.2.1", 5353, CLIENT))).await.unwrap();
        let (read, mut write) = tokio::io::split(stream);
        let mut frames = frame::Frames::new(read);
        for size in [0, 1, 1472, 65_507] {
            write.write_all(&frame::frame(&vec![1; size]).unwrap()).await.unwrap();
            write.flush().await.unwrap();
            assert_eq!(frames.next().await.unwrap().unwrap().len(), size);
        }
        write.shutdown().await.unwrap();
        assert!(frames.next().await.unwrap().is_none());
        let labels = [("side", "inbound")];
        eventually("the session is counted as ended", || {
            metric(&w.registry, "selvage_udp_sessions_closed_total", &labels) == 1.0
        })
        .await;
        assert_eq!(metric(&w.registry, "selvage_udp_sessions", &labels), 0.0);
        assert_eq!(metric(&w.registry, "selvage_udp_datagrams_total", &labels), 8.0);
        assert_eq!(metric(&w.registry, "selvage_udp_bytes_total", &labels), 2.0 * (1.0 + 1472.0 + 65_507.0));
    };
    LocalSet::new().run_until(body).await;
}

#[tokio::test]
async fn each_refusal_is_told_to_the_opener_and_counted() {
    let body = async {
        let pod = echo_pod().await;
        let closed = mesh_testkit::ports::free_address();
        let w = world(quick(), tables(), move |to| if to.port() == 1 { closed } else { pod }).await;
        let cases = [
            (open("127.0.0.1", 80, CLIENT), Refusal::Forbidden, "loopback"),
            (open("169.254.7.7", 80, CLIENT), Refusal::Forbidden, "link_local"),
            (open("169.254.169.254", 80, CLIENT), Refusal::Forbidden, "metadata"),
            (open("10.1.3.1", 80, CLIENT), Refusal::NotOwner, "not_owner"),
            (open("10.1.2.1", 80, Some(("10.1.3.1", "other"))), Refusal::Forbidden, "impersonation"),
            (open("10.1.2.1", 1, CLIENT), Refusal::ConnectRefused, "connect_refused"),
            (open("nonsense", 1, CLIENT), Refusal::BadRequest, "bad_address"),
        ];
        for (open, code, reason) in cases {
            let refused = || metric(&w.registry, "selvage_inbound_refused_total", &[("reason", reason)]);
            let mut count = 0.0;
            // Nothing listens to datagrams there, but that shows only when one is sent.
            let both = [open.clone(), datagrams(open)];
            for open in both.into_iter().take(if reason == "connect_refused" { 1 } else { 2 }) {
                count += 1.0;
                assert_eq!(refusal(w.a.open("b", open).await), code, "{reason}");
                assert_eq!(refused(), count, "{reason}");
            }
        }
        assert_eq!(metric(&w.registry, "selvage_inbound_accepted_total", &[]), 0.0);
        let (drain, config) = (w.drain.clone(), node_rt::DrainConfig::default());
        spawn_local(async move {
            let tasks = node_rt::Tasks::new(drain.clone());
            drain.begin(node_rt::Reason::Requested("test"));
            drain.run(config, &node_rt::Readiness::new(), &tasks).await
        });
        w.drain.stop_accepting().await;
        assert_eq!(refusal(w.a.open("b", open("10.1.2.1", 8080, CLIENT)).await), Refusal::Draining);
    };
    LocalSet::new().run_until(body).await;
}

#[tokio::test]
async fn a_pod_that_does_not_answer_is_given_up_and_holds_nobody() {
    let body = async {
        let pod = echo_pod().await;
        // A listener whose backlog is full does not answer.
        let silent = socket2_silent();
        let silent_at = silent.0;
        let config = InboundConfig { connect_timeout: Duration::from_secs(1), ..quick() };
        let w = world(config, tables(), move |to| if to.port() == 1 { silent_at } else { pod }).await;
        let a = &w.a;
        let timed = |port| async move {
            let result = a.open("b", open("10.1.2.1", port, CLIENT)).await;
            (result, std::time::Instant::now())
        };
        let (slow, fast) = tokio::join!(timed(1), timed(8080));
        assert!(fast.0.is_ok());
        assert!(fast.1 < slow.1, "held by another pod");
        assert_eq!(refusal(slow.0), Refusal::ConnectTimeout);
    };
    LocalSet::new().run_until(body).await;
}

/// An address that takes no further connection, and what keeps it so.
fn socket2_silent() -> (SocketAddr, Vec<std::net::TcpStream>, std::net::TcpListener) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // std listens with a backlog of 128 or more: fill it until the kernel stops answering.
    let mut held = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
        held.push(stream);
        assert!(held.len() < 20_000, "the backlog does not fill");
    }
    (address, held, listener)
}

#[tokio::test]
async fn a_pod_that_the_tables_learn_of_in_time_is_not_refused() {
    let body = async {
        let pod = echo_pod().await;
        let config = InboundConfig { grace: Duration::from_secs(5), ..quick() };
        let w = world(config, Tables::new(), move |_| pod).await;
        let opening = w.a.open("b", open("10.1.2.1", 8080, CLIENT));
        let learning = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            w.tables.store(Arc::new(tables()));
        };
        let (opened, ()) = tokio::join!(opening, learning);
        assert!(opened.is_ok(), "{opened:?}");
    };
    LocalSet::new().run_until(body).await;
}

#[tokio::test]
async fn one_peer_cannot_take_every_place() {
    let body = async {
        let pod = echo_pod().await;
        let w = world(InboundConfig { per_peer: 2, ..quick() }, tables(), move |_| pod).await;
        let call = || w.a.open("b", open("10.1.2.1", 8080, CLIENT));
        let (one, _two) = (call().await.unwrap(), call().await.unwrap());
        assert_eq!(refusal(call().await), Refusal::Overloaded);
        drop(one);
        eventually("the place is free again", || {
            metric(&w.registry, "selvage_inbound_connections", &[]) == 1.0
        })
        .await;
        call().await.unwrap();
    };
    LocalSet::new().run_until(body).await;
}

#[tokio::test]
async fn a_reset_of_the_pod_reaches_the_opener_as_a_reset() {
    let body = async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pod = listener.local_addr().unwrap();
        let w = world(quick(), tables(), move |_| pod).await;
        let serving = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.write_all(b"half").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            socket.set_zero_linger().unwrap();
        };
        let calling = async {
            let mut stream = w.a.open("b", open("10.1.2.1", 8080, CLIENT)).await.unwrap();
            let mut back = Vec::new();
            let error = stream.read_to_end(&mut back).await.unwrap_err();
            assert_eq!((back.as_slice(), error.kind()), (&b"half"[..], std::io::ErrorKind::ConnectionReset));
        };
        tokio::join!(serving, calling);
    };
    LocalSet::new().run_until(body).await;
}

/// What a Sidecar says about connections to its workload holds on the workload's node.
#[tokio::test]
async fn a_sidecars_limits_hold_for_connections_to_its_workload() {
    let body = async {
        let pod = echo_pod().await;
        let sidecar = |pool: model::ConnectionPool| {
            Change::Set(Resource::Sidecar(model::Sidecar {
                name: "default/default".into(),
                namespace: "default".into(),
                inbound_pool: Some(pool),
                ..Default::default()
            }))
        };
        let one = model::ConnectionPool { max_connections: 1, ..Default::default() };
        let w = world(quick(), tables().apply(vec![sidecar(one)]).0, move |_| pod).await;
        let call = |port| w.a.open("b", open("10.1.2.1", port, CLIENT));
        let first = call(8080).await.unwrap();
        assert_eq!(refusal(call(8080).await), Refusal::Overloaded);
        assert!(call(8081).await.is_ok(), "each port for itself");
        drop(first);
        eventually("both are gone", || metric(&w.registry, "selvage_inbound_connections", &[]) == 0.0).await;
        let mut stream = call(8080).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        drop(stream);
        let millis = |value| Some(model::Millis { value });
        let short = model::ConnectionPool { max_connection_duration: millis(200), ..Default::default() };
        w.tables.store(Arc::new(w.tables.load().apply(vec![sidecar(short)]).0));
        let mut stream = call(8080).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        let mut all = Vec::new();
        // It is ended from there; how is a matter of the path.
        let _ended =
            tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut all)).await.unwrap();
        assert_eq!(all, b"x");
    };
    LocalSet::new().run_until(body).await;
}
