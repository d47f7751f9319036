//! Worlds are closed, faults bite and heal, and nothing is left behind.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::{
    net::{IpAddr, TcpListener, UdpSocket},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use mesh_testkit::{
    bins,
    echo::load::Report,
    lab::{LabError, Nat, Place, Proc, Spec, World, state, world::Options},
};

fn two_sites(name: &str) -> Spec {
    let mut spec = Spec::named(name)
        .site("shop", "192.168.1.0/24".parse().unwrap(), Nat::Masquerade)
        .site("mast", "198.51.100.128/25".parse().unwrap(), Nat::None)
        .node("cloud", None, None)
        .node("a", Some("shop"), Some("10.1.1.0/24".parse().unwrap()))
        .node("a2", Some("shop"), None)
        .node("b", Some("mast"), Some("10.1.2.0/24".parse().unwrap()))
        .pod("web", "a")
        .pod("web2", "a")
        .pod("db", "b");
    spec.sites.get_mut("shop").unwrap().forward =
        vec![serde_json::from_value(serde_json::json!({ "port": 15008, "to": "a" })).unwrap()];
    spec
}

fn serve(place: Place<'_>, args: &[&str]) -> Proc {
    let mut process =
        place.spawn("echo", Command::new(bins::find("echo").unwrap()).arg("serve").args(args)).unwrap();
    process.wait_for_log("echo ready", Duration::from_secs(10)).unwrap();
    process
}

fn call(place: Place<'_>, url: &str, args: &[&str]) -> Report {
    let echo = bins::find("echo").unwrap();
    let mut argv = vec![echo.to_str().unwrap(), "call", url, "-o", "json", "--timeout", "1"];
    argv.extend(args);
    let output = place.exec(&argv).unwrap();
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

#[test]
fn packets_go_where_the_topology_says_and_nowhere_else() {
    let world = World::up(&two_sites("paths")).unwrap();
    world.check_closed().unwrap();
    let (cloud, a, b, web) = (
        world.node("cloud").unwrap(),
        world.node("a").unwrap(),
        world.node("b").unwrap(),
        world.pod("web").unwrap(),
    );
    let _servers = [
        serve(cloud, &["--name", "cloud"]),
        serve(b, &["--name", "b"]),
        serve(a, &["--name", "a", "--http", "15008", "--http", "8080"]),
        serve(world.pod("web2").unwrap(), &["--name", "web2"]),
    ];
    let ok = |from: Place<'_>, to: IpAddr, port: u16| {
        call(from, &format!("http://{to}:{port}/"), &[]).by_status.get(&200) == Some(&1)
    };
    assert!(ok(a, cloud.address(), 8080), "site to public");
    assert!(ok(a, b.address(), 8080), "site to a routed site");
    assert!(ok(b, a.public_address(), 15008), "through a forwarded port");
    assert!(ok(world.node("a2").unwrap(), a.address(), 8080), "inside a site");
    assert!(ok(web, world.pod("web2").unwrap().address(), 8080), "pod to pod on a node");
    assert!(ok(web, a.address(), 8080), "pod to its node");
    assert!(!ok(b, a.public_address(), 8080), "a port that is not forwarded");
    assert!(!ok(cloud, a.address(), 8080), "a private address from outside");
    assert!(!ok(b, web.address(), 8080), "a pod from another node");
    // Behind NAT the server sees the router, without it the node.
    let seen = |from: Place<'_>| call(from, &format!("http://{}:8080/", cloud.address()), &[]).last_body;
    assert!(seen(a).contains(&format!("\"peer\":\"{}:", a.public_address())));
    assert!(seen(b).contains(&format!("\"peer\":\"{}:", b.address())));
}

