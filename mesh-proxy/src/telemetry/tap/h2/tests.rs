//! Real clients and servers of HTTP/2 with a tap between them.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2,
    server,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use crate::telemetry::tap::{
    Tapped,
    tests::{Heard, SPAN, TRACE, attribute},
};

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// Answers with what it heard, or as gRPC does.
async fn pod(request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
    let (head, body) = request.into_parts();
    let said = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let text = |name: &str| head.headers.get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
    if head.uri.path() == "/broken" {
        return Err(std::io::Error::other("no answer"));
    }
    let heard = format!("{}|{}|{}|{}", text("traceparent"), text("b3"), text("x-b3-spanid"), said.len());
    let mut frames = vec![Ok(Frame::data(Bytes::from(heard)))];
    let mut response = Response::builder().status(if head.uri.path() == "/404" { 404 } else { 200 });
    if text("content-type").starts_with("application/grpc") {
        response = response.header("content-type", "application/grpc");
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "5".parse().unwrap());
        frames.push(Ok(Frame::trailers(trailers)));
    }
    let body = StreamBody::new(futures::stream::iter(frames));
    Ok(response.body(BodyExt::boxed_unsync(body)).unwrap())
}

async fn pass(from: &mut (impl AsyncReadExt + Unpin), to: &mut (impl AsyncWriteExt + Unpin), piece: usize) {
    let mut buffer = vec![0; piece];
    loop {
        let n = from.read(&mut buffer).await.unwrap_or(0);
        if n == 0 || to.write_all(&buffer[..n]).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}

/// A client whose bytes go by a tap in pieces of that size at most.
async fn client(heard: &Heard, piece: usize) -> http2::SendRequest<Full<Bytes>> {
    let (near, mut far) = duplex(1 << 16);
    let (ours, theirs) = duplex(piece);
    let mut tapped = Tapped::new(ours, heard.about());
    tokio::task::spawn_local(async move {
        let mut server = server::conn::http2::Builder::new(TokioExecutor::new());
        server.max_header_list_size(1 << 20);
        let _ended = server.serve_connection(TokioIo::new(theirs), service_fn(pod)).await;
    });
    tokio::task::spawn_local(async move {
        let (mut tapped_read, mut tapped_write) = tokio::io::split(&mut tapped);
        let (mut far_read, mut far_write) = tokio::io::split(&mut far);
        tokio::select! {
            () = pass(&mut far_read, &mut tapped_write, piece) => {}
            () = pass(&mut tapped_read, &mut far_write, piece) => {}
        }
    });
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(near)).await.unwrap();
    tokio::task::spawn_local(connection);
    sender
}

