//! Bursts, bounds, strangers, and what is left behind.

use std::time::{Duration, Instant};

use super::common::{
    Kind, config, echo, echo_round, eventually, metric, open, pair, pair_with, serve, start,
};
use futures::{StreamExt, stream::FuturesUnordered};
use mesh_api::model::TunnelOpen;
use mesh_tunnel::{OpenError, Refusal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An address where nobody listens.
const NOBODY: &str = "/ip4/127.0.0.1/tcp/1";

/// Opens `count` streams at once; every one must work.
async fn burst(kind: Kind, count: usize, delay: Duration) {
    let (a, mut b) = pair(kind).await;
    let mut acceptor = b.acceptor.take().unwrap();
    let runtime = tokio::runtime::Handle::current();
    let server = runtime.clone().spawn(async move {
        while let Some(incoming) = acceptor.accept().await {
            tokio::time::sleep(delay).await;
            runtime.spawn(echo(incoming));
        }
    });
    let opens: FuturesUnordered<_> = (0..count)
        .map(|i| {
            let tunnel = a.tunnel.clone();
            async move {
                let mut stream = tunnel.open("b", open()).await?;
                let word = (i as u64).to_be_bytes();
                stream.write_all(&word).await.unwrap();
                let mut back = [0; 8];
                stream.read_exact(&mut back).await.unwrap();
                assert_eq!(back, word);
                Ok::<_, OpenError>(stream)
            }
        })
        .collect();
    let streams: Vec<_> = opens.collect().await;
    let failed: Vec<_> = streams.iter().filter_map(|s| s.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of {count} failed, first: {:?}", failed.len(), failed[0]);
    assert_eq!(a.tunnel.status().len(), 1, "all streams share one connection");
    assert_eq!(metric(&b.registry, "selvage_tunnel_streams", Some("inbound")), count as f64);
    drop(streams);
    eventually("streams are counted down", Duration::from_secs(5), || {
        a.tunnel.streams() == 0 && b.tunnel.streams() == 0
    })
    .await;
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_opens_at_once_lose_none() {
    burst(Kind::Tcp, 100, Duration::ZERO).await;
    burst(Kind::Quic, 100, Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_opens_at_once_lose_none() {
    burst(Kind::Tcp, 2_000, Duration::ZERO).await;
    burst(Kind::Quic, 2_000, Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_accept_loop_loses_none() {
    burst(Kind::Tcp, 300, Duration::from_millis(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_accept_queue_the_answer_is_overloaded_at_once() {
    let mut owner = config(Kind::Tcp);
    owner.limits.accept_queue = 8;
    let (a, mut b) = pair_with(config(Kind::Tcp), owner).await;
    // Nobody accepts: eight wait, the rest is refused.
    let mut opens: FuturesUnordered<_> = (0..50).map(|_| a.tunnel.open("b", open())).collect();
    let began = Instant::now();
    for _ in 0..42 {
        match opens.next().await.unwrap() {
            Err(OpenError::Refused { code: Refusal::Overloaded, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(began.elapsed() < Duration::from_secs(2), "refusals took {:?}", began.elapsed());
    assert_eq!(metric(&b.registry, "selvage_tunnel_refused_total", Some("accept_queue")), 42.0);
    // Those that wait are not hurt.
    let server = serve(b.acceptor.take().unwrap(), echo);
    for _ in 0..8 {
        assert!(opens.next().await.unwrap().is_ok());
    }
    server.abort();
}

#[tokio::test]
async fn stream_limits_hold_on_both_sides() {
    let mut small = config(Kind::Tcp);
    small.limits.streams_per_peer = 3;
    let (a, mut b) = pair_with(config(Kind::Tcp), small).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(a.tunnel.open("b", open()).await.unwrap());
    }
    let refused = a.tunnel.open("b", open()).await;
    assert!(matches!(refused, Err(OpenError::Refused { code: Refusal::Overloaded, .. })), "{refused:?}");
    held.pop();
    eventually("the owner notices the end", Duration::from_secs(2), || b.tunnel.streams() == 2).await;
    held.push(a.tunnel.open("b", open()).await.unwrap());
    server.abort();

    let mut small = config(Kind::Tcp);
    small.limits.streams = 2;
    let (a, mut b) = pair_with(small, config(Kind::Tcp)).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    let _one = a.tunnel.open("b", open()).await.unwrap();
    let _two = a.tunnel.open("b", open()).await.unwrap();
    assert!(matches!(a.tunnel.open("b", open()).await, Err(OpenError::Limit("streams"))));
    server.abort();
}

#[tokio::test]
async fn a_stranger_is_cut_and_hurts_nobody() {
    let (a, mut b) = pair(Kind::Both).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    let stranger = start("x", config(Kind::Both)).await;
    stranger.tunnel.set_peers(std::slice::from_ref(&b.peer)).await;
    let began = Instant::now();
    let refused = stranger.tunnel.open("b", open()).await;
    assert!(
        matches!(refused, Err(OpenError::Dial { .. } | OpenError::Lost(_) | OpenError::Backoff { .. })),
        "{refused:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(metric(&b.registry, "selvage_tunnel_denied_connections_total", Some("unknown_peer")) >= 1.0);
    assert_eq!(metric(&b.registry, "selvage_tunnel_accepted_total", None), 0.0);
    echo_round(&a, "b", 1000).await;
    assert!(matches!(a.tunnel.open("nobody", open()).await, Err(OpenError::UnknownNode(_))));
    server.abort();
}

#[tokio::test]
async fn a_node_with_another_key_than_the_registry_says_is_not_talked_to() {
    let (a, _b) = pair(Kind::Tcp).await;
    let impostor = start("c", config(Kind::Tcp)).await;
    let real = start("c", config(Kind::Tcp)).await;
    let mut claimed = real.peer.clone();
    claimed.addresses = impostor.peer.addresses.clone();
    a.tunnel.set_peers(&[claimed]).await;
    impostor.tunnel.set_peers(std::slice::from_ref(&a.peer)).await;
    let refused = a.tunnel.open("c", open()).await;
    assert!(matches!(refused, Err(OpenError::Dial { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_peer_is_cut_with_its_streams() {
    for kind in [Kind::Tcp, Kind::Quic] {
        let (a, mut b) = pair(kind).await;
        let mut acceptor = b.acceptor.take().unwrap();
        let owner = async { acceptor.accept().await.unwrap().accept().await.unwrap() };
        let (near, far) = tokio::join!(a.tunnel.open("b", open()), owner);
        let (mut near, mut far) = (near.unwrap(), far);
        near.write_all(b"x").await.unwrap();
        far.read_exact(&mut [0]).await.unwrap();
        let began = Instant::now();
        b.tunnel.set_peers(&[]).await;
        let mut near_rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), near.read_to_end(&mut near_rest)).await;
        assert!(ended.expect("the peer keeps its stream").is_err(), "a cut looks like a clean end");
        let ended = tokio::time::timeout(Duration::from_secs(5), far.read_to_end(&mut Vec::new())).await;
        assert!(ended.expect("the stream outlives the peer").is_err(), "a cut looks like a clean end");
        assert!(began.elapsed() < Duration::from_secs(5));
        eventually("connections are gone", Duration::from_secs(5), || b.tunnel.status().is_empty()).await;
        drop((near, far));
        let refused = a.tunnel.open("b", open()).await;
        assert!(refused.is_err(), "a removed peer opens streams");
        assert_eq!(b.tunnel.tracked_peers(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconnecting_leaves_nothing_behind() {
    let (a, mut b) = pair(Kind::Tcp).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    for _ in 0..10 {
        echo_round(&a, "b", 1000).await;
        assert_eq!((a.tunnel.tracked_peers(), b.tunnel.tracked_peers()), (1, 1));
        b.tunnel.set_peers(&[]).await;
        eventually("both forget the connection", Duration::from_secs(5), || {
            a.tunnel.tracked_peers() == 0 && b.tunnel.tracked_peers() == 0
        })
        .await;
        b.tunnel.set_peers(std::slice::from_ref(&a.peer)).await;
    }
    assert_eq!(metric(&a.registry, "selvage_tunnel_connections", None), 0.0);
    assert_eq!(metric(&b.registry, "selvage_tunnel_streams", None), 0.0);
    server.abort();
}

#[tokio::test]
async fn idle_connections_close_and_come_back_when_needed() {
    let quick = || {
        let mut c = config(Kind::Tcp);
        c.timeouts.idle = Duration::from_millis(200);
        c
    };
    let (a, mut b) = pair_with(quick(), quick()).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    let mut stream = a.tunnel.open("b", open()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    stream.write_all(b"still here").await.unwrap();
    let mut back = [0; 10];
    stream.read_exact(&mut back).await.unwrap();
    drop(stream);
    eventually("the idle connection closes", Duration::from_secs(5), || a.tunnel.status().is_empty()).await;
    echo_round(&a, "b", 1000).await;
    server.abort();
}

#[tokio::test]
async fn a_dead_address_is_dialled_once_for_all_and_then_left_alone_for_a_while() {
    let mut opener = config(Kind::Tcp);
    opener.timeouts.backoff_min = Duration::from_secs(30);
    opener.timeouts.backoff_max = Duration::from_secs(30);
    let (a, b) = pair_with(opener, config(Kind::Tcp)).await;
    let mut gone = b.peer.clone();
    gone.addresses = vec![NOBODY.into()];
    a.tunnel.set_peers(std::slice::from_ref(&gone)).await;
    let opens: FuturesUnordered<_> = (0..20).map(|_| a.tunnel.open("b", open())).collect();
    let results: Vec<_> = opens.collect().await;
    assert!(results.iter().all(|r| matches!(r, Err(OpenError::Dial { .. }))), "{:?}", results[0]);
    assert_eq!(metric(&a.registry, "selvage_tunnel_dials_total", None), 1.0);
    let held = a.tunnel.open("b", open()).await;
    assert!(matches!(held, Err(OpenError::Backoff { .. })), "{held:?}");
    // New addresses are tried at once.
    let mut acceptor = b.acceptor.unwrap();
    a.tunnel.set_peers(std::slice::from_ref(&b.peer)).await;
    let owner = async { acceptor.accept().await.unwrap().accept().await.unwrap() };
    let (opened, _far) = tokio::join!(a.tunnel.open("b", open()), owner);
    assert!(opened.is_ok());
}

#[tokio::test]
async fn tcp_is_preferred_and_quic_is_the_way_out() {
    let (a, mut b) = pair(Kind::Both).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    echo_round(&a, "b", 1000).await;
    assert_eq!(a.tunnel.status()[0].transport, "tcp");
    server.abort();

    let (a, mut b) = pair(Kind::Both).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    let mut only_quic = b.peer.clone();
    only_quic.addresses.retain(|x| x.contains("quic"));
    only_quic.addresses.push(NOBODY.into());
    a.tunnel.set_peers(&[only_quic]).await;
    echo_round(&a, "b", 1000).await;
    assert_eq!(a.tunnel.status()[0].transport, "quic");
    server.abort();
}

#[tokio::test]
async fn an_oversize_open_is_refused_here_and_a_draining_owner_says_so() {
    let (a, mut b) = pair(Kind::Tcp).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    let large = TunnelOpen { host: "x".repeat(5000), ..open() };
    assert!(matches!(a.tunnel.open("b", large).await, Err(OpenError::TooLarge(_))));
    let mut before = a.tunnel.open("b", open()).await.unwrap();
    b.tunnel.drain();
    let refused = a.tunnel.open("b", open()).await;
    assert!(matches!(refused, Err(OpenError::Refused { code: Refusal::Draining, .. })), "{refused:?}");
    before.write_all(b"x").await.unwrap();
    before.read_exact(&mut [0]).await.unwrap();
    server.abort();
}

#[tokio::test]
async fn closing_ends_the_acceptor_and_later_opens() {
    let (a, mut b) = pair(Kind::Tcp).await;
    let mut acceptor = b.acceptor.take().unwrap();
    b.tunnel.close().await;
    assert!(acceptor.accept().await.is_none());
    a.tunnel.close().await;
    assert!(matches!(a.tunnel.open("b", open()).await, Err(OpenError::Closed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_with_the_same_key_and_port_takes_over_without_a_failed_open() {
    let leaving = config(Kind::Tcp);
    let key = leaving.key.clone();
    let (a, mut b) = pair_with(config(Kind::Tcp), leaving).await;
    let old_server = serve(b.acceptor.take().unwrap(), echo);
    let mut before = a.tunnel.open("b", open()).await.unwrap();
    // The successor listens on the same port while the first one still serves.
    let mut next = config(Kind::Tcp);
    next.key = key;
    next.listen.clone_from(&b.peer.addresses);
    let mut successor = start("b", next).await;
    successor.tunnel.set_peers(std::slice::from_ref(&a.peer)).await;
    let new_server = serve(successor.acceptor.take().unwrap(), echo);
    b.tunnel.drain();
    for _ in 0..20 {
        echo_round(&a, "b", 100).await;
    }
    assert_eq!(metric(&successor.registry, "selvage_tunnel_accepted_total", None), 20.0);
    before.write_all(b"x").await.unwrap();
    before.read_exact(&mut [0]).await.unwrap();
    drop(before);
    b.tunnel.close().await;
    echo_round(&a, "b", 100).await;
    old_server.abort();
    new_server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_gets_so_many_connections_and_no_more() {
    let mut owner = config(Kind::Tcp);
    owner.limits.connections_of_a_peer = 2;
    let b = start("b", owner).await;
    // Three processes with one key.
    let shared_key = config(Kind::Tcp).key;
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let mut c = config(Kind::Tcp);
        c.key = shared_key.clone();
        nodes.push(start("a", c).await);
    }
    b.tunnel.set_peers(std::slice::from_ref(&nodes[0].peer)).await;
    let server = serve(b.acceptor.unwrap(), echo);
    let mut worked = 0;
    let mut held = Vec::new();
    for node in &nodes {
        node.tunnel.set_peers(std::slice::from_ref(&b.peer)).await;
        if let Ok(stream) = node.tunnel.open("b", open()).await {
            held.push(stream);
            worked += 1;
        }
    }
    assert_eq!(worked, 2);
    assert!(metric(&b.registry, "selvage_tunnel_denied_connections_total", Some("limit")) >= 1.0);
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_streams_to_one_peer_stay_open_together() {
    let (a, mut b) = pair(Kind::Tcp).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    let mut held = Vec::new();
    for _ in 0..10 {
        let opens: FuturesUnordered<_> = (0..1_000).map(|_| a.tunnel.open("b", open())).collect();
        held.extend(opens.map(Result::unwrap).collect::<Vec<_>>().await);
    }
    assert_eq!((a.tunnel.streams(), b.tunnel.streams()), (10_000, 10_000));
    // One more is as quick as the first.
    let began = Instant::now();
    echo_round(&a, "b", 1000).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    for stream in held.iter_mut().step_by(997) {
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
    }
    server.abort();
}
