//! Opens ports by UPnP, for routers that speak neither PCP nor NAT-PMP. Only the router that the default route leads to
//! is asked, whatever else on the LAN answers.
//!
//! - `text`: what is said and what is answered.

mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use self::text::{Page, Service};
use super::wire::Port;
use crate::nat::candidates::Carrier;

const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);
/// Time that a router gets to answer a search, and one request.
const SEARCH: Duration = Duration::from_millis(1_200);
const REQUEST: Duration = Duration::from_secs(2);
/// Pause after a search that found none, and between renewals: a router that starts anew is noticed by the next one.
const AGAIN: Duration = Duration::from_secs(300);
const RENEW: Duration = Duration::from_secs(90);
/// Seconds for which a port is asked.
const LIFETIME: u32 = 3_600;
/// Only permanent mappings are known to that router.
const ONLY_PERMANENT: &str = "725";
/// The outer port is somebody else's.
const CONFLICT: &str = "718";
/// Outer ports that are tried.
const TRIES: u32 = 3;

/// The router, and this host as it sees it.
pub(super) type Home = (Ipv4Addr, Ipv4Addr);

/// What is known of the router, and what it opened.
#[derive(Debug, Default)]
pub(super) struct Asking {
    service: Option<Service>,
    open: BTreeMap<Port, SocketAddrV4>,
    next: Option<Instant>,
}

fn protocol(carrier: Carrier) -> &'static str {
    if carrier == Carrier::Udp { "UDP" } else { "TCP" }
}

impl Asking {
    pub(super) fn open(&self) -> &BTreeMap<Port, SocketAddrV4> {
        &self.open
    }

    /// Another router: nothing of the old one holds.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Asks for what is wanted when it is time to. `alone`: no other protocol opens anything.
    pub(super) async fn step(&mut self, home: Home, ports: &BTreeSet<Port>, alone: bool) {
        let now = Instant::now();
        let changed = !self.open.keys().eq(ports.iter());
        let due = self.next.is_none_or(|at| at <= now) || (changed && self.service.is_some());
        if !alone || !due || ports.is_empty() {
            return;
        }
        if self.service.is_none() {
            self.service = find(home).await;
        }
        if self.service.is_none() {
            self.next = Some(now + AGAIN);
            return;
        }
        let gone: Vec<Port> = self.open.keys().filter(|p| !ports.contains(p)).copied().collect();
        for port in gone {
            self.close(port).await;
        }
        match self.renew(home.1, ports).await {
            Ok(()) => self.next = Some(Instant::now() + RENEW),
            Err(error) => {
                tracing::debug!(%error, "opening a port by UPnP");
                // It may be another router, or the same one after an upgrade: it is looked for again.
                self.service = None;
                self.open.clear();
                self.next = Some(Instant::now() + AGAIN / 4);
            }
        }
    }

    async fn renew(&mut self, host: Ipv4Addr, ports: &BTreeSet<Port>) -> io::Result<()> {
        let Some(service) = self.service.clone() else { return Ok(()) };
        let (_, said) = request(&service, "GetExternalIPAddress", &[]).await?;
        let address: Option<Ipv4Addr> =
            text::element(&said, "NewExternalIPAddress").and_then(|a| a.trim().parse().ok());
        let address = address.filter(|a| !a.is_unspecified()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        for port in ports {
            let first = self.open.get(port).map_or(port.1, SocketAddrV4::port);
            match add(&service, *port, first, host).await? {
                Some(outer) => self.open.insert(*port, SocketAddrV4::new(address, outer)),
                None => self.open.remove(port),
            };
        }
        Ok(())
    }

    async fn close(&mut self, port: Port) {
        let (Some(service), Some(at)) = (&self.service, self.open.remove(&port)) else { return };
        let arguments = [
            ("NewRemoteHost", String::new()),
            ("NewExternalPort", at.port().to_string()),
            ("NewProtocol", protocol(port.0).to_owned()),
        ];
        if let Err(error) = request(service, "DeletePortMapping", &arguments).await {
            tracing::debug!(%error, "closing a port by UPnP");
        }
    }

    pub(super) async fn leave(&mut self) {
        for port in self.open.keys().copied().collect::<Vec<_>>() {
            self.close(port).await;
        }
    }
}

/// Opens a port, another outer one where that is taken; none: the router refuses.
async fn add(service: &Service, port: Port, first: u16, host: Ipv4Addr) -> io::Result<Option<u16>> {
    let (mut outer, mut lifetime) = (first, LIFETIME);
    for _ in 0..TRIES {
        let arguments = [
            ("NewRemoteHost", String::new()),
            ("NewExternalPort", outer.to_string()),
            ("NewProtocol", protocol(port.0).to_owned()),
            ("NewInternalPort", port.1.to_string()),
            ("NewInternalClient", host.to_string()),
            ("NewEnabled", "1".to_owned()),
            ("NewPortMappingDescription", "selvage".to_owned()),
            ("NewLeaseDuration", lifetime.to_string()),
        ];
        let (status, said) = request(service, "AddPortMapping", &arguments).await?;
        if status == 200 {
            return Ok(Some(outer));
        }
        match text::element(&said, "errorCode").map(str::trim) {
            Some(CONFLICT) => outer = rand::random_range(20_000..60_000),
            Some(ONLY_PERMANENT) => lifetime = 0,
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// Looks for the service of the router.
async fn find(home: Home) -> Option<Service> {
    let page = timeout(SEARCH, search(home)).await.ok()?.inspect_err(|error| {
        tracing::debug!(%error, "looking for a router that speaks UPnP");
    });
    let page = page.ok()?;
    let (status, description) = talk(page.at, &text::get(&page)).await.ok()?;
    let found = text::service(&description, &page).filter(|_| status == 200);
    tracing::debug!(at = %page.at, found = found.is_some(), "a router that speaks UPnP");
    found
}

async fn search((router, host): Home) -> io::Result<Page> {
    let socket = UdpSocket::bind((host, 0)).await?;
    for target in text::SEARCHED {
        let question = text::search(target);
        for to in [GROUP, SocketAddrV4::new(router, GROUP.port())] {
            if let Err(error) = socket.send_to(question.as_bytes(), to).await {
                tracing::debug!(%error, %to, "search for a router");
            }
        }
    }
    let mut buffer = [0; 2_048];
    loop {
        // Answers of other devices, and refusals of the port on the router, are no reason to stop.
        let Ok((n, from)) = socket.recv_from(&mut buffer).await else {
            tokio::time::sleep(SEARCH / 20).await;
            continue;
        };
        if from.ip() == router
            && let Some(page) = text::location(buffer.get(..n).unwrap_or_default(), router)
        {
            return Ok(page);
        }
    }
}

async fn request(service: &Service, action: &str, arguments: &[(&str, String)]) -> io::Result<(u16, String)> {
    talk(service.page.at, &text::call(service, action, arguments)).await
}

/// One request over a connection of its own.
async fn talk(at: SocketAddrV4, request: &str) -> io::Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(at).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        while !text::is_whole(&answer) && stream.read_buf(&mut answer).await? > 0 {
            if answer.len() > text::LONGEST {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
        }
        text::body(&answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
    };
    timeout(REQUEST, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
