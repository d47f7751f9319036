//! Nodes that know nothing of each other but their relays.

use std::time::{Duration, Instant};

use mesh_tunnel::{NatReport, Peer, TunnelConfig};

use crate::common::{Kind, Node, config, echo, echo_round, eventually, metric, open, serve, start};

pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A relay on loopback.
pub(crate) async fn relay(name: &str, change: impl FnOnce(&mut TunnelConfig)) -> Node {
    let mut config = config(Kind::Both);
    config.nat.relay.enabled = true;
    change(&mut config);
    let mut node = start(name, config).await;
    node.peer.relay = true;
    node
}

/// A node of which others know only the peer id, until its reservations are copied into the registry.
pub(crate) async fn hidden(name: &str, change: impl FnOnce(&mut TunnelConfig)) -> Node {
    let mut config = config(Kind::Both);
    config.nat.punch = false;
    change(&mut config);
    let mut node = start(name, config).await;
    node.peer.addresses.clear();
    node
}

pub(crate) fn report(node: &Node) -> NatReport {
    node.tunnel.nat().borrow().clone()
}

/// What the controller would distribute.
pub(crate) fn registry(nodes: &[&Node]) -> Vec<Peer> {
    let copy = |n: &&Node| {
        let mut peer = n.peer.clone();
        let report = report(n);
        peer.reservations = report.reservations;
        peer.nat = report.nat;
        peer
    };
    nodes.iter().map(copy).collect()
}

pub(crate) async fn tell(nodes: &[&Node]) {
    let peers = registry(nodes);
    for node in nodes {
        node.tunnel.set_peers(&peers).await;
    }
}

pub(crate) fn reservations(node: &Node) -> usize {
    metric(&node.registry, "selvage_nat_reservations", None) as usize
}

pub(crate) async fn reserved(node: &Node, count: usize) {
    eventually("reservations are held", SOON, || reservations(node) == count).await;
}

