//! IPv6 in a world: public and routed, one /64 a site, behind routers that let in only answers.

use std::net::Ipv6Addr;

use super::{INTERNET, Plan};
use crate::lab::{Nat, PortMapping, Spec, site::Ipv6};

const FORWARDING: (&str, &str) = ("net/ipv6/conf/all/forwarding", "1");
/// As home routers come: everything out, answers in. Errors and echoes pass (RFC 4890).
const FIREWALL: &str =
    "table ip6 router { chain forward { type filter hook forward priority filter; policy accept;
    iifname \"wan\" ct state established,related accept;
    iifname \"wan\" meta l4proto != ipv6-icmp drop; }
}
";

/// A router asks for its neighbours from an address of the link's own, which takes seconds to become usable
/// unless nobody is asked whether it is free.
fn at_once(device: &str) -> (String, &'static str) {
    (format!("net/ipv6/conf/{device}/accept_dad"), "0")
}

/// Whether the world has IPv6 at all.
pub(super) fn is_used(spec: &Spec) -> bool {
    spec.sites.values().any(|s| s.ipv6 != Ipv6::Off)
}

fn within(spec: &Spec, subnet: usize, host: usize) -> Ipv6Addr {
    let number = |n: usize| u128::try_from(n).unwrap_or_default();
    (u128::from(spec.public6.network()) | (number(subnet & 0xffff) << 64) | number(host & 0xffff)).into()
}

/// The /64 of a site: the first belongs to the public segment.
fn subnet(spec: &Spec, site: &str) -> usize {
    1 + spec.sites.keys().position(|n| n == site).unwrap_or_default()
}

impl Plan {
    /// A second family on a link into the public segment.
    pub(super) fn attach_v6(&mut self, spec: &Spec, name: &str, device: &str) {
        let Some(outer) = self.places.get(name).and_then(|p| Some(p.uplink.as_ref()?.outer_device.clone()))
        else {
            return;
        };
        let (gateway, address) = (within(spec, 0, 1), within(spec, 0, 0x10 + self.links.len()));
        self.edit(name, |p| p.address6 = Some(address));
        self.setup(name).ip.extend([
            format!("address add {address}/128 dev {device} nodad"),
            format!("route add {gateway}/128 dev {device}"),
            format!("route add default via {gateway} dev {device}"),
        ]);
        self.setup(name).sysctl.push(at_once(device));
        let internet = self.setup(INTERNET);
        internet.set(&[FORWARDING]);
        internet.sysctl.push(at_once(&outer));
        internet.ip.extend([
            format!("address add {gateway}/128 dev {outer} nodad"),
            format!("route add {address}/128 dev {outer}"),
        ]);
    }

    /// A router's inner side, and the way to it.
    pub(super) fn router_v6(&mut self, spec: &Spec, name: &str) {
        let Some((address, outer)) = (self.places.get(name))
            .and_then(|p| Some((p.address6?, p.uplink.as_ref()?.outer_device.clone())))
        else {
            return;
        };
        let number = subnet(spec, name);
        // A router that opens ports has a firewall that it can open.
        let is_open = spec
            .sites
            .get(name)
            .is_some_and(|s| s.nat.kind == Nat::None || s.nat.port_mapping != PortMapping::Off);
        let setup = self.setup(name);
        setup.set(&[FORWARDING]);
        setup.sysctl.push(at_once("default"));
        setup.ip.push(format!("address add {}/64 dev lan nodad", within(spec, number, 1)));
        if !is_open {
            setup.nft.push_str(FIREWALL);
        }
        let route = format!("route add {}/64 via {address} dev {outer}", within(spec, number, 0));
        self.setup(INTERNET).ip.push(route);
    }

    /// A node of a site with IPv6.
    pub(super) fn lan_node_v6(&mut self, spec: &Spec, name: &str, site: &str) {
        let number = subnet(spec, site);
        let (gateway, address) = (within(spec, number, 1), within(spec, number, 0x10 + self.links.len()));
        self.edit(name, |p| p.address6 = Some(address));
        self.setup(name).sysctl.push(at_once("eth0"));
        self.setup(name).ip.extend([
            format!("address add {address}/64 dev eth0 nodad"),
            format!("route add default via {gateway} dev eth0"),
        ]);
    }
}
