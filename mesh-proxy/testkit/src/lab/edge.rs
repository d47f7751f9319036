//! Programs at a site's edge: an HTTP proxy for sites that let out nothing else, and a link that comes and goes.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{LabError, tools};

/// Connections at once; the next one is told 503.
const CONNECTIONS: usize = 256;
/// The longest request head.
const HEAD: usize = 8 * 1024;
const PATIENCE: Duration = Duration::from_secs(10);

/// An HTTP proxy that knows `CONNECT` and nothing else.
///
/// # Errors
/// When it cannot listen.
pub(super) fn connect_proxy_main(listen: SocketAddr) -> Result<(), LabError> {
    let listener =
        TcpListener::bind(listen).map_err(LabError::file("listen on", Path::new(&listen.to_string())))?;
    ready();
    let open = Arc::new(AtomicUsize::new(0));
    for client in listener.incoming() {
        let Ok(mut client) = client else { continue };
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            // It may be gone already.
            let _gone = client.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
            continue;
        }
        let open = Arc::clone(&open);
        std::thread::spawn(move || {
            match serve(&mut client) {
                Ok(()) => {}
                Err(error) => eprintln!("{error}"),
            }
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
    Ok(())
}

fn serve(client: &mut TcpStream) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(PATIENCE))?;
    let target = match target(client)? {
        Ok(target) => target,
        Err(status) => {
            return client.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes());
        }
    };
    let addresses: Vec<SocketAddr> = target.to_socket_addrs().map(Iterator::collect).unwrap_or_default();
    let server = addresses.iter().find_map(|a| TcpStream::connect_timeout(a, PATIENCE).ok());
    let Some(server) = server else {
        return client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
    };
    eprintln!("CONNECT {target}");
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    client.set_read_timeout(None)?;
    server.set_nodelay(true)?;
    let (up_from, up_to) = (client.try_clone()?, server.try_clone()?);
    let up = std::thread::spawn(move || copy(up_from, up_to));
    copy(server, client.try_clone()?);
    // The other direction has its own end.
    let _ended = up.join();
    Ok(())
}

/// One direction, to its end.
fn copy(mut from: TcpStream, mut to: TcpStream) {
    // An error on either side ends the direction, as an end does.
    let _ended = std::io::copy(&mut from, &mut to);
    let _closed = to.shutdown(Shutdown::Write);
}

/// Reads a request's head byte by byte: nothing after it is taken from the tunnel.
fn target(client: &mut TcpStream) -> std::io::Result<Result<String, &'static str>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD {
            return Ok(Err("431 Request Header Fields Too Large"));
        }
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head);
    let mut words = text.split_whitespace();
    Ok(match (words.next(), words.next()) {
        (Some("CONNECT"), Some(target)) => Ok(target.to_owned()),
        _ => Err("405 Method Not Allowed"),
    })
}

/// Lets packets pass a device for a while, then not, for ever.
///
/// # Errors
/// When the filter cannot be set.
pub(super) fn flap_main(family: &str, device: &str, up: Duration, down: Duration) -> Result<(), LabError> {
    let table = format!("{family} flap-{device}");
    let cut = format!(
        "table {table} {{\n\
         chain pre {{ type filter hook prerouting priority -309; iifname \"{device}\" drop; }}\n\
         chain post {{ type filter hook postrouting priority 309; oifname \"{device}\" drop; }}\n}}\n"
    );
    ready();
    loop {
        std::thread::sleep(up);
        tools::run("link", "nft", &["-f", "-"], &cut)?;
        std::thread::sleep(down);
        tools::run("link", "nft", &["-f", "-"], &format!("delete table {table}\n"))?;
    }
}

/// Tells whoever started this program that it works.
fn ready() {
    println!("ready");
    // Nobody may be listening.
    let _gone = std::io::stdout().flush();
}
