//! Decides a world's addresses, devices, routes and filters from its description. Pure: the same description
//! gives the same world every time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{LabError, Nat, Spec, site::Ipv6};

mod router;
mod v6;

/// The namespace that joins everything public.
pub const INTERNET: &str = "internet";
/// Name server of pods whose node names no other.
pub const DEFAULT_DNS: Ipv4Addr = Ipv4Addr::new(169, 254, 96, 16);

/// What a namespace stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The public segment.
    Internet,
    /// A site's router.
    Router,
    /// A machine.
    Node,
    /// A workload.
    Pod,
}

/// One namespace of a world.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlaceInfo {
    /// Its name, or the site's for a router.
    pub name: String,
    /// What it stands for.
    pub kind: Kind,
    /// Its own address; unspecified where there is only IPv6.
    pub address: Ipv4Addr,
    /// Its IPv6 address, where there is IPv6.
    #[serde(default)]
    pub address6: Option<Ipv6Addr>,
    /// How the public side sees it: the router's address behind NAT, otherwise its own.
    pub public_address: Ipv4Addr,
    /// The site it is in.
    pub site: Option<String>,
    /// For pods: the node.
    pub node: Option<String>,
    /// For pods: the Kubernetes namespace.
    pub namespace: Option<String>,
    /// For nodes: the pods' prefix.
    pub pods: Option<Ipv4Net>,
    /// The device that leads out, and the other end of that link.
    pub uplink: Option<Uplink>,
    /// What its `/etc/resolv.conf` says.
    pub resolv: String,
    /// Every device that it may have.
    pub devices: BTreeSet<String>,
    /// Inode of the network namespace; 0 until it exists.
    #[serde(default)]
    pub inode: u64,
}

/// The link that leads out of a place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Uplink {
    /// Device in the place itself.
    pub device: String,
    /// The place at the other end.
    pub outer: String,
    /// Device there.
    pub outer_device: String,
    /// Whether that device is a bridge port: filters then sit in the bridge family.
    pub bridged: bool,
}

/// What is run in a place to set it up.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Lines for `ip -batch`, run after all links exist.
    pub ip: Vec<String>,
    /// Text for `nft -f`.
    pub nft: String,
    /// `/proc/sys` settings; one that begins with `-` may not exist.
    pub sysctl: Vec<(String, &'static str)>,
    /// Arguments of `lab` programs that run here for as long as the world does; each says when it is ready.
    pub programs: Vec<Vec<String>>,
    /// Lines for `ip -batch`, run when the programs are ready.
    pub late: Vec<String>,
}

