//! Outgoing connections, marked so that our own redirect rule lets them pass.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use crate::listen::tune;

/// The packet mark that the capture rules let pass. Any bits that other software on the node does
/// not use would do; configurable for that reason.
pub const DEFAULT_MARK: u32 = 0x5e1f;

/// How to connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectOptions {
    /// `SO_MARK`; needs NET_ADMIN, so it is absent when nothing is captured.
    pub mark: Option<u32>,
    /// Source address to use.
    pub source: Option<IpAddr>,
    /// Give up after this.
    pub timeout: Option<Duration>,
}

/// Connects a tuned TCP stream. A time-out is an [`io::ErrorKind::TimedOut`].
pub async fn connect(address: SocketAddr, options: &ConnectOptions) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(mark) = options.mark {
        set_mark(&socket, mark)?;
    }
    if let Some(source) = options.source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let connecting = socket.connect(address);
    let stream = match options.timeout {
        None => connecting.await?,
        Some(limit) => match tokio::time::timeout(limit, connecting).await {
            Ok(connected) => connected?,
            Err(_late) => return Err(io::Error::new(io::ErrorKind::TimedOut, "connect timed out")),
        },
    };
    tune(&stream)?;
    Ok(stream)
}

fn set_mark(socket: &impl std::os::fd::AsFd, mark: u32) -> io::Result<()> {
    SockRef::from(socket).set_mark(mark)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn connects_from_the_source_address_and_reports_refusal() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let options =
            ConnectOptions { source: Some("127.0.0.9".parse().unwrap()), ..ConnectOptions::default() };
        let stream = connect(address, &options).await.unwrap();
        assert!(stream.nodelay().unwrap());
        assert_eq!(listener.accept().await.unwrap().1.ip().to_string(), "127.0.0.9");
        drop(listener);
        let refused = connect(address, &ConnectOptions::default()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
