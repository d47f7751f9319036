//! Ports for programs that a test starts: below the range from which the kernel takes ports of outgoing connections, so
//! that no connection of a neighbouring test (or one in TIME_WAIT) holds the port when the program binds it.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::atomic::{AtomicU32, Ordering},
};

/// The defaults of the mesh (15000–15443) and the kernel's own range (from 32768) are both outside.
const FIRST: u32 = 16_384;
const COUNT: u32 = 16_000;
/// How far apart two processes begin.
const STRIDE: u32 = 211;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port of 127.0.0.1 that nobody uses, for TCP and UDP, and that this process gives out once (until 16,000 are).
///
/// # Panics
/// When no port of the range is free.
#[must_use]
#[allow(clippy::panic, reason = "the machine of a test is full; there is nothing to go on with")]
pub fn free_port() -> u16 {
    let start = std::process::id().wrapping_mul(STRIDE);
    for _ in 0..COUNT {
        let at = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let Ok(port) = u16::try_from(FIRST + at) else { continue };
        let any = (Ipv4Addr::UNSPECIFIED, port);
        if TcpListener::bind(any).is_ok() && UdpSocket::bind(any).is_ok() {
            return port;
        }
    }
    panic!("no port between {FIRST} and {} is free", FIRST + COUNT)
}

/// [`free_port`] as an address.
#[must_use]
pub fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends where it fails")]
mod tests {
    use super::*;

    #[test]
    fn ports_are_given_out_once_and_a_busy_one_never() {
        let first = free_port();
        let held = TcpListener::bind((Ipv4Addr::UNSPECIFIED, first)).unwrap();
        let more: std::collections::HashSet<u16> = (0..500).map(|_| free_port()).collect();
        assert_eq!(more.len(), 500);
        assert!(!more.contains(&first) && more.iter().all(|p| (16_384..32_768).contains(p)));
        drop(held);
    }
}
