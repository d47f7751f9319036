//! Nodes whose addresses change: another lease, a router whose carrier gives it another address, a cable between two nodes,
//! another LAN. Both sides find each other again.

use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use mesh_testkit::lab::{Nat, Proc, Spec, World};

use super::node::{Look, Start, is_reserved, looks, spawn};

struct Mesh {
    // Before the world: programs end first.
    nodes: Vec<Proc>,
    registry: PathBuf,
    world: World,
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let _gone = std::fs::write(self.registry.join("end.now"), "");
        if std::thread::panicking() {
            for node in &self.nodes {
                eprintln!("=== {}\n{}", node.name(), node.tail());
            }
        }
    }
}

/// Promised on an idle machine; a busy one gets three times as much.
const FOUND_AGAIN: Duration = Duration::from_secs(5);
const BUSY: u32 = 3;

impl Mesh {
    fn ip(&self, place: &str, batch: &str) {
        let lines = batch.lines().map(str::trim).filter(|l| !l.is_empty()).map(|l| format!("ip {l}"));
        let script = lines.collect::<Vec<_>>().join(" && ");
        let done = self.world.place(place).unwrap().exec(&["sh", "-c", &script]).unwrap();
        assert!(done.ok(), "{place}: {script}: {}", done.stderr);
    }

    /// The router of a site gets another outer address from its carrier: what it translated before is void.
    fn renumber(&self, site: &str) {
        let info = self.world.place(site).unwrap().info();
        let uplink = info.uplink.as_ref().unwrap();
        let (old, outer) = (info.address, &uplink.outer_device);
        let [a, b, c, _] = old.octets();
        let new = std::net::Ipv4Addr::new(a, b, c, 250);
        let gateway = "$(ip -4 route show default | sed -n 's/.* via \\([0-9.]*\\) .*/\\1/p')";
        self.ip(
            "internet",
            &format!("route add {new}/32 dev {outer} scope link\nroute del {old}/32 dev {outer}"),
        );
        self.ip(
            site,
            &format!(
                "address add {new}/32 dev wan
                 route replace {gateway}/32 dev wan scope link src {new}
                 route replace default via {gateway} dev wan src {new}
                 address del {old}/32 dev wan"
            ),
        );
    }

    /// The opens of a node that began after a moment.
    fn since(&self, node: &str, at: SystemTime) -> Vec<Look> {
        looks(&self.registry, node).into_iter().filter(|l| l.began > at).collect()
    }

