//! In private network namespaces: each test runs itself again under `unshare`.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Instant;

use mesh_api::{Resource, model};
use mesh_core::Change;
use mesh_net::connect::{ConnectOptions, connect};
use mesh_net::original_dst::original_dst;
use node_rt::{Drain, DrainConfig, Readiness, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::config::Config;

mod datagrams;
mod pods;

const INSIDE: &str = "SELVAGE_TEST_NAMESPACE";
const VIP: &str = "10.96.0.10:80";

/// Runs `body` in a network namespace of its own, as root in it.
fn in_namespace(name: &str, flags: &str, body: impl AsyncFnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        sh("ip link set lo up; ip address add 10.9.9.9/32 dev lo; ip route replace default dev lo src 10.9.9.9").ok();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(body());
    }
    let possible = Command::new("unshare").args([flags, "true"]).output();
    if !possible.is_ok_and(|output| output.status.success()) || which("nft").is_none() {
        eprintln!("SKIPPED {name}: needs user and network namespaces (unshare {flags}) and nft");
        return;
    }
    let test = format!("capture::tests::{name}");
    let output = Command::new("unshare")
        .arg(flags)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    for line in text.lines().filter(|line| line.starts_with("figure:")) {
        println!("{line}");
    }
}

fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|p| p.exists())
}

fn sh(script: &str) -> Result<String, String> {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

struct World {
    shared: Arc<Shared>,
    tasks: Tasks,
    options: CaptureOptions,
    outbound: TcpListener,
}

impl World {
    async fn new() -> Self {
        let outbound = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let options = CaptureOptions {
            nft: which("nft").unwrap(),
            ..CaptureOptions::new(outbound.local_addr().unwrap())
        };
        Self {
            shared: Shared::new(
                Arc::new(Config { node: "edge-a".to_owned(), ..Config::default() }),
                Registry::new(),
            ),
            tasks: Tasks::new(Drain::new()),
            options,
            outbound,
        }
    }

    fn vip(&self, name: &str, vip: &str) {
        let service = model::Service {
            host: format!("{name}.default.svc.cluster.local"),
            namespace: "default".into(),
            name: name.into(),
            kind: model::service::Kind::ClusterIp as i32,
            vips: vec![vip.into()],
            ports: vec![model::Port {
                number: 80,
                name: "http".into(),
                protocol: model::Protocol::Http as i32,
            }],
            ..Default::default()
        };
        assert_eq!(self.shared.apply(vec![Change::Set(Resource::Service(service))]).rejected.len(), 0);
    }

    async fn start(&self) -> Capture {
        start(&self.shared, self.options.clone(), &self.tasks).await.unwrap()
    }

    /// Whether a connection to `to` arrives at us within a moment, and what it was for. What does
    /// not is no proof on a slow machine: use it for "not", or in a loop.
    async fn captured(&self, to: &str) -> Option<SocketAddr> {
        self.captured_within(to, Duration::from_millis(300)).await
    }

    /// As [`World::captured`], where the answer has to be yes.
    async fn arrives(&self, to: &str) -> Option<SocketAddr> {
        self.captured_within(to, Duration::from_secs(10)).await
    }

    async fn captured_within(&self, to: &str, wait: Duration) -> Option<SocketAddr> {
        let options = ConnectOptions { timeout: Some(wait), ..ConnectOptions::default() };
        let accept = tokio::time::timeout(wait, self.outbound.accept());
        let (client, accepted) = tokio::join!(connect(to.parse().unwrap(), &options), accept);
        let (stream, _) = accepted.ok()?.unwrap();
        client.unwrap();
        original_dst(&stream)
    }

    /// How long it takes until connections are captured (or are not any more).
    async fn until(&self, to: &str, captured: bool) -> Duration {
        let start = Instant::now();
        while self.captured(to).await.is_some() != captured {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "capture of {to} is not {captured} after 20 s"
            );
        }
        start.elapsed()
    }

    async fn drain(&self) {
        self.tasks.drain().begin(Reason::Requested("test"));
        let report = self.tasks.drain().run(DrainConfig::default(), &Readiness::new(), &self.tasks).await;
        assert_eq!(report.stuck.len(), 0);
    }
}

