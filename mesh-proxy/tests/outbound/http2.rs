//! HTTP/2 and gRPC.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{future::join_all, stream};
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use mesh_api::{Resource, model::Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    upstream::{Upstream, collect, full},
    world::{ClientBody, Options, VIP, World, endpoints, service},
};

const TO: &str = "10.96.0.1:80";
const HOST: &str = "web.default";

async fn world(protocol: Protocol) -> (World, Arc<Upstream>) {
    let upstream = Upstream::start("v1").await;
    let resources = vec![
        Resource::Service(service("web", VIP, 80, protocol)),
        endpoints("web", 80, &[(upstream.addr, "v1")]),
    ];
    let world = World::start(resources, Options { called: vec![TO.parse().unwrap()], ..Options::default() });
    (world, upstream)
}

fn h2_get(path: &str) -> Request<ClientBody> {
    Request::get(format!("http://{HOST}{path}")).body(full("")).unwrap()
}

fn grpc(body: ClientBody) -> Request<ClientBody> {
    Request::post(format!("http://{HOST}/test.Echo/Call"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

/// A body that is fed from a channel.
fn fed() -> (tokio::sync::mpsc::Sender<&'static str>, ClientBody) {
    let (tx, rx) = tokio::sync::mpsc::channel(1);
    let frames = stream::unfold(rx, |mut rx: tokio::sync::mpsc::Receiver<&'static str>| async move {
        let next = rx.recv().await?;
        Some((Ok(Frame::data(Bytes::from_static(next.as_bytes()))), rx))
    });
    (tx, BodyExt::boxed(StreamBody::new(frames)))
}

#[tokio::test]
async fn streams_share_one_connection_and_do_not_wait_for_each_other() {
    for protocol in [Protocol::Unspecified, Protocol::Http, Protocol::Http2, Protocol::Grpc] {
        let (world, upstream) = world(protocol).await;
        let client = world.http2(TO).await;
        let call = |i: u32| {
            let mut client = client.clone();
            async move {
                let mut request = h2_get(&format!("/{i}"));
                // The first one is slow; it must not hold the others up.
                if i == 0 {
                    request.headers_mut().insert("x-test-delay-ms", "1500".parse().unwrap());
                }
                client.send_request(request).await.unwrap()
            }
        };
        let slow = tokio::task::spawn(call(0));
        let start = std::time::Instant::now();
        for response in join_all((1..40).map(call)).await {
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(collect(response.into_body()).await.0, "v1");
        }
        assert!(start.elapsed() < Duration::from_millis(1200), "{protocol:?}: {:?}", start.elapsed());
        assert_eq!(slow.await.unwrap().status(), StatusCode::OK);
        assert_eq!(upstream.last().version, Version::HTTP_2, "{protocol:?}");
        assert_eq!(upstream.last().authority, HOST);
        let connections = upstream.connections.load(std::sync::atomic::Ordering::SeqCst);
        assert_eq!(connections, 1, "{protocol:?}: a burst makes one connection");
    }
}

#[tokio::test]
async fn an_http1_client_reaches_an_http2_port() {
    let (world, upstream) = world(Protocol::Http2).await;
    let response = world.get(TO, HOST, "/x").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!((upstream.last().version, upstream.last().authority.as_str()), (Version::HTTP_2, HOST));
}

#[tokio::test]
async fn grpc_unary_with_trailers() {
    let (world, upstream) = world(Protocol::Grpc).await;
    let mut client = world.http2(TO).await;
    let response = client.send_request(grpc(full("message"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let (data, trailers) = collect(response.into_body()).await;
    assert_eq!(data, "message");
    assert_eq!(trailers.unwrap()["grpc-status"], "0");
    assert_eq!(upstream.last().headers["te"], "trailers");
    world
        .metric(&[
            "istio_requests_total{",
            "grpc_response_status=\"0\"",
            "request_protocol=\"grpc\"",
            "response_code=\"200\"",
        ])
        .await;
}

#[tokio::test]
async fn grpc_streams_flow_both_ways_at_once() {
    let (world, _upstream) = world(Protocol::Grpc).await;
    let mut client = world.http2(TO).await;
    let (tx, body) = fed();
    let response = client.send_request(grpc(body)).await.unwrap();
    let mut body = response.into_body();
    for message in ["one", "two", "three"] {
        tx.send(message).await.unwrap();
        // The answer comes before the next message is sent.
        let frame = tokio::time::timeout(Duration::from_secs(5), body.frame()).await.unwrap();
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), message);
    }
    drop(tx);
    let last = body.frame().await.unwrap().unwrap();
    assert_eq!(last.into_trailers().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn failures_are_grpc_statuses_for_grpc_callers() {
    let (world, _upstream) = world(Protocol::Grpc).await;
    world.apply(vec![endpoints("web", 80, &[])]);
    let mut client = world.http2(TO).await;
    let response = client.send_request(grpc(full("x"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(response.headers()["grpc-message"], "no healthy upstream");
    assert_eq!(response.headers()["content-type"], "application/grpc");
    world.metric(&["istio_requests_total{", "response_flags=\"UH\"", "grpc_response_status=\"14\""]).await;
}

#[tokio::test]
async fn a_grpc_status_in_the_head_is_retried_with_the_same_message() {
    // The first connection attempt's stream says UNAVAILABLE in the head, which the default policy retries.
    let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::task::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let calls = Arc::clone(&counter);
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let calls = Arc::clone(&calls);
                async move {
                    let first = calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
                    let body = request.into_body().collect().await?.to_bytes();
                    let mut response = http::Response::new(full(body));
                    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
                    let status = if first { "14" } else { "0" };
                    response.headers_mut().insert("grpc-status", status.parse().unwrap());
                    Ok::<_, hyper::Error>(response)
                }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let exec = hyper_util::rt::TokioExecutor::new();
            tokio::task::spawn(hyper::server::conn::http2::Builder::new(exec).serve_connection(io, service));
        }
    });
    let resources = vec![
        Resource::Service(service("web", VIP, 80, Protocol::Grpc)),
        endpoints("web", 80, &[(addr, "v1")]),
    ];
    let world = World::start(resources, Options { called: vec![TO.parse().unwrap()], ..Options::default() });
    let mut client = world.http2(TO).await;
    let response = client.send_request(grpc(full("the message"))).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "0");
    assert_eq!(collect(response.into_body()).await.0, "the message");
    assert_eq!(calls.load(std::sync::atomic::Ordering::SeqCst), 2);
}

#[tokio::test]
async fn too_large_a_head_is_refused() {
    let (world, upstream) = world(Protocol::Http2).await;
    let mut client = world.http2(TO).await;
    let mut request = h2_get("/");
    for i in 0..20 {
        let name: http::HeaderName = format!("x-big-{i}").parse().unwrap();
        request.headers_mut().insert(name, "a".repeat(5000).parse().unwrap());
    }
    match client.send_request(request).await {
        Ok(response) => assert_eq!(response.status(), 431),
        Err(e) => assert!(e.to_string().contains("http2"), "{e}"),
    }
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn ten_megabytes_over_http2() {
    let (world, _upstream) = world(Protocol::Http2).await;
    let mut client = world.http2(TO).await;
    let request = Request::post(format!("http://{HOST}/len")).body(full(vec![1; 10 << 20])).unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(collect(response.into_body()).await.0, (10 << 20).to_string());
    let response = client.send_request(h2_get("/big")).await.unwrap();
    assert_eq!(collect(response.into_body()).await.0.len(), 10 << 20);
}

#[tokio::test]
async fn an_http2_client_of_an_http1_only_endpoint_gets_an_answer() {
    // An endpoint that speaks only HTTP/1 behind an undeclared port cannot serve an HTTP/2 client: it has to fail,
    // not hang.
    let addr = crate::upstream::tcp(|mut s| async move {
        let mut head = [0; 1024];
        let _n = s.read(&mut head).await;
        let _sent = s.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
    })
    .await;
    let resources = vec![
        Resource::Service(service("web", VIP, 80, Protocol::Unspecified)),
        endpoints("web", 80, &[(addr, "v1")]),
    ];
    let world = World::start(resources, Options { called: vec![TO.parse().unwrap()], ..Options::default() });
    let mut client = world.http2(TO).await;
    let call = client.send_request(h2_get("/"));
    let response = tokio::time::timeout(Duration::from_secs(5), call).await.unwrap().unwrap();
    assert!(response.status().is_server_error(), "{}", response.status());
}
