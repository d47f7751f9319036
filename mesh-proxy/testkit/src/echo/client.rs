//! One caller: keeps a connection, makes one call after the other over it, and says what became of each.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::{Request, Response, Uri, Version, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};
use tokio_util::task::TaskTracker;

use super::{
    Identity,
    grpc::{self, EchoReply, EchoRequest},
    http::pattern,
    tls,
};

/// How to call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge, or by ALPN under TLS.
    Http2,
    /// One gRPC unary call.
    Grpc,
    /// One WebSocket message.
    WebSocket,
    /// One TCP connection.
    Tcp,
    /// One datagram.
    Udp,
}

/// What to call.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where: scheme, host, port, path.
    pub uri: Uri,
    /// How.
    pub mode: Mode,
    /// Connect there, whatever the host says.
    pub connect: Option<SocketAddr>,
    /// Method.
    pub method: http::Method,
    /// Extra headers; `host` replaces the authority.
    pub headers: Vec<(String, String)>,
    /// Size of the made-up body.
    pub body_bytes: usize,
    /// A call that takes longer has failed.
    pub timeout: Duration,
    /// Keep the connection for the next call.
    pub keep_alive: bool,
}

/// What became of a call.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// HTTP status, or 200 + gRPC status for a gRPC error, or 200 for other protocols.
    pub status: u16,
    /// gRPC status.
    pub grpc: Option<u32>,
    /// Who answered, when it said so.
    pub identity: Identity,
    /// The answer.
    pub body: Bytes,
    /// How long connecting took, when this call connected.
    pub connect: Option<Duration>,
}

type Io = Box<dyn Stream>;
trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

enum Connection {
    H1(http1::SendRequest<Full<Bytes>>),
    H2(http2::SendRequest<Full<Bytes>>),
    Ws(Box<WebSocketStream<Io>>),
}

/// A caller with its connection.
pub struct Caller {
    target: Arc<Target>,
    connection: Option<Connection>,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Caller {
    /// A caller without a connection yet.
    #[must_use]
    pub fn new(target: Arc<Target>) -> Self {
        Self { target, connection: None, tasks: TaskTracker::new() }
    }

    /// Makes one call.
    ///
    /// # Errors
    /// Why there was no answer, in a few words that are the same for the same cause.
    pub async fn call(&mut self) -> Result<Outcome, String> {
        let limit = self.target.timeout;
        let result =
            tokio::time::timeout(limit, self.try_call()).await.unwrap_or_else(|_| Err("timeout".to_owned()));
        if result.is_err() || !self.target.keep_alive {
            self.connection = None;
        }
        result
    }

    async fn try_call(&mut self) -> Result<Outcome, String> {
        match self.target.mode {
            Mode::Tcp => return self.tcp().await,
            Mode::Udp => return self.udp().await,
            _ => {}
        }
        loop {
            let mut connect = None;
            if self.connection.as_ref().is_none_or(Connection::is_closed) {
                let start = Instant::now();
                self.connection = Some(self.establish().await?);
                connect = Some(start.elapsed());
            }
            let target = Arc::clone(&self.target);
            let sent = match &mut self.connection {
                Some(Connection::Ws(socket)) => {
                    let outcome = websocket(socket).await?;
                    return Ok(Outcome { connect, ..outcome });
                }
                Some(Connection::H1(sender)) => send1(sender, request(&target, false)?).await,
                Some(Connection::H2(sender)) => send2(sender, request(&target, true)?).await,
                None => return Err("no connection".to_owned()),
            };
            match sent {
                Ok(response) => return Ok(Outcome { connect, ..finish(response, target.mode).await? }),
                // The server closed a kept connection before anything of this request was sent: as every client
                // does, again on a new one.
                Err(e) if is_unsent(&e) && connect.is_none() => self.connection = None,
                Err(e) => return Err(describe(&e)),
            }
        }
    }

    fn host_port(&self) -> Result<(String, u16), String> {
        let uri = &self.target.uri;
        let host = uri.host().ok_or("the URL has no host")?.trim_matches(['[', ']']).to_owned();
        let default = if matches!(uri.scheme_str(), Some("https" | "wss")) { 443 } else { 80 };
        Ok((host, uri.port_u16().unwrap_or(default)))
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, String> {
        if let Some(address) = self.target.connect {
            return Ok(vec![address]);
        }
        let (host, port) = self.host_port()?;
        let found = tokio::net::lookup_host((host.as_str(), port)).await;
        found.map(Iterator::collect).map_err(|e| format!("lookup: {}", kind(&e)))
    }

    async fn open(&self) -> Result<Io, String> {
        let mut last = "lookup: no address".to_owned();
        for address in self.resolve().await? {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    let _slower = stream.set_nodelay(true);
                    return self.secure(stream).await;
                }
                Err(e) => last = format!("connect: {}", kind(&e)),
            }
        }
        Err(last)
    }

