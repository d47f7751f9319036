//! Each kind of router does what its name says, proved with plain sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use mesh_testkit::{
    bins,
    lab::{Egress, Ipv6, Nat, NatSpec, Socket, Spec, World, world::Options},
};

/// Long enough for a packet on a busy machine.
const SOON: Duration = Duration::from_secs(5);
/// How long nothing has to come before it counts as lost.
const NEVER: Duration = Duration::from_millis(300);

/// Two public nodes; sites are added.
fn public(name: &str) -> Spec {
    Spec::named(name).node("one", None, None).node("two", None, None)
}

/// A site of that name with nodes `NAME-a` and `NAME-b`.
fn with_site(spec: Spec, name: &str, nat: impl Into<NatSpec>) -> Spec {
    spec.site(name, "192.168.1.0/24".parse().unwrap(), nat).node(&format!("{name}-a"), Some(name), None).node(
        &format!("{name}-b"),
        Some(name),
        None,
    )
}

fn address(world: &World, node: &str, port: u16) -> SocketAddr {
    SocketAddr::new(world.node(node).unwrap().address(), port)
}

/// What `from` looks like to `to`, which listens on `at`.
fn seen(from: &mut Socket, to: &mut Socket, at: SocketAddr) -> SocketAddr {
    from.send(at, "hello").unwrap();
    let (source, text) = to.receive(SOON).unwrap().expect("what leaves arrives");
    assert_eq!(text, "hello");
    source
}

/// Whether a packet of `from` reaches `to` at `at`. What should come is waited for longer than what should not.
fn passes(from: &mut Socket, to: &mut Socket, at: SocketAddr, expected: bool) -> bool {
    from.send(at, "probe").unwrap();
    to.receive(patience(expected)).unwrap().is_some_and(|(_, text)| text == "probe")
}

/// Asserts that packets pass.
fn reaches(from: &mut Socket, to: &mut Socket, at: SocketAddr) {
    assert!(passes(from, to, at, true), "{at} is not reached");
}

/// Asserts that none does.
fn lost(from: &mut Socket, to: &mut Socket, at: SocketAddr) {
    assert!(!passes(from, to, at, false), "{at} is reached");
}

fn patience(expected: bool) -> Duration {
    if expected { SOON } else { NEVER }
}

#[derive(Debug, PartialEq)]
struct Behaviour {
    same_port_to_all: bool,
    lets_in_other_port: bool,
    lets_in_other_address: bool,
}

fn udp_behaviour(world: &World, node: &str, expected: &Behaviour) -> Behaviour {
    let mut inner = world.udp(node, 4000).unwrap();
    let (mut one, mut one_other) = (world.udp("one", 5000).unwrap(), world.udp("one", 5001).unwrap());
    let mut two = world.udp("two", 5000).unwrap();
    let outer = seen(&mut inner, &mut one, address(world, "one", 5000));
    assert_eq!(outer.ip(), world.node(node).unwrap().public_address());
    // An answer always comes through.
    one.send(outer, "answer").unwrap();
    let (from, _) = inner.receive(SOON).unwrap().expect("an answer");
    assert_eq!(from, address(world, "one", 5000));
    let lets_in_other_port = passes(&mut one_other, &mut inner, outer, expected.lets_in_other_port);
    let lets_in_other_address = passes(&mut two, &mut inner, outer, expected.lets_in_other_address);
    // A port that nothing maps to leads nowhere, whatever the kind.
    lost(&mut two, &mut inner, SocketAddr::new(outer.ip(), outer.port() ^ 1));
    let to_other_port = seen(&mut inner, &mut one_other, address(world, "one", 5001));
    let to_other_address = seen(&mut inner, &mut two, address(world, "two", 5000));
    assert_eq!(to_other_port == outer, to_other_address == outer);
    // Now that it was called it is let in at the port that it was called from.
    two.send(to_other_address, "answer").unwrap();
    assert!(inner.receive(SOON).unwrap().is_some());
    Behaviour { same_port_to_all: to_other_port == outer, lets_in_other_port, lets_in_other_address }
}

