//! The text of our rules, and what a listing says about them. Pure.

use std::collections::BTreeSet;
use std::fmt::{Display, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::{CaptureOptions, may_capture, route};

/// Before the priority of kube-proxy's rules (-100), so that services are ours.
const PRIORITY: i32 = -105;
/// Before connection tracking (-200), after fragments are put together (-400).
const RAW: i32 = -300;

/// Captured addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Vips {
    v4: BTreeSet<Ipv4Addr>,
    v6: BTreeSet<Ipv6Addr>,
    /// For datagrams, ports too: what is not asked for is not taken.
    udp4: BTreeSet<(Ipv4Addr, u16)>,
    udp6: BTreeSet<(Ipv6Addr, u16)>,
    /// Pods of this node, which may be name servers: what asks one of them is left alone when queries of pods are taken.
    pods4: BTreeSet<Ipv4Addr>,
    pods6: BTreeSet<Ipv6Addr>,
}

impl Vips {
    /// Those of a family that is captured.
    pub(crate) fn of(
        all: impl Iterator<Item = IpAddr>,
        udp: impl Iterator<Item = (IpAddr, u16)>,
        options: &CaptureOptions,
    ) -> Self {
        let mut vips = Self::default();
        for (ip, port) in udp.filter(|(ip, _)| may_capture(*ip) && !options.spared.contains(ip)) {
            match ip {
                IpAddr::V4(ip) if options.udp_v4.is_some() => _ = vips.udp4.insert((ip, port)),
                IpAddr::V6(ip) if options.udp_v6.is_some() => _ = vips.udp6.insert((ip, port)),
                _ => {}
            }
        }
        for ip in all.filter(|ip| may_capture(*ip) && !options.spared.contains(ip)) {
            match ip {
                IpAddr::V4(ip) if options.port_v4.is_some() => _ = vips.v4.insert(ip),
                IpAddr::V6(ip) if options.port_v6.is_some() => _ = vips.v6.insert(ip),
                _ => {}
            }
        }
        vips
    }

    /// Sets the pods of this node; of the family in which queries are taken.
    pub(crate) fn with_pods(mut self, pods: impl Iterator<Item = IpAddr>, options: &CaptureOptions) -> Self {
        let Some(server) = options.pod_dns else { return self };
        for ip in pods.filter(|ip| may_capture(*ip)) {
            match ip {
                IpAddr::V4(ip) if server.is_ipv4() => _ = self.pods4.insert(ip),
                IpAddr::V6(ip) if server.is_ipv6() => _ = self.pods6.insert(ip),
                _ => {}
            }
        }
        self
    }

    /// Whether the pods are the same.
    pub(crate) fn same_pods(&self, other: &Self) -> bool {
        self.pods4 == other.pods4 && self.pods6 == other.pods6
    }

    /// What is there and not in `other`.
    fn without(&self, other: &Self) -> Self {
        fn less<T: Ord + Copy>(a: &BTreeSet<T>, b: &BTreeSet<T>) -> BTreeSet<T> {
            a.difference(b).copied().collect()
        }
        Self {
            v4: less(&self.v4, &other.v4),
            v6: less(&self.v6, &other.v6),
            udp4: less(&self.udp4, &other.udp4),
            udp6: less(&self.udp6, &other.udp6),
            pods4: less(&self.pods4, &other.pods4),
            pods6: less(&self.pods6, &other.pods6),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.v4.len() + self.v6.len() + self.udp4.len() + self.udp6.len()
    }
}

pub(crate) struct Rules {
    pub(crate) options: CaptureOptions,
}

impl Rules {
    pub(crate) fn new(options: CaptureOptions) -> Self {
        Self { options }
    }

