//! The outbound path: from a connection that an application opened to the endpoint that serves it.
//!
//! ```text
//! worker ─► connection: what was called, what is spoken? ─┬─► l4: route ► cluster ► connect ► copy
//!   (accept)                                              └─► http: see http/stack.rs, in request order
//!                       both: cluster ► pick ► connect (staggered) ► connector (direct | tunnel)
//! forward_proxy (CONNECT, absolute form, SOCKS5 on loopback) ─► connection
//! ```
//!
//! Each worker is one thread; what it knows of clusters, endpoints and metrics is its own.

mod cluster;
pub mod config;
mod connect;
mod connection;
pub mod connector;
mod endpoint;
mod external;
mod failure;
mod forward_proxy;
mod http;
mod l4;
pub mod names;
mod prologue;
pub mod stream;
mod target;
pub mod tls;
mod watch;
mod worker;

pub use config::{OutboundConfig, check_proxy_address};
pub use connector::{Opened, TunnelError, TunnelOpener};
pub use stream::Stream;
pub use worker::{Listeners, Shared, Worker};

pub(crate) use cluster::{ClusterState, LimitTable};
pub(crate) use connection::{ClientIo, Connection};
pub(crate) use connector::{Early, Purpose};
pub(crate) use http::{Version as HttpVersion, serve as serve_http};
pub(crate) use l4::serve as serve_bytes;
pub(crate) use target::Target;
pub(crate) use worker::{Snapshot, Ticket, WorkerState};

/// A cluster as Envoy names it.
pub(crate) fn cluster_name(cluster: &mesh_core::Cluster) -> String {
    let key = &cluster.key;
    if [external::PASSTHROUGH, external::BLACKHOLE].contains(&&*key.host) {
        return key.host.to_string();
    }
    format!("outbound|{}|{}|{}", key.port, key.subset, key.host)
}
