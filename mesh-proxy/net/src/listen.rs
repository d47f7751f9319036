//! Listening sockets: several threads on one port, options a proxy needs, and an accept loop that
//! survives running out of descriptors.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// A peer that vanished without a FIN is noticed after about 60 + 3 × 20 s.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
const KEEPALIVE_TRIES: u32 = 3;
/// First pause after an accept error that does not concern one connection only; doubles.
const BACK_OFF_MIN: Duration = Duration::from_millis(5);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// A listener with `SO_REUSEPORT`, so that each worker thread has its own. `transparent` sets
/// `IP_TRANSPARENT` (needs NET_ADMIN), for traffic that arrives for addresses of others.
pub fn tcp_reuseport(address: SocketAddr, transparent: bool) -> io::Result<TcpListener> {
    TcpListener::from_std(std_tcp_reuseport(address, transparent)?)
}

/// As [`tcp_reuseport`], to be made before the runtime that will use it exists.
pub fn std_tcp_reuseport(address: SocketAddr, transparent: bool) -> io::Result<std::net::TcpListener> {
    let socket = socket(address, Type::STREAM, Protocol::TCP)?;
    socket.set_reuse_port(true)?;
    if transparent {
        match address {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => set_transparent_v6(&socket)?,
        }
    }
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A UDP socket; `reuse_port` lets several share the port.
pub fn udp(address: SocketAddr, reuse_port: bool) -> io::Result<UdpSocket> {
    let socket = socket(address, Type::DGRAM, Protocol::UDP)?;
    socket.set_reuse_port(reuse_port)?;
    socket.bind(&SockAddr::from(address))?;
    UdpSocket::from_std(socket.into())
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if kind == Type::STREAM {
        // Only for TCP: with UDP it would let a stranger share the port.
        socket.set_reuse_address(true)?;
    }
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` are listened to separately, whatever the host's default is.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

#[allow(unsafe_code, reason = "no crate here knows IPV6_TRANSPARENT")]
pub(crate) fn set_transparent_v6(socket: &Socket) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the whole call, and the pointer and length describe `on`,
    // an initialised c_int that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IPV6,
            libc::IPV6_TRANSPARENT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What every proxied connection gets: no Nagle delay, and keep-alive probes.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let probes = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_TRIES);
    SockRef::from(stream).set_tcp_keepalive(&probes)
}

/// What went wrong while accepting, for metrics.
#[derive(Debug, Default)]
pub struct AcceptErrors {
    /// The connection was gone before it was accepted, or its options could not be set.
    pub connection: AtomicU64,
    /// Out of descriptors or memory: accepting paused for a moment.
    pub resource: AtomicU64,
}

/// Accepts one connection, tuned. Errors are counted and retried, with a growing pause when the
/// process is out of descriptors or memory: an accept loop must neither end nor spin.
pub async fn accept(listener: &TcpListener, errors: &AcceptErrors) -> (TcpStream, SocketAddr) {
    let mut pause = BACK_OFF_MIN;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => match tune(&stream) {
                Ok(()) => return (stream, peer),
                Err(error) => {
                    tracing::debug!(%error, %peer, "options of an accepted connection");
                    errors.connection.fetch_add(1, Ordering::Relaxed);
                }
            },
            Err(error) if concerns_one_connection(&error) => {
                errors.connection.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::warn!(%error, pause_ms = pause.as_millis() as u64, "cannot accept");
                errors.resource.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BACK_OFF_MAX);
            }
        }
    }
}

/// Linux passes errors that the network reported for one new connection through accept(2).
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::EPROTO
                | libc::EINTR
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
                | libc::EPERM
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_listeners_share_a_port_and_accepted_streams_are_tuned() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let first = tcp_reuseport(any.parse().unwrap(), false).unwrap();
            let address = first.local_addr().unwrap();
            let second = tcp_reuseport(address, false).unwrap();
            let errors = AcceptErrors::default();
            for _ in 0..8 {
                let client = TcpStream::connect(address);
                let server = async {
                    tokio::select! {
                        (stream, _) = accept(&first, &errors) => stream,
                        (stream, _) = accept(&second, &errors) => stream,
                    }
                };
                let (client, server) = tokio::join!(client, server);
                drop(client.unwrap());
                assert!(server.nodelay().unwrap());
                assert!(SockRef::from(&server).keepalive().unwrap());
            }
            assert_eq!(errors.connection.into_inner() + errors.resource.into_inner(), 0);
        }
    }

    #[tokio::test]
    async fn udp_sockets_share_a_port_only_when_asked_to() {
        let first = udp("127.0.0.1:0".parse().unwrap(), true).unwrap();
        let address = first.local_addr().unwrap();
        udp(address, true).unwrap();
        let alone = udp("127.0.0.1:0".parse().unwrap(), false).unwrap();
        assert!(udp(alone.local_addr().unwrap(), true).is_err());
    }

    #[test]
    fn errors_of_one_connection_do_not_pause_the_loop_and_others_do() {
        let one = io::Error::from_raw_os_error(libc::ECONNABORTED);
        let all = io::Error::from_raw_os_error(libc::EMFILE);
        assert!(concerns_one_connection(&one) && !concerns_one_connection(&all));
    }
}
