//! Bytes that are sent before the owner has answered: they arrive, or nobody has seen them.

use std::time::Duration;

use mesh_tunnel::{OpenError, Refusal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::common::{Kind, echo, eventually, metric, open, pair, serve};

const BOTH: [Kind; 2] = [Kind::Tcp, Kind::Quic];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_bytes_arrive_in_order_and_once() {
    for kind in BOTH {
        let (a, mut b) = pair(kind).await;
        let server = serve(b.acceptor.take().unwrap(), echo);
        let sent: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        for with in [true, false] {
            let stream = if with {
                a.tunnel.open_with("b", open(), &sent).await.unwrap()
            } else {
                a.tunnel.open_early("b", open()).await.unwrap()
            };
            let rest = sent[stream.early()..].to_vec();
            assert_eq!(rest.len(), if with { sent.len() - mesh_tunnel::MAX_EARLY } else { sent.len() });
            let (mut r, mut w) = tokio::io::split(stream);
            let write = async {
                w.write_all(&rest).await.unwrap();
                w.shutdown().await.unwrap();
            };
            let mut back = Vec::new();
            let ((), read) = tokio::join!(write, r.read_to_end(&mut back));
            read.unwrap();
            assert!(back == sent, "{} bytes", back.len());
        }
        server.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_the_error_of_the_first_read() {
    for kind in BOTH {
        let (a, mut b) = pair(kind).await;
        let server = serve(b.acceptor.take().unwrap(), async |incoming| {
            incoming.refuse(Refusal::ConnectRefused, "nobody there").await.unwrap();
        });
        let mut stream = a.tunnel.open_early("b", open()).await.unwrap();
        // The refusal may come before or after this.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
        for _ in 0..2 {
            let error = stream.read(&mut [0]).await.unwrap_err();
            let inner = error.get_ref().and_then(|e| e.downcast_ref::<OpenError>());
            assert!(
                matches!(inner, Some(OpenError::Refused { code: Refusal::ConnectRefused, .. })),
                "{error:?}"
            );
        }
        let refused = a.tunnel.open_with("b", open(), b"GET").await;
        assert!(matches!(refused, Err(OpenError::Refused { .. })), "{refused:?}");
        assert_eq!(metric(&a.registry, "selvage_tunnel_opens_total", Some("connect_refused")), 2.0);
        drop(stream);
        eventually("nothing stays", Duration::from_secs(5), || a.tunnel.streams() == 0).await;
        server.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_goes_after_the_first_bytes_is_not_asked_twice() {
    let (a, mut b) = pair(Kind::Tcp).await;
    let mut acceptor = b.acceptor.take().unwrap();
    let owner = async {
        // Takes the stream with the bytes, and is cut off before it answers.
        let incoming = acceptor.accept().await.unwrap();
        b.tunnel.set_peers(&[]).await;
        drop(incoming);
    };
    let (opened, ()) = tokio::join!(a.tunnel.open_with("b", open(), b"POST"), owner);
    assert!(matches!(opened, Err(OpenError::Spoken(_))), "{opened:?}");
}
