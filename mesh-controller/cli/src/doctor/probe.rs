//! One datagram that every QUIC server answers, whoever asks: a first packet of a version that does not exist. The
//! answer lists the versions there are, needs no key, and costs the server no state (RFC 9000, section 6).

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

/// Smallest datagram that a server answers.
pub(super) const SMALLEST: usize = 1200;
/// A version that is reserved for being unknown.
const VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];
const ID: [u8; 8] = *b"selvage?";

/// A packet of that size.
fn packet(size: usize) -> Vec<u8> {
    let mut out = vec![0xc0];
    out.extend(VERSION);
    out.push(ID.len() as u8);
    out.extend(ID);
    out.push(ID.len() as u8);
    out.extend(ID);
    out.resize(size.max(SMALLEST), 0);
    out
}

/// Whether it is the answer to such a packet: version 0, to our id.
fn is_answer(packet: &[u8]) -> bool {
    let id_at = 6;
    packet.first().is_some_and(|first| first & 0x80 != 0)
        && packet.get(1..5) == Some(&[0; 4])
        && packet.get(5) == Some(&(ID.len() as u8))
        && packet.get(id_at..id_at + ID.len()) == Some(&ID)
}

/// A socket that asks one server.
#[derive(Debug)]
pub(super) struct Prober(UdpSocket);

impl Prober {
    pub(super) fn new(to: SocketAddr) -> io::Result<Self> {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(to)?;
        Ok(Self(socket))
    }

    /// The round trip of a datagram of that size; up to `tries` times, `wait` each.
    pub(super) fn ask(&self, size: usize, tries: u32, wait: Duration) -> io::Result<Duration> {
        let question = packet(size);
        let mut buffer = [0; 2048];
        let mut last = io::Error::from(io::ErrorKind::TimedOut);
        for _ in 0..tries {
            let start = Instant::now();
            self.0.send(&question)?;
            while let Some(left) = wait.checked_sub(start.elapsed()).filter(|l| !l.is_zero()) {
                self.0.set_read_timeout(Some(left))?;
                match self.0.recv(&mut buffer) {
                    Ok(n) if is_answer(&buffer[..n]) => return Ok(start.elapsed()),
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => {
                        last = e;
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    /// Datagrams are never split on the way, and sent even if they are larger than what the kernel believes in.
    pub(super) fn never_fragment(&self) -> io::Result<()> {
        mesh_net::udp::probe_mtu(&self.0)
    }
}
