//! Many nodes behind one address, and peers that only other nodes know.

use std::time::{Duration, Instant};

use mesh_tunnel::{NodeKey, Peer};

use super::relay::{SOON, hidden, registry, relay, reservations, tell};
use crate::common::{Kind, Node, config, echo, echo_round, eventually, metric, open, serve, start};

/// Nodes of the crowd; what is asserted is scaled from 500.
const CROWD: usize = 60;

/// A node without listeners of its own beside one transport: half the sockets.
async fn member(n: usize) -> Node {
    let mut config = config(Kind::Tcp);
    config.nat.punch = false;
    let mut node = start(&format!("m{n}"), config).await;
    node.peer.addresses.clear();
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_behind_one_address_is_back_soon_after_the_relay_restarts() {
    let key = NodeKey::generate();
    let first = relay("r", |c| {
        c.key = key.clone();
        c.listen.retain(|a| a.contains("tcp"));
    })
    .await;
    let at = first.peer.addresses.clone();
    let mut crowd = Vec::new();
    for n in 0..CROWD {
        crowd.push(member(n).await);
    }
    let all: Vec<&Node> = crowd.iter().chain([&first]).collect();
    let peers: Vec<Peer> = registry(&all);
    // Only the relay has to know everybody; a member knows the relay and one other.
    first.tunnel.set_peers(&peers).await;
    for (n, node) in crowd.iter().enumerate() {
        node.tunnel.set_peers(&[first.peer.clone(), peers[(n + 1) % CROWD].clone()]).await;
    }
    let began = Instant::now();
    let held = |r: &Node| metric(&r.registry, "selvage_relay_reservations", None) as usize;
    eventually("all have reserved", Duration::from_secs(60), || held(&first) == CROWD).await;
    println!("{CROWD} reserved within {:?}", began.elapsed());
    assert_eq!(metric(&first.registry, "selvage_relay_refused_total", None), 0.0);
    first.tunnel.close().await;
    drop(first);

    // The same key on the same ports.
    let began = Instant::now();
    let second = loop {
        let started = relay_again(&key, &at).await;
        if let Some(node) = started {
            break node;
        }
        assert!(began.elapsed() < SOON, "the ports are not free");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    second.tunnel.set_peers(&peers).await;
    let began = Instant::now();
    eventually("all have reserved again", Duration::from_secs(60), || held(&second) == CROWD).await;
    println!("{CROWD} back within {:?}", began.elapsed());
    eventually("and know it", SOON, || crowd.iter().all(|n| reservations(n) == 1)).await;
}

async fn relay_again(key: &NodeKey, at: &[String]) -> Option<Node> {
    let mut config = config(Kind::Tcp);
    config.key = key.clone();
    config.listen = at.to_vec();
    config.nat.relay.enabled = true;
    let registry = prometheus::Registry::new();
    let started = mesh_tunnel::Tunnel::start(config, mesh_tunnel::Executors::current(), &registry).await;
    let (tunnel, mut acceptors) = started.ok()?;
    let peer = Peer { node: "r".into(), peer_id: tunnel.peer_id(), relay: true, ..Peer::default() };
    Some(Node { acceptor: acceptors.pop(), tunnel, registry, peer })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_whose_addresses_are_old_is_found_through_a_third_node() {
    let with_kad = |name: &'static str| async move {
        let mut config = config(Kind::Both);
        config.nat.kad = true;
        start(name, config).await
    };
    let (a, mut b, mut c) = (with_kad("a").await, with_kad("b").await, with_kad("c").await);
    // The registry of `a` has an address of `b` where nobody is; both know `c`.
    let mut old = b.peer.clone();
    old.addresses = vec!["/ip4/127.0.0.1/tcp/1".to_owned()];
    a.tunnel.set_peers(&[old, c.peer.clone()]).await;
    b.tunnel.set_peers(&[a.peer.clone(), c.peer.clone()]).await;
    c.tunnel.set_peers(&[a.peer.clone(), b.peer.clone()]).await;
    let servers = [&mut b, &mut c].map(|n| serve(n.acceptor.take().unwrap(), echo));
    echo_round(&a, "c", 10).await;
    echo_round(&b, "c", 10).await;
    let began = Instant::now();
    while a.tunnel.open("b", open()).await.is_err() {
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    echo_round(&a, "b", 1_000).await;
    assert!(metric(&a.registry, "selvage_nat_discovered_total", Some("kad")) >= 1.0);
    for server in servers {
        server.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_is_made_and_unmade_while_it_runs() {
    let (r, a) = (hidden("r", |_| {}).await, hidden("a", |_| {}).await);
    let mut relay = r;
    relay.peer.addresses = relay.tunnel.addresses().borrow().clone();
    relay.peer.relay = true;
    tell(&[&relay, &a]).await;
    eventually("it says no", SOON, || {
        metric(&relay.registry, "selvage_relay_refused_total", Some("no_relay")) >= 1.0
    })
    .await;
    assert_eq!(reservations(&a), 0);
    relay.tunnel.set_relay(true);
    eventually("it serves", SOON, || reservations(&a) == 1).await;
    assert!(relay.tunnel.nat().borrow().relay);
}
