//! Many: new connections at a long round trip, ten thousand opens at once, and what thousands of cycles leave behind.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream, stream::FuturesUnordered};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    common::{Kind, echo, eventually, open, pair, serve},
    link::{Link, port_of},
};

/// A build without optimisation on a machine with other work reaches a part of what a release build does.
const SLOW: f64 = if cfg!(debug_assertions) { 0.25 } else { 1.0 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_new_connections_a_second_at_a_hundred_milliseconds() {
    const COUNT: usize = 3_000;
    let (a, mut b) = pair(Kind::Tcp).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    let link = Link::to(port_of(&b.peer.addresses, "/tcp/"), Duration::from_millis(50)).await;
    let mut peer = b.peer.clone();
    peer.addresses = vec![link.address()];
    a.tunnel.set_peers(&[peer]).await;
    drop(a.tunnel.open("b", open()).await.unwrap());
    let call = async |_: usize| {
        let mut stream = a.tunnel.open_with("b", open(), b"12345678").await.unwrap();
        let mut back = [0; 8];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"12345678");
    };
    let began = Instant::now();
    stream::iter(0..COUNT).map(call).buffer_unordered(400).collect::<Vec<()>>().await;
    let rate = COUNT as f64 / began.elapsed().as_secs_f64();
    eprintln!("{rate:.0} new connections a second at 100 ms");
    assert!(rate > 1_000.0 * SLOW, "{rate:.0} a second");
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_opens_at_once_lose_none() {
    const COUNT: usize = 10_000;
    for kind in [Kind::Tcp, Kind::Quic] {
        let (a, mut b) = pair(kind).await;
        let server = serve(b.acceptor.take().unwrap(), echo);
        let opens: FuturesUnordered<_> = (0..COUNT as u64)
            .map(|i| {
                let tunnel = a.tunnel.clone();
                async move {
                    let mut stream = tunnel.open("b", open()).await?;
                    stream.write_all(&i.to_be_bytes()).await.unwrap();
                    let mut back = [0; 8];
                    stream.read_exact(&mut back).await.unwrap();
                    assert_eq!(back, i.to_be_bytes());
                    Ok::<_, mesh_tunnel::OpenError>(())
                }
            })
            .collect();
        // All are under way before the first has ended: the accept queue of the owner bounds how many it takes in.
        let results: Vec<_> = opens.collect().await;
        let failed: Vec<_> = results.iter().filter_map(|r| r.as_ref().err()).collect();
        assert!(failed.is_empty(), "{} of {COUNT} failed, first: {}", failed.len(), failed[0]);
        eventually("streams are counted down", Duration::from_secs(10), || {
            a.tunnel.streams() == 0 && b.tunnel.streams() == 0
        })
        .await;
        server.abort();
    }
}

fn files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Bytes that the process has for itself.
fn memory() -> usize {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = text.lines().find(|l| l.starts_with("Anonymous:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// In a process of its own: what other tests open and hold in the meantime is not this one's.
#[test]
fn twenty_four_thousand_cycles_leave_nothing_behind() {
    for kind in ["tcp", "quic"] {
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", "load::cycles_alone", "--nocapture"]).env(ALONE, kind);
        let done = alone.output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{kind}: {}{said}", String::from_utf8_lossy(&done.stdout));
        let figures = said.lines().find(|l| l.contains("for each cycle"));
        eprintln!("{kind}: {}", figures.expect("the cycles have run"));
    }
}

/// Set in the environment of a process that only runs cycles.
const ALONE: &str = "TUNNEL_TEST_CYCLES";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cycles_alone() {
    const ROUND: usize = 4_000;
    let (kind, rounds) = match std::env::var(ALONE).as_deref() {
        Ok("tcp") => (Kind::Tcp, 4),
        Ok(_) => (Kind::Quic, 2),
        Err(_) => return,
    };
    let (a, mut b) = pair(kind).await;
    let server = serve(b.acceptor.take().unwrap(), echo);
    let cycle = async |i: usize| {
        let mut stream = a.tunnel.open("b", open()).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        // Half of them end cleanly, half are dropped.
        if i.is_multiple_of(2) {
            stream.shutdown().await.unwrap();
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        }
    };
    let round = async || {
        stream::iter(0..ROUND).map(cycle).buffer_unordered(64).collect::<Vec<()>>().await;
        eventually("streams are counted down", Duration::from_secs(30), || {
            a.tunnel.streams() == 0 && b.tunnel.streams() == 0
        })
        .await;
    };
    round().await;
    let (files_before, memory_before) = (files(), memory());
    for _ in 1..rounds {
        round().await;
    }
    let (files_after, memory_after) = (files(), memory());
    let grown = memory_after.saturating_sub(memory_before) / (ROUND * (rounds - 1));
    eprintln!("{files_before} files, then {files_after}; {grown} bytes more for each cycle");
    // On a machine that stops for a second a connection is doubted, and there are two from then on.
    assert!(files_after < files_before + 4, "{files_before} files, then {files_after}");
    assert!(grown < 1_000, "{grown} bytes for each cycle");
    assert_eq!((a.tunnel.tracked_peers(), b.tunnel.tracked_peers()), (1, 1));
    let connections = (a.tunnel.paths().len(), b.tunnel.paths().len());
    assert!(connections.0 <= 2 && connections.1 <= 2, "{connections:?}");
    server.abort();
}