impl Setup {
    fn set(&mut self, values: &[(&str, &'static str)]) {
        self.sysctl.extend(values.iter().map(|(key, value)| ((*key).to_owned(), *value)));
    }
}

/// A pair of devices.
#[derive(Clone, Debug)]
pub struct Link {
    /// One end: place and device.
    pub a: (String, String),
    /// The other end.
    pub b: (String, String),
}

/// Everything the keeper does, in order.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// All namespaces.
    pub places: BTreeMap<String, PlaceInfo>,
    /// Links between them.
    pub links: Vec<Link>,
    /// What to run where.
    pub setup: BTreeMap<String, Setup>,
}

const FORWARDING: [(&str, &str); 2] =
    [("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/send_redirects", "0")];
const REVERSE_PATH: [(&str, &str); 2] =
    [("net/ipv4/conf/all/rp_filter", "0"), ("net/ipv4/conf/default/rp_filter", "0")];

/// Lays a checked description out.
///
/// # Errors
/// When a prefix has no free address left.
pub fn plan(spec: &Spec) -> Result<Plan, LabError> {
    spec.check()?;
    let mut plan = Plan::default();
    plan.place(INTERNET, Kind::Internet, spec.public.first().map_or(Ipv4Addr::UNSPECIFIED, first_host));
    plan.routing(INTERNET);
    let mut public = Pool::public(spec);
    let mut lans: BTreeMap<&str, Pool> = BTreeMap::new();
    for (name, site) in &spec.sites {
        let nodes = spec.nodes.values().filter(|n| n.site.as_ref() == Some(name)).filter_map(|n| n.address);
        let routers = spec.sites.values().filter(|s| s.behind.as_ref() == Some(name));
        lans.insert(name, Pool::of(site.lan, nodes.chain(routers.filter_map(|s| s.address))));
    }
    for name in outermost_first(spec) {
        plan.add_site(spec, name, &mut public, &mut lans)?;
    }
    for (name, node) in &spec.nodes {
        match &node.site {
            None => plan.add_public_node(spec, name, &mut public)?,
            Some(site) => {
                let pool = lans.get_mut(site.as_str());
                let free = pool.and_then(|p| p.next(node.address)).ok_or_else(|| full(site))?;
                plan.add_lan_node(spec, name, site, free);
            }
        }
        plan.add_pods(spec, name)?;
    }
    plan.finish_routers(spec)?;
    Ok(plan)
}

/// Carriers before the sites behind them.
fn outermost_first(spec: &Spec) -> Vec<&str> {
    let depth = |name: &str| {
        let up = |at: &&str| spec.sites.get(*at).and_then(|s| s.behind.as_deref());
        std::iter::successors(Some(name), up).count()
    };
    let mut names: Vec<&str> = spec.sites.keys().map(String::as_str).collect();
    names.sort_by_key(|n| depth(n));
    names
}

fn full(what: &str) -> LabError {
    LabError::Invalid(vec![format!("{what} has no free address left")])
}

fn first_host(net: &Ipv4Net) -> Ipv4Addr {
    net.hosts().next().unwrap_or_else(|| net.addr())
}

/// Free addresses of a prefix, in order.
struct Pool {
    nets: Vec<Ipv4Net>,
    used: BTreeSet<Ipv4Addr>,
    avoid: Vec<Ipv4Net>,
}

impl Pool {
    fn of(net: Ipv4Net, fixed: impl Iterator<Item = Ipv4Addr>) -> Self {
        let mut used: BTreeSet<Ipv4Addr> = fixed.collect();
        used.insert(first_host(&net));
        Self { nets: vec![net], used, avoid: Vec::new() }
    }

    fn public(spec: &Spec) -> Self {
        let mut used: BTreeSet<Ipv4Addr> = spec.public.iter().map(first_host).collect();
        used.extend(spec.sites.values().filter(|s| s.behind.is_none()).filter_map(|s| s.address));
        used.extend(spec.nodes.values().filter(|n| n.site.is_none()).filter_map(|n| n.address));
        let avoid = spec.sites.values().filter(|s| s.nat.kind == Nat::None).map(|s| s.lan).collect();
        Self { nets: spec.public.clone(), used, avoid }
    }

    fn next(&mut self, fixed: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        if fixed.is_some() {
            return fixed;
        }
        let hosts = self.nets.iter().flat_map(Ipv4Net::hosts);
        let free = hosts
            .filter(|a| !self.used.contains(a) && !self.avoid.iter().any(|n| n.contains(a)))
            .find(|a| a.octets()[3] >= 10 || self.nets.iter().any(|n| n.prefix_len() > 27))?;
        self.used.insert(free);
        Some(free)
    }
}

impl Plan {
    fn place(&mut self, name: &str, kind: Kind, address: Ipv4Addr) {
        let info = PlaceInfo {
            name: name.to_owned(),
            kind,
            address,
            address6: None,
            public_address: address,
            site: None,
            node: None,
            namespace: None,
            pods: None,
            uplink: None,
            resolv: String::new(),
            devices: BTreeSet::from(["lo".to_owned()]),
            inode: 0,
        };
        self.places.insert(name.to_owned(), info);
        let setup = self.setup(name);
        setup.ip.push("link set dev lo up".to_owned());
        setup.set(&REVERSE_PATH);
    }

    fn setup(&mut self, name: &str) -> &mut Setup {
        self.setup.entry(name.to_owned()).or_default()
    }

    fn edit(&mut self, name: &str, change: impl FnOnce(&mut PlaceInfo)) {
        if let Some(place) = self.places.get_mut(name) {
            change(place);
        }
    }

