//! Plain TCP, UDP and WebSocket.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};
use tokio_util::task::TaskTracker;

use super::{
    hex,
    http::{Body, full},
    serve::{Shared, TcpMode},
};

/// Accepts plain TCP for ever.
pub async fn accept_tcp(listener: TcpListener, shared: Arc<Shared>, tasks: TaskTracker) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let _slower = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        tasks.spawn(async move {
            // A client that breaks off is none of the application's business.
            let _broke_off = tcp(stream, peer, &shared).await;
        });
    }
}

fn whoami(shared: &Shared, peer: SocketAddr) -> String {
    let me = &shared.identity;
    json!({ "name": me.name, "version": me.version, "node": me.node, "peer": peer.to_string() }).to_string()
        + "\n"
}

/// One connection. A first line may ask for something: `@whoami`, `@half-close`, `@silent`, `@close`.
/// When the client closes its side, the last words are a line with the size and hash of all it sent.
async fn tcp(mut stream: TcpStream, peer: SocketAddr, shared: &Shared) -> std::io::Result<()> {
    let mut buffer = vec![0_u8; 64 << 10];
    if matches!(shared.tcp_mode, TcpMode::Banner | TcpMode::HalfClose) {
        stream.write_all(whoami(shared, peer).as_bytes()).await?;
    }
    let mut is_closed = shared.tcp_mode == TcpMode::HalfClose;
    if is_closed {
        stream.shutdown().await?;
    }
    let mut is_silent = shared.tcp_mode == TcpMode::Silent || shared.controls.silent;
    let mut hash = Sha256::new();
    let mut total = 0_u64;
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            break;
        }
        let data = &buffer[..n];
        if total == 0 {
            match data.strip_suffix(b"\n") {
                Some(b"@close") => return Ok(()),
                Some(b"@silent") => is_silent = true,
                Some(b"@whoami") => {
                    stream.write_all(whoami(shared, peer).as_bytes()).await?;
                    continue;
                }
                Some(b"@half-close") => {
                    stream.write_all(whoami(shared, peer).as_bytes()).await?;
                    stream.shutdown().await?;
                    is_closed = true;
                }
                _ => {}
            }
        }
        total += n as u64;
        hash.update(data);
        if !is_silent && !is_closed {
            stream.write_all(data).await?;
        }
    }
    if !is_silent && !is_closed {
        let last = format!("@end {total} {}\n", hex(&hash.finalize()));
        stream.write_all(last.as_bytes()).await?;
        stream.shutdown().await?;
    }
    Ok(())
}

/// Answers datagrams for ever: `@whoami` with who it is, anything else with itself.
pub async fn serve_udp(socket: UdpSocket, shared: Arc<Shared>) {
    let mut buffer = vec![0_u8; 64 << 10];
    loop {
        let Ok((n, peer)) = socket.recv_from(&mut buffer).await else { continue };
        if shared.controls.silent {
            continue;
        }
        let data = &buffer[..n];
        // A datagram that cannot be answered is lost, as datagrams are.
        let _lost = if data == b"@whoami" {
            socket.send_to(whoami(&shared, peer).as_bytes(), peer).await
        } else {
            socket.send_to(data, peer).await
        };
    }
}

/// Accepts a WebSocket: every message comes back; `@whoami` is answered with who it is, `@close` closes.
#[must_use]
pub fn upgrade(mut request: Request<Incoming>, peer: SocketAddr, shared: &Arc<Shared>) -> Response<Body> {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned() else {
        let mut response = Response::new(full("no key\n"));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    let shared = Arc::clone(shared);
    let upgraded = hyper::upgrade::on(&mut request);
    // The connection task ends with the hand-over, so the socket needs a task of its own.
    let tasks = TaskTracker::new();
    tasks.spawn(async move {
        let Ok(io) = upgraded.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            let answer = match message {
                Message::Text(text) if text.as_str() == "@whoami" => Message::text(whoami(&shared, peer)),
                Message::Text(text) if text.as_str() == "@close" => break,
                Message::Text(_) | Message::Binary(_) => message,
                Message::Close(_) => break,
                _ => continue,
            };
            if socket.send(answer).await.is_err() {
                return;
            }
        }
        // The other side may be gone already.
        let _gone = socket.close(None).await;
    });
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}
