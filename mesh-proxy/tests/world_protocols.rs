//! Every protocol across nodes and on one node, with the real programs in a closed network.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(missing_docs, unreachable_pub, reason = "a test is no interface")]

#[path = "world/support.rs"]
mod support;

use std::{
    convert::Infallible,
    sync::OnceLock,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_testkit::{
    echo::grpc::{EchoReply, EchoRequest, Reader, SERVICE, encode},
    mesh::Mesh,
};
use support::{call, connect, received, up};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;

/// One mesh for all tests of this file: they run at the same time, as its users do.
fn mesh() -> &'static Mesh {
    static MESH: OnceLock<Mesh> = OnceLock::new();
    MESH.get_or_init(|| up("protocols"))
}

const LIMIT: Duration = Duration::from_secs(20);

/// The service on another node, and the one on the client's own.
const BOTH: [&str; 2] = ["far", "near"];

fn run<F: Future<Output = ()>>(test: F) {
    // Bringing the world up is not part of a test's time.
    mesh();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(LIMIT, test).await.expect("the test took too long") });
    // A child's standard input may still be in the hands of a blocking thread.
    runtime.shutdown_background();
}

#[test]
fn every_protocol_reaches_both_services() {
    for host in BOTH {
        for (url, args) in [
            (format!("http://{host}:8080/x"), vec![]),
            (format!("http://{host}.default.svc.cluster.local:8080/x"), vec![]),
            (format!("http://{host}:8081/x"), vec!["--h2"]),
            (format!("http://{host}:8080/x"), vec!["--h2"]),
            (format!("http://{host}:8082/"), vec!["--grpc"]),
            (format!("http://{host}:8083/detected"), vec![]),
            (format!("http://{host}:8083/detected"), vec!["--h2"]),
            (format!("ws://{host}:8080/"), vec![]),
            (format!("tcp://{host}:9000"), vec![]),
            (format!("https://{host}:8443/"), vec![]),
            (format!("https://{host}:8443/"), vec!["--h2"]),
        ] {
            let report = call(mesh(), &url, &[vec!["-n", "10"], args].concat());
            assert_eq!(report.by_name.get(&format!("{host}-1")), Some(&10), "{url}: {report:?}");
        }
    }
}

#[test]
fn http1_connections_are_kept() {
    for host in BOTH {
        let url = format!("http://{host}:8084/");
        let report = call(mesh(), &url, &["-n", "50"]);
        assert_eq!(report.connections, 1, "the client's own connection is kept");
        // The connection to the endpoint is kept as well: the last request was not the first on it.
        let body = received(report.last_body.as_bytes());
        assert!(body["onConnection"].as_u64().unwrap() > 10, "{body}");
        assert_eq!(body["authority"], format!("{host}:8084"));
    }
}

async fn read_until(io: &mut (impl tokio::io::AsyncRead + Unpin), text: &str) -> String {
    let mut all = Vec::new();
    let mut buffer = [0_u8; 4096];
    loop {
        let n = timeout(LIMIT, io.read(&mut buffer)).await.unwrap().unwrap();
        all.extend_from_slice(&buffer[..n]);
        let so_far = String::from_utf8_lossy(&all);
        if so_far.contains(text) {
            return so_far.into_owned();
        }
        assert!(n > 0, "{text:?} did not come, only:\n{so_far}");
    }
}

#[test]
fn expect_100_continue_is_answered_before_the_body() {
    run(async {
        for host in BOTH {
            let mut wire = connect(mesh(), "client", &format!("{host}:8080"));
            let head = format!(
                "POST /c HTTP/1.1\r\nHost: {host}:8080\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
            );
            wire.io.write_all(head.as_bytes()).await.unwrap();
            wire.io.flush().await.unwrap();
            let first = read_until(&mut wire.io, "\r\n\r\n").await;
            assert!(first.starts_with("HTTP/1.1 100"), "{host}: {first}");
            wire.io.write_all(b"hello").await.unwrap();
            wire.io.flush().await.unwrap();
            let answer = read_until(&mut wire.io, "\"protocol\"").await;
            assert!(answer.contains("200 OK") && answer.contains("\"bodyBytes\":5"), "{host}: {answer}");
        }
    });
}

