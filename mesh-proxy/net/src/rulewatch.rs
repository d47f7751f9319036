//! Tells when somebody changes the routing rules (`ip rule`) of this network namespace. Costs nothing while nobody does.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `RTNLGRP_IPV4_RULE` and `RTNLGRP_IPV6_RULE`, as bits.
const GROUPS: u32 = 1 << (8 - 1) | 1 << (19 - 1);

/// A subscription to changes of routing rules.
#[derive(Debug)]
pub struct RuleWatch {
    socket: AsyncFd<OwnedFd>,
}

impl RuleWatch {
    /// Subscribes, in the network namespace of the calling thread.
    #[allow(unsafe_code, reason = "tokio wants a promise about the descriptor")]
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        // SAFETY: an OwnedFd always gives the same descriptor, and keeps it open until it is
        // dropped, which the AsyncFd that owns it does only after taking it out of the reactor.
        let socket = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? };
        Ok(Self { socket })
    }

    /// Waits for a change, whoever made it.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut message = [0; 4096];
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|fd| Ok(recv(fd.as_raw_fd(), &mut message, MsgFlags::empty())?)) {
                Ok(Ok(_)) => return Ok(()),
                // The kernel had more to say than the socket could hold.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_not_ready) => {}
            }
        }
    }
}