#[test]
fn connections_to_services_arrive_with_their_destination_and_marked_ones_pass() {
    in_namespace(
        "connections_to_services_arrive_with_their_destination_and_marked_ones_pass",
        "-Urn",
        async || {
            let world = World::new().await;
            world.vip("reviews", "10.96.0.10");
            probe(&world.options.nft).await.unwrap();
            assert_eq!(sh("nft list ruleset").unwrap(), "");
            let _capture = world.start().await;
            assert_eq!(world.arrives(VIP).await, Some(VIP.parse().unwrap()));
            // An address that is no service's is left alone, and so are our own sockets.
            sh("ip address add 10.96.0.10/32 dev lo; ip address add 10.96.0.11/32 dev lo").unwrap();
            let real = TcpListener::bind("10.96.0.10:80").await.unwrap();
            let other = TcpListener::bind("10.96.0.11:80").await.unwrap();
            let marked = ConnectOptions { mark: Some(world.options.mark), ..ConnectOptions::default() };
            connect(VIP.parse().unwrap(), &marked).await.unwrap();
            real.accept().await.unwrap();
            connect("10.96.0.11:80".parse().unwrap(), &ConnectOptions::default()).await.unwrap();
            other.accept().await.unwrap();
            assert_eq!(world.arrives(VIP).await, Some(VIP.parse().unwrap()));
        },
    );
}

#[test]
fn ipv6_is_captured_where_there_is_a_listener_for_it() {
    in_namespace("ipv6_is_captured_where_there_is_a_listener_for_it", "-Urn", async || {
        sh("ip address add fd09::9/128 dev lo nodad; ip route add default dev lo src fd09::9").unwrap();
        let mut world = World::new().await;
        world.outbound = mesh_net::listen::tcp_reuseport("[::]:0".parse().unwrap(), false).unwrap();
        let nft = world.options.nft.clone();
        world.options = CaptureOptions { nft, ..CaptureOptions::new(world.outbound.local_addr().unwrap()) };
        world.vip("reviews", "fd00::10");
        world.vip("ratings", "10.96.0.10");
        let _capture = world.start().await;
        assert_eq!(world.arrives("[fd00::10]:80").await, Some("[fd00::10]:80".parse().unwrap()));
        assert_eq!(world.captured(VIP).await, None);
        world.vip("reviews", "fd00::11");
        world.until("[fd00::11]:80", true).await;
    });
}

#[test]
fn the_set_follows_the_tables() {
    in_namespace("the_set_follows_the_tables", "-Urn", async || {
        let world = World::new().await;
        let _capture = world.start().await;
        assert_eq!(world.captured(VIP).await, None);
        world.vip("reviews", "10.96.0.10");
        world.until(VIP, true).await;
        world.vip("reviews", "10.96.0.20");
        world.until("10.96.0.20:80", true).await;
        assert_eq!(world.captured(VIP).await, None);
        world.shared.apply(vec![Change::Remove(
            mesh_api::ResourceType::Service,
            "reviews.default.svc.cluster.local".into(),
        )]);
        world.until("10.96.0.20:80", false).await;
    });
}

#[test]
fn what_others_break_is_repaired_in_two_seconds() {
    in_namespace("what_others_break_is_repaired_in_two_seconds", "-Urn", async || {
        let world = World::new().await;
        world.vip("reviews", "10.96.0.10");
        let _capture = world.start().await;
        for breakage in [
            "nft flush ruleset",
            "nft delete table inet selvage",
            "nft flush set inet selvage vip4",
            "nft flush chain inet selvage output",
            "nft delete element inet selvage vip4 { 10.96.0.10 }",
        ] {
            sh(breakage).unwrap();
            let took = world.until(VIP, true).await;
            println!("\nfigure: after `{breakage}` captured again in {took:?}");
            assert!(took < Duration::from_secs(2), "{breakage}: {took:?}");
            // Let the pause after a repair pass, so that each one is measured from rest.
            tokio::time::sleep(LOOK * 2).await;
        }
        // What is added is taken out again.
        sh("nft add element inet selvage vip4 { 10.96.0.99 }").unwrap();
        world.until("10.96.0.99:80", false).await;
        // Changes elsewhere are none of our business.
        let repaired = || {
            world
                .shared
                .metrics
                .gather()
                .iter()
                .find(|f| f.name().ends_with("repaired_total"))
                .unwrap()
                .get_metric()[0]
                .get_counter()
                .get_value()
        };
        tokio::time::sleep(LOOK * 2).await;
        let before = repaired();
        sh("nft add table inet other").unwrap();
        tokio::time::sleep(LOOK * 2).await;
        assert_eq!((before, repaired()), (6.0, 6.0));
        assert!(sh("nft list tables").unwrap().contains("other"));
    });
}

