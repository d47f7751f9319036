//! The sockets of it: asks the router that the default route leads to, follows it when it changes, gives back at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::UdpSocket, sync::watch, time::timeout};

use super::{
    Open,
    book::Book,
    gateway::Gateway,
    upnp,
    wire::{ANNOUNCED, LONGEST, Port, ROUTER},
};

/// How often the routing table is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Time that the router gets to confirm that ports are closed.
const FAREWELL: Duration = Duration::from_millis(250);

struct Asking {
    book: Book,
    socket: UdpSocket,
}

impl Asking {
    async fn begin(gateway: Gateway, secret: [u8; 32]) -> io::Result<Self> {
        let socket = UdpSocket::bind((gateway.host, 0)).await?;
        socket.connect((gateway.router, ROUTER)).await?;
        Ok(Self { book: Book::new(gateway, secret, Instant::now()), socket })
    }

    async fn send(&mut self, all: Vec<Vec<u8>>) {
        for datagram in all {
            if let Err(error) = self.socket.send(&datagram).await {
                if error.kind() == io::ErrorKind::ConnectionRefused {
                    self.book.unreachable(Instant::now());
                } else {
                    tracing::debug!(%error, "asking the router for a port");
                }
            }
        }
    }

    /// Closes everything, and waits a moment for each answer.
    async fn leave(mut self) {
        let all = self.book.leave();
        let count = all.len();
        self.send(all).await;
        let mut buffer = [0; LONGEST];
        for _ in 0..count {
            if timeout(FAREWELL, self.socket.recv(&mut buffer)).await.is_err() {
                return;
            }
        }
    }
}

/// Hears when a router has started anew. Another program may have the port; then only the router's clock tells.
fn announcements() -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, ANNOUNCED)).into())?;
    UdpSocket::from_std(socket.into())
}

async fn hear(announced: Option<&UdpSocket>, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    match announced {
        Some(socket) => socket.recv_from(buffer).await,
        None => std::future::pending().await,
    }
}

async fn answer(asking: Option<&Asking>, buffer: &mut [u8]) -> io::Result<usize> {
    match asking {
        Some(asking) => asking.socket.recv(buffer).await,
        None => std::future::pending().await,
    }
}

/// Asks for what is wanted until the sender of `wanted` goes; then gives it back, unless the last word was to keep it.
pub(super) async fn run(
    secret: [u8; 32],
    mut wanted: watch::Receiver<BTreeSet<Port>>,
    open: watch::Sender<Open>,
    keep: std::sync::Arc<std::sync::atomic::AtomicBool>,
) {
    let announced =
        announcements().inspect_err(|error| tracing::debug!(%error, "announcements of routers")).ok();
    let mut asking: Option<Asking> = None;
    let mut upnp = upnp::Asking::default();
    let mut next_look = Instant::now();
    let (mut one, mut two) = ([0; LONGEST], [0; LONGEST]);
    loop {
        let now = Instant::now();
        if now >= next_look {
            next_look = now + LOOK;
            follow(&mut asking, &mut upnp, secret).await;
        }
        let ports = wanted.borrow_and_update().clone();
        if let Some(it) = &mut asking {
            let mut datagrams = it.book.want(&ports, now);
            datagrams.extend(it.book.send(now));
            it.send(datagrams).await;
            upnp.step(it.book.gateway(), &ports, it.book.is_in_vain()).await;
        }
        let now_open = opened(asking.as_ref(), &upnp);
        open.send_if_modified(|old| std::mem::replace(old, now_open.clone()) != now_open);
        let at = asking.as_ref().map_or(next_look, |a| a.book.next().min(next_look));
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { break },
            () = tokio::time::sleep_until(at.into()) => {}
            heard = hear(announced.as_ref(), &mut one) => {
                if let (Ok((n, from)), Some(it)) = (heard, &mut asking)
                    && from.ip() == it.book.gateway().router
                {
                    it.book.receive(&one[..n], Instant::now());
                }
            }
            answered = answer(asking.as_ref(), &mut two) => {
                if let Some(it) = &mut asking {
                    match answered {
                        Ok(n) => it.book.receive(&two[..n], Instant::now()),
                        Err(error) => {
                            tracing::debug!(%error, "the router answers no request for a port");
                            it.book.unreachable(Instant::now());
                        }
                    }
                }
            }
        }
    }
    if !keep.load(std::sync::atomic::Ordering::Relaxed) {
        upnp.leave().await;
        if let Some(it) = asking {
            it.leave().await;
        }
    }
}

fn opened(asking: Option<&Asking>, upnp: &upnp::Asking) -> Open {
    let mut all: BTreeMap<Port, SocketAddrV4> = upnp.open();
    all.extend(asking.map(|a| a.book.open(Instant::now())).unwrap_or_default());
    all
}

/// Turns to another router when the default route leads to one. What the old one opened ends by itself: it led to an
/// address that this host has no more.
async fn follow(asking: &mut Option<Asking>, upnp: &mut upnp::Asking, secret: [u8; 32]) {
    let found = Gateway::find();
    if asking.as_ref().map(|a| a.book.gateway()) == found {
        return;
    }
    upnp.forget();
    *asking = None;
    let Some(gateway) = found else { return };
    match Asking::begin(gateway, secret).await {
        Ok(new) => *asking = Some(new),
        Err(error) => tracing::debug!(%error, router = %gateway.router, "asking the router for ports"),
    }
}
