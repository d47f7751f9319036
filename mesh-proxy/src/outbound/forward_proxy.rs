//! The way in without capture: HTTP CONNECT, absolute-form requests and SOCKS5, on loopback.
//!
//! What was asked for becomes a target, and from there the connection takes the same path as a captured one. Nobody
//! is asked for a password, so nobody but this host may connect: the listener's address is checked when the
//! configuration is read, and each peer's here.

mod parse;

use std::{net::SocketAddr, rc::Rc, time::Duration};

use bytes::{Bytes, BytesMut};
use mesh_core::{
    ServiceKind, Tables,
    dns::{Answer, QueryType, Record, answer},
};
use mesh_net::{Prefixed, original_dst::unmap};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    connection::{self, Connection},
    http,
    target::{Target, by_name},
    worker::{Ticket, WorkerState},
};
use parse::{Head, SocksError};

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest head that names the target.
const MAX_HEAD: usize = 64 << 10;
/// Most aliases that are followed.
const MAX_ALIASES: usize = 4;

/// Serves one connection to the proxy port.
pub(crate) async fn serve(worker: Rc<WorkerState>, stream: TcpStream, client: SocketAddr, ticket: Ticket) {
    if !unmap(client).ip().is_loopback() {
        tracing::warn!(%client, "refused: only this host may use the proxy port");
        return;
    }
    let nowhere = Target { addr: None, name: None, port: 80 };
    let connection = Connection::new(worker, client, nowhere, ticket);
    let mut buffer = BytesMut::with_capacity(1024);
    match timeout(PATIENCE, first_bytes(stream, &mut buffer)).await {
        Ok(Some(stream)) if buffer[0] == parse::SOCKS5 => socks(connection, stream, buffer).await,
        Ok(Some(stream)) => http_proxy(connection, stream, buffer).await,
        Ok(None) | Err(_) => {}
    }
}

async fn first_bytes(mut stream: TcpStream, buffer: &mut BytesMut) -> Option<TcpStream> {
    (stream.read_buf(buffer).await.ok()? > 0).then_some(stream)
}

/// CONNECT, or requests in absolute form.
async fn http_proxy(mut connection: Connection, mut stream: TcpStream, mut buffer: BytesMut) {
    let worker = Rc::clone(&connection.worker);
    let read = timeout(PATIENCE, async {
        loop {
            match parse::head(&buffer) {
                Head::Incomplete if buffer.len() < MAX_HEAD => match stream.read_buf(&mut buffer).await {
                    Ok(n) if n > 0 => {}
                    _ => return None,
                },
                Head::Incomplete => return Some(Head::Invalid),
                done => return Some(done),
            }
        }
    });
    let answer: &[u8] = match read.await {
        Ok(Some(Head::Connect { host, port, length })) => match target(&worker, &host, port).await {
            Some(to) => {
                if stream.write_all(b"HTTP/1.1 200 Connection Established\r\n\r\n").await.is_err() {
                    return;
                }
                let rest = buffer.split_off(length).freeze();
                connection.target = to;
                return connection::serve(connection, Prefixed::new(rest, stream)).await;
            }
            None => b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        },
        Ok(Some(Head::Absolute)) => {
            connection.proxy = true;
            let stream = Prefixed::new(buffer.freeze(), stream);
            tokio::task::spawn_local(http::serve(connection, stream, http::Version::Http1));
            return;
        }
        Ok(Some(Head::Invalid | Head::Incomplete)) => {
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        }
        Ok(None) | Err(_) => return,
    };
    worker.shared.telemetry.edges.bad_requests.inc();
    let _gone = stream.write_all(answer).await;
}

