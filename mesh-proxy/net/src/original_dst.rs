//! Where a redirected connection was going before nftables sent it to us.

use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// The destination that the client dialled, or nothing when the connection was not redirected
/// (conntrack knows no such connection, or its destination is our own address).
pub fn original_dst(stream: &TcpStream) -> Option<SocketAddr> {
    let local = stream.local_addr().ok()?;
    let socket = SockRef::from(stream);
    // A v6 socket may carry a v4 connection, and then only the v4 question has an answer.
    let found = if is_v4(local) { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let original = found.ok()?.as_socket()?;
    (original != unmap(local)).then_some(original)
}

fn is_v4(address: SocketAddr) -> bool {
    matches!(unmap(address), SocketAddr::V4(_))
}

/// `::ffff:10.0.0.1` as 10.0.0.1.
pub fn unmap(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_direct_connection_has_no_original_destination() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await.unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (server, _) = listener.accept().await.unwrap();
            assert_eq!(original_dst(&server), None);
            drop(client);
        }
    }

    #[test]
    fn mapped_addresses_become_plain() {
        assert_eq!(unmap("[::ffff:10.0.0.1]:80".parse().unwrap()), "10.0.0.1:80".parse().unwrap());
    }
}
