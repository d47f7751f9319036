//! The router of this host, and this host as that router sees it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
};

/// Where ports may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gateway {
    pub(crate) router: Ipv4Addr,
    /// This host's address on the way there.
    pub(crate) host: Ipv4Addr,
}

impl Gateway {
    /// Of the kernel's table; none without a router, or when its place cannot be told.
    pub(crate) fn find() -> Option<Self> {
        let router = default_router(&fs::read_to_string("/proc/net/route").ok()?)?;
        let host = toward(IpAddr::V4(router))?;
        match host {
            IpAddr::V4(host) if host != router => Some(Self { router, host }),
            _ => None,
        }
    }
}

/// The address that packets to a host leave with. Nothing is sent.
pub(crate) fn toward(host: IpAddr) -> Option<IpAddr> {
    let any = if host.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(SocketAddr::new(host, 9)).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_unspecified()).then_some(own)
}

/// The router of the default route with the least metric.
fn default_router(table: &str) -> Option<Ipv4Addr> {
    let route = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (to, router) = (fields.next()?, fields.next()?);
        let flags = u32::from_str_radix(fields.next()?, 16).ok()?;
        let (metric, mask) = (fields.nth(2)?.parse::<u32>().ok()?, fields.next()?);
        // In the machine's own byte order.
        let router = Ipv4Addr::from(u32::from_str_radix(router, 16).ok()?.to_ne_bytes());
        // Up, and through a router.
        let usable = to == "00000000" && mask == "00000000" && flags & 3 == 3 && !router.is_unspecified();
        usable.then_some((metric, router))
    };
    table.lines().skip(1).filter_map(route).min().map(|(_, router)| router)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_with_the_least_metric_counts() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let hex = |ip: Ipv4Addr| format!("{:08X}", u32::from_ne_bytes(ip.octets()));
        let line = |to: &str, via: Ipv4Addr, flags: &str, metric: u32| {
            format!(
                "eth0\t{to}\t{}\t{flags}\t0\t0\t{metric}\t{}\t0\t0\t0\n",
                hex(via),
                if to == "00000000" { to } else { "00FFFFFF" }
            )
        };
        let (wifi, wire) = (Ipv4Addr::new(192, 168, 1, 1), Ipv4Addr::new(10, 0, 0, 1));
        let table = head.to_owned()
            + &line("00000000", wifi, "0003", 600)
            + &line("00000000", wire, "0003", 100)
            + &line("00000000", Ipv4Addr::new(10, 9, 9, 9), "0001", 1)
            + &line("000200C0", Ipv4Addr::new(10, 8, 8, 8), "0003", 0);
        assert_eq!(default_router(&table), Some(wire));
        assert_eq!(default_router(head), None);
        assert_eq!(default_router("garbage\n\u{0}\nx y z"), None);
        assert_eq!(toward(IpAddr::V4(Ipv4Addr::LOCALHOST)), Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
