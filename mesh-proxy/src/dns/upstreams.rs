//! Which servers know the names that are not of the mesh.

use std::net::{IpAddr, SocketAddr};

/// Servers asked; the resolver library of the system uses three.
const MAX: usize = 4;

/// The `nameserver` lines of a resolv.conf.
pub(crate) fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().map(str::trim_start);
    let servers =
        lines.filter_map(|line| line.strip_prefix("nameserver")).filter(|rest| rest.starts_with([' ', '\t']));
    let addresses = servers.filter_map(|rest| {
        let word = rest.split_whitespace().next()?;
        word.parse::<IpAddr>().inspect_err(|_| tracing::warn!(server = word, "name server ignored")).ok()
    });
    addresses.map(|ip| SocketAddr::new(ip, 53)).collect()
}

/// Leaves out ourselves, doubles, and what is too many.
pub(crate) fn usable(servers: &[SocketAddr], listen: SocketAddr) -> Vec<SocketAddr> {
    let mut kept = Vec::new();
    for server in servers {
        if is_us(*server, listen) {
            tracing::debug!(%server, "not forwarding to ourselves");
        } else if !kept.contains(server) && kept.len() < MAX {
            kept.push(*server);
        }
    }
    kept
}

fn is_us(server: SocketAddr, listen: SocketAddr) -> bool {
    let same_host = server.ip() == listen.ip()
        // Listening everywhere, loopback reaches us; 0.0.0.0 means this host.
        || (listen.ip().is_unspecified() && server.ip().is_loopback())
        || (server.ip().is_unspecified() && (listen.ip().is_loopback() || listen.ip().is_unspecified()));
    same_host && server.port() == listen.port()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_a_resolv_conf() {
        let text = "# c\nsearch a b\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # x\nnameserver\nnameservers 1.1.1.1\nnameserver fe80::1%eth0\noptions ndots:5";
        let expected: Vec<SocketAddr> =
            vec!["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()];
        assert_eq!(parse_resolv_conf(text), expected);
    }

    #[test]
    fn never_ourselves() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let servers = [at("169.254.96.16:53"), at("127.0.0.53:53"), at("192.0.2.1:53"), at("192.0.2.1:53")];
        assert_eq!(usable(&servers, at("169.254.96.16:53")), [at("127.0.0.53:53"), at("192.0.2.1:53")]);
        assert_eq!(usable(&servers, at("0.0.0.0:53")), [at("169.254.96.16:53"), at("192.0.2.1:53")]);
        assert_eq!(usable(&servers, at("127.0.0.53:5353")).len(), 3);
    }
}
