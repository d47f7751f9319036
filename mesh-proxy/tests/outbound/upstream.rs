//! A test upstream: answers as the request's headers say, and remembers what it saw.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Body, Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// No answer: the connection is closed.
#[derive(Debug, thiserror::Error)]
#[error("no answer")]
pub struct Broken;

/// A request as the upstream saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub authority: String,
    pub headers: HeaderMap,
    pub version: Version,
}

/// A running upstream.
pub struct Upstream {
    pub addr: SocketAddr,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    pub connections: Arc<AtomicUsize>,
    pub extra_headers: Arc<Mutex<HeaderMap>>,
    failed: Arc<AtomicUsize>,
    name: String,
}

impl Upstream {
    /// Starts one on any loopback port.
    pub async fn start(name: &str) -> Arc<Self> {
        Self::start_at(name, "127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn start_at(name: &str, addr: SocketAddr) -> Arc<Self> {
        let listener = TcpListener::bind(addr).await.unwrap();
        let this = Arc::new(Self {
            addr: listener.local_addr().unwrap(),
            seen: Arc::default(),
            connections: Arc::default(),
            extra_headers: Arc::default(),
            failed: Arc::default(),
            name: name.to_owned(),
        });
        let server = Arc::clone(&this);
        tokio::task::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                server.connections.fetch_add(1, Ordering::SeqCst);
                let server = Arc::clone(&server);
                tokio::task::spawn(async move {
                    let service = service_fn(move |request| {
                        let server = Arc::clone(&server);
                        async move { server.answer(request).await }
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let io = TokioIo::new(stream);
                    let _ended = builder.serve_connection_with_upgrades(io, service).into_owned().await;
                });
            }
        });
        this
    }

    pub fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().expect("a request").clone()
    }

    async fn answer(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<Response<BoxBody<Bytes, BoxError>>, Broken> {
        let number = |name: &str| -> Option<u64> { request.headers().get(name)?.to_str().ok()?.parse().ok() };
        let (delay, status, first) =
            (number("x-test-delay-ms"), number("x-test-status"), number("x-test-fail-first"));
        self.seen.lock().unwrap().push(seen(&request));
        if let Some(ms) = delay {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        if request.headers().contains_key("x-test-reset") {
            return Err(Broken);
        }
        let mut response = match request.uri().path() {
            "/ws" => websocket(&mut request),
            "/echo" => echo(request.into_body()),
            "/len" => {
                let n = request.into_body().collect().await.map_err(|_| Broken)?.to_bytes().len();
                Response::new(full(n.to_string()))
            }
            "/big" => Response::new(big(10 << 20)),
            "/trickle" => Response::new(trickle()),
            "/cut" => Response::new(cut()),
            _ if is_grpc(request.headers()) => grpc(request.into_body()),
            _ => {
                let _body = request.into_body().collect().await.map_err(|_| Broken)?;
                Response::new(full(self.name.clone()))
            }
        };
        let failing = first.is_none_or(|k| (self.failed.fetch_add(1, Ordering::SeqCst) as u64) < k);
        if let Some(status) = status.filter(|_| failing) {
            *response.status_mut() = StatusCode::from_u16(status as u16).unwrap();
        }
        response.headers_mut().insert("x-upstream", self.name.parse().unwrap());
        for (name, value) in self.extra_headers.lock().unwrap().iter() {
            response.headers_mut().append(name, value.clone());
        }
        Ok(response)
    }
}

fn seen(request: &Request<Incoming>) -> Seen {
    let authority = match request.uri().authority() {
        Some(a) => a.to_string(),
        None => {
            request.headers().get(header::HOST).map(|h| h.to_str().unwrap().to_owned()).unwrap_or_default()
        }
    };
    Seen {
        method: request.method().to_string(),
        path: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
        authority,
        headers: request.headers().clone(),
        version: request.version(),
    }
}

pub fn full(text: impl Into<Bytes>) -> BoxBody<Bytes, BoxError> {
    http_body_util::Full::new(text.into()).map_err(|e: Infallible| match e {}).boxed()
}

pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}

fn echo(body: Incoming) -> Response<BoxBody<Bytes, BoxError>> {
    Response::new(body.map_err(Into::into).boxed())
}

/// Echoes messages as they come, then a status in the trailers.
fn grpc(body: Incoming) -> Response<BoxBody<Bytes, BoxError>> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let frames = http_body_util::BodyStream::new(body)
        .filter_map(|f| async move { f.ok().filter(Frame::is_data).map(Ok) })
        .chain(stream::once(async move { Ok(Frame::trailers(trailers)) }));
    let body = StreamBody::new(frames);
    let mut response = Response::new(BodyExt::boxed(body));
    response.headers_mut().insert(header::CONTENT_TYPE, "application/grpc".parse().unwrap());
    response
}

fn big(size: usize) -> BoxBody<Bytes, BoxError> {
    let chunk = Bytes::from(vec![b'x'; 64 << 10]);
    let frames = stream::iter((0..size / chunk.len()).map(move |_| Ok(Frame::data(chunk.clone()))));
    BodyExt::boxed(StreamBody::new(frames))
}

fn trickle() -> BoxBody<Bytes, BoxError> {
    let frames = stream::iter(0..20).then(|i| async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(Frame::data(Bytes::from(format!("{i};"))))
    });
    BodyExt::boxed(StreamBody::new(frames))
}

/// Breaks in the middle.
fn cut() -> BoxBody<Bytes, BoxError> {
    let frames = stream::iter([Ok(Frame::data(Bytes::from_static(b"half"))), Err("cut".into())]).then(
        |frame: Result<_, BoxError>| async move {
            // The first half has to be on its way before the end comes.
            if frame.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            frame
        },
    );
    BodyExt::boxed(StreamBody::new(frames))
}

fn websocket(request: &mut Request<Incoming>) -> Response<BoxBody<Bytes, BoxError>> {
    let upgrade = hyper::upgrade::on(request);
    tokio::task::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        let mut buffer = [0; 4096];
        loop {
            match io.read(&mut buffer).await {
                Ok(n) if n > 0 => io.write_all(&buffer[..n]).await.unwrap(),
                _ => break,
            }
        }
        let _closed = io.shutdown().await;
    });
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, "upgrade".parse().unwrap());
    response.headers_mut().insert(header::UPGRADE, "websocket".parse().unwrap());
    response
}

/// A TCP server of which every connection is given to `serve`.
pub async fn tcp<F, Fut>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::task::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::task::spawn(serve(stream));
        }
    });
    addr
}

/// Reads a body to its end: data and trailers.
pub async fn collect<B>(body: B) -> (Bytes, Option<HeaderMap>)
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let all = body.collect().await.unwrap();
    let trailers = all.trailers().cloned();
    (all.to_bytes(), trailers)
}
