//! Listeners of the test application.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tokio::{
    net::{TcpListener, UdpSocket},
    signal::unix::{SignalKind, signal},
};
use tokio_util::task::TaskTracker;

use super::{Controls, Identity, bookinfo, http, stream, tls};

/// What `echo serve` is told.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Its name in the answers; the host name when absent
    #[arg(long, env = "ECHO_NAME")]
    pub name: Option<String>,
    /// Its version in the answers
    #[arg(long, env = "ECHO_VERSION", default_value = "v1")]
    pub version: String,
    /// Its node in the answers
    #[arg(long, env = "ECHO_NODE", default_value = "")]
    pub node: String,
    /// Answer as that part of bookinfo
    #[arg(long)]
    pub app: Option<bookinfo::App>,
    /// Address to listen on
    #[arg(long, default_value = "0.0.0.0")]
    pub bind: std::net::IpAddr,
    /// Ports for HTTP/1.1, HTTP/2 without TLS, gRPC and WebSocket [default: 8080 when no port is named]
    #[arg(long)]
    pub http: Vec<u16>,
    /// Ports for the same behind TLS with a certificate of its own
    #[arg(long)]
    pub tls: Vec<u16>,
    /// Ports for plain TCP
    #[arg(long)]
    pub tcp: Vec<u16>,
    /// Ports for UDP
    #[arg(long)]
    pub udp: Vec<u16>,
    /// How plain TCP behaves
    #[arg(long, value_enum, default_value = "echo")]
    pub tcp_mode: TcpMode,
    /// Wait that long before each answer
    #[arg(long, default_value_t = 0)]
    pub delay_ms: u64,
    /// Answer every request with that status
    #[arg(long)]
    pub status: Option<u16>,
    /// Accept, and never say anything
    #[arg(long)]
    pub silent: bool,
    /// Close each connection instead of answering
    #[arg(long)]
    pub close: bool,
    /// Name of the certificate
    #[arg(long, default_value = "echo.test")]
    pub tls_name: String,
    /// A certificate instead of one made at start, PEM
    #[arg(long, requires = "tls_key")]
    pub tls_cert: Option<std::path::PathBuf>,
    /// Its key, PEM
    #[arg(long, requires = "tls_cert")]
    pub tls_key: Option<std::path::PathBuf>,
}

/// Behaviour of plain TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TcpMode {
    /// Sends back what comes; `@whoami` lines are answered with who it is.
    Echo,
    /// Speaks first: one line of who it is, then as `echo`.
    Banner,
    /// Says who it is, closes its sending side, and goes on reading.
    HalfClose,
    /// Reads and says nothing.
    Silent,
}

/// What all listeners share.
#[derive(Debug)]
pub struct Shared {
    /// Who this is.
    pub identity: Identity,
    /// What it does to every request.
    pub controls: Controls,
    /// Its part in bookinfo.
    pub app: Option<bookinfo::App>,
    /// Calls to other parts of bookinfo.
    pub upstream: bookinfo::Upstream,
    /// Behaviour of plain TCP.
    pub tcp_mode: TcpMode,
}

/// Serves until SIGTERM or SIGINT, then lets connections finish for up to two seconds.
///
/// # Errors
/// When a port cannot be had.
pub async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let shared = Arc::new(shared(&args));
    let tasks = TaskTracker::new();
    let mut http_ports = args.http.clone();
    if http_ports.is_empty() && args.tls.is_empty() && args.tcp.is_empty() && args.udp.is_empty() {
        http_ports.push(if args.app.is_some() { 9080 } else { 8080 });
    }
    for port in &http_ports {
        let listener = listen(&args, *port).await?;
        tasks.spawn(http::accept(listener, Arc::clone(&shared), tasks.clone(), None));
    }
    if !args.tls.is_empty() {
        let config = match (&args.tls_cert, &args.tls_key) {
            (Some(certificate), Some(key)) => tls::server_from(certificate, key)?,
            _ => tls::server(&args.tls_name)?,
        };
        for port in &args.tls {
            let listener = listen(&args, *port).await?;
            let config = Some(Arc::clone(&config));
            tasks.spawn(http::accept(listener, Arc::clone(&shared), tasks.clone(), config));
        }
    }
    for port in &args.tcp {
        let listener = listen(&args, *port).await?;
        tasks.spawn(stream::accept_tcp(listener, Arc::clone(&shared), tasks.clone()));
    }
    for port in &args.udp {
        let at = SocketAddr::new(args.bind, *port);
        let socket = UdpSocket::bind(at).await.with_context(|| format!("listening on udp {at}"))?;
        tasks.spawn(stream::serve_udp(socket, Arc::clone(&shared)));
    }
    println!(
        "echo ready: {} {} http {:?} tls {:?} tcp {:?} udp {:?}",
        shared.identity.name, shared.identity.version, http_ports, args.tls, args.tcp, args.udp
    );
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
    Ok(())
}

fn shared(args: &ServeArgs) -> Shared {
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let delay = (args.delay_ms > 0).then(|| Duration::from_millis(args.delay_ms));
    Shared {
        identity: Identity {
            name: args.name.clone().unwrap_or_else(host),
            version: args.version.clone(),
            node: args.node.clone(),
        },
        controls: Controls {
            delay,
            status: args.status,
            close: args.close,
            silent: args.silent,
            ..Controls::default()
        },
        app: args.app,
        upstream: bookinfo::Upstream::default(),
        tcp_mode: args.tcp_mode,
    }
}

async fn listen(args: &ServeArgs, port: u16) -> anyhow::Result<TcpListener> {
    let at = SocketAddr::new(args.bind, port);
    TcpListener::bind(at).await.with_context(|| format!("listening on {at}"))
}
