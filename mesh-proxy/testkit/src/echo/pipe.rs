//! `echo pipe`: standard input and output as one TCP connection, so that a test speaks bytes of its own choice
//! from inside a pod. With `udp://`, as the datagrams of one socket, each with two bytes of length before it.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream, UdpSocket},
};

use anyhow::Context as _;
use clap::Args;

/// What `echo pipe` is told.
#[derive(Clone, Debug, Args)]
pub struct PipeArgs {
    /// `host:port` or `udp://host:port`
    pub to: String,
}

/// Copies both ways until both have ended; the end of each side is passed on as a half-close.
///
/// # Errors
/// When there is no connection, or it breaks.
pub fn pipe(args: &PipeArgs) -> anyhow::Result<()> {
    if let Some(to) = args.to.strip_prefix("udp://") {
        return datagrams(to);
    }
    let stream = TcpStream::connect(&args.to).with_context(|| format!("connecting to {}", args.to))?;
    stream.set_nodelay(true)?;
    let mut to_network = stream.try_clone()?;
    let sender = std::thread::spawn(move || {
        copy(&mut std::io::stdin(), &mut to_network)?;
        to_network.shutdown(Shutdown::Write)
    });
    copy(&mut &stream, &mut std::io::stdout())?;
    // The other side has ended: so does our output, at once.
    nix::unistd::close(1)?;
    match sender.join() {
        Ok(sent) => sent.context("sending"),
        Err(_) => anyhow::bail!("the sender broke down"),
    }
}

/// Ends with the input.
fn datagrams(to: &str) -> anyhow::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to).with_context(|| format!("looking up {to}"))?;
    let from_network = socket.try_clone()?;
    std::thread::spawn(move || {
        let (mut out, mut buffer) = (std::io::stdout(), vec![0_u8; 1 << 16]);
        loop {
            // An ICMP error about an earlier datagram is no end.
            let Ok(n) = from_network.recv(&mut buffer) else { continue };
            let length = u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
            let written = out.write_all(&length).and_then(|()| out.write_all(&buffer[..n]));
            if written.and_then(|()| out.flush()).is_err() {
                return;
            }
        }
    });
    let mut input = std::io::stdin().lock();
    let mut length = [0_u8; 2];
    while input.read_exact(&mut length).is_ok() {
        let mut datagram = vec![0; usize::from(u16::from_be_bytes(length))];
        input.read_exact(&mut datagram)?;
        let _refused_before = socket.send(&datagram);
    }
    Ok(())
}

fn copy(read: &mut impl Read, write: &mut impl Write) -> std::io::Result<()> {
    let mut buffer = vec![0_u8; 64 << 10];
    loop {
        let n = read.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        write.write_all(&buffer[..n])?;
        write.flush()?;
    }
}
