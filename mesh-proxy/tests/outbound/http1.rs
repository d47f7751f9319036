//! HTTP/1: what has to pass unharmed, and what must not pass.

use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use mesh_api::{Resource, model::Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    upstream::{Upstream, collect, full},
    world::{Options, VIP, World, client1, endpoints, get, service},
};

const TO: &str = "10.96.0.1:80";
const HOST: &str = "web.default";

async fn world(protocol: Protocol) -> (World, std::sync::Arc<Upstream>) {
    let upstream = Upstream::start("v1").await;
    let resources = vec![
        Resource::Service(service("web", VIP, 80, protocol)),
        endpoints("web", 80, &[(upstream.addr, "v1")]),
    ];
    let world = World::start(resources, Options { called: vec![TO.parse().unwrap()], ..Options::default() });
    (world, upstream)
}

#[tokio::test]
async fn keep_alive_uses_one_connection_on_each_side() {
    let (world, upstream) = world(Protocol::Http).await;
    let mut client = world.http1(TO).await;
    for i in 0..20 {
        let response = client.send_request(get(HOST, &format!("/{i}"))).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(collect(response.into_body()).await.0, "v1");
    }
    assert_eq!(upstream.requests(), 20);
    assert_eq!(upstream.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(upstream.last().path, "/19");
    assert_eq!(upstream.last().authority, HOST);
}

#[tokio::test]
async fn an_undeclared_port_is_recognised() {
    let (world, upstream) = world(Protocol::Unspecified).await;
    let response = world.get(TO, HOST, "/x?y=1").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(upstream.last().path, "/x?y=1");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (world, upstream) = world(Protocol::Http).await;
    let mut stream = world.dial(TO).await;
    let one =
        |path: &str, ms: u32| format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nx-test-delay-ms: {ms}\r\n\r\n");
    // The first is the slowest.
    let all =
        one("/a", 150) + &one("/b", 50) + &one("/c", 0).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    stream.write_all(all.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
    let paths: Vec<_> = upstream.seen.lock().unwrap().iter().map(|s| s.path.clone()).collect();
    assert_eq!(paths, ["/a", "/b", "/c"]);
}

#[tokio::test]
async fn chunked_bodies_and_trailers_pass_both_ways() {
    let (world, _upstream) = world(Protocol::Http).await;
    let mut stream = world.dial(TO).await;
    let request = format!(
        "POST /echo HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nTrailer: x-sum\r\nConnection: close\r\n\r\n\
         5\r\nhello\r\n6\r\n world\r\n0\r\nx-sum: 11\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.to_lowercase().contains("transfer-encoding: chunked"), "{text}");
    assert!(text.contains("hello") && text.contains("world"), "{text}");
}

#[tokio::test]
async fn ten_megabytes_go_up_and_come_down() {
    let (world, _upstream) = world(Protocol::Http).await;
    let mut client = world.http1(TO).await;
    let size = 10 << 20;
    let body = full(vec![b'u'; size]);
    let request = Request::post("/len").header("host", HOST).body(body).unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(collect(response.into_body()).await.0, size.to_string());
    let response = client.send_request(get(HOST, "/big")).await.unwrap();
    assert_eq!(collect(response.into_body()).await.0.len(), size);
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_writer() {
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = std::sync::Arc::clone(&sent);
    let addr = crate::upstream::tcp(move |mut s| {
        let sent = std::sync::Arc::clone(&counter);
        async move {
            let mut head = [0; 1024];
            let _n = s.read(&mut head).await;
            s.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n").await.unwrap();
            let chunk = vec![0; 64 << 10];
            while s.write_all(&chunk).await.is_ok() {
                sent.fetch_add(chunk.len(), std::sync::atomic::Ordering::SeqCst);
            }
        }
    })
    .await;
    let resources = vec![
        Resource::Service(service("web", VIP, 80, Protocol::Http)),
        endpoints("web", 80, &[(addr, "v1")]),
    ];
    let world = World::start(resources, Options { called: vec![TO.parse().unwrap()], ..Options::default() });
    let response = world.get(TO, HOST, "/").await;
    assert_eq!(response.status(), StatusCode::OK);
    // Nobody reads the body. What is on its way is what sockets and buffers hold, and no more.
    let mut before = 0;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = sent.load(std::sync::atomic::Ordering::SeqCst);
        if now == before && now > 0 {
            break;
        }
        before = now;
    }
    assert!(before < 64 << 20, "{before} bytes taken for a reader that reads nothing");
    drop(response);
}

#[tokio::test]
async fn expect_continue_waits_for_the_endpoint() {
    let (world, upstream) = world(Protocol::Http).await;
    let mut stream = world.dial(TO).await;
    let head =
        format!("POST /len HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut buffer = [0; 256];
    let n = stream.read(&mut buffer).await.unwrap();
    assert!(buffer[..n].starts_with(b"HTTP/1.1 100"), "{:?}", String::from_utf8_lossy(&buffer[..n]));
    assert_eq!(upstream.requests(), 1, "the endpoint was asked first");
    stream.write_all(b"12345").await.unwrap();
    let n = stream.read(&mut buffer).await.unwrap();
    assert!(buffer[..n].starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&buffer[..n]));
}

#[tokio::test]
async fn a_refused_expectation_saves_the_body() {
    let addr = crate::upstream::tcp(|mut s| async move {
        let mut head = [0; 1024];
        let _n = s.read(&mut head).await;
        let _sent = s
            .write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await;
    })
    .await;
    let resources = vec![
        Resource::Service(service("web", VIP, 80, Protocol::Http)),
        endpoints("web", 80, &[(addr, "v1")]),
    ];
    let world = World::start(resources, Options { called: vec![TO.parse().unwrap()], ..Options::default() });
    let mut stream = world.dial(TO).await;
    let head =
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut buffer = [0; 256];
    let n = stream.read(&mut buffer).await.unwrap();
    assert!(buffer[..n].starts_with(b"HTTP/1.1 417"), "{:?}", String::from_utf8_lossy(&buffer[..n]));
}

#[tokio::test]
async fn websocket_bytes_pass_both_ways() {
    let (world, _upstream) = world(Protocol::Http).await;
    let mut client = world.http1(TO).await;
    let request = Request::get("/ws")
        .header("host", HOST)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .body(full(""))
        .unwrap();
    let mut response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()[header::UPGRADE], "websocket");
    let upgraded = hyper::upgrade::on(&mut response).await.unwrap();
    let mut io = hyper_util::rt::TokioIo::new(upgraded);
    for message in [&b"one"[..], &[0, 255, 10, 13], &vec![7; 100_000]] {
        let mut back = vec![0; message.len()];
        let (sent, got) = {
            let (mut r, mut w) = tokio::io::split(&mut io);
            tokio::join!(async { w.write_all(message).await }, async {
                r.read_exact(&mut back).await.map(drop)
            })
        };
        sent.unwrap();
        got.unwrap();
        assert_eq!(back, message);
    }
    io.shutdown().await.unwrap();
    let mut rest = Vec::new();
    io.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
    world.metric(&["istio_requests_total{", "response_code=\"101\""]).await;
}

#[tokio::test]
async fn http2_by_upgrade_would_pass_the_rules_by_and_is_not_offered() {
    let (world, upstream) = world(Protocol::Http).await;
    let mut client = world.http1(TO).await;
    let request = Request::get("/")
        .header("host", HOST)
        .header(header::CONNECTION, "Upgrade, HTTP2-Settings")
        .header(header::UPGRADE, "h2c")
        .header("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA")
        .body(full(""))
        .unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), StatusCode::OK);
    let seen = upstream.last().headers;
    assert!(!seen.contains_key(header::UPGRADE) && !seen.contains_key("http2-settings"), "{seen:?}");
}

