//! A plain socket in a place of a world, under the control of a test: what routers do to packets is proved with
//! these, without any of the mesh's programs.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, accept, bind, connect, getpeername,
        listen, setsockopt, socket, sockopt,
    },
};

use super::{LabError, Place, World};
use crate::bins;

/// A UDP socket, or a TCP port that both listens and connects.
#[derive(Debug)]
pub struct Socket {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl World {
    /// A UDP socket on a port of a place.
    ///
    /// # Errors
    /// When there is no such place or the port is taken.
    pub fn udp(&self, at: &str, port: u16) -> Result<Socket, LabError> {
        Socket::open(self.place(at)?, "udp", port)
    }

    /// A TCP port of a place.
    ///
    /// # Errors
    /// When there is no such place or the port is taken.
    pub fn tcp(&self, at: &str, port: u16) -> Result<Socket, LabError> {
        Socket::open(self.place(at)?, "tcp", port)
    }
}

impl Socket {
    fn open(place: Place<'_>, kind: &str, port: u16) -> Result<Self, LabError> {
        let lab = bins::find("lab").map_err(LabError::Up)?;
        let mut command = Command::new(&lab);
        command.args(["__socket", kind, &port.to_string()]);
        let mut wrapped = place.wrap(&command, None);
        wrapped.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = wrapped.spawn().map_err(LabError::file("run", &lab))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(LabError::Process("a socket has no pipes".to_owned()));
        };
        let mut new = Self { child, input, output: BufReader::new(output) };
        match new.answer()?.as_str() {
            "ready" => Ok(new),
            other => Err(LabError::Process(format!("socket at {}: {other}", place.info().name))),
        }
    }

    fn answer(&mut self) -> Result<String, LabError> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(n) if n > 0 => Ok(line.trim_end().to_owned()),
            _ => Err(LabError::Process("a socket's program has ended".to_owned())),
        }
    }

    fn ask(&mut self, line: &str) -> Result<String, LabError> {
        let sent = writeln!(self.input, "{line}").and_then(|()| self.input.flush());
        sent.map_err(|e| LabError::Process(format!("a socket's program: {e}")))?;
        self.answer()
    }

    /// UDP: sends a text without white space.
    ///
    /// # Errors
    /// When the program is gone. A packet that the network loses is no error.
    pub fn send(&mut self, to: SocketAddr, text: &str) -> Result<(), LabError> {
        self.ask(&format!("send {to} {text}")).map(drop)
    }

    /// UDP: the next text and who sent it, if one comes within `limit`.
    ///
    /// # Errors
    /// When the program is gone.
    pub fn receive(&mut self, limit: Duration) -> Result<Option<(SocketAddr, String)>, LabError> {
        let answer = self.ask(&format!("receive {}", limit.as_millis()))?;
        let mut words = answer.split(' ');
        let from = words.next().and_then(|w| w.parse().ok());
        Ok(from.zip(words.next().map(str::to_owned)))
    }

    /// TCP: connects from this port, and answers with this side's address as the other side sees it; nothing when no
    /// connection comes about within `limit`.
    ///
    /// # Errors
    /// When the program is gone.
    pub fn connect(&mut self, to: SocketAddr, limit: Duration) -> Result<Option<SocketAddr>, LabError> {
        Ok(self.ask(&format!("connect {to} {}", limit.as_millis()))?.parse().ok())
    }

    /// TCP: the far end of the next connection, which is told that address.
    ///
    /// # Errors
    /// When the program is gone.
    pub fn accept(&mut self, limit: Duration) -> Result<Option<SocketAddr>, LabError> {
        Ok(self.ask(&format!("accept {}", limit.as_millis()))?.parse().ok())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // It ends by itself as well: its standard input is closed.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The program in the place: a line of input, a line of output.
///
/// # Errors
/// When the port is taken, or standard input or output cannot be used.
pub(super) fn socket_main(kind: &str, port: u16) -> Result<(), LabError> {
    let mut port: Box<dyn Port> =
        if kind == "udp" { Box::new(Udp::open(port)?) } else { Box::new(Tcp::open(port)?) };
    println!("ready");
    for line in std::io::stdin().lines() {
        let Ok(line) = line else { break };
        let words: Vec<&str> = line.split(' ').collect();
        let answer = port.command(&words).unwrap_or_else(|e| format!("- {e}"));
        println!("{answer}");
        // Whoever asked may be gone; the next read ends this program then.
        let _gone = std::io::stdout().flush();
    }
    Ok(())
}

trait Port {
    fn command(&mut self, words: &[&str]) -> std::io::Result<String>;
}

fn bad() -> std::io::Error {
    std::io::ErrorKind::InvalidInput.into()
}

fn number<T: std::str::FromStr>(words: &[&str], at: usize) -> std::io::Result<T> {
    words.get(at).and_then(|w| w.parse().ok()).ok_or_else(bad)
}

/// Both families, when the system has both.
fn any(port: u16, v6: bool) -> SocketAddr {
    let address = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    SocketAddr::new(address, port)
}

struct Udp {
    v4: UdpSocket,
    v6: Option<UdpSocket>,
}

impl Udp {
    fn open(port: u16) -> Result<Self, LabError> {
        let v4 = UdpSocket::bind(any(port, false));
        let v4 = v4.map_err(LabError::file("bind", std::path::Path::new("a UDP port")))?;
        // A system without IPv6 has none.
        let v6 = only_v6(port).ok();
        Ok(Self { v4, v6 })
    }
}

/// Beside a socket of the other family on the same port.
fn only_v6(port: u16) -> std::io::Result<UdpSocket> {
    let new = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&new, sockopt::Ipv6V6Only, &true)?;
    bind(new.as_raw_fd(), &SockaddrStorage::from(any(port, true)))?;
    Ok(new.into())
}

