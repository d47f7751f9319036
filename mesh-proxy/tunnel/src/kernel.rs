//! What the kernel knows of TCP connections: whether the other end's machine, or a box on the way, has taken all that was
//! sent (then nothing is wrong with the line of a silent one, and waiting for it to come back is in vain), and from which
//! address of this host they come (one that is gone takes them with it). Read from its own table, which is looked at only
//! when a connection has been silent for seconds, or an address has gone.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A table that was read this recently is not read again: many connections fall silent together.
const FRESH: Duration = Duration::from_millis(500);

/// The sockets with one remote end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sockets {
    /// Bytes that wait to be acknowledged; the most of them.
    waiting: u64,
    /// This host's addresses.
    locals: Vec<IpAddr>,
}

type Waiting = HashMap<SocketAddr, Sockets>;

#[derive(Debug, Default)]
pub(crate) struct Kernel(Mutex<Option<(Instant, Waiting)>>);

impl Kernel {
    /// Whether all that was sent to a TCP socket has been acknowledged; none when there is no such connection.
    pub(crate) fn has_delivered(&self, to: SocketAddr) -> Option<bool> {
        self.look(to, |sockets| sockets.waiting == 0)
    }

    /// Whether all TCP connections to a socket come from an address.
    pub(crate) fn leaves_from(&self, to: SocketAddr, own: IpAddr) -> bool {
        self.look(to, |sockets| sockets.locals.iter().all(|l| *l == own)) == Some(true)
    }

    fn look<T>(&self, to: SocketAddr, what: impl FnOnce(&Sockets) -> T) -> Option<T> {
        let mut read = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let table = match &mut *read {
            Some((at, table)) if now.saturating_duration_since(*at) < FRESH => table,
            slot => {
                let mut table = Waiting::new();
                for file in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
                    // Without IPv6 there is no such file.
                    parse(&fs::read_to_string(file).unwrap_or_default(), &mut table);
                }
                &mut slot.insert((now, table)).1
            }
        };
        table.get(&to).map(what)
    }
}

fn parse(text: &str, table: &mut Waiting) {
    for line in text.lines().skip(1) {
        let mut fields = line.split_whitespace().skip(1);
        let (Some(local), Some(remote)) = (fields.next().and_then(address), fields.next().and_then(address))
        else {
            continue;
        };
        let (Some(state), Some(queues)) = (fields.next(), fields.next()) else { continue };
        // Established ones: what is being asked for, or has ended, carries nothing.
        let sent = queues.split(':').next().and_then(|q| u64::from_str_radix(q, 16).ok());
        if let ("01", Some(sent)) = (state, sent) {
            let sockets = table.entry(remote).or_default();
            sockets.waiting = sent.max(sockets.waiting);
            sockets.locals.push(local.ip());
        }
    }
}

/// Words of an address are in the machine's own byte order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (i, part) in octets.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(8 * i)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn what_is_taken_is_told_from_what_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let mut near = TcpStream::connect(at).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(b"x").unwrap();
        far.read_exact(&mut [0]).unwrap();
        let kernel = Kernel::default();
        assert_eq!(kernel.has_delivered(at), Some(true));
        assert!(kernel.leaves_from(at, IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert!(!kernel.leaves_from(at, "192.0.2.1".parse().unwrap()));
        assert_eq!(Kernel::default().has_delivered("192.0.2.1:1".parse().unwrap()), None);
        // Nobody reads: what does not fit on the other side waits.
        near.set_nonblocking(true).unwrap();
        while near.write(&[0; 65_536]).is_ok() {}
        let kernel = Kernel::default();
        assert_eq!(kernel.has_delivered(at), Some(false));
        drop((near, far));
        assert_eq!(kernel.has_delivered(at), Some(false), "not read again so soon");
    }

    #[test]
    fn odd_lines_are_left_out() {
        let mut table = Waiting::new();
        let home = u32::from_ne_bytes([127, 0, 0, 1]);
        let text = format!(
            "head\n 0: {home:08X}:1F90 {home:08X}:2710 01 00000005:00000000 00\n\
             1: {home:08X}:1F90 {home:08X}:2710 01 00000000:00000000 00\n\
             2: {home:08X}:1F90 {home:08X}:2711 06 00000000:00000000 00\n\
             3: x y z\n4: 1:2 3:4 01 0:0\n5:\n"
        );
        parse(&text, &mut table);
        let sockets = Sockets { waiting: 5, locals: vec![IpAddr::V4(Ipv4Addr::LOCALHOST); 2] };
        assert_eq!(table, HashMap::from([("127.0.0.1:10000".parse().unwrap(), sockets)]));
    }
}
