//! QUIC, straight on quinn. Why not libp2p's own transport: it offers ChaCha20 first, which costs three times the CPU of
//! AES where the processor has instructions for AES; it runs every connection on the thread that made it, which here is
//! the control thread; and it gives no choice of congestion control, refuses migration and writes keys to
//! `SSLKEYLOGFILE`. On the wire it is the same.
//!
//! - [`settings`]: what quinn is told. [`congestion`]: how much it sends.
//! - [`place`]: on which thread a socket and a connection live.
//! - [`listener`]: a socket that takes connections, and its addresses.
//! - [`muxer`]: connections and streams as libp2p wants them.

mod congestion;
mod listener;
mod muxer;
mod place;
mod settings;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::SelectAll};
use libp2p::{
    Multiaddr, PeerId, Transport,
    core::transport::{DialOpts, ListenerId, PortUse, TransportError, TransportEvent},
    multiaddr::Protocol,
};
use quinn::rustls::pki_types::CertificateDer;

use self::{
    listener::Listener,
    muxer::Connection,
    place::Home,
    settings::{Bounds, Settings},
};
use crate::{
    certificate,
    config::{Congestion, Limits},
    error::StartError,
    exec::Placement,
    identity::NodeKey,
    path::ip_of,
    security::Security,
};

/// Why a connection did not come about, or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("dial")]
    Dial(#[source] quinn::ConnectError),
    #[error("connection")]
    Connection(#[source] quinn::ConnectionError),
    #[error("socket")]
    Socket(#[source] io::Error),
    #[error("no handshake within the time for it")]
    Handshake,
    #[error("the peer's certificate: {0}")]
    Certificate(String),
}

/// The transport.
pub(crate) struct QuicTransport {
    settings: Settings,
    placement: Arc<Placement>,
    listeners: SelectAll<Listener>,
    /// Sockets that dial in a family that has no listener, by whether it is IPv6.
    diallers: HashMap<bool, quinn::Endpoint>,
    waker: Option<Waker>,
}

impl QuicTransport {
    pub(crate) fn new(
        (key, security): (&NodeKey, &Security),
        bounds: (&Limits, &Congestion),
        handshake: Duration,
        placement: Arc<Placement>,
    ) -> Result<Self, StartError> {
        let settings = Settings::new(key, security, bounds, handshake)?;
        Ok(Self { settings, placement, listeners: SelectAll::new(), diallers: HashMap::new(), waker: None })
    }

    fn endpoint(&self, socket: UdpSocket, takes: bool) -> io::Result<quinn::Endpoint> {
        let is_ipv6 = socket.local_addr()?.is_ipv6();
        let server = takes.then(|| self.settings.server(is_ipv6));
        let home = Arc::new(Home(self.placement.clone()));
        quinn::Endpoint::new(self.settings.endpoint.clone(), server, socket, home)
    }

    /// The socket that a dial leaves from. From the listen port the peer sees the address at which this node is reached.
    fn from(&mut self, remote: SocketAddr, port: PortUse) -> io::Result<quinn::Endpoint> {
        if port == PortUse::Reuse {
            let fitting: Vec<&Listener> = self.listeners.iter().filter(|l| l.reaches(remote.ip())).collect();
            if !fitting.is_empty() {
                // Always the same one for a remote address.
                let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(remote);
                let at = usize::try_from(hash % fitting.len() as u64).unwrap_or(0);
                return Ok(fitting[at].endpoint.clone());
            }
            if let Some(endpoint) = self.diallers.get(&remote.is_ipv6()) {
                return Ok(endpoint.clone());
            }
        }
        let any = if remote.is_ipv6() {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        };
        let endpoint = self.endpoint(settings::socket(any)?, false)?;
        if port == PortUse::Reuse {
            self.diallers.insert(remote.is_ipv6(), endpoint.clone());
        }
        Ok(endpoint)
    }
}

/// The UDP socket that a QUIC address names.
pub(crate) fn socket_of(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter().skip(1);
    let (Protocol::Udp(port), Protocol::QuicV1) = (parts.next()?, parts.next()?) else { return None };
    if parts.any(|p| !matches!(p, Protocol::P2p(_))) {
        return None;
    }
    match address.iter().next()? {
        Protocol::Ip6(ip) => Some((ip, port).into()),
        _ => Some((ip_of(address)?, port).into()),
    }
}

fn address_of(socket: SocketAddr) -> Multiaddr {
    Multiaddr::empty().with(socket.ip().into()).with(Protocol::Udp(socket.port())).with(Protocol::QuicV1)
}

/// The peer whose key signed the certificate of the other side.
fn peer_of(connection: &quinn::Connection) -> Result<PeerId, Error> {
    let shown = connection.peer_identity().and_then(|i| i.downcast::<Vec<CertificateDer<'static>>>().ok());
    let Some([one]) = shown.as_deref().map(Vec::as_slice) else {
        return Err(Error::Certificate("there is none, or several".to_owned()));
    };
    certificate::peer_of(one).map_err(|e| Error::Certificate(e.to_string()))
}

type Upgrade = BoxFuture<'static, Result<(PeerId, Connection), Error>>;

fn upgrade(connecting: quinn::Connecting, bounds: Bounds) -> Upgrade {
    async move {
        let connection =
            tokio::time::timeout(bounds.handshake, connecting).await.map_err(|_| Error::Handshake)?;
        let connection = connection.map_err(Error::Connection)?;
        Ok((peer_of(&connection)?, Connection::new(connection, bounds.streams)))
    }
    .boxed()
}

impl Transport for QuicTransport {
    type Output = (PeerId, Connection);
    type Error = Error;
    type ListenerUpgrade = Upgrade;
    type Dial = Upgrade;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Error>> {
        let at = socket_of(&address).ok_or(TransportError::MultiaddrNotSupported(address))?;
        let failed = |e| TransportError::Other(Error::Socket(e));
        let endpoint = settings::socket(at).and_then(|s| self.endpoint(s, true)).map_err(failed)?;
        let listener = Listener::new(id, endpoint, self.placement.clone(), self.settings.bounds);
        self.listeners.push(listener.map_err(failed)?);
        // What dialled so far goes with its last connection.
        self.diallers.remove(&at.is_ipv6());
        self.waker.take().into_iter().for_each(Waker::wake);
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        match self.listeners.iter_mut().find(|l| l.id == id) {
            Some(listener) => {
                listener.close();
                true
            }
            None => false,
        }
    }

    fn dial(&mut self, address: Multiaddr, opts: DialOpts) -> Result<Upgrade, TransportError<Error>> {
        let remote = socket_of(&address).filter(|r| r.port() != 0 && !r.ip().is_unspecified());
        let remote = remote.ok_or(TransportError::MultiaddrNotSupported(address))?;
        let endpoint =
            self.from(remote, opts.port_use).map_err(|e| TransportError::Other(Error::Socket(e)))?;
        let (placement, bounds) = (self.placement.clone(), self.settings.bounds);
        let client = self.settings.client(remote.is_ipv6());
        // Begins when it is polled: the swarm may never get to it.
        let dial = async move {
            // Peers have no names, but quinn wants one; it is not sent.
            let connecting =
                place::placed(&placement, remote, || endpoint.connect_with(client, remote, "node"));
            upgrade(connecting.map_err(Error::Dial)?, bounds).await
        };
        Ok(dial.boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        if let Poll::Ready(Some(event)) = self.listeners.poll_next_unpin(cx) {
            return Poll::Ready(event);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