#[test]
fn five_thousand_services_take_less_than_two_seconds() {
    in_namespace("five_thousand_services_take_less_than_two_seconds", "-Urn", async || {
        let world = World::new().await;
        let name = |n: u32| format!("svc-{n}");
        let vip = |n: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + n).to_string();
        for n in 1..=5000 {
            world.vip(&name(n), &vip(n));
        }
        let start = Instant::now();
        let _capture = world.start().await;
        let full = start.elapsed();
        assert!(world.arrives(&format!("{}:80", vip(5000))).await.is_some());
        let start = Instant::now();
        for n in 5001..=10_000 {
            world.vip(&name(n), &vip(n));
        }
        let applied = start.elapsed();
        let added = world.until(&format!("{}:80", vip(10_000)), true).await;
        let start = Instant::now();
        world.vip("one-more", "10.200.0.1");
        world.until("10.200.0.1:80", true).await;
        let one = start.elapsed();
        println!(
            "\nfigure: 5,000 addresses written in {full:?}; 5,000 more in {added:?} (tables took {applied:?}); one more in {one:?}"
        );
        assert!(
            full < Duration::from_secs(2) && added < Duration::from_secs(2) && one < Duration::from_secs(2)
        );
    });
}

#[test]
fn captured_connections_outlive_repairs_and_the_release() {
    in_namespace("captured_connections_outlive_repairs_and_the_release", "-Urn", async || {
        let world = World::new().await;
        world.vip("reviews", "10.96.0.10");
        let mut capture = world.start().await;
        let options = ConnectOptions::default();
        let (client, accepted) =
            tokio::join!(connect(VIP.parse().unwrap(), &options), world.outbound.accept());
        let (mut client, (mut server, _)) = (client.unwrap(), accepted.unwrap());
        let mut talk = async |when: &str| {
            let mut byte = [0];
            let exchange = async {
                client.write_all(b"q").await.unwrap();
                server.read_exact(&mut byte).await.unwrap();
                server.write_all(b"a").await.unwrap();
                client.read_exact(&mut byte).await.unwrap();
            };
            let done = tokio::time::timeout(Duration::from_secs(5), exchange).await;
            assert!(done.is_ok(), "the connection is dead {when}");
        };
        talk("before anything").await;
        for breakage in
            ["nft flush set inet selvage vip4", "nft flush chain inet selvage output", "nft flush ruleset"]
        {
            sh(breakage).unwrap();
            world.until(VIP, true).await;
            talk("after a repair").await;
        }
        // A connection in flight keeps the drain, and is served to its end.
        let guard = world.tasks.drain().guard();
        let tasks = world.tasks.clone();
        let drain = world.drain();
        let finish = async {
            capture.removed().await;
            talk("after the release").await;
            tasks.drain().stop_accepting().await;
            talk("after listeners have stopped").await;
            drop(guard);
        };
        tokio::join!(drain, finish);
        assert_eq!(sh("nft list ruleset").unwrap(), "");
    });
}

#[test]
fn the_rules_go_with_the_drain_unless_a_successor_keeps_them() {
    in_namespace("the_rules_go_with_the_drain_unless_a_successor_keeps_them", "-Urn", async || {
        let world = World::new().await;
        world.vip("reviews", "10.96.0.10");
        let mut capture = world.start().await;
        world.drain().await;
        capture.removed().await;
        assert_eq!(sh("nft list ruleset").unwrap(), "");

        let world = World::new().await;
        world.vip("reviews", "10.96.0.10");
        let mut capture = world.start().await;
        // A second proxy in the same namespace has a table of its own.
        let mut second = World::new().await;
        second.options.table = "selvage2".into();
        second.start().await;
        capture.keep();
        world.drain().await;
        capture.removed().await;
        let left = sh("nft list tables").unwrap();
        assert!(left.contains("inet selvage\n") && left.contains("inet selvage2\n"), "{left}");
        // A drain that is cut short removes them all the same.
        let hurried = World::new().await;
        hurried.start().await;
        hurried.tasks.drain().force();
        let config = DrainConfig { drain_for: Duration::ZERO, ..DrainConfig::default() };
        hurried.tasks.drain().run(config, &Readiness::new(), &hurried.tasks).await;
        assert!(!sh("nft list tables").unwrap().contains("inet selvage\n"));
        // The successor takes the same table over.
        let successor = World {
            tasks: Tasks::new(Drain::new()),
            shared: Shared::new(
                Arc::new(Config { node: "edge-a".to_owned(), ..Config::default() }),
                Registry::new(),
            ),
            ..world
        };
        successor.vip("reviews", "10.96.0.10");
        successor.start().await;
        assert!(successor.arrives(VIP).await.is_some());
    });
}