    fn routing(&mut self, name: &str) {
        self.setup(name).set(&FORWARDING);
    }

    fn device(&mut self, place: &str, device: &str) {
        self.edit(place, |p| {
            p.devices.insert(device.to_owned());
        });
    }

    fn link(&mut self, inner: (&str, &str), outer: (&str, &str), bridged: bool) {
        self.device(inner.0, inner.1);
        self.device(outer.0, outer.1);
        self.edit(inner.0, |p| {
            p.uplink = Some(Uplink {
                device: inner.1.to_owned(),
                outer: outer.0.to_owned(),
                outer_device: outer.1.to_owned(),
                bridged,
            });
        });
        self.setup(outer.0).ip.push(format!("link set dev {} up", outer.1));
        if bridged {
            let bridge = if outer.1.starts_with('p') { "cni0" } else { "lan" };
            self.setup(outer.0).ip.push(format!("link set dev {} master {bridge}", outer.1));
        }
        self.setup(inner.0).ip.push(format!("link set dev {} up", inner.1));
        self.links.push(Link {
            a: (inner.0.to_owned(), inner.1.to_owned()),
            b: (outer.0.to_owned(), outer.1.to_owned()),
        });
    }

    /// A point-to-point link into the public segment: no neighbour is reachable but through it.
    fn attach(&mut self, spec: &Spec, name: &str, device: &str, address: Ipv4Addr) {
        let outer = format!("w{}", self.links.len());
        self.link((name, device), (INTERNET, &outer), false);
        let gateway = (spec.public.iter().find(|p| p.contains(&address)).or(spec.public.first()))
            .map_or(Ipv4Addr::UNSPECIFIED, first_host);
        self.setup(name).ip.extend([
            format!("address add {address}/32 dev {device}"),
            format!("route add {gateway}/32 dev {device} scope link src {address}"),
            format!("route add default via {gateway} dev {device} src {address}"),
        ]);
        self.setup(INTERNET).ip.extend([
            format!("address add {gateway}/32 dev {outer}"),
            format!("route add {address}/32 dev {outer} scope link src {gateway}"),
        ]);
    }

    fn node(&mut self, spec: &Spec, name: &str, address: Ipv4Addr) {
        self.place(name, Kind::Node, address);
        self.routing(name);
        let upstream = spec.public.first().map_or(DEFAULT_DNS, first_host);
        self.edit(name, |p| p.resolv = format!("nameserver {upstream}\n"));
        let bridged = spec.nodes.get(name).is_some_and(|n| n.bridge_netfilter);
        self.setup(name).set(&[("-net/bridge/bridge-nf-call-iptables", if bridged { "1" } else { "0" })]);
    }

    fn add_public_node(&mut self, spec: &Spec, name: &str, public: &mut Pool) -> Result<(), LabError> {
        let fixed = spec.nodes.get(name).and_then(|n| n.address);
        let address = public.next(fixed).ok_or_else(|| full("public"))?;
        self.node(spec, name, address);
        self.attach(spec, name, "eth0", address);
        if v6::is_used(spec) {
            self.attach_v6(spec, name, "eth0");
        }
        Ok(())
    }

    fn add_lan_node(&mut self, spec: &Spec, name: &str, site_name: &str, address: Ipv4Addr) {
        let Some(site) = spec.sites.get(site_name) else { return };
        self.node(spec, name, if site.ipv6 == Ipv6::Only { Ipv4Addr::UNSPECIFIED } else { address });
        let port = format!("l{}", self.links.len());
        self.link((name, "eth0"), (site_name, &port), true);
        let router = self.places.get(site_name).map_or(address, |r| r.public_address);
        self.edit(name, |p| {
            p.site = Some(site_name.to_owned());
            if site.nat.kind != Nat::None && site.ipv6 != Ipv6::Only {
                p.public_address = router;
            }
        });
        if site.ipv6 != Ipv6::Off {
            self.lan_node_v6(spec, name, site_name);
        }
        if site.ipv6 == Ipv6::Only {
            return;
        }
        let gateway = first_host(&site.lan);
        self.setup(name).ip.extend([
            format!("address add {address}/{} dev eth0", site.lan.prefix_len()),
            format!("route add default via {gateway} dev eth0"),
        ]);
    }

