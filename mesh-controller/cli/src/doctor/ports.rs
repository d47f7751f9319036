//! Who else listens where the proxy wants to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use serde_json::Value;

use super::{Check, ask::Node};

const WHAT: &str = "ports";
/// The proxy's own listeners: setting, default, whether UDP is taken too.
const OWN: [(&str, &str, bool); 7] = [
    ("listen.outbound", "0.0.0.0:15001", true),
    ("listen.tunnel", "0.0.0.0:15008", true),
    ("listen.admin", "127.0.0.1:15000", false),
    ("listen.metrics", "0.0.0.0:15020", false),
    ("listen.health", "0.0.0.0:15021", false),
    ("listen.proxy", "127.0.0.1:15080", false),
    ("dns.listen", "169.254.96.16:53", true),
];
const PROGRAM: &str = "mesh-proxy";

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listener {
    address: SocketAddr,
    udp: bool,
    /// Name of the program; nothing when this user may not know.
    program: Option<String>,
}

pub(super) fn all(node: &anyhow::Result<Node>) -> Vec<Check> {
    let listeners = listeners();
    let nothing = Node::default();
    let (running, node) = match node {
        Ok(node) => (true, node),
        Err(_) => (false, &nothing),
    };
    let mut out = own(&listeners, node, running);
    out.extend(answers(&listeners, &node.dump));
    out
}

fn own(listeners: &[Listener], node: &Node, running: bool) -> Vec<Check> {
    let mut out = Vec::new();
    let mut fine = 0;
    for (setting, default, udp) in OWN {
        let configured = node.setting(setting);
        if running && configured.is_null() {
            continue;
        }
        let Ok(address) = configured.as_str().unwrap_or(default).parse::<SocketAddr>() else { continue };
        let clashes = |l: &&Listener| {
            (udp || !l.udp) && clash(l.address, address) && l.program.as_deref() != Some(PROGRAM)
        };
        let others: BTreeSet<&str> = listeners
            .iter()
            .filter(clashes)
            // Of a running proxy's own sockets another user's meshctl cannot see the owner.
            .filter_map(|l| match &l.program {
                Some(name) => Some(name.as_str()),
                None if running => None,
                None => Some("a program of another user"),
            })
            .collect();
        if others.is_empty() {
            fine += 1;
            continue;
        }
        let names = others.into_iter().collect::<Vec<_>>().join(", ");
        let found = format!("{setting} {address} is also taken by {names}");
        out.push(Check::fail(WHAT, found, format!("Stop it there, or set {setting} to another port.")));
    }
    if fine > 0 && out.is_empty() {
        out.push(Check::ok(WHAT, format!("{fine} listeners of the proxy, none taken by others")));
    }
    out
}

/// Answers of UDP services are sent from their address and port: a program that has that port on all addresses and does
/// not share it is in the way.
fn answers(listeners: &[Listener], dump: &Value) -> Option<Check> {
    let services = dump["services"].as_array().into_iter().flatten();
    let ports = services.flat_map(|s| s["ports"].as_array().into_iter().flatten());
    let udp: BTreeSet<u64> =
        ports.filter(|p| p["protocol"] == "udp").filter_map(|p| p["number"].as_u64()).collect();
    let wide = |l: &&Listener| l.udp && l.address.ip().is_unspecified();
    let in_the_way: BTreeMap<u16, &str> = listeners
        .iter()
        .filter(wide)
        .filter(|l| udp.contains(&u64::from(l.address.port())) && l.program.as_deref() != Some(PROGRAM))
        .map(|l| (l.address.port(), l.program.as_deref().unwrap_or("a program of another user")))
        .collect();
    let (port, program) = in_the_way.iter().next()?;
    Some(Check::warn(
        WHAT,
        format!("{program} has UDP port {port} on all addresses, and a service has that port too"),
        "Let it listen on the addresses that it needs; else answers of the service cannot be sent.",
    ))
}

fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

fn listeners() -> Vec<Listener> {
    let mut found = Vec::new();
    for (file, udp) in [("tcp", false), ("tcp6", false), ("udp", true), ("udp6", true)] {
        let text = fs::read_to_string(format!("/proc/net/{file}")).unwrap_or_default();
        found.extend(parse(&text, udp).into_iter().map(|(address, inode)| (address, udp, inode)));
    }
    let programs = programs(&found.iter().map(|(_, _, inode)| *inode).collect());
    let named = |(address, udp, inode)| Listener { address, udp, program: programs.get(&inode).cloned() };
    found.into_iter().map(named).collect()
}