    /// A script that replaces the table in one transaction.
    pub(crate) fn full(&self, vips: &Vips) -> String {
        let table = &self.options.table;
        let mut redirects = String::new();
        if let Some(port) = self.options.port_v4 {
            redirects.push_str(&format!("    meta l4proto tcp ip daddr @vip4 redirect to :{port}\n"));
        }
        if let Some(port) = self.options.port_v6 {
            redirects.push_str(&format!("    meta l4proto tcp ip6 daddr @vip6 redirect to :{port}\n"));
        }
        let dns = self.options.pod_dns.map_or_else(String::new, |to| {
            let (family, target) = match to {
                std::net::SocketAddr::V4(to) => ("ip", to.to_string()),
                std::net::SocketAddr::V6(to) => ("ip6", to.to_string()),
            };
            // Queries that others send to a name server on this node are not those of its pods: a server in a pod, or
            // the node's own. Taken too, they would go from node to node and never arrive.
            let left = match to {
                std::net::SocketAddr::V4(_) => "ip daddr @pods4",
                std::net::SocketAddr::V6(_) => "ip6 daddr @pods6",
            };
            format!(
                "    meta l4proto {{ tcp, udp }} th dport 53 {left} return\n\
                 \x20   meta l4proto {{ tcp, udp }} th dport 53 dnat {family} to {target}\n"
            )
        });
        let mark = self.options.mark;
        format!(
            "add table inet {table}\n\
             delete table inet {table}\n\
             table inet {table} {{\n\
             {v4}{v6}{pods}\
             \x20 chain output {{\n\
             \x20   type nat hook output priority {PRIORITY}; policy accept;\n\
             \x20   meta mark {mark:#x} return\n\
             {redirects}\
             \x20 }}\n\
             \x20 chain prerouting {{\n\
             \x20   type nat hook prerouting priority {PRIORITY}; policy accept;\n\
             {redirects}{dns}\
             \x20 }}\n\
             {udp}\
             }}\n",
            v4 = set("vip4", "ipv4_addr", vips.v4.iter()),
            v6 = set("vip6", "ipv6_addr", vips.v6.iter()),
            pods = match self.options.pod_dns {
                None => String::new(),
                Some(std::net::SocketAddr::V4(_)) => set("pods4", "ipv4_addr", vips.pods4.iter()),
                Some(std::net::SocketAddr::V6(_)) => set("pods6", "ipv6_addr", vips.pods6.iter()),
            },
            udp = self.datagrams(vips),
        )
    }

    /// Sets and chains for datagrams. They are not translated but handed to our listener as they are, those of this
    /// node by way of its loopback link. Nobody else is to translate them or the answers, so they are not tracked.
    fn datagrams(&self, vips: &Vips) -> String {
        let options = &self.options;
        let families = [
            ("ip", "udp4", "ipv4_addr", options.udp_v4, pairs(&vips.udp4)),
            ("ip6", "udp6", "ipv6_addr", options.udp_v6, pairs(&vips.udp6)),
        ];
        let [mut sets, mut answers, mut output, mut input] = [const { String::new() }; 4];
        let to_us = format!("meta mark set meta mark & {:#x} ^ {:#x}", !route::MASK, route::MARK);
        for (family, name, kind, port, elements) in families {
            let Some(port) = port else { continue };
            sets.push_str(&set(name, &format!("{kind} . inet_service"), elements.iter()));
            let add = |text: &mut String, rule: String| text.push_str(&format!("    {rule}\n"));
            add(&mut answers, format!("{family} saddr . udp sport @{name} notrack return"));
            add(&mut output, format!("{family} daddr . udp dport @{name} notrack {to_us}"));
            let hand_over = format!("notrack tproxy {family} to :{port} {to_us} accept");
            add(&mut input, format!("{family} daddr . udp dport @{name} {hand_over}"));
        }
        if sets.is_empty() {
            return String::new();
        }
        // Queries of pods are for the node's own DNS then, see the other chain.
        let pod_dns = options.pod_dns.map_or("", |_| "    iifname != \"lo\" udp dport 53 return\n");
        format!(
            "{sets}\
             \x20 chain udp_output {{\n\
             \x20   type route hook output priority {RAW}; policy accept;\n\
             {answers}\
             \x20   meta mark {mark:#x} return\n\
             {output}\
             \x20 }}\n\
             \x20 chain udp_prerouting {{\n\
             \x20   type filter hook prerouting priority {RAW}; policy accept;\n\
             {pod_dns}{input}\
             \x20 }}\n",
            mark = options.mark,
        )
    }

