//! A socket that takes connections. Bound to all addresses, it follows those of the host.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures::{FutureExt, Stream, future::BoxFuture};
use if_watch::{IfEvent, tokio::IfWatcher};
use libp2p::core::transport::{ListenerId, TransportEvent};
use quinn::VarInt;

use super::{Error, Upgrade, address_of, place, settings::Bounds, upgrade};
use crate::exec::Placement;

type Event = TransportEvent<Upgrade, Error>;

pub(super) struct Listener {
    pub(super) id: ListenerId,
    pub(super) endpoint: quinn::Endpoint,
    placement: Arc<Placement>,
    bounds: Bounds,
    local: SocketAddr,
    accept: BoxFuture<'static, Option<quinn::Incoming>>,
    /// Addresses of the host, when the socket has them all.
    watcher: Option<IfWatcher>,
    addresses: HashSet<IpAddr>,
    pending: Option<Event>,
    closed: bool,
    waker: Option<Waker>,
}

impl Listener {
    pub(super) fn new(
        id: ListenerId,
        endpoint: quinn::Endpoint,
        placement: Arc<Placement>,
        bounds: Bounds,
    ) -> io::Result<Self> {
        let local = endpoint.local_addr()?;
        let (mut watcher, mut pending, mut addresses) = (None, None, HashSet::new());
        if local.ip().is_unspecified() {
            watcher = Some(IfWatcher::new()?);
        } else {
            addresses.insert(local.ip());
            pending = Some(Event::NewAddress { listener_id: id, listen_addr: address_of(local) });
        }
        let accept = accept(&endpoint);
        Ok(Self {
            id,
            endpoint,
            placement,
            bounds,
            local,
            accept,
            watcher,
            addresses,
            pending,
            closed: false,
            waker: None,
        })
    }

    /// Whether a dial of this address may leave from here.
    pub(super) fn reaches(&self, remote: IpAddr) -> bool {
        !self.closed
            && self.local.is_ipv6() == remote.is_ipv6()
            && (!remote.is_loopback() || self.addresses.iter().any(IpAddr::is_loopback))
    }

    /// Ends the socket and its connections; the last event says so.
    pub(super) fn close(&mut self) {
        if self.closed {
            return;
        }
        self.closed = true;
        self.endpoint.close(VarInt::from_u32(0), b"");
        self.pending = Some(Event::ListenerClosed { listener_id: self.id, reason: Ok(()) });
        self.waker.take().into_iter().for_each(Waker::wake);
    }

    /// An address that came or went.
    fn poll_addresses(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let Some(watcher) = &mut self.watcher else { return Poll::Pending };
        let listener_id = self.id;
        while let Poll::Ready(change) = watcher.poll_if_event(cx) {
            let (net, up) = match change {
                Ok(IfEvent::Up(net)) => (net, true),
                Ok(IfEvent::Down(net)) => (net, false),
                Err(e) => {
                    return Poll::Ready(Event::ListenerError { listener_id, error: Error::Socket(e) });
                }
            };
            let ip = net.addr();
            if ip.is_ipv6() != self.local.is_ipv6() {
                continue;
            }
            let listen_addr = address_of((ip, self.local.port()).into());
            return Poll::Ready(if up {
                self.addresses.insert(ip);
                Event::NewAddress { listener_id, listen_addr }
            } else {
                self.addresses.remove(&ip);
                Event::AddressExpired { listener_id, listen_addr }
            });
        }
        Poll::Pending
    }

    fn incoming(&self, incoming: quinn::Incoming) -> Event {
        let remote = incoming.remote_address();
        match place::placed(&self.placement, remote, || incoming.accept()) {
            Ok(connecting) => Event::Incoming {
                listener_id: self.id,
                upgrade: upgrade(connecting, self.bounds),
                local_addr: address_of(self.local),
                send_back_addr: address_of(remote),
            },
            Err(error) => Event::ListenerError { listener_id: self.id, error: Error::Connection(error) },
        }
    }
}

fn accept(endpoint: &quinn::Endpoint) -> BoxFuture<'static, Option<quinn::Incoming>> {
    let endpoint = endpoint.clone();
    async move { endpoint.accept().await }.boxed()
}

impl Stream for Listener {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let this = self.get_mut();
        loop {
            if let Some(event) = this.pending.take() {
                return Poll::Ready(Some(event));
            }
            if this.closed {
                return Poll::Ready(None);
            }
            if let Poll::Ready(event) = this.poll_addresses(cx) {
                return Poll::Ready(Some(event));
            }
            match this.accept.poll_unpin(cx) {
                Poll::Ready(Some(incoming)) => {
                    this.accept = accept(&this.endpoint);
                    return Poll::Ready(Some(this.incoming(incoming)));
                }
                Poll::Ready(None) => this.close(),
                Poll::Pending => {
                    this.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    }
}
