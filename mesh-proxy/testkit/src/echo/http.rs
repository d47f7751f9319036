//! HTTP/1.1, HTTP/2, and what rides on them: gRPC and WebSocket.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::stream;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::{Controls, Received, bookinfo, grpc, hex, query_value, serve::Shared, stream as streams};

/// A response body of any shape.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A whole body at once.
#[must_use]
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("closed on request")]
pub struct Closed;

/// Accepts connections for ever.
pub async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    tls: Option<Arc<rustls::ServerConfig>>,
) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors: give others time to close.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        // A socket without this option is only slower.
        let _slower = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        match tls.clone().map(TlsAcceptor::from) {
            None => drop(tasks.spawn(connection(stream, peer, shared))),
            Some(acceptor) => drop(tasks.spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    connection(stream, peer, shared).await;
                }
            })),
        }
    }
}

async fn connection<S>(stream: S, peer: SocketAddr, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let count = Arc::new(AtomicU64::new(0));
    let service = service_fn(move |request| {
        let (shared, count) = (Arc::clone(&shared), Arc::clone(&count));
        async move {
            let number = count.fetch_add(1, Ordering::Relaxed) + 1;
            answer(request, peer, number, &shared).await
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).max_buf_size(256 << 10);
    builder.http2().timer(TokioTimer::new()).max_header_list_size(256 << 10).max_concurrent_streams(1000);
    // A client that breaks off is none of the application's business.
    let _broke_off = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    number: u64,
    shared: &Arc<Shared>,
) -> Result<Response<Body>, Closed> {
    let query = request.uri().query().map(str::to_owned);
    let headers = request.headers();
    let controls = Controls::read(&shared.controls, |name| {
        let from_header = headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        from_header.or_else(|| query_value(query.as_deref(), name))
    });
    if let Some(delay) = controls.delay {
        tokio::time::sleep(delay).await;
    }
    if controls.silent {
        std::future::pending::<()>().await;
    }
    if controls.close {
        return Err(Closed);
    }
    let starts = |name: header::HeaderName, text: &str| {
        headers.get(name).is_some_and(|v| v.as_bytes().to_ascii_lowercase().starts_with(text.as_bytes()))
    };
    if starts(header::CONTENT_TYPE, "application/grpc") {
        return Ok(grpc::answer(request, shared).await);
    }
    if starts(header::UPGRADE, "websocket") {
        return Ok(streams::upgrade(request, peer, shared));
    }
    let mut received = received(&request, peer, number, shared);
    let mut response = if let Some(app) = shared.app.filter(|_| controls.status.is_none()) {
        let (status, page) = bookinfo::answer(app, shared, &request).await;
        let mut response = Response::new(full(page.to_string()));
        *response.status_mut() = status;
        response
    } else {
        let kept = read_body(request, &mut received, controls.body).await;
        Response::new(body(&controls, &received, kept))
    };
    if let Some(status) = controls.status.and_then(|s| StatusCode::from_u16(s).ok()) {
        *response.status_mut() = status;
    }
    name_headers(response.headers_mut(), shared, controls.body || controls.bytes.is_some());
    Ok(response)
}

fn name_headers(headers: &mut HeaderMap, shared: &Shared, is_binary: bool) {
    let kind = if is_binary { "application/octet-stream" } else { "application/json" };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    for (name, value) in [
        ("x-echo-name", &shared.identity.name),
        ("x-echo-version", &shared.identity.version),
        ("x-echo-node", &shared.identity.node),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
}

fn received(request: &Request<Incoming>, peer: SocketAddr, number: u64, shared: &Shared) -> Received {
    let mut out = Received {
        identity: shared.identity.clone(),
        protocol: format!("{:?}", request.version()),
        method: request.method().to_string(),
        path: request.uri().path_and_query().map_or_else(String::new, ToString::to_string),
        peer: peer.to_string(),
        on_connection: number,
        ..Received::default()
    };
    for (name, value) in request.headers() {
        let value = String::from_utf8_lossy(value.as_bytes());
        (out.headers.entry(name.to_string()))
            .and_modify(|v| {
                v.push_str(", ");
                v.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    let authority = request.uri().authority().map(ToString::to_string);
    out.authority = authority.or_else(|| out.headers.get("host").cloned()).unwrap_or_default();
    out
}

/// Reads the body to its end; its bytes are kept only when wanted.
async fn read_body(request: Request<Incoming>, received: &mut Received, keep: bool) -> Bytes {
    let mut body = request.into_body();
    let mut hash = Sha256::new();
    let mut kept = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            hash.update(&data);
            received.body_bytes += data.len() as u64;
            if keep {
                kept.extend_from_slice(&data);
            }
        }
    }
    received.body_sha256 = hex(&hash.finalize());
    kept.freeze()
}

/// The byte at each place of a made-up body: a test checks it without keeping a copy.
#[must_use]
pub fn pattern(length: usize) -> Bytes {
    (0..length).map(|i| b"0123456789abcdef"[i % 16]).collect::<Vec<u8>>().into()
}

fn body(controls: &Controls, received: &Received, kept: Bytes) -> Body {
    let data = if controls.body {
        kept
    } else if let Some(bytes) = controls.bytes {
        pattern(usize::try_from(bytes.min(1 << 30)).unwrap_or(0))
    } else {
        let mut text = serde_json::to_vec(received).unwrap_or_default();
        text.push(b'\n');
        text.into()
    };
    if controls.chunks.is_none() && !controls.trailers {
        return full(data);
    }
    let size = data.len().div_ceil(controls.chunks.unwrap_or(1).max(1) as usize).max(1);
    let mut pieces: Vec<Frame<Bytes>> = (0..data.len())
        .step_by(size)
        .map(|at| Frame::data(data.slice(at..data.len().min(at + size))))
        .collect();
    if controls.trailers {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-echo-trailer", HeaderValue::from_static("done"));
        pieces.push(Frame::trailers(trailers));
    }
    let wait = controls.chunk_delay;
    let frames = stream::unfold(pieces.into_iter(), move |mut rest| async move {
        let next = rest.next()?;
        if let Some(wait) = wait {
            tokio::time::sleep(wait).await;
        }
        Some((Ok::<_, Infallible>(next), rest))
    });
    StreamBody::new(frames).boxed_unsync()
}
