//! The control side: identity, discovery, DNS, capture, pages.

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use mesh_tunnel::Tunnel;
use node_rt::{AdminServer, Exposed, LogControl, Readiness, Tasks};

use super::{Disk, StartError, sockets::ControlSockets, system, tunnel};
use crate::{
    admin::Admin,
    capture::{self, Capture, CaptureOptions},
    dns::{self, DnsOptions},
    shared::Shared,
};

/// Starts all of it. Gives the capture, if there is one.
pub(super) async fn start(
    disk: Disk,
    tunnel: &Tunnel,
    tasks: &Tasks,
    readiness: &Readiness,
    log: Option<LogControl>,
    (sockets, datagrams): (ControlSockets, Option<SocketAddr>),
) -> Result<Option<Capture>, StartError> {
    let Disk { shared, discovery, keeper, controllers, .. } = disk;
    let config = shared.config.clone();
    let addresses = tunnel::follow(&shared, tunnel, tasks);
    let tls = keeper.tls();
    let discovery = discovery.with_doubts(keeper.doubts());
    tasks.spawn_critical("identity", keeper.run());
    let stop = tasks.drain().clone();
    tasks.spawn_critical("discovery", async move {
        tokio::select! {
            () = discovery.run(controllers, tls, addresses) => {}
            // A successor follows the controller from here on.
            _ = stop.begun() => {}
        }
    });

    let mut pod_dns = None;
    if let Some((udp, tcp)) = sockets.dns {
        pod_dns = tcp.local_addr().ok();
        let options = DnsOptions::new(config.dns.listen, config.dns.upstreams.clone());
        let udp = tokio::net::UdpSocket::from_std(udp).map_err(system("DNS"))?;
        dns::serve(&shared, options, tasks, udp, to_tokio(tcp)?)?;
    }
    let pages = Admin {
        shared: shared.clone(),
        readiness: readiness.clone(),
        drain: tasks.drain().clone(),
        log,
        tasks: tasks.clone(),
        tunnel: Some(tunnel.clone()),
    };
    pages.server().serve("admin", to_tokio(sockets.admin)?, tasks);
    let traffic = shared.traffic.get().cloned().map(|t| -> Arc<dyn Exposed> { t });
    let scraped = AdminServer::new().metrics_and(shared.metrics.clone(), traffic);
    scraped.serve("metrics", to_tokio(sockets.metrics)?, tasks);
    AdminServer::new().health(readiness.clone()).serve("health", to_tokio(sockets.health)?, tasks);

    // Last: what is captured is served.
    if !config.capture.enabled {
        return Ok(None);
    }
    let mut options = capture_options(&shared);
    options.udp_v4 = datagrams.filter(SocketAddr::is_ipv4).map(|a| a.port());
    options.udp_v6 = datagrams.filter(SocketAddr::is_ipv6).map(|a| a.port());
    options.pod_dns = pod_dns.filter(|_| config.capture.pod_dns);
    Ok(Some(capture::start(&shared, options, tasks).await?))
}

fn capture_options(shared: &Shared) -> CaptureOptions {
    let config = &shared.config;
    let mut options = CaptureOptions::new(config.listen.outbound);
    options.nft = config.capture.nft.clone();
    options.table = config.capture.table.clone();
    if let Some(mark) = config.outbound.mark {
        options.mark = mark;
    }
    options.spared = super::outside_servers(config)().iter().map(SocketAddr::ip).collect();
    options
}

fn to_tokio(listener: TcpListener) -> Result<tokio::net::TcpListener, StartError> {
    tokio::net::TcpListener::from_std(listener).map_err(system("a listener of the control side"))
}