fn tcp_behaviour(world: &World, node: &str, expected: &Behaviour) -> Behaviour {
    let mut inner = world.tcp(node, 4100).unwrap();
    let (mut one, mut one_other) = (world.tcp("one", 5100).unwrap(), world.tcp("one", 5101).unwrap());
    let mut two = world.tcp("two", 5100).unwrap();
    let outer = connected(&mut inner, &mut one, address(world, "one", 5100));
    let from_other_port = connects(&mut one_other, &mut inner, outer, expected.lets_in_other_port);
    let from_other_address = connects(&mut two, &mut inner, outer, expected.lets_in_other_address);
    // A third port: the connections above may hold the endpoints that they have.
    let mut two = world.tcp("two", 5102).unwrap();
    let other = connected(&mut inner, &mut two, address(world, "two", 5102));
    Behaviour {
        same_port_to_all: other == outer,
        lets_in_other_port: from_other_port,
        lets_in_other_address: from_other_address,
    }
}

fn connects(from: &mut Socket, to: &mut Socket, at: SocketAddr, expected: bool) -> bool {
    std::thread::scope(|s| {
        let accepted = s.spawn(|| to.accept(patience(expected)).unwrap());
        let connected = from.connect(at, patience(expected)).unwrap();
        assert_eq!(accepted.join().unwrap().is_some(), connected.is_some());
        connected.is_some()
    })
}

fn connected(from: &mut Socket, to: &mut Socket, at: SocketAddr) -> SocketAddr {
    std::thread::scope(|s| {
        let accepted = s.spawn(|| to.accept(SOON).unwrap());
        let own = from.connect(at, SOON).unwrap().expect("a connection out");
        assert_eq!(accepted.join().unwrap(), Some(own));
        own
    })
}

#[test]
fn each_kind_maps_and_filters_as_its_name_says() {
    let kinds = [
        (Nat::FullCone, true, true, true),
        (Nat::AddressRestricted, true, true, false),
        (Nat::PortRestricted, true, false, false),
        (Nat::Symmetric, false, false, false),
        (Nat::Masquerade, true, false, false),
    ];
    let spec = kinds.iter().fold(public("kinds"), |s, (kind, ..)| with_site(s, kind.as_str(), *kind));
    let world = World::up(&spec).unwrap();
    world.check_closed().unwrap();
    for (kind, same_port_to_all, lets_in_other_port, lets_in_other_address) in kinds {
        let expected = Behaviour { same_port_to_all, lets_in_other_port, lets_in_other_address };
        let node = format!("{}-a", kind.as_str());
        assert_eq!(udp_behaviour(&world, &node, &expected), expected, "UDP, {kind:?}");
        assert_eq!(tcp_behaviour(&world, &node, &expected), expected, "TCP, {kind:?}");
        ping(&world, &node, "one");
    }
}

fn ping(world: &World, from: &str, to: &str) {
    let to = world.node(to).unwrap().address().to_string();
    // Debian's own, or none: an echo is a convenience of the lab.
    let output = world.node(from).unwrap().exec(&[
        "sh",
        "-c",
        &format!("command -v ping >/dev/null || exit 0; ping -c 1 -W 5 {to}"),
    ]);
    assert!(output.unwrap().ok(), "{from} pings {to}");
}

/// Two sides that send to each other's outer address at once, as hole punching does: whether both hear each other.
fn punches(world: &World, a: &str, b: &str, expected: bool) -> bool {
    let (mut a, mut b) = (world.udp(a, 4000).unwrap(), world.udp(b, 4000).unwrap());
    let mut one = world.udp("one", 5000).unwrap();
    let rendezvous = address(world, "one", 5000);
    let (outer_a, outer_b) = (seen(&mut a, &mut one, rendezvous), seen(&mut b, &mut one, rendezvous));
    let (mut heard_a, mut heard_b) = (None, None);
    let deadline = Instant::now() + if expected { 2 * SOON } else { 5 * NEVER };
    while Instant::now() < deadline && (heard_a.is_none() || heard_b.is_none()) {
        // Each answers to where it hears the other from, once it does.
        a.send(heard_a.unwrap_or(outer_b), "punch").unwrap();
        b.send(heard_b.unwrap_or(outer_a), "punch").unwrap();
        heard_a = a.receive(Duration::from_millis(30)).unwrap().map(|(from, _)| from).or(heard_a);
        heard_b = b.receive(Duration::from_millis(30)).unwrap().map(|(from, _)| from).or(heard_b);
    }
    heard_a.is_some() && heard_b.is_some()
}

