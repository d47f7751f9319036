//! Hot restart: the old process gives its listening sockets to the new one over a Unix socket, so
//! that connections waiting in an accept queue are not lost.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use tokio::net::UnixListener;

/// More sockets than a proxy has; the kernel's own limit is 253.
pub const MAX_SOCKETS: usize = 128;
/// Names of all sockets together.
const MAX_NAMES: usize = 8 * 1024;

/// How long a successor may take to say that it serves.
const TAKE_OVER: Duration = Duration::from_secs(60);

/// One handed-over socket.
#[derive(Debug)]
pub struct Inherited {
    /// As given by the old process, for example `outbound/0`.
    pub name: String,
    /// The socket.
    pub fd: OwnedFd,
}

impl Inherited {
    /// As a TCP listener, non-blocking.
    pub fn into_tcp_listener(self) -> io::Result<std::net::TcpListener> {
        let listener = std::net::TcpListener::from(self.fd);
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// As a UDP socket, non-blocking.
    pub fn into_udp_socket(self) -> io::Result<std::net::UdpSocket> {
        let socket = std::net::UdpSocket::from(self.fd);
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

/// Waits for a successor on `path` and gives it the sockets, once. When this returns, the successor
/// has them and says that it serves: the caller begins to drain. A failed attempt is logged and the
/// next one awaited.
pub async fn serve(path: &Path, sockets: &[(String, BorrowedFd<'_>)]) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Whoever gets these sockets gets the traffic.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let result = async {
            stream.writable().await?;
            send(&stream.into_std()?, sockets)
        };
        match result.await.and_then(tokio_stream) {
            Ok(stream) => match tokio::time::timeout(TAKE_OVER, acknowledged(&stream)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => tracing::warn!(%error, "the successor did not take over"),
                Err(_late) => tracing::warn!("the successor took too long"),
            },
            Err(error) => tracing::warn!(%error, "cannot hand the listeners over"),
        }
    }
}

/// Asks the process that serves `path` for its sockets. `None` when nobody serves it. Call
/// [`Successor::serving`] once the sockets are being accepted from.
pub fn take(path: &Path, wait: Duration) -> io::Result<Option<(Vec<Inherited>, Successor)>> {
    let stream = match StdUnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(wait))?;
    let sockets = receive(&stream)?;
    Ok(Some((sockets, Successor { stream })))
}

/// Held between taking the sockets and serving them; dropping it leaves the old process in charge.
#[derive(Debug)]
pub struct Successor {
    stream: StdUnixStream,
}

impl Successor {
    /// Tells the old process to drain.
    pub fn serving(mut self) -> io::Result<()> {
        io::Write::write_all(&mut self.stream, &[1])
    }
}

fn tokio_stream(stream: StdUnixStream) -> io::Result<tokio::net::UnixStream> {
    stream.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(stream)
}

async fn acknowledged(stream: &tokio::net::UnixStream) -> io::Result<()> {
    let mut byte = [0];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut byte) {
            Ok(1) => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn send(stream: &StdUnixStream, sockets: &[(String, BorrowedFd<'_>)]) -> io::Result<StdUnixStream> {
    if sockets.len() > MAX_SOCKETS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many sockets to hand over"));
    }
    let names = sockets.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join("\n");
    if names.len() > MAX_NAMES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the names of the sockets are too long"));
    }
    let fds: Vec<RawFd> = sockets.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
    // One message: names and descriptors arrive together or not at all. The line feed keeps it
    // from being empty.
    let text = format!("{names}\n");
    let parts = [IoSlice::new(text.as_bytes())];
    let rights = [ControlMessage::ScmRights(&fds)];
    let control: &[_] = if fds.is_empty() { &[] } else { &rights };
    let sent = sendmsg::<()>(stream.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?;
    if sent != text.len() {
        return Err(io::Error::new(io::ErrorKind::WriteZero, "the names did not fit"));
    }
    stream.try_clone()
}

fn receive(stream: &StdUnixStream) -> io::Result<Vec<Inherited>> {
    let mut text = vec![0; MAX_NAMES + 1];
    let mut space = nix::cmsg_space!([RawFd; MAX_SOCKETS]);
    let mut fds = Vec::new();
    let mut parts = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let length = message.bytes;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            for fd in received {
                // SAFETY: the kernel has just made this descriptor for us, and nothing else in the
                // process knows it.
                #[allow(unsafe_code, reason = "descriptors arrive as numbers")]
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    let text = String::from_utf8_lossy(&text[..length]).into_owned();
    let names: Vec<&str> = text.lines().filter(|name| !name.is_empty()).collect();
    if length == 0 || names.len() != fds.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "names and sockets do not match"));
    }
    Ok(names.iter().zip(fds).map(|(name, fd)| Inherited { name: (*name).to_owned(), fd }).collect())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_connection_waiting_in_the_queue_is_accepted_by_the_successor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("handover.sock");
        assert!(take(&path, Duration::from_secs(5)).unwrap().is_none());
        let old = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = old.local_addr().unwrap();
        let waiting = TcpStream::connect(address).await.unwrap();
        let sockets = [("outbound/0".to_owned(), old.as_fd())];
        let give = serve(&path, &sockets);
        let take_over = async {
            let path = path.clone();
            let attempt = || {
                let path = path.clone();
                tokio::task::spawn_blocking(move || take(&path, Duration::from_secs(5)))
            };
            // A successor that dies before it serves changes nothing.
            loop {
                if let Some((sockets, successor)) = attempt().await.unwrap().unwrap() {
                    assert_eq!(sockets.len(), 1);
                    drop(successor);
                    break;
                }
                tokio::task::yield_now().await;
            }
            let (mut sockets, successor) = attempt().await.unwrap().unwrap().unwrap();
            successor.serving().unwrap();
            sockets.remove(0)
        };
        let (given, inherited) = tokio::join!(give, take_over);
        given.unwrap();
        assert_eq!(inherited.name, "outbound/0");
        drop(old);
        let new = TcpListener::from_std(inherited.into_tcp_listener().unwrap()).unwrap();
        let (_, peer) = new.accept().await.unwrap();
        assert_eq!(peer, waiting.local_addr().unwrap());
    }
}