impl Port for Udp {
    fn command(&mut self, words: &[&str]) -> std::io::Result<String> {
        match words.first() {
            Some(&"send") => {
                let to: SocketAddr = number(words, 1)?;
                let socket = if to.is_ipv6() { self.v6.as_ref().ok_or_else(bad)? } else { &self.v4 };
                socket.send_to(words.get(2).ok_or_else(bad)?.as_bytes(), to)?;
                Ok("ok".to_owned())
            }
            Some(&"receive") => {
                let limit = Duration::from_millis(number(words, 1)?);
                let mut buffer = [0; 2048];
                let mut fds: Vec<PollFd<'_>> = ([Some(&self.v4), self.v6.as_ref()].into_iter().flatten())
                    .map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN))
                    .collect();
                poll(&mut fds, PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX))?;
                let is_v6 = fds.get(1).is_some_and(|f| f.any().unwrap_or(false));
                let socket = if is_v6 { self.v6.as_ref().ok_or_else(bad)? } else { &self.v4 };
                socket.set_nonblocking(true)?;
                let received = socket.recv_from(&mut buffer);
                socket.set_nonblocking(false)?;
                let (n, from) = received?;
                Ok(format!("{from} {}", String::from_utf8_lossy(&buffer[..n])))
            }
            _ => Err(bad()),
        }
    }
}

/// A port that is shared by a listener and by connections that leave from it.
struct Tcp {
    port: u16,
    listener: OwnedFd,
    /// Connections stay open: a router sees them live.
    open: Vec<OwnedFd>,
}

fn shared(port: u16) -> std::io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let new = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&new, sockopt::ReuseAddr, &true)?;
    setsockopt(&new, sockopt::ReusePort, &true)?;
    bind(new.as_raw_fd(), &SockaddrStorage::from(any(port, false)))?;
    Ok(new)
}

fn wait(fd: &OwnedFd, flags: PollFlags, limit: u64) -> std::io::Result<bool> {
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    Ok(poll(&mut [PollFd::new(fd.as_fd(), flags)], limit)? > 0)
}

impl Tcp {
    fn open(port: u16) -> Result<Self, LabError> {
        let listener = shared(port).and_then(|l| Ok(listen(&l, Backlog::new(16)?).map(|()| l)?));
        let listener = listener.map_err(LabError::file("bind", std::path::Path::new("a TCP port")))?;
        Ok(Self { port, listener, open: Vec::new() })
    }
}

#[expect(unsafe_code, reason = "the accepted descriptor is only had as a number")]
fn owned(fd: i32) -> OwnedFd {
    use std::os::fd::FromRawFd as _;
    // SAFETY: the number was just returned by accept, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

impl Port for Tcp {
    fn command(&mut self, words: &[&str]) -> std::io::Result<String> {
        match words.first() {
            Some(&"connect") => {
                let (to, limit): (SocketAddr, u64) = (number(words, 1)?, number(words, 2)?);
                let new = shared(self.port)?;
                match connect(new.as_raw_fd(), &SockaddrStorage::from(to)) {
                    Ok(()) | Err(Errno::EINPROGRESS) => {}
                    Err(e) => return Err(e.into()),
                }
                // The other side says who it sees: readable means that, or a refusal.
                if !wait(&new, PollFlags::POLLIN, limit)? {
                    return Err(std::io::ErrorKind::TimedOut.into());
                }
                let mut text = [0; 64];
                let n = nix::unistd::read(&new, &mut text)?;
                self.open.push(new);
                Ok(String::from_utf8_lossy(&text[..n]).into_owned())
            }
            Some(&"accept") => {
                if !wait(&self.listener, PollFlags::POLLIN, number(words, 1)?)? {
                    return Err(std::io::ErrorKind::TimedOut.into());
                }
                let new = owned(accept(self.listener.as_raw_fd())?);
                let far: SockaddrStorage = getpeername(new.as_raw_fd())?;
                let far =
                    far.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port()))).ok_or_else(bad)?;
                nix::unistd::write(&new, far.to_string().as_bytes())?;
                self.open.push(new);
                Ok(far.to_string())
            }
            _ => Err(bad()),
        }
    }
}