#[test]
fn which_pairs_can_be_punched_is_what_the_theory_says() {
    use Nat::{AddressRestricted, FullCone, Masquerade, PortRestricted, Symmetric};
    let kinds = [FullCone, AddressRestricted, PortRestricted, Symmetric, Masquerade];
    // Twice each, with the same prefix everywhere.
    let spec = kinds.iter().fold(public("punch"), |s, kind| {
        let s = with_site(s, kind.as_str(), *kind);
        with_site(s, &format!("{}2", kind.as_str()), *kind)
    });
    let world = World::up(&spec).unwrap();
    for (x, y, works) in [
        (PortRestricted, PortRestricted, true),
        (FullCone, Symmetric, true),
        (AddressRestricted, Symmetric, true),
        (PortRestricted, Symmetric, false),
        (Symmetric, Symmetric, false),
        (Masquerade, Masquerade, true),
        (PortRestricted, Masquerade, true),
    ] {
        let (a, b) = (format!("{}-a", x.as_str()), format!("{}2-a", y.as_str()));
        assert_eq!(punches(&world, &a, &b, works), works, "{x:?} and {y:?}");
    }
}

#[test]
fn hairpinning_works_where_it_is_switched_on() {
    let sites = [
        ("off", NatSpec::from(Nat::FullCone), false),
        ("open", NatSpec::from(Nat::FullCone).hairpin(), true),
        ("filtered", NatSpec::from(Nat::PortRestricted).hairpin(), false),
    ];
    let spec = sites.iter().fold(public("hairpin"), |s, (name, nat, _)| with_site(s, name, *nat));
    let world = World::up(&spec).unwrap();
    for (site, nat, works) in sites {
        let (node_a, node_b) = (format!("{site}-a"), format!("{site}-b"));
        let (mut a, mut b) = (world.udp(&node_a, 4000).unwrap(), world.udp(&node_b, 4000).unwrap());
        let mut one = world.udp("one", 5000).unwrap();
        let outer_a = seen(&mut a, &mut one, address(&world, "one", 5000));
        let outer_b = seen(&mut b, &mut one, address(&world, "one", 5000));
        b.send(outer_a, "probe").unwrap();
        let got = a.receive(patience(works)).unwrap();
        // Through the router, it comes from the router.
        assert_eq!(got, works.then(|| (outer_b, "probe".to_owned())), "{nat:?}");
        // On the LAN itself they always reach each other.
        reaches(&mut b, &mut a, address(&world, &node_a, 4000));
        if nat.hairpin {
            // Once both have called each other the filter of any kind is open.
            a.send(outer_b, "open").unwrap();
            assert!(b.receive(SOON).unwrap().is_some());
            reaches(&mut b, &mut a, outer_a);
        }
    }
}

#[test]
fn a_mapping_that_idles_is_gone() {
    let nat = NatSpec::from(Nat::FullCone).udp_timeout_ms(3_000);
    let world = World::up(&with_site(public("timeout"), "shop", nat)).unwrap();
    let (mut a, mut one) = (world.udp("shop-a", 4000).unwrap(), world.udp("one", 5000).unwrap());
    let outer = seen(&mut a, &mut one, address(&world, "one", 5000));
    reaches(&mut one, &mut a, outer);
    // What comes in does not keep it: it ends though it is used.
    let deadline = Instant::now() + Duration::from_secs(20);
    while passes(&mut one, &mut a, outer, false) {
        assert!(Instant::now() < deadline, "the mapping lives on");
        std::thread::sleep(Duration::from_millis(50));
    }
    seen(&mut a, &mut one, address(&world, "one", 5000));
}

