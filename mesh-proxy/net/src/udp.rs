//! Datagrams that were sent to addresses of others: a listener that learns what each one was sent to, and sockets that
//! answer from there.
//!
//! nftables hands such datagrams to the listener as they are (`tproxy`); nothing in them is translated, so the answers
//! need no translation either.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    os::fd::AsRawFd,
};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt,
    sockopt::{Ipv4OrigDstAddr, Ipv6OrigDstAddr, RcvBufForce},
};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};

use crate::{listen::set_transparent_v6, original_dst::unmap};

/// The largest datagram of IPv4.
pub const MAX_DATAGRAM: usize = 65_507;
/// Room for what arrives while the worker is busy: about a hundred of the largest datagrams.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Datagrams that are taken before other tasks get their turn.
const AT_ONCE: usize = 64;

/// A socket for datagrams that `tproxy` rules send here. Needs NET_ADMIN. Several may share the address: each flow
/// keeps to one of them.
pub fn std_captured(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = transparent(address)?;
    socket.set_reuse_port(true)?;
    match address {
        SocketAddr::V4(_) => setsockopt(&socket, Ipv4OrigDstAddr, &true)?,
        SocketAddr::V6(_) => setsockopt(&socket, Ipv6OrigDstAddr, &true)?,
    }
    if setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).is_err() {
        // In a user namespace only as much as the system's limit.
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    socket.bind(&SockAddr::from(address))?;
    Ok(socket.into())
}

/// A socket at an address of others: answers go out from there, and captured datagrams that are not handed to a listener
/// ([`std_captured`]) arrive there. Several may share the address.
pub fn answering(from: SocketAddr, mark: Option<u32>) -> io::Result<UdpSocket> {
    let socket = transparent(from)?;
    socket.set_reuse_port(true)?;
    socket.set_reuse_address(true)?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.bind(&SockAddr::from(from))?;
    UdpSocket::from_std(socket.into())
}

/// A socket that talks to one address only.
pub async fn connected(to: SocketAddr, mark: Option<u32>) -> io::Result<UdpSocket> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    socket.connect(to).await?;
    Ok(socket)
}

/// Sends datagrams that are never split on the way, also if they are larger than what the kernel believes fits: to find
/// out what does.
#[allow(unsafe_code, reason = "no crate here knows IP_PMTUDISC_PROBE")]
pub fn probe_mtu(socket: &std::net::UdpSocket) -> io::Result<()> {
    let (level, option, how) = match socket.local_addr()? {
        SocketAddr::V4(_) => (libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        SocketAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
    };
    // SAFETY: the descriptor is open for the whole call, and the pointer and length describe `how`,
    // an initialised c_int that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const how).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn transparent(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            set_transparent_v6(&socket)?;
        }
    }
    Ok(socket)
}

/// Receives captured datagrams.
#[derive(Debug)]
pub struct Captured {
    socket: UdpSocket,
    buffer: Box<[u8]>,
    control: Vec<u8>,
}

/// One captured datagram.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Who sent it.
    pub from: SocketAddr,
    /// Where it was sent to.
    pub to: SocketAddr,
    /// What it says.
    pub data: &'a [u8],
}

impl Captured {
    /// Takes a socket of [`std_captured`] into the current runtime.
    pub fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        Ok(Self {
            socket: UdpSocket::from_std(socket)?,
            // Zeroed memory that nobody has touched costs nothing.
            buffer: vec![0; 1 << 16].into_boxed_slice(),
            control: nix::cmsg_space!(libc::sockaddr_in6),
        })
    }

    /// Waits for datagrams and gives as many as there are to `each`, up to a bound. Those whose destination the kernel
    /// does not tell are counted in the result.
    pub async fn receive(&mut self, mut each: impl FnMut(Datagram<'_>)) -> io::Result<usize> {
        let Self { socket, buffer, control } = self;
        socket.readable().await?;
        let mut strange = 0;
        for _ in 0..AT_ONCE {
            let one = socket.try_io(Interest::READABLE, || receive_one(socket, buffer, control));
            match one {
                Ok((Some((from, to)), length)) => {
                    each(Datagram { from, to, data: buffer.get(..length).unwrap_or_default() });
                }
                Ok((None, _)) => strange += 1,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        Ok(strange)
    }
}

type Ends = (SocketAddr, SocketAddr);

fn receive_one(
    socket: &UdpSocket,
    buffer: &mut [u8],
    control: &mut [u8],
) -> io::Result<(Option<Ends>, usize)> {
    let mut slices = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(control), MsgFlags::MSG_DONTWAIT)?;
    let from = message.address.as_ref().and_then(address_of);
    let to = message.cmsgs()?.find_map(|c| match c {
        ControlMessageOwned::Ipv4OrigDstAddr(a) => {
            Some(std::net::SocketAddrV4::from(nix::sys::socket::SockaddrIn::from(a)).into())
        }
        ControlMessageOwned::Ipv6OrigDstAddr(a) => {
            Some(std::net::SocketAddrV6::from(nix::sys::socket::SockaddrIn6::from(a)).into())
        }
        _ => None,
    });
    Ok((from.zip(to).map(|(from, to): Ends| (unmap(from), unmap(to))), message.bytes))
}

fn address_of(a: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = a.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
    v4.or_else(|| a.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
}
