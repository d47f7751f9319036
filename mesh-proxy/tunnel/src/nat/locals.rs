//! From which of this node's ports each outgoing TCP connection leaves. libp2p falls back to another port without a word
//! when the listen port cannot be used for a destination; what the peer sees then says nothing about the listen port.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

/// Connections that are remembered; identification follows at once.
const MAX: usize = 512;

/// Latest first.
#[derive(Debug, Default)]
pub(crate) struct Locals(Mutex<VecDeque<(SocketAddr, u16)>>);

impl Locals {
    /// A connection to `remote` leaves from port `local`.
    pub(crate) fn note(&self, remote: SocketAddr, local: u16) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push_front((remote, local));
        all.truncate(MAX);
    }

    /// The port of the latest connection to `remote`.
    pub(crate) fn of(&self, remote: SocketAddr) -> Option<u16> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|(r, _)| *r == remote).map(|(_, port)| *port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_counts_and_old_ones_go() {
        let (locals, at) = (Locals::default(), |n: u16| SocketAddr::new([192, 0, 2, 1].into(), n));
        locals.note(at(1), 15008);
        locals.note(at(1), 40000);
        assert_eq!((locals.of(at(1)), locals.of(at(2))), (Some(40000), None));
        for n in 10..2_000 {
            locals.note(at(n), 1);
        }
        assert_eq!(locals.of(at(1)), None);
    }
}
