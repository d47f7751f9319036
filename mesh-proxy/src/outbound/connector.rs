//! How a connection to an endpoint is made: straight when this node can, through its owner's node otherwise.

use std::{
    cell::Cell,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use mesh_api::model::{self, TunnelOpen};
use mesh_core::WorkloadEntry;
use mesh_net::connect::{ConnectOptions, connect};
use tokio::{net::TcpStream, sync::watch};

use super::{
    endpoint::Endpoint,
    failure::FailureClass,
    stream::{Stream, Upstream},
};

/// A stream, and how many of the first bytes went with the question for it.
pub type Opened = (Box<dyn Stream>, usize);

/// Opens streams to endpoints that other nodes own. The tunnel implements it.
pub trait TunnelOpener: Send + Sync {
    /// Opens a stream; `open` says to what, and for whom.
    fn open<'a>(
        &'a self,
        node: &'a str,
        open: TunnelOpen,
    ) -> BoxFuture<'a, Result<Box<dyn Stream>, TunnelError>>;

    /// Opens a stream whose first bytes go with the question; gives also how many of them went. After an error that says
    /// that the owner refused, none has reached the endpoint.
    fn open_with<'a>(
        &'a self,
        node: &'a str,
        open: TunnelOpen,
        _early: &'a [u8],
    ) -> BoxFuture<'a, Result<Opened, TunnelError>> {
        Box::pin(async move { Ok((self.open(node, open).await?, 0)) })
    }

    /// A number that moves when streams to the node that are kept for later use should be left for new ones.
    fn generation(&self, _node: &str) -> Option<Arc<AtomicU64>> {
        None
    }

    /// Changes whenever the process of some node leaves: it waits for streams that are kept for later use.
    fn departures(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}

/// Why the tunnel gave no stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    /// The owner's policy, or its idea of who owns what, says no.
    #[error("refused by the owner: {0}")]
    Refused(String),
    /// The owner could not connect to the endpoint.
    #[error("the endpoint refused the owner's connection")]
    ConnectRefused,
    /// The endpoint did not answer the owner, or the owner did not answer us.
    #[error("no answer in time")]
    Timeout,
    /// A bound of either node is reached.
    #[error("overloaded: {0}")]
    Overloaded(String),
    /// The node cannot be reached.
    #[error("node not reached: {0}")]
    Unreachable(String),
}

/// Why there is no connection to an endpoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The socket.
    #[error("connect to {0}")]
    Tcp(SocketAddr, #[source] io::Error),
    /// Time is over.
    #[error("connect to {0} timed out")]
    Timeout(SocketAddr),
    /// It would have come back to us.
    #[error("{0} is this proxy's own listener")]
    Loop(SocketAddr),
    /// Another node owns the endpoint, and this one has no tunnel.
    #[error("{0} is on another node, and the tunnel is off")]
    NoTunnel(SocketAddr),
    /// The tunnel.
    #[error("tunnel to {0}: {1}")]
    Tunnel(Arc<str>, TunnelError),
    /// No endpoint is left to try.
    #[error("no endpoint")]
    NoEndpoint,
    /// A limit on connections.
    #[error("too many connections")]
    Overflow,
    /// The handshake with the endpoint.
    #[error("TLS to {0}: {1}")]
    Tls(SocketAddr, String),
}

impl ConnectError {
    pub(crate) const fn class(&self) -> FailureClass {
        match self {
            Self::Tcp(..) | Self::Loop(_) | Self::NoTunnel(_) => FailureClass::ConnectFailure,
            Self::Tls(..) => FailureClass::TlsFailure,
            Self::Timeout(_) => FailureClass::ConnectTimeout,
            Self::NoEndpoint => FailureClass::NoHealthyUpstream,
            Self::Overflow => FailureClass::Overflow,
            Self::Tunnel(_, e) => match e {
                TunnelError::Refused(_) => FailureClass::RefusedByOwner,
                TunnelError::ConnectRefused | TunnelError::Unreachable(_) => FailureClass::ConnectFailure,
                TunnelError::Timeout => FailureClass::ConnectTimeout,
                TunnelError::Overloaded(_) => FailureClass::Overflow,
            },
        }
    }
}

/// What a connection is for; the owner's node checks and counts by it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Purpose<'a> {
    /// Who calls.
    pub(crate) source: Option<&'a WorkloadEntry>,
    /// The service that was called.
    pub(crate) host: &'a str,
    /// Its subset.
    pub(crate) subset: &'a str,
    /// What travels.
    pub(crate) kind: model::tunnel_open::Kind,
    /// What may travel with the question for a stream.
    pub(crate) early: Option<&'a Early>,
}