#[test]
fn behind_a_carrier_two_translations_add_up() {
    let spec = Spec::named("carrier")
        .site("carrier", "100.64.0.0/24".parse().unwrap(), NatSpec::from(Nat::PortRestricted))
        .site("home", "192.168.1.0/24".parse().unwrap(), Nat::FullCone)
        .site("shop", "192.168.1.0/24".parse().unwrap(), Nat::PortRestricted)
        .site_with("home", |s| s.behind = Some("carrier".to_owned()))
        .site_with("shop", |s| s.behind = Some("carrier".to_owned()))
        .node("a", Some("home"), None)
        .node("b", Some("shop"), None)
        .node("one", None, None)
        .node("two", None, None);
    let options = Options { unprivileged: true, ..Options::default() };
    let world = World::up_with(&spec, options).unwrap();
    world.check_closed().unwrap();
    let outer = world.place("carrier").unwrap().address();
    assert_eq!(world.node("a").unwrap().public_address(), outer);
    let (mut a, mut b) = (world.udp("a", 4000).unwrap(), world.udp("b", 4000).unwrap());
    let (mut one, mut two) = (world.udp("one", 5000).unwrap(), world.udp("two", 5000).unwrap());
    let at_a = seen(&mut a, &mut one, address(&world, "one", 5000));
    let at_b = seen(&mut b, &mut one, address(&world, "one", 5000));
    assert_eq!((at_a.ip(), at_b.ip()), (outer, outer));
    assert_ne!(at_a, at_b, "the carrier keeps them apart");
    lost(&mut two, &mut a, at_a); // the carrier filters though the home router would not
    lost(&mut b, &mut a, at_a); // no hairpin at the carrier
    // On the carrier's own network they meet.
    let inside = SocketAddr::new(world.place("home").unwrap().address(), 4000);
    reaches(&mut b, &mut a, inside);
    // TCP all the way out.
    let (mut from, mut to) = (world.tcp("a", 4100).unwrap(), world.tcp("one", 5100).unwrap());
    assert_eq!(connected(&mut from, &mut to, address(&world, "one", 5100)).ip(), outer);
}

#[test]
fn what_a_router_does_not_let_out_stays_inside() {
    let limits = [
        (Egress::Any, true, true, true),
        (Egress::NoUdp, false, true, true),
        (Egress::Tcp443, false, false, true),
        (Egress::Proxy, false, false, false),
    ];
    let name = |egress: Egress, nat: Nat| format!("{}-{}", egress.as_str(), nat.as_str());
    let mut spec = public("egress");
    for (egress, ..) in limits {
        for nat in [Nat::PortRestricted, Nat::Masquerade] {
            spec =
                with_site(spec, &name(egress, nat), nat).site_with(&name(egress, nat), |s| s.egress = egress);
        }
    }
    let world = World::up(&spec).unwrap();
    let mut one = world.udp("one", 5000).unwrap();
    let (mut plain, mut https) = (world.tcp("one", 5100).unwrap(), world.tcp("one", 443).unwrap());
    for (egress, lets_udp, lets_tcp, lets_https) in limits {
        for nat in [Nat::PortRestricted, Nat::Masquerade] {
            let site = name(egress, nat);
            let node = format!("{site}-a");
            let mut a = world.udp(&node, 4000).unwrap();
            assert_eq!(passes(&mut a, &mut one, address(&world, "one", 5000), lets_udp), lets_udp, "{site}");
            let mut from = world.tcp(&node, 4100).unwrap();
            for (port, to, expected) in [(5100, &mut plain, lets_tcp), (443, &mut https, lets_https)] {
                assert_eq!(
                    connects(&mut from, to, address(&world, "one", port), expected),
                    expected,
                    "{site} {port}"
                );
            }
            if egress == Egress::Proxy {
                through_the_proxy(&world, &site, &mut plain);
            }
        }
    }
}

/// The way that is left. The far side says who connected: the router.
fn through_the_proxy(world: &World, site: &str, to: &mut Socket) {
    let target = address(world, "one", 5100);
    let script = format!(
        "exec 3<>/dev/tcp/192.168.1.1/3128; printf 'CONNECT {target} HTTP/1.1\\r\\nHost: {target}\\r\\n\\r\\n' >&3; \
         timeout 10 head -c 50 <&3"
    );
    let said = std::thread::scope(|s| {
        let node = world.node(&format!("{site}-a")).unwrap();
        let said = s.spawn(move || node.exec(&["bash", "-c", &script]).unwrap());
        let peer = to.accept(SOON).unwrap().expect("a connection of the proxy");
        assert_eq!(peer.ip(), world.place(site).unwrap().address());
        said.join().unwrap().stdout
    });
    assert!(said.starts_with("HTTP/1.1 200") && said.contains("\r\n\r\n203.0.113."), "{said}");
}