pub(crate) fn paths(node: &Node, to: &str) -> Vec<String> {
    node.tunnel.paths().into_iter().filter(|p| p.peer == to).map(|p| p.path.as_str().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hidden_nodes_talk_through_a_relay() {
    let (r, a, mut b) = (relay("r", |_| {}).await, hidden("a", |_| {}).await, hidden("b", |_| {}).await);
    tell(&[&r, &a, &b]).await;
    reserved(&a, 1).await;
    reserved(&b, 1).await;
    tell(&[&r, &a, &b]).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    echo_round(&a, "b", 3_000_000).await;
    assert_eq!(paths(&a, "b"), ["relayed"]);
    assert!(metric(&r.registry, "selvage_relay_bytes_total", None) > 6_000_000.0);
    assert_eq!(metric(&r.registry, "selvage_relay_circuits", None), 1.0);
    assert_eq!(metric(&r.registry, "selvage_relay_reservations", None), 2.0);
    // The circuit and its counters end with the connection.
    b.tunnel.close().await;
    eventually("the circuit ends", SOON, || metric(&r.registry, "selvage_relay_circuits", None) == 0.0).await;
    eventually("the reservation ends", SOON, || {
        metric(&r.registry, "selvage_relay_reservations", None) == 1.0
    })
    .await;
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relayed_pair_punches_through_and_moves() {
    let (r, a, mut b) = (
        relay("r", |_| {}).await,
        hidden("a", |c| c.nat.punch = true).await,
        hidden("b", |c| c.nat.punch = true).await,
    );
    tell(&[&r, &a, &b]).await;
    reserved(&a, 1).await;
    reserved(&b, 1).await;
    tell(&[&r, &a, &b]).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    echo_round(&a, "b", 10_000).await;
    // On loopback the punched connection is on the LAN of both.
    eventually("a direct connection", SOON, || paths(&a, "b").first().is_some_and(|p| p != "relayed")).await;
    eventually("both sides know", SOON, || {
        [&a, &b].iter().all(|n| metric(&n.registry, "selvage_nat_punches_total", Some("ok")) == 1.0)
    })
    .await;
    echo_round(&a, "b", 10_000).await;
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_relay_is_replaced() {
    let (r1, r2, r3) = (relay("r1", |_| {}).await, relay("r2", |_| {}).await, relay("r3", |_| {}).await);
    let (a, mut b) = (hidden("a", |_| {}).await, hidden("b", |_| {}).await);
    let all = [&r1, &r2, &r3, &a, &b];
    tell(&all).await;
    reserved(&a, 2).await;
    reserved(&b, 2).await;
    tell(&all).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    echo_round(&a, "b", 1_000).await;
    let used = a.tunnel.paths().into_iter().find(|p| p.peer == "b").and_then(|p| p.relay).unwrap();
    let lost = [&r1, &r2, &r3].into_iter().find(|r| r.peer.node == used).unwrap();
    lost.tunnel.close().await;
    let began = Instant::now();
    let mut left = 20;
    while let Err(error) = a.tunnel.open("b", open()).await {
        left -= 1;
        assert!(left > 0, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    eventually("the third takes its place", SOON, || {
        reservations(&b) == 2 && !report(&b).reservations.iter().any(|c| c.contains(&lost.peer.peer_id))
    })
    .await;
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_refuse_and_are_counted() {
    let r = relay("r", |c| (c.nat.relay.reservations, c.nat.relay.circuits) = (2, 1)).await;
    let (a, mut b, c) = (hidden("a", |_| {}).await, hidden("b", |_| {}).await, hidden("c", |_| {}).await);
    tell(&[&r, &a, &b]).await;
    reserved(&a, 1).await;
    reserved(&b, 1).await;
    tell(&[&r, &a, &b, &c]).await;
    eventually("the third is refused", SOON, || {
        metric(&r.registry, "selvage_relay_refused_total", Some("reservations")) >= 1.0
    })
    .await;
    assert_eq!(reservations(&c), 0);
    // One circuit is there for all.
    let server = serve(b.acceptor.take().unwrap(), echo);
    echo_round(&a, "b", 1_000).await;
    assert!(c.tunnel.open("b", open()).await.is_err());
    assert!(metric(&r.registry, "selvage_relay_refused_total", Some("circuits")) >= 1.0);
    echo_round(&a, "b", 1_000).await;
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_gets_neither_reservation_nor_circuit() {
    let r = relay("r", |_| {}).await;
    let (a, b, stranger) = (hidden("a", |_| {}).await, hidden("b", |_| {}).await, hidden("x", |_| {}).await);
    tell(&[&r, &a, &b]).await;
    reserved(&b, 1).await;
    stranger.tunnel.set_peers(&registry(&[&r, &a, &b])).await;
    assert!(stranger.tunnel.open("b", open()).await.is_err());
    eventually("it is cut", SOON, || {
        metric(&r.registry, "selvage_tunnel_denied_connections_total", None) >= 1.0
    })
    .await;
    assert_eq!(reservations(&stranger), 0);
    assert_eq!(metric(&r.registry, "selvage_relay_circuits_total", None), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_test_whether_others_are_reached_are_closed() {
    let (r, a) = (relay("r", |c| c.nat.autonat = true).await, hidden("a", |c| c.nat.autonat = true).await);
    tell(&[&r, &a]).await;
    reserved(&a, 1).await;
    let tested = || metric(&a.registry, "selvage_nat_autonat_total", Some("reached"));
    // One of TCP, one of QUIC.
    eventually("the addresses are tested", SOON * 2, || tested() >= 2.0).await;
    let connections = || -> usize { r.tunnel.paths().iter().map(|p| p.connections).sum() };
    eventually("the node's own are left", SOON, || connections() == 2).await;
    assert_eq!(metric(&r.registry, "selvage_relay_reservations", None), 1.0);
}
