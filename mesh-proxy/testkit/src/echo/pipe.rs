//! `echo pipe`: standard input and output as one TCP connection, so that a test speaks bytes of its own choice
//! from inside a pod.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
};

use anyhow::Context as _;
use clap::Args;

/// What `echo pipe` is told.
#[derive(Clone, Debug, Args)]
pub struct PipeArgs {
    /// `host:port`
    pub to: String,
}

/// Copies both ways until both have ended; the end of each side is passed on as a half-close.
///
/// # Errors
/// When there is no connection, or it breaks.
pub fn pipe(args: &PipeArgs) -> anyhow::Result<()> {
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
