//! A node behind a symmetric NAT whose router opens ports: reached directly, without a punch. The router is miniupnpd.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mesh_testkit::lab::{Ipv6, Nat, NatSpec, PortMapping, Proc, Spec, World};

use super::node::{Start, calls, peer, spawn};

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
            let logs = self.world.dir().join("logs");
            for log in std::fs::read_dir(logs)
                .unwrap()
                .flatten()
                .filter(|l| l.path().to_string_lossy().contains("mapping"))
            {
                eprintln!(
                    "=== {:?}\n{}",
                    log.path(),
                    std::fs::read_to_string(log.path()).unwrap_or_default()
                );
            }
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

/// Rules of the router of `b` that lead in.
fn rules(mesh: &Mesh) -> String {
    let listed =
        mesh.world.place("s-b").unwrap().exec(&["nft", "list", "chain", "inet", "mapping", "to"]).unwrap();
    listed.stdout.lines().filter(|l| l.contains("dnat")).collect::<Vec<_>>().join("\n")
}

/// Ways through the firewall of IPv6 at the router of `b`.
fn pinholes(mesh: &Mesh) -> usize {
    let listed = ["nft", "list", "chain", "inet", "mapping", "allowed"];
    let listed = mesh.world.place("s-b").unwrap().exec(&listed).unwrap();
    listed.stdout.lines().filter(|l| l.contains("dport 15008") && l.contains("accept")).count()
}

fn opened(registry: &Path) -> Vec<String> {
    peer(registry, "b").map(|p| p.given).unwrap_or_default()
}

/// Two relays, and `a` and `b` behind symmetric NATs; the router of `b` opens ports.
fn mesh(name: &str, how: PortMapping) -> Mesh {
    let lan = "192.168.1.0/24".parse().unwrap();
    let mut spec = Spec::named(name)
        .node("r1", None, None)
        .node("r2", None, None)
        .site("s-a", lan, Nat::Symmetric)
        .site("s-b", lan, NatSpec::from(Nat::Symmetric).port_mapping(how))
        .node("a", Some("s-a"), None)
        .node("b", Some("s-b"), None);
    // The daemon opens nothing on documentation addresses. Nothing leaves the world.
    spec.public = vec!["45.45.45.0/24".parse().unwrap()];
    let world = World::up(&spec).unwrap();
    let registry = world.folder("registry").unwrap();
    let callee = ["b".to_owned()];
    let start = |name, relay, calls| {
        let start = Start { name, transport: "both", relay, dark: false, calls };
        spawn(world.node(name).unwrap(), &registry, &start)
    };
    let none: &[String] = &[];
    let nodes = vec![
        start("r1", true, none),
        start("r2", true, none),
        start("b", false, none),
        start("a", false, &callee),
    ];
    Mesh { nodes, registry, world }
}

fn is_reached_directly_and_closes_at_the_end(name: &str, how: PortMapping) -> Mesh {
    let mesh = mesh(name, how);
    wait("both ports are open and told", 60, || opened(&mesh.registry).len() == 2);
    let addresses = opened(&mesh.registry);
    assert!(
        addresses.iter().all(|a| a.starts_with("/ip4/45.45.45.") && a.contains("15008")),
        "{addresses:?}"
    );
    assert_eq!(rules(&mesh).lines().count(), 2, "{}", rules(&mesh));
    wait("another node got in", 60, || peer(&mesh.registry, "b").is_some_and(|p| p.reached == Some(true)));
    std::fs::write(mesh.registry.join("go.now"), "").unwrap();
    wait("the call has ended", 60, || calls(&mesh.registry, "a").contains_key("b"));
    let call = &calls(&mesh.registry, "a")["b"];
    println!("{name}: {call:?}");
    assert_eq!((call.path.as_str(), call.attempts), ("direct", 0), "{call:?}");
    mesh
}

fn ends(mesh: &Mesh) {
    std::fs::write(mesh.registry.join("end.now"), "").unwrap();
    wait("the ports are closed when the node ends", 30, || rules(mesh).is_empty());
}

#[test]
fn a_router_that_speaks_pcp_opens_ports_and_again_after_it_started_anew() {
    let mesh = is_reached_directly_and_closes_at_the_end("pcp", PortMapping::Pcp);
    mesh.world.reboot_port_mapping("s-b").unwrap();
    wait("the ports are open again", 60, || rules(&mesh).lines().count() == 2);
    ends(&mesh);
}

#[test]
fn a_router_that_speaks_upnp_only_opens_ports() {
    let mesh = is_reached_directly_and_closes_at_the_end("upnp", PortMapping::Upnp);
    ends(&mesh);
}

/// `b` and `c` have public addresses of IPv6 behind firewalls, `a` has one without. Nothing helps: no relay, no mDNS. The
/// router of `b` opens ways through its firewall, that of `c` does not.
#[test]
fn a_firewall_of_ipv6_is_opened_by_pcp() {
    let lan = "192.168.1.0/24".parse().unwrap();
    let holes = NatSpec::from(Nat::Symmetric).port_mapping(PortMapping::Pcp);
    let mut spec = Spec::named("pinholes")
        .node("a", None, None)
        .site("s-b", lan, holes)
        .site("s-c", lan, Nat::Symmetric)
        .site_with("s-b", |s| s.ipv6 = Ipv6::Dual)
        .site_with("s-c", |s| s.ipv6 = Ipv6::Dual)
        .node("b", Some("s-b"), None)
        .node("c", Some("s-c"), None);
    // The daemon opens nothing on documentation addresses. Nothing leaves the world.
    spec.public = vec!["45.45.45.0/24".parse().unwrap()];
    let world = World::up(&spec).unwrap();
    // Only what it does for IPv6 counts here.
    let deaf = "add table ip deaf; add chain ip deaf in { type filter hook input priority 0; }; \
                add rule ip deaf in udp dport 5351 drop";
    assert!(world.place("s-b").unwrap().exec(&["nft", deaf]).unwrap().ok());
    let registry = world.folder("registry").unwrap();
    let start = |name, calls: &[&str]| {
        let calls: Vec<String> = calls.iter().map(|c| (*c).to_owned()).collect();
        let start = Start { name, transport: "both families", relay: false, dark: false, calls: &calls };
        spawn(world.node(name).unwrap(), &registry, &start)
    };
    let nodes = vec![start("b", &[]), start("c", &[]), start("a", &["b", "?c"])];
    let mesh = Mesh { nodes, registry, world };
    wait("both ways are open and told", 60, || opened(&mesh.registry).len() == 2);
    let addresses = opened(&mesh.registry);
    assert!(addresses.iter().all(|a| a.starts_with("/ip6/") && a.contains("15008")), "{addresses:?}");
    assert_eq!(pinholes(&mesh), 2);
    wait("all are known", 30, || ["a", "b", "c"].iter().all(|n| peer(&mesh.registry, n).is_some()));
    std::fs::write(mesh.registry.join("go.now"), "").unwrap();
    wait("the calls have ended", 60, || calls(&mesh.registry, "a").contains_key("c"));
    let done = calls(&mesh.registry, "a");
    println!("with a way through the firewall: {:?}; without: {:?}", done["b"], done["c"]);
    assert_eq!((done["b"].path.as_str(), done["b"].attempts), ("direct", 0));
    assert_eq!(done["c"].path, "none", "nothing else leads there");
    std::fs::write(mesh.registry.join("end.now"), "").unwrap();
    wait("they are closed when the node ends", 30, || pinholes(&mesh) == 0);
}
