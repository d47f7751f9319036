//! Tells when somebody changes the nftables rules of this network namespace. Costs nothing while
//! nobody does.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Multicast group of nftables changes (`NFNLGRP_NFTABLES`), as a bit.
const GROUP: u32 = 1 << (7 - 1);
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`: the end of a transaction.
const NEW_GENERATION: u16 = 10 << 8 | 15;
/// `NFTA_GEN_PROC_PID`.
const PROCESS: u16 = 2;
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;

/// A subscription to changes of the ruleset.
#[derive(Debug)]
pub struct NftWatch {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

/// What is known about a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NftChange {
    /// A transaction of this process was committed.
    By(u32),
    /// Something happened, but not who did it: messages were lost, or the kernel did not say.
    Unknown,
}

impl NftWatch {
    /// Subscribes, in the network namespace of the calling thread.
    #[allow(unsafe_code, reason = "tokio wants a promise about the descriptor")]
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
        // SAFETY: an OwnedFd always gives the same descriptor, and keeps it open until it is
        // dropped, which the AsyncFd that owns it does only after taking it out of the reactor.
        let socket = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? };
        Ok(Self { socket, buffer: vec![0; 16 * 1024] })
    }

    /// The changes since the last call; waits for one.
    pub async fn changed(&mut self) -> io::Result<Vec<NftChange>> {
        loop {
            let mut ready = self.socket.readable().await?;
            let buffer = &mut self.buffer;
            let read = ready.try_io(|fd| Ok(recv(fd.as_raw_fd(), buffer, MsgFlags::empty())?));
            match read {
                Ok(Ok(length)) => {
                    let changes = changes(&self.buffer[..length]);
                    if !changes.is_empty() {
                        return Ok(changes);
                    }
                }
                // The kernel had more to say than the socket could hold.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Ok(vec![NftChange::Unknown]);
                }
                Ok(Err(error)) => return Err(error),
                Err(_not_ready) => {}
            }
        }
    }
}

/// The ends of transactions in a netlink datagram.
fn changes(mut datagram: &[u8]) -> Vec<NftChange> {
    let mut found = Vec::new();
    while let Some((message, rest)) = next(datagram) {
        if u16_at(message, 4) == Some(NEW_GENERATION) {
            found.push(process(message).map_or(NftChange::Unknown, NftChange::By));
        }
        datagram = rest;
    }
    found
}

/// Splits off one netlink message, which begins with its length and is padded to four bytes.
fn next(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
    if length < HEADER {
        return None;
    }
    let message = datagram.get(..length)?;
    Some((message, datagram.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn process(message: &[u8]) -> Option<u32> {
    let mut attributes = message.get(HEADER + FAMILY_HEADER..)?;
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        if length < 4 {
            return None;
        }
        let attribute = attributes.get(..length)?;
        if u16_at(attribute, 2)? == PROCESS {
            return Some(u32::from_be_bytes(attribute.get(4..8)?.try_into().ok()?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![0; FAMILY_HEADER];
        for (name, value) in attributes {
            body.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
            body.extend_from_slice(&name.to_ne_bytes());
            body.extend_from_slice(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut all = (16 + body.len() as u32).to_ne_bytes().to_vec();
        all.extend_from_slice(&kind.to_ne_bytes());
        all.resize(HEADER, 0);
        all.extend_from_slice(&body);
        all
    }

    #[test]
    fn ends_of_transactions_and_who_made_them() {
        let id = [0, 0, 0, 9];
        let mut datagram = message(10 << 8, &[(1, b"rule")]);
        datagram.extend(message(NEW_GENERATION, &[(1, &id), (2, &[0, 0, 0x12, 0x34]), (3, b"nft\0")]));
        datagram.extend(message(NEW_GENERATION, &[(1, &id)]));
        assert_eq!(changes(&datagram), [NftChange::By(0x1234), NftChange::Unknown]);
    }

    #[test]
    fn broken_datagrams_say_nothing_and_do_no_harm() {
        let whole = message(NEW_GENERATION, &[(1, &[0; 4]), (2, &[0, 0, 0, 1])]);
        for cut in 0..whole.len() {
            assert_eq!(changes(&whole[..cut]), [], "cut at {cut}");
            let mut zeroed = whole.clone();
            zeroed[cut] = 0;
            let _ = changes(&zeroed);
            zeroed[cut] = 0xff;
            let _ = changes(&zeroed);
        }
    }
}