#[tokio::test]
async fn http_1_0_without_host_reaches_what_was_called() {
    let (world, upstream) = world(Protocol::Http).await;
    let mut stream = world.dial(TO).await;
    stream.write_all(b"GET /old HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.contains(" 200 OK"), "{text}");
    assert!(text.ends_with("v1"), "{text}");
    assert_eq!(upstream.last().path, "/old");
}

#[tokio::test]
async fn heads_beyond_64_kilobytes_are_refused_and_smaller_ones_pass() {
    let (world, upstream) = world(Protocol::Http).await;
    let head = |size: usize| {
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nx-big: {}\r\nConnection: close\r\n\r\n", "a".repeat(size))
    };
    let mut stream = world.dial(TO).await;
    stream.write_all(head(70 << 10).as_bytes()).await.unwrap();
    let mut text = String::new();
    let _reset = stream.read_to_string(&mut text).await;
    assert!(text.starts_with("HTTP/1.1 431"), "{text}");
    assert_eq!(upstream.requests(), 0);
    let mut stream = world.dial(TO).await;
    stream.write_all(head(60 << 10).as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{}", &text[..text.len().min(80)]);
    assert_eq!(upstream.last().headers["x-big"].len(), 60 << 10);
}

#[tokio::test]
async fn what_could_be_read_in_two_ways_is_refused() {
    let (world, upstream) = world(Protocol::Http).await;
    for (name, head) in [
        (
            "both lengths",
            "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "both lengths, other order",
            "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        ),
        (
            "two different lengths",
            "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        ),
        ("a length that is a list", "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5, 6\r\n\r\nhello!"),
        ("a negative length", "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: -5\r\n\r\n"),
        ("chunked is not last", "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked, gzip\r\n\r\n"),
        ("an unknown coding", "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: xchunked\r\n\r\n"),
        ("a coding in HTTP/1.0", "POST / HTTP/1.0\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("two hosts", "GET / HTTP/1.1\r\nHost: web\r\nHost: other\r\n\r\n"),
        ("no host", "GET / HTTP/1.1\r\n\r\n"),
        ("a host with a path", "GET / HTTP/1.1\r\nHost: web/x\r\n\r\n"),
        ("a host with a user", "GET / HTTP/1.1\r\nHost: a@web\r\n\r\n"),
        ("a space before the colon", "GET / HTTP/1.1\r\nHost : web\r\n\r\n"),
        ("a folded line", "GET / HTTP/1.1\r\nHost: web\r\nx: a\r\n b\r\n\r\n"),
        ("a control character", "GET / HTTP/1.1\r\nHost: web\r\nx: a\x01b\r\n\r\n"),
        ("not HTTP", "\x16\x03\x01hello\r\n\r\n"),
    ] {
        let mut stream = world.dial(TO).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        let _reset = stream.read_to_string(&mut text).await;
        assert!(text.starts_with("HTTP/1.1 400"), "{name}: {text:?}");
    }
    assert_eq!(upstream.requests(), 0, "nothing of it reached the endpoint");
    // What the HTTP library refuses is counted when its connection has ended.
    world.metric(&["selvage_outbound_bad_requests_total 16"]).await;
}

#[tokio::test]
async fn what_concerns_one_connection_is_not_passed_on() {
    let (world, upstream) = world(Protocol::Http).await;
    let mut client = world.http1(TO).await;
    let request = Request::get("/")
        .header("host", HOST)
        .header("connection", "x-private, keep-alive")
        .header("x-private", "1")
        .header("keep-alive", "timeout=5")
        .header("proxy-authorization", "Basic c2VjcmV0")
        .header("x-public", "2")
        .body(full(""))
        .unwrap();
    client.send_request(request).await.unwrap();
    let seen = upstream.last().headers;
    for gone in ["x-private", "keep-alive", "proxy-authorization", "connection"] {
        assert!(!seen.contains_key(gone), "{gone} reached the endpoint");
    }
    assert_eq!(seen["x-public"], "2");
}

#[tokio::test]
async fn a_response_that_breaks_off_breaks_off_for_the_client_too() {
    let (world, _upstream) = world(Protocol::Http).await;
    let response = world.get(TO, HOST, "/cut").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.into_body().collect().await.is_err(), "a cut body must not look whole");
    world.metric(&["istio_requests_total{", "response_flags=\"UC\"", "response_code=\"200\""]).await;
}

#[tokio::test]
async fn a_connection_that_went_stale_is_replaced_unseen() {
    // Closes each connection shortly after its first answer.
    let addr = crate::upstream::tcp(|mut s| async move {
        let mut head = [0; 4096];
        let _n = s.read(&mut head).await;
        s.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    })
    .await;
    let resources = vec![
        Resource::Service(service("web", VIP, 80, Protocol::Http)),
        endpoints("web", 80, &[(addr, "v1")]),
    ];
    let world = World::start(resources, Options { called: vec![TO.parse().unwrap()], ..Options::default() });
    let mut client = world.http1(TO).await;
    for pause in [0, 2, 4, 5, 6, 8, 10, 20, 150] {
        tokio::time::sleep(Duration::from_millis(pause + 6)).await;
        let response = client.send_request(get(HOST, "/")).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "after {pause} ms");
        assert_eq!(collect(response.into_body()).await.0, "ok");
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_endpoint() {
    let (world, upstream) = world(Protocol::Http).await;
    let mut client = world.http1(TO).await;
    let request =
        Request::get("/").header("host", HOST).header("x-test-delay-ms", "60000").body(full("")).unwrap();
    let call = client.send_request(request);
    assert!(tokio::time::timeout(Duration::from_millis(200), call).await.is_err());
    assert_eq!(upstream.requests(), 1);
    drop(client);
    world.metric(&["istio_requests_total{", "response_flags=\"DC\"", "response_code=\"0\""]).await;
}

#[tokio::test]
async fn streamed_chunks_arrive_as_they_are_sent() {
    let (world, _upstream) = world(Protocol::Http).await;
    let start = std::time::Instant::now();
    let mut body = world.get(TO, HOST, "/trickle").await.into_body();
    let first = body.frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "0;");
    assert!(start.elapsed() < Duration::from_millis(600), "the first chunk waited for the last one");
}

#[tokio::test]
async fn a_silent_client_delays_nobody() {
    let (world, _upstream) = world(Protocol::Http).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(world.dial(TO).await);
    }
    let mut half = world.dial(TO).await;
    half.write_all(b"GET / HT").await.unwrap();
    let start = std::time::Instant::now();
    for _ in 0..20 {
        assert_eq!(world.get(TO, HOST, "/").await.status(), StatusCode::OK);
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_body_sent_in_pieces_is_not_collected() {
    let (world, _upstream) = world(Protocol::Http).await;
    let mut client = client1(world.dial(TO).await).await;
    let (tx, rx) = tokio::sync::mpsc::channel::<&'static str>(1);
    let frames = stream::unfold(rx, |mut rx| async move {
        let next = rx.recv().await?;
        Some((Ok(Frame::data(Bytes::from_static(next.as_bytes()))), rx))
    });
    let body = BodyExt::boxed(StreamBody::new(futures::StreamExt::map(frames, |f| f)));
    let body =
        http_body_util::combinators::BoxBody::new(body.map_err(|e: std::convert::Infallible| match e {}));
    let request = Request::post("/echo").header("host", HOST).body(body).unwrap();
    let call = tokio::task::spawn(async move { (client.send_request(request).await.unwrap(), client) });
    tx.send("first").await.unwrap();
    let (response, _client) = call.await.unwrap();
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    tx.send("second").await.unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "second");
    drop(tx);
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn an_unknown_host_goes_where_the_client_called() {
    let (world, upstream) = world(Protocol::Http).await;
    assert_eq!(world.get(TO, "stranger.example", "/").await.status(), StatusCode::OK);
    assert_eq!(upstream.last().authority, "stranger.example");
}

#[tokio::test]
async fn a_client_that_does_not_end_its_head_is_given_up() {
    let upstream = Upstream::start("v1").await;
    let resources = vec![
        Resource::Service(service("web", VIP, 80, Protocol::Http)),
        endpoints("web", 80, &[(upstream.addr, "v1")]),
    ];
    let config = mesh_proxy::outbound::OutboundConfig { sweep_s: 1, ..Default::default() };
    let world =
        World::start(resources, Options { config, called: vec![TO.parse().unwrap()], ..Options::default() });
    let mut slow = world.dial(TO).await;
    let mut idle = world.http1(TO).await;
    collect(idle.send_request(get(HOST, "/")).await.unwrap().into_body()).await;
    let mut uploading = world.dial(TO).await;
    let head = format!("POST /len HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\n");
    uploading.write_all(head.as_bytes()).await.unwrap();
    // A byte now and then does not count as progress.
    let begin = std::time::Instant::now();
    slow.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let mut closed = false;
    while begin.elapsed() < Duration::from_secs(6) && !closed {
        closed = slow.write_all(b"x").await.is_err();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(closed, "still open after {:?}", begin.elapsed());
    // Neither an idle client nor a slow body is disturbed.
    assert_eq!(idle.send_request(get(HOST, "/")).await.unwrap().status(), StatusCode::OK);
    uploading.write_all(b"four").await.unwrap();
    let mut buffer = [0; 256];
    let n = uploading.read(&mut buffer).await.unwrap();
    assert!(buffer[..n].starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&buffer[..n]));
}
