//! Transports and paths: each carries streams, the best one is taken, and another one when it fails.

use std::{
    net::TcpListener,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use mesh_tunnel::{OpenError, PathKind, PathTransport, Proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    common::{Kind, config, echo, echo_round, eventually, metric, open, pair, pair_with, serve, start},
    link::{Link, port_of},
};

const SOON: Duration = Duration::from_secs(20);

fn listening(addresses: &[&str]) -> mesh_tunnel::TunnelConfig {
    let mut c = config(Kind::Tcp);
    c.listen = addresses.iter().map(ToString::to_string).collect();
    c
}

/// An HTTP proxy that wants `user:secret` and says how often it was asked.
async fn http_proxy() -> (Proxy, tokio::sync::watch::Receiver<Vec<String>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (log, asked) = tokio::sync::watch::channel(Vec::new());
    let runtime = tokio::runtime::Handle::current();
    runtime.clone().spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                near.read_exact(&mut byte).await.unwrap();
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            if !head.contains("Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n") {
                near.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await.unwrap();
                continue;
            }
            let target = head.split(' ').nth(1).unwrap().to_owned();
            let mut far = tokio::net::TcpStream::connect(&target).await.unwrap();
            near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            log.send_modify(|l| l.push(target));
            runtime.spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    (Proxy::parse(&format!("http://user:secret@127.0.0.1:{port}")).unwrap(), asked)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_in_tls_carries_streams_also_through_an_http_proxy() {
    let ws = ["/ip4/127.0.0.1/tcp/0/tls/ws"];
    let (a, mut b) = pair_with(config(Kind::Tcp), listening(&ws)).await;
    assert!(b.peer.addresses[0].ends_with("/tls/ws"), "{:?}", b.peer.addresses);
    let server = serve(b.acceptor.take().unwrap(), echo);
    for size in [0, 1, 1_000_000] {
        echo_round(&a, "b", size).await;
    }
    let path = &a.tunnel.paths()[0];
    assert_eq!((path.path, path.transport), (PathKind::Lan, PathTransport::Ws));
    assert_eq!((path.bytes_sent, path.bytes_received), (1_000_001, 1_000_001));
    assert!(path.active && !path.why_not_better.is_empty());

    // Through the proxy, by name, and back.
    let (proxy, asked) = http_proxy().await;
    let mut c = config(Kind::Tcp);
    c.proxy = Some(proxy.clone());
    let c = start("c", c).await;
    let port = port_of(&b.peer.addresses, "/ws");
    let mut named = b.peer.clone();
    named.addresses = vec![format!("/dns4/localhost/tcp/{port}/wss")];
    c.tunnel.set_peers(&[named]).await;
    b.tunnel.set_peers(&[a.peer.clone(), c.peer.clone()]).await;
    echo_round(&c, "b", 100_000).await;
    assert_eq!(*asked.borrow(), [format!("localhost:{port}")]);

    // A proxy that says no is named in the error, without its password.
    let mut d = config(Kind::Tcp);
    d.proxy = Some(Proxy::parse(&proxy.to_string().replace("***", "user:wrong")).unwrap());
    let d = start("d", d).await;
    d.tunnel.set_peers(std::slice::from_ref(&b.peer)).await;
    let refused = d.tunnel.open("b", open()).await.unwrap_err().to_string();
    assert!(
        refused.contains("HTTP proxy") && refused.contains("407") && !refused.contains("wrong"),
        "{refused}"
    );
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_ipv6_addresses_are_dialled() {
    let mut listen = vec!["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"];
    let ipv6 = TcpListener::bind("[::1]:0").is_ok();
    if ipv6 {
        listen.extend(["/ip6/::1/tcp/0", "/ip6/::1/udp/0/quic-v1"]);
    } else {
        eprintln!("this host has no IPv6: only names are tested");
    }
    let (a, mut b) = pair_with(config(Kind::Tcp), listening(&listen)).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    let all = b.peer.addresses.clone();
    let by_name = all
        .iter()
        .filter(|x| x.starts_with("/ip4/"))
        .map(|x| x.replace("/ip4/127.0.0.1/", "/dns4/localhost/"));
    let by_ipv6 = all.iter().filter(|x| x.starts_with("/ip6/")).cloned();
    let ways: Vec<String> = by_name.chain(by_ipv6).collect();
    assert_eq!(ways.len(), if ipv6 { 4 } else { 2 }, "{all:?}");
    for way in ways {
        let c = start("c", config(Kind::Tcp)).await;
        let mut peer = b.peer.clone();
        peer.addresses = vec![way.clone()];
        c.tunnel.set_peers(&[peer]).await;
        b.tunnel.set_peers(&[a.peer.clone(), c.peer.clone()]).await;
        echo_round(&c, "b", 1000).await;
        let quic = way.contains("quic");
        assert_eq!(c.tunnel.status()[0].transport, if quic { "quic" } else { "tcp" }, "{way}");
        c.tunnel.close().await;
    }
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_better_path_is_taken_as_soon_as_there_is_one_and_streams_go_on() {
    // The port where `b` will listen with plain TCP is not open yet.
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let later = format!("/ip4/127.0.0.1/tcp/{}", held.local_addr().unwrap().port());
    let mut opener = config(Kind::Tcp);
    opener.timeouts.upgrade_min = Duration::from_millis(200);
    opener.timeouts.linger = Duration::from_millis(500);
    opener.timeouts.ws_delay = Duration::ZERO;
    let (a, mut b) = pair_with(opener, listening(&["/ip4/127.0.0.1/tcp/0/tls/ws"])).await;
    drop(held);
    let server = serve(b.acceptor.take().unwrap(), echo);
    b.peer.addresses.push(later.clone());
    a.tunnel.set_peers(std::slice::from_ref(&b.peer)).await;
    let mut before = a.tunnel.open("b", open()).await.unwrap();
    let place = before.place();
    assert_eq!(before.path().transport, PathTransport::Ws);
    assert!(!place.is_superseded());

    b.tunnel.listen(&later).await.unwrap();
    eventually("the better path is found", SOON, || place.is_superseded()).await;
    let after = a.tunnel.open("b", open()).await.unwrap();
    assert_eq!(after.path().transport, PathTransport::Tcp);
    assert!(!after.place().is_superseded());
    before.write_all(b"still here").await.unwrap();
    before.read_exact(&mut [0; 10]).await.unwrap();
    assert_eq!(metric(&a.registry, "selvage_tunnel_upgrades_total", Some("ok")), 1.0);
    assert!(metric(&a.registry, "selvage_tunnel_path_changes_total", Some("lan")) >= 1.0);

    // The worse connection leaves when its last stream has gone.
    let paths = a.tunnel.paths();
    assert_eq!(
        paths.iter().map(|p| (p.transport, p.active)).collect::<Vec<_>>(),
        [(PathTransport::Tcp, true), (PathTransport::Ws, false)]
    );
    drop(before);
    eventually("the worse connection closes", SOON, || a.tunnel.paths().len() == 1).await;
    echo_round(&a, "b", 1000).await;
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_falls_silent_is_left_for_another_without_an_error() {
    let (a, mut b) = pair(Kind::Both).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    let link = Link::to(port_of(&b.peer.addresses, "/tcp/"), Duration::ZERO).await;
    let mut peer = b.peer.clone();
    let quic = peer.addresses.iter().find(|x| x.contains("quic")).unwrap().clone();
    peer.addresses = vec![link.address(), quic];
    a.tunnel.set_peers(&[peer]).await;
    let held = a.tunnel.open("b", open()).await.unwrap();
    assert_eq!(held.path().transport, PathTransport::Tcp);
    link.cut();
    let began = Instant::now();
    let stream = a.tunnel.open("b", open()).await.unwrap();
    assert_eq!(stream.path().transport, PathTransport::Quic);
    eprintln!("first stream after the cut: {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // Those who come next do not wait at all, and the silent connection goes with its streams.
    let began = Instant::now();
    echo_round(&a, "b", 1000).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let (mut read, _write) = tokio::io::split(held);
    let ended = tokio::time::timeout(SOON, read.read(&mut [0])).await.expect("a dead stream lives on");
    assert!(ended.is_err());
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_on_a_dead_connection_notices_and_a_new_address_is_dialled() {
    let (a, mut b) = pair(Kind::Tcp).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    let link = Link::to(port_of(&b.peer.addresses, "/tcp/"), Duration::ZERO).await;
    let mut old = b.peer.clone();
    old.addresses = vec![link.address()];
    a.tunnel.set_peers(&[old]).await;
    let mut held = a.tunnel.open("b", open()).await.unwrap();
    held.write_all(b"x").await.unwrap();
    held.read_exact(&mut [0]).await.unwrap();
    link.cut();
    // Something is sent on it, and no stream is opened.
    held.write_all(b"x").await.unwrap();
    let began = Instant::now();
    assert!(held.read(&mut [0]).await.is_err());
    // The link still acknowledges what it swallows: the kernel sees nothing wrong.
    eprintln!("noticed after {:?}", began.elapsed());
    // Less than five seconds on a machine that does nothing else; a line that is down may take five times as long.
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    // The registry says where the peer is now.
    a.tunnel.set_peers(std::slice::from_ref(&b.peer)).await;
    let began = Instant::now();
    echo_round(&a, "b", 1000).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_opens_a_stream_to_a_peer_that_has_vanished_is_told_soon_and_pools_leave() {
    let (a, mut b) = pair(Kind::Tcp).await;
    let mut nowhere = a.peer.clone();
    nowhere.addresses.clear();
    b.tunnel.set_peers(&[nowhere]).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    let link = Link::to(port_of(&b.peer.addresses, "/tcp/"), Duration::ZERO).await;
    let mut peer = b.peer.clone();
    peer.addresses = vec![link.address()];
    a.tunnel.set_peers(&[peer]).await;
    let mut held = a.tunnel.open("b", open()).await.unwrap();
    held.write_all(b"x").await.unwrap();
    held.read_exact(&mut [0]).await.unwrap();
    let generation = a.tunnel.generation("b");
    let before = generation.load(Ordering::Relaxed);
    link.cut();
    let began = Instant::now();
    let first = a.tunnel.open("b", open()).await.unwrap_err();
    eprintln!("the first is told after {:?}: {first}", began.elapsed());
    assert!(matches!(first, OpenError::Silent { .. }), "{first:?}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(generation.load(Ordering::Relaxed) > before, "pools leave");
    // Those who come next need not find out again, whatever becomes of the connection and of the dials.
    let (mut longest, mut told) = (Duration::ZERO, 0);
    while began.elapsed() < Duration::from_secs(8) {
        let one = Instant::now();
        let error = a.tunnel.open("b", open()).await.unwrap_err();
        assert!(
            matches!(error, OpenError::Silent { .. } | OpenError::Backoff { .. } | OpenError::Dial { .. }),
            "{error:?}"
        );
        longest = longest.max(one.elapsed());
        told += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eprintln!("{told} more are told, after {longest:?} at most");
    assert!(told > 50 && longest < Duration::from_secs(4), "{told} told, {longest:?}");
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_says_so() {
    for kind in [Kind::Tcp, Kind::Quic] {
        let (a, mut b) = pair(kind).await;
        let server = serve(b.acceptor.take().unwrap(), echo);
        let mut stream = a.tunnel.open("b", open()).await.unwrap();
        let place = stream.place();
        assert!(!place.is_superseded());
        b.tunnel.drain();
        eventually("pools learn that the node leaves", SOON, || place.is_superseded()).await;
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        server.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_bytes_travel_with_the_open_message() {
    const DELAY: Duration = Duration::from_millis(100);
    let (a, mut b) = pair(Kind::Tcp).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    let link = Link::to(port_of(&b.peer.addresses, "/tcp/"), DELAY).await;
    let mut peer = b.peer.clone();
    peer.addresses = vec![link.address()];
    a.tunnel.set_peers(&[peer]).await;
    echo_round(&a, "b", 10).await;
    let mut best = [Duration::MAX; 3];
    for _ in 0..3 {
        let began = Instant::now();
        let mut plain = a.tunnel.open("b", open()).await.unwrap();
        plain.write_all(b"hello").await.unwrap();
        plain.read_exact(&mut [0; 5]).await.unwrap();
        best[0] = best[0].min(began.elapsed());

        let began = Instant::now();
        let mut with = a.tunnel.open_with("b", open(), b"hello").await.unwrap();
        assert_eq!(with.early(), 5);
        with.read_exact(&mut [0; 5]).await.unwrap();
        best[1] = best[1].min(began.elapsed());

        let began = Instant::now();
        let mut early = a.tunnel.open_early("b", open()).await.unwrap();
        early.write_all(b"hello").await.unwrap();
        early.read_exact(&mut [0; 5]).await.unwrap();
        best[2] = best[2].min(began.elapsed());
    }
    eprintln!(
        "round trip 200 ms; first byte: plain {:?}, with the open {:?}, early {:?}",
        best[0], best[1], best[2]
    );
    assert!(best[0] >= DELAY * 4, "{best:?}");
    assert!(best[1] < best[0].mul_f64(0.8) && best[2] < best[0].mul_f64(0.8), "{best:?}");
    assert_eq!(link.connections.load(Ordering::Relaxed), 1);
    server.abort();
}