async fn call(
    sender: &mut http2::SendRequest<Full<Bytes>>,
    path: &str,
    headers: &[(&str, &str)],
    body: &'static str,
) -> (u16, String) {
    let mut request = Request::post(format!("http://web{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    sender.ready().await.unwrap();
    let answer = sender.send_request(request.body(Full::from(body)).unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(text.to_vec()).unwrap())
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn parent() -> String {
    format!("00-{TRACE}-{SPAN}-01")
}

#[test]
fn the_pod_hears_of_this_hop_in_every_form() {
    for piece in [1 << 14, 7] {
        hears_of_this_hop(piece);
    }
}

fn hears_of_this_hop(piece: usize) {
    run(async move {
        let heard = Heard::new();
        let mut sender = client(&heard, piece).await;
        let b3 = format!("{TRACE}-{SPAN}-1");
        for round in 0..20 {
            let more = format!("{round}");
            let headers = [
                ("traceparent", parent()),
                ("b3", b3.clone()),
                ("x-b3-spanid", SPAN.into()),
                ("x-more", more),
            ];
            let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
            // What a table of the encoder holds cannot change: each one is written out, as our nodes do.
            let mut request = Request::post("http://web/a");
            for (name, value) in headers {
                let mut value = http::HeaderValue::from_str(value).unwrap();
                value.set_sensitive(true);
                request = request.header(name, value);
            }
            sender.ready().await.unwrap();
            let answer = sender.send_request(request.body(Full::from("hello")).unwrap()).await.unwrap();
            let text = answer.into_body().collect().await.unwrap().to_bytes();
            let text = String::from_utf8(text.to_vec()).unwrap();
            let spans = heard.spans();
            let [span] = spans.as_slice() else { panic!("{spans:?}") };
            let own = format!("{:016x}", span.ids.span);
            assert_ne!(own, SPAN);
            assert_eq!(text, format!("{}|{b3}|{SPAN}|5", parent()).replace(SPAN, &own), "in round {round}");
            assert_eq!(span.parent, u64::from_str_radix(SPAN, 16).ok());
            assert_eq!(attribute(span, "http.protocol"), "Text(\"HTTP/2\")");
            assert_eq!(attribute(span, "http.url"), "Text(\"http://web/a\")");
            assert_eq!(attribute(span, "request_size"), "Number(5)");
            assert_eq!(attribute(span, "response_size"), format!("Number({})", text.len()));
        }
        assert_eq!(heard.counted(), ["http 200  - 20"]);
    });
}

#[test]
fn streams_are_told_apart_however_their_bytes_are_cut() {
    for piece in [1, 3, 10, 100, 1 << 14] {
        run(async move {
            let heard = Heard::new();
            let sender = client(&heard, piece).await;
            let parent = parent();
            let one = |path: &'static str, headers: Vec<(&'static str, String)>, body| {
                let mut sender = sender.clone();
                async move {
                    let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
                    call(&mut sender, path, &headers, body).await
                }
            };
            let long: &'static str = "0123456789".repeat(5000).leak();
            let traced = || vec![("traceparent", parent.clone())];
            let grpc = vec![("content-type", "application/grpc".to_owned()), ("traceparent", parent.clone())];
            // More headers than one frame holds.
            let wide: &'static str = "x".repeat(20_000).leak();
            let wide = vec![("x-wide", wide.to_owned()), ("traceparent", parent.clone())];
            let (a, b, c, d, e) = tokio::join!(
                one("/a", traced(), long),
                one("/404", Vec::new(), ""),
                one("/g", grpc, "ping"),
                one("/c", traced(), "x"),
                one("/w", wide, "y"),
            );
            assert_eq!((a.0, b.0, c.0, d.0, e.0), (200, 404, 200, 200, 200));
            assert!(a.1.ends_with("|50000"), "{}", a.1);
            assert_eq!(heard.counted(), ["grpc 200 5 - 1", "http 200  - 3", "http 404  - 1"], "by {piece}");
            let mut spans: Vec<_> = heard
                .spans()
                .iter()
                .map(|s| {
                    let of = |n| attribute(s, n);
                    assert_eq!(s.error, of("grpc.status_code") == "Number(5)");
                    (of("http.url"), of("request_size"), of("grpc.status_code"))
                })
                .collect();
            spans.sort();
            let expected = |path: &str, size: &str, status: &str| {
                (format!("Text(\"http://web{path}\")"), format!("Number({size})"), status.to_owned())
            };
            assert_eq!(
                spans,
                [
                    expected("/a", "50000", ""),
                    expected("/c", "1", ""),
                    expected("/g", "4", "Number(5)"),
                    expected("/w", "1", "")
                ],
                "in pieces of {piece}"
            );
        });
    }
}

#[test]
fn streams_that_are_given_up_are_counted_as_such() {
    run(async {
        let heard = Heard::new();
        let mut sender = client(&heard, 1 << 14).await;
        sender.ready().await.unwrap();
        let request = Request::get("http://web/broken").body(Full::default()).unwrap();
        assert!(sender.send_request(request).await.is_err());
        assert_eq!(heard.counted(), ["http 0  UR 1"], "by the pod");
    });
}

#[test]
fn what_is_no_http2_after_all_passes_as_it_is() {
    run(async {
        for strange in [
            // Headers where the rest of others must come; a push; padding longer than its frame; an index of nothing.
            &b"\0\0\x01\x01\0\0\0\0\x01\x82\0\0\x01\x01\x04\0\0\0\x03\x82"[..],
            b"\0\0\x04\x05\x04\0\0\0\x01\0\0\0\x02",
            b"\0\0\x02\0\x08\0\0\0\x01\x05x",
            b"\0\0\x01\x01\x04\0\0\0\x01\xbe",
            b"\xff\xff\xff\x01\x04\0\0\0\x01",
        ] {
            let heard = Heard::new();
            let (ours, mut pod) = duplex(1 << 16);
            let mut tapped = Tapped::new(ours, heard.about());
            let mut sent = crate::telemetry::tap::PREFACE.to_vec();
            sent.extend_from_slice(strange);
            sent.extend([b'z'; 100]);
            for piece in sent.chunks(7) {
                tapped.write_all(piece).await.unwrap();
            }
            let mut arrived = vec![0; sent.len()];
            pod.read_exact(&mut arrived).await.unwrap();
            pod.write_all(&[b'y'; 100]).await.unwrap();
            tapped.read_exact(&mut [0; 100]).await.unwrap();
            assert_eq!(arrived, sent);
            drop(tapped);
            assert!(heard.spans().is_empty() && heard.counted().is_empty(), "{strange:?}");
        }
    });
}