    fn add_pods(&mut self, spec: &Spec, node_name: &str) -> Result<(), LabError> {
        let Some((node, net)) = spec.nodes.get(node_name).and_then(|n| Some((n, n.pods?))) else {
            return Ok(());
        };
        let gateway = first_host(&net);
        self.edit(node_name, |p| p.pods = Some(net));
        self.device(node_name, "cni0");
        self.setup(node_name).ip.extend([
            "link add dev cni0 type bridge forward_delay 0".to_owned(),
            format!("address add {gateway}/{} dev cni0", net.prefix_len()),
            "link set dev cni0 up".to_owned(),
        ]);
        let here = || spec.pods.iter().filter(|(_, p)| p.node == node_name);
        let mut pool = Pool::of(net, here().filter_map(|(_, p)| p.address));
        // The node's own site and public address are what the world outside sees of a pod.
        let (site, public_address) =
            self.places.get(node_name).map_or((None, gateway), |n| (n.site.clone(), n.public_address));
        for (name, pod) in here() {
            let address = pool.next(pod.address).ok_or_else(|| full(node_name))?;
            self.place(name, Kind::Pod, address);
            let port = format!("p{}", self.links.len());
            self.link((name, "eth0"), (node_name, &port), true);
            let (dns, ns) = (node.dns.unwrap_or(DEFAULT_DNS), &pod.namespace);
            self.edit(name, |p| {
                p.node = Some(node_name.to_owned());
                p.namespace = Some(ns.clone());
                p.site = site.clone();
                p.public_address = public_address;
                p.resolv = format!(
                    "nameserver {dns}\nsearch {ns}.svc.cluster.local svc.cluster.local cluster.local\n\
                     options ndots:5 timeout:2 attempts:2\n"
                );
            });
            self.setup(name).ip.extend([
                format!("address add {address}/{} dev eth0", net.prefix_len()),
                format!("route add default via {gateway} dev eth0"),
            ]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_sites() -> Spec {
        Spec::named("t")
            .site("shop", "192.168.1.0/24".parse().unwrap(), Nat::Masquerade)
            .site("mast", "198.51.100.128/25".parse().unwrap(), Nat::None)
            .node("cloud", None, None)
            .node("a", Some("shop"), Some("10.1.1.0/24".parse().unwrap()))
            .node("b", Some("mast"), Some("10.1.2.0/24".parse().unwrap()))
            .pod("web", "a")
            .pod("db", "b")
    }

    #[test]
    fn addresses_come_from_the_right_prefixes() {
        let plan = plan(&two_sites()).unwrap();
        let at = |n: &str| plan.places[n].address.to_string();
        assert_eq!(at("web"), "10.1.1.10");
        assert_eq!(at("a"), "192.168.1.10");
        assert_eq!(at("b"), "198.51.100.130");
        assert!(plan.places["cloud"].address.to_string().starts_with("203.0.113."));
        // Behind NAT the world sees the router, without NAT the node.
        assert_eq!(plan.places["web"].public_address, plan.places["shop"].address);
        assert_eq!(plan.places["db"].public_address, plan.places["b"].address);
        let all: BTreeSet<Ipv4Addr> = plan.places.values().map(|p| p.address).collect();
        assert_eq!(all.len(), plan.places.len(), "addresses are unique");
    }

    #[test]
    fn every_device_is_known_and_every_link_joins_two_places_of_the_world() {
        let plan = plan(&two_sites()).unwrap();
        for link in &plan.links {
            for (place, device) in [&link.a, &link.b] {
                assert!(plan.places[place].devices.contains(device), "{place}/{device}");
                assert!(device.len() <= 15);
            }
        }
        assert!(!plan.setup[INTERNET].ip.iter().any(|l| l.contains("default")), "no way out");
    }

    #[test]
    fn the_same_description_gives_the_same_plan() {
        let (a, b) = (plan(&two_sites()).unwrap(), plan(&two_sites()).unwrap());
        assert_eq!(format!("{a:?}"), format!("{b:?}"));
    }
}