#[test]
fn no_packet_leaves_the_world() {
    // Listeners in the machine's own network, on loopback and on its outward address.
    let outward = UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut targets = vec!["127.0.0.1".parse::<IpAddr>().unwrap()];
    if outward.connect("192.0.2.1:9").is_ok() {
        targets.push(outward.local_addr().unwrap().ip());
    }
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let receiver = UdpSocket::bind("0.0.0.0:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    receiver.set_nonblocking(true).unwrap();
    let world = World::up(&two_sites("closed")).unwrap();
    for name in ["cloud", "a", "web", "internet", "mast"] {
        let place = world.place(name).unwrap();
        for target in &targets {
            let tcp = format!("tcp://{target}:{}", listener.local_addr().unwrap().port());
            assert_eq!(call(place, &tcp, &[]).failed, 1, "{name} reached {tcp}");
            let udp = format!("udp://{target}:{}", receiver.local_addr().unwrap().port());
            assert_eq!(call(place, &udp, &[]).failed, 1, "{name} reached {udp}");
        }
    }
    assert!(listener.accept().is_err(), "a connection arrived");
    assert!(receiver.recv(&mut [0; 16]).is_err(), "a datagram arrived");
}

#[test]
fn cuts_loss_and_rate_bite_and_heal() {
    let world = World::up(&two_sites("faults")).unwrap();
    let (cloud, a) = (world.node("cloud").unwrap(), world.node("a").unwrap());
    let _servers = [
        serve(cloud, &[]),
        serve(world.node("b").unwrap(), &[]),
        serve(world.node("a2").unwrap(), &[]),
        serve(world.pod("web2").unwrap(), &[]),
    ];
    let reach = |from: &str, to: &str, args: &[&str]| {
        let to = world.place(to).unwrap().address();
        call(world.place(from).unwrap(), &format!("http://{to}:8080/"), args)
    };
    let ok = |from: &str, to: &str| reach(from, to, &["--timeout", "0.4"]).failed == 0;
    for (x, y, other) in
        [("a", "cloud", "b"), ("shop", "mast", "cloud"), ("a", "a2", "cloud"), ("web", "web2", "a2")]
    {
        let (from, to) = if x == "shop" { ("a", "b") } else { (x, y) };
        let from_other = if x == "web" { "a" } else { from };
        assert!(ok(from, to), "{from} reaches {to} before");
        world.cut(x, Some(y)).unwrap();
        assert!(!ok(from, to), "{from} is cut off {to}");
        assert!(ok(from_other, other), "{from_other} still reaches {other}");
        world.heal_one(x, Some(y)).unwrap();
        assert!(ok(from, to), "{from} reaches {to} again");
    }
    world.cut("cloud", None).unwrap();
    assert!(!ok("a", "cloud") && !ok("b", "cloud") && ok("a", "b"));
    world.heal().unwrap();
    assert!(world.faults().is_empty());

    world.loss("a", 50.0).unwrap();
    let _udp = serve(cloud, &["--udp", "9"]);
    let report = call(a, &format!("udp://{}:9", cloud.address()), &["--timeout", "0.02", "-n", "100"]);
    // Both ways at 50 %: a quarter comes back.
    assert!((55..=92).contains(&report.failed), "{report:?}");
    world.loss("a", 0.0).unwrap();
    assert_eq!(call(a, &format!("udp://{}:9", cloud.address()), &["-n", "50"]).failed, 0);

    world.rate("a", 2_000, 200).unwrap();
    let start = Instant::now();
    let body = reach("a", "cloud", &["--timeout", "10", "-H", "x-echo-bytes: 250000"]);
    assert_eq!(body.failed, 0, "{body:?}");
    assert!(start.elapsed() > Duration::from_millis(600), "2 Mbit at 2 Mbit/s took {:?}", start.elapsed());
    world.heal().unwrap();
    assert!(matches!(world.cut("nowhere", None), Err(LabError::NoSuchPlace { .. })));
}

#[test]
fn delay_makes_links_longer() {
    let world = World::up(&two_sites("delay")).unwrap();
    let _servers = [
        serve(world.node("cloud").unwrap(), &[]),
        serve(world.node("b").unwrap(), &[]),
        serve(world.node("a").unwrap(), &[]),
    ];
    let a = world.node("a").unwrap();
    // A kept connection: each call is one round trip.
    let millis = |to: &str| {
        let url = format!("http://{}:8080/", world.node(to).unwrap().address());
        let report = call(a, &url, &["-n", "10"]);
        assert_eq!(report.failed, 0, "{report:?}");
        report.latency_ms.p50
    };
    assert!(millis("cloud") < 30.0);
    world.delay("shop", 30).unwrap();
    world.check_closed().unwrap();
    assert!((60.0..120.0).contains(&millis("cloud")), "{}", millis("cloud"));
    // Two long links add up; the routed site's nodes are behind its link.
    world.delay("mast", 40).unwrap();
    assert!((140.0..220.0).contains(&millis("b")), "{}", millis("b"));
    world.delay("shop", 0).unwrap();
    assert!((80.0..140.0).contains(&millis("b")), "{}", millis("b"));
    world.heal().unwrap();
    assert!(millis("b") < 30.0);
    assert!(matches!(world.delay("a", 10), Err(LabError::Invalid(_))));
}

#[test]
fn a_world_without_root_works_the_same() {
    let options = Options { unprivileged: true, ..Options::default() };
    let world = World::up_with(&two_sites("user"), options).unwrap();
    world.check_closed().unwrap();
    let _server = serve(world.pod("web2").unwrap(), &["--name", "web2"]);
    let web = world.pod("web").unwrap();
    let report = call(web, &format!("http://{}:8080/x", world.pod("web2").unwrap().address()), &[]);
    assert_eq!(report.by_name.get("web2"), Some(&1), "{report:?}");
    let resolver = web.exec(&["cat", "/etc/resolv.conf"]).unwrap();
    assert!(resolver.stdout.contains("nameserver 169.254.96.16"), "{resolver:?}");
    assert!(resolver.stdout.contains("search default.svc.cluster.local"));
    world.cut("web", None).unwrap();
}

#[test]
fn processes_end_with_their_handle_and_with_the_world() {
    let world = World::up(&two_sites("procs")).unwrap();
    let cloud = world.node("cloud").unwrap();
    let alive = |pid: i32| std::path::Path::new(&format!("/proc/{pid}")).exists();
    let gone = |pid: i32| {
        let deadline = Instant::now() + Duration::from_secs(5);
        while alive(pid) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        !alive(pid)
    };
    let mut first = serve(cloud, &[]);
    let pid = first.pid().unwrap();
    assert!(alive(pid));
    assert!(first.stop(Duration::from_secs(5)).is_some_and(|s| s.success()), "SIGTERM is passed on");
    assert!(gone(pid));
    let second = serve(cloud, &[]);
    let pid = second.pid().unwrap();
    assert_eq!(cloud.kill_all(), 1);
    assert!(gone(pid));
    drop(second);
    // One that outlives its handle, and a grandchild that nobody waits for.
    let script = "sleep 1000 & echo $!; exec sleep 1000";
    let third = cloud.spawn("stray", Command::new("sh").args(["-c", script])).unwrap();
    let pid = third.pid().unwrap();
    third.detach();
    let dir = world.dir().to_owned();
    drop(world);
    assert!(gone(pid) && !dir.exists());
}

#[test]
fn a_world_ends_when_its_owner_is_killed() {
    let spec = serde_json::to_string(&two_sites("owner")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("world.json");
    std::fs::write(&file, spec).unwrap();
    let mut owner = Command::new(bins::find("lab").unwrap())
        .args(["up", "--foreground"])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mine = format!("owner-{}-", owner.id());
    let find = || state::all().into_iter().find(|(n, f)| n.starts_with(&mine) && f.alive());
    let until = |want: bool| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while find().is_some() != want && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        find().is_some() == want
    };
    let is_up = until(true);
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(is_up, "the world comes up");
    assert!(until(false), "the keeper sees that its owner is gone");
    // Its processes end after it; what one of them writes at its end is removed by the next run.
    let deadline = Instant::now() + Duration::from_secs(10);
    let left = || state::all().iter().any(|(n, _)| n.starts_with(&mine));
    while left() && Instant::now() < deadline {
        state::janitor();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!left(), "the janitor removes the folder");
}

#[test]
fn two_worlds_with_the_same_addresses_do_not_meet() {
    let (one, two) = (World::up(&two_sites("twin")).unwrap(), World::up(&two_sites("twin")).unwrap());
    let _server = serve(one.node("cloud").unwrap(), &["--name", "one"]);
    let url = format!("http://{}:8080/", one.node("cloud").unwrap().address());
    assert_eq!(call(one.node("a").unwrap(), &url, &[]).failed, 0);
    assert_eq!(call(two.node("a").unwrap(), &url, &[]).failed, 1);
    drop(one);
    two.check_closed().unwrap();
}

#[test]
fn a_world_that_cannot_be_built_leaves_nothing() {
    let spec = two_sites("bad").pod("stray", "nowhere");
    assert!(matches!(World::up(&spec), Err(LabError::Invalid(_))));
    assert!(!state::all().iter().any(|(n, _)| n.starts_with("bad-")));
}