#[test]
fn without_the_capability_the_error_says_what_to_do() {
    // A user namespace of its own, but the network of the host: not permitted, and nothing touched.
    in_namespace("without_the_capability_the_error_says_what_to_do", "-Ur", async || {
        let world = World::new().await;
        let error = start(&world.shared, world.options.clone(), &world.tasks).await.unwrap_err();
        let text = report(&error);
        assert!(text.contains("NET_ADMIN") && text.contains("SOCKS5"), "{text}");
        let shared = Shared::new(Arc::new(Config::default()), Registry::new());
        let options = CaptureOptions { nft: "/nonexistent/nft".into(), ..world.options.clone() };
        let text = report(&start(&shared, options, &world.tasks).await.unwrap_err());
        assert!(text.contains("apt-get install nftables"), "{text}");
        let error = ensure_address("169.254.96.16".parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("NET_ADMIN"), "{error}");
        // The proxy then goes on with its explicit mode, if there is one.
        let mut config = Config::default();
        config.capture.nft.clone_from(&world.options.nft);
        let permitted = crate::app::as_permitted(&config).await;
        assert!(!permitted.capture.enabled && !permitted.dns.enabled);
        config.listen.proxy = None;
        assert!(crate::app::as_permitted(&config).await.capture.enabled);
    });
}

#[test]
fn the_address_of_dns_is_added_once_and_taken_away() {
    in_namespace("the_address_of_dns_is_added_once_and_taken_away", "-Urn", async || {
        let address: IpAddr = "169.254.96.16".parse().unwrap();
        let added = ensure_address(address).await.unwrap();
        tokio::net::UdpSocket::bind((address, 53)).await.unwrap();
        // A successor knows whose it is, and takes it away when it is the last.
        let again = ensure_address(address).await.unwrap();
        assert_eq!(again, added);
        again.remove().await;
        assert!(tokio::net::UdpSocket::bind((address, 53)).await.is_err());
        // What an operator has added stays.
        let other: IpAddr = "169.254.96.17".parse().unwrap();
        let args = ["address", "add", "169.254.96.17/32", "dev", "lo"];
        assert!(Command::new("ip").args(args).status().unwrap().success());
        ensure_address(other).await.unwrap().remove().await;
        tokio::net::UdpSocket::bind((other, 53)).await.unwrap();
        let six: IpAddr = "fd00:96::16".parse().unwrap();
        let added = ensure_address(six).await.unwrap();
        tokio::net::UdpSocket::bind((six, 53)).await.unwrap();
        let again = ensure_address(six).await.unwrap();
        assert_eq!(again, added);
        again.remove().await;
        assert!(tokio::net::UdpSocket::bind((six, 53)).await.is_err());
        let args = ["address", "add", "fd00:96::17/128", "dev", "lo", "nodad"];
        assert!(Command::new("ip").args(args).status().unwrap().success());
        let other: IpAddr = "fd00:96::17".parse().unwrap();
        ensure_address(other).await.unwrap().remove().await;
        tokio::net::UdpSocket::bind((other, 53)).await.unwrap();
    });
}

/// A change that comes after the first rules are written and before the first wait for changes.
#[test]
fn a_change_during_the_start_is_not_lost() {
    in_namespace("a_change_during_the_start_is_not_lost", "-Urn", async || {
        let mut world = World::new().await;
        world.vip("a", "10.96.0.10");
        let dir = tempfile::tempdir().unwrap();
        // The first look at the rules, which is the last step of the start, waits for us.
        let script = format!(
            "#!/bin/sh\ncd {dir}\ncase \"$*\" in *list*)\n  if mkdir looking 2>/dev/null; then\n    \
             while [ ! -e go ]; do sleep 0.02; done\n  fi;;\nesac\nexec {nft} \"$@\"\n",
            dir = dir.path().display(),
            nft = world.options.nft.display(),
        );
        world.options.nft = dir.path().join("nft");
        std::fs::write(&world.options.nft, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&world.options.nft, mode).unwrap();
        let change = async {
            let start = Instant::now();
            while !dir.path().join("looking").exists() {
                assert!(start.elapsed() < Duration::from_secs(20));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            world.vip("b", "10.96.0.11");
            std::fs::write(dir.path().join("go"), "").unwrap();
        };
        let (_capture, ()) = tokio::join!(world.start(), change);
        assert_eq!(world.arrives("10.96.0.10:80").await, Some("10.96.0.10:80".parse().unwrap()));
        world.until("10.96.0.11:80", true).await;
        world.drain().await;
    });
}
