//! What a site's router is made of: its two sides, its translation, and what it lets out.

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddrV4};

use super::{Kind, Plan, Pool, first_host, full};
use crate::lab::{
    LabError, Nat, Spec,
    mapping::{self, PortMapping},
    nat::{Config, DEVICE},
    site::{Egress, Ipv6, PROXY_PORT, SiteSpec},
};

/// The kernel's translation: nothing comes in uninvited, and a stranger's packet leaves no trace that would make
/// the kernel choose another port later.
const MASQUERADE: &str = "table inet router {
    chain post { type nat hook postrouting priority srcnat; oifname \"wan\" masquerade; }
    chain forward { type filter hook forward priority filter; policy accept;
        iifname \"wan\" ct state established,related accept;
        iifname \"wan\" ct status dnat accept;
        iifname \"wan\" drop; }
    chain input { type filter hook input priority filter; policy accept;
        iifname \"wan\" ct state established,related accept;
        iifname \"wan\" meta l4proto { tcp, udp } drop; }
}
";

impl Plan {
    pub(super) fn add_site(
        &mut self,
        spec: &Spec,
        name: &str,
        public: &mut Pool,
        lans: &mut BTreeMap<&str, Pool>,
    ) -> Result<(), LabError> {
        let Some(site) = spec.sites.get(name) else { return Ok(()) };
        let pool = match &site.behind {
            None => public,
            Some(carrier) => lans.get_mut(carrier.as_str()).ok_or_else(|| full(carrier))?,
        };
        let address = pool.next(site.address).ok_or_else(|| full("the router's outer network"))?;
        self.place(name, Kind::Router, address);
        self.routing(name);
        match site.behind.as_ref().and_then(|c| Some((c, spec.sites.get(c)?))) {
            None => {
                self.attach(spec, name, "wan", address);
                if site.ipv6 != Ipv6::Off {
                    self.attach_v6(spec, name, "wan");
                }
            }
            Some((carrier, above)) => {
                let port = format!("l{}", self.links.len());
                self.link((name, "wan"), (carrier, &port), true);
                let outside = self.places.get(carrier).map_or(address, |p| p.public_address);
                self.edit(name, |p| {
                    p.public_address = outside;
                    p.site = Some(carrier.clone());
                });
                self.setup(name).ip.extend([
                    format!("address add {address}/{} dev wan", above.lan.prefix_len()),
                    format!("route add default via {} dev wan", first_host(&above.lan)),
                ]);
            }
        }
        self.device(name, "lan");
        self.setup(name).ip.push("link add dev lan type bridge forward_delay 0".to_owned());
        // What stays on the LAN is not the router's to translate or to filter, whatever this machine has loaded.
        self.setup(name).set(&[
            ("-net/bridge/bridge-nf-call-iptables", "0"),
            ("-net/bridge/bridge-nf-call-ip6tables", "0"),
        ]);
        if site.ipv6 != Ipv6::Only {
            let inside = first_host(&site.lan);
            self.setup(name).ip.push(format!("address add {inside}/{} dev lan", site.lan.prefix_len()));
        }
        self.setup(name).ip.push("link set dev lan up".to_owned());
        if site.ipv6 != Ipv6::Off {
            self.router_v6(spec, name);
        }
        if site.nat.kind == Nat::None {
            let outer = self
                .places
                .get(name)
                .and_then(|p| Some(p.uplink.as_ref()?.outer_device.clone()))
                .unwrap_or_default();
            let route = format!("route add {} via {address} dev {outer} onlink", site.lan);
            self.setup(super::INTERNET).ip.push(route);
        }
        self.let_out(name, site);
        Ok(())
    }

    /// What leaves the site.
    fn let_out(&mut self, name: &str, site: &SiteSpec) {
        let mut rules = String::new();
        for port in &site.allow_tcp {
            rules += &format!("tcp dport {port} accept; tcp sport {port} accept; ");
        }
        rules += match site.egress {
            Egress::Any => return,
            Egress::NoUdp => "meta l4proto udp drop;",
            Egress::NoTcp => "meta l4proto tcp drop;",
            Egress::Tcp443 => "iifname \"lan\" tcp dport 443 accept; iifname \"lan\" drop;",
            Egress::Proxy => "iifname \"lan\" drop; oifname \"lan\" drop;",
        };
        let table = format!(
            "table inet egress {{ chain forward {{ type filter hook forward priority -10; policy accept; {rules} }}\n}}\n"
        );
        self.setup(name).nft.push_str(&table);
        if site.egress == Egress::Proxy {
            let listen = format!("{}:{PROXY_PORT}", first_host(&site.lan));
            self.setup(name).programs.push(vec!["__connect-proxy".to_owned(), listen]);
        }
    }

    /// Translation, once the nodes have their addresses.
    pub(super) fn finish_routers(&mut self, spec: &Spec) -> Result<(), LabError> {
        for (name, site) in &spec.sites {
            if let Some(flap) = site.flap
                && let Some(uplink) = self.places.get(name).and_then(|p| p.uplink.clone())
            {
                let family = if uplink.bridged { "bridge" } else { "inet" };
                let mut program = vec!["__flap".to_owned(), family.to_owned(), uplink.outer_device];
                program.extend([flap.up_ms, flap.down_ms].map(|ms| ms.to_string()));
                self.setup(&uplink.outer).programs.push(program);
            }
            if site.nat.kind == Nat::None || site.ipv6 == Ipv6::Only {
                continue;
            }
            let to = |to: &str| self.places.get(to).map(|p| p.address);
            let forward: BTreeMap<u16, SocketAddrV4> = (site.forward.iter())
                .filter_map(|f| Some((f.port, SocketAddrV4::new(to(&f.to)?, f.port))))
                .collect();
            if site.nat.port_mapping != PortMapping::Off {
                self.open_ports(name, site)?;
            }
            if site.translated_by_program() {
                self.translate(name, site, forward)?;
            } else {
                let mut text = MASQUERADE.to_owned();
                for (port, to) in forward {
                    let to = to.ip();
                    let _infallible = writeln!(
                        text,
                        "table inet router {{ chain pre {{ type nat hook prerouting priority dstnat;\n\
                         iifname \"wan\" tcp dport {port} dnat ip to {to};\n\
                         iifname \"wan\" udp dport {port} dnat ip to {to}; }}\n}}"
                    );
                }
                self.setup(name).nft.push_str(&text);
            }
        }
        Ok(())
    }

    /// A daemon that opens ports.
    fn open_ports(&mut self, name: &str, site: &SiteSpec) -> Result<(), LabError> {
        let inside = first_host(&site.lan);
        let six = site.ipv6 != Ipv6::Off;
        let settings = mapping::Settings { offer: site.nat.port_mapping, lan: site.lan, inside, six };
        let text = serde_json::to_string(&settings)
            .map_err(|e| LabError::Invalid(vec![format!("sites.{name}.nat: {e}")]))?;
        let setup = self.setup(name);
        setup.nft.push_str(mapping::RULES);
        if six {
            setup.nft.push_str(mapping::RULES_V6);
        }
        setup.programs.push(vec!["__mapping".to_owned(), text]);
        if site.translated_by_program() {
            setup.late.push(mapping::PAST.to_owned());
        }
        Ok(())
    }

    /// The lab's own translation: everything that crosses the router is routed through a program.
    fn translate(
        &mut self,
        name: &str,
        site: &SiteSpec,
        forward: BTreeMap<u16, SocketAddrV4>,
    ) -> Result<(), LabError> {
        let Some(outer) = self.places.get(name).map(|p| p.address) else { return Ok(()) };
        let config = Config {
            outer,
            lan: site.lan,
            kind: site.nat.kind,
            hairpin: site.nat.hairpin,
            udp_timeout_ms: site.nat.udp_timeout_ms,
            tcp_timeout_ms: site.nat.tcp_timeout_ms,
            keep_ports: site.nat.keep_ports.unwrap_or(site.nat.kind != Nat::Symmetric),
            forward,
            seed: name
                .bytes()
                .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)),
        };
        let text = serde_json::to_string(&config)
            .map_err(|e| LabError::Invalid(vec![format!("sites.{name}.nat: {e}")]))?;
        for device in [DEVICE, "nat1"] {
            self.device(name, device);
        }
        let lan = site.lan;
        let setup = self.setup(name);
        // What comes back from the program carries the router's own address as its source.
        setup.set(&[("net/ipv4/conf/all/accept_local", "1")]);
        setup.programs.push(vec!["__nat".to_owned(), text]);
        setup.late.extend([
            format!("route add default dev {DEVICE} table 100"),
            // The router itself is reached from inside; all else goes through the program, the router's own outer
            // address included (hairpin). From outside, what could belong to a mapping does; ARP does not.
            format!("rule add pref 5 iif lan to {lan} lookup local"),
            format!("rule add pref 6 iif lan to {lan} lookup main"),
            "rule add pref 10 iif lan lookup 100".to_owned(),
        ]);
        setup.late.extend(
            ["udp", "tcp", "icmp"]
                .map(|p| format!("rule add pref 11 iif wan to {outer} ipproto {p} lookup 100")),
        );
        setup
            .late
            .extend(["rule add pref 50 lookup local".to_owned(), "rule del pref 0 lookup local".to_owned()]);
        Ok(())
    }
}