    async fn secure(&self, stream: TcpStream) -> Result<Io, String> {
        if !matches!(self.target.uri.scheme_str(), Some("https" | "wss" | "tls")) {
            return Ok(Box::new(stream));
        }
        let alpn: &[&str] = match self.target.mode {
            Mode::Http2 | Mode::Grpc => &["h2"],
            Mode::Http1 | Mode::WebSocket => &["http/1.1"],
            Mode::Tcp | Mode::Udp => &[],
        };
        let config = tls::client(alpn).map_err(|e| format!("tls: {e}"))?;
        let (host, _) = self.host_port()?;
        let name = rustls_pki_types::ServerName::try_from(host).map_err(|e| format!("tls: {e}"))?;
        let stream = TlsConnector::from(config).connect(name, stream).await;
        stream.map(|s| Box::new(s) as Io).map_err(|e| format!("tls: {}", kind(&e)))
    }

    async fn establish(&self) -> Result<Connection, String> {
        let io = self.open().await?;
        match self.target.mode {
            Mode::Http2 | Mode::Grpc => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .handshake(TokioIo::new(io))
                    .await
                    .map_err(|e| describe(&e))?;
                self.tasks.spawn(connection);
                Ok(Connection::H2(sender))
            }
            Mode::WebSocket => {
                let request = websocket_request(&self.target)?;
                let (socket, _) = tokio_tungstenite::client_async(request, io)
                    .await
                    .map_err(|e| format!("websocket: {e}"))?;
                Ok(Connection::Ws(Box::new(socket)))
            }
            _ => {
                let (sender, connection) = http1::Builder::new()
                    .max_buf_size(512 << 10)
                    .handshake(TokioIo::new(io))
                    .await
                    .map_err(|e| describe(&e))?;
                self.tasks.spawn(connection);
                Ok(Connection::H1(sender))
            }
        }
    }

    async fn tcp(&mut self) -> Result<Outcome, String> {
        let start = Instant::now();
        let mut io = self.open().await?;
        let connect = Some(start.elapsed());
        let broken = |e: std::io::Error| format!("tcp: {}", kind(&e));
        io.write_all(b"@whoami\n").await.map_err(broken)?;
        let mut first = vec![0_u8; 4096];
        let n = io.read(&mut first).await.map_err(broken)?;
        if n == 0 {
            return Err("tcp: closed without an answer".to_owned());
        }
        first.truncate(n);
        if self.target.body_bytes > 0 {
            return bulk(io, self.target.body_bytes, identity_of(&first)).await;
        }
        io.shutdown().await.map_err(broken)?;
        let mut rest = Vec::new();
        io.read_to_end(&mut rest).await.map_err(broken)?;
        Ok(Outcome { status: 200, identity: identity_of(&first), body: first.into(), connect, grpc: None })
    }

    async fn udp(&mut self) -> Result<Outcome, String> {
        let broken = |e: std::io::Error| format!("udp: {}", kind(&e));
        let address = self.resolve().await?.into_iter().next().ok_or("lookup: no address")?;
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).await.map_err(broken)?;
        socket.connect(address).await.map_err(broken)?;
        socket.send(b"@whoami").await.map_err(broken)?;
        let mut buffer = vec![0_u8; 4096];
        let n = socket.recv(&mut buffer).await.map_err(broken)?;
        buffer.truncate(n);
        Ok(Outcome { status: 200, identity: identity_of(&buffer), body: buffer.into(), ..Outcome::default() })
    }
}

/// Sends and receives at once; every byte must come back.
async fn bulk(io: Io, bytes: usize, identity: Identity) -> Result<Outcome, String> {
    let broken = |e: std::io::Error| format!("tcp: {}", kind(&e));
    let (mut read, mut write) = tokio::io::split(io);
    let data = pattern(bytes);
    let send = async {
        write.write_all(&data).await?;
        write.shutdown().await
    };
    let mut back = Vec::with_capacity(bytes + 128);
    let (sent, received) = tokio::join!(send, read.read_to_end(&mut back));
    sent.map_err(broken)?;
    received.map_err(broken)?;
    if back.get(..bytes) != Some(&data[..]) {
        return Err(format!("tcp: {} bytes came back of {bytes}", back.len()));
    }
    Ok(Outcome { status: 200, identity, body: back.split_off(bytes).into(), ..Outcome::default() })
}

