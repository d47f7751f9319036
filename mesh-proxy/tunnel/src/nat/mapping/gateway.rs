//! The routers of this host, and this host as they see it: one for IPv4, and one for IPv6, which is asked to let packets
//! in through its firewall.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
};

/// Where ports may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gateway {
    pub(crate) router: IpAddr,
    /// Number of the device that a router without an address of its own is behind; 0: none is needed.
    scope: u32,
    /// This host's address on the way there.
    pub(crate) host: IpAddr,
}

/// In no network of this host; what leads there leads to everybody.
const FAR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

impl Gateway {
    pub(crate) fn new(router: IpAddr, scope: u32, host: IpAddr) -> Self {
        Self { router, scope, host }
    }

    /// Of the kernel's tables; none without a router, or when its place cannot be told.
    pub(crate) fn find(v6: bool) -> Option<Self> {
        if v6 { Self::find_v6() } else { Self::find_v4() }
    }

    fn find_v4() -> Option<Self> {
        let router = default_router(&fs::read_to_string("/proc/net/route").ok()?)?;
        let host = toward(IpAddr::V4(router))?;
        (host != router).then(|| Self::new(router.into(), 0, host))
    }

    fn find_v6() -> Option<Self> {
        let (router, device) = default_router_v6(&fs::read_to_string("/proc/net/ipv6_route").ok()?)?;
        // The address that others would dial: toward the router itself packets leave with the link's own one.
        let host = toward(FAR.into())?;
        let scope = if router.is_unicast_link_local() {
            number_of(&fs::read_to_string("/proc/net/if_inet6").ok()?, &device)?
        } else {
            0
        };
        (is_global(host) && host != router).then(|| Self::new(router.into(), scope, host))
    }

    /// Both addresses, where they are IPv4.
    pub(crate) fn v4(&self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        match (self.router, self.host) {
            (IpAddr::V4(router), IpAddr::V4(host)) => Some((router, host)),
            _ => None,
        }
    }

    /// A port of the router.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        match self.router {
            IpAddr::V4(router) => (router, port).into(),
            IpAddr::V6(router) => SocketAddrV6::new(router, port, 0, self.scope).into(),
        }
    }
}

/// Whether everybody could dial that address, were there no firewall.
fn is_global(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.segments()[0] & 0xe000 == 0x2000)
}

/// The address that packets to a host leave with. Nothing is sent.
pub(crate) fn toward(host: IpAddr) -> Option<IpAddr> {
    let any = if host.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(SocketAddr::new(host, 9)).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_unspecified()).then_some(own)
}

/// Up, and through a router.
const USABLE: u32 = 3;
/// Packets that take it are refused.
const REJECT: u32 = 0x200;

/// The router of the default route with the least metric.
fn default_router(table: &str) -> Option<Ipv4Addr> {
    let route = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (to, router) = (fields.next()?, fields.next()?);
        let flags = u32::from_str_radix(fields.next()?, 16).ok()?;
        let (metric, mask) = (fields.nth(2)?.parse::<u32>().ok()?, fields.next()?);
        // In the machine's own byte order.
        let router = Ipv4Addr::from(u32::from_str_radix(router, 16).ok()?.to_ne_bytes());
        let usable =
            to == "00000000" && mask == "00000000" && flags & USABLE == USABLE && !router.is_unspecified();
        usable.then_some((metric, router))
    };
    table.lines().skip(1).filter_map(route).min().map(|(_, router)| router)
}

/// The same for IPv6, with the device that leads there.
fn default_router_v6(table: &str) -> Option<(Ipv6Addr, String)> {
    let route = |line: &str| {
        let mut fields = line.split_whitespace();
        let (to, length) = (fields.next()?, fields.next()?);
        let router = Ipv6Addr::from(u128::from_str_radix(fields.nth(2)?, 16).ok()?);
        let metric = u32::from_str_radix(fields.next()?, 16).ok()?;
        let flags = u32::from_str_radix(fields.nth(2)?, 16).ok()?;
        let all = length == "00" && to.bytes().all(|b| b == b'0');
        let usable = all && flags & (USABLE | REJECT) == USABLE && !router.is_unspecified();
        usable.then_some((metric, router, fields.next()?.to_owned()))
    };
    table.lines().filter_map(route).min().map(|(_, router, device)| (router, device))
}

/// The kernel's number of a device.
fn number_of(addresses: &str, device: &str) -> Option<u32> {
    let number = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(5) == Some(&device)).then(|| u32::from_str_radix(fields.get(1)?, 16).ok())?
    };
    addresses.lines().find_map(number)
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

    #[test]
    fn the_router_of_ipv6_may_have_an_address_of_the_link_only() {
        let zero = "0".repeat(32);
        let line = |to: &str, length: &str, via: &str, metric: &str, flags: &str, device: &str| {
            format!("{to} {length} {zero} 00 {via} {metric} 00000001 00000000 {flags} {device:>8}\n")
        };
        let (link, global) = ("fe800000000000000000000000000001", "20010db8000100000000000000000001");
        let table = line("20010db8000100000000000000000000", "40", &zero, "00000100", "00000001", "eth0")
            + &line(&zero, "00", global, "00000400", "00000003", "wlan0")
            + &line(&zero, "00", link, "00000100", "00450003", "eth0")
            + &line(&zero, "00", &zero, "ffffffff", "00200200", "lo")
            + &line(&zero, "00", global, "00000001", "00000203", "eth9");
        let found = default_router_v6(&table);
        assert_eq!(found, Some(("fe80::1".parse().unwrap(), "eth0".to_owned())));
        assert_eq!(default_router_v6("garbage\n00 00\n"), None);
        let addresses = "fe80000000000000020000fffe000010 0c 40 20 80     eth0\n\
                         00000000000000000000000000000001 01 80 10 80       lo\n";
        assert_eq!((number_of(addresses, "eth0"), number_of(addresses, "eth1")), (Some(12), None));
        let gateway = Gateway::new("fe80::1".parse().unwrap(), 12, "2001:db8::2".parse().unwrap());
        assert_eq!(gateway.at(5351).to_string(), "[fe80::1%12]:5351");
        assert!(is_global(gateway.host) && gateway.v4().is_none());
        for other in ["fe80::1", "fd00::1", "::1", "10.0.0.1"] {
            assert!(!is_global(other.parse().unwrap()), "{other}");
        }
    }
}
