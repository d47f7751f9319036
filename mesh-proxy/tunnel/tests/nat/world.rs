//! Every kind of NAT against every other, in network namespaces.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use mesh_testkit::lab::{Nat, Proc, Spec, World};

use super::node::{Call, Start, calls, is_reserved, nat, spawn};

const KINDS: [Nat; 4] = [Nat::FullCone, Nat::AddressRestricted, Nat::PortRestricted, Nat::Symmetric];

struct Mesh {
    // Before the world: programs end first.
    nodes: Vec<Proc>,
    registry: PathBuf,
    _world: World,
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

/// Two relays, and a node `NAME` in a site of its own for each kind.
fn mesh(
    world: &str,
    nodes: &[(String, Nat)],
    transport: &str,
    callees: &dyn Fn(&str) -> Vec<String>,
) -> Mesh {
    let mut spec = Spec::named(world).node("r1", None, None).node("r2", None, None);
    for (name, kind) in nodes {
        spec = spec.site(&format!("s-{name}"), "192.168.1.0/24".parse().unwrap(), *kind).node(
            name,
            Some(&format!("s-{name}")),
            None,
        );
    }
    let world = World::up(&spec).unwrap();
    let registry = world.folder("registry").unwrap();
    let mut all = Vec::new();
    for relay in ["r1", "r2"] {
        let start = Start { name: relay, transport, relay: true, dark: false, calls: &[] };
        all.push(spawn(world.node(relay).unwrap(), &registry, &start));
    }
    for (name, _) in nodes {
        let start = Start { name, transport, relay: false, dark: false, calls: &callees(name) };
        all.push(spawn(world.node(name).unwrap(), &registry, &start));
    }
    let mesh = Mesh { nodes: all, registry, _world: world };
    let all = || nodes.iter().all(|(name, _)| is_reserved(&mesh.registry, name, 2));
    wait("each node holds two reservations", 60, all);
    mesh
}

fn wait(what: &str, seconds: u64, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !done() {
        assert!(Instant::now() < end, "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_expected_direct(a: Nat, b: Nat) -> bool {
    let hard = |a: Nat, b: Nat| a == Nat::Symmetric && matches!(b, Nat::Symmetric | Nat::PortRestricted);
    !hard(a, b) && !hard(b, a)
}

fn matrix(transport: &str) {
    let mut nodes = Vec::new();
    // The two hardest kinds call all; the rest of the matrix is `make nat-matrix`.
    let callers = [Nat::PortRestricted, Nat::Symmetric];
    nodes.extend(callers.map(|kind| (format!("a-{}", kind.as_str()), kind)));
    nodes.extend(KINDS.map(|kind| (format!("b-{}", kind.as_str()), kind)));
    let callees = |name: &str| -> Vec<String> {
        if !name.starts_with("a-") {
            return Vec::new();
        }
        KINDS.iter().map(|k| format!("b-{}", k.as_str())).collect()
    };
    let mesh = mesh(&format!("punch-{transport}"), &nodes, transport, &callees);
    std::fs::write(mesh.registry.join("go.now"), "").unwrap();
    let callers: Vec<_> = callers.iter().map(|k| (*k, format!("a-{}", k.as_str()))).collect();
    wait("all calls have ended", 120, || {
        callers.iter().all(|(_, n)| calls(&mesh.registry, n).len() == KINDS.len())
    });
    let mut findings = Vec::new();
    for (kind, name) in &callers {
        let done = calls(&mesh.registry, name);
        println!("{name} says it is behind {}", nat(&mesh.registry, name));
        for other in KINDS {
            let call: &Call = &done[&format!("b-{}", other.as_str())];
            println!(
                "{transport} {:>18} {:>18}: {} {} first byte {:?}, upgraded {:?}, attempts {}, nat {:?} {}",
                kind.as_str(),
                other.as_str(),
                call.path,
                call.transport,
                call.first_byte,
                call.upgraded,
                call.attempts,
                call.nat,
                call.why
            );
            let expected = if is_expected_direct(*kind, other) { "punched" } else { "relayed" };
            if call.path != expected {
                findings.push(format!(
                    "{} to {}: {} instead of {expected}",
                    kind.as_str(),
                    other.as_str(),
                    call.path
                ));
            }
            if expected == "relayed" && !call.why.contains("symmetric NAT") {
                findings.push(format!("{} to {}: why {:?}", kind.as_str(), other.as_str(), call.why));
            }
        }
    }
    assert!(findings.is_empty(), "{findings:#?}");
}

#[test]
fn quic_punches_through_all_that_can_be() {
    matrix("quic");
}

#[test]
fn tcp_punches_through_all_that_can_be() {
    matrix("tcp");
}

#[test]
fn nodes_in_the_dark_find_each_other_on_the_lan() {
    let lan = "192.168.1.0/24".parse().unwrap();
    let spec = Spec::named("dark").site("shop", lan, Nat::PortRestricted);
    let spec = spec.node("a", Some("shop"), None).node("b", Some("shop"), None);
    let world = World::up(&spec).unwrap();
    let registry = world.folder("registry").unwrap();
    let callee = ["b".to_owned()];
    let start = |name, calls| {
        let start = Start { name, transport: "both", relay: false, dark: true, calls };
        spawn(world.node(name).unwrap(), &registry, &start)
    };
    let nodes = vec![start("b", &[]), start("a", &callee)];
    let mesh = Mesh { nodes, registry, _world: world };
    wait("both have started", 60, || ["a", "b"].iter().all(|n| mesh.registry.join(n).exists()));
    std::fs::write(mesh.registry.join("go.now"), "").unwrap();
    wait("the call has ended", 60, || calls(&mesh.registry, "a").contains_key("b"));
    let call = &calls(&mesh.registry, "a")["b"];
    println!("{call:?}");
    assert_eq!(call.path, "lan");
    // Five seconds on a machine that does nothing else.
    assert!(call.first_byte < Duration::from_secs(15), "{:?}", call.first_byte);
}
