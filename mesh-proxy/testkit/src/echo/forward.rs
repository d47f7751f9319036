//! Hands datagrams on and answers back: what a node's cache of names does, without the cache.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Args;
use tokio::{
    net::UdpSocket,
    signal::unix::{SignalKind, signal},
};
use tokio_util::task::TaskTracker;

/// How long an answer is waited for.
const ANSWER: Duration = Duration::from_secs(5);
/// Larger than any answer without fragments.
const LARGEST: usize = 4096;

/// What `echo forward` is told.
#[derive(Clone, Debug, Args)]
pub struct ForwardArgs {
    /// Where datagrams come in
    #[arg(long)]
    pub bind: SocketAddr,
    /// Where they go
    #[arg(long)]
    pub to: SocketAddr,
}

/// Runs until SIGTERM.
///
/// # Errors
/// When the address cannot be had.
pub async fn forward(args: ForwardArgs) -> anyhow::Result<()> {
    let socket = UdpSocket::bind(args.bind).await.with_context(|| format!("listening on {}", args.bind))?;
    let socket = Arc::new(socket);
    println!("echo ready: udp {} to {}", args.bind, args.to);
    let tasks = TaskTracker::new();
    let mut term = signal(SignalKind::terminate())?;
    let mut buffer = vec![0; LARGEST];
    loop {
        let (length, client) = tokio::select! {
            _ = term.recv() => return Ok(()),
            received = socket.recv_from(&mut buffer) => received?,
        };
        let (socket, query, to) = (Arc::clone(&socket), buffer[..length].to_vec(), args.to);
        tasks.spawn(async move {
            // Whoever asked asks again.
            let _lost = tokio::time::timeout(ANSWER, ask(&socket, &query, client, to)).await;
        });
    }
}

async fn ask(socket: &UdpSocket, query: &[u8], client: SocketAddr, to: SocketAddr) -> std::io::Result<()> {
    let own = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).await?;
    own.connect(to).await?;
    own.send(query).await?;
    let mut answer = vec![0; LARGEST];
    let length = own.recv(&mut answer).await?;
    socket.send_to(&answer[..length], client).await.map(drop)
}
