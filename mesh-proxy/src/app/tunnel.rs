//! The tunnel on the workers, its peers from the tables, its addresses to the controller.

use std::{sync::Arc, time::Duration};

use mesh_tunnel::{Acceptor, Executors, NatReport, NodeKey, StartError, Tunnel, TunnelConfig};
use node_rt::Tasks;
use tokio::{runtime::Handle, sync::watch};

use super::worker::Seats;
use crate::{
    config::Config,
    shared::Shared,
    tunnel_glue::{self, Reach},
};

/// How often we look whether the process before us has left the tunnel's UDP port, and for how long.
const RELEASE: (Duration, usize) = (Duration::from_millis(500), 600);

/// A started tunnel.
pub(super) struct Started {
    pub(super) tunnel: Tunnel,
    pub(super) acceptors: Vec<Acceptor>,
    /// Addresses that the process before us still holds.
    pub(super) held: Vec<String>,
}

/// Starts the tunnel. With a process before us that still listens, TCP is shared; the UDP port is taken when that
/// process has left it, see [`listen_when_free`].
pub(super) async fn start(
    config: &Config,
    key: NodeKey,
    seats: &Seats,
    registry: &prometheus::Registry,
    takes_over: bool,
) -> Result<Started, super::StartError> {
    let mut tunnel = TunnelConfig::new(key, config.listen.tunnel.port());
    tunnel.listen = tunnel_glue::listen_on(config.listen.tunnel);
    let advertised = tunnel_glue::advertised(&config.advertise, config.listen.tunnel.port());
    config.tunnel.apply(&config.node, &advertised, &mut tunnel);
    let mut held = Vec::new();
    loop {
        // A registry of its own for an attempt that may fail: names cannot be registered twice.
        let own = prometheus::Registry::new();
        let executors = Executors { control: Handle::current(), workers: seats.handles.clone() };
        match Tunnel::start(tunnel.clone(), executors, &own).await {
            Ok((tunnel, acceptors)) => {
                registry.register(Box::new(Nested(own)))?;
                return Ok(Started { tunnel, acceptors, held });
            }
            Err(StartError::Listen { address, .. }) if takes_over && tunnel.listen.contains(&address) => {
                tunnel.listen.retain(|a| *a != address);
                held.push(address);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Listens where the process before us listened, once it has left.
pub(super) async fn listen_when_free(tunnel: Tunnel, held: Vec<String>) {
    for address in held {
        let mut last = None;
        for _ in 0..RELEASE.1 {
            match tunnel.listen(&address).await {
                Ok(()) => {
                    last = None;
                    break;
                }
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(RELEASE.0).await;
        }
        match last {
            None => tracing::info!(address, "tunnel listens again"),
            Some(error) => tracing::warn!(%error, "tunnel goes on without this address until the next start"),
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
pub(super) fn follow(shared: &Arc<Shared>, tunnel: &Tunnel, tasks: &Tasks) -> watch::Receiver<Reach> {
    let (nodes, changed) = watch::channel(0);
    let mut updates = shared.updates();
    tasks.spawn("tunnel peers", async move {
        while updates.changed().await.is_ok() {
            let seen = updates.borrow_and_update().nodes;
            nodes.send_if_modified(|n| std::mem::replace(n, seen) != seen);
        }
    });
    let (tables, node) = (shared.tables.clone(), shared.node.clone());
    let serves = shared.config.tunnel.relay.enabled;
    tasks.spawn("tunnel peers", tunnel_glue::follow_nodes(tunnel.clone(), tables, node, serves, changed));

    let (mut listening, mut nat) = (tunnel.addresses(), tunnel.nat());
    let (advertise, port) = (shared.config.advertise.clone(), shared.config.listen.tunnel.port());
    let further = shared.config.tunnel.further(&advertise);
    let reach = move |listening: &mut watch::Receiver<Vec<String>>, nat: &mut watch::Receiver<NatReport>| {
        let own = (advertise.as_slice(), &*mesh_tunnel::nat::outward());
        let straight = tunnel_glue::reported(&listening.borrow_and_update(), own, port, &further);
        Reach::new(straight, &nat.borrow_and_update())
    };
    let (say, addresses) = watch::channel(reach(&mut listening, &mut nat));
    tasks.spawn("tunnel addresses", async move {
        loop {
            let alive = tokio::select! {
                changed = listening.changed() => changed.is_ok(),
                changed = nat.changed() => changed.is_ok(),
            };
            if !alive {
                // The last word stays: the receiver must not see the sender go.
                std::future::pending::<()>().await;
            }
            let now = reach(&mut listening, &mut nat);
            say.send_if_modified(|old| {
                let other = *old != now;
                *old = now;
                other
            });
        }
    });
    addresses
}
