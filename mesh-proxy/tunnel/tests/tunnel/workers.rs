//! Connections on data workers: each worker gets one of its own under load, and its acceptor gets its streams.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::sync_channel,
    },
    thread,
    time::Duration,
};

use mesh_tunnel::{Executors, NodeKey, Peer, Tunnel, TunnelConfig};
use prometheus::Registry;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::{Builder, Handle},
};

use super::common::{echo, eventually, open};

/// A thread with a current-thread runtime that runs for ever.
fn worker() -> Handle {
    let (sender, handle) = sync_channel(1);
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        sender.send(runtime.handle().clone()).unwrap();
        runtime.block_on(std::future::pending::<()>());
    });
    handle.recv().unwrap()
}

async fn node(workers: &[Handle]) -> (Tunnel, Vec<mesh_tunnel::Acceptor>) {
    let mut config = TunnelConfig::new(NodeKey::generate(), 0);
    config.listen = vec!["/ip4/127.0.0.1/tcp/0".into()];
    config.limits.spread_at = 2;
    let executors = Executors { control: Handle::current(), workers: workers.to_vec() };
    Tunnel::start(config, executors, &Registry::new()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_every_worker_has_its_own_connection_on_both_sides() {
    let (near, far) = ([worker(), worker()], [worker(), worker()]);
    let ((a, _), (b, acceptors)) = (node(&near).await, node(&far).await);
    let peer = |node: &str, t: &Tunnel| Peer {
        node: node.into(),
        peer_id: t.peer_id(),
        addresses: t.addresses().borrow().clone(),
        ..Default::default()
    };
    a.set_peers(&[peer("b", &b)]).await;
    b.set_peers(&[peer("a", &a)]).await;
    let accepted = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    for (i, mut acceptor) in acceptors.into_iter().enumerate() {
        let (accepted, handle) = (accepted.clone(), far[i].clone());
        far[i].spawn(async move {
            while let Some(incoming) = acceptor.accept().await {
                accepted[i].fetch_add(1, Ordering::Relaxed);
                handle.spawn(echo(incoming));
            }
        });
    }
    // Each worker holds some streams, so that there is something to spread, and opens more.
    let held = Arc::new(AtomicUsize::new(0));
    for round in 1..=4 {
        for handle in &near {
            let (a, held) = (a.clone(), held.clone());
            handle.spawn(async move {
                for _ in 0..8 {
                    let mut stream = a.open("b", open()).await.unwrap();
                    stream.write_all(b"x").await.unwrap();
                    stream.read_exact(&mut [0]).await.unwrap();
                    held.fetch_add(1, Ordering::Relaxed);
                    Handle::current().spawn(async move {
                        let _ = stream.read(&mut [0]).await;
                    });
                }
            });
        }
        eventually("all streams work", Duration::from_secs(10), || {
            held.load(Ordering::Relaxed) == round * 16
        })
        .await;
        // The first round asks for it; the following ones find it.
        eventually("there is a second connection", Duration::from_secs(10), || a.status().len() == 2).await;
    }
    let status = a.status();
    assert_eq!(status.len(), 2, "{status:?}");
    assert!(status.iter().all(|s| s.streams >= 16), "streams are not spread: {status:?}");
    assert!(accepted.iter().all(|n| n.load(Ordering::Relaxed) >= 16), "{accepted:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_stops_answering_is_let_go() {
    let far = worker();
    let mut config = TunnelConfig::new(NodeKey::generate(), 0);
    config.listen = vec!["/ip4/127.0.0.1/tcp/0".into()];
    config.timeouts.ping = Duration::from_millis(100);
    config.timeouts.ping_timeout = Duration::from_millis(300);
    let (a, _) = Tunnel::start(config.clone(), Executors::current(), &Registry::new()).await.unwrap();
    config.key = NodeKey::generate();
    let starting = far
        .spawn(async move { Tunnel::start(config, Executors::current(), &Registry::new()).await.unwrap() });
    let (b, mut acceptors) = starting.await.unwrap();
    let peer = |node: &str, t: &Tunnel| Peer {
        node: node.into(),
        peer_id: t.peer_id(),
        addresses: t.addresses().borrow().clone(),
        ..Default::default()
    };
    a.set_peers(&[peer("b", &b)]).await;
    b.set_peers(&[peer("a", &a)]).await;
    let owner = async { acceptors[0].accept().await.unwrap().accept().await.unwrap() };
    let (near, _far) = tokio::join!(a.open("b", open()), owner);
    let mut near = near.unwrap();
    // The whole of `b` stands still, as a machine does that has lost power: nothing closes its sockets.
    let (release, blocked) = sync_channel::<()>(0);
    far.spawn(async move {
        let _ = blocked.recv();
    });
    let error =
        tokio::time::timeout(Duration::from_secs(10), near.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    eventually("the connection is forgotten", Duration::from_secs(5), || a.status().is_empty()).await;
    drop(release);
}