#[test]
fn chunked_bodies_stream_both_ways() {
    run(async {
        for host in BOTH {
            let mut wire = connect(mesh(), "client", &format!("{host}:8080"));
            let head = format!("POST /c HTTP/1.1\r\nHost: {host}:8080\r\nTransfer-Encoding: chunked\r\n\r\n");
            wire.io.write_all(head.as_bytes()).await.unwrap();
            for piece in ["4\r\nWiki\r\n", "6\r\npedia \r\n", "0\r\n\r\n"] {
                wire.io.write_all(piece.as_bytes()).await.unwrap();
                wire.io.flush().await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let answer = read_until(&mut wire.io, "\"protocol\"").await;
            assert!(answer.contains("\"bodyBytes\":10"), "{host}: {answer}");
            // Ten pieces, 100 ms apart: the first must not wait for the last.
            let mut wire = connect(mesh(), "client", &format!("{host}:8080"));
            let head = format!(
                "GET /?x-echo-bytes=160&x-echo-chunks=10&x-echo-chunk-delay-ms=100 HTTP/1.1\r\nHost: {host}:8080\r\n\r\n"
            );
            wire.io.write_all(head.as_bytes()).await.unwrap();
            wire.io.flush().await.unwrap();
            read_until(&mut wire.io, "0123456789abcdef").await;
            let start = Instant::now();
            read_until(&mut wire.io, "\r\n0\r\n\r\n").await;
            assert!(
                start.elapsed() > Duration::from_millis(500),
                "{host}: held back until {:?}",
                start.elapsed()
            );
        }
    });
}

#[test]
fn ten_megabytes_pass_both_ways() {
    let size = 10 << 20;
    let bytes = size.to_string();
    let hash = {
        use sha2::Digest as _;
        mesh_testkit::echo::hex(&sha2::Sha256::digest(mesh_testkit::echo::http::pattern(size)))
    };
    for host in BOTH {
        for (port, extra) in [(8080, None), (8081, Some("--h2"))] {
            let url = format!("http://{host}:{port}/");
            let mut args = vec!["-X", "POST", "--body-bytes", &bytes, "--timeout", "15"];
            args.extend(extra);
            let report = call(mesh(), &url, &args);
            let body = received(report.last_body.as_bytes());
            assert_eq!(
                (body["bodyBytes"].as_u64(), body["bodySha256"].as_str()),
                (Some(size as u64), Some(&*hash))
            );
            let header = format!("x-echo-bytes: {bytes}");
            let report = call(
                mesh(),
                &url,
                &[vec!["-H", &header, "--timeout", "15"], extra.into_iter().collect()].concat(),
            );
            assert_eq!(report.last_body.len(), size);
        }
        let report =
            call(mesh(), &format!("tcp://{host}:9000"), &["--body-bytes", &bytes, "--timeout", "15"]);
        assert!(report.last_body.starts_with(&format!("@end {bytes} {hash}")), "{}", report.last_body);
    }
}

#[test]
fn headers_pass_up_to_64_kib_and_are_refused_beyond() {
    for host in BOTH {
        let url = format!("http://{host}:8080/");
        let header = |i: usize| format!("x-big-{i}: {}", "v".repeat(6_000));
        let args = |n: usize| -> Vec<String> { (0..n).flat_map(|i| ["-H".to_owned(), header(i)]).collect() };
        let fits = args(10);
        let fits: Vec<&str> = fits.iter().map(String::as_str).collect();
        let report = call(mesh(), &url, &fits);
        let body = received(report.last_body.as_bytes());
        assert_eq!(body["headers"]["x-big-9"].as_str().map(str::len), Some(6_000));
        let too_many = args(12);
        let too_many: Vec<&str> = too_many.iter().map(String::as_str).collect();
        let report = mesh().call("client", &url, &too_many).unwrap();
        assert_eq!(report.by_status.get(&431), Some(&1), "{host}: {report:?}");
        // Over HTTP/2 the same limit holds.
        let url = format!("http://{host}:8081/");
        call(mesh(), &url, &[vec!["--h2"], fits].concat());
        let report = mesh().call("client", &url, &[vec!["--h2"], too_many].concat()).unwrap();
        assert!(!report.by_status.contains_key(&200), "{host}: {report:?}");
        call(mesh(), &url, &["--h2"]);
    }
}

#[test]
fn http2_requests_of_one_connection_do_not_wait_for_each_other() {
    run(async {
        for host in BOTH {
            let wire = connect(mesh(), "client", &format!("{host}:8081"));
            let (sender, connection) =
                http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(wire.io))
                    .await
                    .unwrap();
            let requests = async {
                let start = Instant::now();
                let calls = (0..40).map(|i| {
                    let mut sender = sender.clone();
                    let delay = if i == 0 { 800 } else { 200 };
                    let request = Request::get(format!("http://{host}:8081/{i}?x-echo-delay-ms={delay}"));
                    async move {
                        sender.ready().await.unwrap();
                        let answer =
                            sender.send_request(request.body(Full::default()).unwrap()).await.unwrap();
                        assert_eq!(answer.status(), 200);
                        answer.into_body().collect().await.unwrap();
                        start.elapsed()
                    }
                });
                let took: Vec<Duration> = stream::iter(calls).buffer_unordered(40).collect().await;
                // One after the other they would take 8.6 s; behind the slow one, 0.8 s each.
                let fast = took.iter().filter(|t| **t < Duration::from_millis(750)).count();
                assert!(fast >= 39, "{host}: {took:?}");
            };
            tokio::select! { () = requests => {}, r = connection => panic!("{host}: the connection ended: {r:?}") }
        }
    });
}

