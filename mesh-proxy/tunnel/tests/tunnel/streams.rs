//! What a stream carries: bytes, half-close and reset, over TCP and QUIC.

use std::{io::ErrorKind, time::Duration};

use super::common::{Kind, echo, echo_round, eventually, metric, open, pair, serve};
use mesh_tunnel::{OpenError, Refusal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const BOTH: [Kind; 2] = [Kind::Tcp, Kind::Quic];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_come_back_over_tcp_and_over_quic() {
    for kind in BOTH {
        let (a, mut b) = pair(kind).await;
        let server = serve(b.acceptor.take().unwrap(), echo);
        for size in [0, 1, 1000, 100_000, 5_000_000] {
            echo_round(&a, "b", size).await;
        }
        let transport = if kind == Kind::Tcp { "tcp" } else { "quic" };
        assert_eq!(a.tunnel.status()[0].transport, transport);
        assert_eq!(metric(&a.registry, "selvage_tunnel_connections", Some(transport)), 1.0);
        assert_eq!(metric(&a.registry, "selvage_tunnel_opens_total", Some("ok")), 5.0);
        assert_eq!(metric(&a.registry, "selvage_tunnel_bytes_total", Some("sent")), 5_101_001.0);
        assert_eq!(metric(&b.registry, "selvage_tunnel_bytes_total", Some("received")), 5_101_001.0);
        eventually("streams are counted down", Duration::from_secs(2), || {
            a.tunnel.streams() == 0 && b.tunnel.streams() == 0
        })
        .await;
        server.abort();
    }
}

#[tokio::test]
async fn the_open_message_and_the_peers_name_arrive() {
    let (a, mut b) = pair(Kind::Tcp).await;
    let mut acceptor = b.acceptor.take().unwrap();
    let mut message = open();
    message.host = "reviews.default.svc.cluster.local".into();
    let opening = a.tunnel.open("b", message.clone());
    let owner = async {
        let incoming = acceptor.accept().await.unwrap();
        assert_eq!(&**incoming.peer(), "a");
        message.version = 1;
        assert_eq!(incoming.open(), &message);
        incoming.refuse(Refusal::NotOwner, "10.0.0.1 is elsewhere").await.unwrap();
    };
    let (opened, ()) = tokio::join!(opening, owner);
    match opened {
        Err(OpenError::Refused { code: Refusal::NotOwner, detail, .. }) => {
            assert_eq!(detail, "10.0.0.1 is elsewhere");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn each_side_can_end_first_and_go_on_reading() {
    for kind in BOTH {
        let (a, mut b) = pair(kind).await;
        let mut acceptor = b.acceptor.take().unwrap();
        let owner = async { acceptor.accept().await.unwrap().accept().await.unwrap() };
        // The opener ends first.
        let (near, mut far) = tokio::join!(a.tunnel.open("b", open()), owner);
        let mut near = near.unwrap();
        near.write_all(b"question").await.unwrap();
        near.shutdown().await.unwrap();
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"question");
        far.write_all(b"answer").await.unwrap();
        far.shutdown().await.unwrap();
        read.clear();
        near.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"answer");
        // The owner ends first.
        let owner = async { acceptor.accept().await.unwrap().accept().await.unwrap() };
        let (near, mut far) = tokio::join!(a.tunnel.open("b", open()), owner);
        let mut near = near.unwrap();
        far.write_all(b"banner").await.unwrap();
        far.shutdown().await.unwrap();
        read.clear();
        near.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"banner");
        near.write_all(b"late").await.unwrap();
        near.shutdown().await.unwrap();
        read.clear();
        far.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"late");
    }
}

#[tokio::test]
async fn a_dropped_stream_is_a_reset_and_never_a_clean_end() {
    for kind in BOTH {
        let (a, mut b) = pair(kind).await;
        let mut acceptor = b.acceptor.take().unwrap();
        for half_closed_before in [false, true] {
            let owner = async { acceptor.accept().await.unwrap().accept().await.unwrap() };
            let (near, mut far) = tokio::join!(a.tunnel.open("b", open()), owner);
            let mut near = near.unwrap();
            if half_closed_before {
                near.shutdown().await.unwrap();
                let mut byte = [0];
                assert_eq!(far.read(&mut byte).await.unwrap(), 0);
            }
            far.write_all(b"half of the ans").await.unwrap();
            far.flush().await.unwrap();
            let mut part = [0; 15];
            near.read_exact(&mut part).await.unwrap();
            drop(far);
            let mut rest = Vec::new();
            let error = near.read_to_end(&mut rest).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "half closed before: {half_closed_before}");
        }
        // Towards the owner as well.
        let owner = async { acceptor.accept().await.unwrap().accept().await.unwrap() };
        let (near, mut far) = tokio::join!(a.tunnel.open("b", open()), owner);
        drop(near.unwrap());
        let error = far.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        // And a writer learns of it.
        let wrote = async {
            loop {
                if let Err(e) = far.write_all(&[0; 4096]).await {
                    return e;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), wrote).await.expect("the writer goes on for ever");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_holds_its_own_stream_only() {
    let (a, mut b) = pair(Kind::Tcp).await;
    let mut acceptor = b.acceptor.take().unwrap();
    let owner = async { acceptor.accept().await.unwrap().accept().await.unwrap() };
    let (near, mut far) = tokio::join!(a.tunnel.open("b", open()), owner);
    let mut near = near.unwrap();
    // The far end does not read: the writer stalls within the flow-control window.
    let chunk = vec![7u8; 1 << 20];
    let mut written = 0u64;
    while let Ok(n) = tokio::time::timeout(Duration::from_millis(300), near.write(&chunk)).await {
        written += n.unwrap() as u64;
        assert!(written < 64 << 20, "nothing bounds what a stalled reader buffers");
    }
    // Other streams of the same connection are not held.
    let server = serve(acceptor, echo);
    tokio::time::timeout(Duration::from_secs(5), echo_round(&a, "b", 1_000_000))
        .await
        .expect("held by another stream");
    // And the stalled one goes on when its reader does.
    let reader = async {
        let mut total = 0u64;
        let mut buffer = vec![0; 65536];
        loop {
            match far.read(&mut buffer).await.unwrap() {
                0 => return total,
                n => total += n as u64,
            }
        }
    };
    let total = tokio::time::timeout(Duration::from_secs(10), async {
        tokio::join!(reader, async {
            near.shutdown().await.unwrap();
        })
        .0
    })
    .await
    .unwrap();
    assert_eq!(total, written);
    server.abort();
}
