//! The listening sockets: inherited by name from the process before, or bound.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, OwnedFd},
};

use mesh_net::{handover::Inherited, listen};

use super::{Addresses, StartError};
use crate::config::Config;

/// All sockets of the proxy but the tunnel's, which are bound by the tunnel.
pub(super) struct Sockets {
    /// One for each worker, or more when the process before had more workers.
    pub(super) captured: Vec<TcpListener>,
    pub(super) proxy: Vec<TcpListener>,
    /// Captured datagrams, one for each worker; none where they cannot be captured.
    pub(super) datagrams: Vec<UdpSocket>,
    pub(super) control: ControlSockets,
}

/// Sockets that the control side serves.
pub(super) struct ControlSockets {
    pub(super) dns: Option<(UdpSocket, TcpListener)>,
    pub(super) admin: TcpListener,
    pub(super) metrics: TcpListener,
    pub(super) health: TcpListener,
}

/// What the process before gave us.
struct Stock(HashMap<String, Inherited>);

impl Stock {
    /// The socket with that name, if it is still bound where the configuration wants it.
    fn tcp(&mut self, name: &str, address: SocketAddr) -> Option<TcpListener> {
        let listener = self.0.remove(name)?.into_tcp_listener().ok()?;
        fits(listener.local_addr().ok()?, address).then_some(listener)
    }

    fn udp(&mut self, name: &str, address: SocketAddr) -> Option<UdpSocket> {
        let socket = self.0.remove(name)?.into_udp_socket().ok()?;
        fits(socket.local_addr().ok()?, address).then_some(socket)
    }

    fn tcp_or_bind(&mut self, what: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
        match self.tcp(what, address) {
            Some(l) => Ok(l),
            None => bind(what, address),
        }
    }

    /// One listener for each worker, and what is left of more workers before: connections may wait in them.
    fn for_workers(
        &mut self,
        what: &'static str,
        address: SocketAddr,
        workers: usize,
    ) -> Result<Vec<TcpListener>, StartError> {
        let mut out = Vec::with_capacity(workers);
        for i in 0.. {
            match self.tcp(&format!("{what}/{i}"), address) {
                Some(l) => out.push(l),
                None if i >= workers => break,
                // With port 0 the first one decides for all.
                None => {
                    let address =
                        out.first().and_then(|l: &TcpListener| l.local_addr().ok()).unwrap_or(address);
                    out.push(bind(what, address)?);
                }
            }
        }
        Ok(out)
    }
}

fn fits(found: SocketAddr, wanted: SocketAddr) -> bool {
    found.ip() == wanted.ip() && (wanted.port() == 0 || found.port() == wanted.port())
}

fn bind(what: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    listen::std_tcp_reuseport(address, false).map_err(|source| StartError::Listen { what, address, source })
}

impl Sockets {
    pub(super) fn open(config: &Config, inherited: Vec<Inherited>) -> Result<Self, StartError> {
        if !inherited.is_empty() {
            tracing::info!(sockets = inherited.len(), "taking over from the running process");
        }
        let mut stock = Stock(inherited.into_iter().map(|i| (i.name.clone(), i)).collect());
        let listen = &config.listen;
        let workers = config.worker_count();
        let proxy = match listen.proxy {
            Some(address) => stock.for_workers("proxy", address, workers)?,
            None => Vec::new(),
        };
        let captured = stock.for_workers("outbound", listen.outbound, workers)?;
        let datagrams = match captured.first().map(TcpListener::local_addr) {
            Some(Ok(outbound)) if config.capture.enabled => datagrams(outbound, workers),
            _ => Vec::new(),
        };
        Ok(Self {
            captured,
            proxy,
            datagrams,
            control: ControlSockets {
                dns: if config.dns.enabled { Some(dns(&mut stock, config.dns.listen)?) } else { None },
                admin: stock.tcp_or_bind("admin", listen.admin)?,
                metrics: stock.tcp_or_bind("metrics", listen.metrics)?,
                health: stock.tcp_or_bind("health", listen.health)?,
            },
        })
    }

    pub(super) fn addresses(&self) -> Addresses {
        let of = |l: &TcpListener| l.local_addr().ok();
        Addresses {
            outbound: self.captured.first().and_then(of),
            datagrams: self.datagrams.first().and_then(|s| s.local_addr().ok()),
            proxy: self.proxy.first().and_then(of),
            dns: self.control.dns.as_ref().and_then(|(_, tcp)| of(tcp)),
            admin: of(&self.control.admin),
            metrics: of(&self.control.metrics),
            health: of(&self.control.health),
        }
    }

    /// Descriptors of the same sockets, for the process after us.
    pub(super) fn duplicate(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let mut out = Vec::new();
        let mut add = |name: String, fd: std::os::fd::BorrowedFd<'_>| -> io::Result<()> {
            out.push((name, fd.try_clone_to_owned()?));
            Ok(())
        };
        for (i, l) in self.captured.iter().enumerate() {
            add(format!("outbound/{i}"), l.as_fd())?;
        }
        for (i, l) in self.proxy.iter().enumerate() {
            add(format!("proxy/{i}"), l.as_fd())?;
        }
        if let Some((udp, tcp)) = &self.control.dns {
            add("dns/udp".to_owned(), udp.as_fd())?;
            add("dns/tcp".to_owned(), tcp.as_fd())?;
        }
        add("admin".to_owned(), self.control.admin.as_fd())?;
        add("metrics".to_owned(), self.control.metrics.as_fd())?;
        add("health".to_owned(), self.control.health.as_fd())?;
        Ok(out)
    }
}

/// Sockets for captured datagrams, at the port of captured connections if it is free. The process before us has its own
/// at the same port until it stops accepting: each flow keeps to one of the sockets that there are.
fn datagrams(outbound: SocketAddr, workers: usize) -> Vec<UdpSocket> {
    let any = SocketAddr::new(outbound.ip(), 0);
    let first = mesh_net::udp::std_captured(outbound).or_else(|_taken| mesh_net::udp::std_captured(any));
    let bound = first.and_then(|first| {
        let address = first.local_addr()?;
        let others = (1..workers).map(|_| mesh_net::udp::std_captured(address));
        std::iter::once(Ok(first)).chain(others).collect::<io::Result<Vec<_>>>()
    });
    bound.unwrap_or_else(|error| {
        tracing::error!(%error, "datagrams to services are not captured");
        Vec::new()
    })
}

fn dns(stock: &mut Stock, address: SocketAddr) -> Result<(UdpSocket, TcpListener), StartError> {
    let tcp = match stock.tcp("dns/tcp", address) {
        Some(l) => l,
        None => bind("dns", address)?,
    };
    let fail = |source| StartError::Listen { what: "dns", address, source };
    let address = tcp.local_addr().map_err(fail)?;
    let udp = match stock.udp("dns/udp", address) {
        Some(s) => s,
        None => listen::udp(address, true).and_then(tokio::net::UdpSocket::into_std).map_err(fail)?,
    };
    Ok((udp, tcp))
}