    /// A script that turns one set of addresses into another, or nothing when they are equal.
    pub(crate) fn changes(&self, from: &Vips, to: &Vips) -> Option<String> {
        let mut script = String::new();
        let mut change = |verb: &str, name: &str, elements: String| {
            if !elements.is_empty() {
                // Writing to a String cannot fail.
                let _ =
                    writeln!(script, "{verb} element inet {} {name} {{ {elements} }}", self.options.table);
            }
        };
        for (verb, part) in [("delete", from.without(to)), ("add", to.without(from))] {
            change(verb, "vip4", list(part.v4.iter()));
            change(verb, "vip6", list(part.v6.iter()));
            change(verb, "udp4", list(pairs(&part.udp4).iter()));
            change(verb, "udp6", list(pairs(&part.udp6).iter()));
            change(verb, "pods4", list(part.pods4.iter()));
            change(verb, "pods6", list(part.pods6.iter()));
        }
        (!script.is_empty()).then_some(script)
    }

    /// Leaves rules that match nothing.
    pub(crate) fn release(&self) -> String {
        let options = CaptureOptions { pod_dns: None, ..self.options.clone() };
        Self { options }.full(&Vips::default())
    }

    /// Removes the table, whether it is there or not.
    pub(crate) fn removal(&self) -> String {
        let table = &self.options.table;
        format!("add table inet {table}\ndelete table inet {table}\n")
    }
}

fn pairs<T: Display>(elements: &BTreeSet<(T, u16)>) -> Vec<String> {
    elements.iter().map(|(ip, port)| format!("{ip} . {port}")).collect()
}

fn set<T: Display>(name: &str, kind: &str, elements: impl Iterator<Item = T>) -> String {
    let elements = match list(elements) {
        none if none.is_empty() => none,
        some => format!("    elements = {{ {some} }}\n"),
    };
    format!("  set {name} {{\n    type {kind}\n{elements}  }}\n")
}

fn list<T: Display>(elements: impl Iterator<Item = T>) -> String {
    let mut text = String::new();
    for element in elements {
        let comma = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{comma}{element}");
    }
    text
}

/// Reads a listing: chains and rules without what changes by itself, and the sets' elements.
pub(crate) fn read(json: &[u8]) -> Option<(String, Vips)> {
    let listing: Value = serde_json::from_slice(json).ok()?;
    let mut structure = String::new();
    let mut vips = Vips::default();
    for object in listing.get("nftables")?.as_array()? {
        if let Some(set) = object.get("set") {
            let elements = set.get("elem").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let of_pods =
                set.get("name").and_then(Value::as_str).is_some_and(|name| name.starts_with("pods"));
            for element in elements {
                match pair(element) {
                    Some((IpAddr::V4(ip), port)) => _ = vips.udp4.insert((ip, port)),
                    Some((IpAddr::V6(ip), port)) => _ = vips.udp6.insert((ip, port)),
                    None => match element.as_str()?.parse().ok()? {
                        IpAddr::V4(ip) if of_pods => _ = vips.pods4.insert(ip),
                        IpAddr::V6(ip) if of_pods => _ = vips.pods6.insert(ip),
                        IpAddr::V4(ip) => _ = vips.v4.insert(ip),
                        IpAddr::V6(ip) => _ = vips.v6.insert(ip),
                    },
                }
            }
        }
        for kind in ["chain", "rule"] {
            if let Some(Value::Object(fields)) = object.get(kind) {
                let mut fields = fields.clone();
                fields.remove("handle");
                let _ = writeln!(structure, "{kind} {}", Value::Object(fields));
            }
        }
    }
    Some((structure, vips))
}

/// An element of a set of addresses and ports.
fn pair(element: &Value) -> Option<(IpAddr, u16)> {
    let [ip, port] = element.get("concat")?.as_array()?.as_slice() else { return None };
    Some((ip.as_str()?.parse().ok()?, u16::try_from(port.as_u64()?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> CaptureOptions {
        CaptureOptions {
            port_v6: Some(15001),
            udp_v4: Some(15001),
            ..CaptureOptions::new("0.0.0.0:15001".parse().unwrap())
        }
    }

    fn vips(all: &[&str]) -> Vips {
        with_udp(all, &[])
    }

    fn with_udp(all: &[&str], udp: &[&str]) -> Vips {
        let udp = udp.iter().map(|a| a.parse::<std::net::SocketAddr>().unwrap()).map(|a| (a.ip(), a.port()));
        Vips::of(all.iter().map(|ip| ip.parse().unwrap()), udp, &options())
    }

    #[test]
    fn only_what_differs_is_changed() {
        let rules = Rules::new(options());
        let from = vips(&["10.96.0.1", "10.96.0.2", "fd00::1"]);
        let to = vips(&["10.96.0.2", "10.96.0.3", "10.96.0.4"]);
        assert_eq!(
            rules.changes(&from, &to).unwrap(),
            "delete element inet selvage vip4 { 10.96.0.1 }\n\
             delete element inet selvage vip6 { fd00::1 }\n\
             add element inet selvage vip4 { 10.96.0.3, 10.96.0.4 }\n"
        );
        assert_eq!(rules.changes(&to, &to), None);
        let from = with_udp(&[], &["10.96.0.1:53", "10.96.0.1:54", "[fd00::1]:53"]);
        let to = with_udp(&[], &["10.96.0.1:53", "10.96.0.2:53"]);
        assert_eq!(
            rules.changes(&from, &to).unwrap(),
            "delete element inet selvage udp4 { 10.96.0.1 . 54 }\n\
             add element inet selvage udp4 { 10.96.0.2 . 53 }\n"
        );
    }

    #[test]
    fn addresses_that_would_cut_the_node_off_are_left_out() {
        assert_eq!(
            vips(&["127.0.0.1", "0.0.0.0", "::1", "::", "224.0.0.1", "10.96.0.1"]),
            vips(&["10.96.0.1"])
        );
        let spared = CaptureOptions { spared: vec!["10.96.0.10".parse().unwrap()], ..options() };
        let udp = ["10.96.0.10:53", "10.96.0.1:53"].map(|a| a.parse::<std::net::SocketAddr>().unwrap());
        let all = ["10.96.0.10", "10.96.0.1"].map(|ip| ip.parse().unwrap());
        let left = Vips::of(all.into_iter(), udp.into_iter().map(|a| (a.ip(), a.port())), &spared);
        assert_eq!(left, with_udp(&["10.96.0.1"], &["10.96.0.1:53"]), "our own name server is not captured");
        let v4_only = CaptureOptions::new("0.0.0.0:15001".parse().unwrap());
        let both = ["10.96.0.1", "fd00::1"].map(|ip| ip.parse().unwrap());
        assert_eq!(Vips::of(both.into_iter(), std::iter::empty(), &v4_only), vips(&["10.96.0.1"]));
    }

    #[test]
    fn a_listing_is_compared_without_handles() {
        let listing = |handle: u32, elements: &str, rule: &str| {
            let text = format!(
                r#"{{"nftables": [{{"metainfo": {{"version": "1"}}}}, {{"set": {{"name": "vip4", "handle": {handle} {elements}}}}},
                {{"chain": {{"name": "output", "handle": {handle}}}}}, {{"rule": {{"handle": {handle}, "expr": "{rule}"}}}}]}}"#
            );
            read(text.as_bytes()).unwrap()
        };
        let first = listing(1, r#", "elem": ["10.96.0.1"]"#, "x");
        assert_eq!(first, listing(2, r#", "elem": ["10.96.0.1"]"#, "x"));
        assert_eq!(first.1, vips(&["10.96.0.1"]));
        let udp = listing(1, r#", "elem": ["10.96.0.1", {"concat": ["10.96.0.1", 53]}]"#, "x");
        assert_eq!(udp.1, with_udp(&["10.96.0.1"], &["10.96.0.1:53"]));
        assert_ne!(first.0, listing(1, "", "y").0);
        assert_eq!(listing(1, "", "x").1, Vips::default());
        assert_eq!(read(b"no"), None);
    }
}
