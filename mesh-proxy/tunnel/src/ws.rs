//! WebSocket in TLS, for networks that pass nothing but TLS on 443, straight or through an HTTP CONNECT proxy.
//!
//! TLS is outermost and the only encryption: it is the same mutual TLS as on plain TCP, with the node keys, so it proves
//! both peer ids, and what a middle box sees is TLS 1.3 that speaks `http/1.1`. Inside are a WebSocket upgrade and binary
//! frames, inside these the muxer. Whoever ends TLS in between (an ingress, a proxy that opens TLS) cannot carry it.
//!
//! - [`frames`]: bytes over the frames of a WebSocket.
//! - [`proxy`]: the HTTP CONNECT proxy.

mod frames;
pub(crate) mod proxy;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId, Transport,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, DialOpts, ListenerId, TransportError, TransportEvent},
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
    },
    dns,
    multiaddr::Protocol,
    tcp,
};

use self::{frames::Frames, proxy::Proxy};
use crate::{
    mux,
    security::Security,
    socket::{Socket, Sockets},
};

/// A transport for addresses that end in `/tls/ws` or `/wss`.
pub(crate) struct WsTransport {
    /// TCP with names resolved.
    tcp: Boxed<Socket>,
    setup: Setup,
    proxy: Option<Proxy>,
}

#[derive(Clone)]
struct Setup {
    security: Security,
    muxer: mux::Config,
    limit: Duration,
}

impl WsTransport {
    pub(crate) fn new(
        security: &Security,
        muxer: mux::Config,
        (limit, sockets): (Duration, Sockets),
        proxy: Option<Proxy>,
    ) -> io::Result<Self> {
        let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
            .map(move |stream, _| sockets.take(stream.0));
        let tcp = dns::tokio::Transport::system(tcp).map_err(io::Error::other)?.boxed();
        Ok(Self { tcp, setup: Setup { security: security.for_web(), muxer, limit }, proxy })
    }
}

/// The part of an address before `/tls/ws`, or `None` if it is no such address.
fn below(address: &Multiaddr) -> Option<Multiaddr> {
    let mut below = address.clone();
    if let Some(Protocol::P2p(_)) = below.iter().last() {
        below.pop();
    }
    match below.pop()? {
        Protocol::Wss(_) => Some(below),
        Protocol::Ws(_) => match below.pop()? {
            Protocol::Tls => Some(below),
            _ => None,
        },
        _ => None,
    }
}

fn above(address: Multiaddr) -> Multiaddr {
    address.with(Protocol::Tls).with(Protocol::Ws("/".into()))
}

/// Host and port of an address, as an HTTP authority has them.
fn authority(address: &Multiaddr) -> Option<(String, u16)> {
    let mut parts = address.iter();
    let host = match parts.next()? {
        Protocol::Ip4(ip) => ip.to_string(),
        Protocol::Ip6(ip) => format!("[{ip}]"),
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => name.into_owned(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some((host, port)),
        _ => None,
    }
}

impl Setup {
    async fn dialled(self, socket: Socket, host: String) -> io::Result<(PeerId, StreamMuxerBox)> {
        let (peer, tls) = self.security.connect(socket, &host).await?;
        let frames = Frames::dialled(tls, &host).await?;
        let Ok(muxer) = self.muxer.upgrade_outbound(frames, "").await;
        Ok((peer, StreamMuxerBox::new(muxer)))
    }

    async fn accepted(self, socket: Socket) -> io::Result<(PeerId, StreamMuxerBox)> {
        let (peer, tls) = self.security.accept(socket).await?;
        let frames = Frames::accepted(tls).await?;
        let Ok(muxer) = self.muxer.upgrade_inbound(frames, "").await;
        Ok((peer, StreamMuxerBox::new(muxer)))
    }
}

type Upgrade = BoxFuture<'static, io::Result<(PeerId, StreamMuxerBox)>>;

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

impl Transport for WsTransport {
    type Output = (PeerId, StreamMuxerBox);
    type Error = io::Error;
    type ListenerUpgrade = Upgrade;
    type Dial = Upgrade;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        match below(&address) {
            Some(below) => self.tcp.listen_on(id, below),
            None => Err(TransportError::MultiaddrNotSupported(address)),
        }
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.tcp.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, opts: DialOpts) -> Result<Upgrade, TransportError<io::Error>> {
        let unsupported = || TransportError::MultiaddrNotSupported(address.clone());
        let below = below(&address).ok_or_else(unsupported)?;
        let (host, port) = authority(&below).ok_or_else(unsupported)?;
        if opts.role.is_listener() {
            return Err(unsupported());
        }
        let setup = self.setup.clone();
        let limit = setup.limit;
        let socket = self.tcp.dial(self.proxy.as_ref().map_or(below, Proxy::address), opts)?;
        let proxy = self.proxy.clone();
        let work = async move {
            let mut socket = socket.await?;
            if let Some(proxy) = proxy {
                proxy.connect(&mut socket, &host, port).await?;
            }
            setup.dialled(socket, host).await
        };
        Ok(within(limit, work).boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.tcp).poll(cx).map(|event| match event {
            TransportEvent::NewAddress { listener_id, listen_addr } => {
                TransportEvent::NewAddress { listener_id, listen_addr: above(listen_addr) }
            }
            TransportEvent::AddressExpired { listener_id, listen_addr } => {
                TransportEvent::AddressExpired { listener_id, listen_addr: above(listen_addr) }
            }
            TransportEvent::Incoming { listener_id, upgrade, local_addr, send_back_addr } => {
                let setup = self.setup.clone();
                let limit = setup.limit;
                let work = async move { setup.accepted(upgrade.await?).await };
                TransportEvent::Incoming {
                    listener_id,
                    upgrade: within(limit, work).boxed(),
                    local_addr: above(local_addr),
                    send_back_addr: above(send_back_addr),
                }
            }
            TransportEvent::ListenerClosed { listener_id, reason } => {
                TransportEvent::ListenerClosed { listener_id, reason }
            }
            TransportEvent::ListenerError { listener_id, error } => {
                TransportEvent::ListenerError { listener_id, error }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_websockets_in_tls_are_taken() {
        let of = |text: &str| below(&text.parse().unwrap()).map(|a| a.to_string());
        assert_eq!(of("/ip4/1.2.3.4/tcp/443/tls/ws").unwrap(), "/ip4/1.2.3.4/tcp/443");
        assert_eq!(of("/dns4/edge.example/tcp/443/wss").unwrap(), "/dns4/edge.example/tcp/443");
        let peer = PeerId::random();
        assert_eq!(of(&format!("/ip6/::1/tcp/1/tls/ws/p2p/{peer}")).unwrap(), "/ip6/::1/tcp/1");
        for other in ["/ip4/1.2.3.4/tcp/443", "/ip4/1.2.3.4/tcp/80/ws", "/ip4/1.2.3.4/udp/443/quic-v1"] {
            assert_eq!(of(other), None);
        }
        let host = |text: &str| authority(&text.parse().unwrap());
        assert_eq!(host("/ip6/::1/tcp/443"), Some(("[::1]".into(), 443)));
        assert_eq!(host("/dns/edge.example/tcp/8443"), Some(("edge.example".into(), 8443)));
        assert_eq!(host("/ip4/1.1.1.1/udp/443"), None);
    }
}
