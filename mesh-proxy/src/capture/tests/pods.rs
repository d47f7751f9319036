//! Connections of pods, which come in by a link: captured, and kept until they end.

use std::{io::Read, net::TcpStream, os::fd::AsFd};

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, SockRef, Socket, Type};

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// A network namespace beside ours, with the address 10.1.0.7 and everything else behind us.
struct Pod(std::process::Child);

impl Pod {
    fn start() -> Self {
        let child = Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap();
        let id = child.id();
        let inside = |script: &str| format!("nsenter -t {id} -n sh -c '{script}'");
        // The namespace is there once the child has called unshare and become `sleep`.
        for _ in 0..200 {
            if std::fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.trim() == "sleep") {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        sh(&format!("ip link add v0 type veth peer name eth0 netns {id} && ip address add 10.1.0.1/24 dev v0 && ip link set v0 up")).unwrap();
        sh(&inside("ip link set lo up; ip address add 10.1.0.7/24 dev eth0; ip link set eth0 up; ip route add default via 10.1.0.1")).unwrap();
        Self(child)
    }

    /// A connection from inside, from a port of one's choice.
    fn connect(&self, port: u16, to: &str) -> std::thread::JoinHandle<(TcpStream, Duration)> {
        let (id, to) = (self.0.id(), to.parse::<SocketAddr>().unwrap());
        std::thread::spawn(move || {
            let namespace = std::fs::File::open(format!("/proc/{id}/ns/net")).unwrap();
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&SocketAddr::from(([10, 1, 0, 7], port)).into()).unwrap();
            let start = Instant::now();
            socket.connect_timeout(&to.into(), SOON).unwrap();
            (socket.into(), start.elapsed())
        })
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn world() -> World {
    let world = World::new().await;
    world.vip("reviews", "10.96.0.10");
    world.vip("ratings", "10.96.0.20");
    sh("echo 1 > /proc/sys/net/ipv4/ip_forward").unwrap();
    world
}

#[test]
fn connections_of_pods_are_captured_and_their_dns_too() {
    in_namespace("pods::connections_of_pods_are_captured_and_their_dns_too", "-Urn", async || {
        let mut world = world().await;
        sh("ip address add 169.254.96.16/32 dev lo").unwrap();
        let dns = tokio::net::UdpSocket::bind("169.254.96.16:53").await.unwrap();
        world.options.pod_dns = Some("169.254.96.16:53".parse().unwrap());
        let _capture = world.start().await;
        let pod = Pod::start();
        let client = pod.connect(40_000, VIP);
        let (stream, from) = world.outbound.accept().await.unwrap();
        assert_eq!(from.ip().to_string(), "10.1.0.7");
        assert_eq!(original_dst(&stream), Some(VIP.parse().unwrap()));
        client.join().unwrap();
        sh(&format!("nsenter -t {} -n bash -c 'echo -n x > /dev/udp/8.8.8.8/53'", pod.0.id())).unwrap();
        let mut byte = [0];
        let (_, asker) = dns.recv_from(&mut byte).await.unwrap();
        assert_eq!((asker.ip().to_string(), &byte), ("10.1.0.7".to_owned(), b"x"));
    });
}

/// A query that comes from another node to a name server in a pod here must arrive there: taken, it would be sent on to
/// the same server, from node to node.
#[test]
fn queries_to_name_servers_on_this_node_arrive_at_them() {
    in_namespace("pods::queries_to_name_servers_on_this_node_arrive_at_them", "-Urn", async || {
        let mut world = world().await;
        sh("ip address add 169.254.96.16/32 dev lo").unwrap();
        let dns = tokio::net::UdpSocket::bind("169.254.96.16:53").await.unwrap();
        world.options.pod_dns = Some("169.254.96.16:53".parse().unwrap());
        let _capture = world.start().await;
        let pod = Pod::start();
        let ask = |server: &str, word: &str| {
            sh(&format!("nsenter -t {} -n bash -c 'echo -n {word} > /dev/udp/{server}/53'", pod.0.id()))
                .unwrap();
        };
        async fn soon<T>(wait: impl Future<Output = std::io::Result<T>>) -> T {
            tokio::time::timeout(SOON, wait).await.expect("nothing has arrived").unwrap()
        }
        // Known from the moment on that the tables say so.
        let mut byte = [0];
        ask("10.1.9.99", "a");
        let (_, asker) = soon(dns.recv_from(&mut byte)).await;
        assert_eq!((asker.ip().to_string(), &byte), ("10.1.0.7".to_owned(), b"a"));
        // One in a pod, and one in the node's own network.
        let workload = |address: &str, name: &str, host_network| model::Workload {
            address: address.into(),
            name: name.into(),
            host_network,
            ..Default::default()
        };
        let workloads = vec![workload("10.1.9.99", "coredns", false), workload("10.1.0.1", "dnsmasq", true)];
        let list = model::NodeWorkloads { node: world.shared.node.to_string(), workloads };
        assert!(world.shared.apply(vec![Change::Set(Resource::NodeWorkloads(list))]).rejected.is_empty());
        let start = Instant::now();
        while !sh("nft list set inet selvage pods4").unwrap().contains("10.1.9.99") {
            assert!(start.elapsed() < SOON, "{}", sh("nft list table inet selvage").unwrap());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let own = tokio::net::UdpSocket::bind("10.1.0.1:53").await.unwrap();
        ask("10.1.0.1", "o");
        let _asker = soon(own.recv_from(&mut byte)).await;
        assert_eq!(&byte, b"o");
        ask("10.1.9.99", "b");
        ask("8.8.8.8", "c");
        let _asker = soon(dns.recv_from(&mut byte)).await;
        assert_eq!(&byte, b"c", "the query to the pod is not ours");
    });
}

#[test]
fn one_client_port_calls_two_services_one_after_the_other_without_a_pause() {
    in_namespace(
        "pods::one_client_port_calls_two_services_one_after_the_other_without_a_pause",
        "-Urn",
        async || {
            let world = world().await;
            let _capture = world.start().await;
            let pod = Pod::start();
            let mut slow = 0;
            for i in 0..20 {
                for to in [VIP, "10.96.0.20:80", VIP] {
                    let client = pod.connect(41_000 + i, to);
                    let (stream, _) = world.outbound.accept().await.unwrap();
                    assert_eq!(original_dst(&stream), Some(to.parse().unwrap()));
                    let (mut client, took) =
                        tokio::task::spawn_blocking(move || client.join().unwrap()).await.unwrap();
                    // The kernel repeats a first packet after a second.
                    slow += usize::from(took > Duration::from_millis(900));
                    // We close first, as when the service does: TIME_WAIT stays here.
                    drop(stream);
                    assert_eq!(client.read(&mut [0]).unwrap(), 0);
                }
            }
            // A machine that stands still may make some slow; the fault makes it every second one.
            assert!(slow <= 6, "{slow} of 60 connections");
            world.drain().await;
        },
    );
}

#[test]
fn connections_of_pods_outlive_their_service_and_the_release_of_capture() {
    in_namespace(
        "pods::connections_of_pods_outlive_their_service_and_the_release_of_capture",
        "-Urn",
        async || {
            let world = world().await;
            let _capture = world.start().await;
            let pod = Pod::start();
            let client = pod.connect(42_000, VIP);
            let (mut stream, _) = world.outbound.accept().await.unwrap();
            let (mut client, _) = client.join().unwrap();
            SockRef::from(&client).set_read_timeout(Some(SOON)).unwrap();
            let mut talks = async |when: &str| {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let mut byte = [0];
                stream.write_all(b"a").await.unwrap();
                client.read_exact(&mut byte).unwrap_or_else(|e| panic!("{when}: {e}"));
                std::io::Write::write_all(&mut client, b"b").unwrap();
                let read = tokio::time::timeout(SOON, stream.read_exact(&mut byte)).await;
                assert!(read.is_ok_and(|r| r.is_ok()), "{when}");
            };
            talks("at first").await;
            let gone =
                Change::Remove(mesh_api::ResourceType::Service, "reviews.default.svc.cluster.local".into());
            world.shared.apply(vec![gone]);
            world.until(VIP, false).await;
            talks("without its service").await;
            // The drain waits for this one.
            let held = world.tasks.drain().guard();
            let ending = async {
                world.until("10.96.0.20:80", false).await;
                talks("while draining").await;
                drop(held);
            };
            tokio::join!(world.drain(), ending);
        },
    );
}
