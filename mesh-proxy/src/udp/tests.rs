//! Two sockets and a tunnel in one process. Captured datagrams need rules of a network namespace: see the world tests.

use std::{net::SocketAddr, time::Duration};

use tokio::net::UdpSocket;

use super::{
    Udp, UdpConfig,
    frame::{Frames, frame},
    owner,
};
use tokio::io::AsyncWriteExt as _;

fn udp() -> Udp {
    Udp::new(UdpConfig::default(), &prometheus::Registry::new()).unwrap()
}

/// Sends everything back.
async fn echo() -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let task = tokio::task::spawn_local(async move {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
            socket.send_to(&buffer[..n], from).await.unwrap();
        }
    });
    (address, task)
}

#[test]
fn settings_that_would_pass_nothing_are_refused() {
    assert_eq!(UdpConfig::default().validate(), []);
    let none =
        UdpConfig { idle_seconds: 0, sessions: 0, queue: 0, queue_bytes: 1000, ..UdpConfig::default() };
    let fields: Vec<_> = none.validate().into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["idleSeconds", "sessions", "queue", "queueBytes"]);
}

#[tokio::test]
async fn the_owner_keeps_boundaries_and_ends_with_the_stream() {
    tokio::task::LocalSet::new()
        .run_until(async {
            let (address, _echo) = echo().await;
            let udp = udp();
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            let pod = owner::connect(address, None).await.unwrap();
            let counts = udp.counts.clone();
            let carrying = tokio::task::spawn_local(async move {
                owner::carry(theirs, pod, &counts, &owner::Carried::default(), owner::IDLE).await
            });
            let (read, mut write) = tokio::io::split(ours);
            let mut frames = Frames::new(read);
            for size in [0, 1, 1472, 65_507, 3] {
                write.write_all(&frame(&vec![7; size]).unwrap()).await.unwrap();
                assert_eq!(frames.next().await.unwrap().unwrap().len(), size);
            }
            assert_eq!(udp.counts.inbound.active.get(), 1);
            write.shutdown().await.unwrap();
            assert!(frames.next().await.unwrap().is_none());
            carrying.await.unwrap().unwrap();
            assert_eq!((udp.counts.inbound.active.get(), udp.counts.inbound.opened.get()), (0, 1));
        })
        .await;
}

#[tokio::test]
async fn the_owner_ends_for_a_closed_port_for_garbage_and_for_silence() {
    tokio::task::LocalSet::new()
        .run_until(async {
            let udp = udp();
            let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
            let (open, _echo) = echo().await;
            let cases: [(SocketAddr, &[u8], Duration); 3] = [
                // The answer to the first datagram is an error of the next one.
                (closed, &[0, 1, 9, 0, 1, 9, 0, 1, 9], owner::IDLE),
                (open, &[0xff, 0xff, 9], owner::IDLE),
                (open, &[], Duration::from_millis(20)),
            ];
            for (to, bytes, idle) in cases {
                let (ours, theirs) = tokio::io::duplex(4096);
                let pod = owner::connect(to, None).await.unwrap();
                let (read, mut write) = tokio::io::split(ours);
                write.write_all(bytes).await.unwrap();
                let carried = owner::Carried::default();
                let carrying = owner::carry(theirs, pod, &udp.counts, &carried, idle);
                let ended = tokio::time::timeout(Duration::from_secs(20), carrying).await.unwrap();
                assert_eq!(ended.is_ok(), bytes.is_empty(), "{bytes:?}");
                assert!(Frames::new(read).next().await.unwrap().is_none(), "the opener sees the end");
            }
            assert_eq!(udp.counts.inbound.active.get(), 0);
        })
        .await;
}