#[test]
fn a_site_with_ipv6_only_reaches_the_public_segment_and_is_not_reached_uninvited() {
    let spec = with_site(with_site(public("six"), "six", Nat::PortRestricted), "dual", Nat::FullCone)
        .site_with("six", |s| s.ipv6 = Ipv6::Only)
        .site_with("dual", |s| s.ipv6 = Ipv6::Dual);
    let world = World::up(&spec).unwrap();
    world.check_closed().unwrap();
    let socket = |node: &str| world.udp(node, 4000).unwrap();
    let (mut one, mut a, mut d) = (socket("one"), socket("six-a"), socket("dual-a"));
    let six = |node: &str| SocketAddr::new(world.node(node).unwrap().address6().unwrap(), 4000);
    assert!(world.node("six-a").unwrap().address().is_ipv6());
    assert!(world.node("dual-a").unwrap().address().is_ipv4());
    lost(&mut one, &mut a, six("six-a")); // nobody was invited
    lost(&mut d, &mut a, six("six-a")); // nobody was invited
    // IPv6 is not translated, and answers come in.
    assert_eq!(seen(&mut a, &mut one, six("one")), six("six-a"));
    reaches(&mut one, &mut a, six("six-a"));
    lost(&mut a, &mut one, address(&world, "one", 4000)); // there is no IPv4
    assert_eq!(seen(&mut d, &mut one, six("one")), six("dual-a"));
    assert_eq!(
        seen(&mut d, &mut one, address(&world, "one", 4000)).ip(),
        world.place("dual").unwrap().address()
    );
}

#[test]
fn a_flapping_link_comes_and_goes() {
    let flap = mesh_testkit::lab::Flap { up_ms: 400, down_ms: 400 };
    let spec =
        with_site(public("flap"), "shop", Nat::PortRestricted).site_with("shop", |s| s.flap = Some(flap));
    let world = World::up(&spec).unwrap();
    let (mut a, mut one) = (world.udp("shop-a", 4000).unwrap(), world.udp("one", 5000).unwrap());
    let (mut arrived, mut changes, mut last) = (0, 0, None);
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline && changes < 4 {
        a.send(address(&world, "one", 5000), "tick").unwrap();
        let now = one.receive(Duration::from_millis(40)).unwrap().is_some();
        arrived += u32::from(now);
        changes += u32::from(last.is_some_and(|l| l != now));
        last = Some(now);
    }
    assert!(changes >= 4 && arrived > 0, "{changes} changes, {arrived} packets");
}

/// Every world of the examples is usable; `make lab` brings one up, this test the rest of the special ones.
#[test]
fn the_worlds_of_the_examples_come_up() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/worlds");
    let lab = bins::find("lab").unwrap();
    let mut checked = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let output = std::process::Command::new(&lab).args(["up", "--check"]).arg(&path).output().unwrap();
        assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
        let spec = Spec::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert_eq!(spec.name, name, "the world is called as its file");
        let world = World::up(&spec).unwrap_or_else(|e| panic!("{name}: {}", e.full()));
        world.check_closed().unwrap();
        checked += 1;
        if spec.sites["shop"].egress == Egress::Proxy {
            continue;
        }
        // TCP to port 443 is what all of them let out, one family or the other.
        let mut to = world.udp("cloud", 4000).unwrap();
        let mut far = world.tcp("cloud", 443).unwrap();
        if spec.sites["shop"].ipv6 == Ipv6::Only {
            let mut from = world.udp("edge-a", 4000).unwrap();
            let cloud = world.node("cloud").unwrap().address6().unwrap();
            seen(&mut from, &mut to, SocketAddr::new(cloud, 4000));
        } else {
            let mut from = world.tcp("edge-a", 4100).unwrap();
            connected(&mut from, &mut far, address(&world, "cloud", 443));
        }
    }
    assert!(checked >= 14, "{checked} worlds");
}