/// Listening sockets of a `/proc/net` file, with their inodes.
fn parse(text: &str, udp: bool) -> Vec<(SocketAddr, u64)> {
    let row = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = address(fields.next()?)?;
        let (_remote, state) = (fields.next()?, fields.next()?);
        // 0A: listening; 07: a UDP socket that is not connected.
        if state != (if udp { "07" } else { "0A" }) {
            return None;
        }
        let inode = fields.nth(5)?.parse().ok()?;
        Some((local, inode))
    };
    text.lines().skip(1).filter_map(row).collect()
}

/// `0100007F:3A98`: words in the host's order, port in hex.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Option<Vec<[u8; 4]>> = ip
        .as_bytes()
        .chunks(8)
        .map(|c| Some(u32::from_str_radix(std::str::from_utf8(c).ok()?, 16).ok()?.to_ne_bytes()))
        .collect();
    let bytes: Vec<u8> = words?.concat();
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => IpAddr::V4(Ipv4Addr::from(v4)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?)),
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

/// Names of the programs that have these sockets, as far as this user may look.
fn programs(wanted: &BTreeSet<u64>) -> BTreeMap<u64, String> {
    let mut out = BTreeMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.filter(|p| p.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit())) {
        for fd in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(link) = fs::read_link(fd.path()) else { continue };
            let link = link.to_string_lossy().into_owned();
            let inode = link.strip_prefix("socket:[").and_then(|l| l.strip_suffix(']')?.parse().ok());
            let Some(inode) = inode.filter(|i| wanted.contains(i)) else { continue };
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            out.insert(inode, name.trim().to_owned());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::doctor::Status;

    fn listener(address: &str, udp: bool, program: &str) -> Listener {
        Listener { address: address.parse().unwrap(), udp, program: Some(program.into()) }
    }

    #[test]
    fn a_listener_is_read_from_proc() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 0100007F:3A98 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0\n\
            \x20  1: 0100007F:3A98 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 12346 1 0\n";
        assert_eq!(parse(text, false), [("127.0.0.1:15000".parse().unwrap(), 12345)]);
        assert_eq!(address("00000000000000000000000001000000:0035").unwrap().to_string(), "[::1]:53");
        // This test's own.
        let own = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr();
        let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = listeners();
        let me = found.iter().find(|l| !l.udp && l.address == held.local_addr().unwrap()).unwrap();
        assert!(me.program.is_some(), "{me:?}");
        drop(own);
    }

    #[test]
    fn others_on_the_proxys_ports_are_named() {
        let config = json!({ "listen": { "tunnel": "0.0.0.0:15008", "proxy": null }, "dns": { "listen": "169.254.96.16:53" } });
        let node = Node { config, ..Node::default() };
        let mine = [
            listener("0.0.0.0:15008", false, "mesh-proxy"),
            listener("169.254.96.16:53", true, "mesh-proxy"),
        ];
        assert_eq!(own(&mine, &node, true)[0].status, Status::Ok);
        let dnsmasq = [listener("0.0.0.0:53", true, "dnsmasq"), listener("127.0.0.1:15008", false, "x")];
        let found = own(&dnsmasq, &node, true);
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|c| c.status == Status::Fail), "{found:?}");
        assert_eq!(found[1].found, "dns.listen 169.254.96.16:53 is also taken by dnsmasq");
        assert!(
            own(&[listener("127.0.0.53:53", true, "systemd-resolve")], &node, true)[0].status == Status::Ok
        );
        // Without a proxy, its defaults.
        assert_eq!(own(&[listener("0.0.0.0:15020", false, "x")], &Node::default(), false).len(), 1);
    }

    #[test]
    fn a_program_that_is_in_the_way_of_answers_is_named() {
        let dump = json!({ "services": [{ "ports": [{ "number": 53, "protocol": "udp" }, { "number": 80, "protocol": "http" }] }] });
        let at = |l: &[Listener]| answers(l, &dump).map(|c| c.found);
        assert_eq!(at(&[listener("127.0.0.1:53", true, "x"), listener("0.0.0.0:80", true, "x")]), None);
        assert!(
            at(&[listener("0.0.0.0:53", true, "dnsmasq")]).unwrap().starts_with("dnsmasq has UDP port 53")
        );
    }
}
