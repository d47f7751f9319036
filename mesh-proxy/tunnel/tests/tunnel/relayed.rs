//! Paths through relays: taken when nothing else answers, left when something does, and lost without an error.

use std::time::{Duration, Instant};

use mesh_tunnel::{PathKind, Peer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    common::{Kind, Node, config, echo, echo_round, eventually, metric, open, serve, start},
    link::{Link, port_of},
};

const SOON: Duration = Duration::from_secs(20);

async fn relay(name: &str, kind: Kind) -> Node {
    let mut c = config(kind);
    c.nat.relay.enabled = true;
    let mut node = start(name, c).await;
    node.peer.relay = true;
    node
}

/// A node that others reach through its reservations only.
async fn hidden(name: &str) -> (Node, Vec<String>) {
    let mut c = config(Kind::Both);
    c.nat.punch = false;
    c.timeouts.upgrade_min = Duration::from_millis(300);
    let mut node = start(name, c).await;
    let addresses = std::mem::take(&mut node.peer.addresses);
    (node, addresses)
}

/// What the registry says: reservations included.
fn registry(nodes: &[&Node]) -> Vec<Peer> {
    let with =
        |n: &&Node| Peer { reservations: n.tunnel.nat().borrow().reservations.clone(), ..n.peer.clone() };
    nodes.iter().map(with).collect()
}

async fn tell(nodes: &[&Node]) {
    for node in nodes {
        node.tunnel.set_peers(&registry(nodes)).await;
    }
}

async fn reserved(node: &Node, count: usize) {
    eventually("reservations", SOON, || {
        let reservations = node.tunnel.nat().borrow().reservations.clone();
        let relays: std::collections::BTreeSet<_> =
            reservations.iter().filter_map(|r| r.split("/p2p/").nth(1)).collect();
        relays.len() == count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_starts_through_the_relay_and_moves_when_an_address_answers() {
    let r = relay("r", Kind::Both).await;
    let ((a, _), (mut b, addresses)) = (hidden("a").await, hidden("b").await);
    let server = serve(b.acceptor.take().unwrap(), echo);
    // The address that the registry has of `b` swallows everything.
    let dead = Link::to(port_of(&addresses, "/tcp/"), Duration::ZERO).await;
    dead.cut();
    b.peer.addresses = vec![dead.address()];
    tell(&[&r, &a, &b]).await;
    reserved(&b, 1).await;
    tell(&[&r, &a, &b]).await;

    let began = Instant::now();
    let mut stream = a.tunnel.open("b", open()).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut [0]).await.unwrap();
    eprintln!("first byte through the relay after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let path = a.tunnel.paths().into_iter().find(|p| p.peer == "b").unwrap();
    assert_eq!((path.path, path.relay.as_deref(), path.active), (PathKind::Relayed, Some("r"), true));
    assert!(!path.why_not_better.is_empty());
    assert_eq!(metric(&a.registry, "selvage_tunnel_connections", Some("relayed")), 1.0);
    let (place, generation) = (stream.place(), a.tunnel.generation("b"));
    let before = generation.load(std::sync::atomic::Ordering::Relaxed);

    // The registry learns where `b` really is.
    b.peer.addresses = addresses;
    let began = Instant::now();
    tell(&[&r, &a, &b]).await;
    eventually("new streams go straight", SOON, || place.is_superseded()).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(generation.load(std::sync::atomic::Ordering::Relaxed) > before, "pools are told");
    assert_eq!(a.tunnel.open("b", open()).await.unwrap().path().kind, PathKind::Lan);
    stream.write_all(b"still here").await.unwrap();
    stream.read_exact(&mut [0; 10]).await.unwrap();
    assert!(metric(&a.registry, "selvage_tunnel_path_changes_total", Some("lan")) >= 1.0);
    server.abort();
}

/// A relay on TCP says goodbye when it dies, one on QUIC says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_dies_under_load_fails_no_open() {
    for kind in [Kind::Tcp, Kind::Quic] {
        relay_dies(kind).await;
    }
}

/// A process of its own, as far as that goes: dropping it takes its sockets and tasks without a word.
async fn process(name: &'static str, kind: Kind) -> (tokio::runtime::Runtime, Node) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let node = runtime.spawn(relay(name, kind)).await.unwrap();
    (runtime, node)
}

async fn relay_dies(kind: Kind) {
    let ((p1, r1), (p2, r2)) = (process("r1", kind).await, process("r2", kind).await);
    let ((a, _), (mut b, _)) = (hidden("a").await, hidden("b").await);
    let server = serve(b.acceptor.take().unwrap(), echo);
    let all = [&r1, &r2, &a, &b];
    tell(&all).await;
    reserved(&b, 2).await;
    tell(&all).await;
    echo_round(&a, "b", 1000).await;
    let used = || a.tunnel.paths().into_iter().find(|p| p.peer == "b" && p.active).and_then(|p| p.relay);
    let first = used().unwrap();
    let (dying, survivor) = if first == "r1" { (p1, p2) } else { (p2, p1) };
    let (tunnel, began) = (a.tunnel.clone(), Instant::now());
    let load = async {
        let (mut worst, mut cut, mut count) = (Duration::ZERO, Duration::ZERO, 0);
        while began.elapsed() < Duration::from_secs(4) || count < 30 {
            let one = Instant::now();
            let mut stream = tunnel.open("b", open()).await.unwrap();
            worst = worst.max(one.elapsed());
            count += 1;
            let began = Instant::now();
            if stream.write_all(b"x").await.is_ok() {
                let cut_with_the_relay = tokio::time::timeout(SOON, stream.read_exact(&mut [0])).await;
                assert!(cut_with_the_relay.is_ok(), "a stream through a dead relay lives on");
                cut = cut.max(began.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (worst, cut, count)
    };
    let kill = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        dying.shutdown_background();
    };
    let ((worst, cut, count), ()) = tokio::join!(load, kill);
    eprintln!("{count} opens, the slowest took {worst:?}; the longest exchange {cut:?}");
    assert!(count > 20 && worst < Duration::from_secs(4), "{count} opens, worst {worst:?}");
    echo_round(&a, "b", 1000).await;
    assert_ne!(used().unwrap(), first, "the other relay is used");
    survivor.shutdown_background();
    server.abort();
}