async fn send1(
    sender: &mut http1::SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> hyper::Result<Response<Incoming>> {
    sender.ready().await?;
    sender.send_request(request).await
}

async fn send2(
    sender: &mut http2::SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> hyper::Result<Response<Incoming>> {
    sender.ready().await?;
    sender.send_request(request).await
}

impl Connection {
    fn is_closed(&self) -> bool {
        match self {
            Self::H1(sender) => sender.is_closed(),
            Self::H2(sender) => sender.is_closed(),
            Self::Ws(_) => false,
        }
    }
}

fn request(target: &Target, is_http2: bool) -> Result<Request<Full<Bytes>>, String> {
    let authority = target.uri.authority().map(ToString::to_string).unwrap_or_default();
    let host = target.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case("host"));
    let host = host.map_or(authority, |(_, v)| v.clone());
    let mut path = target.uri.path_and_query().map_or("/", |p| p.as_str());
    let grpc_path = format!("{}Unary", grpc::SERVICE);
    let is_grpc = target.mode == Mode::Grpc;
    if is_grpc && path == "/" {
        path = &grpc_path;
    }
    let mut builder =
        Request::builder().method(if is_grpc { http::Method::POST } else { target.method.clone() });
    builder = if is_http2 {
        builder.version(Version::HTTP_2).uri(format!("http://{host}{path}"))
    } else {
        builder.uri(path).header(header::HOST, host)
    };
    for (name, value) in target.headers.iter().filter(|(n, _)| !n.eq_ignore_ascii_case("host")) {
        builder = builder.header(name, value);
    }
    let body = if is_grpc {
        builder = builder.header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers");
        grpc::encode(&EchoRequest { text: "hello".to_owned(), ..EchoRequest::default() })
    } else {
        pattern(target.body_bytes)
    };
    builder.body(Full::new(body)).map_err(|e| format!("request: {e}"))
}

fn websocket_request(target: &Target) -> Result<Request<()>, String> {
    let uri = &target.uri;
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut builder = Request::builder()
        .uri(format!("ws://{authority}{path}"))
        .header(header::HOST, &authority)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, tokio_tungstenite::tungstenite::handshake::client::generate_key());
    for (name, value) in &target.headers {
        builder = builder.header(name, value);
    }
    builder.body(()).map_err(|e| format!("request: {e}"))
}

async fn websocket(socket: &mut WebSocketStream<Io>) -> Result<Outcome, String> {
    socket.send(Message::text("@whoami")).await.map_err(|e| format!("websocket: {e}"))?;
    match socket.next().await {
        Some(Ok(Message::Text(text))) => {
            let body = Bytes::copy_from_slice(text.as_bytes());
            Ok(Outcome { status: 200, identity: identity_of(&body), body, ..Outcome::default() })
        }
        Some(Ok(other)) => Err(format!("websocket: {other:?} instead of text")),
        Some(Err(e)) => Err(format!("websocket: {e}")),
        None => Err("websocket: closed".to_owned()),
    }
}

async fn finish(response: Response<Incoming>, mode: Mode) -> Result<Outcome, String> {
    let status = response.status().as_u16();
    let headers = response.headers().clone();
    if mode == Mode::Grpc {
        let mut reader = grpc::Reader::new(response.into_body());
        let mut last: Option<EchoReply> = None;
        while let Some(reply) = reader.next().await.map_err(|e| format!("grpc: {e}"))? {
            last = Some(reply);
        }
        let code = reader.trailers.as_ref().and_then(|t| t.get("grpc-status")).or(headers.get("grpc-status"));
        let code = code.and_then(|c| c.to_str().ok()).and_then(|c| c.parse().ok());
        let reply = last.unwrap_or_default();
        let identity = Identity { name: reply.name, version: reply.version, node: reply.node };
        let body = Bytes::from(reply.text);
        return code
            .map(|c| Outcome { status, grpc: Some(c), identity, body, connect: None })
            .ok_or_else(|| "grpc: no status".to_owned());
    }
    let body = response.into_body().collect().await.map_err(|e| describe(&e))?.to_bytes();
    let value = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let identity =
        Identity { name: value("x-echo-name"), version: value("x-echo-version"), node: value("x-echo-node") };
    Ok(Outcome { status, grpc: None, identity, body, connect: None })
}

fn identity_of(body: &[u8]) -> Identity {
    let value: Value = serde_json::from_slice(body.trim_ascii_end()).unwrap_or_default();
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    Identity { name: text("name"), version: text("version"), node: text("node") }
}

/// Whether nobody has acted on the request: it was never sent, or came after the server's polite goodbye.
fn is_unsent(error: &hyper::Error) -> bool {
    error.is_canceled() || error.is_closed() || describe(error).ends_with("not a result of an error")
}

fn kind(error: &std::io::Error) -> String {
    error.to_string()
}

fn describe(error: &hyper::Error) -> String {
    let mut text = format!("http: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(c) = cause {
        text = format!("{text}: {c}");
        cause = c.source();
    }
    text
}
