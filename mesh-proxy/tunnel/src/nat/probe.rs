//! Finds out what a NAT maps and whom it lets in, with two relays and a UDP socket of its own for each measurement: the
//! listen port's mapping has long been used with both relays, so nothing could be learnt about strangers from it.
//!
//! The first relay opens a port, sees from where the node's datagram comes, and sends one back from another port. The
//! second, to which that socket never sent anything, sends one too. Then the node sends to the second: does it come
//! from the same outer address?

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::Multiaddr;
use tokio::{net::UdpSocket, time::timeout};

use super::{
    candidates::{Carrier, multiaddr, socket_of},
    wire::{self, Probe, ProbeEnd},
};

/// Time that a datagram gets to arrive.
const ARRIVE: Duration = Duration::from_millis(900);
/// Each datagram is sent so often, with this pause.
const REPEATS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(60);
/// Requests on one stream.
const MAX_REQUESTS: usize = 4;
/// Length of a token.
const TOKEN: usize = 16;

/// What was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Measured {
    /// The same outer address for both relays.
    pub(crate) same_mapping: bool,
    /// Outer address that the first relay saw, and the socket's own port.
    pub(crate) seen: SocketAddr,
    /// A datagram from another port of the first relay came through.
    pub(crate) other_port: bool,
    /// A datagram of the second relay came through unasked.
    pub(crate) other_host: bool,
}

const OPEN: u32 = 1;
const SEND: u32 = 2;

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

async fn socket(near: IpAddr) -> io::Result<UdpSocket> {
    let any: IpAddr =
        if near.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).await
}

async fn send(from: &UdpSocket, token: &[u8], to: SocketAddr) {
    for _ in 0..REPEATS {
        if let Err(error) = from.send_to(token, to).await {
            tracing::debug!(%error, %to, "probe");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits for a datagram with `token`.
async fn receive(on: &UdpSocket, token: &[u8]) -> io::Result<SocketAddr> {
    let mut buffer = [0; TOKEN + 1];
    let arrives = async {
        loop {
            let (n, from) = on.recv_from(&mut buffer).await?;
            if buffer[..n] == *token {
                return Ok(from);
            }
        }
    };
    timeout(ARRIVE, arrives).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Serves a node whose packets come from `requester`. Nothing is sent to any other host.
pub(crate) async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    requester: IpAddr,
) -> io::Result<()> {
    for _ in 0..MAX_REQUESTS {
        let probe: Probe = match wire::read(&mut stream).await {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        };
        if probe.token.len() != TOKEN {
            return Err(bad("token of another length"));
        }
        match probe.op {
            OPEN => {
                let on = socket(requester).await?;
                let port = u32::from(on.local_addr()?.port());
                wire::write(&mut stream, &ProbeEnd { port, seen: Vec::new() }).await?;
                let seen = match receive(&on, &probe.token).await {
                    Ok(from) if from.ip().to_canonical() == requester.to_canonical() => {
                        send(&socket(requester).await?, &probe.token, from).await;
                        multiaddr(Carrier::Udp, from).to_vec()
                    }
                    _ => Vec::new(),
                };
                wire::write(&mut stream, &ProbeEnd { port, seen }).await?;
            }
            SEND => {
                let to = address(&probe.target).ok_or_else(|| bad("target is no UDP address"))?;
                if to.ip().to_canonical() != requester.to_canonical() || to.port() < 1024 {
                    return Err(bad("target is somebody else"));
                }
                send(&socket(requester).await?, &probe.token, to).await;
                wire::write(&mut stream, &ProbeEnd { port: 0, seen: Vec::new() }).await?;
            }
            _ => return Err(bad("unknown probe")),
        }
    }
    Ok(())
}

fn address(raw: &[u8]) -> Option<SocketAddr> {
    match socket_of(&Multiaddr::try_from(raw.to_vec()).ok()?)? {
        (Carrier::Udp, at) => Some(at),
        (Carrier::Tcp, _) => None,
    }
}

/// Sends to a port that a relay opens, and gives what it saw.
async fn ask_open(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    from: &UdpSocket,
    relay: IpAddr,
    token: [u8; TOKEN],
) -> io::Result<SocketAddr> {
    wire::write(stream, &Probe { op: OPEN, token: token.to_vec(), target: Vec::new() }).await?;
    let opened: ProbeEnd = wire::read(stream).await?;
    let port = u16::try_from(opened.port).map_err(|_| bad("port"))?;
    send(from, &token, SocketAddr::new(relay, port)).await;
    let end: ProbeEnd = wire::read(stream).await?;
    address(&end.seen).ok_or_else(|| io::ErrorKind::TimedOut.into())
}

/// Measures with two relays, each with its host as this node reaches it.
pub(crate) async fn measure<S: AsyncRead + AsyncWrite + Unpin>(
    (mut one, one_at): (S, IpAddr),
    (mut two, two_at): (S, IpAddr),
) -> io::Result<Measured> {
    let own = socket(one_at).await?;
    let tokens: [[u8; TOKEN]; 3] = rand::random();
    let seen = ask_open(&mut one, &own, one_at, tokens[0]).await?;
    // The relay's other port uses the same token; the one that was sent to answers nothing.
    let other_port = receive(&own, &tokens[0]).await.is_ok();
    let target = multiaddr(Carrier::Udp, seen).to_vec();
    wire::write(&mut two, &Probe { op: SEND, token: tokens[1].to_vec(), target }).await?;
    let other_host = receive(&own, &tokens[1]).await.is_ok();
    let _sent: ProbeEnd = wire::read(&mut two).await?;
    let again = ask_open(&mut two, &own, two_at, tokens[2]).await?;
    Ok(Measured { same_mapping: again == seen, seen, other_port, other_host })
}

#[cfg(test)]
mod tests {
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn without_a_nat_everything_comes_through() {
        let ((a, a_far), (b, b_far)) = (tokio::io::duplex(4096), tokio::io::duplex(4096));
        let measured = measure((a.compat(), HOME), (b.compat(), HOME));
        let (measured, one, two) =
            tokio::join!(measured, serve(a_far.compat(), HOME), serve(b_far.compat(), HOME));
        let measured = measured.unwrap();
        assert!(measured.same_mapping && measured.other_port && measured.other_host, "{measured:?}");
        one.unwrap();
        two.unwrap();
    }

    #[tokio::test]
    async fn a_relay_sends_to_nobody_but_who_asks() {
        for (to, op) in [("198.51.100.1:5000", SEND), ("127.0.0.1:53", SEND), ("127.0.0.1:5000", 9)] {
            let (a, far) = tokio::io::duplex(4096);
            let mut a = a.compat();
            let target = multiaddr(Carrier::Udp, to.parse().unwrap()).to_vec();
            let probe = Probe { op, token: vec![0; TOKEN], target };
            let (sent, served) = tokio::join!(wire::write(&mut a, &probe), serve(far.compat(), HOME));
            sent.unwrap();
            assert!(served.is_err(), "{to} {op}");
        }
        let (a, far) = tokio::io::duplex(4096);
        let mut a = a.compat();
        let probe = Probe { op: OPEN, token: vec![0; 3], target: Vec::new() };
        let (sent, served) = tokio::join!(wire::write(&mut a, &probe), serve(far.compat(), HOME));
        sent.unwrap();
        assert!(served.is_err());
    }
}
