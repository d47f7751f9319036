//! The node's DNS server: names of the mesh from the tables, all others from upstream servers,
//! through a cache that goes on answering when they are gone.

mod cache;
mod forward;
mod handler;
mod metrics;
mod respond;
mod tcp;
mod udp;
mod upstreams;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_net::listen;
use node_rt::Tasks;
use tokio::net::{TcpListener, UdpSocket};

use crate::shared::Shared;

use forward::Forwarder;
use handler::Handler;
use metrics::DnsMetrics;
use respond::Responder;

pub use cache::CacheLimits;
pub use forward::ForwardLimits;
pub(crate) use upstreams::{parse_resolv_conf, usable};

/// How the server works; [`DnsOptions::default`] is right for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsOptions {
    /// UDP and TCP.
    pub listen: SocketAddr,
    /// Servers for other names; empty = those of `resolv_conf`, which is watched.
    pub upstreams: Vec<SocketAddr>,
    /// Where the host's own servers are written.
    pub resolv_conf: PathBuf,
    /// How often it is looked at.
    pub resolv_conf_every: Duration,
    /// Bounds of the cache.
    pub cache: CacheLimits,
    /// Bounds of forwarding.
    pub forward: ForwardLimits,
    /// TCP connections at a time.
    pub connections: usize,
}

impl DnsOptions {
    /// From the proxy's configuration.
    pub fn new(listen: SocketAddr, upstreams: Vec<SocketAddr>) -> Self {
        Self {
            listen,
            upstreams,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            resolv_conf_every: Duration::from_secs(5),
            cache: CacheLimits::default(),
            forward: ForwardLimits::default(),
            connections: 256,
        }
    }
}

/// Why DNS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The address or port is not ours, or is taken.
    #[error("cannot listen for DNS on {address} ({protocol})")]
    Listen {
        /// Configured.
        address: SocketAddr,
        /// `udp` or `tcp`.
        protocol: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// A metric is registered twice.
    #[error("cannot register the DNS metrics")]
    Metrics(#[source] prometheus::Error),
}

/// Binds and serves until the drain cancels. Returns the address, which is of interest when port 0
/// was asked for.
pub fn start(shared: &Arc<Shared>, options: DnsOptions, tasks: &Tasks) -> Result<SocketAddr, DnsError> {
    let fail = |protocol| {
        let address = options.listen;
        move |source| DnsError::Listen { address, protocol, source }
    };
    // TCP first: with port 0 it decides the port for both.
    let tcp = listen::tcp_reuseport(options.listen, false).map_err(fail("tcp"))?;
    let address = tcp.local_addr().map_err(fail("tcp"))?;
    let udp = listen::udp(address, true).map_err(fail("udp"))?;
    serve(shared, options, tasks, udp, tcp)?;
    Ok(address)
}

/// As [`start`], on sockets that are there already (hot restart).
pub fn serve(
    shared: &Arc<Shared>,
    options: DnsOptions,
    tasks: &Tasks,
    udp: UdpSocket,
    tcp: TcpListener,
) -> Result<(), DnsError> {
    let metrics = DnsMetrics::register(&shared.metrics).map_err(DnsError::Metrics)?;
    let forwarder = Forwarder::new(&options, metrics.clone(), tasks.clone());
    forwarder.watch_resolv_conf(&options, tasks);
    let responder = Responder::new(Arc::clone(shared), forwarder);
    let handler = Handler::new(responder, metrics);
    // Names are needed for as long as connections drain, so both stop only with the last stage.
    tcp::serve(tcp, handler.clone(), options.connections, tasks);
    udp::serve(udp, handler, tasks);
    Ok(())
}

#[cfg(test)]
mod tests;
