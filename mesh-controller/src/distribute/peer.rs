//! Who is at the other end of a connection: TLS handshakes, off the accept loop and bounded in number and time.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use mesh_net::tls::PeerIdentity;
use node_rt::Tasks;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Sleep,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use crate::metrics::Metrics;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections without a certificate can only join: few at a time, and not for long, so that whoever reaches the port
/// cannot keep nodes out.
const ANONYMOUS: usize = 512;
const ANONYMOUS_TIME: Duration = Duration::from_secs(30);

/// What TLS says of a peer.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// The node that its certificate names; `None` without a certificate.
    pub(crate) node: Option<Arc<str>>,
    /// When the certificate ends.
    pub(crate) expires: Option<SystemTime>,
}

/// An established connection.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    /// When a connection that can only join ends.
    ends: Option<Pin<Box<Sleep>>>,
    _permits: [Option<OwnedSemaphorePermit>; 2],
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(end) = &mut self.ends
            && end.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Accepts until the drain, handing over connections whose handshake is done.
pub(crate) fn accept(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    max_connections: usize,
    tasks: &Tasks,
    metrics: Arc<Metrics>,
) -> mpsc::Receiver<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(64);
    let limit = Arc::new(Semaphore::new(max_connections));
    let anonymous = Arc::new(Semaphore::new(ANONYMOUS));
    let acceptor = TlsAcceptor::from(tls);
    let owner = tasks.clone();
    tasks.spawn_critical("accept", async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = owner.drain().stop_accepting() => return,
            };
            let (tcp, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: give the rest time to end.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = limit.clone().try_acquire_owned() else {
                metrics.refused_connections.inc();
                continue;
            };
            let (acceptor, sender, metrics) = (acceptor.clone(), sender.clone(), metrics.clone());
            let anonymous = anonymous.clone();
            owner.spawn("handshake", async move {
                tcp.set_nodelay(true).ok();
                let done = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await;
                match done.map_err(|_| io::Error::from(io::ErrorKind::TimedOut)).and_then(|r| r) {
                    Ok(stream) => {
                        let peer = peer_of(&stream, address);
                        let mut permits = [Some(permit), None];
                        let mut ends = None;
                        if peer.node.is_none() {
                            let Ok(one) = anonymous.try_acquire_owned() else {
                                metrics.refused_connections.inc();
                                return;
                            };
                            permits[1] = Some(one);
                            ends = Some(Box::pin(tokio::time::sleep(ANONYMOUS_TIME)));
                        }
                        sender.send(Ok(Connection { stream, peer, ends, _permits: permits })).await.ok();
                    }
                    Err(error) => {
                        metrics.failed_handshakes.inc();
                        tracing::debug!(%address, %error, "handshake");
                    }
                }
            });
        }
    });
    receiver
}

fn peer_of(stream: &TlsStream<TcpStream>, address: SocketAddr) -> Peer {
    let certificates = stream.get_ref().1.peer_certificates();
    // The verifier has checked chain and trust domain; here is only read what it saw.
    let node = PeerIdentity::from_certificates(certificates).ok().and_then(|identity| identity.node);
    let expires = certificates.and_then(<[_]>::first).and_then(|leaf| {
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).ok()?;
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    });
    Peer { address, node, expires }
}
