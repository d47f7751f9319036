//! Datagrams to services: captured with their destination, answered from there, and routed though others interfere.

use mesh_net::udp::{Captured, answering, connected, std_captured};
use tokio::net::UdpSocket;

use super::*;

const MANY: Duration = Duration::from_secs(10);

/// A world whose service takes datagrams at port 53, and the listener for them.
async fn udp_world() -> (World, Captured) {
    let socket = std_captured("0.0.0.0:0".parse().unwrap()).unwrap();
    let mut world = World::new().await;
    world.options.udp_v4 = Some(socket.local_addr().unwrap().port());
    let service = model::Service {
        host: "names.default.svc.cluster.local".into(),
        namespace: "default".into(),
        name: "names".into(),
        kind: model::service::Kind::ClusterIp as i32,
        vips: vec!["10.96.0.10".into()],
        ports: vec![
            model::Port { number: 53, name: "dns".into(), protocol: model::Protocol::Udp as i32 },
            model::Port { number: 53, name: "dns-tcp".into(), protocol: model::Protocol::Tcp as i32 },
        ],
        ..Default::default()
    };
    assert_eq!(world.shared.apply(vec![Change::Set(Resource::Service(service))]).rejected.len(), 0);
    (world, Captured::new(socket).unwrap())
}

/// The first datagram that arrives: from, to, what.
async fn first(captured: &mut Captured) -> Option<(SocketAddr, SocketAddr, Vec<u8>)> {
    let mut found = None;
    let receive = captured.receive(|d| found = Some((d.from, d.to, d.data.to_vec())));
    tokio::time::timeout(MANY, receive).await.ok()?.unwrap();
    found
}

#[test]
fn datagrams_arrive_with_their_destination_and_are_answered_from_there() {
    in_namespace(
        "datagrams::datagrams_arrive_with_their_destination_and_are_answered_from_there",
        "-Urn",
        async || {
            let (world, mut captured) = udp_world().await;
            let _capture = world.start().await;
            let to: SocketAddr = "10.96.0.10:53".parse().unwrap();
            let client = connected(to, None).await.unwrap();
            for size in [0, 1, 1472, 65_507] {
                client.send(&vec![5; size]).await.unwrap();
                let (from, dialled, data) = first(&mut captured).await.expect("it arrives");
                assert_eq!((from, dialled, data.len()), (client.local_addr().unwrap(), to, size));
                let answer = answering(to, Some(world.options.mark)).unwrap();
                answer.send_to(&data, from).await.unwrap();
                let mut back = vec![0; 1 << 16];
                let n = tokio::time::timeout(MANY, client.recv(&mut back)).await.unwrap().unwrap();
                assert_eq!(n, size, "a connected socket takes it only from the service's address");
            }
            // Our own sockets pass, other ports pass, and TCP is not concerned.
            let own = connected(to, Some(world.options.mark)).await.unwrap();
            own.send(b"own").await.unwrap();
            connected("10.96.0.10:54".parse().unwrap(), None).await.unwrap().send(b"port").await.unwrap();
            assert_eq!(world.arrives("10.96.0.10:53").await, Some(to));
            client.send(b"last").await.unwrap();
            assert_eq!(first(&mut captured).await.unwrap().2, b"last");
            world.drain().await;
        },
    );
}

#[test]
fn a_lost_routing_rule_comes_back_and_goes_at_the_end() {
    in_namespace("datagrams::a_lost_routing_rule_comes_back_and_goes_at_the_end", "-Urn", async || {
        let (world, mut captured) = udp_world().await;
        let _capture = world.start().await;
        let rules = || sh("ip rule show").unwrap();
        assert!(rules().contains("fwmark 0x5e/0xff lookup 15001"), "{}", rules());
        sh("ip rule delete priority 1501; ip route flush table 15001").unwrap();
        let start = Instant::now();
        while !rules().contains("lookup 15001") {
            assert!(start.elapsed() < MANY, "{}", rules());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let client = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        let mut found = None;
        while found.is_none() && start.elapsed() < MANY {
            client.send_to(b"x", "10.96.0.10:53").await.unwrap();
            let mut each = |d: mesh_net::udp::Datagram<'_>| found = Some(d.to);
            let receive = captured.receive(&mut each);
            let _late = tokio::time::timeout(Duration::from_millis(200), receive).await;
        }
        assert_eq!(found, Some("10.96.0.10:53".parse().unwrap()));
        world.drain().await;
        assert!(!rules().contains("15001"), "{}", rules());
    });
}