/// SOCKS5 without authentication; CONNECT only.
async fn socks(mut connection: Connection, mut stream: TcpStream, mut buffer: BytesMut) {
    let worker = Rc::clone(&connection.worker);
    let result = timeout(PATIENCE, handshake(&worker, &mut stream, &mut buffer)).await;
    match result {
        Ok(Ok(to)) => {
            let rest: Bytes = buffer.freeze();
            connection.target = to;
            connection::serve(connection, Prefixed::new(rest, stream)).await;
        }
        Ok(Err(e)) => {
            tracing::debug!(client = %connection.client, error = %e, "SOCKS request refused");
            if let Some(reply) = e.reply() {
                let _gone = stream.write_all(&reply).await;
            }
        }
        Err(_late) => {}
    }
}

async fn handshake(
    worker: &Rc<WorkerState>,
    stream: &mut TcpStream,
    buffer: &mut BytesMut,
) -> Result<Target, SocksError> {
    let length = loop {
        match parse::greeting(buffer)? {
            Some(length) => break length,
            None => more(stream, buffer).await?,
        }
    };
    let _greeting = buffer.split_to(length);
    stream.write_all(&[parse::SOCKS5, 0]).await.map_err(|_| SocksError::Closed)?;
    let (host, port, length) = loop {
        match parse::request(buffer)? {
            Some(request) => break request,
            None => more(stream, buffer).await?,
        }
    };
    let _request = buffer.split_to(length);
    let to = target(worker, &host, port).await.ok_or(SocksError::HostUnreachable)?;
    // The route may depend on the first bytes, so the answer cannot wait for a connection.
    stream.write_all(&parse::SOCKS_OK).await.map_err(|_| SocksError::Closed)?;
    Ok(to)
}

async fn more(stream: &mut TcpStream, buffer: &mut BytesMut) -> Result<(), SocksError> {
    match stream.read_buf(buffer).await {
        Ok(n) if n > 0 && buffer.len() <= 1024 => Ok(()),
        _ => Err(SocksError::Closed),
    }
}

/// What a host and a port mean: a service, an address that the mesh's names lead to, or an address outside.
pub(crate) async fn target(worker: &Rc<WorkerState>, host: &str, port: u16) -> Option<Target> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    if let Ok(ip) = host.parse() {
        return allowed(worker, SocketAddr::new(ip, port));
    }
    let tables = worker.tables();
    let namespace = &worker.shared.config.default_namespace;
    if by_name(&tables, &host, port, namespace).is_some() {
        return Some(Target { addr: None, name: Some(host), port });
    }
    match in_mesh(&tables, &host) {
        Named::Address(ip) => return allowed(worker, SocketAddr::new(ip, port)),
        Named::Nothing => return None,
        Named::Outside if tables.mesh().registry_only => return None,
        Named::Outside => {}
    }
    drop(tables);
    let mut found = tokio::net::lookup_host((host.as_str(), port)).await.ok()?;
    allowed(worker, found.next()?)
}

fn allowed(worker: &Rc<WorkerState>, addr: SocketAddr) -> Option<Target> {
    (!worker.connector.is_own(addr)).then(|| Target::address(addr))
}

/// What the mesh's names say about a host.
enum Named {
    Address(std::net::IpAddr),
    /// It is ours, and leads nowhere.
    Nothing,
    /// Somebody else's name.
    Outside,
}

/// Follows the names of the mesh: StatefulSet pods, and aliases.
fn in_mesh(tables: &Tables, host: &str) -> Named {
    let mut name = host.to_owned();
    for _ in 0..MAX_ALIASES {
        // An ExternalName service has no port list that has to match; its alias is what counts.
        if tables.service(&name).is_some_and(|s| s.kind == ServiceKind::RouteOnly) {
            return Named::Outside;
        }
        match answer(tables, &name, QueryType::A) {
            Answer::Records(records) => {
                let first = records.iter().find_map(|r| match r {
                    Record::A(ip) => Some((*ip).into()),
                    _ => None,
                });
                return first.map_or(Named::Nothing, Named::Address);
            }
            Answer::Cname(to) => name = to,
            Answer::NotOurs => return Named::Outside,
            Answer::NoData | Answer::NxDomain => return Named::Nothing,
        }
    }
    Named::Nothing
}
