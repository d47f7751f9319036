//! The server behind every subject, and the calibrator. Both are as plain as can be, so that what is measured is the
//! subject: one thread, one fixed answer.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task,
};

/// Bytes of body in each answer.
pub(crate) const BODY: usize = 1024;
/// Bytes of one write of the bulk source.
const CHUNK: usize = 256 * 1024;

/// Answers every HTTP/1.1 request at `http` with 200 and [`BODY`] bytes, and pours zeros into every connection to `bulk`.
pub(crate) async fn serve(http: SocketAddr, bulk: SocketAddr) -> io::Result<()> {
    // On every address: the same server is a pod of each node.
    let http = TcpListener::bind((Ipv4Addr::UNSPECIFIED, http.port())).await?;
    let bulk = TcpListener::bind((Ipv4Addr::UNSPECIFIED, bulk.port())).await?;
    let answer: Rc<[u8]> = answer().into();
    let zeros: Rc<[u8]> = vec![0; CHUNK].into();
    loop {
        tokio::select! {
            connection = http.accept() => {
                let Ok((stream, _)) = connection else { continue };
                stream.set_nodelay(true)?;
                let answer = answer.clone();
                task::spawn_local(async move { let _ = answer_all(stream, &answer).await; });
            }
            connection = bulk.accept() => {
                let Ok((mut stream, _)) = connection else { continue };
                let zeros = zeros.clone();
                task::spawn_local(async move { while stream.write_all(&zeros).await.is_ok() {} });
            }
        }
    }
}

fn answer() -> Vec<u8> {
    let mut out =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {BODY}\r\n\r\n").into_bytes();
    out.resize(out.len() + BODY, b'x');
    out
}

async fn answer_all(mut stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    let mut buffer = vec![0; 8192];
    let mut filled = 0;
    loop {
        let n = stream.read(&mut buffer[filled..]).await?;
        if n == 0 {
            return Ok(());
        }
        filled += n;
        while let Some(end) = find(&buffer[..filled], b"\r\n\r\n") {
            let close = has_close(&buffer[..end]);
            stream.write_all(answer).await?;
            if close {
                return stream.shutdown().await;
            }
            buffer.copy_within(end + 4..filled, 0);
            filled -= end + 4;
        }
        if filled == buffer.len() {
            return Err(ErrorKind::InvalidData.into());
        }
    }
}

fn has_close(head: &[u8]) -> bool {
    let head = head.to_ascii_lowercase();
    find(&head, b"\r\nconnection: close").is_some()
}

/// Where `needle` starts in `hay`.
pub(crate) fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|w| w == needle)
}

/// The calibrator: accepts at `from`, connects to `to`, copies. What any user-space relay must at least do.
pub(crate) async fn relay(from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(from).await?;
    let mut flows = task::JoinSet::new();
    loop {
        tokio::select! {
            connection = listener.accept() => {
                let Ok((mut client, _)) = connection else { continue };
                client.set_nodelay(true)?;
                flows.spawn(async move {
                    let Ok(mut server) = TcpStream::connect(to).await else { return };
                    let _ = server.set_nodelay(true);
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
            Some(_) = flows.join_next() => {}
        }
    }
}