#[test]
fn grpc_streams_message_by_message_and_keeps_its_trailers() {
    run(async {
        for host in BOTH {
            let wire = connect(mesh(), "client", &format!("{host}:8082"));
            type Body = StreamBody<ReceiverStream<Result<Frame<Bytes>, Infallible>>>;
            let (sender, connection) =
                http2::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(wire.io)).await.unwrap();
            let calls = async {
                // Both sides speak in turn: a proxy that waits for the end of the request would hang here.
                let (send, body) = mpsc::channel(1);
                let mut reader = grpc(&sender, host, "Bidi", body).await;
                for i in 0..5 {
                    let message = EchoRequest { text: format!("m{i}"), ..EchoRequest::default() };
                    send.send(Ok(Frame::data(encode(&message)))).await.unwrap();
                    let reply: EchoReply = reader.next().await.unwrap().unwrap();
                    assert_eq!((reply.text, reply.sequence), (format!("m{i}"), i));
                }
                drop(send);
                assert!(reader.next::<EchoReply>().await.unwrap().is_none());
                assert_eq!(reader.trailers.unwrap()["grpc-status"], "0");
                // A stream of replies arrives one by one.
                let (send, body) = mpsc::channel(1);
                let ask = EchoRequest { text: "s".into(), count: 5, delay_ms: 100, status: 0 };
                send.send(Ok(Frame::data(encode(&ask)))).await.unwrap();
                drop(send);
                let mut reader = grpc(&sender, host, "Server", body).await;
                let _first: EchoReply = reader.next().await.unwrap().unwrap();
                let start = Instant::now();
                let mut rest = 0;
                while reader.next::<EchoReply>().await.unwrap().is_some() {
                    rest += 1;
                }
                assert_eq!(rest, 4);
                assert!(start.elapsed() > Duration::from_millis(200), "{host}: replies were held back");
                // An error after the headers comes in the trailers.
                let (send, body) = mpsc::channel(1);
                let ask = EchoRequest { status: 5, ..EchoRequest::default() };
                send.send(Ok(Frame::data(encode(&ask)))).await.unwrap();
                drop(send);
                let mut reader = grpc(&sender, host, "Unary", body).await;
                assert!(reader.next::<EchoReply>().await.unwrap().is_none());
                let trailers = reader.trailers.unwrap();
                assert_eq!(
                    (&trailers["grpc-status"], &trailers["grpc-message"]),
                    (&"5".parse().unwrap(), &"as asked".parse().unwrap())
                );
            };
            tokio::select! { () = calls => {}, r = connection => panic!("{host}: the connection ended: {r:?}") }
        }
    });
}