    /// Waits until opens of `node` that began after `at` work for a second without a break; gives the time from `at` to
    /// the end of the first one of them.
    fn found_again(&self, node: &str, at: SystemTime) -> Duration {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let all = self.since(node, at);
            let good = all.iter().rposition(|l| l.path.is_none()).map_or(0, |last| last + 1);
            if let (Some(first), Some(last)) = (all.get(good), all.last())
                && last.began.duration_since(first.began).unwrap() > Duration::from_secs(1)
            {
                return first.ended.duration_since(at).unwrap();
            }
            assert!(Instant::now() < end, "{node} does not find its peer: {:?}", all.last());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn expect_found(&self, what: &str, at: SystemTime, nodes: &[&str]) {
        for node in nodes {
            let took = self.found_again(node, at);
            println!("{what}: {node} finds its peer again after {took:?}");
            assert!(took < FOUND_AGAIN * BUSY, "{what}: {node}: {took:?}");
        }
    }

    /// Waits until opens of `node` take a path; `straight` is any but the relayed one: who dials a punch or finds it
    /// open decides what the path is called.
    fn until_path(&self, node: &str, at: SystemTime, path: &str) -> Duration {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let all = self.since(node, at);
            let fits =
                |p: &str| if path == "straight" { !p.starts_with("relayed") } else { p.starts_with(path) };
            if let Some(look) = all.iter().find(|l| l.path.as_deref().is_some_and(fits)) {
                return look.ended.duration_since(at).unwrap();
            }
            assert!(Instant::now() < end, "{node} is not on {path}: {:?}", all.last());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn wait(what: &str, seconds: u64, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !done() {
        assert!(Instant::now() < end, "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Two relays, `a` in the shop, `b` in the plant or public, each calling the other all the time.
fn mesh(name: &str, transport: &str, right: Option<Nat>) -> Mesh {
    let mut spec = Spec::named(name)
        .node("r1", None, None)
        .node("r2", None, None)
        .site("shop", "192.168.1.0/24".parse().unwrap(), Nat::Masquerade)
        .node("a", Some("shop"), None);
    spec = match right {
        Some(nat) => {
            spec.site("plant", "192.168.2.0/24".parse().unwrap(), nat).node("b", Some("plant"), None)
        }
        None => spec.node("b", None, None),
    };
    let world = World::up(&spec).unwrap();
    let registry = world.folder("registry").unwrap();
    let start = |name, relay, peer: &str| {
        let calls = [peer.to_owned()];
        let calls: &[String] = if peer.is_empty() { &[] } else { &calls };
        let start = Start { name, transport, relay, dark: false, calls };
        spawn(world.node(name).unwrap(), &registry, &start)
    };
    let nodes =
        vec![start("r1", true, ""), start("r2", true, ""), start("a", false, "+b"), start("b", false, "+a")];
    let mesh = Mesh { nodes, registry, world };
    wait("each node holds two reservations", 60, || {
        ["a", "b"].iter().all(|n| is_reserved(&mesh.registry, n, 2))
    });
    std::fs::write(mesh.registry.join("go.now"), "").unwrap();
    mesh
}

#[test]
fn nodes_that_move_are_found_again() {
    let mesh = mesh("moves", "both", Some(Nat::PortRestricted));
    let start = SystemTime::now();
    mesh.until_path("a", start, "straight");
    mesh.until_path("b", start, "straight");

    // Another lease.
    let at = SystemTime::now();
    mesh.ip(
        "a",
        "address flush dev eth0 scope global
         address add 192.168.1.77/24 dev eth0
         route add default via 192.168.1.1",
    );
    mesh.expect_found("another address", at, &["a", "b"]);
    println!("another address: off the relay after {:?}", mesh.until_path("a", at, "straight"));

    // Another outer address of the router: nothing on the node itself tells.
    let at = SystemTime::now();
    mesh.renumber("shop");
    mesh.expect_found("another address of the router", at, &["a", "b"]);
    println!("another address of the router: off the relay after {:?}", mesh.until_path("a", at, "straight"));

    // A cable between the two.
    let names = mesh.world.dir().join("ns").join("b");
    assert!(names.parent().unwrap().exists(), "{names:?}");
    let at = SystemTime::now();
    mesh.ip(
        "a",
        &format!(
            "link add cable type veth peer name cable netns {}
             address add 10.77.0.1/30 dev cable
             link set dev cable up",
            names.display()
        ),
    );
    mesh.ip(
        "b",
        "address add 10.77.0.2/30 dev cable
         link set dev cable up",
    );
    println!("a cable: on the LAN after {:?}", mesh.until_path("a", at, "lan"));

    // It is pulled: back to where they were.
    let at = SystemTime::now();
    mesh.ip("a", "link del cable");
    mesh.expect_found("the cable is pulled", at, &["a", "b"]);

    // To the other LAN.
    let names = mesh.world.dir().join("ns").join("plant");
    mesh.ip("a", &format!("link add eth1 type veth peer name guest netns {}", names.display()));
    mesh.ip(
        "plant",
        "link set dev guest master lan
         link set dev guest up",
    );
    let at = SystemTime::now();
    mesh.ip(
        "a",
        "link set dev eth0 down
         address flush dev eth0 scope global
         link set dev eth1 up
         address add 192.168.2.77/24 dev eth1
         route add default via 192.168.2.1",
    );
    mesh.expect_found("another LAN", at, &["a", "b"]);
    println!("another LAN: on it after {:?}", mesh.until_path("a", at, "lan"));
}

/// What is true of migration: a QUIC connection follows the side that dialled it, with its streams.
#[test]
fn a_stream_over_quic_survives_another_address_of_the_side_that_dialled() {
    let mesh = mesh("migrates", "quic", None);
    let start = SystemTime::now();
    mesh.until_path("a", start, "direct|quic");
    wait("the long stream carries bytes", 30, || looks(&mesh.registry, "a").iter().any(|l| l.long.1 > 5));
    let (streams, before) = looks(&mesh.registry, "a").last().unwrap().long;
    let at = SystemTime::now();
    mesh.ip(
        "a",
        "address flush dev eth0 scope global
         address add 192.168.1.77/24 dev eth0
         route add default via 192.168.1.1",
    );
    mesh.expect_found("another address, QUIC", at, &["a"]);
    wait("the long stream goes on", 30, || {
        looks(&mesh.registry, "a").last().is_some_and(|l| l.long.0 > streams || l.long.1 > before + 10)
    });
    let (after, _) = looks(&mesh.registry, "a").last().unwrap().long;
    assert_eq!(after, streams, "it is the same stream");

    let before = looks(&mesh.registry, "a").last().unwrap().long.1;
    let at = SystemTime::now();
    mesh.renumber("shop");
    mesh.expect_found("another address of the router, QUIC", at, &["a", "b"]);
    wait("the long stream goes on", 30, || {
        looks(&mesh.registry, "a").last().is_some_and(|l| l.long.0 > streams || l.long.1 > before + 10)
    });
    println!(
        "another address of the router, QUIC: the long stream goes on {:?} after",
        at.elapsed().unwrap()
    );
    assert_eq!(looks(&mesh.registry, "a").last().unwrap().long.0, streams, "it is the same stream");
    survives_an_outage(&mesh, true);
}

/// TCP's own pauses double: it would be silent for as long again, and be given up for a new connection. Where the kernel
/// cannot bound them (before 6.15) that may still happen.
#[test]
fn streams_over_tcp_go_on_after_an_outage() {
    let mesh = mesh("outage", "tcp", None);
    mesh.until_path("a", SystemTime::now(), "direct|tcp");
    survives_an_outage(&mesh, bounds_retransmission());
}

fn bounds_retransmission() -> bool {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    mesh_net::tcp::set_retransmission_max(&stream, Duration::from_secs(1)).is_ok()
}

/// As long as a flapping link is down at most.
const OUTAGE: Duration = Duration::from_secs(9);

/// Who opens a stream in an outage is told so within a second and a half, once it has been noticed, and mostly at once.
const TOLD: [Duration; 2] = [Duration::from_millis(2_500), Duration::from_secs(1)];
const NOTICED: Duration = Duration::from_secs(3);

/// The line of `a` is down for a while; its streams, and those of the other side, go on when it is back. New ones do not
/// wait for that.
fn survives_an_outage(mesh: &Mesh, same: bool) {
    let long = |node: &str| looks(&mesh.registry, node).last().map_or((0, 0), |l| l.long);
    for node in ["a", "b"] {
        wait("the long stream carries bytes", 30, || long(node).1 > 5);
    }
    let before = ["a", "b"].map(long);
    mesh.world.cut("a", None).unwrap();
    let cut = SystemTime::now();
    std::thread::sleep(OUTAGE);
    mesh.world.heal().unwrap();
    let at = SystemTime::now();
    for node in ["a", "b"] {
        let dark: Vec<_> = mesh
            .since(node, cut + NOTICED)
            .into_iter()
            .filter(|l| l.ended < at && l.path.is_none())
            .collect();
        let mut waits: Vec<_> = dark.iter().map(|l| l.ended.duration_since(l.began).unwrap()).collect();
        waits.sort();
        let (longest, middle) = (waits.last().copied(), waits.get(waits.len() / 2).copied());
        println!("in the outage: {node} is told {} times, after {middle:?}, {longest:?} at most", dark.len());
        assert!(longest < Some(TOLD[0]) && middle < Some(TOLD[1]) && longest.is_some(), "{node}: {waits:?}");
    }
    mesh.expect_found("after an outage", at, &["a", "b"]);
    for (node, (streams, bytes)) in ["a", "b"].into_iter().zip(before) {
        wait("the long stream goes on", 40, || long(node).0 > streams || long(node).1 > bytes + 20);
        let took = at.elapsed().unwrap();
        println!("after an outage: the stream of {node} goes on {took:?} after its end");
        assert!(!same || took < FOUND_AGAIN * BUSY, "{node}: {took:?}");
        assert!(!same || long(node).0 == streams, "{node}: it is the same stream");
        assert!(long(node).0 <= streams + 2, "{node}: {} streams, one after the other", long(node).0);
    }
}