/// Bytes of the client that are there before a connection is, and how many of them went ahead. Only for a connection
/// that is tried at one place: two endpoints must not get them.
#[derive(Debug, Default)]
pub(crate) struct Early {
    pub(crate) bytes: Bytes,
    pub(crate) sent: Cell<usize>,
}

/// Makes connections for one worker.
pub(crate) struct Connector {
    /// This node.
    node: Arc<str>,
    /// Carries the mark by which capture leaves our own sockets alone.
    options: ConnectOptions,
    /// Ports on this host that lead back to us.
    own_ports: Vec<u16>,
    tunnel: Option<Arc<dyn TunnelOpener>>,
}

impl Connector {
    pub(crate) fn new(
        node: Arc<str>,
        mark: Option<u32>,
        own_ports: Vec<u16>,
        tunnel: Option<Arc<dyn TunnelOpener>>,
    ) -> Self {
        let options = ConnectOptions { mark, ..ConnectOptions::default() };
        Self { node, options, own_ports, tunnel }
    }

    /// Connects to an endpoint. `node` is its owner; none = reachable directly.
    pub(crate) async fn connect(
        &self,
        addr: SocketAddr,
        node: Option<&Arc<str>>,
        purpose: Purpose<'_>,
        within: Duration,
    ) -> Result<Upstream, ConnectError> {
        let attempt = async {
            match node {
                Some(owner) if **owner != *self.node => self.through(owner, addr, purpose).await,
                _ => self.direct(addr).await.map(Upstream::Tcp),
            }
        };
        tokio::time::timeout(within, attempt).await.unwrap_or(Err(ConnectError::Timeout(addr)))
    }

    /// Connects straight to an address.
    pub(crate) async fn direct(&self, addr: SocketAddr) -> Result<TcpStream, ConnectError> {
        if self.is_own(addr) {
            return Err(ConnectError::Loop(addr));
        }
        connect(addr, &self.options).await.map_err(|e| ConnectError::Tcp(addr, e))
    }

    /// The number of the way to an endpoint through the tunnel, see [`TunnelOpener::generation`]; none = it is reached
    /// straight.
    pub(crate) fn generation(&self, endpoint: &Endpoint) -> Option<u64> {
        let node = endpoint.node.as_ref().filter(|node| ***node != *self.node)?;
        Some(endpoint.generation(|| self.tunnel.as_ref()?.generation(node)))
    }

    /// Resolves when the process of another node leaves.
    pub(crate) fn departures(&self) -> Departures {
        Departures(self.tunnel.as_ref().and_then(|tunnel| tunnel.departures()))
    }

    /// Whether connecting there would reach this proxy again.
    pub(crate) fn is_own(&self, addr: SocketAddr) -> bool {
        self.own_ports.contains(&addr.port()) && is_local(addr.ip())
    }

    async fn through(
        &self,
        owner: &Arc<str>,
        addr: SocketAddr,
        purpose: Purpose<'_>,
    ) -> Result<Upstream, ConnectError> {
        self.stream(owner, addr, purpose).await.map(Upstream::Tunnel)
    }

    /// A tunnel stream to an endpoint that another node owns.
    pub(crate) async fn stream(
        &self,
        owner: &Arc<str>,
        addr: SocketAddr,
        purpose: Purpose<'_>,
    ) -> Result<Box<dyn Stream>, ConnectError> {
        let Some(tunnel) = &self.tunnel else { return Err(ConnectError::NoTunnel(addr)) };
        let open = TunnelOpen {
            version: 1,
            address: addr.ip().to_string(),
            port: u32::from(addr.port()),
            host: purpose.host.to_owned(),
            source: purpose.source.map(source),
            kind: purpose.kind.into(),
            subset: purpose.subset.to_owned(),
        };
        let opened = match purpose.early {
            None => tunnel.open(owner, open).await,
            Some(early) => tunnel.open_with(owner, open, &early.bytes).await.map(|(stream, sent)| {
                early.sent.set(sent);
                stream
            }),
        };
        opened.map_err(|e| ConnectError::Tunnel(Arc::clone(owner), e))
    }
}

/// See [`TunnelOpener::departures`].
pub(crate) struct Departures(Option<watch::Receiver<u64>>);

impl Departures {
    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        if let Some(departures) = &mut self.0
            && departures.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

/// The caller as the owner's node gets to know it: no labels, they are in its own tables.
fn source(w: &WorkloadEntry) -> model::Workload {
    model::Workload {
        address: w.address.to_string(),
        namespace: w.namespace.to_string(),
        name: w.name.to_string(),
        owner: w.owner.to_string(),
        service_account: w.service_account.to_string(),
        host_network: w.host_network,
        ..Default::default()
    }
}

/// Loopback or unspecified; other addresses of the host are refused by the listener's own check of the original
/// destination.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}