async fn grpc<B>(
    sender: &http2::SendRequest<B>,
    host: &str,
    method: &str,
    body: mpsc::Receiver<Result<Frame<Bytes>, Infallible>>,
) -> Reader<hyper::body::Incoming>
where
    B: http_body::Body + From<StreamBody<ReceiverStream<Result<Frame<Bytes>, Infallible>>>> + Send + 'static,
{
    let request = Request::post(format!("http://{host}:8082{SERVICE}{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(B::from(StreamBody::new(ReceiverStream::new(body))))
        .unwrap();
    let mut sender = sender.clone();
    sender.ready().await.unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/grpc");
    Reader::new(answer.into_body())
}

#[test]
fn websockets_stay_open() {
    for host in BOTH {
        let report = call(mesh(), &format!("ws://{host}:8080/chat"), &["-n", "20", "--rate", "40"]);
        assert_eq!((report.connections, report.by_name.len()), (1, 1), "{report:?}");
    }
}

#[test]
fn tcp_passes_half_closes_on_in_both_directions() {
    run(async {
        for host in BOTH {
            // The client ends first: everything still comes back.
            let wire = connect(mesh(), "client", &format!("{host}:9000"));
            let (mut read, mut write) = wire.io.into_inner();
            write.write_all(b"some words").await.unwrap();
            write.flush().await.unwrap();
            drop(write);
            let mut all = String::new();
            timeout(LIMIT, read.read_to_string(&mut all)).await.unwrap().unwrap();
            assert!(all.starts_with("some words@end 10 "), "{host}: {all:?}");
            // The server ends first: the client sees that, and can still send.
            let mut wire = connect(mesh(), "client", &format!("{host}:9000"));
            wire.io.write_all(b"@half-close\n").await.unwrap();
            wire.io.flush().await.unwrap();
            let mut line = String::new();
            timeout(LIMIT, wire.io.read_to_string(&mut line)).await.unwrap().unwrap();
            assert!(line.contains(&format!("\"{host}-1\"")), "{host}: {line}");
            for _ in 0..20 {
                wire.io.write_all(&[b'x'; 10_000]).await.expect("sending after the server's end");
                wire.io.flush().await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    // Port `banner` says nothing of a protocol: the proxy waits a bounded time for the client, then passes on.
    run(async {
        let mut wire = connect(mesh(), "client", "first:9001");
        let start = Instant::now();
        read_until(&mut wire.io, "\"first-1\"").await;
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    });
}

#[test]
fn a_silent_client_delays_nobody() {
    let wires: Vec<_> = {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        let wires = ["8080", "8081", "8083", "8443", "9000"]
            .iter()
            .flat_map(|port| (0..8).map(move |_| format!("far:{port}")))
            .map(|to| connect(mesh(), "client", &to))
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        let report = call(mesh(), "http://far:8083/", &["-n", "50", "--no-keep-alive"]);
        assert!(report.latency_ms.p99 < 1_000.0, "{report:?}");
        let report = call(mesh(), "tcp://far:9000", &["-n", "20"]);
        assert!(report.latency_ms.p99 < 1_000.0, "{report:?}");
        wires
    };
    drop(wires);
}

#[test]
fn ambiguous_requests_are_refused_and_never_reach_the_service() {
    run(async {
        let bodies = [
            "POST /a HTTP/1.1\r\nHost: far:8080\r\nContent-Length: 30\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
            "POST /b HTTP/1.1\r\nHost: far:8080\r\nContent-Length: 3\r\nContent-Length: 30\r\n\r\nabc",
            "GET /c HTTP/1.1\r\nHost: far:8080\r\nHost: near:8080\r\n\r\n",
            "GET /d HTTP/1.1\r\nHost: far:8080\r\nx y: z\r\n\r\n",
            "POST /e HTTP/1.1\r\nHost: far:8080\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        ];
        for body in bodies {
            let mut wire = connect(mesh(), "client", "far:8080");
            wire.io.write_all(body.as_bytes()).await.unwrap();
            wire.io.flush().await.unwrap();
            let answer = read_until(&mut wire.io, "\r\n\r\n").await;
            let status = answer.get(9..12).unwrap_or_default().to_owned();
            assert!(["400", "501"].contains(&status.as_str()), "{body:?} was answered with {answer}");
            assert!(!answer.contains("smuggled"));
        }
        call(mesh(), "http://far:8080/", &[]);
    });
}

#[test]
fn garbage_for_the_name_server_disturbs_nobody() {
    run(async {
        // Datagrams that are no DNS, and a TCP client that promises a message and sends something else.
        let garbage = mesh()
            .call("client", "udp://169.254.96.16:53", &["-n", "50", "-c", "10", "--timeout", "0.1"])
            .unwrap();
        assert_eq!(garbage.sent, 50);
        for bytes in [&b"\xff\xff short"[..], b"\x00\x05hello", b"\x00\x00", b"GET / HTTP/1.1\r\n\r\n"] {
            let mut wire = connect(mesh(), "client", "169.254.96.16:53");
            wire.io.write_all(bytes).await.unwrap();
            wire.io.flush().await.unwrap();
        }
        let report =
            call(mesh(), "http://far.default.svc.cluster.local:8080/", &["-n", "20", "--no-keep-alive"]);
        assert!(report.latency_ms.p99 < 1_000.0, "{report:?}");
        let unknown = mesh().call("client", "http://nobody.default.svc.cluster.local:8080/", &[]).unwrap();
        assert!(unknown.errors.keys().any(|e| e.starts_with("lookup: ")), "{unknown:?}");
    });
}
