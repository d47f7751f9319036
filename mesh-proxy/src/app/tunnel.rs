//! The tunnel on the workers, its peers from the tables, its addresses to the controller.

use std::{sync::Arc, time::Duration};

use mesh_tunnel::{Acceptor, Executors, NodeKey, StartError, Tunnel, TunnelConfig};
use node_rt::Tasks;
use tokio::{runtime::Handle, sync::watch};

use super::worker::Seats;
use crate::{config::Config, shared::Shared, tunnel_glue};

/// How long the process before us gets to leave the tunnel's port, and how often we look.
const RELEASE: (usize, Duration) = (20, Duration::from_millis(100));

/// Starts the tunnel. With a process before us that still listens, TCP is shared; the UDP port may be free only later,
/// and then this node serves TCP alone until its next start.
pub(super) async fn start(
    config: &Config,
    key: NodeKey,
    seats: &Seats,
    registry: &prometheus::Registry,
    takes_over: bool,
) -> Result<(Tunnel, Vec<Acceptor>), super::StartError> {
    let executors = || Executors { control: Handle::current(), workers: seats.handles.clone() };
    let mut tunnel = TunnelConfig::new(key, config.listen.tunnel.port());
    tunnel.listen = tunnel_glue::listen_on(config.listen.tunnel);
    let mut attempts = if takes_over { RELEASE.0 } else { 1 };
    loop {
        // A registry of its own for an attempt that may fail: names cannot be registered twice.
        let own = prometheus::Registry::new();
        attempts -= 1;
        match Tunnel::start(tunnel.clone(), executors(), &own).await {
            Ok(started) => {
                registry.register(Box::new(Nested(own)))?;
                return Ok(started);
            }
            Err(StartError::Listen { .. }) if attempts > 0 => tokio::time::sleep(RELEASE.1).await,
            Err(StartError::Listen { address, reason }) if takes_over && tunnel.listen.len() > 1 => {
                tracing::warn!(
                    address,
                    reason,
                    "tunnel serves TCP only: the process before us holds the port"
                );
                tunnel.listen.truncate(1);
                attempts = 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Metrics of another registry.
struct Nested(prometheus::Registry);

impl prometheus::core::Collector for Nested {
    fn desc(&self) -> Vec<&prometheus::core::Desc> {
        Vec::new()
    }
    fn collect(&self) -> Vec<prometheus::proto::MetricFamily> {
        self.0.gather()
    }
}

/// Keeps the tunnel's peers equal to the tables' nodes. Gives the addresses at which this node is reached.
pub(super) fn follow(shared: &Arc<Shared>, tunnel: &Tunnel, tasks: &Tasks) -> watch::Receiver<Vec<String>> {
    let (nodes, changed) = watch::channel(0);
    let mut updates = shared.updates();
    tasks.spawn("tunnel peers", async move {
        while updates.changed().await.is_ok() {
            let seen = updates.borrow_and_update().nodes;
            nodes.send_if_modified(|n| std::mem::replace(n, seen) != seen);
        }
    });
    let (tables, node) = (shared.tables.clone(), shared.node.clone());
    tasks.spawn("tunnel peers", tunnel_glue::follow_nodes(tunnel.clone(), tables, node, changed));

    let mut listening = tunnel.addresses();
    let (advertise, port) = (shared.config.advertise.clone(), shared.config.listen.tunnel.port());
    let now = tunnel_glue::reported(&listening.borrow_and_update(), &advertise, port);
    let (say, addresses) = watch::channel(now);
    tasks.spawn("tunnel addresses", async move {
        while listening.changed().await.is_ok() {
            let now = tunnel_glue::reported(&listening.borrow_and_update(), &advertise, port);
            say.send_if_modified(|old| {
                let other = *old != now;
                *old = now;
                other
            });
        }
        // The last word stays: the receiver must not see the sender go.
        std::future::pending::<()>().await;
    });
    addresses
}
