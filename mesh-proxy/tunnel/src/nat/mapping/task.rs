//! The sockets of it: asks the routers that the default routes lead to, follows them when they change, gives back at the
//! end.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::UdpSocket, sync::watch, time::timeout};

use super::{
    Open, Wanted,
    book::Book,
    gateway::Gateway,
    upnp,
    wire::{ANNOUNCED, LONGEST, Port, ROUTER},
};

/// How often the routing tables are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Time that a router gets to confirm that ports are closed.
const FAREWELL: Duration = Duration::from_millis(250);

struct Asking {
    book: Book,
    socket: UdpSocket,
}

impl Asking {
    async fn begin(gateway: Gateway, secret: [u8; 32]) -> io::Result<Self> {
        let socket = UdpSocket::bind((gateway.host, 0)).await?;
        socket.connect(gateway.at(ROUTER)).await?;
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
fn announcements(v6: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(if v6 { Domain::IPV6 } else { Domain::IPV4 }, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    let any: SocketAddr = if v6 {
        socket.set_only_v6(true)?;
        (Ipv6Addr::UNSPECIFIED, ANNOUNCED).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, ANNOUNCED).into()
    };
    socket.bind(&any.into())?;
    UdpSocket::from_std(socket.into())
}

/// One family, and its router.
struct Line {
    v6: bool,
    announced: Option<UdpSocket>,
    asking: Option<Asking>,
    buffers: [Box<[u8; LONGEST]>; 2],
}

impl Line {
    fn new(v6: bool) -> Self {
        let announced =
            announcements(v6).inspect_err(|error| tracing::debug!(%error, "announcements of routers"));
        let buffers = [Box::new([0; LONGEST]), Box::new([0; LONGEST])];
        Self { v6, announced: announced.ok(), asking: None, buffers }
    }

    /// Turns to another router when the default route leads to one; says whether it did. What the old one opened ends by
    /// itself: it led to an address that this host has no more.
    async fn follow(&mut self, secret: [u8; 32]) -> bool {
        let found = Gateway::find(self.v6);
        if self.asking.as_ref().map(|a| a.book.gateway()) == found {
            return false;
        }
        self.asking = None;
        let Some(gateway) = found else { return true };
        match Asking::begin(gateway, secret).await {
            Ok(new) => self.asking = Some(new),
            Err(error) => tracing::debug!(%error, router = %gateway.router, "asking the router for ports"),
        }
        true
    }

    async fn ask(&mut self, ports: &BTreeSet<Port>, now: Instant) {
        if let Some(it) = &mut self.asking {
            let mut datagrams = it.book.want(ports, now);
            datagrams.extend(it.book.send(now));
            it.send(datagrams).await;
        }
    }

    /// Waits for a word of the router, and takes it.
    async fn hear(&mut self) {
        let [one, two] = &mut self.buffers;
        let (asking, announced) = (&self.asking, &self.announced);
        let announcement = async {
            match announced {
                Some(socket) => socket.recv_from(&mut one[..]).await,
                None => std::future::pending().await,
            }
        };
        let answer = async {
            match asking {
                Some(asking) => asking.socket.recv(&mut two[..]).await,
                None => std::future::pending().await,
            }
        };
        let heard = tokio::select! {
            heard = announcement => Ok(heard),
            answered = answer => Err(answered),
        };
        let Some(it) = &mut self.asking else { return };
        match heard {
            Ok(Ok((n, from))) if from.ip() == it.book.gateway().router => {
                it.book.receive(&one[..n], Instant::now());
            }
            Ok(_) => {}
            Err(Ok(n)) => it.book.receive(&two[..n], Instant::now()),
            Err(Err(error)) => {
                tracing::debug!(%error, "the router answers no request for a port");
                it.book.unreachable(Instant::now());
            }
        }
    }

    fn next(&self) -> Option<Instant> {
        self.asking.as_ref().map(|a| a.book.next())
    }

    fn open(&self) -> Open {
        let open = self.asking.as_ref().map(|a| a.book.open(Instant::now())).unwrap_or_default();
        open.into_iter().map(|((carrier, _), at)| (carrier, at)).collect()
    }
}

/// Asks for what is wanted until the sender of `wanted` goes; then gives it back, unless the last word was to keep it.
pub(super) async fn run(
    secret: [u8; 32],
    mut wanted: watch::Receiver<Wanted>,
    open: watch::Sender<Open>,
    keep: Arc<AtomicBool>,
) {
    let (mut four, mut six) = (Line::new(false), Line::new(true));
    let mut upnp = upnp::Asking::default();
    let mut next_look = Instant::now();
    loop {
        let now = Instant::now();
        if now >= next_look {
            next_look = now + LOOK;
            if four.follow(secret).await {
                upnp.forget();
            }
            six.follow(secret).await;
        }
        let ports = wanted.borrow_and_update().clone();
        four.ask(&ports.four, now).await;
        six.ask(&ports.six, now).await;
        if let Some(book) = four.asking.as_ref().map(|a| &a.book)
            && let Some(home) = book.gateway().v4()
        {
            upnp.step(home, &ports.four, book.is_in_vain()).await;
        }
        let now_open = opened(&four, &six, &upnp);
        open.send_if_modified(|old| std::mem::replace(old, now_open.clone()) != now_open);
        let at = [four.next(), six.next()].into_iter().flatten().fold(next_look, Instant::min);
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { break },
            () = tokio::time::sleep_until(at.into()) => {}
            () = four.hear() => {}
            () = six.hear() => {}
        }
    }
    if !keep.load(Ordering::Relaxed) {
        upnp.leave().await;
        let leave = |line: Line| async {
            if let Some(it) = line.asking {
                it.leave().await;
            }
        };
        tokio::join!(leave(four), leave(six));
    }
}

fn opened(four: &Line, six: &Line, upnp: &upnp::Asking) -> Open {
    let by_upnp = upnp.open().iter().map(|((carrier, _), at)| (*carrier, (*at).into()));
    // What the better protocol has opened stands for the same port.
    let four = four.open();
    let mut all: Open = if four.is_empty() { by_upnp.collect() } else { four };
    all.extend(six.open());
    all
}
